"""Where content is, by the features of the UNet: what was round a handle, found again near a place."""

from __future__ import annotations

import torch

from .motion_supervision import sample_patches


def content_offsets(features: torch.Tensor, patches: torch.Tensor, places: torch.Tensor, reach: int) -> torch.Tensor:
    """How far from `places` the content of patches is found, among all whole cells within a reach.

    Args:
        features (`torch.Tensor` of shape `(1, channels, height, width)`): F(z_t^k) on the supervision grid.
        patches (`torch.Tensor` of shape `(points, channels, 2 r + 1, 2 r + 1)`): what is looked for.
        places (`torch.Tensor` of shape `(points, 2)`): where it should be, in cells.
        reach (`int`): cells to each side.

    Returns:
        `torch.Tensor` of shape `(points, 2)`: (x, y) in cells, of the least L1 distance.
    """
    radius = patches.shape[-1] // 2
    steps = torch.arange(-reach, reach + 1, device=places.device, dtype=places.dtype)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    offsets = torch.stack([dx, dy], dim=-1).view(-1, 2)
    offsets = offsets[offsets.norm(dim=1).argsort(stable=True)]  # the nearest of equals
    distances = torch.stack(
        [(sample_patches(features, places + offset, radius) - patches).abs().mean(dim=(1, 2, 3)) for offset in offsets]
    )
    return offsets[distances.argmin(dim=0)]
