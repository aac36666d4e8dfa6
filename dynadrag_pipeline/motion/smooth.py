"""The dense flow of a motion that is known at its points alone: smooth, and still where nothing may change."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from motion_predictor.linear_motion import LinearFit, fit_affine, fit_similarity
from motion_predictor.points import sample_flow, scale_points
from motion_predictor.spline import spline_flow

from ..dense_flow import flow_size, folds, resize_shift, sampled_flow

PARTS = (1, 2, 4, 8)
"""Into how many parts a way is cut, one number after the other, until the flow of all parts has no folds."""

MOST_PARTS = 16
"""Each of them is a spline, however many corners a way has."""

AGREEMENT = 0.12  # of their mean way: as far as points may be off a motion of the plane that they move by together
MOST_TURN, MOST_SCALE = math.radians(60), 1.5  # beyond these, points that fit a similarity still cross
FOLLOWERS_PER_SIDE = 16  # what goes along is said at places so far apart as a part of so many of the short side
FOLLOWING = 1 / 8  # of the short side: how far round the points what lies there goes along
DIRECTIONS = 64  # that the convex hull of the points is looked at from

Way = Callable[[float], torch.Tensor]
"""Where points `(points, 2)` are at a share in [0, 1] of their ways."""


def smooth_flow(
    way: Way, size: tuple[int, int], mask: torch.Tensor | None = None, least_parts: int = 1
) -> torch.Tensor:
    """The flow of everything, of which points are known to go their ways.

    A thin-plate spline through the points, pinned outside the mask. One spline folds where points pass each other or
    are pressed against the mask's border; small ones after another don't, so the way is cut into parts if need be.
    Where points agree with a turn, a scale or, four of them, an affine motion, what lies between and round them moves
    by that too: a spline would let go of it at once.

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
    at = _with_followers(lambda share: scale_points(way(share), size, grid), grid, mask)

    flow = torch.zeros(1, 2, *grid, device=at(0).device)
    for factor in PARTS:
        parts = min(factor * least_parts, MOST_PARTS)
        flow = torch.zeros_like(flow)
        for part in range(parts):
            here, there = at(part / parts), at((part + 1) / parts)
            step = spline_flow(here[None], there[None], *grid, mask=mask, resolution=min(grid))
            flow = flow + sampled_flow(step, flow)
        if parts == MOST_PARTS or not folds(flow).any():
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


def _with_followers(way: Way, size: tuple[int, int], mask: torch.Tensor | None) -> Way:
    """The way of the points, and of what goes along with them if they move together."""
    start = way(0.0)
    fit = _agreed_motion(start, way(1.0))
    if fit is None:
        return way
    places = _places_round(start, size)
    matrix, shift = fit(start, way(1.0))
    ways = (places @ matrix.T + shift - places).norm(dim=1)
    spacing = min(size) / FOLLOWERS_PER_SIDE
    places = places[_distance_to_still(places, size, mask) > ways.clamp(min=spacing)]

    def with_followers(share: float) -> torch.Tensor:
        points = way(share)
        matrix, shift = fit(start, points)
        return torch.cat([points, places @ matrix.T + shift])

    return with_followers


def _agreed_motion(start: torch.Tensor, end: torch.Tensor) -> LinearFit | None:
    """What fits the ways of points `(points, 2)` that move together; `None` if they don't, or if they pass each other.

    Two points say nothing against a similarity, nor three against an affine motion, which takes in whatever they do.
    Nor does a point beside one that stays, which what surrounds it is to do as well, and not to turn about it.
    """
    ways = (end - start).norm(dim=1)
    if len(ways) < 2 or (ways > AGREEMENT * ways.max()).sum() < 2:
        return None
    matrix, _ = fit_similarity(start, end)
    scale = torch.linalg.det(matrix).clamp(min=0).sqrt()
    if torch.atan2(matrix[1, 0], matrix[0, 0]).abs() >= MOST_TURN or not 1 / MOST_SCALE < scale < MOST_SCALE:
        return None
    for fit in (fit_similarity, fit_affine)[: 2 if len(start) > 3 else 1]:
        matrix, shift = fit(start, end)
        if (start @ matrix.T + shift - end).norm(dim=1).max() <= AGREEMENT * ways.mean():
            return fit
    return None


def _places_round(points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Places `(places, 2)` of a grid in the convex hull of points and round it, but for those at the points."""
    side = min(size)
    spacing = side / FOLLOWERS_PER_SIDE
    x, y = (torch.arange(spacing / 2, length, spacing, device=points.device) for length in (size[1], size[0]))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
    angles = torch.arange(DIRECTIONS, device=points.device) * 2 * math.pi / DIRECTIONS
    directions = torch.stack([angles.cos(), angles.sin()])
    outside = (places @ directions - (points @ directions).amax(dim=0)).amax(dim=1)  # how far from the hull
    apart = torch.cdist(places, points).amin(dim=1) > spacing / 2
    return places[(outside <= FOLLOWING * side) & apart]


def _distance_to_still(places: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None) -> torch.Tensor:
    """`(places,)`: how far from places `(places, 2)` what may not change begins, beyond the picture or in it."""
    edges = places.new_tensor([size[1], size[0]]) - places
    distance = torch.cat([places + 1, edges], dim=1).amin(dim=1)
    if mask is None or not (mask > 0.5).any():
        return distance
    y, x = torch.nonzero(mask[0, 0] <= 0.5, as_tuple=True)
    if not len(x):
        return distance
    still = torch.stack([x, y], dim=-1).to(places)
    return torch.minimum(distance, torch.cdist(places, still).amin(dim=1))
