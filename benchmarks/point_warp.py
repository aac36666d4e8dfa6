"""The simplest drag there is: the source, bent so that its handles come to their targets. No model takes part."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from dynadrag_pipeline.evaluation.pairs import EvaluationPair

PIN_SPACING = 8  # pixels between the points outside the mask that are pinned down


def warp_by_points(pair: EvaluationPair) -> np.ndarray:
    """The source `[S, S, 3]` uint8 of a pair, bent by a thin-plate spline through its points.

    What is outside the mask is pinned down; where the spline would look beyond the picture, its border is repeated.
    """
    side = len(pair.source)
    y, x = np.mgrid[:side, :side]
    pins = np.argwhere(~pair.mask[PIN_SPACING // 2 :: PIN_SPACING, PIN_SPACING // 2 :: PIN_SPACING])
    pins = PIN_SPACING * pins[:, ::-1] + PIN_SPACING // 2
    # One of two points that come to the same place would make the spline unsolvable.
    places, first = np.unique(np.concatenate([pair.targets, pins]), axis=0, return_index=True)
    shifts = np.concatenate([pair.handles - pair.targets, np.zeros(pins.shape)])[first]
    enough = len(places) >= 3  # for the plane that is part of a thin-plate spline
    kernel, degree = ("thin_plate_spline", 1) if enough else ("linear", 0)
    spline = RBFInterpolator(places, shifts, kernel=kernel, degree=degree)
    from_x, from_y = spline(np.stack([x, y], axis=-1).reshape(-1, 2)).T.reshape(2, side, side) + np.stack([x, y])
    channels = [map_coordinates(pair.source[..., c].astype(float), [from_y, from_x], mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)
