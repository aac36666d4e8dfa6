from __future__ import annotations

import doctest
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline import drag_instruction
from dynadrag_pipeline.drag_instruction import DragInstruction, load_instruction

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
        lambda p: [*map(list, p)],
    ],
    ids=["tuples", "array", "tensor", "bfloat16 tensor", "lists"],
)
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


@pytest.mark.parametrize("name", ["handles", "targets"])
@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "at least one"),
        ([(1, 2, 3)], r"shape \(1, 3\)"),
        ((1, 2), r"shape \(2,\)"),
        ([[(1, 2)]], r"shape \(1, 1, 2\)"),
        ([(1, 2), (3,)], "pairs of numbers"),
        ("ab", "pairs of numbers"),
        (None, "at least one"),
        ([(float("nan"), 2)], "be finite"),
        ([(1, float("inf"))], "be finite"),
        ([(1, 2), (64, 5)], r"x in \[0, 63\] and y in \[0, 47\]; got \(64, 5\)"),
        ([(5, 48)], r"got \(5, 48\)"),
        ([(-0.5, 5)], r"got \(-0.5, 5\)"),
        ([(5, -1)], r"got \(5, -1\)"),
        ([(10**400, 1)], "pairs of numbers"),
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
        "bool tensor",
        "float tensor with batch and channel",
        "bfloat16 tensor",
    ],
)
def test_masks_are_taken_in_any_form(convert, left_half, caplog):
    with caplog.at_level(logging.WARNING):
        mask = from_user(mask=convert(left_half)).mask
    assert mask.dtype == torch.float32
    assert torch.equal(mask, torch.from_numpy(left_half).float())
    assert caplog.text == ""


def test_a_mask_of_another_size_is_resized_by_nearest_with_a_warning(left_half, caplog):
    small = np.zeros((3, 4), dtype=bool)
    small[:, :2] = True
    with caplog.at_level(logging.WARNING):
        mask = from_user(mask=small).mask
    assert torch.equal(mask, torch.from_numpy(left_half).float())
    assert "`mask` has size (3, 4), the picture (48, 64)" in caplog.text


def test_a_mask_without_an_editable_pixel_is_ignored_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert from_user(mask=np.zeros(SIZE)).mask is None
    assert "no editable pixel" in caplog.text


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("mask.png", "got str"),
        (np.ones((*SIZE, 3)), r"one channel.*got shape \(48, 64, 3\)"),
        (np.ones(64), r"got shape \(64,\)"),
        (np.ones((0, 4)), r"got shape \(0, 4\)"),
        (np.full(SIZE, 255.0), r"got values in \[255, 255\]"),
        (np.full(SIZE, -1), r"got values in \[-1, -1\]"),
        (np.full(SIZE, np.nan), r"in \[0, 1\]"),
    ],
)
def test_what_is_no_mask_is_named(mask, message):
    with pytest.raises(ValueError, match=f"`mask` must.*{message}"):
        from_user(mask=mask)


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
        ("{", "is not a JSON file"),
        ("[]", "must hold an object with `points`"),
        ({}, "got None"),
        ({"points": []}, r"got \[\]"),
        ({"points": [[1, 2]]}, "an even number"),
        ({"points": "abcd"}, "got 'abcd'"),
        ({"points": [[1, 2], [3, 4]], "prompt": None}, "`prompt` in .* must be a string, got None"),
    ],
)
def test_instruction_files_that_are_none_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_instruction(write(tmp_path / "a.json", content))


def test_a_binary_file_is_no_instruction(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"a\.json` is not a JSON file"):
        load_instruction(tmp_path / "a.json")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_instruction(tmp_path / "a.json")
