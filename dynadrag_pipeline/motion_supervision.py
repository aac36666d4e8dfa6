"""Motion supervision: pull the features at each handle to where it should move (Sec. 3.3, Eq. 2)."""

from __future__ import annotations

import torch

from .repeatable import sample_bilinear
from .settings import ChannelReduction


def sample_patches(features: torch.Tensor, points: torch.Tensor, radius: int) -> torch.Tensor:
    """Bilinear samples of a feature map on the (2 r + 1) x (2 r + 1) neighbourhood of each point, Omega_r of Eq. 2.

    Handles are fractional from the first step on, and a patch may hang over the border, where the map's edge is
    repeated.

    Args:
        features (`torch.Tensor` of shape `(1, channels, height, width)`): F(z_t) on the supervision grid.
        points (`torch.Tensor` of shape `(points, 2)`): (x, y) in cells of that grid, whole numbers are centres.
        radius (`int`): r_1; 0 samples the points alone.

    Returns:
        `torch.Tensor` of shape `(points, channels, 2 * radius + 1, 2 * radius + 1)`.

    Example:
        >>> column_numbers = torch.arange(4.0).expand(1, 1, 3, 4)
        >>> sample_patches(column_numbers, torch.tensor([[1.5, 1.0]]), radius=1)[0, 0, 0]
        tensor([0.5000, 1.5000, 2.5000])
    """
    offsets = torch.arange(-radius, radius + 1, device=points.device, dtype=points.dtype)
    return sample_bilinear(features, points[:, :1] + offsets, points[:, 1:] + offsets)


def motion_supervision_loss(
    features: torch.Tensor,
    source_patches: torch.Tensor,
    destinations: torch.Tensor,
    radius: int = 1,
    channel_reduction: ChannelReduction = "mean",
) -> torch.Tensor:
    """First term of Eq. 2: the L1 distance of the patches at h^{k+1} to the (constant) patches at h^k.

    Args:
        features (`torch.Tensor` of shape `(1, channels, height, width)`): F(z_t^k); carries the gradient.
        source_patches (`torch.Tensor` of shape `(points, channels, 2r+1, 2r+1)`):
            sg(F) round h^k, from [`sample_patches`]; detached here.
        destinations (`torch.Tensor` of shape `(points, 2)`): h^{k+1} in cells of the grid of `features`.
        radius (`int`, defaults to 1): r_1.
        channel_reduction (`str`, defaults to `"mean"`):
            `"mean"` over the channels, as DragDiffusion computes it; `"sum"` is Eq. 2 to the letter, which weighs the
            term heavier against the mask by the number of channels. The patch and the points are always summed.

    Returns:
        `torch.Tensor`: a scalar, float32.
    """
    difference = (sample_patches(features, destinations, radius) - source_patches.detach()).abs()
    per_cell = difference.mean(dim=1) if channel_reduction == "mean" else difference.sum(dim=1)
    return per_cell.sum()


def mask_loss(previous: torch.Tensor, reference_previous: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Second term of Eq. 2, without its weight lambda: what changes outside the mask, one denoising step on.

    Args:
        previous (`torch.Tensor` of shape `(1, channels, height, width)`): z_{t-1}^k, one DDIM step from z_t^k.
        reference_previous (`torch.Tensor`, same shape): z_{t-1}^0 of the unedited latent; detached here.
        mask (`torch.Tensor` of shape `(height, width)`): M on the latent's grid, 1 = may change.

    Returns:
        `torch.Tensor`: a scalar, float32.
    """
    return ((previous.float() - reference_previous.detach().float()) * (1 - mask)).abs().sum()
