"""The loss against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from motion_predictor import MotionPredictorOutput
from motion_predictor.data.samples import MotionSample
from motion_predictor.loss import motion_loss
from motion_predictor.training_config import LossSettings


def flat_batch(label: float, width: int = 8) -> MotionSample:
    return MotionSample(
        image=torch.zeros(1, 3, width, width),
        handles=torch.tensor([[[2.0, 2.0], [0.0, 0.0]]]),
        targets=torch.tensor([[[6.0, 2.0], [0.0, 0.0]]]),
        valid=torch.tensor([[True, False]]),
        steps=torch.zeros(1, 2, 2),
        label=torch.full((1, 2, width, width), label),
        frames=torch.tensor([20]),
        total=torch.full((1, 2, width, width), torch.nan),
        mask=torch.ones(1, 1, width, width),
    )


def answer(flow: torch.Tensor, **others: torch.Tensor) -> MotionPredictorOutput:
    return MotionPredictorOutput(flow=flow, **others)


def test_the_plain_loss_is_the_mean_squared_error_of_eq_1():
    batch = flat_batch(1.0)
    flow = torch.randn(1, 2, 8, 8)
    loss = motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), LossSettings())
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(flow, batch.label))


def test_pixels_on_discs_weigh_more():
    batch = flat_batch(0.0)
    heatmap = torch.zeros(1, 1, 8, 8)
    heatmap[..., :4] = 1  # half of the picture, wrong by 1; the other half by 2
    flow = torch.where(heatmap > 0, 1.0, 2.0).expand(1, 2, 8, 8)
    loss = motion_loss(answer(flow), batch, heatmap, LossSettings(handle_weight=3.0))
    assert loss.item() == pytest.approx((4 * 1 + 1 * 4) / 5)


def test_unknown_pixels_do_not_count():
    batch = flat_batch(1.0)
    batch.label[..., 4:] = float("nan")
    flow = torch.full((1, 2, 8, 8), 3.0)
    flow[..., 4:] = 1e6
    assert motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), LossSettings()).item() == pytest.approx(4.0)


def test_standing_still_in_place_of_a_straight_tenth_has_a_relative_loss_of_one():
    batch = flat_batch(0.0)
    batch.targets[0, 0] = torch.tensor([22.0, 2.0])  # a displacement of 20 px
    batch.label[:, 0] = 2.0
    still = torch.zeros(1, 2, 8, 8)
    for error, expected in (("squared", 0.5), ("length", 0.5**0.5)):  # errors count per axis, and one of two is wrong
        settings = LossSettings(relative=True, error=error)
        assert motion_loss(answer(still), batch, torch.zeros(1, 1, 8, 8), settings).item() == pytest.approx(
            expected, rel=1e-4
        )


def test_a_relative_loss_does_not_blow_up_at_the_target():
    batch = flat_batch(1.0)
    batch.targets.copy_(batch.handles)
    loss = motion_loss(answer(torch.zeros(1, 2, 8, 8)), batch, torch.zeros(1, 1, 8, 8), LossSettings(relative=True))
    assert loss.item() == pytest.approx(1 / 0.1**2)


def test_a_loss_of_lengths_is_the_length_of_the_error_per_axis():
    batch = flat_batch(0.0)
    flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    loss = motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), LossSettings(error="length"))
    assert loss.item() == pytest.approx(5 / 2**0.5, rel=1e-4)


def test_a_charbonnier_loss_counts_small_errors_squared_and_large_ones_by_their_length():
    batch = flat_batch(0.0)
    costs = []
    for error in (0.0, 0.01, 10.0, 20.0):
        flow = torch.tensor([error, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
        settings = LossSettings(error="charbonnier")
        costs.append(motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), settings).item())
    assert costs[0] == pytest.approx(0.1)
    assert costs[1] - costs[0] == pytest.approx(0.01**2 / 2 / 0.2, rel=0.01)
    assert costs[3] - costs[2] == pytest.approx(10 / 2**0.5, rel=0.01)


def test_what_moves_weighs_more_than_the_background():
    batch = flat_batch(0.0)
    batch.label[:, 0, :2] = 1.0  # a quarter of the picture
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0, 2:] = 1.0  # the background is wrong by as much
    plain = motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), LossSettings())
    assert plain.item() == pytest.approx(0.5)
    flow[:, 0, 2:] = 0.0
    weighed = motion_loss(answer(flow), batch, torch.zeros(1, 1, 8, 8), LossSettings(moving_weight=3.0))
    assert weighed.item() == pytest.approx(0.5 * (0.25 * 4) / (0.25 * 4 + 0.75))


def test_the_whole_way_is_measured_by_its_own_label_and_weight():
    batch = flat_batch(0.0)
    batch.total[:] = 5.0
    still = torch.zeros(1, 2, 8, 8)
    settings = LossSettings(step_weight=2.0, total_weight=0.5)
    loss = motion_loss(answer(still, total_flow=still), batch, torch.zeros(1, 1, 8, 8), settings)
    assert loss.item() == pytest.approx(0.5 * 25)


def test_an_unknown_whole_way_teaches_nothing():
    batch = flat_batch(0.0)
    total_flow = torch.ones(1, 2, 8, 8, requires_grad=True)
    loss = motion_loss(
        answer(torch.zeros(1, 2, 8, 8), total_flow=total_flow), batch, torch.zeros(1, 1, 8, 8), LossSettings()
    )
    loss.backward()
    assert loss.item() == 0
    assert not total_flow.grad.any()


def test_the_likeliest_deviation_is_half_the_mean_length_of_errors():
    batch = flat_batch(0.0)
    flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    settings = LossSettings(likelihood_weight=1.0)
    costs = {}
    for deviation in (1.0, 2.0, 2.5, 3.0, 5.0):
        output = answer(flow, deviation=torch.full((1, 1, 8, 8), deviation))
        costs[deviation] = motion_loss(output, batch, torch.zeros(1, 1, 8, 8), settings).item()
    assert min(costs, key=lambda deviation: costs[deviation]) == 2.5
    scale = 0.4  # a tenth of the displacement
    squared = (9 + 16) / 2
    assert costs[2.5] == pytest.approx(squared + 5 / 2.5 + 2 * math.log(2.5 / scale), rel=1e-5)


def test_a_network_that_calls_itself_unsure_is_not_let_off_its_errors():
    batch = flat_batch(0.0)
    slopes = []
    for weight in (0.0, 1.0):
        flow = torch.ones(1, 2, 8, 8, requires_grad=True)
        deviation = torch.full((1, 1, 8, 8), 9.0, requires_grad=True)
        settings = LossSettings(likelihood_weight=weight)
        motion_loss(answer(flow, deviation=deviation), batch, torch.zeros(1, 1, 8, 8), settings).backward()
        slopes.append(flow.grad)
    torch.testing.assert_close(slopes[0], slopes[1], atol=0, rtol=0)
    assert deviation.grad.any()


def test_a_horizon_of_no_weight_is_not_looked_at():
    batch = flat_batch(3.0)
    batch.total[:] = 5.0
    still = torch.zeros(1, 2, 8, 8)
    output = answer(still, deviation=torch.full((1, 1, 8, 8), torch.nan), total_flow=still)
    loss = motion_loss(output, batch, torch.zeros(1, 1, 8, 8), LossSettings(step_weight=0.0, likelihood_weight=1.0))
    assert loss.item() == pytest.approx(25)
