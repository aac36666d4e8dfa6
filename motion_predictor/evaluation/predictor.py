"""What is evaluated: anything that answers points on a picture with a flow, and what more it can take and answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..choices import HORIZONS

STEP, TOTAL = HORIZONS  # the next step, and the whole way at once

FlowPredictor = Callable[..., torch.Tensor]
"""`MotionPredictorModel.predict_flow`, or anything like it: image, handles, targets, valid -> flow."""


@dataclass(frozen=True)
class Predictor:
    """A predictor and what can be asked of it.

    Attributes:
        predict_flow (`FlowPredictor`): the next step of each pixel.
        horizons (`tuple[str, ...]`, *optional*): `"total"` among them if it takes `horizon="total"` too, which is
            answered by the whole way.
        takes_mask (`bool`, *optional*, defaults to `False`): whether it takes `mask`, where the picture may change.
    """

    predict_flow: FlowPredictor
    horizons: tuple[str, ...] = (STEP,)
    takes_mask: bool = False

    @staticmethod
    def of(predictor: Any) -> Predictor:
        """What can be asked of a model, or of a plain function: the next step, without a mask.

        Args:
            predictor (`Any`): a `Predictor`, a model with `predict_flow`, or a function like that.

        Returns:
            `Predictor`: the same.

        Example:
            >>> Predictor.of(lambda image, handles, targets, valid: torch.zeros_like(image[:, :2])).horizons
            ('step',)
        """
        if isinstance(predictor, Predictor):
            return predictor
        if not hasattr(predictor, "predict_flow"):
            return Predictor(predictor)
        return Predictor(
            predictor.predict_flow,
            tuple(getattr(predictor, "horizons", (STEP,))),
            bool(getattr(predictor, "takes_mask", False)),
        )

    def __call__(
        self,
        image: torch.Tensor,
        handles: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor | None,
        mask: torch.Tensor | None = None,
        horizon: str = STEP,
    ) -> torch.Tensor:
        """The flow `[B, 2, H, W]`; a mask is passed on to those that take one."""
        more: dict[str, Any] = {}
        if self.takes_mask:
            more["mask"] = mask
        if horizon != STEP:
            more["horizon"] = horizon
        return self.predict_flow(image, handles, targets, valid, **more)
