"""The editing region of a start frame: the part of the picture that handles are drawn from (Sec. 3.2.1 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .build_settings import REGIONS

if TYPE_CHECKING:
    import torch

    from .build_settings import BuildSettings


@dataclass(frozen=True, eq=False)
class StartFrame:
    """What an editing region may be told by.

    Attributes:
        picture: `[H, W, 3]` uint8 RGB.
        flow: `[H, W, 2]` float32, the flow to the next frame in pixels.
        source: path of the video, relative to the folder that holds all videos, with `/` as separator.
        index: number of the frame in its video, from 0.
    """

    picture: np.ndarray
    flow: np.ndarray
    source: str
    index: int


class EditingRegion(Protocol):
    """Anything that tells which pixels of a start frame may be dragged.

    Attributes:
        name: kept with the records.
    """

    name: str

    def __call__(self, start: StartFrame) -> np.ndarray:
        """The region as `[H, W]` bool; all False if the frame has none."""
        ...


class WholeFrame:
    """Every pixel."""

    name = "whole"

    def __call__(self, start: StartFrame) -> np.ndarray:
        return np.ones(start.picture.shape[:2], dtype=bool)


class MovingRegion:
    """What moves faster than a threshold, without specks and small holes.

    Args:
        threshold: in pixels per frame.

    Example:
        >>> flow = np.zeros((32, 32, 2), np.float32)
        >>> flow[8:24, 8:24] = 1
        >>> flow[15, 15] = 0
        >>> region = MovingRegion(0.5)(StartFrame(np.zeros((32, 32, 3), np.uint8), flow, "clip.mp4", 0))
        >>> int(region.sum()), bool(region[15, 15])
        (256, True)
    """

    name = "motion"

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, start: StartFrame) -> np.ndarray:
        import cv2

        moving = (np.linalg.norm(start.flow, axis=-1) > self.threshold).astype(np.uint8)
        side = max(min(moving.shape) // 32, 1) * 2 + 1
        element = np.ones((side, side), np.uint8)
        opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, element)
        return cv2.morphologyEx(opened, cv2.MORPH_CLOSE, element).astype(bool)


def make_editing_region(settings: BuildSettings, device: torch.device) -> EditingRegion:
    """The editing region that the settings of a dataset name."""
    if settings.region == "motion":
        return MovingRegion(settings.region_threshold)
    if settings.region == "whole":
        return WholeFrame()
    raise ValueError(f"`region` is {settings.region!r}: one of {REGIONS} is accepted.")
