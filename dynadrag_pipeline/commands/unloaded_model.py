"""A model in a folder before its weights are loaded, which takes minutes: what its configs rule out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..settings import DragSettings


def check_unloaded_model(
    folder: str | Path, settings: DragSettings, cross_attention_kwargs: dict[str, Any] | None = None
) -> None:
    """Raise a ValueError for what of a call a model can't serve.

    Args:
        folder (`str` or `Path`):
            of the model. What is not there, such as a model on the Hub, or is damaged, is left to the loading, which
            says what is wrong with it.
        settings ([`DragSettings`]): of the call.
        cross_attention_kwargs (`dict`, *optional*): of the call.

    Example:
        >>> from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DragSettings
        >>> check_unloaded_model(EMBEDDED_CHECKPOINT, DragSettings(num_inference_steps=2000))
        Traceback (most recent call last):
        ...
        ValueError: `num_inference_steps` must be under 1000, got 2000.
    """
    from ..components import check_call, check_layers

    try:
        components = _without_weights(Path(folder))
    except Exception:  # files that are missing or damaged make the libraries raise anything
        return
    check_layers(components.unet, settings.feature_block, settings.kv_start_layer)
    check_call(components, settings, cross_attention_kwargs)


def _without_weights(folder: Path) -> Any:
    """The UNet on a device that has no memory, and the scheduler."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_config(UNet2DConditionModel, folder / "unet"))
    scheduler = DDIMScheduler.from_config(_config(DDIMScheduler, folder / "scheduler"))
    return SimpleNamespace(unet=unet, scheduler=scheduler)


def _config(kind: Any, folder: Path) -> dict[str, Any]:
    return kind.load_config(folder, local_files_only=True)
