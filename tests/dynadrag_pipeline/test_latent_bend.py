"""Bending a noisy latent: what it moves, and that its noise stays noise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dynadrag_pipeline.carry import LatentCarry
from dynadrag_pipeline.dense_flow import DenseFlow
from dynadrag_pipeline.latent_bend import NoisyLatent, bent_picture, nearest_cells

SIDE = 64
ALPHA_BARS = (0.9, 0.5, 0.1, 0.005)  # from a light inversion to a full one


def drawn(seed: int, side: int = SIDE) -> torch.Tensor:
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))


def latent(alpha_bar: float = 0.5, side: int = SIDE) -> NoisyLatent:
    """A smooth picture under noise."""
    at = torch.linspace(0, 3, side)
    clean = (torch.sin(at)[:, None] + torch.cos(at)[None]).expand(1, 4, side, side)
    return NoisyLatent.of(alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * drawn(1, side), clean, alpha_bar)


def translation(x: float, y: float, side: int = SIDE) -> DenseFlow:
    return DenseFlow.of(torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, side, side))


def swirl(strength: float = 6.0, side: int = SIDE) -> DenseFlow:
    """A smooth motion that turns, stretches and squeezes."""
    at = torch.arange(side) - (side - 1) / 2
    x, y = torch.meshgrid(at, at, indexing="xy")
    hill = strength * torch.exp(-(x**2 + y**2) / (2 * (side / 5) ** 2))
    return DenseFlow.of(torch.stack([hill * (1 - y / side), hill * x / side])[None])


def noise_of(noisy: torch.Tensor, clean: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    return (noisy - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5


def spectrum(noise: torch.Tensor, bands: int = 4) -> list[float]:
    """Mean power in rings of frequency, of which white noise has the same in each."""
    power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1)) / noise[0, 0].numel()
    frequency = torch.fft.fftfreq(noise.shape[-1])
    radius = torch.hypot(frequency[:, None], frequency[None])
    edges = torch.linspace(0, 0.5, bands + 1)
    return [power[(radius > low) & (radius <= high)].mean().item() for low, high in pairwise(edges)]


class TestClosedForms:
    @pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
    def test_no_motion_is_no_change_to_the_bit(self, alpha_bar):
        given = latent(alpha_bar)
        assert torch.equal(given.bent(DenseFlow.still((SIDE, SIDE), given.noisy)), given.noisy)

    def test_whole_cells_are_a_roll_to_the_bit(self):
        given = latent()
        bent = given.bent(translation(3, -5))
        rolled = given.noisy.roll((3, -5), dims=(3, 2))
        assert torch.equal(bent[..., : SIDE - 5, 3:], rolled[..., : SIDE - 5, 3:])

    def test_a_flow_of_the_picture_moves_as_many_cells_as_it_says_pixels_by_the_factor(self):
        given = latent(side=16)
        bent = given.bent(translation(8, 0, side=64))
        assert torch.equal(bent[..., 2:], given.noisy.roll(2, dims=3)[..., 2:])

    def test_half_a_cell_moves_the_picture_half_a_cell_and_the_noise_a_whole_one(self):
        ramp = torch.arange(float(SIDE)).expand(1, 4, SIDE, SIDE)
        shift = torch.tensor([-0.25, 0.0]).view(1, 2, 1, 1).expand(1, 2, SIDE, SIDE)
        torch.testing.assert_close(bent_picture(ramp, shift)[..., 2:-2], ramp[..., 2:-2] - 0.25, atol=0.05, rtol=0)
        index, _ = nearest_cells(shift)
        assert torch.equal(index, torch.arange(SIDE * SIDE))

    def test_each_cell_is_used_once_and_the_nearest_has_it(self):
        shift = torch.zeros(1, 2, 1, 4)
        shift[0, 0] = torch.tensor([0.0, -0.6, -0.9, 0.0])  # cells 0, 0.4, 1.1, 3
        index, is_repeated = nearest_cells(shift)
        assert index.tolist() == [0, 0, 1, 3]
        assert is_repeated.flatten().tolist() == [False, True, False, False]


class TestStatistics:
    @pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
    def test_noise_keeps_its_variance_and_stays_white(self, alpha_bar):
        given = latent(alpha_bar)
        shift = swirl().backward
        noise = noise_of(given.bent(swirl()), bent_picture(given.clean, shift), alpha_bar)
        before = noise_of(given.noisy, given.clean, alpha_bar)
        assert noise.var().item() == pytest.approx(before.var().item(), rel=0.03)
        for after, at_first in zip(spectrum(noise), spectrum(before), strict=True):
            assert after == pytest.approx(at_first, rel=0.12)

    def test_a_mean_of_neighbours_would_have_lost_both(self):
        """What the room is for: the bend that takes noise for a picture."""
        noise = bent_picture(drawn(1), swirl().backward + 0.5)
        assert noise.var() < 0.85
        assert spectrum(noise)[-1] < 0.75

    def test_stretched_noise_is_not_the_same_values_side_by_side(self):
        at = torch.arange(SIDE) - (SIDE - 1) / 2
        x, y = torch.meshgrid(at, at, indexing="xy")
        bent = latent(0.005).bent(DenseFlow.of(torch.stack([0.8 * x, 0.0 * y])[None]))
        assert (bent[..., 1:] == bent[..., :-1]).float().mean() < 0.01
        assert spectrum(bent) == pytest.approx(spectrum(latent(0.005).noisy), rel=0.15)


class TestHoles:
    @pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
    def test_where_nothing_comes_from_there_is_new_noise_of_the_same_level(self, alpha_bar):
        given = latent(alpha_bar)
        flow = translation(20, 0)
        bent = given.bent(flow)
        hole = bent[..., :20]
        noise = noise_of(hole, given.clean[..., :1], alpha_bar)
        smeared = given.noisy[..., :1].expand_as(hole)
        assert noise.var(dim=3).mean().item() == pytest.approx(1, abs=0.1)
        assert (hole - smeared).abs().mean() > 0.1


class TestCarry:
    def test_many_small_moves_are_one_large_one(self):
        """Never a bend of a bend: nothing washes out."""
        given, still = latent(), DenseFlow.still((SIDE, SIDE), drawn(0))
        carry = LatentCarry(given, given.noisy, still)
        latents = given.noisy
        for _ in range(10):
            latents = carry.move(translation(0.5, 0), latents)
        torch.testing.assert_close(latents[..., 12:], given.bent(translation(5, 0))[..., 12:], atol=1e-3, rtol=0)

    def test_what_supervision_added_goes_along(self):
        given = latent()
        carry = LatentCarry(given, given.noisy, DenseFlow.still((SIDE, SIDE), given.noisy))
        moved = carry.move(translation(2, 0), given.noisy)
        added = torch.zeros_like(moved)
        added[..., 30, 30] = 1.0
        moved = carry.move(translation(4, 3), moved + added)
        expected = given.bent(translation(6, 3)) + added.roll((4, 3), dims=(3, 2))
        torch.testing.assert_close(moved[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=1e-5, rtol=0)

    def test_outside_the_mask_the_latent_stays_to_the_bit(self):
        given = latent()
        mask = torch.zeros(SIDE, SIDE)
        mask[20:40, 20:40] = 1
        carry = LatentCarry(given, given.noisy, DenseFlow.still((SIDE, SIDE), given.noisy), mask)
        moved = carry.move(translation(5, 0), given.noisy)
        assert torch.equal(moved[..., mask == 0], given.noisy[..., mask == 0])
        assert not torch.equal(moved, given.noisy)

    def test_a_drag_goes_on_from_another_one_s_latent(self):
        given = latent()
        first = LatentCarry(given, given.noisy, DenseFlow.still((SIDE, SIDE), given.noisy))
        left = first.move(translation(3, 0), given.noisy) + 0.1
        second = LatentCarry(given, left, first.flow)
        torch.testing.assert_close(second.latents, left, atol=1e-6, rtol=0)
        moved = second.move(translation(2, 0), left)
        torch.testing.assert_close(moved[..., 8:], given.bent(translation(5, 0))[..., 8:] + 0.1, atol=1e-5, rtol=0)
