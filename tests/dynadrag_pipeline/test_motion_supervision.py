"""Eq. 2 written out by hand on small grids."""

from __future__ import annotations

import doctest

import pytest
import torch

from dynadrag_pipeline import motion_supervision
from dynadrag_pipeline.latent_optimizer import LatentOptimizer
from dynadrag_pipeline.motion_supervision import mask_loss, motion_supervision_loss, sample_patches
from dynadrag_pipeline.settings import DragSettings


def bilinear(features: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """One feature vector, with the edge repeated outside: the four neighbours by hand."""
    height, width = features.shape[-2:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = features[0, :, top, left] * (1 - (x - left)) + features[0, :, top, right] * (x - left)
    lower = features[0, :, bottom, left] * (1 - (x - left)) + features[0, :, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


@pytest.fixture
def features() -> torch.Tensor:
    """Three channels on a grid that is not square."""
    return torch.randn(1, 3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def points(*pairs: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.float64)


def test_examples_in_docstrings():
    results = doctest.testmod(motion_supervision)
    assert results.attempted >= 2
    assert results.failed == 0


def test_a_patch_at_a_whole_point_is_a_crop(features):
    torch.testing.assert_close(sample_patches(features, points((4, 3)), 2)[0], features[0, :, 1:6, 2:7])


@pytest.mark.parametrize("point", [(3.25, 2.5), (0.0, 5.0), (8.0, 0.0), (-2.5, 7.0), (7.6, 4.9)])
def test_patches_are_bilinear_and_repeat_the_edge(features, point):
    patch = sample_patches(features, points(point), 1)[0]
    for row, dy in enumerate((-1, 0, 1)):
        for column, dx in enumerate((-1, 0, 1)):
            expected = bilinear(features, point[0] + dx, point[1] + dy)
            torch.testing.assert_close(patch[:, row, column], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_patches_keep_the_order_of_the_points(features, radius):
    side = 2 * radius + 1
    patches = sample_patches(features, points((1, 1), (5.5, 2)), radius)
    assert patches.shape == (2, 3, side, side)
    torch.testing.assert_close(patches[1, :, radius, radius], (features[0, :, 2, 5] + features[0, :, 2, 6]) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("handles", [[(2.0, 2.0)], [(2.0, 2.0), (6.3, 1.7), (0.2, 4.9)]])
def test_loss_is_equation_two_written_out(features, handles, reduction):
    destinations = [(x + 0.75, y - 0.5) for x, y in handles]
    expected = 0.0
    for (x, y), (u, v) in zip(handles, destinations, strict=True):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                distance = (bilinear(features, u + dx, v + dy) - bilinear(features, x + dx, y + dy)).abs()
                expected += float(distance.mean() if reduction == "mean" else distance.sum())
    sources = sample_patches(features, points(*handles), 1)
    loss = motion_supervision_loss(features, sources, points(*destinations), 1, reduction)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_points_are_summed_not_averaged(features):
    sources = sample_patches(features, points((2, 2)), 1)
    one = motion_supervision_loss(features, sources, points((3, 2)))
    three = motion_supervision_loss(features, sources.expand(3, -1, -1, -1), points(*[(3, 2)] * 3))
    assert three.item() == pytest.approx(3 * one.item())


def test_a_patch_that_already_looks_like_its_source_costs_nothing(features):
    sources = sample_patches(features, points((2, 2)), 1)
    assert motion_supervision_loss(features, sources, points((2, 2))).item() == 0


def test_the_gradient_stays_in_the_footprint_of_the_destination(features):
    """The patch round (5.5, 2) samples columns 4.5..6.5 and rows 1..3: columns 4..7."""
    features = features.requires_grad_()
    sources = sample_patches(features, points((1, 1)), 1)  # not detached by the caller
    (gradient,) = torch.autograd.grad(motion_supervision_loss(features, sources, points((5.5, 2))), features)
    footprint = torch.zeros(6, 9, dtype=torch.bool)
    footprint[1:4, 4:8] = True
    assert (gradient[0, :, footprint] != 0).any(dim=0).all()
    assert (gradient[0, :, ~footprint] == 0).all()


def test_the_gradient_is_the_sign_of_the_difference_shared_by_the_channels(features):
    """At a whole point and radius 0: sign(F(destination) - source) / channels in that one cell."""
    features = features.requires_grad_()
    sources = sample_patches(features, points((1, 1)), 0)
    (gradient,) = torch.autograd.grad(motion_supervision_loss(features, sources, points((5, 2)), 0), features)
    expected = torch.sign(features[0, :, 2, 5] - features[0, :, 1, 1]) / 3
    torch.testing.assert_close(gradient[0, :, 2, 5], expected)


def test_mask_term_counts_what_changes_outside_the_mask():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    reference = torch.zeros(1, 2, 2, 2)
    previous = torch.tensor([[[[100.0, 1.0], [-2.0, 100.0]], [[100.0, 0.5], [0.0, 100.0]]]])
    assert mask_loss(previous, reference, mask).item() == 3.5


def test_mask_term_pulls_at_the_edit_alone():
    mask = torch.tensor([[1.0, 0.0]])
    previous, reference = torch.ones(1, 3, 1, 2).requires_grad_(), torch.zeros(1, 3, 1, 2).requires_grad_()
    mask_loss(previous, reference, mask).backward()
    assert torch.equal(previous.grad, torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2))
    assert reference.grad is None


def test_half_precision_is_compared_and_summed_in_single_precision():
    """Half precision knows neither 2049 nor a sum of 70 times as much."""
    previous, reference = (torch.full((1, 7, 10, 10), value, dtype=torch.float16) for value in (2048, -1))
    assert mask_loss(previous, reference, torch.zeros(10, 10)).item() == 700 * 2049


def test_adam_is_damped_by_the_first_gradient_that_says_something():
    settings = DragSettings(supervision_damping=0.1)
    optimizer = LatentOptimizer(torch.zeros(1, 1, 2, 2), settings, None, is_half=False)
    optimizer.step((optimizer.latents * 0).sum())
    assert optimizer.adam.param_groups[0]["eps"] == 1e-8
    optimizer.step((optimizer.latents * torch.tensor([[2.0, 0.0], [1.0, 0.5]])).sum())
    assert optimizer.adam.param_groups[0]["eps"] == pytest.approx(0.2)
