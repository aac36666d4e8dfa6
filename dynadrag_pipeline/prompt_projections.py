"""Cross-attention keys and values of the prompt, computed once, since neither prompt nor weights change in a loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn


class KnownProjection(nn.Module):
    """Answers with what a projection makes of the prompt, whatever it is given."""

    value: torch.Tensor

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.value.expand(len(hidden_states), -1, -1)


@contextmanager
def prompt_projected_once(unet: UNet2DConditionModel, prompt_embeds: torch.Tensor) -> Iterator[None]:
    """Context in which the UNet's cross-attention has the keys and values of one prompt at hand.

    A UNet whose prompt is changed on its way to the attention (as for image prompts) is left as it is.

    Args:
        unet (`UNet2DConditionModel`): as before when the context ends, whatever happens in it.
        prompt_embeds (`torch.Tensor` of shape `(1, tokens, width)`): what every pass in the context is given.
    """
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    if unet.encoder_hid_proj is not None or any(attention.norm_cross is not None for attention in attentions):
        attentions = []
    before = [(attention, attention.to_k, attention.to_v) for attention in attentions]
    try:
        _project(unet, attentions, prompt_embeds)
        yield
    finally:
        for attention, to_k, to_v in before:
            attention.to_k, attention.to_v = to_k, to_v


@apply_forward_hook  # a UNet that waits in the host's memory comes to the prompt's device first
@torch.no_grad()
def _project(unet: UNet2DConditionModel, attentions: Sequence[Attention], prompt_embeds: torch.Tensor) -> None:
    for attention in attentions:
        attention.to_k, attention.to_v = (
            KnownProjection(each(prompt_embeds)) for each in (attention.to_k, attention.to_v)
        )
