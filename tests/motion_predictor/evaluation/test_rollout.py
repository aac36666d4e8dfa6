"""Rollouts against steps that can be computed by hand."""

from __future__ import annotations

import pytest
import torch

from motion_predictor.data.samples import MotionSample
from motion_predictor.evaluation.rollout import roll_out, warp


def make_batch(handle: tuple[float, float], target: tuple[float, float], picture: torch.Tensor) -> MotionSample:
    return MotionSample(
        image=picture[None],
        handles=torch.tensor([[handle, (0.0, 0.0)]]),
        targets=torch.tensor([[target, (0.0, 0.0)]]),
        valid=torch.tensor([[True, False]]),
        steps=torch.zeros(1, 2, 2),
        label=torch.zeros(1, 2, *picture.shape[1:]),
        frames=torch.tensor([20]),
        total=torch.zeros(1, 2, *picture.shape[1:]),
        mask=torch.ones(1, 1, *picture.shape[1:]),
    )


def constant_flow(image: torch.Tensor, step: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(step).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])


def test_handles_go_the_same_share_of_what_is_left_in_each_step(picture, share_of_the_displacement):
    batch = make_batch((10.0, 60.0), (50.0, 20.0), picture)
    path = roll_out(share_of_the_displacement(0.2), batch, guard="none", warped=False)
    assert path.shape == (1, 26, 2, 2)
    left = 0.8 ** torch.arange(26)[:, None] * torch.tensor([40.0, -40.0])
    torch.testing.assert_close(path[0, :, 0], torch.tensor([50.0, 20.0]) - left)


def test_without_a_guard_wrong_ways_are_gone_to_the_border(picture, share_of_the_displacement):
    batch = make_batch((10.0, 60.0), (50.0, 60.0), picture)
    path = roll_out(share_of_the_displacement(-0.2), batch, guard="none", warped=False)
    assert path[0, -1, 0].tolist() == [0.0, 60.0]


def test_the_guard_turns_wrong_ways_into_straight_ones(picture, share_of_the_displacement):
    batch = make_batch((10.0, 60.0), (50.0, 60.0), picture)
    path = roll_out(share_of_the_displacement(-0.2), batch, guard="project", warped=False)
    torch.testing.assert_close(path[0, :, 0, 0], torch.linspace(10, 50, 26))


@pytest.mark.parametrize("warped", [False, True])
def test_the_predictor_sees_the_picture_that_its_own_flows_have_moved(picture, warped: bool):
    seen = []

    def half_a_pixel(image, handles, targets, valid):
        seen.append(image)
        return constant_flow(image, (0.5, -0.25))

    roll_out(half_a_pixel, make_batch((10.0, 60.0), (50.0, 60.0), picture), guard="none", warped=warped)
    assert len(seen) == 25
    if warped:  # 24 flows later all is 12 px to the right and 6 px up, as sharp as it was
        torch.testing.assert_close(seen[-1][0, :, :-8, 14:], picture[:, 6:-2, 2:-12], atol=1e-4, rtol=0)
        assert seen[-1].min() >= 0
        assert seen[-1].max() <= 1
    else:
        assert all(image.equal(picture[None]) for image in seen)


def test_a_warp_by_the_flow_between_two_pictures_of_a_ramp_gives_the_second():
    x = torch.arange(32.0).expand(1, 1, 24, 32)
    stretch = 0.1 * (x - 16)  # what is now at x was at 0.9 x + 1.6
    flow = torch.cat([stretch, torch.zeros_like(stretch)], dim=1)
    torch.testing.assert_close(warp(x, flow), 0.9 * x + 1.6)
