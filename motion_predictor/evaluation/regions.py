"""Where in a picture a predicted map is judged: what moves, and how far that is from the nearest handle."""

from __future__ import annotations

import itertools

import torch
from torch.nn.functional import avg_pool2d

LEAST_SHARE = 0.2  # of the longest true motion: what moves less is not judged
SURE_WITHIN = 8  # px of 128: motion is judged where most of the motion so near is known
BINS_AT_128 = (0.0, 8.0, 24.0, float("inf"))  # px from the nearest handle
BIN_TITLES = tuple(
    f"{low:g}-{high:g}" if high < float("inf") else f"over {low:g}" for low, high in itertools.pairwise(BINS_AT_128)
)


def moving_region(motion: torch.Tensor) -> torch.Tensor:
    """Pixels whose motion is longer than a fifth of the longest of their picture.

    Optical flow forward and flow back agree by chance here and there where nothing is to be seen, as in a sky. So
    motion counts only where most of what is around it is known too.

    Args:
        motion (`torch.Tensor` of shape `(batch, 2, height, width)`): NaN where it is not known.

    Returns:
        `torch.Tensor` of shape `(batch, height, width)`: bool; False where nothing is known.

    Example:
        >>> motion = torch.zeros(1, 2, 1, 4)
        >>> motion[0, 0, 0] = torch.tensor([10.0, 3.0, 1.0, float("nan")])
        >>> moving_region(motion).tolist()
        [[[True, True, False, False]]]
    """
    known = motion.isfinite().all(dim=1)
    reach = max(round(SURE_WITHIN * min(motion.shape[2:]) / 128), 1)
    around = avg_pool2d(known[:, None].float(), 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)[:, 0]
    sure = known & (around > 0.5)
    length = torch.where(sure, torch.nan_to_num(motion.norm(dim=1)), 0.0)
    return sure & (length > LEAST_SHARE * length.amax(dim=(1, 2), keepdim=True))


def distance_to_handles(handles: torch.Tensor, valid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """How far each pixel is from the nearest handle.

    Args:
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels.
        valid (`torch.Tensor` of shape `(batch, points)`): bool, False for padding.
        height (`int`): of the picture, in pixels.
        width (`int`): of the picture, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, height, width)`: in pixels of a picture with a short side of 128; infinite
        without handles.

    Example:
        >>> handles, valid = torch.tensor([[[30.0, 40.0], [0.0, 0.0]]]), torch.tensor([[True, False]])
        >>> distance_to_handles(handles, valid, 256, 256)[0, 0, 0]
        tensor(25.)
    """
    pixels = pixel_grid(height, width, handles.device).view(-1, 2)
    distance = (pixels[None, None] - handles[:, :, None].float()).norm(dim=-1)  # [B, N, H * W]
    nearest = torch.where(valid[..., None], distance, torch.inf).amin(dim=1)
    return nearest.view(-1, height, width) * (128 / min(height, width))


def pixel_grid(height: int, width: int, device: torch.device | str) -> torch.Tensor:
    """The places of all pixels, `(x, y)`.

    Args:
        height (`int`): of the picture, in pixels.
        width (`int`): of the picture, in pixels.
        device (`torch.device` or `str`): of the answer.

    Returns:
        `torch.Tensor` of shape `(height, width, 2)`: float32.

    Example:
        >>> pixel_grid(2, 3, "cpu")[1, 2].tolist()
        [2.0, 1.0]
    """
    x, y = (torch.arange(length, device=device, dtype=torch.float32) for length in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
