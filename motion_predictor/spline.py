"""A smooth flow through a few points: a thin-plate spline (Bookstein 1989), pinned down where nothing may change.

All points are `(x, y)`, x to the right, y down, in pixels, with integers at pixel *centres*.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate, max_pool2d, pad

from .common.checks import got
from .points import check_point_pairs, scale_points

PINS_ACROSS = 16  # pins lie as far apart as a part of so many of the short side, and further off twice as far
STIFFNESS = 1e-6  # added to the spline's diagonal, so that two handles in one place do not tear the picture
LARGEST_SIDE_OF_PINS = 128  # pixels: a larger mask is made smaller before pins are looked for


def spline_flow(
    handles: torch.Tensor,
    targets: torch.Tensor,
    height: int,
    width: int,
    *,
    mask: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
    resolution: int = 64,
) -> torch.Tensor:
    """The smoothest flow that takes each handle to its target and leaves what may not change where it is.

    A thin-plate spline through the displacements of the handles, and through pins without any: along the border of
    the mask and, fewer, beyond it; along the border of the picture where there is no mask or where it is empty, which
    means that everything may change. With pins all round, it is well-posed for one handle, and for handles on a line.

    Args:
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(batch, points, 2)`): in pixels; those of a static point are its handle.
        height (`int`): of the flow, in pixels.
        width (`int`): of the flow, in pixels.
        mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): 1 where the picture may change.
        valid (`torch.Tensor` of shape `(batch, points)`, *optional*): bool, False for the padding of a batch.
        resolution (`int`, *optional*, defaults to 64): the spline is read at so many places along the short side;
            between them the flow is bicubic.

    Returns:
        `torch.Tensor` of shape `(batch, 2, height, width)`: float32, in pixels, u to the right, v down; zero where a
        sample has no valid points.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> handle, target = torch.tensor([[[20.0, 32.0]]]), torch.tensor([[[26.0, 32.0]]])
        >>> flow = spline_flow(handle, target, 64, 64)
        >>> flow[0, :, 32, 20].round(decimals=1)
        tensor([6., 0.])
        >>> bool(flow[0, :, 0].abs().max() < 0.3)  # at the border
        True
    """
    check_point_pairs(handles, targets, valid)
    if mask is not None and mask.shape != (len(handles), 1, height, width):
        raise ValueError(f"`mask` must be of shape ({len(handles)}, 1, {height}, {width}), got {got(mask)}.")
    flows = []
    for index, (here, there) in enumerate(zip(handles, targets, strict=True)):
        chosen = slice(None) if valid is None else valid[index]
        pins = _pins(height, width, None if mask is None else mask[index : index + 1].float().cpu())
        flows.append(_flow_of_one(here[chosen].cpu(), there[chosen].cpu(), pins, height, width, resolution))
    return torch.stack(flows).to(device=handles.device, dtype=torch.float32)


def _flow_of_one(
    handles: torch.Tensor, targets: torch.Tensor, pins: torch.Tensor, height: int, width: int, resolution: int
) -> torch.Tensor:
    if len(handles) == 0:
        return torch.zeros(2, height, width)
    side = min(height, width)
    # A pin beside a handle would crease the picture.
    pins = pins[torch.cdist(pins, handles.float()).amin(dim=1) > side / PINS_ACROSS / 2]
    points = torch.cat([handles, pins]).double()
    displacements = torch.cat([targets - handles, torch.zeros(len(pins), 2)]).double()
    rows, columns = (min(max(round(resolution * length / side), 1), length) for length in (height, width))
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows - 0.5
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns - 0.5
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
    # In sides of the picture: the spline is the same whatever the unit, its equations are better conditioned.
    flow = _thin_plate(points / side, displacements, places / side)
    return interpolate(flow.T.view(1, 2, rows, columns).float(), size=(height, width), mode="bicubic")[0]


def _thin_plate(points: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Values `(wanted, 2)` of the thin-plate spline through `values` `(points, 2)` at `points` `(points, 2)`."""
    count = len(points)
    plane = torch.cat([torch.ones(count, 1, dtype=points.dtype), points], dim=1)
    system = torch.zeros(count + 3, count + 3, dtype=points.dtype)
    system[:count, :count] = _kernel(points, points) + STIFFNESS * torch.eye(count, dtype=points.dtype)
    system[:count, count:] = plane
    system[count:, :count] = plane.T
    right = torch.cat([values, torch.zeros(3, 2, dtype=points.dtype)])
    weights = torch.linalg.solve(system, right)
    ones = torch.ones(len(wanted), 1, dtype=points.dtype)
    return _kernel(wanted, points) @ weights[:count] + torch.cat([ones, wanted], dim=1) @ weights[count:]


def _kernel(at: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """r^2 log r of all distances, `(at, points)`."""
    squared = (at[:, None] - points).square().sum(dim=-1)
    return squared * squared.clamp(min=1e-20).log() / 2


def _pins(height: int, width: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Points `(pins, 2)` that stay: one in each cell that the still part's border runs through, and fewer beyond."""
    shrink = min(LARGEST_SIDE_OF_PINS / min(height, width), 1.0)
    rows, columns = max(round(height * shrink), 1), max(round(width * shrink), 1)
    may_change = torch.ones(1, 1, rows, columns)
    if mask is not None and (mask > 0.5).any():
        may_change = (interpolate(mask, size=(rows, columns), mode="area") > 0.5).float()
    spacing = max(min(rows, columns) // PINS_ACROSS, 1)
    # What lies beyond the picture stays: a rim of pixels about it, so that a mask up to its edge is pinned there too.
    may_change = pad(may_change, (1, 1, 1, 1))
    beside = (max_pool2d(may_change, 3, stride=1, padding=1) > 0) & (may_change == 0)
    around = max_pool2d(may_change, 2 * spacing + 1, stride=1, padding=spacing)
    pins = torch.cat([_one_in_each_cell(beside[0, 0], spacing), _one_in_each_cell(around[0, 0] == 0, 2 * spacing)])
    return scale_points(pins - 1, (rows, columns), (height, width))


def _one_in_each_cell(chosen: torch.Tensor, spacing: int) -> torch.Tensor:
    """The first chosen pixel `(x, y)` in each cell of `spacing` x `spacing` pixels: `(cells, 2)` float32."""
    y, x = torch.nonzero(chosen, as_tuple=True)
    cell = (y // spacing) * (chosen.shape[1] // spacing + 1) + x // spacing
    order = torch.argsort(cell, stable=True)
    cell = cell[order]
    first = torch.ones_like(cell, dtype=torch.bool)
    first[1:] = cell[1:] != cell[:-1]
    kept = order[first]
    return torch.stack([x[kept], y[kept]], dim=-1).float()
