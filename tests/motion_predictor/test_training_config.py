"""Configuration of training runs: presets, changes, and mistakes that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from motion_predictor.training_config import load_training_config, save_training_config

RUN = "out: runs/predictor\ndata:\n  - folder: data/clips\n    weight: 0.5\n"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_the_paper_preset_is_the_recipe_as_published(run_file: Path):
    config = load_training_config(run_file, ["preset=paper"])
    assert (config.samples.horizon, config.samples.min_cosine, config.samples.augment) == (0, -1.0, False)
    assert (config.loss.handle_weight, config.loss.relative) == (0.0, False)
    assert config.network == {}


def test_the_file_changes_the_preset_and_changes_come_last(run_file: Path):
    run_file.write_text(RUN + "preset: robust\nsamples:\n  augment: false\n  horizon: 5\nsteps: 7\n")
    config = load_training_config(run_file, ["samples.horizon=0", "network.sample_size=64"])
    assert (config.samples.augment, config.samples.horizon, config.steps) == (False, 0, 7)
    assert config.samples.min_cosine == 0.3  # the preset's
    assert config.network["sample_size"] == 64
    assert config.network["delta_paint"] == "disc"  # the preset's
    assert config.data[0].weight == 0.5


def test_a_saved_configuration_is_read_back_the_same(run_file: Path, tmp_path: Path):
    config = load_training_config(run_file, ["samples.horizon=3", "network.hidden_channels_spatial=16"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(save_training_config(config))
    assert load_training_config(saved) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stps=5", "Did you mean: 'steps'"),
        ("samples.horzon=1", "'horzon'"),
        ("steps=many", "'many'.*steps"),
        ("steps=0", "`steps` is 0"),
        ("preset=best", "`preset` is 'best'"),
        ("data=[]", "`data` is empty"),
        ("ema_decay=1.0", "`ema_decay` is 1.0"),
        ("mixed_precision=fp8", "`mixed_precision` is 'fp8'"),
        ("learning_rate=0", "`learning_rate` is 0.0"),
        ("workers=-1", "`workers` is -1"),
        ("samples.min_cosine=2", "`min_cosine` is 2.0"),
        ("samples.first_end_frame=60", "`first_end_frame` is 60"),
        ("samples.horizon=-1", "`horizon` is -1"),
    ],
)
def test_mistakes_name_the_key(run_file: Path, change: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_training_config(run_file, [change])


def test_a_file_without_data_says_so(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("out: runs/predictor\n")
    with pytest.raises(ValueError, match="data"):
        load_training_config(path)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("out: [\n")
    with pytest.raises(ValueError, match=r"run\.yaml"):
        load_training_config(path)
