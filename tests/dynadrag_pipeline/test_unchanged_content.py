"""Detail goes back to where nothing was edited, and to nowhere else."""

import pytest
import torch
import torch.nn.functional as F

from dynadrag_pipeline.unchanged_content import restore_unchanged


@pytest.fixture
def source() -> torch.Tensor:
    return torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reconstruction(source) -> torch.Tensor:
    """The source as an edit at half of its size sees it."""
    return F.interpolate(source, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


def test_a_picture_without_an_edit_is_the_source_at_its_own_size(source, reconstruction):
    assert torch.allclose(restore_unchanged(source, reconstruction, reconstruction), source, atol=1e-6)


def test_far_from_the_edit_the_source_is_back_and_in_the_midst_of_it_the_edit_stays(source, reconstruction):
    edited = reconstruction.clone()
    edited[..., 30:60, 30:60] = 1 - 0.5 * edited[..., 30:60, 30:60]
    restored = restore_unchanged(source, edited, reconstruction)
    assert torch.allclose(restored[..., 160:, 160:], source[..., 160:, 160:], atol=1e-4)
    enlarged = F.interpolate(edited, size=(192, 256), mode="bicubic", antialias=True).clamp(0, 1)
    assert (restored - enlarged)[..., 72:108, 72:108].abs().max() < 0.02


def test_the_more_a_place_has_changed_the_less_it_gets_back(source, reconstruction):
    lost = (source - F.interpolate(reconstruction, size=(192, 256), mode="bicubic", antialias=True)).abs().mean()
    given = []
    for change in (0.0, 0.03, 0.06, 0.12):
        edited = (reconstruction * 0.5 + change).clamp(0, 1)
        enlarged = F.interpolate(edited, size=(192, 256), mode="bicubic", antialias=True)
        restored = restore_unchanged(0.5 * source, edited, reconstruction * 0.5)
        given.append((restored - enlarged).abs().mean().item())
    assert given == sorted(given, reverse=True)
    assert given[0] == pytest.approx(0.5 * lost.item(), rel=0.1)
    # A share of exp(-(change / 0.06)^2).
    assert given[2] / given[0] == pytest.approx(0.368, abs=0.03)


def test_the_picture_stays_in_range(source, reconstruction):
    restored = restore_unchanged(source, (reconstruction + 0.02).clamp(0, 1), reconstruction)
    assert restored.min() >= 0
    assert restored.max() <= 1
