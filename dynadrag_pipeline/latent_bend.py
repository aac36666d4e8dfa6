"""Bend a noisy latent along a motion so that it stays what it was: a picture under noise, each as it should be.

z_t = sqrt(abar) z_0 + sqrt(1 - abar) epsilon. A picture may be read between its pixels, and is: bicubically. Noise may
not: a mean of independent values has less variance than each, and a network that expects noise takes it for haze. So
it is taken from the nearest cell, and where a cell would be used a second time or nothing comes from anywhere, drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .dense_flow import DenseFlow, filled, resize_shift, shifted

WHOLE = 1e-4
"""Cells within which a shift is one of whole cells, which is read off without any interpolation."""


@dataclass(frozen=True)
class NoisyLatent:
    """z_t with what it is made of.

    Attributes:
        noisy (`torch.Tensor` of shape `(1, channels, h, w)`): z_t.
        clean (`torch.Tensor`, same shape): z_0, what it is denoised to.
        signal (`float`): sqrt(abar), the share of the clean part.
        fresh (`torch.Tensor`, same shape): standard normal noise for places that nothing comes to.
    """

    noisy: torch.Tensor
    clean: torch.Tensor
    signal: float
    fresh: torch.Tensor

    @classmethod
    def of(
        cls, noisy: torch.Tensor, clean: torch.Tensor, alpha_bar: float, generator: torch.Generator | None = None
    ) -> NoisyLatent:
        """z_t and z_0 at a timestep whose cumulative product of alphas is `alpha_bar`; `generator` of the CPU."""
        generator = generator or torch.Generator().manual_seed(0)
        fresh = torch.randn(noisy.shape, generator=generator).to(noisy.device)
        return cls(noisy.float(), clean.float(), alpha_bar**0.5, fresh)

    def bent(self, flow: DenseFlow) -> torch.Tensor:
        """z_t after a motion, `(1, channels, h, w)`: to the bit the same where it does not move.

        Args:
            flow ([`DenseFlow`]): of the whole picture, on a grid of its own.
        """
        size = (self.noisy.shape[-2], self.noisy.shape[-1])
        shift = resize_shift(flow.backward, size)
        covered = covered_cells(flow, size)
        index, is_repeated = nearest_cells(shift, covered)
        near, clean_near = (_gathered(values, index) for values in (self.noisy, self.clean))
        clean = bent_picture(self.clean, shift)
        bent = near + self.signal * (clean - clean_near)
        drawn = self.signal * clean + (1 - self.signal**2) ** 0.5 * self.fresh
        bent = torch.where(is_repeated, drawn, bent)
        if covered.all():
            return bent
        invented = self.signal * filled(clean, covered) + (1 - self.signal**2) ** 0.5 * self.fresh
        return torch.where(covered > 0, bent, invented)


def covered_cells(flow: DenseFlow, size: tuple[int, int]) -> torch.Tensor:
    """`(1, 1, h, w)` of a latent: 1 where something comes to at least half of a cell."""
    return (torch.nn.functional.interpolate(flow.covered, size=size, mode="area") >= 0.5).float()


def invented_cells(flow: DenseFlow, size: tuple[int, int]) -> torch.Tensor | None:
    """`(1, 1, h, w)` of a latent: 1 where nothing of the picture comes to; `None` if there is no such place."""
    uncovered = 1 - covered_cells(flow, size)
    return uncovered if uncovered.any() else None


def bent_picture(picture: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """A picture `(1, c, h, w)` or a clean latent, each place from `shift` `(1, 2, h, w)` away: bicubic.

    Shifts of whole cells give the values themselves.
    """
    is_whole = ((shift - shift.round()).abs() < WHOLE).all(dim=1, keepdim=True)
    return torch.where(is_whole, _gathered(picture, nearest_cells(shift)[0]), shifted(picture, shift))


def nearest_cells(shift: torch.Tensor, covered: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cell is nearest to where each one comes from, and whether it is another one's already.

    Args:
        shift (`torch.Tensor` of shape `(1, 2, h, w)`): from each cell to where it comes from, in cells.
        covered (`torch.Tensor` of shape `(1, 1, h, w)`, *optional*): 0 for cells that use none.

    Returns:
        `tuple`: numbers of cells `(h * w,)`, row by row; `(1, 1, h, w)` bool, true for all users of a cell but the
        one that comes from nearest to its centre.
    """
    height, width = shift.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).to(shift), torch.arange(width).to(shift), indexing="ij")
    from_x, from_y = x + shift[0, 0], y + shift[0, 1]
    column, row = from_x.round().clamp(0, width - 1), from_y.round().clamp(0, height - 1)
    index = (row * width + column).long().flatten()
    distance = torch.hypot(from_x - column, from_y - row).flatten()
    if covered is not None:
        distance = torch.where(covered.flatten() > 0, distance, torch.inf)
    own = torch.arange(len(index), device=shift.device)
    nearest = torch.full_like(distance, torch.inf).scatter_reduce(0, index, distance, "amin")
    candidates = torch.where(distance <= nearest[index], own, len(index))
    first = torch.full_like(own, len(index)).scatter_reduce(0, index, candidates, "amin")
    return index, (first[index] != own).view(1, 1, height, width)


def _gathered(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values.flatten(2)[:, :, index].view(values.shape)
