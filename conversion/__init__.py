"""Other people's weights to ours: one module per source, each with a function, and a command of `dynadrag convert`.

Names are imported on first use, so that `dynadrag convert --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .foreign_lora import convert_identity_lora
    from .simvp import convert_motion_predictor
    from .stable_diffusion import convert_pipeline

_HOME = {
    "convert_identity_lora": "foreign_lora",
    "convert_motion_predictor": "simvp",
    "convert_pipeline": "stable_diffusion",
}

__all__ = ["convert_identity_lora", "convert_motion_predictor", "convert_pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
