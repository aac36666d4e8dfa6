"""Self-attention keys and values of the original's denoising, recorded once and replayed in every edit (Sec. 3.3).

The bank keeps what goes *into* `to_k` and `to_v`: half the size of keys and values, and the projections, with
whatever LoRA is on them, stay where they are. The processors that are installed are wrapped, not replaced, so every
attention implementation that takes `encoder_hidden_states` works.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from .settings import KVPlacement


def self_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of the UNet's self-attention processors in the order of execution: down, middle, up.

    Stable Diffusion 1.5 has 16 of them.
    """
    stages = ("down_blocks", "mid_block", "up_blocks")
    names = [name for name in unet.attn_processors if name.endswith("attn1.processor")]
    return sorted(names, key=lambda name: stages.index(name.split(".")[0]))


def default_kv_start_layer(unet: UNet2DConditionModel) -> int:
    """The first self-attention layer of the last two up-blocks.

    In Stable Diffusion 1.5 that is layer 10 of 0..15, where DragDiffusion starts too; the rule carries that choice
    over to UNets with another number of layers. A UNet without self-attention there gets its last layer.
    """
    layers = self_attention_layers(unet)
    last_two = {f"up_blocks.{len(unet.up_blocks) - offset}" for offset in (1, 2)}
    inside = [index for index, name in enumerate(layers) if ".".join(name.split(".")[:2]) in last_two]
    return inside[0] if inside else len(layers) - 1


class KVBank:
    """The inputs of the original's self-attention keys and values, by timestep and layer.

    `timestep` has to be set before each UNet pass; recording and replaying at the same timestep meet there. Then the
    inputs of all its layers are brought to the device at once, so that attention itself only reads them.

    Args:
        start_layer (`int`): the first layer to record and replace, in the order of [`self_attention_layers`].
        placement (`str`, defaults to `"device"`):
            where the bank lives: `"device"` leaves everything where the UNet runs, `"host"` in the main memory (pinned
            for CUDA), from where a timestep is copied when its turn comes; `"auto"` is the device, unless all
            timesteps would fill more than half of what is free there.
        timesteps (`int`, defaults to 1): how many will be recorded, for `"auto"`.

    Example (with a UNet, latents and a denoising loop at hand):

    ```python
    bank = KVBank(start_layer=10)
    with bank.recording(unet):
        denoise(reference_latents)  # sets bank.timestep before each pass
    with bank.replaying(unet):
        denoise(edited_latents)
    ```
    """

    def __init__(self, start_layer: int, placement: KVPlacement = "device", timesteps: int = 1) -> None:
        self.start_layer = start_layer
        self.placement = placement
        self.timesteps = timesteps
        self._timestep = -1
        self._current: dict[str, torch.Tensor] = {}
        self._kept: dict[int, dict[str, torch.Tensor]] = {}
        self._device: torch.device | None = None
        self._ahead: dict[int, _Sent] = {}
        self._stream: torch.cuda.Stream | None = None
        self._silent: torch.Tensor | None = None

    @property
    def timestep(self) -> int:
        """The timestep of the next UNet pass."""
        return self._timestep

    @timestep.setter
    def timestep(self, timestep: int) -> None:
        self._keep()
        self._timestep = timestep
        self._current = self.at(timestep)

    def at(self, timestep: int) -> dict[str, torch.Tensor]:
        """What was recorded at a timestep, by layer, on the device.

        From the host's memory, what follows it is sent to a GPU meanwhile: a pass takes longer than its way.
        """
        kept = self._kept.get(timestep, {})
        if self._device is None or self._device.type != "cuda" or all(inputs.is_cuda for inputs in kept.values()):
            return {layer: inputs.to(self._device) for layer, inputs in kept.items()}
        self._stream = self._stream or torch.cuda.Stream(self._device)
        arrived = (self._ahead.pop(timestep, None) or _Sent(kept, self._stream)).arrived()
        order = list(self._kept)
        following = order[(order.index(timestep) + 1) % len(order)]
        self._ahead = {following: _Sent(self._kept[following], self._stream)}
        return arrived

    def keep(self, timestep: int, inputs: dict[str, torch.Tensor]) -> None:
        """Put away what was recorded at a timestep, by layer."""
        self._timestep, self._current = timestep, inputs
        self._keep()

    @property
    def layers(self) -> list[str]:
        """What was recorded, in the order of execution."""
        return list(next(iter(self._kept.values()), {}))

    def recording(self, unet: UNet2DConditionModel) -> Any:
        """Context in which the UNet's self-attention inputs are kept."""
        return self._installed(unet, "record")

    def replaying(self, unet: UNet2DConditionModel) -> Any:
        """Context in which the UNet's self-attention takes keys and values from the bank."""
        return self._installed(unet, "replay")

    @property
    def is_silent(self) -> bool:
        """Whether some places are left to the edit's own attention just now."""
        return self._silent is not None

    @contextmanager
    def silent_at(self, places: torch.Tensor | None) -> Iterator[None]:
        """Context in which attention at places `(1, 1, h, w)` of the latent, from 0 to 1, is the edit's own."""
        self._silent = places
        try:
            yield
        finally:
            self._silent = None

    def silence(self, tokens: int, like: torch.Tensor) -> torch.Tensor | None:
        """`(1, tokens, 1)`: to what share attention at each token of a layer is the edit's own; `None` if nowhere."""
        if self._silent is None:
            return None
        height, width = self._silent.shape[-2:]
        while height * width > tokens:  # UNets halve sizes, and round up
            height, width = -(-height // 2), -(-width // 2)
        if height * width != tokens:
            return None
        return F.interpolate(self._silent, size=(height, width), mode="area").view(1, tokens, 1).to(like)

    def store(self, layer: str, hidden_states: torch.Tensor) -> None:
        """Keep the input of a layer at the current timestep, without its graph."""
        self._current[layer] = hidden_states.detach()

    def load(self, layer: str) -> torch.Tensor:
        """The recorded input of a layer at the current timestep, on the device."""
        return self._current[layer]

    @property
    def nbytes(self) -> int:
        """Memory that the bank holds, in bytes, on the device or the host."""
        return sum(inputs.nbytes for kept in self._kept.values() for inputs in kept.values())

    def _keep(self) -> None:
        """Put away what was recorded at the current timestep."""
        if self._current and self._timestep not in self._kept:
            self._device = next(iter(self._current.values())).device
            if self.placement == "auto":
                needed = self.timesteps * sum(inputs.nbytes for inputs in self._current.values())
                self.placement = "device" if needed <= free_memory(self._device) / 2 else "host"
            if self.placement == "host":
                self._current = {layer: _to_host(inputs) for layer, inputs in self._current.items()}
            self._kept[self._timestep] = self._current
        self._current = {}

    @contextmanager
    def _installed(self, unet: UNet2DConditionModel, mode: Literal["record", "replay"]) -> Iterator[KVBank]:
        """Wrap the processors of the layers from `start_layer` on, and put back what was there, whatever happens."""
        before = unet.attn_processors
        wrapped = dict(before)
        for layer in self_attention_layers(unet)[self.start_layer :]:
            processor: Any = before[layer]
            wrapped[layer] = banked(processor.__class__)(processor, self, layer, mode)
        try:
            unet.set_attn_processor(wrapped)
            yield self
        finally:
            self._keep()
            unet.set_attn_processor(before)


class HeldInputs(KVBank):
    """The inputs of one timestep, which stay where they are: what a captured pass records, or replays.

    Args:
        start_layer (`int`): as in [`KVBank`].
        inputs (`dict`, *optional*): by layer, to replay.

    Attributes:
        inputs (`dict[str, torch.Tensor]`): by layer.
    """

    def __init__(self, start_layer: int, inputs: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__(start_layer)
        self.inputs = self._current = dict(inputs or {})

    def _keep(self) -> None:
        """They are held as they are."""


class _Sent:
    """Tensors on their way from the host's pinned memory to a GPU, beside what that is doing."""

    def __init__(self, inputs: dict[str, torch.Tensor], stream: torch.cuda.Stream) -> None:
        self.stream = stream
        with torch.cuda.stream(stream):
            self.inputs = {layer: each.to(stream.device, non_blocking=True) for layer, each in inputs.items()}

    def arrived(self) -> dict[str, torch.Tensor]:
        """The tensors, for work that is launched from now on."""
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_stream(self.stream)
        for each in self.inputs.values():
            each.record_stream(current)
        return self.inputs


class BankedAttention:
    """An attention processor round the one that was installed, which records to or replays from a [`KVBank`]."""

    def __init__(self, inner: Any, bank: KVBank, layer: str, mode: Literal["record", "replay"]) -> None:
        self.inner = inner
        self.bank = bank
        self.layer = layer
        self.mode = mode

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self.mode == "record":
            self.bank.store(self.layer, hidden_states)
            return self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        replaced = self.inner(attn, hidden_states, self.bank.load(self.layer), *args, **kwargs)
        silence = self.bank.silence(hidden_states.shape[1], replaced)
        if silence is None:
            return replaced
        return replaced.lerp(self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs), silence)


@functools.cache
def banked(processor: type) -> type[BankedAttention]:
    """[`BankedAttention`] for processors of a class, with its signature: `Attention` passes on what that names."""

    def __call__(self: BankedAttention, *args: Any, **kwargs: Any) -> torch.Tensor:
        return BankedAttention.__call__(self, *args, **kwargs)

    # Assigned by name, since types know of no such attribute on a function.
    setattr(__call__, "__signature__", inspect.signature(processor.__call__))  # noqa: B010
    return type(f"Banked{processor.__name__}", (BankedAttention,), {"__call__": __call__})


def free_memory(device: torch.device) -> float:
    """Bytes that are free on an accelerator; without one, what is on the device is in the main memory anyway."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _to_host(inputs: torch.Tensor) -> torch.Tensor:
    on_host = inputs.to("cpu")
    return on_host.pin_memory() if inputs.is_cuda else on_host
