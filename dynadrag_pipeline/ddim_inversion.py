"""The two directions of DDIM's deterministic ODE: from a picture's latent to noise, and back (Sec. 3.1)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.configuration_utils import FrozenDict

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(latents, timestep) -> model output`, of the scheduler's prediction type."""


def make_ddim_schedulers(config: FrozenDict, num_inference_steps: int) -> tuple[DDIMScheduler, DDIMInverseScheduler]:
    """Build a sampler and the inverse scheduler that undoes it, from any scheduler's config.

    Both are new objects, so the pipeline's own scheduler keeps its state. What would break the round trip is fixed
    here rather than inherited: no clipping, "leading" spacing, and the same alpha at the clean end. Their timesteps
    are on the CPU, wherever the latents are: each of them is looked up in tables there.

    Args:
        config (`FrozenDict`): config of the pipeline's scheduler, with its noise schedule and prediction type.
        num_inference_steps (`int`): steps between noise and picture.

    Example:
        >>> sampler, inverse = make_ddim_schedulers(DDIMScheduler(steps_offset=1).config, 50)
        >>> sampler.timesteps[:2].tolist(), inverse.timesteps[:2].tolist()
        ([981, 961], [1, 21])
    """
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading"}
    sampler = DDIMScheduler.from_config(_known_to(DDIMScheduler, config), **fixed)
    inverse = DDIMInverseScheduler.from_config(_known_to(DDIMInverseScheduler, sampler.config), **fixed)
    sampler.set_timesteps(num_inference_steps)
    inverse.set_timesteps(num_inference_steps)
    return sampler, inverse


def _known_to(scheduler: type, config: FrozenDict) -> dict[str, Any]:
    """What a scheduler knows of another one's config. It would warn of the rest, which is as it should be."""
    known = inspect.signature(scheduler.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in config.items() if name in known}


def ddim_invert(
    predict_noise: PredictNoise, inverse: DDIMInverseScheduler, latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Follow the ODE from a clean latent to noise: z_0 -> z_t (DDIM inversion).

    Args:
        predict_noise (`Callable`): the denoising model; it is evaluated at the timestep that each step leads to.
        inverse (`DDIMInverseScheduler`): from [`make_ddim_schedulers`].
        latents (`torch.Tensor` of shape `(batch, channels, height, width)`): z_0, times the VAE's scaling factor.
        timesteps (`torch.Tensor`): ascending, the first entries of `inverse.timesteps`.

    Returns:
        `torch.Tensor`: z_t at the last of `timesteps`, same shape.
    """
    for timestep in timesteps:
        latents = inverse.step(predict_noise(latents, timestep), timestep, latents).prev_sample
    return latents


def ddim_denoise(
    predict_noise: PredictNoise, sampler: DDIMScheduler, latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Follow the ODE from noise to a clean latent: z_t -> z_0 (DDIM sampling with eta = 0).

    Args:
        predict_noise (`Callable`): the denoising model.
        sampler (`DDIMScheduler`): from [`make_ddim_schedulers`].
        latents (`torch.Tensor` of shape `(batch, channels, height, width)`): z_t at the first of `timesteps`.
        timesteps (`torch.Tensor`): descending, the last entries of `sampler.timesteps`.

    Returns:
        `torch.Tensor`: z_0, same shape.
    """
    for timestep in timesteps:
        latents = sampler.step(predict_noise(latents, timestep), timestep, latents).prev_sample
    return latents


def preview_timesteps(timesteps: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the descending `timesteps`, evenly, from the first on; all of them if there are no more.

    Example:
        >>> preview_timesteps(torch.tensor([81, 61, 41, 21, 1]), 2)
        tensor([81, 41])
    """
    count = min(count, len(timesteps))
    return timesteps[[math.floor(index * len(timesteps) / count) for index in range(count)]]


def ddim_preview(
    predict_noise: PredictNoise, sampler: DDIMScheduler, latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Follow the ODE from noise to a clean latent in fewer steps, each from one of `timesteps` to the next.

    The scheduler's own `step` knows one length only. With its timesteps, this is [`ddim_denoise`].

    Args:
        predict_noise, sampler, latents: as for [`ddim_denoise`].
        timesteps (`torch.Tensor`): descending, from [`preview_timesteps`].

    Returns:
        `torch.Tensor`: z_0 as far as so few steps can tell, same shape.
    """
    clean_end = timesteps.new_zeros(1)  # where `final_alpha_cumprod` is taken from
    for timestep, following in zip(timesteps, torch.cat([timesteps[1:], clean_end]), strict=True):
        clean = sampler.step(predict_noise(latents, timestep), timestep, latents).pred_original_sample
        alpha, next_alpha = (sampler.alphas_cumprod[at] for at in (timestep, following))
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        latents = next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * noise
    return latents
