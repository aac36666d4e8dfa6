"""Curves in time: smooth, within their range, moving and resting."""

from __future__ import annotations

import numpy as np
import pytest

from motion_predictor.data.natural_timing import (
    blink_curve,
    eased_path,
    expression_curve,
    pose_curve,
    speech_curve,
)

FPS = 25.0


def many(curve, count: int = 60, **options) -> np.ndarray:
    return np.stack([curve(np.random.default_rng(seed), 150, FPS, **options) for seed in range(count)])


def test_an_eased_path_has_the_speed_and_jerk_of_the_closed_form():
    seconds, frames = 0.5, 501
    path = eased_path(iter([(seconds, 2.0), (9.0, 2.0)]), frames, fps=1000, before=0.0)
    share = np.arange(frames) / 1000 / seconds
    np.testing.assert_allclose(path, 2 * share**3 * (10 - 15 * share + 6 * share**2), atol=1e-9)
    speed = np.diff(path) * 1000
    assert speed.max() == pytest.approx(1.875 * 2 / seconds, rel=1e-3)  # halfway
    assert abs(speed[0]) < 0.01


def test_a_path_may_begin_in_the_middle_and_rests_between_equal_knots():
    knots = [(1.0, 1.0), (1.0, 1.0), (1.0, -1.0), (9.0, -1.0)]
    whole = eased_path(iter(knots), 60, fps=10, before=0.0)
    np.testing.assert_allclose(eased_path(iter(knots), 45, fps=10, before=1.5), whole[15:], atol=1e-9)
    np.testing.assert_allclose(whole[10:20], 1)


@pytest.mark.parametrize(
    ("curve", "low", "high"),
    [(pose_curve, -1.1, 1.1), (expression_curve, 0, 1), (speech_curve, 0, 1), (blink_curve, 0, 1)],
)
def test_curves_keep_to_their_range_and_use_it(curve, low: float, high: float):
    curves = many(curve)
    assert curves.min() >= low
    assert curves.max() <= high
    assert curves.max() > 0.75
    assert curves.min() < (-0.75 if low < 0 else 0.01)


def test_a_frame_is_no_fixed_share_of_the_displacement():
    curves = many(pose_curve)
    displacement = curves[:, 40] - curves[:, 0]
    share = (curves[:, 1] - curves[:, 0])[np.abs(displacement) > 0.2] / displacement[np.abs(displacement) > 0.2]
    assert share.std() > 0.03  # straight lines: 1 / 40 always
    assert (share < 0).mean() > 0.1  # begins by moving away


def test_slow_motion_is_slower():
    quick, slow = many(pose_curve), many(pose_curve, slowness=3.0)
    assert np.abs(np.diff(slow)).max(axis=1).mean() < 0.6 * np.abs(np.diff(quick)).max(axis=1).mean()


def test_blinks_are_quick_and_eyes_are_mostly_open():
    curves = many(blink_curve)
    assert np.median(curves) == 0
    assert 0.02 < (curves > 0.9).mean() < 0.4


def test_the_same_seed_gives_the_same_curve():
    np.testing.assert_array_equal(many(speech_curve, 2), many(speech_curve, 2))
    assert not np.array_equal(*many(speech_curve, 2))
