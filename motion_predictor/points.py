"""Points and their steps: scaling, reading a flow, the guard, and Eq. 4 (DynaDrag, arXiv 2601.00542, Sec. 3.4).

All points are `(x, y)`, x to the right, y down, in pixels, with integers at pixel *centres*: a picture of width `W`
covers x from -0.5 to W - 0.5. Points stay fractional.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from .choices import MOTION_GUARDS
from .common.checks import check_choice, got

Points = Sequence[Sequence[float]] | np.ndarray | torch.Tensor
"""Points as users give them: anything of shape `(points, 2)`."""

# A step shorter than this many pixels does not move anything: what rounding leaves of a step that was all backwards.
ZERO_STEP = 1e-3


def scale_points(points: torch.Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> torch.Tensor:
    """Carry points from one pixel grid to another that covers the same picture.

    Per axis `x -> (x + 0.5) * to / from - 0.5`: the edges of the picture are matched, not the centres of its outermost
    pixels, as image resizing does without `align_corners`.

    Args:
        points (`torch.Tensor` of shape `(..., 2)`): in pixels of the grid of `from_size`.
        from_size (`tuple[int, int]`): `(height, width)` of the grid that the points are in.
        to_size (`tuple[int, int]`): `(height, width)` of the grid that they are wanted in.

    Returns:
        `torch.Tensor` of shape `(..., 2)`: float32, in pixels of the grid of `to_size`.

    Raises:
        ValueError: if `points` does not end in a dimension of 2 or a size is not positive.

    Example:
        >>> scale_points(torch.tensor([[0.0, 0.0], [31.0, 31.0]]), (32, 32), (16, 16))
        tensor([[-0.2500, -0.2500],
                [15.2500, 15.2500]])
    """
    _check_points("points", points)
    for name, size in (("from_size", from_size), ("to_size", to_size)):
        if min(size) < 1:
            raise ValueError(f"`{name}` must be a positive (height, width), got {got(tuple(size))}.")
    factors = points.new_tensor((to_size[1] / from_size[1], to_size[0] / from_size[0]), dtype=torch.float32)
    return (points.float() + 0.5) * factors - 0.5


def sample_flow(flow: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Read a flow field at fractional points, bilinearly; beyond the border the border's value holds.

    Args:
        flow (`torch.Tensor` of shape `(batch, 2, height, width)`): u to the right and v down, in any unit.
        points (`torch.Tensor` of shape `(batch, points, 2)`): in pixels of the flow's grid.

    Returns:
        `torch.Tensor` of shape `(batch, points, 2)`: float32, one flow vector per point, in the flow's own unit.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> flow = torch.tensor([[[[0.0, 4.0]], [[1.0, 1.0]]]])  # u rises from 0 to 4, v is 1
        >>> sample_flow(flow, torch.tensor([[[0.25, 0.0], [7.0, 0.0]]]))
        tensor([[[1., 1.],
                 [4., 1.]]])
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"`flow` must be of shape (batch, 2, height, width), got {got(flow)}.")
    if points.ndim != 3 or points.shape[0] != flow.shape[0] or points.shape[2] != 2:
        raise ValueError(f"`points` must be of shape ({flow.shape[0]}, points, 2), got {got(points)}.")
    height, width = flow.shape[-2:]
    x = points[..., 0].float().clamp(0, width - 1)
    y = points[..., 1].float().clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    values = flow.float().flatten(2)  # [B, 2, H * W]

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        index = (row * width + column)[:, None].expand(-1, 2, -1)
        return values.gather(2, index).transpose(1, 2)  # [B, N, 2]

    to_right, to_bottom = (x - left)[..., None], (y - top)[..., None]
    upper = torch.lerp(at(top, left), at(top, right), to_right)
    lower = torch.lerp(at(bottom, left), at(bottom, right), to_right)
    return torch.lerp(upper, lower, to_bottom)


def straight_step(handles: torch.Tensor, targets: torch.Tensor, remaining_iterations: int) -> torch.Tensor:
    """The step that reaches each target in a straight line, in equal steps, with the iterations that remain.

    Args:
        handles (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        remaining_iterations (`int`): the one at hand included; below 1 counts as 1.

    Returns:
        `torch.Tensor` of shape `(..., points, 2)`: float32 steps in pixels.

    Raises:
        ValueError: if the shapes differ or do not end in a dimension of 2.

    Example:
        >>> straight_step(torch.tensor([[0.0, 0.0]]), torch.tensor([[10.0, 5.0]]), remaining_iterations=5)
        tensor([[2., 1.]])
    """
    _check_same_points(handles=handles, targets=targets)
    return (targets.float() - handles.float()) / max(remaining_iterations, 1)


def is_wrong_way(step: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether steps lead away from their targets: a negative dot product with `target - handle`.

    DynaDrag, Sec. 11, names such predictions as the cause of its failures.

    Args:
        step (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        handles (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(..., points, 2)`): in pixels.

    Returns:
        `torch.Tensor` of shape `(..., points)`: bool. A zero step, a sideways step, and any step of a handle that has
        arrived are not wrong.

    Raises:
        ValueError: if the shapes differ or do not end in a dimension of 2.

    Example:
        >>> step = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> is_wrong_way(step, torch.zeros(2, 2), torch.tensor([[5.0, 5.0], [5.0, 5.0]]))
        tensor([False,  True])
    """
    _check_same_points(step=step, handles=handles, targets=targets)
    return (step.float() * (targets.float() - handles.float())).sum(dim=-1) < 0


def guard_step(
    step: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor, straight: torch.Tensor, guard: str
) -> torch.Tensor:
    """Keep predicted steps from passing their targets or leading away from them.

    - `"none"`: steps stay as predicted (the paper).
    - `"clamp"`: a step whose component along the displacement is at least its length lands on its target.
    - `"project"`: as `"clamp"`; and a wrong-way step loses its backward component, and a step shorter than `ZERO_STEP`
      (what is left of one that was all backwards, for instance) becomes the straight one.

    Args:
        step (`torch.Tensor` of shape `(..., points, 2)`): predicted steps, in pixels.
        handles (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        straight (`torch.Tensor` of shape `(..., points, 2)`): the steps to fall back on, in pixels: see
            `straight_step`.
        guard (`str`): one of `MOTION_GUARDS`.

    Returns:
        `torch.Tensor` of shape `(..., points, 2)`: float32 steps in pixels.

    Raises:
        ValueError: if a step is not finite, the shapes differ, or `guard` is unknown.

    Example:
        >>> handles, targets = torch.zeros(2, 2), torch.tensor([[4.0, 0.0], [4.0, 0.0]])
        >>> straight = straight_step(handles, targets, remaining_iterations=4)
        >>> guard_step(torch.tensor([[9.0, 3.0], [-2.0, 1.0]]), handles, targets, straight, "project")
        tensor([[4., 0.],
                [0., 1.]])
    """
    check_choice("guard", guard, MOTION_GUARDS)
    _check_same_points(step=step, handles=handles, targets=targets, straight=straight)
    step = step.float()
    if not torch.isfinite(step).all():
        bad = (~torch.isfinite(step)).any(dim=-1).nonzero().tolist()
        raise ValueError(f"`step` must be finite, got others at {got(bad)}.")
    if guard == "none":
        return step

    displacement = targets.float() - handles.float()
    along = (step * displacement).sum(dim=-1, keepdim=True)  # component along it, times the distance
    distance_squared = displacement.square().sum(dim=-1, keepdim=True)
    passes = along >= distance_squared
    if guard == "project":
        backward = displacement * (along / distance_squared.clamp(min=torch.finfo(torch.float32).tiny))
        step = torch.where(along < 0, step - backward, step)
        step = torch.where(step.norm(dim=-1, keepdim=True) < ZERO_STEP, straight.float(), step)
    return torch.where(passes, displacement, step)


def move_handles(handles: torch.Tensor, step: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Move handles by one step, `h^{k+1} = h^k + step` (Eq. 4), and keep them on the image.

    Args:
        handles (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        step (`torch.Tensor` of shape `(..., points, 2)`): in pixels.
        image_size (`tuple[int, int]`): `(height, width)` in pixels; handles are clamped to x in [0, width - 1], y in
            [0, height - 1].

    Returns:
        `torch.Tensor` of shape `(..., points, 2)`: float32, in pixels.

    Raises:
        ValueError: if the shapes differ, do not end in a dimension of 2, or `image_size` is not positive.

    Example:
        >>> move_handles(torch.tensor([[5.0, 5.0]]), torch.tensor([[0.4, 9.0]]), image_size=(10, 20))
        tensor([[5.4000, 9.0000]])
    """
    _check_same_points(handles=handles, step=step)
    height, width = image_size
    if min(height, width) < 1:
        raise ValueError(f"`image_size` must be a positive (height, width), got {got((height, width))}.")
    next_handles = handles.float() + step.float()
    return torch.stack((next_handles[..., 0].clamp(0, width - 1), next_handles[..., 1].clamp(0, height - 1)), dim=-1)


def distance_to_way(way: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """How far each pixel of a picture is from a way of straight lines, or from a single place.

    Args:
        way (`torch.Tensor` of shape `(corners, 2)`): (x, y) in pixels, one corner or more.
        size (`tuple[int, int]`): (height, width) of the picture.

    Returns:
        `torch.Tensor` of shape `(height, width)`: in pixels.

    Example:
        >>> distance_to_way(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), (2, 3)).tolist()
        [[0.0, 0.0, 1.0], [1.0, 1.0, 1.4142135381698608]]
    """
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).flatten(0, 1).to(way)
    nearest = (pixels - way[0]).norm(dim=-1)
    for begin, end in pairwise(way):
        along = (pixels - begin) @ (end - begin) / (end - begin).square().sum().clamp(min=1e-9)
        nearest = torch.minimum(nearest, (pixels - begin - along.clamp(0, 1)[:, None] * (end - begin)).norm(dim=-1))
    return nearest.unflatten(0, size)


def check_point_pairs(handles: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None) -> None:
    """Raise a ValueError unless handles and targets are alike, `[B, N, 2]`, and `valid` is `[B, N]` bool.

    Args:
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        valid (`torch.Tensor` of shape `(batch, points)` or `None`): bool, False for padding.

    Example:
        >>> check_point_pairs(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2), None)
        Traceback (most recent call last):
        ...
        ValueError: `targets` must be of the shape of `handles`, (1, 2, 2), got Tensor of shape (1, 3, 2).
    """
    if handles.ndim != 3 or handles.shape[2] != 2:
        raise ValueError(f"`handles` must be of shape (batch, points, 2), got {got(handles)}.")
    if targets.shape != handles.shape:
        raise ValueError(f"`targets` must be of the shape of `handles`, {tuple(handles.shape)}, got {got(targets)}.")
    if valid is not None and (valid.shape != handles.shape[:2] or valid.dtype != torch.bool):
        raise ValueError(
            f"`valid` must be of shape {tuple(handles.shape[:2])} and torch.bool, got {got(valid)} and {valid.dtype}."
        )


def check_inside(name: str, points: torch.Tensor, size: tuple[int, int], valid: torch.Tensor | None) -> None:
    """Raise a ValueError if a valid point of `[B, N, 2]` lies off the pixels of a grid of `(height, width)`.

    Args:
        name (`str`): of the argument, for the message.
        points (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        size (`tuple[int, int]`): `(height, width)` of the grid.
        valid (`torch.Tensor` of shape `(batch, points)` or `None`): bool, False for padding.

    Example:
        >>> check_inside("handles", torch.tensor([[[9.0, 2.0]]]), (4, 8), None)
        Traceback (most recent call last):
        ...
        ValueError: `handles` must have x in [-0.5, 7.5] and y in [-0.5, 3.5], got a point at (9.0, 2.0).
    """
    height, width = size
    x, y = points[..., 0], points[..., 1]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    if valid is not None:
        inside = inside | ~valid
    if not inside.all():
        outside = points[~inside][0].tolist()
        raise ValueError(
            f"`{name}` must have x in [-0.5, {width - 0.5}] and y in [-0.5, {height - 0.5}], "
            f"got a point at {tuple(outside)}."
        )


def _check_points(name: str, points: torch.Tensor) -> None:
    if points.ndim < 1 or points.shape[-1] != 2:
        raise ValueError(f"`{name}` must be of shape (..., 2), got {got(points)}.")


def _check_same_points(**named: torch.Tensor) -> None:
    (first_name, first), *others = named.items()
    _check_points(first_name, first)
    for name, points in others:
        if points.shape != first.shape:
            raise ValueError(
                f"`{name}` must be of the shape of `{first_name}`, {tuple(first.shape)}, got {got(points)}."
            )
