"""What portraits in motion are kept as: records to train on, and pairs of pictures to judge edits by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample, max_pool2d

from .head_factors import FPS
from .head_fields import HeadFields
from .motion_record import HORIZON_STRIDE, MotionRecord, end_frames_within
from .portrait_motion import FoldedPicture, PortraitMotion, pixel_centres
from .unknown_motion import as_near_by

MAX_HANDLES = 7
MAX_TRIES = 100
LARGEST_MISS = 0.02  # of the side, forth and back
LEAST_CHANGE = 0.15  # of the longest displacement: what moves less is not in the mask of a pair


def portrait_record(
    name: str,
    motion: PortraitMotion,
    start: int,
    random: np.random.Generator,
    *,
    take: int = 0,
    horizon_frames: int = 6,
    track_frames: int = 55,
    candidates: int = 256,
) -> MotionRecord:
    """What training keeps of a motion from one frame on.

    Args:
        name (`str`): of the portrait; the key is `"{name}-{take}_{start:06d}"`.
        motion (`PortraitMotion`): of which frames `start` to `start + track_frames` are needed.
        start (`int`): the number of the start frame.
        random (`np.random.Generator`): chooses the candidates, with a probability proportional to |f_s| on the head
            and, less, around it.
        take (`int`, *optional*, defaults to 0): the number of the motion, where a portrait has several.
        horizon_frames (`int`, *optional*, defaults to 6): the motion of all cells is kept for so many frames.
        track_frames (`int`, *optional*, defaults to 55): the motion of the candidates is kept for so many frames.
        candidates (`int`, *optional*, defaults to 256): at most so many.
    """
    if not 0 <= start < motion.frames - track_frames:
        raise ValueError(
            f"`start` must be from 0 to {motion.frames - track_frames - 1}, as {track_frames} of the motion's "
            f"{motion.frames} frames must follow, got {start}."
        )
    side = motion.side
    pixels = pixel_centres(side)
    flow, region = motion.flow_and_region(start, start + 1)
    points = _draw_candidates(np.linalg.norm(flow, axis=-1) * region, candidates, random)
    cells = pixels.reshape(side // HORIZON_STRIDE, HORIZON_STRIDE, side // HORIZON_STRIDE, HORIZON_STRIDE, 2)
    centres = cells.mean(axis=(1, 3))
    horizon = list(range(start + 1, start + 1 + horizon_frames))
    tracks = motion.track(points, start, list(range(start + 1, start + 1 + track_frames)))
    ends = end_frames_within(track_frames)
    return MotionRecord(
        key=f"{name}-{take}_{start:06d}",
        frame=motion.frame(start),
        flow=flow,
        horizon_flows=np.moveaxis(motion.track(centres, start, horizon), 2, 0),
        end_frames=ends,
        end_flows=np.moveaxis(motion.track(centres, start, (start + ends).tolist()), 2, 0),
        points=points,
        tracks=_lost_outside(points, tracks, side),
        background=np.zeros((track_frames, 2), dtype=np.float32),
        info={"video": name, "take": take, "start": start, "direction": 1, "fps": FPS, "source": "portraits"},
    )


def _draw_candidates(weight: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Points `[P, 2]` within different pixels, with a probability proportional to `weight` `[S, S]`."""
    chances = weight.astype(np.float64).ravel()
    number = min(most, int((chances > 0).sum()))
    if number == 0:
        return np.zeros((0, 2), dtype=np.float32)
    chosen = random.choice(chances.size, number, replace=False, p=chances / chances.sum())
    y, x = np.divmod(chosen, weight.shape[1])
    points = np.stack([x, y], axis=-1) + random.uniform(-0.5, 0.5, (number, 2))
    return np.asarray(points.clip(0, len(weight) - 1), dtype=np.float32)


def _lost_outside(points: np.ndarray, tracks: np.ndarray, side: int) -> np.ndarray:
    """Tracks that are NaN from the frame on in which the point is not on the picture's pixels."""
    positions = points[:, None] + tracks
    outside = ((positions < -0.5) | (positions > side - 0.5)).any(axis=-1)
    lost = np.logical_or.accumulate(outside, axis=1)
    return np.where(lost[..., None], np.float32(np.nan), tracks)


class NothingGoesSoFar(ValueError):
    """No motion of a portrait has the displacement that is asked for."""


@dataclass(frozen=True, eq=False)
class PortraitPair:
    """An instruction, and the picture that it should lead to: the source with its content moved, and known exactly.

    Attributes:
        source (`np.ndarray` of shape `(side, side, 3)`): uint8 RGB, the still portrait.
        target (`np.ndarray` of shape `(side, side, 3)`): uint8 RGB, the same portrait moved.
        handles (`np.ndarray` of shape `(points, 2)`): float32, 1 to 7 points of the source, in pixels.
        targets (`np.ndarray` of shape `(points, 2)`): float32, where their content is in the target.
        mask (`np.ndarray` of shape `(side, side)`): bool, True where the picture may change: what moves by more than
            0.15 of the longest displacement, and a rim around it.
        flow (`np.ndarray` of shape `(side, side, 2)`): float32, the motion from the source to the target, in pixels of
            the source.
    """

    source: np.ndarray
    target: np.ndarray
    handles: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    flow: np.ndarray


def portrait_pair(
    picture: np.ndarray,
    fields: HeadFields,
    random: np.random.Generator,
    least_displacement: float = 0.05,
    most_handles: int = MAX_HANDLES,
    largest_turn: float | None = None,
) -> PortraitPair:
    """Draw an edit of a still portrait with the picture that it should lead to.

    The target is some frame of a random motion. Handles are drawn with a probability proportional to the length of
    their displacement, as in training, but not close to each other.

    Args:
        picture (`np.ndarray` of shape `(side, side, 3)`): uint8 RGB.
        fields (`HeadFields`): of its face.
        random (`np.random.Generator`): the only source of chance.
        least_displacement (`float`, *optional*, defaults to 0.05): at least one point of the target has moved so far,
            as a fraction of the side.
        most_handles (`int`, *optional*, defaults to 7): as many handles are drawn at most.
        largest_turn (`float`, *optional*): radians that the head is turned at most, and hides parts of itself; it and
            the face move alone. None: as far as it can turn and hide nothing.

    Raises:
        NothingGoesSoFar: if no motion of many does.
    """
    for _ in range(MAX_TRIES):
        motion = PortraitMotion.draw(picture, fields, random, frames=50, largest_turn=largest_turn)
        if largest_turn is not None and motion.fields is not fields:  # soft patches, which go farther than any head
            continue
        number = int(random.integers(motion.frames))
        try:
            flow, region = motion.flow_and_region(None, number)
            back, _ = motion.flow_and_region(number, None)
        except FoldedPicture:  # rounding, in a frame that is close to it
            continue
        length = np.linalg.norm(flow, axis=-1) * (region > 0.5) * stays_inside(flow) * stays_visible(flow, back)
        if length.max() >= least_displacement * motion.side:
            break
    else:
        raise NothingGoesSoFar(
            f"`least_displacement` must be smaller, got {least_displacement}: no motion of this face goes so far."
        )
    handles = draw_apart(length, int(random.integers(1, most_handles + 1)), motion.side / 12, random)
    return PortraitPair(
        source=motion.frame(None),
        target=motion.frame(number),
        handles=handles,
        targets=handles + motion.flow(None, number, handles),
        mask=where_it_changes(flow, back),
        flow=flow,
    )


def stays_inside(flow: np.ndarray) -> np.ndarray:
    """Which pixels `[S, S]` are on the picture still when they have moved; none of unknown motion."""
    ends = pixel_centres(len(flow)) + flow
    return np.asarray(((ends >= 0) & (ends <= len(flow) - 1)).all(axis=-1))


def stays_visible(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which pixels `[S, S]` of the source are seen in the target: what is seen where they went came from there.

    Args:
        flow (`np.ndarray` of shape `(side, side, 2)`): from the source to the target, in pixels of the source.
        back (`np.ndarray` of shape `(side, side, 2)`): from the target to the source, in pixels of the target.
    """
    ends = torch.from_numpy(pixel_centres(len(flow)) + flow)[None]
    grid = (2 * ends + 1) / len(flow) - 1
    returned = grid_sample(torch.from_numpy(back).permute(2, 0, 1)[None], grid, align_corners=False)[0]
    miss = np.linalg.norm(flow + returned.permute(1, 2, 0).numpy(), axis=-1)
    return np.asarray(miss < LARGEST_MISS * len(flow))


def draw_apart(length: np.ndarray, number: int, distance: float, random: np.random.Generator) -> np.ndarray:
    """Up to `number` pixels `[n, 2]`, at least `distance` apart, drawn by the `length` `[S, S]` of their displacement.

    A pixel's chance is proportional to it; one with less than half of the longest, or none, is never drawn.
    """
    chances = np.where(length >= length.max() / 2, length, 0).astype(np.float64)
    pixels = pixel_centres(len(length))
    points: list[np.ndarray] = []
    while len(points) < number and chances.any():
        point = pixels.reshape(-1, 2)[random.choice(chances.size, p=chances.ravel() / chances.sum())]
        points.append(point)
        chances[np.linalg.norm(pixels - point, axis=-1) < distance] = 0
    return np.stack(points)


def where_it_changes(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The mask `[S, S]` bool of an edit: what moves in the source or has moved in the target, and a rim around it.

    Pixels whose motion is not known, NaN, are as those near by.

    Args:
        flow (`np.ndarray` of shape `(side, side, 2)`): from the source to the target, in pixels of the source.
        back (`np.ndarray` of shape `(side, side, 2)`): from the target to the source, in pixels of the target.
    """
    lengths = [np.linalg.norm(motion, axis=-1) for motion in (flow, back)]
    least = LEAST_CHANGE * np.nan_to_num(lengths[0]).max()
    forth, has_moved = (as_near_by(length > least, np.isfinite(length)) for length in lengths)
    rim = len(flow) // 32
    widened = max_pool2d(torch.from_numpy(forth | has_moved)[None].float(), 2 * rim + 1, stride=1, padding=rim)
    return np.asarray(widened[0] > 0)
