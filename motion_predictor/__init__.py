"""Motion prediction for drag-style image editing: from a picture, handles and targets to the next step of each handle.

The model needs torch and diffusers only and is useful alone: see `MotionPredictorModel`. Names are imported on first
use, so that the help of its commands does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling_motion_predictor import MotionPredictorModel, MotionPredictorOutput

__all__ = ["MotionPredictorModel", "MotionPredictorOutput"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("motion_predictor.modeling_motion_predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
