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
        ("steps=0", "`steps` must be .* got 0"),
        ("preset=best", "`preset` must be .* got 'best'"),
        ("data=[]", "`data` must be at least one dataset"),
        ("ema_decay=1.0", "`ema_decay` must be .* got 1.0"),
        ("mixed_precision=fp8", "`mixed_precision` must be .* got 'fp8'"),
        ("learning_rate=0", "`learning_rate` must be .* got 0.0"),
        ("workers=-1", "`workers` must be .* got -1"),
        ("batch_size=10000000", "`batch_size` must be .* at most 4096, got 10000000"),
        ("weight_decay=-1", "`weight_decay` must be .* got -1.0"),
        ("max_gradient_norm=0", "`max_gradient_norm` must be .* got 0.0"),
        ("loss.handle_weight=-1", "`handle_weight` must be .* got -1.0"),
        ("data=[{folder: clips, weight: 0}]", "`weight` must be .* got 0.0"),
        ("samples.min_cosine=2", "`min_cosine` must be .* got 2.0"),
        ("samples.first_end_frame=60", "`first_end_frame` must be .* got 60"),
        ("samples.horizon=-1", "`horizon` must be .* got -1"),
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("out: [\n", "expected the node content.* in line 2"),
        ("out: !!python/object/apply:os.getcwd []\n", "could not determine a constructor.* in line 1"),
        ("- out: runs\n", "a list"),
        ("runs\n", "a value"),
        ("out: " + "[" * 100_000, "more than 20 levels"),
        ("{a: " * 100_000, "more than 20 levels"),
        ("out: \x00\n", "unacceptable character"),
        (b"out: \xff\n", "can't decode"),
        ("out: ${oc.env:HOME}\n", r"'\$\{oc\.env:HOME\}'"),
        ("network: {delta_paint: [disc, '${oc.decode:1}']}\n", r"'\$\{oc\.decode:1\}'"),
        ("out: runs\nstart_from: ${out}\n", r"'\$\{out\}'"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_named_in_one_line(tmp_path: Path, text: str | bytes, reason: str):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"run\.yaml` must be YAML with keys and values, got .*{reason}") as error:
        load_training_config(path)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", ["out=${oc.env:HOME}", "network={a: '${oc.env:HOME}'}", "out=" + "[" * 100_000, "out=[", "steps=\t%"]
)
def test_a_change_that_is_no_plain_yaml_is_named_in_one_line(run_file: Path, change: str):
    with pytest.raises(ValueError, match=r"^`(out|network|steps)=.*` must be a key and a YAML value, got ") as error:
        load_training_config(run_file, [change])
    assert len(str(error.value)) < 500


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8-sig")
    assert load_training_config(path).out == "runs/predictor"
