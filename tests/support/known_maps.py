"""Whole maps that were measured, of which all figures can be told by hand."""

from __future__ import annotations

import numpy as np

from motion_predictor.evaluation.maps import Maps


def make_maps(samples: int = 8, pixels: int = 30, **wholes: float) -> Maps:
    """Samples from a video each, the n-th of which goes n + 1 pixels right; maps go a share of that."""
    sample = np.repeat(np.arange(samples), pixels)
    whole = np.stack([sample + 1.0, np.zeros(len(sample))], axis=1)
    shares = {"it, rolled out": 0.5, "zero flow": 0.0, "spline": 0.8, "rigid": 1.0, "affine": 1.2} | wholes
    return Maps(
        video=np.arange(samples),
        handles=np.array([1, 2, 3, 7])[np.arange(samples) % 4],
        number=100 + np.arange(samples),
        sample=sample,
        distance=np.tile(np.linspace(0.5, 29.5, pixels), samples),
        step=0.1 * whole,
        whole=whole,
        steps={"it": 0.05 * whole},
        wholes={name: share * whole for name, share in shares.items()},
        bend=np.zeros(0),
        bend_video=np.zeros(0, dtype=int),
        bends={"it": np.zeros(0)},
    )
