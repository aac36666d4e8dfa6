"""How far paths bend, and whether that is foreseen, against arcs and against numpy's own correlation."""

from __future__ import annotations

import numpy as np
import pytest

from motion_predictor.data.samples import MotionSample, SampleSettings, draw_sample
from motion_predictor.evaluation.curves import curve_figures, sagittas, true_paths


@pytest.mark.parametrize("towards", [0.0, 1.0, 2.5, -2.0])
def test_the_sagitta_of_an_arc_is_that_of_its_circle(towards: float):
    """An arc over 2 x 0.6 radians of a circle of radius 50, whose chord leads in any direction."""
    angle = np.linspace(-0.6, 0.6, 101) - np.pi / 2 + towards
    arc = 50 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None]
    expected = 50 * (1 - np.cos(0.6))
    assert sagittas(arc, arc[:, 0], arc[:, -1]) == pytest.approx(-expected, abs=1e-6)
    assert sagittas(arc[:, ::-1], arc[:, -1], arc[:, 0]) == pytest.approx(expected, abs=1e-6)


def test_a_straight_path_and_one_that_goes_on_too_far_have_none():
    path = np.linspace(0, 1, 26)[:, None] * np.array([30.0, -40.0])
    assert sagittas(path[None], path[None, 0], path[None, 12]) == pytest.approx(0, abs=1e-9)


def test_places_that_are_not_known_are_passed_over():
    path = np.array([[[0.0, 0.0], [2.0, 1.0], [np.nan, np.nan], [9.0, 0.0]]])
    assert sagittas(path, path[:, 0], path[:, -1]) == pytest.approx(1)


def test_the_correlation_is_pearsons_and_its_interval_that_of_videos():
    random = np.random.default_rng(1)
    video = np.repeat(np.arange(100), 4)
    true = random.normal(0, 3, 400)
    predicted = 0.5 * true + random.normal(0, 2, 400)
    figures = curve_figures(true, predicted, video)
    expected = np.corrcoef(true, predicted)[0, 1]
    assert figures["correlation"] == pytest.approx(expected)
    low, high = figures["correlation_95"]
    error = 1.96 * (1 - expected**2) / np.sqrt(400)
    assert (low, high) == pytest.approx((expected - error, expected + error), abs=0.03)
    assert figures["same_side"] == np.mean(true * predicted > 0)
    together = curve_figures(true, predicted, np.zeros(400, dtype=int))
    assert together["correlation_95"] == pytest.approx([expected, expected])


def test_predictions_that_do_not_vary_have_no_correlation():
    figures = curve_figures(np.array([1.0, -2.0, 3.0]), np.zeros(3), np.arange(3))
    assert (figures["correlation"], figures["correlation_95"], figures["same_side"]) == (None, None, 0)


def test_true_paths_lead_from_handles_to_targets(make_shards):
    velocity = (0.5, -0.25)
    record = make_shards([velocity])[0]
    sample = draw_sample(record, SampleSettings(), np.random.default_rng(0))
    assert isinstance(sample, MotionSample)
    paths = true_paths(record, sample)
    assert paths.shape[:2] == (int(sample.valid.sum()), int(sample.frames) + 1)
    np.testing.assert_allclose(paths[:, 0], sample.handles[sample.valid], atol=1e-4)
    np.testing.assert_allclose(paths[:, -1], sample.targets[sample.valid], atol=1e-4)
    np.testing.assert_allclose(np.diff(paths, axis=1), np.broadcast_to(velocity, paths[:, 1:].shape), atol=1e-4)
