"""The two directions of DDIM's deterministic ODE: from a picture's latent to noise, and back (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.configuration_utils import FrozenDict

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(latents, timestep) -> model output`, of the scheduler's prediction type."""


def make_ddim_schedulers(
    config: FrozenDict, num_inference_steps: int, device: torch.device | str = "cpu"
) -> tuple[DDIMScheduler, DDIMInverseScheduler]:
    """Build a sampler and the inverse scheduler that undoes it, from any scheduler's config.

    Both are new objects, so the pipeline's own scheduler keeps its state. What would break the round trip is fixed
    here rather than inherited: no clipping, "leading" spacing, and the same alpha at the clean end.

    Args:
        config (`FrozenDict`): config of the pipeline's scheduler, with its noise schedule and prediction type.
        num_inference_steps (`int`): steps between noise and picture.
        device (`torch.device` or `str`, defaults to `"cpu"`): where the timesteps live.

    Example:
        >>> sampler, inverse = make_ddim_schedulers(DDIMScheduler(steps_offset=1).config, 50)
        >>> sampler.timesteps[:2].tolist(), inverse.timesteps[:2].tolist()
        ([981, 961], [1, 21])
    """
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading"}
    sampler = DDIMScheduler.from_config(config, **fixed)
    inverse = DDIMInverseScheduler.from_config(sampler.config, **fixed)
    sampler.set_timesteps(num_inference_steps, device=device)
    inverse.set_timesteps(num_inference_steps, device=device)
    return sampler, inverse


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
