"""The ways to edit that are compared: sources of motion on one engine, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..motion.names import MOTION_NAMES
from ..motion.predicted import PredictedMotion
from ..motion.source import MotionSource
from .method_names import NO_EDIT, TRUE_MOTION
from .pairs import EvaluationPair

MOTION_SHARE = 10  # a step of the true motion is a tenth of the displacement, as in the predictor's labels


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name (`str`): in tables.
        motion (`Callable`, *optional*): the source of motion for a pair, or its name; `None` leaves the source alone.
    """

    name: str
    motion: Callable[[EvaluationPair], MotionSource | str] | None


class TrueFlow:
    """Answers with a tenth of the true motion, whatever the picture has become.

    Args:
        flow (`np.ndarray` of shape `(height, width, 2)`): from source to target.
    """

    def __init__(self, flow: np.ndarray) -> None:
        self.flow = torch.from_numpy(np.nan_to_num(flow)).permute(2, 0, 1)[None] / MOTION_SHARE

    def predict_flow(self, image: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(1, 2, height, width)` at the size of a picture, in its pixels."""
        size = (image.shape[-2], image.shape[-1])
        factors = self.flow.new_tensor([size[1] / self.flow.shape[-1], size[0] / self.flow.shape[-2]])
        resized = torch.nn.functional.interpolate(self.flow, size=size, mode="bilinear", align_corners=False)
        return (factors[:, None, None] * resized).to(image)


def _named(name: str) -> Method:
    return Method(name, lambda pair: name)


METHODS = {
    each.name: each
    for each in (
        Method(NO_EDIT, None),
        *map(_named, MOTION_NAMES),
        Method(TRUE_MOTION, lambda pair: PredictedMotion(TrueFlow(pair.flow))),
    )
}
"""By name: no edit, every source of motion that has a name, and one that knows the true motion."""
