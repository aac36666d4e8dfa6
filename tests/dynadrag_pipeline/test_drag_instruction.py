from __future__ import annotations

import doctest
import io
import json
import logging
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline import drag_instruction
from dynadrag_pipeline.drag_instruction import DragInstruction, load_instruction
from motion_predictor.common.json_file import MOST_JSON_BYTES

SIZE = (48, 64)  # height, width
HANDLES, TARGETS = [(10, 20), (0, 47)], [(30.5, 20), (63, 0)]


def from_user(
    handles: object = HANDLES, targets: object = TARGETS, mask: object = None, size: tuple[int, int] = SIZE
) -> DragInstruction:
    return DragInstruction.from_user(handles, targets, mask, size)


@pytest.fixture
def left_half() -> np.ndarray:
    """Editable in the left half."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, :32] = True
    return mask


def test_examples_in_docstrings():
    results = doctest.testmod(drag_instruction)
    assert results.attempted >= 2
    assert results.failed == 0


# --- points ---


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        torch.tensor,
        lambda points: torch.tensor(points, dtype=torch.bfloat16),
        lambda points: [*map(list, points)],
        lambda points: [torch.tensor(point) for point in points],
        lambda points: [(np.float32(x), torch.tensor(y)) for x, y in points],
        lambda points: torch.tensor(points, dtype=torch.float64, requires_grad=True),
        lambda points: np.matrix(points),
        lambda points: np.array(points, dtype=">f8")[::-1].copy()[::-1],
        lambda points: np.array(points).view(type("Subclass", (np.ndarray,), {})),
    ],
    ids=[
        *("tuples", "array", "tensor", "bfloat16 tensor", "lists", "list of tensors", "scalars"),
        *("with a gradient", "matrix", "read backwards", "subclass"),
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matrices
def test_points_are_taken_in_any_form(convert):
    instruction = from_user(convert(HANDLES), convert(TARGETS))
    assert instruction.handles.dtype == instruction.targets.dtype == torch.float32
    assert instruction.handles.tolist() == [[10, 20], [0, 47]]
    assert instruction.targets.tolist() == [[30.5, 20], [63, 0]]
    assert instruction.size == SIZE
    assert instruction.mask is None


def test_the_callers_points_are_not_shared():
    handles = np.array(HANDLES, dtype=np.float32)
    from_user(handles).handles.zero_()
    assert handles.tolist() == [[10, 20], [0, 47]]


def deep(levels: int) -> list:
    nested: list = []
    for _ in range(levels):
        nested = [nested]
    return nested


PAIR = torch.ones(1, 2)
# What may be mistaken for points, made when it is asked for: torch warns of prototypes.
NO_POINTS: dict[str, Callable[[], object]] = {
    "a text": lambda: "ab",
    "texts": lambda: ["12", "34"],
    "numbers as texts": lambda: [("1", "2")],
    "bytes": lambda: b"12",
    "None": lambda: None,
    "Nones": lambda: [(None, 1)],
    "a number": lambda: 3,
    "a pair alone": lambda: (1, 2),
    "one too deep": lambda: [[(1, 2)]],
    "ragged": lambda: [(1, 2), (3,)],
    "a dict": lambda: {"x": 1, "y": 2},
    "dicts": lambda: [{"x": 1, "y": 2}],
    "a set": lambda: {(1, 2)},
    "sets": lambda: [{1, 2}],
    "a generator": lambda: (point for point in [(1, 2)]),
    "booleans": lambda: [(True, False)],
    "complex numbers": lambda: [(1j, 2)],
    "a number without end": lambda: [(10**400, 1)],
    "deep": lambda: deep(10_000),
    "an array of texts": lambda: np.array([["1", "2"]]),
    "an array of objects": lambda: np.array([[1, 2]], dtype=object),
    "an array of complex numbers": lambda: np.array([[1j, 2]]),
    "an array of booleans": lambda: np.array([[True, False]]),
    "dates": lambda: np.zeros((1, 2), "M8[s]"),
    "masked": lambda: np.ma.masked_array([[1, 2]], mask=[[False, True]]),
    "on the device meta": lambda: PAIR.to("meta"),
    "sparse": lambda: PAIR.to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([PAIR[0], PAIR[0]]),
    "quantised": lambda: torch.quantize_per_tensor(PAIR, 0.1, 0, torch.quint8),
    "a list with what is masked": lambda: [np.ma.masked_array([1, 2], mask=[False, True])],
    "a list with what has no value": lambda: [(PAIR.to("meta")[0, 0], 2)],
}


@pytest.mark.filterwarnings("ignore")  # of torch, about prototypes
@pytest.mark.parametrize("name", ["handles", "targets"])
@pytest.mark.parametrize("kind", NO_POINTS)
def test_what_is_no_list_of_points_is_named(name, kind):
    with pytest.raises(ValueError, match=f"`{name}` must be (a list of|an array or a dense tensor of real)") as error:
        from_user(**{name: NO_POINTS[kind]()})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["handles", "targets"])
@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"be at least one \(x, y\) pair.*got shape \(0,\)"),
        ([(1, 2, 3)], r"be at least one.*got shape \(1, 3\)"),
        (np.zeros((0, 2)), r"got shape \(0, 2\)"),
        (torch.tensor(3.0), r"got shape \(\)"),
        (np.zeros((1, 1, 2)), r"got shape \(1, 1, 2\)"),
        ([(float("nan"), 2)], r"be finite, got \(nan, 2\)"),
        ([(1, float("inf"))], r"be finite, got \(1, inf\)"),
        (torch.tensor([[1, -torch.inf]]), r"be finite, got \(1, -inf\)"),
        ([(1, 2), (64, 5)], r"x in \[0, 63\] and y in \[0, 47\]; got \(64, 5\)"),
        ([(5, 48)], r"got \(5, 48\)"),
        ([(-0.5, 5)], r"got \(-0.5, 5\)"),
        ([(5, -1)], r"got \(5, -1\)"),
        ([(1e300, 1)], r"lie inside the picture.*got \(1e\+300, 1\)"),
        (np.array([[1, 2**64 - 1]], dtype=np.uint64), "lie inside the picture"),
    ],
)
def test_points_that_are_no_points_of_the_picture_are_named(name, points, message):
    with pytest.raises(ValueError, match=f"`{name}` must.*{message}"):
        from_user(**{name: points})


def test_handles_and_targets_must_be_as_many():
    with pytest.raises(ValueError, match="same number of points, got 2 handles and 1 targets"):
        from_user(targets=TARGETS[:1])


# --- mask ---


@pytest.mark.parametrize(
    "convert",
    [
        lambda mask: mask,
        lambda mask: mask.astype(np.uint8) * 255,
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.int64),
        lambda mask: np.where(mask, 0.5, 0.49),
        lambda mask: np.where(mask, 128, 127).astype(np.uint8),
        lambda mask: mask[..., None],
        lambda mask: Image.fromarray(mask),
        lambda mask: Image.fromarray(mask.astype(np.uint8) * 255),
        lambda mask: Image.fromarray(mask).convert("RGB"),
        lambda mask: Image.fromarray(np.where(mask, 40000, 300).astype(np.uint16)),
        lambda mask: Image.merge("LA", [Image.new("L", SIZE[::-1], 255), Image.fromarray(mask).convert("L")]),
        lambda mask: mask[None, None],
        lambda mask: np.matrix(mask),
        lambda mask: mask.astype(">u2") * 255,
        lambda mask: mask.astype(np.int64) * 255,
        lambda mask: mask.astype(np.uint16) * 65535,
        lambda mask: mask.astype(np.float16),
        lambda mask: np.where(mask, 1 + 1.2e-7, -1.2e-7),
        lambda mask: np.where(mask, 1 + 9e-5, -9e-5),
        lambda mask: np.ascontiguousarray(mask[::-1, ::-1])[::-1, ::-1],
        lambda mask: torch.from_numpy(mask)[None],
        lambda mask: torch.from_numpy(mask).byte(),
        lambda mask: torch.from_numpy(mask).float().requires_grad_(),
        lambda mask: torch.from_numpy(mask),
        lambda mask: torch.from_numpy(mask)[None, None].float(),
        lambda mask: torch.from_numpy(mask).bfloat16(),
    ],
    ids=[
        "bool",
        "bytes to 255",
        "bytes to 1",
        "int64",
        "soft floats",
        "soft bytes",
        "a channel",
        "bilevel picture",
        "grey picture",
        "RGB picture",
        "16-bit picture",
        "white paint on nothing",
        "array with batch and channel",
        "matrix",
        "uint16 to 255",
        "int64 to 255",
        "uint16 to 65535",
        "float16",
        "rounded",
        "rounded coarsely",
        "negative strides",
        "bool tensor with a batch",
        "byte tensor to 1",
        "with a gradient",
        "bool tensor",
        "float tensor with batch and channel",
        "bfloat16 tensor",
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matrices
def test_masks_are_taken_in_any_form(convert, left_half, caplog):
    given = convert(left_half)
    before = deepcopy(given)
    with caplog.at_level(logging.WARNING):
        mask = from_user(mask=given).mask
    same = torch.equal(given, before) if isinstance(given, torch.Tensor) else np.array_equal(given, before)
    assert same
    assert mask.dtype == torch.float32
    assert torch.equal(mask, torch.from_numpy(left_half).float())
    assert caplog.text == ""


def test_a_mask_of_another_size_is_resized_with_a_warning(left_half, caplog):
    small = np.zeros((3, 4), dtype=bool)
    small[:, :2] = True
    with caplog.at_level(logging.WARNING):
        mask = from_user(mask=small).mask
    assert torch.equal(mask, torch.from_numpy(left_half).float())
    assert "`mask` has 4x3 pixels, the picture 64x48" in caplog.text


def painting(mode: str, paint: object, ground: object, **info: object) -> Image.Image:
    """A picture of which the left half is painted."""
    picture = Image.new(mode, SIZE[::-1], ground)
    picture.paste(paint, (0, 0, 32, 48))
    picture.info.update(info)
    return picture


def in_16_bits(paint: int, ground: int, big_end_first: bool = False) -> Image.Image:
    """Of the bytes themselves: Pillow's own painting forgets the higher ones."""
    row = np.where(np.arange(64) < 32, paint, ground).astype(">u2" if big_end_first else "<u2")
    return Image.frombytes("I;16B" if big_end_first else "I;16", SIZE[::-1], row.tobytes() * 48)


PAINTED = {
    "white on black": painting("RGB", "white", "black"),
    "red on black": painting("RGB", (255, 0, 0), 0),
    "green on black": painting("RGB", (0, 255, 0), 0),
    "blue on black": painting("RGB", (0, 0, 255), 0),
    "half red on black": painting("RGB", (128, 0, 0), (127, 127, 127)),
    "black on nothing": painting("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
    "black on white that is nothing": painting("RGBA", (0, 0, 0, 255), (255, 255, 255, 0)),
    "red on nothing": painting("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)),
    "half opaque on nothing": painting("RGBA", (0, 0, 0, 128), (0, 0, 0, 127)),
    "white on black, all opaque": painting("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    "white on black, nearly opaque": painting("RGBA", (255, 255, 255, 254), (0, 0, 0, 254)),
    "grey and alpha, by grey": painting("LA", (255, 255), (0, 255)),
    "grey and alpha, by alpha": painting("LA", (0, 255), (0, 0)),
    "premultiplied": painting("LA", (200, 255), (200, 0)).convert("La"),
    "premultiplied colour": painting("RGBA", (90, 0, 0, 255), (90, 0, 0, 0)).convert("RGBa"),
    "palette": painting("RGB", (255, 255, 0), 0).quantize(2),
    "palette with alpha": painting("RGB", (255, 255, 0), 0).quantize(2).convert("PA"),
    "transparent colour": painting("RGB", (1, 1, 1), (9, 9, 9), transparency=(9, 9, 9)),
    "transparent grey": painting("L", 1, 0, transparency=0),
    "1 bit": painting("1", 1, 0),
    "grey to 1": painting("L", 1, 0),
    "grey to 255": painting("L", 128, 127),
    "colour to 1": painting("RGB", (1, 1, 1), 0),
    "16 bits to 1": in_16_bits(1, 0),
    "16 bits to 255": in_16_bits(128, 127),
    "16 bits to 65535": in_16_bits(32768, 32767),
    "16 bits, big end first, to 255": in_16_bits(255, 0, big_end_first=True),
    "32 bits to 1": painting("I", 1, 0),
    "32 bits to 255": painting("I", 200, 100),
    "floats": painting("F", 0.5, 0.49),
    "floats, rounded": painting("F", 1.00001, 0.0),
    "floats to 255": painting("F", 255.0, 0.0),
    "CMYK": painting("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
    "YCbCr": painting("RGB", "red", "black").convert("YCbCr"),
    "HSV": painting("RGB", "blue", "black").convert("HSV"),
    "LAB": painting("LAB", (255, 128, 128), (0, 128, 128)),
    "RGBX": painting("RGB", "white", "black").convert("RGBX"),
}


@pytest.mark.parametrize("kind", PAINTED)
def test_a_picture_selects_what_is_painted_whatever_its_colour_and_mode(kind, left_half):
    assert torch.equal(from_user(mask=PAINTED[kind]).mask, torch.from_numpy(left_half).float())


@pytest.mark.parametrize(
    "kind", ["1 bit", "grey to 1", "palette", "16 bits to 255", "black on nothing", "transparent grey"]
)
def test_a_png_file_selects_what_is_painted(kind, left_half):
    file = io.BytesIO()
    PAINTED[kind].save(file, "PNG")
    assert torch.equal(from_user(mask=Image.open(file)).mask, torch.from_numpy(left_half).float())


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_mask_is_turned_as_its_picture_is(orientation, left_half):
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.rot90(left_half, -turns).astype(np.uint8) * 255).save(file, "PNG", exif=exif)
    assert torch.equal(from_user(mask=Image.open(file)).mask, torch.from_numpy(left_half).float())


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(SIZE),
        np.zeros(SIZE, dtype=bool),
        np.zeros(SIZE, dtype=np.uint8),
        np.full(SIZE, 0.49),
        np.full(SIZE, 127, dtype=np.uint8),
        np.full(SIZE, 300, dtype=np.uint16),
        torch.zeros(1, 1, *SIZE),
        Image.new("L", SIZE[::-1]),
        Image.new("1", SIZE[::-1]),
        Image.new("RGB", SIZE[::-1], (100, 100, 100)),
        Image.new("RGBA", SIZE[::-1], (255, 255, 255, 0)),
        Image.new("RGBA", SIZE[::-1], (255, 255, 255, 100)),
        Image.new("I;16", SIZE[::-1], 100),
        Image.new("F", SIZE[::-1]),
        np.zeros((3, 4)),
    ],
)
def test_a_mask_that_selects_nothing_is_refused(mask):
    with pytest.raises(ValueError, match="`mask` must select something") as error:
        from_user(mask=mask)
    assert "Pass None if everything may" in str(error.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("mask.png", "got 'mask.png'"),
        ([[0, 1]], r"got \[\[0, 1\]\]"),
        (np.ones((*SIZE, 3)), r"one channel.*got shape \(48, 64, 3\)"),
        (torch.ones(2, 1, *SIZE), r"one channel.*got shape \(2, 1, 48, 64\)"),
        (np.ones(64), r"got shape \(64,\)"),
        (np.array(1), r"got shape \(\)"),
        (np.ones((0, 4)), r"got shape \(0, 4\)"),
        (Image.new("L", (4, 0)), "have pixels, got 4x0"),
        (Image.new("RGBA", (0, 4)), "have pixels, got 0x4"),
        (np.full(SIZE, 255.0), "from 255 to 255"),
        (np.full(SIZE, 1.001), "from 1.001 to 1.001"),
        (np.full(SIZE, -0.001), "from -0.001 to -0.001"),
        (np.full(SIZE, -1), "from -1 to -1"),
        (np.full(SIZE, 65536), "from 65536 to 65536"),
        (np.full(SIZE, 2**64 - 1, dtype=np.uint64), "integers from 0 to 255 or 65535"),
        (np.full(SIZE, np.nan), "floats from 0 to 1"),
        (np.full(SIZE, np.inf), "floats from 0 to 1"),
        (np.where(np.eye(48, 64) > 0, np.nan, 1), "floats from 0 to 1"),
        (np.broadcast_to(True, (8193, 8192)), "at most 67,108,864 pixels"),
        (Image.new("1", (8193, 8192)), "at most 67,108,864 pixels"),
        (np.ones(SIZE, dtype=complex), "real numbers.*complex128"),
        (np.ones(SIZE, dtype=object), "real numbers.*object"),
        (np.full(SIZE, "1"), "real numbers"),
        (np.zeros(SIZE, "M8[s]"), "real numbers"),
        (np.ma.masked_array(np.ones(SIZE), mask=np.ones(SIZE)), "real numbers.*masked"),
        (torch.ones(SIZE, device="meta"), "real numbers.*on meta"),
        (torch.ones(SIZE).to_sparse(), "real numbers.*sparse"),
        (torch.ones(SIZE, dtype=torch.complex64).conj(), "real numbers"),
    ],
)
def test_what_is_no_mask_is_named(mask, message):
    with pytest.raises(ValueError, match=f"`mask` must.*{message}"):
        from_user(mask=mask)


def test_a_mask_file_that_was_cut_short_is_named():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8)).save(file, "PNG")
    with pytest.raises(ValueError, match="`mask` must be a whole picture"):
        from_user(mask=Image.open(io.BytesIO(file.getvalue()[:1500])))


# --- scaling ---


def test_scaling_keeps_the_edges_of_the_picture():
    """Pixel centres are whole, so the picture spans -1/2 to n - 1/2 on every grid."""
    instruction = DragInstruction(torch.tensor([[-0.5, -0.5]]), torch.tensor([[63.5, 47.5]]), SIZE)
    scaled = instruction.scaled_to((100, 30))
    assert scaled.size == (100, 30)
    torch.testing.assert_close(scaled.handles, torch.tensor([[-0.5, -0.5]]))
    torch.testing.assert_close(scaled.targets, torch.tensor([[29.5, 99.5]]))


def test_scaling_there_and_back_keeps_points_and_mask(left_half):
    instruction = from_user(mask=left_half)
    back = instruction.scaled_to((96, 192)).scaled_to(SIZE)
    torch.testing.assert_close(back.handles, instruction.handles)
    torch.testing.assert_close(back.targets, instruction.targets)
    assert torch.equal(back.mask, instruction.mask)


def test_points_stay_on_their_pixels_of_the_scaled_mask():
    """Twice as large, a pixel is a block of 2x2, and its centre the block's."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[20, 10] = True
    scaled = from_user(mask=mask).scaled_to((96, 128))
    assert scaled.mask.nonzero().tolist() == [[40, 20], [40, 21], [41, 20], [41, 21]]
    assert scaled.handles[0].tolist() == [20.5, 40.5]


def test_a_scaled_mask_stays_binary(left_half):
    mask = from_user(mask=left_half).scaled_to((13, 17)).mask
    assert mask.shape == (13, 17)
    assert set(mask.unique().tolist()) == {0, 1}


def test_scaling_leaves_the_original_alone(left_half):
    instruction = from_user(mask=left_half)
    instruction.scaled_to((13, 17))
    assert instruction.handles.tolist() == [[10, 20], [0, 47]]
    assert instruction.mask.shape == SIZE


def scaled(painted: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A mask on another grid, as the indices of its cells."""
    mask = from_user([(0, 0)], [(0, 0)], painted, painted.shape).scaled_to(size).mask
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0, 1}
    return mask


def by_centres(painted: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(painted.shape, size, strict=True)
    )
    return torch.from_numpy(painted[np.ix_(rows, columns)]).float()


@pytest.mark.parametrize("row", range(8))
def test_a_line_of_one_pixel_stays_a_line_wherever_it_lies(row):
    painted = np.zeros((64, 64), dtype=bool)
    painted[24 + row, 8:40] = True
    expected = torch.zeros(8, 8)
    expected[3, 1:5] = 1
    assert torch.equal(scaled(painted, (8, 8)), expected)
    assert torch.equal(scaled(painted.T, (8, 8)), expected.T)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 60), (40, 41), (63, 63)])
def test_a_dot_marks_its_cell_and_no_other(x, y):
    painted = np.zeros((64, 64), dtype=bool)
    painted[y, x] = True
    assert scaled(painted, (8, 8)).nonzero().tolist() == [[y // 8, x // 8]]


def test_an_outline_stays_closed():
    painted = np.zeros((64, 64), dtype=bool)
    painted[10:50, 10:50] = True
    painted[11:49, 11:49] = False
    expected = torch.zeros(8, 8)
    expected[1:7, 1:7] = 1
    expected[2:6, 2:6] = 0
    assert torch.equal(scaled(painted, (8, 8)), expected)


def test_a_line_survives_being_scaled_twice():
    painted = np.zeros((512, 512), dtype=bool)
    painted[301] = True
    instruction = from_user([(0, 0)], [(0, 0)], painted, (512, 512))
    twice = instruction.scaled_to((64, 64)).scaled_to((8, 8)).mask
    assert twice.nonzero()[:, 0].unique().tolist() == [4]
    assert twice[4].all()


def test_a_mask_with_lines_that_is_larger_than_the_picture_keeps_them():
    painted = np.zeros((4 * SIZE[0], 4 * SIZE[1]), dtype=bool)
    painted[41] = True
    mask = from_user(mask=painted).mask
    assert mask[10].all()
    assert mask.sum() == SIZE[1]


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (50, 41), (128, 200), (256, 256), (300, 700)])
@pytest.mark.parametrize(
    "shape",
    [
        lambda x, y: (x - 131) ** 2 + (y - 118) ** 2 <= 70**2,
        lambda x, y: (x >= 37) & (x < 37 + 65) & (y >= 11) & (y < 11 + 17),
        lambda x, y: abs(x - 128) + abs(y - 120) <= 90,
        lambda x, y: np.ones_like(x, dtype=bool),
        lambda x, y: x < 16,
        lambda x, y: (x - 131) ** 2 + (y - 118) ** 2 > 70**2,
    ],
    ids=["disc", "rectangle", "diamond", "all", "border", "all but a disc"],
)
def test_regions_that_are_wider_than_a_cell_are_taken_by_the_cells_centres(shape, size):
    y, x = np.mgrid[:256, :256]
    painted = shape(x, y)
    assert torch.equal(scaled(painted, size), by_centres(painted, size))


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (60, 3), (1, 1), (64, 8), (80, 9)])
def test_no_painting_is_lost_and_none_invented(size):
    """Random dots and blocks: something stays of each, and each cell that is marked has paint in it."""
    random = np.random.default_rng(0)
    for side in (1, 2, 5, 9):
        y, x = random.integers(0, 64 - side, 2)
        painted = np.zeros((64, 64), dtype=bool)
        painted[y : y + side, x : x + side] = True
        cells = scaled(painted, size)
        assert cells.any()
        for row, column in cells.nonzero().tolist():
            rows = slice(row * 64 // size[0], -(-(row + 1) * 64 // size[0]))
            columns = slice(column * 64 // size[1], -(-(column + 1) * 64 // size[1]))
            assert painted[rows, columns].any()


# --- instruction files ---


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_instruction_file_alternates_handles_and_targets(tmp_path):
    points = [[1, 2], [3, 4], [5.5, 6], [7, 8]]
    loaded = load_instruction(write(tmp_path / "a.json", {"points": points, "prompt": "größer", "more": 1}))
    assert loaded == {"handles": [[1, 2], [5.5, 6]], "targets": [[3, 4], [7, 8]], "prompt": "größer"}


def test_prompt_of_an_instruction_file_is_optional(tmp_path):
    assert load_instruction(str(write(tmp_path / "a.json", {"points": [[1, 2], [3, 4]]})))["prompt"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "`path` must be a JSON file in UTF-8, got '.*a.json'"),
        ("", "`path` must be a JSON file"),
        ("[]", r"`path` must be a file of a JSON object, got '.*a.json' with \[\]"),
        ("null", "with None"),
        ("[" * 100_000, "`path` must be a JSON file"),
        ('{"points": ' * 90_000, "`path` must be a JSON file"),
        ("1" * 5000, "`path` must be a JSON file"),
        ('{"points": [[1, 2], [3, NaN]]}', "must be a JSON file.*NaN is no number of JSON"),
        ('{"points": [[1, 2], [3, -Infinity]]}', "-Infinity is no number of JSON"),
        ('{"points": [[1, 2], [3, 4]], "points": [[1, 2], [3, 4]]}', "must be a JSON file.*more than one 'points'"),
        ('{"points": [[1, 2], [3, 4]], "more": {"a": 1, "a": 2}}', "more than one 'a'"),
        ('{"points": [[1, 2], [3, 1e400]]}', r"`points` in '.*a.json' must be finite, got \(3, inf\)"),
        ('{"points": [[1, 2], [3, 1' + "0" * 400 + "]]}", "`points` in '.*a.json' must be a list of"),
        ({"points": ["12", "34"]}, "`points` in '.*a.json' must be a list of"),
        ({"points": [["1", "2"], ["3", "4"]]}, "`points` in '.*a.json' must be a list of"),
        ({"points": [[True, False], [3, 4]]}, "must be a list of"),
        ({"points": [[1, None], [3, 4]]}, "must be a list of"),
        ({"points": [[1, 2], [3, 4, 5]]}, "must be a list of"),
        ({"points": [[1], [3]]}, r"`points` in '.*a.json' must be at least one \(x, y\) pair.*got shape \(2, 1\)"),
        ({"points": [1, 2]}, "must be a list of"),
        ({"points": [{"x": 1, "y": 2}, {"x": 1, "y": 2}]}, "must be a list of"),
        ({"points": {"0": [1, 2]}}, "an even number"),
        ({}, "got None"),
        ({"points": []}, r"got \[\]"),
        ({"points": [[1, 2]]}, "an even number"),
        ({"points": "abcd"}, "got 'abcd'"),
        ({"points": [[1, 2], [3, 4]], "prompt": None}, "`prompt` in .* must be a string, got None"),
        ({"points": [[1, 2], [3, 4]], "prompt": ["a"] * 9999}, r"must be a string, got \['a', 'a', .*\.\.\.\.$"),
    ],
)
def test_instruction_files_that_are_none_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_instruction(write(Path("a.json"), content))
    assert len(str(error.value)) < 300


def test_a_mark_of_the_byte_order_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"points": [[1, 2], [3, 4]]}')
    assert load_instruction(tmp_path / "a.json") == {"handles": [[1, 2]], "targets": [[3, 4]], "prompt": ""}


def test_an_instruction_file_may_say_by_which_ways(tmp_path):
    points = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]
    paths = [None, [[5.5, 7], [6, 7.5]], []]
    loaded = load_instruction(write(tmp_path / "a.json", {"points": points, "paths": paths}))
    assert loaded["paths"] == paths
    assert "paths" not in load_instruction(write(tmp_path / "a.json", {"points": points}))


@pytest.mark.parametrize(
    "paths",
    [
        *(None, [], [None], [None, None, None], {"0": None}, "ab", [1, 2], ["ab", None], [[5, 6], None]),
        *([[[5]], None], [[[5, 6, 7]], None], [[["5", "6"]], None], [[[5, True]], None], [[[5, 1e999]], None]),
        *([[[5, 6], [7]], None], [{"x": 5}, None], [[None], None], [[[[5, 6]]], None]),
    ],
)
def test_ways_that_are_none_are_named(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    content = json.dumps({"points": [[1, 2], [3, 4], [5, 6], [7, 8]], "paths": paths}).replace("Infinity", "1e999")
    with pytest.raises(ValueError, match=r"`paths` in 'a\.json' must be"):
        load_instruction(write(Path("a.json"), content))


def test_a_file_that_is_too_long_to_be_an_instruction_is_refused(tmp_path):
    content = '{"points": [[1, 2], [3, 4]]}'
    write(tmp_path / "a.json", content.ljust(MOST_JSON_BYTES))
    assert load_instruction(tmp_path / "a.json")["handles"] == [[1, 2]]
    write(tmp_path / "a.json", content.ljust(MOST_JSON_BYTES + 1))
    with pytest.raises(ValueError, match=r"`path` must be a file of at most 1,048,576 bytes, got '.*a\.json'"):
        load_instruction(tmp_path / "a.json")


def test_folders_pipes_and_devices_are_no_instruction(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="`path` must be the path of a regular file"):
            load_instruction(path)


def test_a_binary_file_is_no_instruction(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"`path` must be a JSON file in UTF-8, got '.*a\.json'"):
        load_instruction(tmp_path / "a.json")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_instruction(tmp_path / "a.json")
