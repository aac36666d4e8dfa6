"""The one room that runs the UNet: noise prediction, features with their graph, keys and values, the prompt.

Whoever needs a pass asks a [`Denoiser`]. Latents, timesteps and the [`Condition`] are tensors that lie where they are
put, so that another implementation may copy them into buffers of its own, and replay a captured pass on these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from .kv_replacement import KVBank
from .prompt_projections import prompt_projected_once
from .unet_features import block_output


@dataclass
class Condition:
    """What a UNet wants beside a latent and a timestep.

    Attributes:
        prompt_embeds (`torch.Tensor` of shape `(1, tokens, width)`): the text condition; no unconditional branch.
        cross_attention_kwargs (`dict`, *optional*): for the attention processors.
    """

    prompt_embeds: torch.Tensor
    cross_attention_kwargs: dict[str, Any] | None = None


class Denoiser(Protocol):
    """What predicts the noise in latents. Answers are in float32 at least, whatever is computed in."""

    condition: Condition

    @property
    def is_half(self) -> bool:
        """Whether it computes in float16, whose gradients overflow unless losses are scaled."""

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The model output, of the scheduler's prediction type, at a timestep: of the shape of `latents`."""

    def features(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model output and F(z_t), `(1, block channels, h, w)`, with their graph to `latents`: one pass."""

    def recording(self, bank: KVBank) -> AbstractContextManager[None]:
        """Context whose passes leave the inputs of their self-attention in `bank`, by timestep."""

    def replaying(self, bank: KVBank) -> AbstractContextManager[None]:
        """Context whose passes take keys and values of self-attention from `bank` (Sec. 3.3)."""

    def prompt_projected(self) -> AbstractContextManager[None]:
        """Context in which the condition does not change, so that what depends on it alone is computed once."""


class UNetDenoiser:
    """A [`Denoiser`] that runs a UNet as it is.

    Args:
        unet (`UNet2DConditionModel`): the network.
        condition ([`Condition`]): what its passes are given; may be exchanged between passes.
        feature_block (`int`, defaults to -1):
            index into `unet.up_blocks`, whose output is F. The paper takes the last block (Sec. 3.1); DragDiffusion
            the one before.

    Example (with a UNet and the embedding of a prompt at hand):

    ```python
    denoiser = UNetDenoiser(unet, Condition(prompt_embeds))
    noise = denoiser(latents, torch.tensor(981))
    ```
    """

    def __init__(self, unet: UNet2DConditionModel, condition: Condition, feature_block: int = -1) -> None:
        self.unet = unet
        self.condition = condition
        self.feature_block = feature_block
        self._bank: KVBank | None = None

    @property
    def is_half(self) -> bool:
        return self.unet.dtype == torch.float16

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if self._bank is not None:
            self._bank.timestep = int(timestep)
        output = self.unet(
            latents.to(self.unet.dtype),
            timestep,
            self.condition.prompt_embeds,
            cross_attention_kwargs=self.condition.cross_attention_kwargs,
            return_dict=False,
        )[0]
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def features(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with block_output(self.unet.up_blocks[self.feature_block]) as outputs:
            output = self(latents, timestep)
        return output, outputs[0]

    @contextmanager
    def recording(self, bank: KVBank) -> Iterator[None]:
        with bank.recording(self.unet), self._banked(bank):
            yield

    @contextmanager
    def replaying(self, bank: KVBank) -> Iterator[None]:
        with bank.replaying(self.unet), self._banked(bank):
            yield

    def prompt_projected(self) -> AbstractContextManager[None]:
        return prompt_projected_once(self.unet, self.condition.prompt_embeds)

    @contextmanager
    def _banked(self, bank: KVBank) -> Iterator[None]:
        """Tell the bank the timestep of each pass."""
        self._bank = bank
        try:
            yield
        finally:
            self._bank = None
