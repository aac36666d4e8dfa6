from __future__ import annotations

import doctest
import io
import logging
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dynadrag_pipeline import picture
from dynadrag_pipeline.picture import edit_size, resize_picture, to_picture_tensor, to_unit_range
from motion_predictor.common.picture_array import pil_to_array

HEIGHT, WIDTH = 64, 72
HUE = 170, 20, 230


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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "LAB", "F", "I", "I;16", "I;16B", "LA", "RGBa"])
def test_exif_rotation_is_applied_in_every_mode(mode):
    """A line along the top of what the camera wrote is to stand at the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = in_mode(mode, lambda side: (255,) * 3 if side == "first" else (0, 0, 0), vertical=True)
    picture.info["exif"] = exif.tobytes()
    upright = to_picture_tensor(picture)
    assert upright.shape == (1, 3, WIDTH, HEIGHT)
    assert upright[..., HEIGHT // 2 :].min() > 0.98
    assert upright[..., : HEIGHT // 2].max() < 0.02


@pytest.mark.parametrize(
    ("broken", "turned"),
    [
        (b"Exif\0\0no EXIF at all", False),
        (b"Exif\0\0", False),
        (b"", False),
        (b"\xff", False),
        (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", False),
        # Two tags: the orientation, and a width that is a text.
        (
            b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x00\x01\x02\0\x03\0\0\0wd\0\0\0\0\0\0",
            True,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so too, of some
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", None])
def test_broken_exif_data_stop_no_picture(rgb, broken, turned, file_format):
    picture = Image.fromarray(rgb)
    if file_format is None:
        picture.info["exif"] = broken
    else:
        file = io.BytesIO()
        picture.save(file, file_format, exif=broken)
        picture = Image.open(file)
    tensor = to_picture_tensor(picture)
    plain = picture.transpose(Image.Transpose.ROTATE_270) if turned else picture.copy()
    expected = torch.from_numpy(np.array(plain.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(tensor, expected)


def test_exif_data_that_cannot_be_read_are_said_in_a_warning(rgb, caplog):
    picture = Image.fromarray(rgb)
    picture.info["exif"] = b"Exif\0\0no EXIF at all"
    with caplog.at_level(logging.WARNING):
        to_picture_tensor(picture)
    assert "`image` has EXIF data that can't be read" in caplog.text
    assert "taken as it is" in caplog.text


# --- every mode of Pillow ---

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "La", "PA", "RGBa", "RGBX"]
MODES += ["I;16", "I;16B", "I;16L", "I;16N"]
COLOURED = {"RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA", "RGBa", "RGBX"}


def in_mode(mode: str, colour: Callable[[str], tuple[int, int, int]], vertical: bool = False) -> Image.Image:
    """Two halves, left and right or upper and lower, in a mode that Pillow may have no direct way to."""
    halves = Image.new("RGB", (WIDTH, HEIGHT), colour("second"))
    halves.paste(colour("first"), (0, 0, WIDTH, HEIGHT // 2) if vertical else (0, 0, WIDTH // 2, HEIGHT))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(halves, to_lab)
    if mode.startswith("I;16"):
        values = np.asarray(halves.convert("L")).astype(np.uint16) * 257
        return Image.frombytes(mode, halves.size, values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "La":
        return halves.convert("LA").convert("La")
    if mode == "PA":
        return halves.quantize(2).convert("PA")
    if mode == "RGBa":
        return halves.convert("RGBA").convert("RGBa")
    return halves.quantize(2) if mode == "P" else halves.convert(mode)


@pytest.mark.parametrize("resized", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_comes_out_right(mode, resized):
    picture = in_mode(mode, lambda side: HUE if side == "first" else (0, 0, 0))
    if resized:  # for other filters, Pillow forgets the palette of PA
        picture = picture.resize((80, 70), Image.Resampling.NEAREST if mode == "PA" else Image.Resampling.BICUBIC)
    assert picture.mode == mode
    before = picture.tobytes()
    tensor = to_picture_tensor(picture)
    grey = (299 * HUE[0] + 587 * HUE[1] + 114 * HUE[2]) // 1000
    seen = HUE if mode in COLOURED else (grey,) * 3
    assert tensor.shape == (1, 3, picture.height, picture.width)
    if mode == "1":  # dithered by Pillow
        assert 0.2 < tensor[..., :30].mean() < 0.5
    else:
        rounding = 0.02 if mode in ("LAB", "HSV", "YCbCr") else 0.006
        torch.testing.assert_close(tensor[0, :, 10, 10], torch.tensor(seen) / 255, rtol=0, atol=rounding)
    assert tensor[0, :, 10, -10].max() < 0.006
    assert picture.tobytes() == before


def test_modes_are_those_that_pillow_can_make():
    for mode in MODES:
        assert Image.new(mode, (3, 2)).mode == mode


@pytest.mark.parametrize("mode", MODES)
def test_pictures_without_pixels_are_named_in_every_mode(mode):
    for size in ((0, 0), (0, 70), (70, 0)):
        with pytest.raises(ValueError, match=f"at least 64 pixels on each side, got {size[0]}x{size[1]}"):
            to_picture_tensor(Image.new(mode, size))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 1]),
        ([0, 0.5], [0, 0.5]),
        ([0, 1.00001], [0, 1]),  # rounding
        ([-0.07, 1.07], [0, 1]),  # what resizing leaves at an edge
        ([0, 51, 255], [0, 0.2, 1]),
        ([-20, 51, 275], [0, 0.2, 1]),
        ([0, 13107, 65535], [0, 0.2, 1]),
    ],
)
def test_the_range_of_floats_in_a_picture_is_guessed(values, expected):
    columns = np.resize(np.float32(values), (HEIGHT, WIDTH))
    tensor = to_picture_tensor(Image.fromarray(columns))
    torch.testing.assert_close(tensor[0, 0, 0, : len(values)], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("values", [[-1, 1], [-0.3, 1], [-100, 255], [0, 1e6], [0, np.nan], [-np.inf, 0]])
def test_floats_in_a_picture_that_are_no_shades_are_refused(values):
    with pytest.raises(ValueError, match="`image` must have finite values"):
        to_picture_tensor(Image.fromarray(np.resize(np.float32(values), (HEIGHT, WIDTH))))


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


@pytest.mark.parametrize("outside", [5e-5, 1.2e-7])
def test_rounding_beyond_the_unit_range_is_accepted(outside):
    array = np.zeros((HEIGHT, WIDTH))
    array[::2] = 1 + outside
    array[1::2] = -outside
    assert to_picture_tensor(array).unique().tolist() == [0, 1]


def unusual(tensor: torch.Tensor) -> list[object]:
    """The same picture in forms that are unusual, and hold all of its values."""
    array = tensor[0].permute(1, 2, 0).numpy().copy()
    read_only = array.copy()
    read_only.flags.writeable = False
    apart = np.zeros((2 * HEIGHT, WIDTH, 5), dtype=np.float32)[::2, :, :3]
    apart[...] = array
    return [
        read_only,
        apart,
        array[::-1, ::-1].copy()[::-1, ::-1],
        np.asfortranarray(array),
        array.astype(np.float64),
        array.astype(np.longdouble),
        array.astype(">f4"),
        array.view(type("Subclass", (np.ndarray,), {})),
        tensor.clone().requires_grad_(),
        torch.nn.Parameter(tensor[0]),
        tensor.double(),
        tensor.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
        (tensor * -1j).conj().imag,  # with the bit that negates
        torch.complex(tensor, tensor).real,
    ]


@pytest.mark.parametrize("form", range(14))
def test_unusual_arrays_and_tensors_are_the_same_picture(form, expected):
    given = unusual(expected)[form]
    before = deepcopy(given)
    tensor = to_picture_tensor(given)
    assert not tensor.requires_grad
    torch.testing.assert_close(tensor, expected)
    tensor.zero_()
    assert torch.equal(given, before) if isinstance(given, torch.Tensor) else np.array_equal(given, before)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matrices
def test_bytes_of_the_other_order_and_matrices_are_accepted(rgb):
    assert torch.equal(to_picture_tensor(rgb.astype(">u2") * 257), to_picture_tensor(rgb.astype(np.uint16) * 257))
    assert (to_picture_tensor(np.matrix(np.full((HEIGHT, WIDTH), 0.25))) == 0.25).all()


def test_float16_arrays_are_accepted():
    assert (to_picture_tensor(np.full((HEIGHT, WIDTH), 0.25, dtype=np.float16)) == 0.25).all()


ONES = torch.ones(3, 64, 64)
# What has the shape of a picture and is none, made when it is asked for: torch warns of prototypes.
NO_PICTURES: dict[str, Callable[[], object]] = {
    "meta": lambda: ONES.to("meta"),
    "complex": lambda: ONES.to(torch.complex64),
    "conjugated": lambda: ONES.to(torch.complex64).conj(),
    "nested": lambda: torch.nested.nested_tensor([ONES, ONES]),
    "jagged": lambda: torch.nested.nested_tensor([ONES[0], ONES[0, :5]], layout=torch.jagged),
    "sparse": lambda: ONES.to_sparse(),
    "compressed": lambda: ONES[0].to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.quint8),
    "masked": lambda: np.ma.masked_array(np.ones((64, 64)), mask=np.eye(64)),
    "dates": lambda: np.zeros((64, 64), "M8[s]"),
    "spans of time": lambda: np.zeros((64, 64), "m8[s]"),
    "objects": lambda: np.ones((64, 64), object),
    "strings": lambda: np.full((64, 64), "1"),
    "records": lambda: np.zeros((64, 64), [("grey", "f4")]),
    "complex array": lambda: np.ones((64, 64), complex),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about prototypes
@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_holds_no_real_numbers_is_named(kind):
    with pytest.raises(ValueError, match="`image` must be an array or a dense tensor of real numbers, got") as error:
        to_picture_tensor(NO_PICTURES[kind]())
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("face.png", "`image` must be a PIL image, a numpy array or a tensor, got 'face.png'"),
        (b"face.png", "a numpy array or a tensor, got b'face.png'"),
        ([[0.5] * 64] * 64, r"a numpy array or a tensor, got \[\[0.5,"),
        (None, "a numpy array or a tensor, got None"),
        (Image.new("RGB", (64, 63)), "at least 64 pixels on each side, got 64x63"),
        (np.zeros((100, 20, 3)), "at least 64 pixels on each side, got 20x100"),
        (np.zeros((0, 64, 3)), "at least 64 pixels on each side, got 64x0"),
        (torch.zeros(3, 64, 0), "at least 64 pixels on each side, got 0x64"),
        (np.zeros((64, 64, 2)), r"got ndarray of shape \(64, 64, 2\)"),
        (torch.zeros(64, 64, 3), r"got Tensor of shape \(64, 64, 3\)"),
        (np.zeros((2, 64, 64, 3)), r"got ndarray of shape \(2, 64, 64, 3\)"),
        (np.array(0.5), r"must have 1, 3 or 4 channels"),
        (np.zeros(64), r"got ndarray of shape \(64,\)"),
        (np.full((64, 64, 3), 127.0), r"got values in \[127, 127\]"),
        (np.full((64, 64, 3), -0.5), r"got values in \[-0.5, -0.5\]"),
        (np.full((64, 64, 3), 1.001), r"got values in \[1.001, 1.001\]"),
        (np.full((64, 64, 3), 1e300), r"got values in \[inf, inf\]"),
        (torch.full((3, 64, 64), torch.nan), "finite values"),
        (np.full((64, 64), np.inf), "finite values"),
        (np.full((64, 64, 3), 200), "uint8 or uint16, which say their range; got int64"),
        (np.full((64, 64, 3), 2**64 - 1, dtype=np.uint64), "got uint64"),
        (torch.full((3, 64, 64), -1, dtype=torch.int16), "got int16"),
        (Image.new("1", (8193, 8192)), "at most 67,108,864 pixels, got"),
        (np.broadcast_to(np.uint8(0), (8193, 8192)), "at most 67,108,864 pixels, got 8192x8193"),
        (np.broadcast_to(0.5, (10**6, 10**6, 3)), "at most 67,108,864 pixels, got ndarray of shape"),
        (torch.zeros(1, dtype=torch.bfloat16).expand(3, 10**6, 10**6), "at most 67,108,864 pixels, got Tensor"),
    ],
)
def test_what_is_no_picture_is_named(picture, message):
    with pytest.raises(ValueError, match=message):
        to_picture_tensor(picture)


def test_too_large_files_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("motion_predictor.common.picture_files.MOST_PIXELS", 64 * 64 - 1)
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "PNG")
    picture = Image.open(file)
    monkeypatch.setattr(picture, "load", lambda: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="`image` must have at most 4,095 pixels"):
        to_picture_tensor(picture)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_picture_that_turns_out_to_be_cut_short_is_named(rgb, file_format):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, file_format)
    picture = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2 + 200]))
    with pytest.raises(ValueError, match=r"`image` must be a whole picture, got .* truncated"):
        to_picture_tensor(picture)


def test_a_closed_picture_is_named(rgb):
    picture = Image.fromarray(rgb)
    picture.close()
    with pytest.raises(ValueError, match="`image` must be a whole picture"):
        to_picture_tensor(picture)


def test_the_conversions_name_what_they_were_given():
    with pytest.raises(ValueError, match="`mask` must have at most"):
        pil_to_array("mask", Image.new("1", (8193, 8192)))
    with pytest.raises(ValueError, match="`mask` in whole numbers"):
        to_unit_range("mask", np.ones((2, 2, 1), dtype=np.int64))


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
