"""What the user asks for: handle points, target points and a mask, validated once, in pixels of the picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from PIL import Image

from motion_predictor.common.checks import got, naming
from motion_predictor.common.json_file import read_json_object
from motion_predictor.common.mask_picture import at_least_half, painted_region
from motion_predictor.common.picture_files import check_pixel_count
from motion_predictor.points import Points, scale_points

from .picture import plain_numbers

logger = logging.get_logger(__name__)

Mask = Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class DragInstruction:
    """Handle points, target points and the editable region of one picture.

    Points are (x, y), x to the right and y down; whole numbers are pixel centres.

    Attributes:
        handles (`torch.Tensor` of shape `(points, 2)`, float32): what to move, in pixels of a picture of `size`.
        targets (`torch.Tensor` of shape `(points, 2)`, float32): where to move it.
        size (`tuple[int, int]`): (height, width) of the grid that the points are on.
        mask (`torch.Tensor` of shape `(height, width)`, float32, *optional*):
            1 where the picture may change, 0 where it must not (M in Eq. 2); `None` lets everything change. Masks of
            users select something, or are refused.

    Example:
        >>> instruction = DragInstruction.from_user([(10, 20)], [(30, 20)], mask=None, size=(64, 64))
        >>> instruction.scaled_to((32, 32)).handles
        tensor([[4.7500, 9.7500]])
    """

    handles: torch.Tensor
    targets: torch.Tensor
    size: tuple[int, int]
    mask: torch.Tensor | None = None

    @classmethod
    def from_user(cls, handles: Points, targets: Points, mask: Mask | None, size: tuple[int, int]) -> DragInstruction:
        """Validate points and mask against a picture.

        Args:
            handles (sequence of `(x, y)`, `np.ndarray` or `torch.Tensor` of shape `(points, 2)`): in pixels.
            targets (the same): where each handle is to go.
            mask (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                where the picture may change. Selected is what is painted by at least half:

                - in a PIL picture with transparency, what is opaque, whatever its colour;
                - in any other PIL picture what is bright, in white or in another colour: the brightest of red, green
                  and blue counts. It is turned by its EXIF data, as the picture itself is;
                - in arrays and tensors of `(height, width)`, with or without a channel and a batch of one, `True` and
                  high values.

                Floats are painted by 1. Whole numbers are by the least of 1, 255 and 65535 that none of them exceeds.
                A mask of another size than the picture is resized, with a warning. `None` lets everything change.
            size (`tuple[int, int]`): (height, width) of the picture.

        Raises:
            ValueError: if there are no points or different numbers of them, if a point is not a finite (x, y) inside
                the picture, or if the mask is not a picture of one channel, or selects nothing.
        """
        with naming("handles", handles):
            handle_points = _as_points("handles", handles, size)
        with naming("targets", targets):
            target_points = _as_points("targets", targets, size)
        if len(handle_points) != len(target_points):
            raise ValueError(
                f"`handles` and `targets` must have the same number of points, got {len(handle_points)} handles and "
                f"{len(target_points)} targets."
            )
        with naming("mask", mask):
            return cls(handle_points, target_points, size, None if mask is None else _as_mask(mask, size))

    def scaled_to(self, size: tuple[int, int]) -> DragInstruction:
        """The same instruction on a grid of another (height, width).

        A cell of a coarser grid may change if its centre may. Of what is narrower than a cell, and would be lost
        between two centres, it is every cell that is touched: lines stay lines, and dots dots.
        """
        mask = self.mask
        if mask is not None and size != self.size:
            mask = _scaled_mask(mask, size)
        return DragInstruction(
            scale_points(self.handles, self.size, size), scale_points(self.targets, self.size, size), size, mask
        )


def load_instruction(path: str | Path) -> dict[str, Any]:
    """Read an instruction file in DragBench's layout.

    Args:
        path (`str` or `Path`): a JSON object in UTF-8, of at most `MOST_JSON_BYTES`, with `"points"`, a list
            of [x, y] that alternates handle, target, handle, target, ...; optionally a `"prompt"`; and optionally
            `"paths"`, a list that has for each handle either null or a list of the [x, y] that it passes on its way.

    Returns:
        `{"handles": [...], "targets": [...], "prompt": "..."}`, ready to be passed to the pipeline as keywords, and
        `"paths": [...]` only where the file has it.

    Raises:
        ValueError: if the file is not such an object.
        OSError: if there is no file, or it may not be read.

    Example:
        >>> load_instruction("turn.json")  # doctest: +SKIP
        {'handles': [[127, 160]], 'targets': [[151, 160]], 'prompt': 'a portrait'}
    """
    content, where = read_json_object(path), f" in {got(os.fspath(path))}"
    points, prompt = content.get("points"), content.get("prompt", "")
    if not isinstance(points, list) or not points or len(points) % 2:
        raise ValueError(
            f"`points`{where} must be an even number of [x, y] in the order handle, target, handle, target, ...; "
            f"got {got(points)}."
        )
    as_pairs("points", points, where)
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt`{where} must be a string, got {got(prompt)}.")
    instruction = {"handles": points[0::2], "targets": points[1::2], "prompt": prompt}
    if "paths" in content:
        instruction["paths"] = _checked_paths(content["paths"], len(points) // 2, where)
    return instruction


def _checked_paths(paths: Any, count: int, where: str) -> list[list[list[float]] | None]:
    """What was given, if it is a path or nothing for each handle."""
    if not isinstance(paths, list) or len(paths) != count:
        raise ValueError(
            f"`paths`{where} must be a list with null or a list of [x, y] for each handle, got {got(paths)}."
        )
    for path in paths:
        if path is not None and path != []:
            as_pairs("paths", path, where)
    return paths


def _as_points(name: str, points: Points, size: tuple[int, int]) -> torch.Tensor:
    """Convert to `[points, 2]` float32 and check that each is a finite (x, y) inside a picture of `size`."""
    pairs = as_pairs(name, points)
    with np.errstate(over="ignore"):  # to infinity, which is outside
        array = pairs.astype(np.float32)
    height, width = size
    inside = (array >= 0) & (array <= (width - 1, height - 1))
    if not inside.all():
        x, y = pairs[~inside.all(axis=1)][0]
        raise ValueError(
            f"`{name}` must lie inside the picture, x in [0, {width - 1}] and y in [0, {height - 1}]; "
            f"got ({x:g}, {y:g})."
        )
    return torch.from_numpy(array)


def as_pairs(name: str, points: Any, where: str = "") -> np.ndarray:
    """Convert to `[points, 2]`, and check that there are points, all finite; messages say `where`, after the name."""
    if isinstance(points, (np.ndarray, torch.Tensor)):
        array = plain_numbers(name, points)
    else:
        rows = [_numbers(name, point) for point in points] if _is_list(points) else [None]
        if None in rows or len({len(row) for row in rows if row is not None}) > 1:
            raise ValueError(f"`{name}`{where} must be a list of (x, y) pairs of numbers, got {got(points)}.")
        array = np.array(rows, dtype=np.float64)
    if array.dtype == bool:
        raise ValueError(f"`{name}`{where} must be a list of (x, y) pairs of numbers, got {got(points)} of booleans.")
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(
            f"`{name}`{where} must be at least one (x, y) pair, of shape (points, 2); got shape {array.shape}."
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        x, y = array[~finite][0]
        raise ValueError(f"`{name}`{where} must be finite, got ({x:g}, {y:g}).")
    return array


def _numbers(name: str, point: Any) -> list[float] | None:
    """The coordinates of a point, however many; `None` if it has other things than numbers."""
    if isinstance(point, (np.ndarray, torch.Tensor)):
        array = plain_numbers(name, point)
        return array.tolist() if array.ndim == 1 and array.dtype != bool else None
    if not _is_list(point):
        return None
    numbers = []
    for value in point:
        if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0:
            value = plain_numbers(name, value).item()
        if isinstance(value, bool) or not isinstance(value, Real):
            return None
        try:
            numbers.append(float(value))
        except OverflowError:  # a whole number with hundreds of digits
            return None
    return numbers


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes, bytearray, memoryview))


def _as_mask(mask: Mask, size: tuple[int, int]) -> torch.Tensor:
    """Convert to `[height, width]` float32 of zeros and ones, for the rules see [`DragInstruction.from_user`]."""
    if isinstance(mask, Image.Image):
        painted = painted_region(mask)
    elif isinstance(mask, (np.ndarray, torch.Tensor)):
        painted = at_least_half(_single_channel(plain_numbers("mask", mask)))
    else:
        raise ValueError(f"`mask` must be a PIL image, a numpy array or a tensor, got {got(mask)}.")
    if not painted.any():
        raise ValueError(
            f"`mask` must select something, by values of at least half of what is white: got {got(mask)}, where "
            "nothing may change. Pass None if everything may."
        )
    binary = torch.from_numpy(painted.astype(np.float32))
    if binary.shape != size:
        logger.warning(
            f"`mask` has {binary.shape[1]}x{binary.shape[0]} pixels, the picture {size[1]}x{size[0]}: it is resized."
        )
        binary = _scaled_mask(binary, size)
    return binary


def _single_channel(array: np.ndarray) -> np.ndarray:
    """`[height, width]` of an array that may have a channel and a batch of one."""
    shape = array.shape
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or 0 in shape:
        raise ValueError(f"`mask` must have one channel, of shape (height, width); got shape {shape}.")
    check_pixel_count("mask", array.size, f"shape {shape}")
    return array


def _scaled_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask `[height, width]` on another grid: see [`DragInstruction.scaled_to`]."""
    centres = F.interpolate(mask[None, None], size=size, mode="nearest-exact")[0, 0]
    cell = (math.ceil(mask.shape[0] / size[0]), math.ceil(mask.shape[1] / size[1]))
    thin = mask.masked_fill(_near_whole_cells(mask > 0, cell), 0)
    return torch.maximum(centres, F.adaptive_max_pool2d(thin[None], size)[0])


def _near_whole_cells(painted: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    """Whether pixels are at most half a cell away from a painted block of a cell's size.

    Wherever such a block lies, the centre of some cell is in it. So what is here belongs to a region that is seen.
    """
    height, width = cell
    rows, columns = height - 1 + height // 2, width - 1 + width // 2
    whole = F.pad(_all_in_windows(painted, cell), (columns, columns, rows, rows))
    return ~_all_in_windows(~whole, (height + 2 * (height // 2), width + 2 * (width // 2)))


def _all_in_windows(mask: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Whether all are true in each window of (height, width) that lies inside, `[h - height + 1, w - width + 1]`."""
    for length in reversed(window):
        sums = F.pad(mask, (1, 0)).cumsum(-1, dtype=torch.int32)
        mask = (sums[:, length:] - sums[:, :-length] == length).T.contiguous()
    return mask
