"""What a predicted map is measured against: maps that know the handles and the mask, and nothing of the picture."""

from __future__ import annotations

import torch

from ..data.samples import MotionSample
from ..spline import spline_flow
from .regions import pixel_grid

SPLINE, RIGID, AFFINE = "spline", "rigid", "affine"
LEAST_SPREAD = 0.25  # of handles across the line that fits them best, in shares of that along it


def reference_maps(batch: MotionSample) -> dict[str, torch.Tensor]:
    """Maps of the whole way that take the handles to their targets.

    Args:
        batch (`MotionSample`): samples with a leading dimension.

    Returns:
        `dict[str, torch.Tensor]`: `[B, 2, H, W]` in pixels for each of

        - `"spline"`: a thin-plate spline through the handles, and through pins at the border of the mask;
        - `"rigid"`: the turn and shift that fits all handles best, inside the mask; a shift for a single handle;
        - `"affine"`: the affine motion that fits them best, inside the mask; a turn, shift and growth for two handles
            or for such as lie on a line, a shift for a single one.
    """
    height, width = batch.image.shape[2:]
    maps = {SPLINE: spline_flow(batch.handles, batch.targets, height, width, mask=batch.mask, valid=batch.valid)}
    pixels = pixel_grid(height, width, batch.handles.device)
    for name, fit in ((RIGID, fit_rigid), (AFFINE, fit_affine)):
        flows = []
        for handles, targets, valid in zip(batch.handles, batch.targets, batch.valid, strict=True):
            matrix, shift = fit(handles[valid], targets[valid])
            flows.append((pixels @ matrix.T + shift - pixels).permute(2, 0, 1))
        maps[name] = torch.stack(flows) * batch.mask
    return maps


def fit_rigid(handles: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The turn and shift that bring handles nearest to their targets, by least squares.

    Args:
        handles (`torch.Tensor` of shape `(points, 2)`): one or more.
        targets (`torch.Tensor` of shape `(points, 2)`): of the handles.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: matrix `[2, 2]` and shift `[2]`: `targets ~ handles @ matrix.T + shift`.

    Example:
        >>> matrix, shift = fit_rigid(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> (torch.tensor([4.0, 0.0]) @ matrix.T + shift).tolist()
        [1.0, 4.0]
    """
    matrix = _similarity(handles, targets)
    size = torch.linalg.det(matrix).sqrt()
    return _with_shift(matrix / size if size > 0 else torch.eye(2).to(matrix), handles, targets)


def fit_affine(handles: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine motion that brings handles nearest to their targets; a similarity unless they span the plane.

    Args:
        handles (`torch.Tensor` of shape `(points, 2)`): one or more.
        targets (`torch.Tensor` of shape `(points, 2)`): of the handles.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: matrix `[2, 2]` and shift `[2]`: `targets ~ handles @ matrix.T + shift`.

    Example:
        >>> handles = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> matrix, shift = fit_affine(handles, handles * torch.tensor([2.0, 1.0]) + 1)
        >>> (torch.tensor([3.0, 3.0]) @ matrix.T + shift).round(decimals=4).tolist()
        [7.0, 4.0]
    """
    centred = handles - handles.mean(dim=0)
    along, across = torch.linalg.svdvals(centred)[:2] if len(handles) > 2 else (1.0, 0.0)
    if across < LEAST_SPREAD * along or along == 0:
        return _with_shift(_similarity(handles, targets), handles, targets)
    matrix = torch.linalg.lstsq(centred, targets - targets.mean(dim=0)).solution.T
    return _with_shift(matrix, handles, targets)


def _similarity(handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The turn and growth `[2, 2]` of points about their middle; none for a single place."""
    here, there = handles - handles.mean(dim=0), targets - targets.mean(dim=0)
    extent = here.square().sum()
    if extent == 0:
        return torch.eye(2).to(handles)
    cosine = (here * there).sum() / extent
    sine = (here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]).sum() / extent
    return torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])


def _with_shift(
    matrix: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return matrix, targets.mean(dim=0) - handles.mean(dim=0) @ matrix.T
