"""The model of `dynadrag edit`: where it is, and how it is loaded."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from motion_predictor.common.command_errors import CommandError, one_line

from .. import EMBEDDED_CHECKPOINT, EMBEDDED_MOTION_PREDICTOR
from ..settings import recommended_settings

if TYPE_CHECKING:
    from ..pipeline_dynadrag import DynaDragPipeline


EMBEDDED = "embedded"
"""What records call the model that comes with the package."""


def model_folder(args: argparse.Namespace) -> str:
    """Where the model is: a folder, or else an id of the Hub."""
    if args.model in (None, EMBEDDED):
        return str(EMBEDDED_CHECKPOINT)
    folder = os.path.expanduser(args.model)
    return folder if os.path.isdir(folder) else args.model


def settings_of_model(model: str | None) -> dict[str, Any]:
    """What a model recommends, if it is in a folder; nobody asks the Hub before an edit."""
    return recommended_settings(EMBEDDED_CHECKPOINT if model in (None, EMBEDDED) else model)


def load_pipeline(args: argparse.Namespace) -> DynaDragPipeline:
    """Load the model on its device, or raise a CommandError whatever the libraries find in its files."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from .. import DynaDragPipeline

    model = model_folder(args)
    if args.quiet:
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    predictor = given_predictor(args)
    try:
        pipe = DynaDragPipeline.from_pretrained(
            model,
            dtype=getattr(torch, args.dtype),
            **predictor,
            safety_checker=None,  # not used, so its gigabyte is not downloaded either
        )
    except Exception as error:  # damaged files make the libraries raise anything
        raise CommandError(f"--model: cannot load `{model}`: {shortened(error)}") from error
    if args.low_memory:
        pipe.unet.enable_gradient_checkpointing()
    if args.low_memory and args.device != "cpu":
        pipe.enable_model_cpu_offload(device=args.device)
    else:
        pipe.to(args.device)
    pipe.set_progress_bar_config(disable=args.quiet)
    if args.load_identity_lora is not None:
        pipe.load_identity_lora(args.load_identity_lora)
    return pipe


def given_predictor(args: argparse.Namespace) -> dict[str, Any]:
    """The motion predictor that was asked for, as an argument of `from_pretrained`; none if none was."""
    import torch

    from .. import MotionPredictorModel

    if args.motion_predictor is None:
        return {}
    wanted = EMBEDDED_MOTION_PREDICTOR if args.motion_predictor == EMBEDDED else args.motion_predictor
    try:
        predictor = MotionPredictorModel.from_pretrained(os.path.expanduser(wanted), dtype=getattr(torch, args.dtype))
    except Exception as error:
        raise CommandError(f"--motion-predictor: cannot load `{wanted}`: {shortened(error)}") from error
    return {"motion_predictor": predictor}


def load_preview_vae(args: argparse.Namespace, pipe: DynaDragPipeline) -> Any:
    """Load the small autoencoder for pictures between, in the model's precision."""
    from diffusers import AutoencoderTiny

    try:
        return AutoencoderTiny.from_pretrained(os.path.expanduser(args.preview_vae), dtype=pipe.vae.dtype).to(
            args.device
        )
    except Exception as error:
        raise CommandError(f"--preview-vae: cannot load `{args.preview_vae}`: {shortened(error)}") from error


def available_device(name: str) -> str:
    """The device to compute on; `auto` is the first of cuda, mps and cpu that is there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [device for device, is_there in available.items() if is_there]
    if name == "auto":
        return there[0]
    if name not in there:
        raise CommandError(f"--device: {name} is not available here; use one of auto, {', '.join(there)}.")
    return name


def suitable_dtype(name: str, device: str) -> str:
    """The number format to compute in; `auto` is float16 where a GPU is several times as fast in it."""
    if name != "auto":
        return name
    return "float16" if device == "cuda" else "float32"


def shortened(error: BaseException) -> str:
    """An error of a library on one line of readable length."""
    text = one_line(error)
    return text if len(text) <= 400 else f"{text[:397]}..."
