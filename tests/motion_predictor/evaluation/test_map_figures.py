"""Figures of whole maps against means that are taken by hand."""

from __future__ import annotations

import numpy as np
import pytest

from motion_predictor.evaluation.map_figures import map_figures
from motion_predictor.evaluation.maps import Maps
from support.known_maps import make_maps


def test_errors_are_means_over_samples_and_are_compared_with_the_splines():
    figures = map_figures(make_maps())
    assert (figures["samples"], figures["videos"]) == (8, 8)
    maps = figures["whole"]["all"]["all"]["maps"]
    mean = np.mean(np.arange(1, 9))
    assert maps["it, rolled out"]["endpoint_error"] == pytest.approx(0.5 * mean)
    assert maps["it, rolled out"]["minus_spline"] == pytest.approx(0.3 * mean)
    assert maps["it, rolled out"]["of_spline"] == pytest.approx(2.5)
    assert maps["it, rolled out"]["of_spline_95"] == pytest.approx([2.5, 2.5])  # it is paired
    low, high = maps["it, rolled out"]["minus_spline_95"]
    assert low < 0.3 * mean < high
    assert maps["spline"]["minus_spline_95"] == [0, 0]
    assert [maps[name]["size"] for name in ("it, rolled out", "affine")] == pytest.approx([0.5, 1.2])


def test_a_sample_counts_as_much_as_another_whatever_its_number_of_pixels():
    maps = make_maps(samples=2)
    few = np.concatenate([np.arange(30), [30, 31]])  # all of the first sample, two pixels of the second
    cut = Maps(
        **{
            **vars(maps),
            **{name: getattr(maps, name)[few] for name in ("sample", "distance", "step", "whole")},
            "steps": {name: values[few] for name, values in maps.steps.items()},
            "wholes": {name: values[few] for name, values in maps.wholes.items()},
        }
    )
    figure = map_figures(cut)["whole"]["all"]["all"]["maps"]["zero flow"]
    assert figure["endpoint_error"] == pytest.approx((1 + 2) / 2)


def test_numbers_of_handles_and_distances_have_figures_of_their_own():
    whole = map_figures(make_maps())["whole"]
    for handles, lengths in {"1": [1, 5], "7": [4, 8], "1 or 2": [1, 2, 5, 6], "3 or 7": [3, 4, 7, 8]}.items():
        assert whole[handles]["all"]["samples"] == len(lengths)
        assert whole[handles]["all"]["maps"]["zero flow"]["endpoint_error"] == pytest.approx(np.mean(lengths))
    assert list(whole["all"]) == ["all", "0-8", "8-24", "over 24"]
    maps = make_maps()
    near = maps.distance < 8
    maps.wholes["it, rolled out"][near] = maps.whole[near]
    bins = map_figures(maps)["whole"]["1"]
    assert [bins[name]["maps"]["it, rolled out"]["size"] for name in bins] == pytest.approx([19 / 30, 1, 0.5, 0.5])


def test_references_go_the_best_share_of_their_way_as_a_step():
    figures = map_figures(make_maps())
    assert figures["shares"]["best share of spline"] == pytest.approx(0.125)  # 0.8 of the way, of which a tenth
    assert figures["shares"]["best share of true way"] == pytest.approx(0.1)
    steps = figures["step"]["all"]["all"]["maps"]
    assert steps["best share of spline"]["endpoint_error"] == pytest.approx(0, abs=1e-6)
    assert steps["it"]["endpoint_error"] == pytest.approx(0.05 * 4.5)
    assert steps["it"]["size"] == pytest.approx(0.05)


def test_steps_are_judged_where_they_are_known():
    maps = make_maps(samples=1)
    maps.step[:10] = np.nan
    maps.steps["it"][:10] = 1000.0
    assert map_figures(maps)["step"]["1"]["all"]["maps"]["it"]["endpoint_error"] == pytest.approx(0.05)
    maps.step[:] = np.nan
    assert map_figures(maps)["step"]["1"]["all"] == {"samples": 0}


def test_what_points_aside_has_no_cosine_and_what_points_back_a_negative_one():
    maps = make_maps()
    maps.wholes["it, rolled out"][:] = maps.whole[:, ::-1]
    maps.wholes["rigid"][:] = -maps.whole
    figures = map_figures(maps)["whole"]["all"]["all"]["maps"]
    assert figures["it, rolled out"]["cosine"] == 0
    assert figures["rigid"]["cosine"] == pytest.approx(-1)


def test_samples_are_ordered_by_the_share_of_their_motion_that_the_first_map_leaves():
    maps = make_maps(samples=3)
    for sample, share in enumerate((0.2, 0.9, 0.5)):
        maps.wholes["it, rolled out"][maps.sample == sample] = share * maps.whole[maps.sample == sample]
    assert map_figures(maps)["order"] == [101, 102, 100]
