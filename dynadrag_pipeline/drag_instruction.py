"""What the user asks for: handle points, target points and a mask, validated once, in pixels of the picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from PIL import Image

from motion_predictor.points import Points, scale_points

from .picture import pil_to_array, to_unit_range

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
            1 where the picture may change, 0 where it must not (M in Eq. 2); `None` lets everything change.

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
        """Validate points and mask against a picture of `size` = (height, width).

        A mask of another size is resized by nearest neighbour, and a mask without any editable pixel means that
        everything may change; both are said in a warning.

        Raises:
            ValueError: if there are no points or different numbers of them, if a point is not a finite (x, y) inside
                the picture, or if the mask is not a picture of one channel.
        """
        handle_points = _as_points("handles", handles, size)
        target_points = _as_points("targets", targets, size)
        if len(handle_points) != len(target_points):
            raise ValueError(
                f"`handles` and `targets` must have the same number of points, got {len(handle_points)} handles and "
                f"{len(target_points)} targets."
            )
        return cls(handle_points, target_points, size, None if mask is None else _as_mask(mask, size))

    def scaled_to(self, size: tuple[int, int]) -> DragInstruction:
        """The same instruction on a grid of another (height, width)."""
        mask = self.mask
        if mask is not None and size != self.size:
            mask = F.interpolate(mask[None, None], size=size, mode="nearest-exact")[0, 0]
        return DragInstruction(
            scale_points(self.handles, self.size, size), scale_points(self.targets, self.size, size), size, mask
        )


def load_instruction(path: str | Path) -> dict[str, Any]:
    """Read an instruction file in DragBench's layout.

    The file is a JSON object with `points`, a list of [x, y] that alternates handle, target, handle, target, ..., and
    optionally a `prompt`.

    Returns:
        `{"handles": [...], "targets": [...], "prompt": "..."}`, ready to be passed to the pipeline as keywords.

    Raises:
        ValueError: if the file is not such an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is not a JSON file: {error}.") from error
    points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list) or not points or len(points) % 2:
        raise ValueError(
            f"`{path}` must hold an object with `points`, an even number of [x, y] in the order handle, target, "
            f"handle, target, ...; got {points!r}."
        )
    prompt = content.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` in `{path}` must be a string, got {prompt!r}.")
    return {"handles": points[0::2], "targets": points[1::2], "prompt": prompt}


def _as_points(name: str, points: Points, size: tuple[int, int]) -> torch.Tensor:
    """Convert to `[points, 2]` float32 and check that each is a finite (x, y) inside a picture of `size`."""
    if isinstance(points, torch.Tensor):
        points = points.detach().cpu().float().numpy()
    try:
        array = np.asarray(points, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be a list of (x, y) pairs of numbers, got {points!r}.") from error
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"`{name}` must be at least one (x, y) pair, of shape (points, 2); got shape {array.shape}.")
    height, width = size
    for x, y in array.tolist():
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"`{name}` must be finite, got ({x}, {y}).")
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            raise ValueError(
                f"`{name}` must lie inside the picture, x in [0, {width - 1}] and y in [0, {height - 1}]; "
                f"got ({x:g}, {y:g})."
            )
    return torch.from_numpy(array.copy())


def _as_mask(mask: Mask, size: tuple[int, int]) -> torch.Tensor | None:
    """Convert to `[height, width]` float32 of zeros and ones; the border is half of the range of the mask's type."""
    if isinstance(mask, Image.Image):
        channels = to_unit_range("mask", pil_to_array("mask", mask))
        opaque = channels[..., 3] if channels.shape[-1] == 4 else 1
        array = channels[..., :3].mean(axis=-1) * opaque  # what is transparent is not painted
    elif isinstance(mask, (np.ndarray, torch.Tensor)):
        if isinstance(mask, torch.Tensor):
            mask = mask.detach().cpu()
            array = (mask.float() if mask.is_floating_point() else mask).numpy()
        else:
            array = mask
        array = array.astype(np.float32) / (255 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 1)
    else:
        raise ValueError(f"`mask` must be a PIL image, a numpy array or a tensor, got {type(mask).__name__}.")
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"`mask` must have one channel, of shape (height, width); got shape {array.shape}.")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"`mask` must be in [0, 1] (or uint8 in 0..255), got values in [{array.min():g}, {array.max():g}]."
        )
    binary = torch.from_numpy((array >= 0.5).astype(np.float32))
    if binary.shape != size:
        logger.warning(f"`mask` has size {tuple(binary.shape)}, the picture {size}: resizing it by nearest neighbour.")
        binary = F.interpolate(binary[None, None], size=size, mode="nearest-exact")[0, 0]
    if not binary.any():
        logger.warning("`mask` has no editable pixel: it is ignored, and everything may change.")
        return None
    return binary
