"""The source's pixels come back where the edit shows its content, moved or not, and nowhere else."""

import pytest
import torch
import torch.nn.functional as F

from dynadrag_pipeline.dense_flow import DenseFlow, shifted
from dynadrag_pipeline.source_restoration import content_shift, restore_source


def blobs(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth picture in which every place looks different."""
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def error(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).square().mean().sqrt().item()


def enlarged(picture: torch.Tensor) -> torch.Tensor:
    return F.interpolate(picture, scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)


@pytest.fixture
def source() -> torch.Tensor:
    """192 x 256, with fine texture on top."""
    texture = torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(1)) - 0.5
    return (blobs(192, 256) + 0.3 * texture).clamp(0, 1)


@pytest.fixture
def reconstruction() -> torch.Tensor:
    """The source as an edit at half of its size sees it, without its texture."""
    return F.interpolate(blobs(192, 256), scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


@pytest.fixture
def bulge() -> torch.Tensor:
    """A shift for pictures of 96 x 128: 6 px to the left in the middle, fading away from it."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    strength = torch.exp(-((x - 64) ** 2 + (y - 48) ** 2) / (2 * 16**2))
    return torch.stack([-6 * strength, 0 * strength])[None]


def test_a_picture_without_an_edit_is_the_source_at_its_own_size(source, reconstruction):
    assert torch.allclose(restore_source(source, reconstruction, reconstruction), source, atol=1e-5)


def test_a_shift_is_found_to_a_fraction_of_a_pixel(reconstruction, bulge):
    found = content_shift(shifted(reconstruction, bulge), reconstruction)
    assert found.shape == bulge.shape
    assert (found - bulge)[..., 32:64, 48:80].abs().max() < 1


def test_moved_content_has_the_pixels_of_the_source(source, reconstruction, bulge):
    edited = shifted(reconstruction, bulge)
    large_bulge = 2 * F.interpolate(bulge, scale_factor=2, mode="bilinear")
    truth = shifted(source, large_bulge)
    restored = restore_source(source, edited, reconstruction)
    middle = (..., slice(64, 128), slice(96, 160))
    assert error(restored[middle], truth[middle]) < 0.6 * error(enlarged(edited)[middle], truth[middle])


def test_what_the_source_does_not_show_stays_as_the_edit_made_it(source, reconstruction):
    """An open mouth, say: darker than anything in the source."""
    source, reconstruction = 0.5 + 0.5 * source, 0.5 + 0.5 * reconstruction
    edited = reconstruction.clone()
    edited[..., 30:70, 30:70] = 0
    restored = restore_source(source, edited, reconstruction)
    assert restored[..., 76:124, 76:124].max() < 0.05
    assert torch.allclose(restored[..., 160:, 200:], source[..., 160:, 200:], atol=1e-2)


def test_noise_is_not_followed(reconstruction):
    noise = 0.01 * torch.randn(reconstruction.shape, generator=torch.Generator().manual_seed(2))
    assert content_shift(reconstruction + noise, reconstruction).abs().max() < 0.2


def test_the_picture_stays_in_range(source, reconstruction):
    restored = restore_source(source, (reconstruction + 0.02).clamp(0, 1), reconstruction)
    assert restored.min() >= 0
    assert restored.max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (64, 600), (136, 72)])
def test_sizes_far_from_square_are_followed_too(size):
    picture = blobs(*size)
    assert restore_source(picture, picture.flip(-1), picture).shape == picture.shape


def disc(x: float, y: float, size: int = 128, contrast: float = 0.08) -> torch.Tensor:
    """Cloth with a mark on it that is hardly darker: `(1, 3, size, size)`."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mark = ((columns - x) ** 2 + (rows - y) ** 2 <= (size / 16) ** 2).float()
    return (0.5 - contrast * mark).expand(1, 3, size, size)


def test_content_that_moved_is_not_taken_back_where_colours_say_little():
    """Without being told, a shift of nought explains the edit well, and the mark is back where it was."""
    source, edited = disc(30, 64), disc(90, 64)
    moves = torch.tensor([[[30.0, 64.0], [90.0, 64.0]]])
    forgotten = restore_source(source, edited, source)
    told = restore_source(source, edited, source, moves=moves)
    at_target, at_handle = (..., 64, 90), (..., 64, 30)
    assert (forgotten - edited)[at_target].abs().max() > 0.06
    assert (told - edited)[at_target].abs().max() < 0.005
    assert (told - edited)[at_handle].abs().max() < 0.005
    torch.testing.assert_close(told[..., :20, :], source[..., :20, :], rtol=0, atol=1e-3)


def test_moves_that_the_shift_knows_change_nothing():
    source, edited = disc(60, 64, contrast=0.4), disc(66, 64, contrast=0.4)
    moves = torch.tensor([[[60.0, 64.0], [66.0, 64.0]]])
    assert torch.equal(restore_source(source, edited, source, moves=moves), restore_source(source, edited, source))


def translation(pixels: float) -> DenseFlow:
    return DenseFlow.of(torch.tensor([pixels, 0.0]).view(1, 2, 1, 1).expand(1, 2, 96, 128))


def test_a_shift_that_is_expected_stays_where_the_pictures_say_little(reconstruction, bulge):
    """Without it, nothing in a plain picture speaks for a shift; with another one, the pictures do."""
    plain = torch.full_like(reconstruction, 0.5)
    torch.testing.assert_close(content_shift(plain, plain, bulge), bulge, atol=0.3, rtol=0)
    found = content_shift(shifted(reconstruction, bulge), reconstruction, torch.zeros_like(bulge))
    assert (found - bulge)[..., 32:64, 48:80].abs().max() < 1


def test_content_that_was_carried_far_is_found(source, reconstruction):
    flow = translation(30)
    edited = shifted(reconstruction, flow.backward)
    restored = restore_source(source, edited, reconstruction, flow=flow)
    truth = source.roll(60, dims=3)
    assert error(restored[..., 80:], truth[..., 80:]) < 0.5 * error(enlarged(edited)[..., 80:], truth[..., 80:])


def test_nothing_is_restored_where_nothing_was_carried_to(source, reconstruction):
    flow = translation(30)
    edited = shifted(reconstruction, flow.backward)
    restored = restore_source(source, edited, reconstruction, flow=flow)
    assert torch.allclose(restored[..., :50], enlarged(edited)[..., :50], atol=0.05)
