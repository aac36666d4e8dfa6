"""What a predicted map is measured against: maps that know the handles and the mask, and nothing of the picture."""

from __future__ import annotations

import torch

from ..data.samples import MotionSample
from ..linear_motion import fit_affine, fit_rigid, linear_flow
from ..spline import spline_flow

SPLINE, RIGID, AFFINE = "spline", "rigid", "affine"


def reference_maps(batch: MotionSample) -> dict[str, torch.Tensor]:
    """Maps of the whole way that take the handles to their targets.

    Args:
        batch (`MotionSample`): samples with a leading dimension.

    Returns:
        `dict[str, torch.Tensor]`: `[B, 2, H, W]` in pixels for each of

        - `"spline"`: a thin-plate spline through the handles, and through pins at the border of the mask;
        - `"rigid"`: the turn and shift that fits all handles best, inside the mask; a shift for a single handle;
        - `"affine"`: the affine motion that fits them best, inside the mask; a turn, shift and growth for two handles
            or for such as lie on a line, a shift for a single one.
    """
    height, width = batch.image.shape[2:]
    maps = {SPLINE: spline_flow(batch.handles, batch.targets, height, width, mask=batch.mask, valid=batch.valid)}
    for name, fit in ((RIGID, fit_rigid), (AFFINE, fit_affine)):
        maps[name] = linear_flow(fit, batch.handles, batch.targets, height, width, mask=batch.mask, valid=batch.valid)
    return maps
