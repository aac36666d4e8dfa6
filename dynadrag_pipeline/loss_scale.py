"""Gradients of a network in half precision, without losing a step to an overflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

FIRST_SCALE = 1024.0
LEAST_SCALE = 2.0**-24
FALL = 4.0


class LossScale:
    """Scales a loss so that float16 gradients neither vanish nor overflow; one that overflows is taken again.

    The usual scaler leaves out a step that overflows, in silence, while handles move on. Here the scale falls, and the
    same step is taken with it. In other precisions nothing is scaled.

    Args:
        is_half (`bool`): whether the network computes in float16.

    Attributes:
        scale (`float`): what the next loss is multiplied by.
        retries (`int`): how often a gradient was computed again.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> LossScale(is_half=True).gradients((3 * weight).sum(), [weight])
        (tensor([3.]),)
    """

    def __init__(self, is_half: bool) -> None:
        self.is_half = is_half
        self.scale = FIRST_SCALE if is_half else 1.0
        self.retries = 0

    def gradients(self, loss: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The gradient of a loss to each of `inputs`, of their shapes, and to nothing else.

        Raises:
            FloatingPointError: if a gradient is not finite at any scale, though the loss is.
        """
        if not self.is_half:
            return torch.autograd.grad(loss, inputs)
        scaled: tuple[torch.Tensor, ...] = ()

        def attempt(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal scaled
            by = torch.full_like(loss, scale)
            scaled = torch.autograd.grad(loss, inputs, grad_outputs=by, retain_graph=True)
            return loss, all_finite(scaled)

        self.settle(attempt)
        return tuple(gradient / self.scale for gradient in scaled)

    def settle(self, attempt: Callable[[float], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take gradients at falling scales until they are finite, or the loss itself is not.

        Args:
            attempt (`Callable`): `scale -> (loss, whether all gradients are finite)`, both scalars on their device.

        Raises:
            FloatingPointError: if they are finite at no scale.
        """
        while self.scale >= LEAST_SCALE:
            loss, is_finite = attempt(self.scale)
            if is_finite or not torch.isfinite(loss):
                return
            self.scale /= FALL
            self.retries += 1
        raise FloatingPointError("A gradient is not finite in float16, however the loss is scaled.")


def all_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Whether all values of all of them are finite, as a scalar on their device.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([1.0, torch.inf])])
        tensor(False)
    """
    return torch.stack([torch.isfinite(each).all() for each in tensors]).all()
