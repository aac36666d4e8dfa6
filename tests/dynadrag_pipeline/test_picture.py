from __future__ import annotations

import doctest
import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline import picture
from dynadrag_pipeline.picture import edit_size, resize_picture, to_picture_tensor

HEIGHT, WIDTH = 64, 72


@pytest.fixture
def rgb() -> np.ndarray:
    """A random picture in bytes, wider than high."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def expected(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255


# --- pictures of PIL ---


def test_rgb_becomes_a_tensor_in_the_unit_range(rgb, expected):
    tensor = to_picture_tensor(Image.fromarray(rgb))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white_with_a_warning(mode, rgb, caplog):
    opaque = Image.fromarray(rgb).convert("RGB" if mode == "RGBA" else "L")
    picture = opaque.convert(mode)
    picture.putalpha(Image.fromarray(np.full((HEIGHT, WIDTH), 51, dtype=np.uint8)))  # one fifth
    with caplog.at_level(logging.WARNING):
        laid_over = to_picture_tensor(picture)
    torch.testing.assert_close(laid_over, to_picture_tensor(opaque) / 5 + 4 / 5)
    assert "transparent" in caplog.text


def test_an_opaque_alpha_channel_is_dropped_without_a_word(rgb, expected, caplog):
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(to_picture_tensor(Image.fromarray(rgb).convert("RGBA")), expected)
    assert caplog.text == ""


def test_grey_has_three_equal_channels(rgb):
    tensor = to_picture_tensor(Image.fromarray(rgb[..., 0]))
    torch.testing.assert_close(tensor, torch.from_numpy(rgb[..., 0]).float().expand(1, 3, -1, -1) / 255)


def test_bilevel_is_black_and_white():
    halves = Image.new("1", (WIDTH, HEIGHT))
    halves.paste(1, (0, 0, WIDTH // 2, HEIGHT))
    tensor = to_picture_tensor(halves)
    assert (tensor[..., : WIDTH // 2] == 1).all()
    assert (tensor[..., WIDTH // 2 :] == 0).all()


def palette_picture() -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("P", (WIDTH, HEIGHT), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return picture


def test_palette_colours_are_looked_up():
    tensor = to_picture_tensor(palette_picture())
    assert tensor[0, :, 0, 0].tolist() == [1, 0, 0]
    assert tensor[0, :, 0, -1].tolist() == [0, 0, 1]


def test_a_transparent_palette_colour_becomes_white():
    picture = palette_picture()
    picture.info["transparency"] = 0
    tensor = to_picture_tensor(picture)
    assert tensor[0, :, 0, 0].tolist() == [1, 1, 1]
    assert tensor[0, :, 0, -1].tolist() == [0, 0, 1]


def test_sixteen_bits_keep_their_values():
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 14
    tensor = to_picture_tensor(Image.fromarray(values))
    assert Image.fromarray(values).mode == "I;16"
    np.testing.assert_allclose(tensor[0, 1].numpy(), values / 65535, atol=1e-7)
    assert len(tensor.unique()) == HEIGHT * WIDTH


def test_sixteen_bits_in_a_png_keep_their_values():
    values = np.full((HEIGHT, WIDTH), 13107, dtype=np.uint16)  # one fifth of 65535
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    torch.testing.assert_close(to_picture_tensor(Image.open(file)), torch.full((1, 3, HEIGHT, WIDTH), 0.2))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (3, lambda array: array[::-1, ::-1]),
        (6, lambda array: np.rot90(array, -1)),  # the camera lay on its left side: turn it clockwise
        (8, lambda array: np.rot90(array)),
    ],
)
def test_exif_rotation_is_applied(orientation, upright, rgb):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", exif=exif)
    expected = torch.from_numpy(upright(rgb).copy()).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(to_picture_tensor(Image.open(file)), expected)


# --- arrays and tensors ---


@pytest.mark.parametrize(
    "convert",
    [
        lambda rgb: rgb,
        lambda rgb: rgb[None],
        lambda rgb: rgb.astype(np.float64) / 255,
        lambda rgb: rgb.astype(np.uint16) * 257,
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255,
    ],
    ids=["bytes", "batch of one", "floats", "uint16", "byte tensor", "float tensor with a batch"],
)
def test_arrays_and_tensors_of_one_picture_are_the_same(convert, rgb, expected):
    torch.testing.assert_close(to_picture_tensor(convert(rgb)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_accepted(dtype, expected):
    tensor = to_picture_tensor(expected.to(dtype))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0.004)


@pytest.mark.parametrize(
    "grey", [np.full((HEIGHT, WIDTH), 0.25), np.full((HEIGHT, WIDTH, 1), 0.25), torch.full((1, HEIGHT, WIDTH), 0.25)]
)
def test_grey_arrays_and_tensors(grey):
    assert torch.equal(to_picture_tensor(grey), torch.full((1, 3, HEIGHT, WIDTH), 0.25))


def test_a_fourth_channel_is_transparency():
    array = np.zeros((HEIGHT, WIDTH, 4))
    array[..., 3] = 0.25
    assert torch.equal(to_picture_tensor(array), torch.full((1, 3, HEIGHT, WIDTH), 0.75))


def test_the_callers_array_is_not_shared(rgb):
    floats = (rgb / 255).astype(np.float32)
    before = floats.copy()
    to_picture_tensor(floats).zero_()
    assert np.array_equal(floats, before)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("face.png", "`image` must be a PIL image, a numpy array or a tensor, got str"),
        (Image.new("RGB", (64, 63)), "at least 64 pixels on each side, got 64x63"),
        (np.zeros((100, 20, 3)), "at least 64 pixels on each side, got 20x100"),
        (np.zeros((64, 64, 2)), r"got shape \(64, 64, 2\)"),
        (torch.zeros(64, 64, 3), r"got shape torch.Size\(\[64, 64, 3\]\)"),
        (np.zeros((2, 64, 64, 3)), r"got shape \(2, 64, 64, 3\)"),
        (np.full((64, 64, 3), 127.0), r"got values in \[127, 127\]"),
        (np.full((64, 64, 3), -0.5), r"got values in \[-0.5, -0.5\]"),
        (torch.full((3, 64, 64), torch.nan), "finite values"),
        (np.full((64, 64, 3), 200), "uint8 or uint16, which say their range; got int64"),
        (torch.full((3, 64, 64), -1, dtype=torch.int16), "got int16"),
    ],
)
def test_what_is_no_picture_is_named(picture, message):
    with pytest.raises(ValueError, match=message):
        to_picture_tensor(picture)


# --- sizes ---


@pytest.mark.parametrize(
    ("size", "short_side", "multiple", "expected"),
    [
        ((512, 512), 512, 8, (512, 512)),
        ((600, 512), 128, 4, (152, 128)),  # 150 is no multiple of 4
        ((512, 768), 128, 8, (128, 192)),
        ((64, 64), 512, 8, (512, 512)),
        ((333, 101), 0, 8, (336, 104)),
        ((3, 3), 0, 8, (8, 8)),
    ],
)
def test_edit_size(size, short_side, multiple, expected):
    assert edit_size(size, short_side, multiple) == expected


def test_resizing_there_and_back_keeps_a_smooth_picture(picture):
    there = resize_picture(picture[None], (120, 144))
    assert there.shape == (1, 3, 120, 144)
    back = resize_picture(there, (80, 96))
    assert back.shape == (1, 3, 80, 96)
    assert (back - picture).abs().max() < 0.01


def test_resizing_stays_in_the_unit_range():
    edge = (torch.arange(64) < 32).float().expand(1, 3, 64, 64)  # cubic interpolation overshoots here
    resized = resize_picture(edge, (100, 100))
    assert resized.min() == 0
    assert resized.max() == 1


def test_resizing_to_the_own_size_changes_nothing(picture):
    assert torch.equal(resize_picture(picture[None], (80, 96)), picture[None])


def test_examples_in_docstrings():
    results = doctest.testmod(picture)
    assert results.attempted > 0
    assert results.failed == 0
