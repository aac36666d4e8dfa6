"""The feature map F(z_t) of a UNet block and the noise prediction, from one and the same UNet pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel


def unet_with_features(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt_embeds: torch.Tensor,
    feature_block: int = -1,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the UNet once and return its output together with an up-block's output. Gradients flow through both.

    Args:
        unet (`UNet2DConditionModel`): the denoiser.
        latents (`torch.Tensor` of shape `(batch, channels, height, width)`): z_t.
        timestep (`torch.Tensor`): t.
        prompt_embeds (`torch.Tensor` of shape `(batch, tokens, width)`): the text condition.
        feature_block (`int`, defaults to -1):
            index into `unet.up_blocks`. The paper takes the last block (Sec. 3.1); DragDiffusion the one before.
        cross_attention_kwargs (`dict`, *optional*): passed on to the UNet.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the model output, of the shape of `latents`, and F(z_t), of shape
        `(batch, block channels, block height, block width)`.
    """
    features: list[torch.Tensor] = []
    hook = unet.up_blocks[feature_block].register_forward_hook(lambda *call: features.append(call[-1]))
    try:
        output = unet(
            latents, timestep, prompt_embeds, cross_attention_kwargs=cross_attention_kwargs, return_dict=False
        )[0]
    finally:
        hook.remove()
    return output, features[0]


def resize_to_supervision_grid(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize F(z_t) bilinearly to the grid on which points are compared, in float32.

    The grid has half the picture's height and width, as in DragDiffusion: the radius r_1 of Eq. 2 is one cell of it.

    Args:
        features (`torch.Tensor` of shape `(batch, channels, h, w)`): as [`unet_with_features`] returns them.
        size (`tuple[int, int]`): (height, width) of the supervision grid.
    """
    return F.interpolate(features.float(), size=size, mode="bilinear", align_corners=False)
