"""Self-attention keys and values of the original's denoising, recorded once and replayed in every edit (Sec. 3.3).

The bank keeps what goes *into* `to_k` and `to_v`: half the size of keys and values, and the projections, with
whatever LoRA is on them, stay where they are. The processors that are installed are wrapped, not replaced, so every
attention implementation that takes `encoder_hidden_states` works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention


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

    `timestep` has to be set before each UNet pass; recording and replaying at the same timestep meet there.

    Args:
        start_layer (`int`): the first layer to record and replace, in the order of [`self_attention_layers`].

    Example (with a UNet, latents and a denoising loop at hand):

    ```python
    bank = KVBank(start_layer=10)
    with bank.recording(unet):
        denoise(reference_latents)  # sets bank.timestep before each pass
    with bank.replaying(unet):
        denoise(edited_latents)
    ```
    """

    def __init__(self, start_layer: int) -> None:
        self.start_layer = start_layer
        self.timestep = -1
        self._inputs: dict[tuple[int, str], torch.Tensor] = {}

    def recording(self, unet: UNet2DConditionModel) -> Any:
        """Context in which the UNet's self-attention inputs are kept."""
        return self._installed(unet, "record")

    def replaying(self, unet: UNet2DConditionModel) -> Any:
        """Context in which the UNet's self-attention takes keys and values from the bank."""
        return self._installed(unet, "replay")

    def store(self, layer: str, hidden_states: torch.Tensor) -> None:
        """Keep the input of a layer at the current timestep, without its graph."""
        self._inputs[self.timestep, layer] = hidden_states.detach()

    def load(self, layer: str) -> torch.Tensor:
        """The recorded input of a layer at the current timestep."""
        return self._inputs[self.timestep, layer]

    @property
    def nbytes(self) -> int:
        """Memory that the bank holds, in bytes."""
        return sum(tensor.nbytes for tensor in self._inputs.values())

    @contextmanager
    def _installed(self, unet: UNet2DConditionModel, mode: Literal["record", "replay"]) -> Iterator[KVBank]:
        """Wrap the processors of the layers from `start_layer` on, and put back what was there, whatever happens."""
        before = unet.attn_processors
        wrapped = dict(before)
        for layer in self_attention_layers(unet)[self.start_layer :]:
            wrapped[layer] = BankedAttention(before[layer], self, layer, mode)
        try:
            unet.set_attn_processor(wrapped)
            yield self
        finally:
            unet.set_attn_processor(before)


class BankedAttention:
    """An attention processor round the one that was installed, which records to or replays from a [`KVBank`]."""

    def __init__(self, inner: Any, bank: KVBank, layer: str, mode: Literal["record", "replay"]) -> None:
        self.inner = inner
        self.bank = bank
        self.layer = layer
        self.mode = mode

    @property
    def __call__(self) -> Callable[..., torch.Tensor]:
        """The call under `inner`'s signature: `Attention` drops keyword arguments that its processor does not name."""
        return functools.wraps(self.inner.__call__)(functools.partial(self._attend))

    def _attend(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self.mode == "record":
            self.bank.store(self.layer, hidden_states)
        else:
            encoder_hidden_states = self.bank.load(self.layer)
        return self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
