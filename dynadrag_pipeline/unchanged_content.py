"""Give the unchanged parts of an edited picture back what resizing, autoencoder and inversion took of them.

Not of the paper: it compares decoded pictures, and a person compares with the photograph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .picture import resize_picture

CHANGE_TOLERANCE = 0.06
SPREAD_AT_512 = 12.0


def restore_unchanged(source: torch.Tensor, edited: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Add what the reconstruction lacks of the source, wherever the edit left the reconstruction as it was.

    The edited and the unedited latent are denoised alike, so where their pictures agree, nothing was edited, and what
    both lack of the source is lost detail. Where they differ, the detail would be in the wrong place, and is left out;
    between, it fades by `exp(-(change / 0.06)^2)`, the change being the root of the mean square round a pixel.

    Args:
        source (`torch.Tensor` of shape `(1, 3, height, width)`): the input in [0, 1], at its own size.
        edited (`torch.Tensor` of shape `(1, 3, h, w)`): the edited picture, at the size of the edit.
        reconstruction (`torch.Tensor`, same shape): the picture inverted and denoised without an edit.

    Returns:
        `torch.Tensor` of shape `(1, 3, height, width)`, in [0, 1]: the source itself where nothing changed.

    Example:
        >>> source, reconstruction = torch.rand(1, 3, 256, 256), torch.full((1, 3, 128, 128), 0.5)
        >>> bool(torch.allclose(restore_unchanged(source, reconstruction, reconstruction), source, atol=1e-6))
        True
    """
    size = (source.shape[-2], source.shape[-1])
    change = _smoothed((edited - reconstruction).square().mean(dim=1, keepdim=True)).sqrt()
    share = resize_picture(torch.exp(-((change / CHANGE_TOLERANCE) ** 2)), size)
    lost = source.to(edited.device) - resize_picture(reconstruction, size)
    return (resize_picture(edited, size) + share * lost).clamp(0, 1)


def _smoothed(maps: torch.Tensor) -> torch.Tensor:
    """Means over neighbourhoods: two boxes have the spread of a Gaussian, and the border only what is there."""
    spread = SPREAD_AT_512 * min(maps.shape[-2:]) / 512
    radius = round((math.sqrt(6 * spread**2 + 1) - 1) / 2)
    for _ in range(2):
        maps = F.avg_pool2d(maps, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return maps
