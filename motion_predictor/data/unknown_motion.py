"""What to take for the motion of pixels that were lost from sight: hidden, or out of the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import avg_pool2d


def as_near_by(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Say of what is not known what most of what is known near by says; if nothing is known, no.

    Args:
        values (`np.ndarray` of shape `(height, width)`): bool.
        known (`np.ndarray` of shape `(height, width)`): bool.

    Returns:
        `np.ndarray` of shape `(height, width)`: bool; `values` where they are known.
    """
    told = torch.from_numpy(np.stack([values & known, known]))[None].float()
    filled, missing, radius = torch.from_numpy(values & known), torch.from_numpy(~known), 1
    while missing.any() and known.any():
        share, weight = avg_pool2d(told, 2 * radius + 1, stride=1, padding=radius)[0]
        found = missing & (weight > 0)
        filled[found] = share[found] > weight[found] / 2
        missing &= ~found
        radius *= 2
    return filled.numpy()
