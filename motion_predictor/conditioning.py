"""The maps that tell a motion predictor where handles are and should go (DynaDrag, arXiv 2601.00542, Sec. 3.2.1).

All points are `(x, y)`, x to the right, y down, in pixels, with integers at pixel *centres*: a picture of width `W`
covers x from -0.5 to W - 0.5. Points stay fractional; only `rasterize_points` rounds them.
"""

from __future__ import annotations

import torch

from .choices import DELTA_CONVENTIONS, DELTA_PAINTS
from .common.checks import check_choice, check_number
from .points import check_inside, check_point_pairs
from .spline import spline_flow

SPREAD_RESOLUTION = 32  # places along the short side that a spread delta is computed in


def rasterize_points(
    handles: torch.Tensor,
    targets: torch.Tensor,
    height: int,
    width: int,
    *,
    radius: float = 4.0,
    delta_paint: str = "pixel",
    delta_convention: str = "handle_minus_target",
    delta_scale: float = 1.0,
    valid: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw handles and targets as the delta map and the heatmap of DynaDrag, Sec. 3.2.1: three of the six inputs.

    The delta map holds `handle - target` at each handle and zero elsewhere; where several handles are on one pixel it
    holds their mean. Of discs that overlap, a pixel takes the delta of the handle nearest to it, so that a neighbour
    does not spoil the delta at a handle. The heatmap is 1 within `radius` of any handle and 0 elsewhere. This is the
    only place where points are rounded (to the nearest pixel centre, halves upwards); the deltas are those of the
    points as given.

    Args:
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels, inside the grid.
        targets (`torch.Tensor` of shape `(batch, points, 2)`): in pixels; may lie outside.
        height (`int`): of the maps, in pixels.
        width (`int`): of the maps, in pixels.
        radius (`float`, *optional*, defaults to 4.0): of the discs, in pixels; a pixel belongs to a disc if `dx^2 +
            dy^2 <= radius^2`.
        delta_paint (`str`, *optional*, defaults to `"pixel"`): `"pixel"` (the paper) paints a delta on the handle's
            own pixel, `"disc"` on its whole disc, `"spread"` everywhere: the spline through the deltas, see
            [`spline_flow`].
        delta_convention (`str`, *optional*, defaults to `"handle_minus_target"`): `"handle_minus_target"` (the paper)
            or `"target_minus_handle"`.
        delta_scale (`float`, *optional*, defaults to 1.0): factor on the deltas.
        valid (`torch.Tensor` of shape `(batch, points)`, *optional*): bool, False for the padding of a batch whose
            pictures have different numbers of points.
        mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): 1 where the picture may change; only
            what is spread looks at it.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the delta map of shape `(batch, 2, height, width)`, x then y, in pixels
        times `delta_scale`, and the heatmap of shape `(batch, 1, height, width)` of 0 and 1; float32, on the device of
        `handles`.

    Raises:
        ValueError: for shapes that do not fit, unknown names, a negative radius, or a valid handle outside the grid.

    Example:
        >>> handles, targets = torch.tensor([[[1.2, 0.0]]]), torch.tensor([[[3.2, 1.0]]])
        >>> delta_map, heatmap = rasterize_points(handles, targets, height=2, width=4, radius=1.0)
        >>> delta_map[0, 0]
        tensor([[ 0., -2.,  0.,  0.],
                [ 0.,  0.,  0.,  0.]])
        >>> heatmap[0, 0]
        tensor([[1., 1., 1., 0.],
                [0., 1., 0., 0.]])
    """
    check_point_pairs(handles, targets, valid)
    check_inside("handles", handles, (height, width), valid)
    check_choice("delta_paint", delta_paint, DELTA_PAINTS)
    check_choice("delta_convention", delta_convention, DELTA_CONVENTIONS)
    check_number("radius", radius, least=0)

    handles, targets = handles.float(), targets.float()
    limits = handles.new_tensor((width - 1, height - 1))
    centres = torch.floor(handles + 0.5).clamp(min=torch.zeros_like(limits), max=limits)  # [B, N, 2]
    columns = torch.arange(width, device=handles.device)
    rows = torch.arange(height, device=handles.device)
    dx_squared = (columns - centres[..., :1]).square()[:, :, None, :]  # [B, N, 1, W]
    dy_squared = (rows - centres[..., 1:]).square()[:, :, :, None]  # [B, N, H, 1]
    squared = dx_squared + dy_squared  # [B, N, H, W]
    deltas = handles - targets if delta_convention == "handle_minus_target" else targets - handles
    if valid is not None:
        squared = squared.masked_fill(~valid[..., None, None], torch.inf)
        deltas = torch.where(valid[..., None], deltas, torch.zeros_like(deltas))
    discs = squared <= radius**2
    heatmap = discs.any(dim=1, keepdim=True).float()
    if delta_paint == "spread":
        sign = -1 if delta_convention == "handle_minus_target" else 1
        spread = spline_flow(handles, targets, height, width, mask=mask, valid=valid, resolution=SPREAD_RESOLUTION)
        return spread * (sign * delta_scale), heatmap
    nearest = discs & (squared == squared.amin(dim=1, keepdim=True))
    painted = nearest if delta_paint == "disc" else squared == 0

    count = painted.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1, H, W]
    delta_map = (painted[:, :, None] * deltas[..., None, None]).sum(dim=1) / count * delta_scale
    return delta_map, heatmap
