"""The paper's source of motion: a network predicts the next step of each handle from the picture (Sec. 3.2.1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from motion_predictor import MotionPredictorModel
from motion_predictor.points import sample_flow

from .smooth import corrected_flow
from .source import BaseMotionSource, EditView, Motion, guarded_motion


class Predicted(NamedTuple):
    """What a network says of a picture: the next step, how wrong that may be, and the whole way, if it knows these."""

    flow: torch.Tensor
    deviation: torch.Tensor | None = None
    total_flow: torch.Tensor | None = None


class PredictedMotion(BaseMotionSource):
    """Reads the handles' steps off the flow of a [`MotionPredictorModel`].

    Args:
        predictor ([`MotionPredictorModel`]):
            the network, or anything with its `predict_flow`; with its `predict`, if it `takes_mask`.
    """

    name = "predicted"
    needs_picture = True

    def __init__(self, predictor: MotionPredictorModel | Any) -> None:
        self.predictor = predictor

    @property
    def picture_side(self) -> int | None:
        """Short side that pictures are brought to for the network; `None` if it sees them at their own size."""
        return getattr(self.predictor, "config", {}).get("sample_size")

    @property
    def knows_steps_alone(self) -> bool:  # type: ignore[override]
        """Whether the network was taught steps, and not the whole way."""
        return "total" not in getattr(self.predictor, "horizons", ())

    def propose(self, view: EditView) -> Motion:
        """The predicted flow at the handles, guarded."""
        moving = view.moving
        predicted = self._predict(view)
        step = torch.zeros_like(view.handles)
        step[moving] = sample_flow(predicted.flow, view.handles[moving][None])[0]
        return guarded_motion(view, step, predicted.flow, _expected_error(predicted.deviation, view.handles))

    def dense_flow(self, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
        """The network's whole map, corrected at the handles; smooth, if the network does not know the whole way.

        One that does was taught all of the picture; one that does not may say nothing beyond its handles.
        """
        if self.knows_steps_alone:
            return super().dense_flow(view, destinations)
        predicted, known = self._predict(view), view.known
        flow = predicted.flow
        if predicted.total_flow is not None and view.ends_at_targets(destinations):
            flow = predicted.total_flow
        return corrected_flow(flow, view.handles[known], destinations[known], view.size, view.mask)

    def _predict(self, view: EditView) -> Predicted:
        """What the network says. It is shown points that stay, and the mask, if it was taught to look at them."""
        if not getattr(self.predictor, "takes_mask", False):
            shown = view.moving
            return Predicted(self.predictor.predict_flow(view.image, view.handles[shown], view.targets[shown]))
        shown = view.known
        output = self.predictor.predict(view.image, view.handles[shown], view.targets[shown], mask=view.mask)
        return Predicted(output.flow, output.deviation, output.total_flow)


def _expected_error(deviation: torch.Tensor | None, points: torch.Tensor) -> torch.Tensor | None:
    """The expected length of the error at points `(points, 2)`: `(points,)`. It is twice a Laplace scale."""
    if deviation is None:
        return None
    return 2 * sample_flow(deviation.expand(-1, 2, -1, -1), points[None])[0, :, 0]
