"""Whether a UNet's passes may be captured, and whether they are still what they were when they were."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_not_captured(unet: UNet2DConditionModel) -> str | None:
    """Why each pass of a UNet has to be run by Python, in words; nothing if it has not."""
    for module in unet.modules():
        if hasattr(module, "_hf_hook") or "forward" in vars(module):
            return "the UNet's weights are offloaded, or its forward is another's"
        if any(getattr(module, hooks) for hooks in HOOKS):
            return "the UNet has hooks, which a replay would not run"
        if getattr(module, "_compiled_call_impl", None) is not None:
            return "blocks of the UNet are compiled"
    if torch.nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules, which a replay would not run"
    if len({parameter.device for parameter in unet.parameters()}) > 1:
        return "the UNet's weights are on several devices"
    return None


class NetworkState:
    """What a captured pass of a UNet took for granted: which modules, processors and adapters, and where weights lie.

    Values of weights may change in place; the next replay computes with them.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> state = NetworkState(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(2)
        >>> NetworkState(layer) == state, NetworkState(layer.double()) == state
        (True, False)
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self._marks: list[Any] = []
        self._held: list[Any] = []  # as long as they live, nothing else can be mistaken for them
        for module in unet.modules():
            own = vars(module)
            self._mark(module, own.get("processor"))
            self._marks += [each for each in own.items() if isinstance(each[1], (bool, int, float, str))]
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._mark(tensor)
                    self._marks += [tensor.data_ptr(), tensor.dtype, tensor.device, tensor.stride()]
            if isinstance(module, BaseTunerLayer):
                self._marks += [tuple(module.active_adapters), dict(getattr(module, "scaling", {}))]

    def _mark(self, *objects: Any) -> None:
        self._held += objects
        self._marks += map(id, objects)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkState) and self._marks == other._marks

    __hash__ = None  # type: ignore[assignment]
