"""Points as the functions of motion prediction take them."""

from __future__ import annotations

import torch


def points(*coordinates: tuple[float, float]) -> torch.Tensor:
    """A tensor of shape `(1, points, 2)` from (x, y) pairs."""
    return torch.tensor([coordinates], dtype=torch.float32)
