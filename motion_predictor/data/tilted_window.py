"""A frame seen small or large, tilted, and anywhere in the picture, as a dataset's own frames are not framed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample, pad

# Of the frame's short side: a face of half a frame fills a fifth to three quarters of a window.
SIDES = (0.65, 2.5)
LARGEST_TILT = math.radians(20)
TILTED_SHARE = 0.6
SURROUNDINGS = 0.5  # of the frame's sides: how far its blurred border is carried on


@dataclass(frozen=True)
class TiltedWindow:
    """A square part of a frame, turned about its middle; beyond the frame its border is carried on, blurred.

    Attributes:
        middle (`tuple[float, float]`): (x, y) in the frame's pixels.
        side (`float`): in the frame's pixels.
        tilt (`float`): radians, by which the window is turned clockwise against the frame.
        size (`int`): pixels of the window's side.
        frame_size (`tuple[int, int]`): (height, width) of the frame.

    Example:
        >>> window = TiltedWindow(middle=(63.5, 63.5), side=64.0, tilt=0.0, size=32, frame_size=(128, 128))
        >>> window.points(np.array([[63.5, 63.5], [65.5, 63.5]])).tolist()
        [[15.5, 15.5], [16.5, 15.5]]
    """

    middle: tuple[float, float]
    side: float
    tilt: float
    size: int
    frame_size: tuple[int, int]

    @staticmethod
    def draw(width: int, height: int, random: np.random.Generator, size: int) -> TiltedWindow:
        """A window that shows the middle of the frame somewhere.

        Args:
            width (`int`): of the frame.
            height (`int`): of the frame.
            random (`np.random.Generator`): the only source of chance.
            size (`int`): pixels of the window's side.
        """
        side = min(width, height) * SIDES[0] * (SIDES[1] / SIDES[0]) ** random.random()
        tilt = random.uniform(-LARGEST_TILT, LARGEST_TILT) if random.random() < TILTED_SHARE else 0.0
        # A small window may lie anywhere in the frame, a large one may have the frame anywhere in it.
        reach = [abs(length - side) / 2 + 0.1 * side for length in (width, height)]
        x, y = (
            (length - 1) / 2 + random.uniform(-far, far) for length, far in zip((width, height), reach, strict=True)
        )
        return TiltedWindow((x, y), side, tilt, size, (height, width))

    @property
    def _turn(self) -> np.ndarray:
        """From vectors of the frame to those of the window: `[2, 2]`."""
        c, s = math.cos(self.tilt), math.sin(self.tilt)
        return np.array([[c, s], [-s, c]], dtype=np.float32) * np.float32(self.size / self.side)

    def vectors(self, motion: np.ndarray) -> np.ndarray:
        """Motion `[..., 2]` of the frame in pixels of the window."""
        return motion @ self._turn.T

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points `[..., 2]` of the frame in pixels of the window."""
        return self.vectors(points - np.array(self.middle, dtype=np.float32)) + (self.size - 1) / 2

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether points `[..., 2]` of the frame lie on the window's pixels."""
        seen = self.points(points)
        return np.asarray(((seen >= 0) & (seen <= self.size - 1)).all(axis=-1))

    def picture(self, frame: np.ndarray) -> np.ndarray:
        """A frame `[H, W, 3]` uint8 as seen through the window, smoothed as far as it is made smaller."""
        image = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
        margin = round(SURROUNDINGS * min(self.frame_size))
        seen = self._read(surrounded(image, margin), margin, smooth=True)
        return np.asarray(seen[0].permute(1, 2, 0).round().clamp(0, 255).byte())

    def field(self, motion: np.ndarray, stride: int) -> np.ndarray:
        """Motion `[H / stride, W / stride, 2]` as seen through the window, in its pixels; NaN near what is NaN."""
        known = np.isfinite(motion).all(axis=-1, keepdims=True)
        planes = np.concatenate([np.where(known, motion, 0), known], axis=-1).astype(np.float32)
        seen = (
            self._read(torch.from_numpy(planes.transpose(2, 0, 1))[None], 0, smooth=False)[0].permute(1, 2, 0).numpy()
        )
        sure = (seen[..., 2:] > 0.999) & self._on_frame()[..., None]
        return np.where(sure, self.vectors(seen[..., :2]), np.nan)

    def _places(self) -> torch.Tensor:
        """What of the frame each pixel shows, `(size, size, 2)`, in shares of the frame's sides from -1 to 1."""
        along = torch.arange(self.size) - (self.size - 1) / 2
        seen = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1)
        back = torch.from_numpy(np.linalg.inv(self._turn)).float()
        at = seen @ back.T + torch.tensor(self.middle)
        height, width = self.frame_size
        return (2 * at + 1) / torch.tensor([width, height]) - 1

    def _on_frame(self) -> np.ndarray:
        return np.asarray((self._places().abs() <= 1).all(dim=-1))

    def _read(self, planes: torch.Tensor, margin: int, smooth: bool) -> torch.Tensor:
        height, width = self.frame_size
        places = self._places() / torch.tensor([1 + 2 * margin / width, 1 + 2 * margin / height])
        shrink = int(self.side / self.size + 0.5) if smooth else 1
        if shrink > 1:  # else every other pixel would be left out
            planes = avg_pool2d(planes, shrink, ceil_mode=True, count_include_pad=False)
            whole = torch.tensor([planes.shape[3], planes.shape[2]]) * shrink
            places = (places + 1) * torch.tensor([width + 2 * margin, height + 2 * margin]) / whole - 1
        return grid_sample(planes, places[None].float(), padding_mode="border", align_corners=False)


def surrounded(image: torch.Tensor, margin: int) -> torch.Tensor:
    """A picture with what may be around it: its border, blurred the more the farther off.

    The border as it is would be drawn out to streaks, and mirrored to a second head.

    Args:
        image (`torch.Tensor` of shape `(1, 3, height, width)`): in any range.
        margin (`int`): pixels on each side.

    Returns:
        `torch.Tensor` of shape `(1, 3, height + 2 margin, width + 2 margin)`: the picture in its middle.
    """
    if margin == 0:
        return image
    padded = pad(image, (margin,) * 4, mode="replicate")
    kernel = 2 * (margin // 2) + 1
    blurred = pad(padded, (kernel - 1,) * 4, mode="replicate")
    for dim in (2, 3, 2, 3):
        blurred = _running_mean(blurred, kernel, dim)
    outside = []
    for length in padded.shape[-2:]:
        along = torch.arange(length)
        beyond = torch.maximum(margin - along, along - (length - 1 - margin))
        outside.append((beyond / (margin / 3)).clamp(0, 1))
    return torch.lerp(padded, blurred, torch.maximum(outside[0][:, None], outside[1]))


def _running_mean(values: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    """The means of each `count` neighbours along a dimension, which is shorter by `count - 1` then.

    By sums from the start on: pooling takes a time that grows with `count`.
    """
    sums = values.double().cumsum(dim)
    length = values.shape[dim] - count
    later = sums.narrow(dim, count - 1, length + 1)
    earlier = torch.cat([torch.zeros_like(later.narrow(dim, 0, 1)), sums.narrow(dim, 0, length)], dim)
    return ((later - earlier) / count).to(values.dtype)
