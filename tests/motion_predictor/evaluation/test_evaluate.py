"""Evaluations of predictors whose figures are known, and of small networks; what is written, and when not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motion_predictor import MotionPredictorModel
from motion_predictor.evaluation.evaluate import evaluate, evaluate_motion_predictor, short_names
from motion_predictor.evaluation.report import format_table
from motion_predictor.evaluation.settings import EvaluationSettings
from motion_predictor.points import sample_flow

SETTINGS = EvaluationSettings(samples=8, rollouts=4, maps=0, pictures=3, batch_size=3, device="cpu")
VELOCITIES = [(0.5, -0.25), (-0.75, 0.0), (0.25, 0.5)]


def make_network(seed: int = 0) -> MotionPredictorModel:
    torch.manual_seed(seed)
    return MotionPredictorModel(
        hidden_channels_spatial=4,
        hidden_channels_translator=8,
        num_translator_blocks=2,
        inception_kernels=(3,),
        inception_groups=2,
        sample_size=32,
    ).eval()


def evaluate_one(predictor, shards, **changes) -> dict:
    settings = EvaluationSettings(**{**vars(SETTINGS), **changes})
    return evaluate({"it": predictor}, {"data": shards}, settings)["sources"]["data"]


def numbers_of(results) -> list[float]:
    """All numbers of nested results, in their order."""
    if isinstance(results, dict):
        return [number for value in results.values() for number in numbers_of(value)]
    if isinstance(results, list):
        return [number for value in results for number in numbers_of(value)]
    return [results] if isinstance(results, int | float) else []


def test_zero_flow_is_wrong_by_the_length_of_the_step(make_shards, share_of_the_displacement):
    """Ends are 15 to 20 frames away: a label over a tenth of them, rounded up, is the motion over two."""
    shards = make_shards([(0.5, -0.25)])
    steps = evaluate_one(share_of_the_displacement(0), shards, rollouts=0)["steps"]["all"]["steps"]
    for name in ("zero flow", "it"):
        assert steps[name]["endpoint_error"] == pytest.approx(2 * np.hypot(0.5, 0.25), abs=1e-3)


@pytest.mark.parametrize(("horizon", "frames"), [(0, 1), (20, 1), (10, 2), (7, 3)])
def test_labels_are_the_motion_over_the_horizon(make_shards, share_of_the_displacement, horizon: int, frames: int):
    shards = make_shards([(0.5, 0.0)])
    steps = evaluate_one(share_of_the_displacement(0), shards, rollouts=0, horizon=horizon)["steps"]["all"]["steps"]
    assert steps["it"]["endpoint_error"] == pytest.approx(0.5 * frames, abs=1e-3)


def test_the_best_linear_step_is_not_beaten_by_itself(make_shards, share_of_the_displacement):
    shards = make_shards(VELOCITIES)
    share = evaluate_one(share_of_the_displacement(0), shards)["steps"]["all"]["best_linear_share"]
    figures = evaluate_one(share_of_the_displacement(share), shards)["steps"]["all"]["steps"]["it"]
    assert figures["minus_best_linear"] == pytest.approx(0, abs=1e-5)
    assert figures["minus_best_linear_95"] == pytest.approx([0, 0], abs=1e-5)


def test_a_predictor_that_points_backwards_goes_only_wrong_ways(make_shards, share_of_the_displacement):
    figures = evaluate_one(share_of_the_displacement(-0.1), make_shards(VELOCITIES), rollouts=0)["steps"]["all"]
    assert figures["label_wrong_way_rate"] == 0
    assert figures["steps"]["it"]["wrong_way_rate"] == 1
    assert figures["steps"]["it"]["wrong_way_rate_of_agreeing"] == 1


def test_wrong_ways_of_labels_are_counted_beside(make_shards, share_of_the_displacement):
    shards = make_shards([(0.5, 0.0)] * 2, backwards=[0])
    figures = evaluate_one(share_of_the_displacement(0.1), shards, rollouts=0)["steps"]["all"]
    assert 0.1 < figures["label_wrong_way_rate"] < 0.9
    assert figures["label_cosine"] == pytest.approx(1 - 2 * figures["label_wrong_way_rate"])
    assert figures["steps"]["it"]["wrong_way_rate"] == 0


def test_a_geometric_rollout_leaves_what_can_be_computed_by_hand(make_shards, share_of_the_displacement):
    rollouts = evaluate_one(share_of_the_displacement(0.1), make_shards(VELOCITIES))["rollouts"]
    for kind in ("picture stays", "picture stays, guarded", "picture warped", "picture warped, guarded"):
        figures = rollouts["it"][kind]
        assert figures["remaining_per_step"] == pytest.approx(0.9 ** np.arange(26), abs=1e-4)
        assert figures["samples"] == 4
    assert rollouts["displacement / 10"]["any picture"]["arrived"] == rollouts["it"]["picture stays"]["arrived"]


def test_distances_are_those_of_512_pixels_whatever_the_size_of_the_frames(make_shards, share_of_the_displacement):
    small = evaluate_one(share_of_the_displacement(0.1), make_shards(VELOCITIES, name="small"))
    large = evaluate_one(share_of_the_displacement(0.1), make_shards(VELOCITIES, scale=2, name="large"))
    assert large["handles"] == small["handles"]
    for title, figures in small["steps"].items():
        assert large["steps"][title]["handles"] == figures["handles"]
    for key in ("arrived", "arrived_samples", "remaining"):
        kinds = ("it", "picture stays")
        small_figure, large_figure = (source["rollouts"][kinds[0]][kinds[1]][key] for source in (small, large))
        assert large_figure == pytest.approx(small_figure, abs=1e-4)
    errors = [source["steps"]["all"]["steps"]["displacement / 25"]["endpoint_error"] for source in (small, large)]
    assert errors[1] == pytest.approx(2 * errors[0], rel=1e-3)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(make_shards):
    shards, network = make_shards(VELOCITIES), make_network()
    first, again = (evaluate_one(network.predict_flow, shards, samples=4, rollouts=1) for _ in range(2))
    assert first == again
    assert numbers_of(evaluate_one(network.predict_flow, shards, samples=4, rollouts=1, seed=1)) != numbers_of(first)


def test_figures_do_not_depend_on_the_size_of_batches(make_shards):
    """A network's first steps; and rollouts of a predictor that looks at the picture but does not amplify rounding."""
    shards, network = make_shards(VELOCITIES), make_network()

    def towards_the_light(image, handles, targets, valid):
        share = 0.2 * sample_flow(image[:, :2], handles).mean(dim=-1)  # [B, N]
        step = (share[..., None] * (targets - handles)).mean(dim=1)
        return step[:, :, None, None].expand(-1, 2, *image.shape[2:])

    for predictor, rollouts in ((network.predict_flow, 0), (towards_the_light, 4)):
        one, other = (evaluate_one(predictor, shards, rollouts=rollouts, batch_size=size) for size in (1, 5))
        assert numbers_of(one) == pytest.approx(numbers_of(other), abs=1e-4)


def test_records_of_several_sizes_are_judged_together(tmp_path: Path, make_shards, share_of_the_displacement):
    from motion_predictor.data.shards import MotionShards

    make_shards([(0.5, 0.0)], name="mixed")
    make_shards([(0.5, 0.0)], scale=2, name="large")
    (tmp_path / "large" / "val" / "clip.tar").rename(tmp_path / "mixed" / "val" / "wide.tar")
    figures = evaluate_one(share_of_the_displacement(0.1), MotionShards(tmp_path / "mixed", "val"))
    assert (figures["records"], figures["samples"]) == (2, 8)


def test_motion_too_small_to_judge_is_named(make_shards, share_of_the_displacement):
    with pytest.raises(ValueError, match=r"no handle in 8 samples of .* 4 px"):
        evaluate_one(share_of_the_displacement(0.1), make_shards([(0.015625, 0.0)]))


@pytest.fixture
def folders(tmp_path: Path, make_shards) -> tuple[list[str], list[str]]:
    """Two models, in a folder of their own and in that of a training run, and two datasets."""
    make_network(0).save_pretrained(tmp_path / "first")
    make_network(1).save_pretrained(tmp_path / "second" / "motion_predictor")
    make_shards(VELOCITIES, name="clips")
    make_shards(VELOCITIES[::-1], name="portraits")
    return [str(tmp_path / name) for name in ("first", "second")], [
        str(tmp_path / name) for name in ("clips", "portraits")
    ]


def test_models_are_compared_in_one_table_and_files_are_whole(tmp_path: Path, folders):
    models, data = folders
    out = tmp_path / "out"
    settings = EvaluationSettings(**{**vars(SETTINGS), "samples": 4, "rollouts": 1, "maps": 2, "pictures": 2})
    results = evaluate_motion_predictor(models, data, out, settings)
    assert json.loads((out / "evaluation.json").read_text()) == results
    table = (out / "evaluation.md").read_text()
    assert table == format_table(results)
    for words in (
        "## clips",
        "## portraits",
        "| first |",
        "| second |",
        "| best linear |",
        "| labels |",
        "### Whole maps",
        "| first, rolled out |",
    ):
        assert words in table
    kinds = ("flows", "trajectories")
    pictures = ["evaluation.png", *(f"{kind}-{name}.png" for kind in kinds for name in ("clips", "portraits"))]
    assert sorted(file.name for file in out.iterdir()) == ["evaluation.json", "evaluation.md", *pictures]
    for name in pictures:
        Image.open(out / name).load()


def test_the_table_shows_the_figures_of_each_step_and_bin(make_shards, share_of_the_displacement):
    shards = make_shards([(0.5, -0.25)])
    results = evaluate({"it": share_of_the_displacement(-0.1)}, {"data": shards}, SETTINGS)
    rows = {row.split(" | ")[0].strip("| "): row for row in reversed(format_table(results).splitlines())}
    assert rows["zero flow"].startswith("| zero flow | 1.118 | +")
    assert rows["it"].endswith("| -1.000 | 100.0% | 100.0% |")
    assert rows["labels"].endswith("| 1.000 | 0.0% | 0.0% |")
    assert "| it | picture stays, guarded | 100.0% | 100.0% | 0.0% |" in format_table(results)
    count = results["sources"]["data"]["handles"]
    assert f"64+ px away ({count})" not in format_table(results)  # all displacements are of 90 to 120 px
    assert f"32+ px away ({count})" in format_table(results)


def test_an_interrupted_evaluation_leaves_older_results_as_they_were(tmp_path: Path, folders, monkeypatch):
    models, data = folders
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text("{}")

    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(MotionPredictorModel, "predict_flow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_motion_predictor(models, data, out, SETTINGS)
    assert [file.name for file in out.iterdir()] == ["evaluation.json"]
    assert (out / "evaluation.json").read_text() == "{}"


def test_paths_are_called_by_what_tells_them_apart():
    assert list(short_names(["a/motion_predictor", "b/motion_predictor"])) == [
        "a/motion_predictor",
        "b/motion_predictor",
    ]
    assert list(short_names(["runs/a", "other/b"])) == ["a", "b"]
    with pytest.raises(ValueError, match="`paths` must be different"):
        short_names(["a", "./a"])


@pytest.mark.parametrize("change", [{"samples": 0}, {"rollouts": -1}, {"batch_size": 0}, {"split": "test"}])
def test_settings_out_of_range_are_named(change: dict):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
        EvaluationSettings(**change)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str):
    with pytest.raises(ValueError, match=f"`device` must be one that is there, .* got '{device}'"):
        _ = EvaluationSettings(device=device).torch_device
