"""What an edit is made with, and the ways between picture, noise and edited picture: Sec. 3.1 and 3.3.

The engine knows a denoiser, schedulers and a decoder, and no pipeline. Call it under `torch.no_grad()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from .ddim_inversion import (
    PredictNoise,
    ddim_denoise,
    ddim_invert,
    ddim_preview,
    make_ddim_schedulers,
    preview_timesteps,
)
from .denoiser import Condition, Denoiser, UNetDenoiser
from .encoding import decode_latents
from .graphed_denoiser import CapturedPasses, GraphedDenoiser
from .kv_replacement import KVBank, default_kv_start_layer
from .settings import DragSettings
from .unet_features import resize_to_supervision_grid, supervision_grid


@dataclass
class Reference:
    """The denoising of the unedited z_t^0, computed once per picture.

    Attributes:
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0^0, what the unedited latent is denoised to.
        previous (`torch.Tensor`, same shape): z_{t-1}^0 for the second term of Eq. 2.
        kv_bank ([`KVBank`]): inputs of its self-attention keys and values at every timestep.
        noise (`torch.Tensor`, same shape, *optional*): z_t^0, for whoever bends it.
        silent (`torch.Tensor` of shape `(1, 1, h, w)`, *optional*):
            1 where it has nothing to say to an edit, whose keys and values are its own there.
    """

    latents: torch.Tensor
    previous: torch.Tensor
    kv_bank: KVBank
    noise: torch.Tensor | None = None
    silent: torch.Tensor | None = None


@dataclass
class DragEngine:
    """The models and numbers of the edits of one picture.

    Attributes:
        denoiser ([`Denoiser`]): predicts noise; frozen, with the identity LoRA on.
        sampler, inverse (`DDIMScheduler`, `DDIMInverseScheduler`): a pair from [`make_ddim_schedulers`].
        decode (`Callable`): z_0 `(1, c, h, w)` -> picture `(1, 3, height, width)` in [0, 1].
        progress_bar (`Callable`): `(total, description) -> context manager with update()`.
        settings ([`DragSettings`]): the numbers.
        kv_start_layer (`int`, defaults to 0): the first self-attention layer with the original's keys and values.
        decode_preview (`Callable`, *optional*): like `decode`, for pictures that only a source of motion sees.
        passes (`int`): UNet passes that it has made, replayed ones among them.
    """

    denoiser: Denoiser
    sampler: DDIMScheduler
    inverse: DDIMInverseScheduler
    decode: Callable[[torch.Tensor], torch.Tensor]
    progress_bar: Callable[[int, str], Any]
    settings: DragSettings
    kv_start_layer: int = 0
    decode_preview: Callable[[torch.Tensor], torch.Tensor] | None = None
    passes: int = field(default=0, init=False)

    @property
    def timesteps(self) -> torch.Tensor:
        """The sampler's timesteps that the edit uses, descending from t; fewer for `inversion_strength` < 1."""
        total = len(self.sampler.timesteps)
        return self.sampler.timesteps[total - max(1, round(self.settings.inversion_strength * total)) :]

    def invert(self, latents: torch.Tensor) -> torch.Tensor:
        """DDIM inversion of the picture's latent: z_0 -> z_t^0, both `(1, channels, h, w)`."""
        timesteps = self.timesteps.flip(0)
        with self.denoiser.prompt_projected(), self.progress_bar(len(timesteps), "DDIM inversion") as progress:
            return ddim_invert(_counted(self._predict_noise, progress), self.inverse, latents, timesteps)

    def denoise_reference(self, noise: torch.Tensor) -> Reference:
        """Denoise the unedited latent once, z_t^0 -> z_0^0, and keep what KV replacement and the mask need of it.

        Raises:
            FloatingPointError: if what it comes to is not finite.
        """
        bank = KVBank(self.kv_start_layer, self.settings.kv_placement, len(self.timesteps))
        first, rest = self.timesteps[:1], self.timesteps[1:]
        with (
            self.denoiser.recording(bank),
            self.denoiser.prompt_projected(),
            self.progress_bar(len(self.timesteps), "Reference denoising") as progress,
        ):
            predict_noise = _counted(self._predict_noise, progress)
            previous = ddim_denoise(predict_noise, self.sampler, noise, first)
            latents = ddim_denoise(predict_noise, self.sampler, previous, rest)
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                "The picture was inverted and denoised to values that are not finite, before any edit: try float32 or "
                "bfloat16."
            )
        return Reference(latents, previous, bank, noise)

    def features(self, latents: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass at t, with its graph: the model output, and F(z_t) on the supervision grid of a picture."""
        self.passes += 1
        output, features = self.denoiser.features(latents, self.timesteps[0])
        return output, resize_to_supervision_grid(features, supervision_grid(image_size))

    def step_back(self, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """z_{t-1}, one DDIM step from z_t by the model output at it: what Eq. 2 compares outside the mask."""
        return self.sampler.step(output, self.timesteps[0], latents).prev_sample

    @property
    def alpha_bar(self) -> float:
        """The cumulative product of alphas at t: z_t has so much of the picture's variance."""
        return float(self.sampler.alphas_cumprod[self.timesteps[0]])

    def denoise(self, noise: torch.Tensor, reference: Reference, steps: int | None = None) -> torch.Tensor:
        """Denoise an edited z_t with the original's keys and values (Sec. 3.3): z_0, `(1, channels, h, w)`.

        Args:
            noise (`torch.Tensor` of shape `(1, channels, h, w)`): the edited z_t.
            reference ([`Reference`]): whose keys and values are taken.
            steps (`int`, *optional*): of a preview; without it, all are taken.

        Raises:
            FloatingPointError: if it is not finite.
        """
        with reference.kv_bank.silent_at(reference.silent), self.denoiser.replaying(reference.kv_bank):
            if steps is None:
                latents = ddim_denoise(self._predict_noise, self.sampler, noise, self.timesteps)
            else:
                latents = ddim_preview(
                    self._predict_noise, self.sampler, noise, preview_timesteps(self.timesteps, steps)
                )
        if not torch.isfinite(latents).all():
            raise FloatingPointError("The edited latent was denoised to values that are not finite.")
        return latents

    def _predict_noise(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """A pass of the denoiser, without its graph."""
        self.passes += 1
        return self.denoiser(latents, timestep)

    def decode_finite(self, latents: torch.Tensor, is_preview: bool = False) -> torch.Tensor:
        """Decode z_0 to a picture `(1, 3, height, width)` in [0, 1]; a preview by its own decoder, if there is one.

        Raises:
            FloatingPointError: if it is not finite.
        """
        decode = self.decode_preview if is_preview and self.decode_preview is not None else self.decode
        image = decode(latents)
        if not torch.isfinite(image).all():
            raise FloatingPointError("The edited latent was decoded to values that are not finite.")
        return image


def make_engine(
    models: Any,
    settings: DragSettings,
    condition: Condition,
    progress_bar: Callable[[int, str], Any],
    decode_preview: Callable[[torch.Tensor], torch.Tensor] | None = None,
    captured: CapturedPasses | None = None,
) -> DragEngine:
    """The engine over the components of a pipeline, or of a modular pipeline.

    Args:
        models (`DiffusionPipeline` or `ModularPipeline`): has `unet`, `vae` and `scheduler`.
        settings ([`DragSettings`]): the numbers.
        condition ([`Condition`]): what UNet passes are given.
        progress_bar, decode_preview: as in [`DragEngine`].
        captured ([`CapturedPasses`], *optional*): of the UNet, while its weights stay where they are.
    """
    sampler, inverse = make_ddim_schedulers(models.scheduler.config, settings.num_inference_steps)
    start = settings.kv_start_layer
    eager = UNetDenoiser(models.unet, condition, settings.feature_block)
    return DragEngine(
        denoiser=eager if captured is None or not settings.cuda_graphs else GraphedDenoiser(eager, captured),
        sampler=sampler,
        inverse=inverse,
        decode=partial(decode_latents, models.vae),
        progress_bar=progress_bar,
        settings=settings,
        kv_start_layer=default_kv_start_layer(models.unet) if start is None else start,
        decode_preview=decode_preview,
    )


def _counted(predict_noise: PredictNoise, progress: Any) -> PredictNoise:
    """A pass that moves a progress bar on."""

    def counted(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output = predict_noise(latents, timestep)
        progress.update()
        return output

    return counted
