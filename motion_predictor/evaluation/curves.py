"""Paths that bend: how far from the straight line to their targets they lead, and whether that is foreseen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.motion_record import MotionRecord
from ..data.samples import MotionSample
from .figures import resamplings

LEAST_BEND = 0.1  # sagitta over chord: straighter paths are not judged


def true_paths(record: MotionRecord, sample: MotionSample, *, without_camera: bool = False) -> np.ndarray:
    """Where the handles of a sample are in the frames to its end frame, from the start on.

    Args:
        record (`MotionRecord`): that the sample was drawn from.
        sample (`MotionSample`): of a whole frame as it is, with T frames to its end.
        without_camera (`bool`, *optional*, defaults to `False`): whether the camera's motion is taken out, as it is
            from the sample's targets.

    Returns:
        `np.ndarray` of shape `(points, T + 1, 2)`: in pixels; NaN where it is not known.
    """
    frames = int(sample.frames)
    handles = sample.handles[sample.valid].cpu().numpy()
    candidates = np.linalg.norm(handles[:, None] - record.points, axis=-1).argmin(axis=1)
    motion = record.tracks[candidates, :frames]
    if without_camera:
        motion = motion - record.background[:frames]
    here = record.points[candidates, None]
    return np.concatenate([here, here + motion], axis=1)


def sagittas(paths: np.ndarray, handles: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How far paths lead away from the straight line between handle and target, where they are farthest from it.

    Args:
        paths (`np.ndarray` of shape `(points, places, 2)`): in pixels; places that are NaN are passed over.
        handles (`np.ndarray` of shape `(points, 2)`): in pixels.
        targets (`np.ndarray` of shape `(points, 2)`): in pixels, none of them at its handle.

    Returns:
        `np.ndarray` of shape `(points,)`: in pixels; above zero on the right as one looks from handle to target.

    Example:
        >>> path = np.array([[[0.0, 0.0], [5.0, 2.0], [10.0, 0.0]]])
        >>> sagittas(path, path[:, 0], path[:, -1])
        array([2.])
    """
    chord = targets - handles
    along = chord / np.linalg.norm(chord, axis=-1, keepdims=True)
    offset = paths - handles[:, None]
    aside = np.nan_to_num(along[:, None, 0] * offset[..., 1] - along[:, None, 1] * offset[..., 0])
    farthest = np.abs(aside).argmax(axis=1)
    return np.asarray(aside[np.arange(len(aside)), farthest])


def curve_figures(true: np.ndarray, predicted: np.ndarray, video: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Whether predicted paths bend as the true ones do.

    Args:
        true (`np.ndarray` of shape `(paths,)`): sagittas of paths that bend, in pixels.
        predicted (`np.ndarray` of shape `(paths,)`): of the same paths.
        video (`np.ndarray` of shape `(paths,)`): int, where each comes from.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.

    Returns:
        `dict`: `correlation` of the two (Pearson) and `correlation_95`, its interval if the videos were drawn anew,
        both None where one of them does not vary; and `same_side`, the share of paths that bend to the side that the
        true one bends to.

    Example:
        >>> curve_figures(np.array([1.0, -2.0, 3.0]), np.array([0.5, -1.0, 1.5]), np.arange(3))["same_side"]
        1.0
    """
    _, group = np.unique(video, return_inverse=True)
    count = int(group.max()) + 1
    powers = np.stack([np.ones_like(true), true, predicted, true * true, predicted * predicted, true * predicted])
    sums = np.stack([np.bincount(group, weights=power, minlength=count) for power in powers], axis=1)  # [videos, 6]
    correlation = float(_correlation(sums.sum(axis=0)))
    resampled = _correlation(resamplings(count, seed) @ sums)
    low, high = np.nanpercentile(resampled, (2.5, 97.5)) if np.isfinite(resampled).any() else (np.nan, np.nan)
    known = np.isfinite(correlation)
    return {
        "paths": len(true),
        "correlation": correlation if known else None,
        "correlation_95": [float(low), float(high)] if known else None,
        "same_side": float((true * predicted > 0).mean()),
    }


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation from `[..., 6]`: count and sums of x, y, x x, y y, x y; NaN where one is constant."""
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12 * count**2, (count * xy - x * y) / np.sqrt(spread), np.nan)
