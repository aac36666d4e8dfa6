"""From pictures and prompts to what the denoiser works on, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging
from transformers import CLIPTextModel, CLIPTokenizer

from motion_predictor.common.checks import got

logger = logging.get_logger(__name__)

TOKENIZING = threading.Lock()
"""A tokenizer switches its padding on and off in itself: pipelines in two threads that share one would disturb it."""


def encode_prompt(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompt: str,
    device: torch.device | str = "cpu",
    unet: UNet2DConditionModel | None = None,
) -> torch.Tensor:
    """Embed a prompt.

    Args:
        tokenizer (`CLIPTokenizer`): goes with `text_encoder`.
        text_encoder (`CLIPTextModel`): on `device`.
        prompt (`str`): a description of the picture; what is longer than the limit is left out, with a warning.
        device (`torch.device` or `str`, defaults to `"cpu"`): where to compute.
        unet (`UNet2DConditionModel`, *optional*): that the embedding is for, in whose precision it is then given.

    Returns:
        `torch.Tensor` of shape `(1, tokens, width)`: in the text encoder's precision if there is no `unet`.
    """
    limit = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    with TOKENIZING:
        ids = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
        whole = tokenizer(prompt, verbose=False).input_ids
    if len(whole) > limit:
        cut = tokenizer.decode(whole[limit - 1 : -1])
        logger.warning(f"`prompt` must have at most {limit} tokens, got {len(whole)}: this is left out: {got(cut)}.")
    embedding = text_encoder(ids.to(device)).last_hidden_state
    return embedding if unet is None else embedding.to(unet.dtype)


def encode_picture(
    vae: AutoencoderKL | AutoencoderTiny, picture: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Generator], torch.Tensor]]:
    """Encode a picture.

    Args:
        vae (`AutoencoderKL` or `AutoencoderTiny`): the pipeline's.
        picture (`torch.Tensor` of shape `(1, 3, height, width)`): in [0, 1].

    Returns:
        `tuple[torch.Tensor, Callable]`: z_0 of shape `(1, channels, h, w)`, float32, the posterior's mean times the
        VAE's scaling factor; and a function that draws a sample of the posterior, for fitting the identity LoRA.
    """
    encoded = vae.encode((2 * picture - 1).to(vae.dtype))
    scale = vae.config.scaling_factor
    if not hasattr(encoded, "latent_dist"):  # AutoencoderTiny has no posterior
        latents = encoded.latents.float() * scale
        return latents, lambda generator: latents
    posterior = encoded.latent_dist
    return posterior.mode().float() * scale, lambda generator: posterior.sample(generator).float() * scale


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents to a picture.

    Args:
        vae (`AutoencoderKL` or `AutoencoderTiny`): the pipeline's, or a small one for previews.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0.

    Returns:
        `torch.Tensor` of shape `(1, 3, height, width)`: in [0, 1], float32.
    """
    # In this layout, convolutions of large pictures are somewhat faster.
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype, memory_format=torch.channels_last)
    return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
