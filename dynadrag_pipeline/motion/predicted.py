"""The paper's source of motion: a network predicts the next step of each handle from the picture (Sec. 3.2.1)."""

from __future__ import annotations

from typing import Any

import torch

from motion_predictor import MotionPredictorModel
from motion_predictor.points import sample_flow

from .source import BaseMotionSource, EditView, Motion, guarded_motion


class PredictedMotion(BaseMotionSource):
    """Reads the handles' steps off the flow of a [`MotionPredictorModel`].

    Args:
        predictor ([`MotionPredictorModel`]): the network, or anything with its `predict_flow`.
    """

    name = "predicted"
    needs_picture = True

    def __init__(self, predictor: MotionPredictorModel | Any) -> None:
        self.predictor = predictor

    def propose(self, view: EditView) -> Motion:
        """The predicted flow at the handles, guarded."""
        flow, deviation = self._predict(view)
        moving = view.moving
        step = torch.zeros_like(view.handles)
        step[moving] = sample_flow(flow, view.handles[moving][None])[0]
        return guarded_motion(view, step, flow, None if deviation is None else _deviation_at(deviation, view.handles))

    def _predict(self, view: EditView) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Flow and deviation. A predictor that takes a mask is told of what stays as well: pins, and what arrived."""
        if not getattr(self.predictor, "takes_mask", False):
            moving = view.moving
            return self.predictor.predict_flow(view.image, view.handles[moving], view.targets[moving]), None
        targets = torch.where(view.moving[:, None], view.targets, view.handles)
        predicted = self.predictor.predict(view.image, view.handles, targets, mask=view.mask)
        deviation = predicted.deviation
        # The likelihood's scale is half of the expected length of the error.
        return predicted.flow, None if deviation is None else 2 * deviation


def _deviation_at(deviation: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """A map `(1, 1, height, width)` at points `(points, 2)`: `(points,)`."""
    return sample_flow(deviation.expand(-1, 2, -1, -1), points[None])[0, :, 0]
