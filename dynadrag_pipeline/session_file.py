"""A session on disk: tensors in safetensors, the rest in JSON; nothing that could be run.

Keys and values of the reference are not kept: they are hundreds of megabytes, and N passes bring them back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors import SafetensorError
from safetensors.torch import load, save

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.checks import got

from .components import claimed
from .dense_flow import DenseFlow
from .drag_result import DragResult
from .drag_state import DragState
from .fit_key import factors_content, weights_content
from .identity_lora import IdentityLora
from .picture import resize_picture
from .pipeline_output import DragIteration
from .session import DragSession
from .settings import DragSettings, SettingsInForce

logger = logging.get_logger(__name__)

TENSORS_FILE = "session.safetensors"
RECORD_FILE = "session.json"
FORMAT = 1

_OF_A_STATE = ("noise", "latents", "image", "handles")
_OF_A_RESULT = ("start_latents", "origins", "earlier_moves")
_OF_AN_ITERATION = ("handles", "predicted_step", "step", "valid", "similarities")
_NUMBERS_OF_AN_ITERATION = (
    "loss_before",
    "loss_after",
    "wrong_way_count",
    "gradient_retries",
    "invented",
    "unfolded",
    "added",
)
_OF_A_FLOW = ("forward", "backward", "covered")


def save_session(session: DragSession, folder: str | Path) -> None:
    """Write an open session and its history to `session.safetensors` and `session.json` in a folder.

    Args:
        session ([`DragSession`]): that was opened.
        folder (`str` or `Path`): is made if it is not there; each file appears whole or not at all.

    Raises:
        OSError: if it can't be written.
        RuntimeError: while a drag is under way, in this session or another of its UNet.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "picture": session.picture,
        "image_latents": session.image_latents,
        "prompt_embeds": session.prompt_embeds,
        "noise": session.noise,
        **{f"lora.{key}": value for key, value in (session.lora.state_dict if session.lora else {}).items()},
    }
    for number, result in enumerate(session.history):
        tensors |= {f"history.{number}.{name}": value for name, value in _tensors_of(result).items()}
    packed = save({name: _alone(value) for name, value in tensors.items()})
    record = {
        "format": FORMAT,
        "prompt": session.prompt,
        "seed": session.seed,
        "settings": asdict(session.settings),
        "origins": session.in_force.origins,
        "cross_attention_kwargs": session.cross_attention_kwargs,
        "lora": session.lora and {each: getattr(session.lora, each) for each in ("rank", "alpha", "picture")},
        "models": models_content(session.models),
        "preview_vae": session.decode_preview is not None,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "history": [_numbers_of(result) for result in session.history],
    }
    text = json.dumps(record, indent=2, allow_nan=True)
    with atomic_file(folder / TENSORS_FILE) as file:
        file.write(packed)
    with atomic_file(folder / RECORD_FILE) as file:
        file.write(text.encode())


@torch.no_grad()
def load_session(folder: str | Path, models: Any, progress_bar: Any) -> DragSession:
    """Open a session that was saved: without a fit and an inversion, N passes for the reference.

    Args:
        folder (`str` or `Path`): of [`save_session`].
        models (`DiffusionPipeline` or `ModularPipeline`): the same that it was saved with.
        progress_bar (`Callable`): as in [`DragSession`].

    Raises:
        ValueError: if the folder holds no session, a damaged one, or one of other models.
        RuntimeError: while the UNet is being edited with.
    """
    folder = Path(folder)
    record, tensors = _read(folder)
    try:
        session = _assembled(record, tensors, models, progress_bar)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{folder / RECORD_FILE}` must be a record of a session, got one without {error}."
        ) from error
    if record["models"] != models_content(models):
        raise ValueError(f"`{folder}` must be opened with the models that it was saved with, got others.")
    if record.get("preview_vae"):
        logger.warning("The session had a `preview_vae`, which is not kept: its VAE decodes previews now.")
    session.check()
    session.denoise_reference()
    return session


def models_content(models: Any) -> str:
    """SHA-256 over the content of UNet, VAE and noise schedule, and over what weighs their parts.

    Raises:
        RuntimeError: while an edit has its LoRA in the UNet's weights.
    """
    with claimed(models.unet):
        weights = [weights_content(models.unet), weights_content(models.vae)]
        factors = factors_content(models.unet)
    schedule = sorted((name, str(value)) for name, value in models.scheduler.config.items() if name[0] != "_")
    return hashlib.sha256(repr([weights, factors, schedule]).encode()).hexdigest()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU that shares memory with no other, as the format wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _tensors_of(result: DragResult) -> dict[str, torch.Tensor]:
    state = {name: getattr(result.state, name) for name in _OF_A_STATE}
    tensors = {f"state.{name}": value for name, value in state.items() if value is not None}
    if result.state.flow is not None:
        tensors |= {f"state.flow.{name}": getattr(result.state.flow, name) for name in _OF_A_FLOW}
    for number, each in enumerate(result.iterations):
        if each.carried is not None:
            tensors[f"carried.{number}"] = each.carried
    for name in _OF_AN_ITERATION:
        if result.iterations:
            tensors[f"iterations.{name}"] = torch.stack([getattr(each, name) for each in result.iterations])
    for number, each in enumerate(result.iterations):
        if each.deviation is not None:
            tensors[f"deviation.{number}"] = each.deviation
    if result.state.moves is not None:
        tensors["moves"] = result.state.moves
    tensors |= {name: getattr(result, name) for name in _OF_A_RESULT if getattr(result, name) is not None}
    return {**tensors, "trajectory": result.trajectory, "targets": result.targets}


def _numbers_of(result: DragResult) -> dict[str, Any]:
    return {
        "stop_reason": result.stop_reason,
        "motion_source": result.motion_source,
        "iterations": [{name: getattr(each, name) for name in _NUMBERS_OF_AN_ITERATION} for each in result.iterations],
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    record_file, tensors_file = folder / RECORD_FILE, folder / TENSORS_FILE
    for file in (record_file, tensors_file):
        if not file.is_file():
            raise ValueError(f"`{folder}` must be the folder of a saved session, got one without `{file.name}`.")
    packed = tensors_file.read_bytes()
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        tensors = load(packed)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"`{folder}` must hold a saved session, got damaged files: {error}.") from error
    known = record.get("format") if isinstance(record, dict) else None
    if known != FORMAT:
        raise ValueError(f"`{record_file}` must be of format {FORMAT}, got {got(known)}.")
    if hashlib.sha256(packed).hexdigest() != record.get("sha256"):
        raise ValueError(f"`{tensors_file}` must be the one that was saved with `{RECORD_FILE}`, got another.")
    return record, tensors


def _assembled(
    record: dict[str, Any], tensors: dict[str, torch.Tensor], models: Any, progress_bar: Any
) -> DragSession:
    device = models._execution_device
    settings = DragSettings(**record["settings"])
    session = DragSession(
        models=models,
        in_force=SettingsInForce(settings, record["origins"]),
        picture=tensors["picture"],
        progress_bar=progress_bar,
        prompt=record["prompt"],
        seed=record["seed"],
        cross_attention_kwargs=record["cross_attention_kwargs"],
    )
    session.edit_picture = resize_picture(session.picture, session.size).to(device)
    for name in ("image_latents", "prompt_embeds", "noise"):
        setattr(session, name, tensors[name].to(device))
    if not record["prompt"]:  # whether it was empty or not needed: this is what it came to
        session.given_embeds = session.prompt_embeds
    if record["lora"] is not None:
        weights = {name[len("lora.") :]: value for name, value in tensors.items() if name.startswith("lora.")}
        session.lora = IdentityLora(weights, **record["lora"])
    session.history = [
        _result(numbers, _below(f"history.{number}.", tensors), session)
        for number, numbers in enumerate(record["history"])
    ]
    return session


def _result(numbers: dict[str, Any], tensors: dict[str, torch.Tensor], session: DragSession) -> DragResult:
    state: dict[str, Any] = {name: value.to(session.noise.device) for name, value in _below("state.", tensors).items()}
    flow = {name[len("flow.") :]: state.pop(name) for name in list(state) if name.startswith("flow.")}
    stacked, carried = _below("iterations.", tensors), _below("carried.", tensors)
    start = tensors.get("start_latents")
    return DragResult(
        state=DragState(
            **state,
            picture=session.fingerprint,
            flow=DenseFlow(**flow) if flow else None,
            moves=tensors.get("moves"),
        ),
        trajectory=tensors["trajectory"],
        targets=tensors["targets"],
        iterations=[
            DragIteration(
                **{**each, **{name: values[index] for name, values in stacked.items()}},
                deviation=tensors.get(f"deviation.{index}"),
                carried=carried.get(str(index)),
            )
            for index, each in enumerate(numbers["iterations"])
        ],
        stop_reason=numbers["stop_reason"],
        motion_source=numbers["motion_source"],
        start_latents=None if start is None else start.to(session.noise.device),
        origins=tensors.get("origins"),
        earlier_moves=tensors.get("earlier_moves"),
    )


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
