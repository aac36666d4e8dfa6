"""A head turns, and is held by the tip of its nose: does a predictor know that the face goes along?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynadrag_pipeline import EMBEDDED_MOTION_PREDICTOR
from motion_predictor import MotionPredictorModel
from motion_predictor.conditioning import rasterize_points
from motion_predictor.evaluation.predictor import Predictor
from motion_predictor.spline import spline_flow
from support.head_turn import HALF_AXES, MIDDLE, SIDE, HeadTurn, rendered_head, shares_that_are_moved

TURNS = [HeadTurn(yaw=15), HeadTurn(yaw=-15), HeadTurn(pitch=12), HeadTurn(yaw=10, pitch=-10)]
LEAST = 0.5


def on_the_discs_alone(image, handles, targets, valid=None) -> torch.Tensor:
    """What the first predictor had learnt: some more than a tenth of the way on the handles' discs, nothing beside."""
    delta, _ = rasterize_points(handles, targets, *image.shape[2:], radius=4.0, delta_paint="disc", valid=valid)
    return -0.16 * delta


def tenth_of_the_spline(image, handles, targets, valid=None, *, mask) -> torch.Tensor:
    return 0.1 * spline_flow(handles, targets, *image.shape[2:], valid=valid, mask=mask)


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_map_that_is_nought_beside_the_handles_moves_no_face(turn: HeadTurn):
    (share,) = shares_that_are_moved(Predictor(on_the_discs_alone), turn)
    assert abs(share) < 0.1 < LEAST


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_smooth_map_moves_it(turn: HeadTurn):
    (share,) = shares_that_are_moved(Predictor(tenth_of_the_spline, takes_mask=True), turn)
    assert LEAST < share < 1


@pytest.mark.parametrize("share", [1.0, 0.5, -1.0])
def test_the_truth_moves_all_of_it_and_motion_backwards_less_than_nothing(share: float):
    turn = HeadTurn(yaw=8)
    truth = share * torch.nan_to_num(turn.sample().total)

    def parts_of_the_truth(image, *points, horizon="step"):
        return truth if horizon == "total" else truth / 25

    rolled_out, in_one_shot = shares_that_are_moved(Predictor(parts_of_the_truth, ("step", "total")), turn)
    assert in_one_shot == pytest.approx(share)
    assert rolled_out == pytest.approx(share, abs=0.1)  # the steps are those of places, not of what passes them


@pytest.mark.embedded
@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_predictor_in_the_package_moves_it(turn: HeadTurn):
    model = MotionPredictorModel.from_pretrained(EMBEDDED_MOTION_PREDICTOR, dtype=torch.float32).eval()
    assert min(shares_that_are_moved(Predictor.of(model), turn)) >= LEAST


def test_the_heads_motion_is_that_of_its_surface():
    """The pole moves by the sine of the angle, the rim by what the cosine takes; shoulders and wall stay."""
    flow = HeadTurn(yaw=15).flow()
    x, y = MIDDLE.astype(int)
    angle = np.radians(15)
    assert flow[y, x] == pytest.approx([HALF_AXES[2] * np.sin(angle), 0])
    depth = HALF_AXES[2] * np.sqrt(1 - (26 / HALF_AXES[0]) ** 2)
    assert flow[y, x - 26] == pytest.approx([26 * (1 - np.cos(angle)) + depth * np.sin(angle), 0])
    assert np.isnan(flow[y, x + 26]).all()  # has turned out of sight
    assert not flow[100:, :20].any()
    np.testing.assert_allclose(HeadTurn(yaw=-15).flow(), HeadTurn(yaw=15).flow()[:, MIRROR] * [-1, 1], atol=1e-9)
    assert HeadTurn(pitch=10).flow()[y, x] == pytest.approx([0, HALF_AXES[2] * np.sin(np.radians(10))])


MIRROR = (2 * int(MIDDLE[0]) - np.arange(SIDE)) % SIDE


def test_the_picture_is_a_picture():
    picture = rendered_head()
    assert picture.shape == (SIDE, SIDE, 3)
    assert 0 <= picture.min() < 0.2
    assert 0.8 < picture.max() <= 1
