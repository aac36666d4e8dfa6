"""Pairs of smooth random pictures whose content moves to the right."""

from __future__ import annotations

import numpy as np
import torch

from dynadrag_pipeline.evaluation.pairs import EvaluationPair

SIDE = 64


def smooth_picture(seed: int) -> np.ndarray:
    """`(64, 64, 3)` uint8."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (255 * fine[0].permute(1, 2, 0)).byte().numpy()


def make_pair(number: int, way: float = 8.0) -> EvaluationPair:
    """Two handles, and a mask that holds them and their targets."""
    source = smooth_picture(number)
    target = np.roll(source, int(way), axis=1)
    handles = np.array([[20.0, 30.0], [30.0, 44.0]], dtype=np.float32)
    flow = np.zeros((SIDE, SIDE, 2), dtype=np.float32)
    flow[..., 0] = way
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[10:55] = True
    return EvaluationPair(f"{number:03d}", source, target, mask, handles, handles + np.float32([way, 0]), flow)
