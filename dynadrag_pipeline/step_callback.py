"""What a callback on the end of a step has to be, and what becomes of its answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging

from motion_predictor.common.checks import got, naming

logger = logging.get_logger(__name__)

Callback: TypeAlias = Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks
"""`callback(pipe, iteration, timestep, tensors) -> changed tensors`."""


def names_of_tensors(callback: Callback | None, names: Sequence[str] | None) -> Sequence[str]:
    """Names of the tensors that a callback gets: diffusers' own kinds say it themselves."""
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return callback.tensor_inputs
    return names or ()


def check_callback(callback: Any) -> None:
    """Raise a ValueError unless it can be called as a callback is, or is None."""
    with naming("callback_on_step_end", callback):
        if callback is not None and not (callable(callback) and _takes_four(callback)):
            raise ValueError(
                "`callback_on_step_end` must be a function of (pipe, iteration, timestep, tensors), got "
                f"{got(callback)}."
            )


def _takes_four(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with four arguments, as far as it says what it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        return False
    return True


def changed_tensors(answer: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a callback changed, where and as it is to be used.

    Args:
        answer (`Any`): what the callback returned.
        tensors (`Mapping`): those that it may change, by name.

    Raises:
        ValueError: if it is neither None nor a dictionary, or has a tensor that can't take the place of its own.
    """
    with naming("callback_on_step_end", answer):
        if answer is not None and not isinstance(answer, Mapping):
            raise ValueError(f"`callback_on_step_end` must return a dictionary of tensors or None, got {got(answer)}.")
        given = {} if answer is None else dict(answer)
        for name in given:
            if name not in tensors:
                logger.warning(f"`callback_on_step_end` returned {got(name)}, which is none of {list(tensors)}.")
        changed = {name for name, own in tensors.items() if name in given and given[name] is not own}
        return {name: _in_place_of(name, given[name], tensors[name]) for name in changed}


def _in_place_of(name: str, value: Any, own: torch.Tensor) -> torch.Tensor:
    """A tensor of a callback where its own is and in its precision; of `prompt_embeds`, the length may differ."""
    shape = ["any" if name == "prompt_embeds" and axis == 1 else size for axis, size in enumerate(own.shape)]
    fits = (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not (value.is_meta or value.is_nested or value.is_quantized)
        and value.layout == torch.strided
        and value.ndim == own.ndim
        and all(size in ("any", given) and given for size, given in zip(shape, value.shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"`callback_on_step_end` must return `{name}` as floats of shape ({', '.join(map(str, shape))}), got "
            f"{got(value)}."
        )
    return value.detach().to(own)
