"""DynaDrag: drag-style image editing by motion prediction, as a pipeline for diffusers.

Names are imported on first use, so that `dynadrag --help` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from motion_predictor import MotionPredictorModel

    from .drag_instruction import DragInstruction, load_instruction
    from .pipeline_dynadrag import DynaDragPipeline
    from .pipeline_output import DragIteration, DynaDragPipelineOutput

try:
    __version__ = version("dynadrag")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"

EMBEDDED_CHECKPOINT = Path(__file__).parent / "weights" / "portraits-128"
"""Folder of the small trained checkpoint that comes with the package: portraits, edited at 128 pixels."""

EMBEDDED_SETTINGS: dict[str, Any] = {
    "num_inference_steps": 50,
    "inversion_strength": 0.3,
    "max_iterations": 15,
    "supervision_steps": 8,
    "supervision_lr": 0.6,
    "supervision_damping": 0.03,
    "supervision_reach": 0.25,
    "supervision_radius": 8,
    "source_patches": "original",
    "dynamic_selection": None,
    "settle_iterations": 1,
    "preview_steps": 2,
    "identity_lora_steps": 50,
    "identity_lora_lr": 1e-3,
    "restore_source": True,
}
"""Keywords of the pipeline's call that suit the embedded checkpoint.

The call's own defaults are the paper's, meant for Stable Diffusion 1.5 at 512 pixels. A small UNet at 128 pixels knows
little at the last timesteps, and a cell of its features sees little of the picture: so the latent is edited at a third
of the way, by large patches and with larger steps, of which Adam is kept from making any where there is next to no
gradient. Its features are alike all over a face, so selecting handles by them would drag one at a time; all are
dragged. They are dragged by the patches of the unedited picture, and for an iteration more once they have arrived:
content that lags behind its handle catches up. What is far from their ways is left alone, and what the edit shows of
the photograph, moved or not, is shown by the photograph's pixels. Previews and a shorter fit of the LoRA at a higher
rate save a newcomer's time.
"""

_HOME = {
    "DragInstruction": "dynadrag_pipeline.drag_instruction",
    "DragIteration": "dynadrag_pipeline.pipeline_output",
    "DynaDragPipeline": "dynadrag_pipeline.pipeline_dynadrag",
    "DynaDragPipelineOutput": "dynadrag_pipeline.pipeline_output",
    "MotionPredictorModel": "motion_predictor",
    "load_instruction": "dynadrag_pipeline.drag_instruction",
}

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "EMBEDDED_SETTINGS",
    "DragInstruction",
    "DragIteration",
    "DynaDragPipeline",
    "DynaDragPipelineOutput",
    "MotionPredictorModel",
    "load_instruction",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
