"""DynaDrag: drag-style image editing by motion prediction, as a pipeline for diffusers.

Names are imported on first use, so that `dynadrag --help` does not wait for torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from motion_predictor import MotionPredictorModel

    from .drag_instruction import DragInstruction, load_instruction
    from .motion.source import BaseMotionSource, EditView, Motion, MotionSource, guarded_motion
    from .pipeline_dynadrag import DynaDragPipeline
    from .pipeline_output import DragIteration, DynaDragPipelineOutput
    from .session import DragSession
    from .settings import DragSettings

    __version__: str

EMBEDDED_CHECKPOINT = Path(__file__).parent / "weights" / "portraits-128"
"""Folder of the small trained checkpoint that comes with the package: portraits, edited at 128 pixels."""

EMBEDDED_MOTION_PREDICTOR = Path(__file__).parent / "weights" / "motion-predictor"
"""Folder of the motion predictor that comes with the package, for any checkpoint and pictures of any size."""

_HOME = {
    "BaseMotionSource": "dynadrag_pipeline.motion.source",
    "DragInstruction": "dynadrag_pipeline.drag_instruction",
    "DragSession": "dynadrag_pipeline.session",
    "DragSettings": "dynadrag_pipeline.settings",
    "DragIteration": "dynadrag_pipeline.pipeline_output",
    "DynaDragPipeline": "dynadrag_pipeline.pipeline_dynadrag",
    "DynaDragPipelineOutput": "dynadrag_pipeline.pipeline_output",
    "EditView": "dynadrag_pipeline.motion.source",
    "Motion": "dynadrag_pipeline.motion.source",
    "MotionPredictorModel": "motion_predictor",
    "MotionSource": "dynadrag_pipeline.motion.source",
    "guarded_motion": "dynadrag_pipeline.motion.source",
    "load_instruction": "dynadrag_pipeline.drag_instruction",
}

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "EMBEDDED_MOTION_PREDICTOR",
    "BaseMotionSource",
    "DragInstruction",
    "DragIteration",
    "DragSession",
    "DragSettings",
    "DynaDragPipeline",
    "DynaDragPipelineOutput",
    "EditView",
    "Motion",
    "MotionPredictorModel",
    "MotionSource",
    "guarded_motion",
    "load_instruction",
]


def __getattr__(name: str) -> Any:
    if name in _MADE:
        return _MADE[name]()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def _embedded_settings() -> dict[str, Any]:
    """What the embedded checkpoint recommends, under the name that had to be passed to every call in 0.1."""
    import warnings

    from .settings import recommended_settings

    warnings.warn(
        "`EMBEDDED_SETTINGS` is not needed any more and goes with the next release: the embedded checkpoint brings "
        "its settings along.",
        FutureWarning,
        stacklevel=3,
    )
    return recommended_settings(EMBEDDED_CHECKPOINT)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dynadrag")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0.0.0"


_MADE = {"EMBEDDED_SETTINGS": _embedded_settings, "__version__": _version}
