"""Figures against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from motion_predictor.evaluation.figures import (
    Rollouts,
    Steps,
    best_linear_share,
    bootstrap_interval,
    linear_distances,
    rollout_figures,
    step_figures,
)


def make_steps(displacement: np.ndarray, label: np.ndarray, **predicted: np.ndarray) -> Steps:
    """Each handle from a record of its own, of 512 pixels."""
    numbers = np.arange(len(displacement))
    return Steps(numbers, numbers, displacement, label, np.hypot(*displacement.T), predicted)


@pytest.fixture
def random_steps() -> Steps:
    random = np.random.default_rng(0)
    displacement = random.normal(0, 20, (60, 2))
    label = 0.1 * displacement + random.normal(0, 1, (60, 2))
    return make_steps(displacement, label, backwards=-0.1 * displacement, truth=label)


def test_no_share_of_the_displacement_has_a_smaller_mean_error_than_the_best(random_steps):
    displacement, label = random_steps.displacement, random_steps.label
    errors = [np.hypot(*(share * displacement - label).T).mean() for share in np.linspace(-0.5, 0.7, 12001)]
    best = np.hypot(*(best_linear_share(label, displacement) * displacement - label).T).mean()
    assert min(errors) - 1e-6 <= best <= min(errors)


def test_the_best_share_of_equal_ways_along_them_is_the_median():
    displacement = np.tile([10.0, 0.0], (5, 1))
    label = displacement * np.array([0.1, 0.2, 0.3, 0.8, 0.9])[:, None]
    assert best_linear_share(label, displacement) == pytest.approx(0.3)
    assert step_figures(make_steps(displacement, label), np.full(5, True))["least_squares_share"] == pytest.approx(
        0.46
    )


def test_steps_backwards_are_all_wrong_and_the_truth_is_as_wrong_as_the_labels(random_steps):
    figures = step_figures(random_steps, random_steps.judged)
    truth, backwards = figures["steps"]["truth"], figures["steps"]["backwards"]
    assert (backwards["wrong_way_rate"], backwards["wrong_way_rate_of_agreeing"]) == (1, 1)
    assert backwards["cosine"] == pytest.approx(-1)
    assert truth["endpoint_error"] == 0
    assert truth["wrong_way_rate"] == figures["label_wrong_way_rate"] > 0
    assert truth["wrong_way_rate_of_agreeing"] == 0
    assert truth["cosine"] == figures["label_cosine"]


def test_references_are_what_their_names_say(random_steps):
    everything = np.full(60, True)
    figures = step_figures(random_steps, everything)["steps"]
    displacement, label = random_steps.displacement, random_steps.label
    for name, step in (
        ("zero flow", 0 * displacement),
        ("displacement / 25", displacement / 25),
        ("displacement / 10", displacement / 10),
    ):
        assert figures[name]["endpoint_error"] == pytest.approx(np.hypot(*(step - label).T).mean())
    assert figures["zero flow"]["wrong_way_rate"] == 0
    assert figures["best linear"]["minus_best_linear_95"] == [0, 0]


def test_the_difference_to_the_best_linear_step_is_that_of_the_mean_errors(random_steps):
    figures = step_figures(random_steps, random_steps.judged)["steps"]
    difference = figures["backwards"]["endpoint_error"] - figures["best linear"]["endpoint_error"]
    assert figures["backwards"]["minus_best_linear"] == pytest.approx(difference)
    low, high = figures["backwards"]["minus_best_linear_95"]
    assert low < difference < high


def test_agreeing_handles_are_judged_ones_whose_true_step_leads_to_the_target(random_steps):
    dots = (random_steps.label * random_steps.displacement).sum(axis=1)
    np.testing.assert_array_equal(random_steps.agreeing, random_steps.judged & (dots > 0))
    figures = step_figures(random_steps, random_steps.agreeing)
    assert figures["label_wrong_way_rate"] == 0
    for step in figures["steps"].values():
        assert step["wrong_way_rate"] == step["wrong_way_rate_of_agreeing"]


def test_bins_hold_each_judged_handle_once(random_steps):
    bins = random_steps.bins()
    assert list(bins) == ["4-8", "8-16", "16-32", "32+"]
    np.testing.assert_array_equal(sum(inside.astype(int) for inside in bins.values()), random_steps.judged)
    assert not random_steps.judged[np.hypot(*random_steps.displacement.T) <= 4].any()
    assert 0 < random_steps.judged.sum() < 60


def test_no_handles_have_no_figures(random_steps):
    assert step_figures(random_steps, np.full(60, False)) == {"handles": 0}


def test_where_no_label_leads_to_its_target_nothing_is_said_of_those_that_do():
    displacement = np.full((2, 2), 10.0)
    figures = step_figures(make_steps(displacement, -displacement), np.full(2, True))
    assert figures["label_wrong_way_rate"] == 1
    assert figures["steps"]["displacement / 10"]["wrong_way_rate_of_agreeing"] is None


def test_records_are_drawn_anew_with_all_of_their_handles():
    values = np.array([0.0] * 50 + [1.0] * 50)
    assert bootstrap_interval(values, np.repeat([3, 8], 50)) == [0, 1]  # both records from one, one time in four
    low, high = bootstrap_interval(values, np.arange(100))
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)  # binomial
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_a_handle_has_arrived_within_4_px_and_a_sample_if_all_of_its_handles_have():
    sample, distance = np.array([0, 0, 1, 1]), np.array([100.0, 3.0, 40.0, 20.0])
    rollouts = Rollouts(sample, distance, {})
    figures = rollout_figures(rollouts, linear_distances(distance, 0.1))
    ends = distance * 0.9**25  # 7.2, 0.2, 2.9, 1.4
    assert figures["handles"] == 3  # one was at its target already
    assert figures["arrived"] == pytest.approx(2 / 3)
    assert figures["arrived_samples"] == 0.5
    assert figures["remaining"] == pytest.approx(0.9**25)
    assert figures["remaining_per_step"] == pytest.approx(0.9 ** np.arange(26))
    assert figures["arrived_per_step"][0] == 0
    away = np.tile(ends[:, None], 26)
    away[1] = 5.0  # the one that had been there has left
    assert rollout_figures(rollouts, away)["arrived_samples"] == 0.5
    away[2] = 5.0
    assert rollout_figures(rollouts, away)["arrived_samples"] == 0
