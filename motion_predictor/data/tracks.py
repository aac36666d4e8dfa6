"""Where points go over many frames: one-frame flows chained, checked forward against backward (Sec. 3.2.1 and 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..points import sample_flow
from .motion_record import HORIZON_STRIDE

# Forward and backward flow agree if their sum is shorter than this many pixels and this share of the motion.
TOLERANCE = 1.0
RELATIVE_TOLERANCE = 0.05

LEAST_AGREEMENT = 0.2  # of the cells: in edited films, cuts leave up to 0.07, the fastest motion 0.5 and more

# Root of the mean squared gradient, in grey levels per pixel of a picture with a short side of 128.
LEAST_TEXTURE = 2.0
TEXTURE_WINDOW = 7

BACKGROUND_STRIDE = 8  # pixels between the points whose median is the motion of the background
FEWEST_BACKGROUND_POINTS = 16


@dataclass(frozen=True)
class FlowStep:
    """The flow from one frame to the next and the flow back, each `[1, 2, H, W]` float32 in pixels.

    Nothing can be followed over a step that is a `cut` to another scene.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    cut: bool = False

    @classmethod
    def from_arrays(cls, forward: np.ndarray, backward: np.ndarray) -> FlowStep:
        """From two flows `[H, W, 2]`."""
        planes = [np.ascontiguousarray(flow.transpose(2, 0, 1)) for flow in (forward, backward)]
        return cls(torch.from_numpy(planes[0])[None], torch.from_numpy(planes[1])[None])

    @property
    def reversed(self) -> FlowStep:
        """The same step with time running backwards."""
        return FlowStep(self.backward, self.forward, self.cut)


def chain_tracks(points: np.ndarray, steps: Iterable[FlowStep]) -> np.ndarray:
    """Follow points from frame to frame; each flow is sampled bilinearly at where the point has come to.

    A point is lost from the step on that is a cut, leads off the picture, or at whose end the flow back does not lead
    to where it started: `|forward + backward| >= 1 px + 5 % of |forward|`.

    Args:
        points (`np.ndarray` of shape `(points, 2)`): in pixels of the first frame.
        steps (`Iterable[FlowStep]`): the flows between T + 1 frames, in their order.

    Returns:
        `np.ndarray` of shape `(points, frames, 2)`: float32, the motion since the first frame, in pixels; NaN once a
        point is lost.

    Example:
        >>> right = np.zeros((8, 8, 2), np.float32) + np.float32([2, 0])
        >>> steps = [FlowStep.from_arrays(right, -right)] * 3
        >>> chain_tracks(np.float32([[3, 4]]), steps)[0].tolist()
        [[2.0, 0.0], [4.0, 0.0], [nan, nan]]
    """
    start = torch.from_numpy(np.asarray(points, dtype=np.float32))
    position, alive = start, torch.ones(len(start), dtype=torch.bool)
    motion = []
    for step in steps:
        forward = sample_flow(step.forward, position[None])[0]
        position = position + forward
        limits = torch.tensor([step.forward.shape[3] - 0.5, step.forward.shape[2] - 0.5])
        inside = ((position >= -0.5) & (position <= limits)).all(dim=-1)
        backward = sample_flow(step.backward, position[None])[0]
        tolerance = TOLERANCE + RELATIVE_TOLERANCE * torch.hypot(*forward.unbind(-1))
        alive = alive & (not step.cut) & inside & (torch.hypot(*(forward + backward).unbind(-1)) < tolerance)
        motion.append(torch.where(alive[:, None], position - start, torch.nan))
    if not motion:
        return np.empty((len(start), 0, 2), np.float32)
    return torch.stack(motion, dim=1).numpy()


def cell_centres(height: int, width: int) -> np.ndarray:
    """Centres `[H / 4, W / 4, 2]` of the cells of `horizon_flows`, in pixels.

    Args:
        height (`int`): of the picture, in pixels.
        width (`int`): of the picture, in pixels.

    Example:
        >>> cell_centres(4, 8).tolist()
        [[[1.5, 1.5], [5.5, 1.5]]]
    """
    x, y = (np.arange(0, side, HORIZON_STRIDE) + (HORIZON_STRIDE - 1) / 2 for side in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def is_cut(step: FlowStep, seen: np.ndarray) -> bool:
    """Whether two frames show different scenes: forward and backward flow hardly agree anywhere.

    Args:
        step (`FlowStep`): between the frames.
        seen (`np.ndarray` of shape `(height, width)`): bool, where the first has texture.

    Returns:
        `bool`: whether it is.
    """
    centres = cell_centres(*seen.shape)
    cells = centres[seen[centres[..., 1].astype(int), centres[..., 0].astype(int)]]
    if len(cells) < FEWEST_BACKGROUND_POINTS:
        return False
    return bool(np.isfinite(chain_tracks(cells, [step])[:, 0, 0]).mean() < LEAST_AGREEMENT)


def has_texture(picture: np.ndarray) -> np.ndarray:
    """Where motion can be seen: `[H, W]` bool. The flow of a blank wall is a guess.

    Args:
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
    """
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    energy = cv2.boxFilter(across**2 + down**2, -1, (TEXTURE_WINDOW, TEXTURE_WINDOW))
    return np.sqrt(energy) * min(grey.shape) / 128 > LEAST_TEXTURE


def background_points(background: np.ndarray) -> np.ndarray:
    """A grid `[N, 2]` of points of a region `[H, W]` bool, 8 pixels apart."""
    half = BACKGROUND_STRIDE // 2
    rows, columns = np.nonzero(background[half::BACKGROUND_STRIDE, half::BACKGROUND_STRIDE])
    return np.stack([columns, rows], axis=-1).astype(np.float32) * BACKGROUND_STRIDE + half


def background_motion(tracks: np.ndarray) -> np.ndarray:
    """The median of tracks `[N, T, 2]` of the background: `[T, 2]`; zero where hardly any of them is known."""
    known = (~np.isnan(tracks[..., 0])).sum(axis=0) >= FEWEST_BACKGROUND_POINTS
    motion = np.zeros(tracks.shape[1:], np.float32)
    if known.any():
        motion[known] = np.nanmedian(tracks[:, known], axis=0)
    return motion
