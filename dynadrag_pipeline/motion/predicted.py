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
        moving = view.moving
        flow = self.predictor.predict_flow(view.image, view.handles[moving], view.targets[moving])
        step = torch.zeros_like(view.handles)
        step[moving] = sample_flow(flow, view.handles[moving][None])[0]
        return guarded_motion(view, step, flow)
