"""Motions of a plane that fit what handles do: rigid and affine ones, and their flow.

All points are `(x, y)`, x to the right, y down, in pixels, with integers at pixel *centres*.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAST_SPREAD = 0.25  # of handles across the line that fits them best, in shares of that along it

LinearFit = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From handles and targets, `(points, 2)` each, to a matrix `[2, 2]` and a shift `[2]`."""


def linear_flow(
    fit: LinearFit,
    handles: torch.Tensor,
    targets: torch.Tensor,
    height: int,
    width: int,
    *,
    mask: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """The flow of the motion that fits the handles that move, where the picture may change.

    Args:
        fit (`LinearFit`): [`fit_rigid`], [`fit_similarity`] or [`fit_affine`].
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        targets (`torch.Tensor` of shape `(batch, points, 2)`): in pixels; those of a static point are its handle.
        height (`int`): of the flow, in pixels.
        width (`int`): of the flow, in pixels.
        mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): 1 where the picture may change.
        valid (`torch.Tensor` of shape `(batch, points)`, *optional*): bool, False for the padding of a batch.

    Returns:
        `torch.Tensor` of shape `(batch, 2, height, width)`: float32, in pixels; zero outside the mask, and where no
        handle moves.

    Example:
        >>> handle, target = torch.tensor([[[2.0, 2.0]]]), torch.tensor([[[5.0, 1.0]]])
        >>> linear_flow(fit_rigid, handle, target, 4, 4)[0, :, 0, 0]
        tensor([ 3., -1.])
    """
    x = torch.arange(width, dtype=torch.float32, device=handles.device)
    y = torch.arange(height, dtype=torch.float32, device=handles.device)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    moving = (handles != targets).any(dim=-1)
    moving = moving if valid is None else moving & valid
    flows = []
    for here, there, chosen in zip(handles.float(), targets.float(), moving, strict=True):
        if not chosen.any():
            flows.append(torch.zeros(2, height, width, device=handles.device))
            continue
        matrix, shift = fit(here[chosen], there[chosen])
        flows.append((pixels @ matrix.T + shift - pixels).permute(2, 0, 1))
    flow = torch.stack(flows)
    return flow if mask is None else flow * (mask > 0.5).to(flow)


def fit_similarity(handles: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The turn, growth and shift that bring handles nearest to their targets, by least squares.

    Args:
        handles (`torch.Tensor` of shape `(points, 2)`): one or more.
        targets (`torch.Tensor` of shape `(points, 2)`): of the handles.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: matrix `[2, 2]` and shift `[2]`: `targets ~ handles @ matrix.T + shift`.

    Example:
        >>> handles, targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 6.0]])
        >>> matrix, shift = fit_similarity(handles, targets)
        >>> (torch.tensor([4.0, 0.0]) @ matrix.T + shift).tolist()
        [1.0, 12.0]
    """
    return _with_shift(_similarity(handles, targets), handles, targets)


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
        return fit_similarity(handles, targets)
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
