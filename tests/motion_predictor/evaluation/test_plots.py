"""Plot and pictures: that they show what was measured, in the colours of their legends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from motion_predictor.evaluation.evaluate import evaluate
from motion_predictor.evaluation.plots import (
    BEST_LINEAR,
    PREDICTOR_COLOURS,
    REFERENCES,
    TRUE_COLOUR,
    save_plot,
    save_trajectories,
)
from motion_predictor.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(samples=4, rollouts=1, maps=0, pictures=2, device="cpu")
VELOCITIES = [(0.5, -0.25), (-0.75, 0.0)]


def share_of_colour(path: Path, colour: str) -> float:
    pixels = np.asarray(Image.open(path).convert("RGB")) / 255
    return float((np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02).mean())


def test_the_plot_has_a_row_for_each_dataset(tmp_path: Path, make_shards, share_of_the_displacement):
    settings = EvaluationSettings(**{**vars(SETTINGS), "rollouts": 0})
    predictors = {"long": share_of_the_displacement(0.2), "short": share_of_the_displacement(0.05)}
    sources = {name: make_shards(VELOCITIES, name=name) for name in ("clips", "portraits")}
    save_plot(evaluate(predictors, sources, settings), tmp_path)
    assert Image.open(tmp_path / "evaluation.png").size == (1900, 2 * 420)
    for colour in (*PREDICTOR_COLOURS[:2], REFERENCES[BEST_LINEAR][0]):
        assert share_of_colour(tmp_path / "evaluation.png", colour) > 1e-5
    assert [file.name for file in tmp_path.glob("*.png")] == ["evaluation.png"]


def test_pictures_show_the_true_path_and_those_of_all_predictors(
    tmp_path: Path, make_shards, share_of_the_displacement
):
    path = tmp_path / "trajectories.png"
    predictors = {"backwards": share_of_the_displacement(-0.05), "forwards": share_of_the_displacement(0.1)}
    save_trajectories(predictors, make_shards(VELOCITIES), SETTINGS, path)
    width, height = Image.open(path).size
    assert (width, height) == (2 * 384, 384 + 50)
    for colour in (TRUE_COLOUR, *PREDICTOR_COLOURS[:2]):
        assert share_of_colour(path, colour) > 1e-4
    assert share_of_colour(path, PREDICTOR_COLOURS[2]) < 1e-4  # the noise of the frame


def test_without_paths_to_show_there_is_no_picture(tmp_path: Path, make_shards, share_of_the_displacement):
    path = tmp_path / "trajectories.png"
    save_trajectories({"it": share_of_the_displacement(0.1)}, make_shards([(0.015625, 0.0)]), SETTINGS, path)
    assert not path.exists()
