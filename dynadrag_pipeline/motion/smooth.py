"""The dense flow of a motion that is known at its points alone: smooth, and still where nothing may change."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from motion_predictor.points import sample_flow, scale_points
from motion_predictor.spline import spline_flow

from ..dense_flow import flow_size, folds, resize_shift, sampled_flow

PARTS = (1, 2, 4, 8)
"""Into how many parts a way is cut, one number after the other, until the flow of all parts has no folds."""

AGREEMENT = 0.02  # of the short side: as far as points may be off a similarity that they move by together
MOST_TURN, MOST_SCALE = math.radians(60), 1.5  # beyond these, points that fit a similarity still cross
FOLLOWERS_PER_SIDE = 16  # points that go along lie as far apart as a part of so many of the short side

Way = Callable[[float], torch.Tensor]
"""Where points `(points, 2)` are at a share in [0, 1] of their ways."""


def smooth_flow(
    way: Way, size: tuple[int, int], mask: torch.Tensor | None = None, least_parts: int = 1
) -> torch.Tensor:
    """The flow of everything, of which points are known to go their ways.

    A thin-plate spline through the points, pinned outside the mask. One spline folds where points pass each other or
    are pressed against the mask's border; small ones after another don't, so the way is cut into parts if need be.
    Where points move together, turned or scaled alike, what lies between them moves with them.

    Args:
        way (`Callable`): see [`Way`]; in pixels.
        size (`tuple[int, int]`): (height, width) of the picture.
        mask (`torch.Tensor` of shape `(1, 1, height, width)`, *optional*): 1 where it may change.
        least_parts (`int`, defaults to 1): into how many parts the way is cut at least, if it is not straight.

    Returns:
        `torch.Tensor` of shape `(1, 2, h, w)`: forward, in pixels of the grid of dense flows. It may still fold, where
        points cross in one place.
    """
    grid = flow_size(size)
    if mask is not None:
        mask = torch.nn.functional.interpolate(mask, size=grid, mode="area")
    follow = _followers(way, min(size) / FOLLOWERS_PER_SIDE, AGREEMENT * min(size))

    def at(share: float) -> torch.Tensor:
        return scale_points(follow(share), size, grid)

    flow = torch.zeros(1, 2, *grid, device=at(0).device)
    for factor in PARTS:
        parts = factor * least_parts
        flow = torch.zeros_like(flow)
        for part in range(parts):
            here, there = at(part / parts), at((part + 1) / parts)
            step = spline_flow(here[None], there[None], *grid, mask=mask, resolution=min(grid))
            flow = flow + sampled_flow(step, flow)
        if not folds(flow).any():
            break
    return flow


def corrected_flow(
    flow: torch.Tensor,
    handles: torch.Tensor,
    destinations: torch.Tensor,
    size: tuple[int, int],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A flow from elsewhere, with a smooth one added so that it takes handles to where they are to go.

    Args:
        flow (`torch.Tensor` of shape `(1, 2, height, width)`): forward, in pixels of the picture.
        handles, destinations (`torch.Tensor` of shape `(points, 2)`): in the same.
        size, mask: as of [`smooth_flow`].
    """
    grid = flow_size(size)
    flow = resize_shift(flow, grid)
    handles, destinations = (scale_points(points, size, grid) for points in (handles, destinations))
    if mask is not None:
        mask = torch.nn.functional.interpolate(mask, size=grid, mode="area")
    said = sample_flow(flow, handles[None])[0]
    return flow + spline_flow(handles[None], (destinations - said)[None], *grid, mask=mask, resolution=min(grid))


def _followers(way: Way, spacing: float, tolerance: float) -> Way:
    """The way of the points, and of more on the lines between them if they move together."""
    start, end = way(0.0), way(1.0)
    if len(start) < 2 or not _agree(start, end, tolerance):
        return way
    pairs = [(i, j) for i in range(len(start)) for j in range(i) if (start[i] - start[j]).norm() > 2 * spacing]
    shares = [
        (i, j, part / parts)
        for i, j in pairs
        for parts in [int((start[i] - start[j]).norm() / spacing)]
        for part in range(1, parts)
    ]
    if not shares:
        return way

    def with_followers(share: float) -> torch.Tensor:
        points = way(share)
        return torch.cat([points, torch.stack([points[i].lerp(points[j], at) for i, j, at in shares])])

    return with_followers


def _agree(start: torch.Tensor, end: torch.Tensor, tolerance: float) -> bool:
    """Whether one similarity takes all points `(points, 2)` to where they go, and none passes another."""
    from_centre, to_centre = start - start.mean(dim=0), end - end.mean(dim=0)
    before = torch.view_as_complex(from_centre.contiguous())
    after = torch.view_as_complex(to_centre.contiguous())
    factor = (before.conj() * after).sum() / before.abs().square().sum().clamp(min=1e-12)
    is_mild = abs(factor.angle()) < MOST_TURN and 1 / MOST_SCALE < factor.abs() < MOST_SCALE
    return bool(is_mild and (factor * before - after).abs().max() <= tolerance)
