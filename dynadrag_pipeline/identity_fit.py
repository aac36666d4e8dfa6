"""The optimisation steps of an identity LoRA (Sec. 4.2), run by Python or replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from .denoiser import UNetDenoiser
from .graph_capture import Capture, Graph, put
from .loss_scale import LossScale, all_finite


@dataclass(frozen=True)
class LoraSample:
    """What one step is taken with, as it was drawn.

    Attributes:
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0, from the picture's posterior.
        noise (`torch.Tensor`, same shape): on the CPU.
        timestep (`torch.Tensor` of shape `(1,)`): on the CPU.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timestep: torch.Tensor


class LoraFit:
    """AdamW on the mean squared error of the UNet's own prediction, step by step.

    Args:
        denoiser ([`UNetDenoiser`]): runs the UNet that the LoRA is in.
        noise_schedule (`DDPMScheduler`): with the prediction type.
        parameters (`Sequence[torch.nn.Parameter]`): the LoRA's matrices.
        learning_rate (`float`): of AdamW.
    """

    def __init__(
        self,
        denoiser: UNetDenoiser,
        noise_schedule: DDPMScheduler,
        parameters: Sequence[torch.nn.Parameter],
        learning_rate: float,
    ) -> None:
        self.denoiser = denoiser
        self.noise_schedule = noise_schedule
        self.parameters = list(parameters)
        self.loss_scale = LossScale(denoiser.is_half)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=learning_rate,
            betas=(0.9, 0.999),
            weight_decay=1e-2,
            fused=self.parameters[0].is_cuda or None,  # a few launches in place of thousands
        )

    def step(self, sample: LoraSample) -> None:
        """One step.

        Raises:
            FloatingPointError: if a gradient is not finite in float16, however the loss is scaled.
        """
        latents = sample.latents
        loss = self.loss(latents, sample.noise.to(latents), sample.timestep.to(latents.device))
        gradients = self.loss_scale.gradients(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def loss(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """[`denoising_loss`] of a sample on its device."""
        return denoising_loss(self.denoiser, self.noise_schedule, latents, noise, timestep)


def draw_sample(
    sample_latents: Callable[[torch.Generator], torch.Tensor], schedule: DDPMScheduler, generator: torch.Generator
) -> LoraSample:
    """A sample of the picture's posterior, noise, and a timestep of the training schedule."""
    latents = sample_latents(generator)
    noise = torch.randn(latents.shape, generator=generator)
    limit = schedule.config.num_train_timesteps
    return LoraSample(latents, noise, torch.randint(limit, (len(latents),), generator=generator))


def denoising_loss(
    denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    schedule: DDPMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
) -> torch.Tensor:
    """MSE between the model output and what it should be, at one timestep."""
    predicted = denoiser(schedule.add_noise(latents, noise, timestep), timestep)
    is_noise = schedule.config.prediction_type == "epsilon"
    wanted = noise if is_noise else schedule.get_velocity(latents, noise, timestep)
    return F.mse_loss(predicted, wanted.float())


class GraphedLoraFit:
    """The steps of a [`LoraFit`] as two graphs: the gradients of a sample in buffers, and AdamW on them.

    Args:
        fit ([`LoraFit`]): before its first step.
        capture ([`Capture`]): makes graphs.
        like ([`LoraSample`]): of the shape of all samples.

    Raises:
        RuntimeError: if it can't be captured; the LoRA's matrices are as before.
    """

    def __init__(self, fit: LoraFit, capture: Capture, like: LoraSample) -> None:
        self.fit = fit
        device = like.latents.device
        self.latents, self.noise = torch.empty_like(like.latents), torch.empty_like(like.latents)
        self.timestep = torch.empty_like(like.timestep, device=device)
        self.scale = torch.full((), fit.loss_scale.scale, device=device)
        self._fill(like)
        capture.warm_up(self._gradients)
        self.gradients: Graph = capture(self._gradients)
        for parameter, gradient in zip(fit.parameters, self.gradients.outputs[2:], strict=True):
            parameter.grad = gradient  # written anew by each replay
        before = [parameter.detach().clone() for parameter in fit.parameters]
        try:
            capture.warm_up(self._update)
            for group in fit.optimizer.param_groups:
                group["capturable"] = fit.parameters[0].is_cuda
            self.update: Graph = capture(self._update)
        finally:
            self._begin_anew(before)

    def step(self, sample: LoraSample) -> None:
        """One step, as [`LoraFit.step`]."""
        self._fill(sample)
        if self.fit.loss_scale.is_half:
            self.fit.loss_scale.settle(self._attempt)
        else:
            self.gradients.replay()
        self.update.replay()

    def reset(self) -> None:
        """Let go of the graphs."""
        for parameter in self.fit.parameters:
            parameter.grad = None
        self.gradients.reset()
        self.update.reset()

    def _fill(self, sample: LoraSample) -> None:
        put(self.latents, sample.latents)
        put(self.noise, sample.noise)
        put(self.timestep, sample.timestep)

    def _attempt(self, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        self.scale.fill_(scale)
        self.gradients.replay()
        loss, is_finite = self.gradients.outputs[:2]
        return loss, is_finite

    def _gradients(self) -> tuple[torch.Tensor, ...]:
        """The loss, whether all gradients are finite, and the gradients."""
        with torch.enable_grad():
            loss = self.fit.loss(self.latents, self.noise, self.timestep)
        scaled = torch.autograd.grad(loss, self.fit.parameters, grad_outputs=self.scale)
        return loss.detach(), all_finite(scaled), *(gradient / self.scale for gradient in scaled)

    def _update(self) -> tuple[torch.Tensor, ...]:
        self.fit.optimizer.step()
        return ()

    def _begin_anew(self, before: Sequence[torch.Tensor]) -> None:
        """As if AdamW had not been warmed up: its state stays where it is, and is that of no step."""
        with torch.no_grad():
            for parameter, value in zip(self.fit.parameters, before, strict=True):
                parameter.copy_(value)
            for state in self.fit.optimizer.state.values():
                for value in state.values():
                    value.zero_()
