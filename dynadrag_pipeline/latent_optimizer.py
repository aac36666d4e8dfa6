"""The Adam steps on z_t^k (Eq. 3), damped and kept near the handles' paths if that is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from motion_predictor.points import scale_points

from .loss_scale import LossScale
from .settings import DragSettings


class LatentOptimizer:
    """What is optimised, and how: one Adam for the whole edit, or one for each iteration.

    Args:
        noise (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^0, which stays as it is.
        settings ([`DragSettings`]): rate, damping and scope.
        reach (`torch.Tensor` of shape `(h, w)`, *optional*): the share of its steps that a value takes.
        is_half (`bool`): whether gradients come from a network in float16.

    Attributes:
        latents (`torch.Tensor` of shape `(1, channels, h, w)`, float32): z_t^k.
        loss_scale ([`LossScale`]): counts the gradients of this iteration that had to be computed again.
    """

    def __init__(self, noise: torch.Tensor, settings: DragSettings, reach: torch.Tensor | None, is_half: bool) -> None:
        self.settings = settings
        self.reach = reach
        self.latents = noise.detach().float().clone().requires_grad_()
        self.loss_scale = LossScale(is_half)
        self.adam = self._new_adam()

    def begin_iteration(self) -> None:
        """Count retries anew, and forget Adam's moments, if they live for one iteration."""
        self.loss_scale.retries = 0
        if self.settings.optimizer_scope == "iteration":
            self.adam = self._new_adam()

    def put(self, latents: torch.Tensor) -> None:
        """Go on from another z_t^k `(1, channels, h, w)`, without moments: they belong to where content was."""
        with torch.no_grad():
            self.latents.copy_(latents)
        self.adam = self._new_adam()

    def step(self, loss: torch.Tensor) -> None:
        """One Adam step down the gradient of a loss to the latent, and to nothing else (Eq. 3).

        Adam moves each value of the latent by about the learning rate, however small its gradient: far from all
        handles, where a gradient is little more than rounding and noise, too. A part of the first gradient's largest
        value, added to the denominator, leaves such places at rest; a reach leaves all at rest that is far from the
        handles' paths, whatever its gradient.

        Raises:
            FloatingPointError: if the gradient is not finite in float16, however the loss is scaled.
        """
        (self.latents.grad,) = self.loss_scale.gradients(loss, [self.latents])
        if self.settings.supervision_damping > 0 and not self.is_damped:
            self._damp(self.latents.grad)
        before = self.latents.detach().clone()
        self.adam.step()
        if self.reach is not None:
            with torch.no_grad():
                self.latents.copy_(before.lerp(self.latents, self.reach))

    def _new_adam(self) -> torch.optim.Adam:
        self.is_damped = False
        return torch.optim.Adam([self.latents], lr=self.settings.supervision_lr)

    def _damp(self, gradient: torch.Tensor) -> None:
        largest = gradient.abs().max().item()
        if 0 < largest < math.inf:  # a gradient of nought says nothing of the next ones
            self.is_damped = True
            group = self.adam.param_groups[0]
            group["eps"] = max(group["eps"], self.settings.supervision_damping * largest)


class LeastLoss:
    """Of the latents that an iteration meets, the one of the least loss; the first of equals.

    Attributes:
        loss (`torch.Tensor`): a scalar.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): where it was met.
    """

    loss: torch.Tensor | None = None
    latents: torch.Tensor

    def offer(self, loss: torch.Tensor, latents: torch.Tensor) -> None:
        """Remember a latent if its loss is less than all before. Without a word to the host, which a GPU waits for."""
        loss, latents = loss.detach(), latents.detach()
        if self.loss is None:
            self.loss, self.latents = loss, latents.clone()
            return
        is_less = loss < self.loss
        self.loss, self.latents = torch.where(is_less, loss, self.loss), torch.where(is_less, latents, self.latents)


def latent_reach(
    paths: Sequence[torch.Tensor], size: tuple[int, int], latents: torch.Tensor, reach: float | None
) -> torch.Tensor | None:
    """The share of its steps that a value of the latent takes, by its distance to the nearest handle's path.

    `exp(-(distance / reach)^4)`: all of them along the paths from handles to targets, and next to none at 1.5
    times the reach.

    Args:
        paths (`Sequence[torch.Tensor]` of shape `(corners, 2)`): from each handle to its target, (x, y).
        size (`tuple[int, int]`): (height, width) of what they are on.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): of the edit.
        reach (`float`, *optional*): as a share of the short side; `None` is everywhere.

    Returns:
        `torch.Tensor` of shape `(h, w)` in [0, 1], or `None` without a reach.
    """
    if reach is None:
        return None
    height, width = latents.shape[-2:]
    scaled = [scale_points(path, size, (height, width)) for path in paths]
    start = torch.cat([path[:-1] for path in scaled])[:, None]  # [segments, 1, 2]
    displacement = torch.cat([path[1:] - path[:-1] for path in scaled])[:, None]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    from_start = torch.stack([x, y], dim=-1).flatten(0, 1) - start  # [segments, cells, 2]
    along = (from_start * displacement).sum(dim=-1) / displacement.square().sum(dim=-1).clamp(min=1e-12)
    nearest = along.clamp(0, 1)[..., None] * displacement
    distance = (from_start - nearest).norm(dim=-1).amin(dim=0).unflatten(0, (height, width))
    return torch.exp(-((distance / (reach * min(height, width))) ** 4)).to(latents)
