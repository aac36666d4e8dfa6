"""Motion prediction for drag-style image editing: from a picture, handles and targets to the next step of each handle.

The package needs torch and diffusers only and is useful alone: see `MotionPredictorModel`.
"""

from .modeling_motion_predictor import MotionPredictorModel, MotionPredictorOutput

__all__ = ["MotionPredictorModel", "MotionPredictorOutput"]
