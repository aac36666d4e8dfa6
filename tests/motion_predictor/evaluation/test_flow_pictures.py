"""Flows in colours: that colours say what their legend says, and that the picture shows the maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from PIL import Image

from motion_predictor.evaluation.flow_pictures import flow_colours, save_flows
from motion_predictor.evaluation.predictor import Predictor
from motion_predictor.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(maps=3, device="cpu")


def test_hue_is_direction_and_depth_is_length():
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for length in (1.0, 2.5, 5.0):
        flow = length * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None]
        hue, depth, value = np.moveaxis(rgb_to_hsv(flow_colours(flow, longest=5.0)), -1, 0)
        np.testing.assert_allclose(hue[0], angle / (2 * np.pi), atol=1e-6)
        np.testing.assert_allclose(depth, length / 5, atol=1e-6)
        np.testing.assert_allclose(value, 1)


def test_what_is_longer_has_the_deepest_colour_and_what_is_not_known_is_grey():
    flow = np.array([[[7.0, 0.0], [70.0, 0.0], [np.nan, 0.0]]])
    colours = flow_colours(flow, longest=7.0)[0]
    assert colours[0].tolist() == colours[1].tolist() == [1, 0, 0]
    assert len(set(colours[2])) == 1
    assert 0 < colours[2, 0] < 1


@pytest.mark.parametrize(("share", "shown"), [(1.0, 2), (0.0, 1)])
def test_the_picture_has_a_row_for_each_sample_and_shows_what_is_predicted(
    tmp_path: Path, make_shards, share_of_the_displacement, share: float, shown: int
):
    """All goes right: true and, if it is right, predicted maps are all red; the spline, pinned around, is not."""
    predictors = {"it": Predictor.of(share_of_the_displacement(share))}
    save_flows(predictors, make_shards([(0.5, 0.0)]), SETTINGS, [0, 4, 8], tmp_path / "flows.png")
    pixels = np.asarray(Image.open(tmp_path / "flows.png").convert("RGB")).astype(int)
    assert pixels.shape == (3 * 212, 5 * 256, 3)
    red = (pixels[:, :, 0] > 250) & (pixels[:, :, 1:] < 5).all(axis=-1)
    panel = 256 * 192
    assert red.sum() / (3 * panel) == pytest.approx(shown, abs=0.35)
