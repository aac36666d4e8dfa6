"""MD, the mean distance of dragged content to its targets, in the three protocols that go by that name.

All take DIFT features of Stable Diffusion 2.1 at t = 261, up-block 1, with 8 noises; figures of one protocol say
nothing of another's.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from motion_predictor.common.checks import check_choice

from ..dift import find_points

DistanceProtocol = Literal["dragdiffusion", "regiondrag", "masked"]

REGION_SIDE = 768  # RegionDrag resizes both pictures to a square of that
LEAST_REGION = 5.0  # pixels of its discs, at least


def mean_distance(
    protocol: DistanceProtocol,
    source: torch.Tensor,
    edited: torch.Tensor,
    handles: torch.Tensor,
    targets: torch.Tensor,
    size: tuple[int, int],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far from each target the content of its handle is; MD is the mean over all pairs of a benchmark.

    Args:
        protocol (`str`):
            `"dragdiffusion"`: the most similar place of the whole picture, in pixels of the source (Shi et al., 2023);
            `"regiondrag"`: the most similar place in discs round handle and target, of 1 / sqrt(2) of their distance
            and 5 px at least, in hundredths of width and height (Lu et al., 2024); it takes features of both pictures
            at 768 x 768. `"masked"`: m-MD, the most similar place inside the mask, in pixels.
        source, edited (`torch.Tensor` of shape `(1, channels, h, w)`): from [`dift_features`].
        handles, targets (`torch.Tensor` of shape `(points, 2)`): (x, y) in pixels of the source.
        size (`tuple[int, int]`): (height, width) of the source.
        mask (`torch.Tensor` of shape `(height, width)`, *optional*): bool, for `"masked"`.

    Returns:
        `torch.Tensor` of shape `(points,)`.

    Raises:
        ValueError: for an unknown protocol, or `"masked"` without a mask.

    Example:
        >>> places = torch.eye(4)[None, :, None, :]  # four places, each like itself alone
        >>> handle, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> mean_distance("dragdiffusion", places, places, handle, target, (1, 4))
        tensor([2.])
    """
    check_choice("protocol", protocol, get_args(DistanceProtocol))
    handles, targets = handles.float().trunc(), targets.float().trunc()  # as the protocols' code does
    windows = None
    if protocol == "regiondrag":
        windows = _discs(handles, targets, size)
    elif protocol == "masked":
        if mask is None:
            raise ValueError("`mask` must be given for the protocol 'masked', got None.")
        windows = mask.bool().expand(len(handles), *size)
    away = targets - find_points(source, edited, handles, size, windows).places
    if protocol == "regiondrag":
        away = 100 * away / away.new_tensor([size[1], size[0]])
    return away.norm(dim=-1)


def _discs(handles: torch.Tensor, targets: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(points, height, width)` bool: near a handle or its target."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).to(handles)
    radius = ((handles - targets).norm(dim=-1) / 2**0.5).clamp(min=LEAST_REGION)[:, None, None]
    near = [(pixels - points[:, None, None]).norm(dim=-1) < radius for points in (handles, targets)]
    return near[0] | near[1]
