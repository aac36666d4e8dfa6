"""What an identity LoRA is filed under: the content of all that it was fitted to, whatever it is called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict

from .denoiser import Condition
from .identity_lora import LoraSettings, tuner_layers


def picture_fingerprint(picture: torch.Tensor, edit_size: tuple[int, int]) -> str:
    """SHA-256 over a picture in [0, 1], to 8 bits, and the size that it is edited at: what its LoRA is filed under."""
    values = (picture.detach().cpu() * 255).round().to(torch.uint8).contiguous()
    return hashlib.sha256(f"{tuple(values.shape)} {tuple(edit_size)}".encode() + values.numpy().tobytes()).hexdigest()


def fit_key(
    unet: UNet2DConditionModel,
    scheduler_config: FrozenDict,
    image_latents: torch.Tensor,
    condition: Condition,
    settings: LoraSettings,
    seed: int,
    picture: str,
) -> str:
    """SHA-256 over the content of everything that a fit depends on, whatever it is called.

    Args:
        unet (`UNet2DConditionModel`): with the user's adapters, of which names don't count, but weights and scales do.
        scheduler_config (`FrozenDict`): noise schedule and prediction type.
        image_latents (`torch.Tensor` of shape `(samples, channels, h, w)`):
            of the picture: the posterior's mean, and a sample, which knows its spread.
        condition ([`Condition`]): prompt and `cross_attention_kwargs`.
        settings ([`LoraSettings`]): steps, rank and learning rate.
        seed (`int`): of the fit.
        picture (`str`): its fingerprint, from [`picture_fingerprint`].
    """
    content = [
        *settings,
        seed,
        picture,
        _content(dict(scheduler_config)),
        _content(condition.cross_attention_kwargs or {}),
        tensor_digests([image_latents, condition.prompt_embeds]),
        _network_content(unet),
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _network_content(unet: UNet2DConditionModel) -> list[Any]:
    """What tells two UNets apart: architecture, weights, adapters with their scales, processors, hooks, FreeU."""
    return [
        _content({name: value for name, value in unet.config.items() if not name.startswith("_")}),
        *weights_content(unet),
        [(type(each).__qualname__, *each._forward_pre_hooks, *each._forward_hooks) for each in unet.modules()],
        *factors_content(unet),
        [
            (type(each).__qualname__, None if isinstance(each, torch.nn.Module) else _content(vars(each)))
            for each in unet.attn_processors.values()
        ],
    ]


def weights_content(network: torch.nn.Module) -> list[Any]:
    """Names, shapes, precisions and content of a network's weights, also of those that are offloaded."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stored = [_stored(network, name, each) for name, each in tensors.items()]
    return [
        [(name, tuple(each.shape), each.dtype) for name, each in tensors.items()],
        tensor_digests([_in_memory_order(each) for each in stored]),
    ]


def factors_content(unet: UNet2DConditionModel) -> list[Any]:
    """What weighs parts of a UNet: scales of adapters, and whether they are on, and FreeU."""
    return [
        [
            (tuple(layer.active_adapters), layer.disable_adapters, _content(getattr(layer, "scaling", None)))
            for layer in tuner_layers(unet).values()
        ],
        [[getattr(block, factor, None) for factor in ("s1", "s2", "b1", "b2")] for block in unet.up_blocks],
    ]


def _content(value: Any) -> Any:
    """A value in words that are the same for the same content: of a tensor, `repr` would show a few numbers."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype, tensor_digests([value]))
    if isinstance(value, Mapping):
        return [(str(name), _content(each)) for name, each in sorted(value.items(), key=lambda item: str(item[0]))]
    if isinstance(value, (list, tuple)):
        return [_content(each) for each in value]
    return repr(value)


def _stored(network: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight of a network, also if it is offloaded: then its layer's hook has it in the host's memory."""
    if not tensor.is_meta:
        return tensor
    layer, _, own = name.rpartition(".")
    hook: Any = getattr(network.get_submodule(layer), "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        if getattr(each, "weights_map", None) is not None:
            return each.weights_map[own]
    raise ValueError(f"`{type(network).__name__}` must have weights that can be read, got none at {name}.")


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor with its axes in the order in which they lie in memory, so that flattening it copies nothing."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def tensor_digests(tensors: Sequence[torch.Tensor]) -> list[str]:
    """SHA-256 each of sums over tensors: another for one that differs in a bit, or has two values exchanged.

    Cryptography over all bytes would take seconds for a UNet. So their bits are laid out as a table of whole numbers,
    whose rows and columns are summed, without rounding; on the device, and at the speed of its memory.

    Example:
        >>> tensor_digests([torch.tensor([3.0, 4.0])]) == tensor_digests([torch.tensor([4.0, 3.0])])
        False
    """
    sums = []
    for tensor in tensors:
        values = tensor.detach().flatten()
        if values.storage_offset() * values.element_size() % 8:
            values = values.clone()
        octets = values.view(torch.uint8)
        if len(octets) % 512:
            octets = F.pad(octets, (0, -len(octets) % 512))
        table = octets.view(torch.int64).unflatten(0, (-1, 64))
        sums.append(torch.cat([table.sum(dim=1), table.sum(dim=0)]))
    return [hashlib.sha256(each.cpu().numpy().tobytes()).hexdigest() for each in sums]
