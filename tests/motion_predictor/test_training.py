"""Training: the loss in closed form, the schedule, and runs that are stopped and go on as if they had not been."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch._utils import ExceptionWrapper

from dynadrag_pipeline.cli import main
from motion_predictor import MotionPredictorModel, training
from motion_predictor.data.dataset_folder import DatasetFolder
from motion_predictor.data.samples import MotionSample
from motion_predictor.data.shards import write_shard
from motion_predictor.training import StepSampler, learning_rate_factor, train_motion_predictor
from motion_predictor.training_config import (
    DataSource,
    TrainingConfig,
    load_training_config,
    save_training_config,
)
from support.processes import run_together, train_until_killed

NETWORK = {
    "hidden_channels_spatial": 4,
    "hidden_channels_translator": 8,
    "num_translator_blocks": 2,
    "inception_kernels": [3],
    "inception_groups": 2,
    "sample_size": 16,
    "delta_paint": "disc",
    "straight_share": 0.1,
}


def forget_accelerate_state() -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    forget_accelerate_state()


@pytest.fixture
def dataset(tmp_path: Path, make_motion_record) -> str:
    folder = tmp_path / "data"
    for split in ("train", "val"):
        records = [make_motion_record(f"{split}_{index:06d}", seed=index) for index in range(4)]
        write_shard(folder / split / "clip.tar", records)
    return str(folder)


def make_config(dataset: str, out: Path, **changes) -> TrainingConfig:
    settings = {
        "network": NETWORK,
        "steps": 6,
        "batch_size": 2,
        "save_every": 2,
        "validate_every": 3,
        "validation_samples": 2,
        "workers": 0,
        "warmup_steps": 2,
    }
    return TrainingConfig(out=str(out), data=[DataSource(dataset)], **{**settings, **changes})


def trained_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "motion_predictor" / "diffusion_pytorch_model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    for name, weight in trained_weights(one).items():
        torch.testing.assert_close(weight, trained_weights(other)[name], atol=0, rtol=0, msg=name)


def test_the_learning_rate_rises_stays_and_falls(tmp_path: Path):
    config = make_config("data", tmp_path, steps=100, warmup_steps=10, decay_share=0.2)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == [1.0] * 71
    assert factors[90] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.1


def test_processes_share_the_samples_that_one_would_see(tmp_path: Path):
    config = make_config("data", tmp_path, steps=3, batch_size=2)
    shares = [[index for batch in StepSampler(config, rank, 2, 1) for index in batch] for rank in range(2)]
    assert shares == [[4, 5, 8, 9], [6, 7, 10, 11]]
    whole = make_config("data", tmp_path, steps=3, batch_size=4)
    assert sorted(shares[0] + shares[1]) == [index for batch in StepSampler(whole, 0, 1, 1) for index in batch]


def test_a_run_leaves_a_model_a_log_and_curves(dataset: str, tmp_path: Path):
    folder = train_motion_predictor(make_config(dataset, tmp_path / "run"))
    model = MotionPredictorModel.from_pretrained(folder)
    assert model.config["straight_share"] == 0.1
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "validation_loss" in entry] == [3, 6]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_training_learns_the_motion_of_its_records(dataset: str, tmp_path: Path):
    config = make_config(dataset, tmp_path / "run", steps=60, learning_rate=5e-3, validate_every=60, ema_decay=0.9)
    untrained = training._Run(make_config(dataset, tmp_path / "untrained"))._validate()
    forget_accelerate_state()
    train_motion_predictor(config)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-2])
    assert last["validation_loss"] < 0.7 * untrained


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation": 2}, {"workers": 1}])
def test_a_run_that_fails_at_any_step_and_is_resumed_ends_with_the_same_weights(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
):
    train_motion_predictor(make_config(dataset, tmp_path / "through", **changes))
    descend = training._Run._descend

    for failing in (3, 5):
        calls = iter(range(1000))
        per_step = changes.get("gradient_accumulation", 1)

        def fail(run, batch, calls=calls, at=(failing - 2) * per_step):
            if next(calls) == at:
                raise ZeroDivisionError
            return descend(run, batch)

        monkeypatch.setattr(training._Run, "_descend", fail)
        with pytest.raises(ZeroDivisionError):
            train_motion_predictor(make_config(dataset, tmp_path / "stopped", **changes))
        forget_accelerate_state()
    monkeypatch.setattr(training._Run, "_descend", descend)
    train_motion_predictor(make_config(dataset, tmp_path / "stopped", **changes))
    assert_same_weights(tmp_path / "through", tmp_path / "stopped")
    logged = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(logged)
    assert logged.count(3) == 1


def test_ctrl_c_ends_the_step_saves_and_can_be_resumed(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train_motion_predictor(make_config(dataset, tmp_path / "through"))
    descend = training._Run._descend

    def interrupt(run, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return descend(run, batch)

    monkeypatch.setattr(training._Run, "_descend", interrupt)
    before = signal.getsignal(signal.SIGINT)  # ignored, in the background of a shell
    with pytest.raises(KeyboardInterrupt):
        train_motion_predictor(make_config(dataset, tmp_path / "stopped"))
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-1"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(training._Run, "_descend", descend)
    train_motion_predictor(make_config(dataset, tmp_path / "stopped"))
    assert_same_weights(tmp_path / "through", tmp_path / "stopped")


@dataclass
class Canary:
    """A pickle that makes a folder when it is loaded."""

    folder: str

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def stopped_run(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of 6 steps that was stopped after the fourth."""
    descend, calls = training._Run._descend, iter(range(1000))

    def fail(run, batch):
        if next(calls) == 4:
            raise ZeroDivisionError
        return descend(run, batch)

    with monkeypatch.context() as failing:
        failing.setattr(training._Run, "_descend", fail)
        with pytest.raises(ZeroDivisionError):
            train_motion_predictor(make_config(dataset, tmp_path / "stopped"))
    forget_accelerate_state()
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    return tmp_path / "stopped"


@pytest.mark.parametrize("write", [lambda canary, path: path.write_bytes(pickle.dumps(canary)), torch.save])
def test_no_file_of_a_run_can_run_code(dataset: str, tmp_path: Path, stopped_run: Path, write: Callable):
    train_motion_predictor(make_config(dataset, tmp_path / "through"))
    forget_accelerate_state()
    canary = Canary(str(tmp_path / "escaped"))
    checkpoint = stopped_run / "checkpoint-4"
    ours = sorted(checkpoint.iterdir())
    for path in ours:
        sound = path.read_bytes()
        write(canary, path)
        with pytest.raises(ValueError, match=rf"`{re.escape(str(path))}` must be .*: remove the folder"):
            train_motion_predictor(make_config(dataset, stopped_run))
        forget_accelerate_state()
        path.write_bytes(sound)
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "pytorch_model.bin", "random_states_0.pkl", "sampler.bin",
                 "scaler.pt", "scheduler.bin"):  # fmt: skip
        write(canary, checkpoint / name)  # files that accelerate knows
    train_motion_predictor(make_config(dataset, stopped_run))
    assert_same_weights(tmp_path / "through", stopped_run)
    assert not Path(canary.folder).exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("checkpoint-4/state.safetensors", lambda content: content[: len(content) // 2]),
        ("checkpoint-4/state.safetensors", lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
        ("checkpoint-4/state.safetensors", lambda content: b""),
        ("checkpoint-4/state.json", lambda content: content[:-9]),
        ("checkpoint-4/state.json", lambda content: b"[]"),
        ("config.yaml", lambda content: b"out: ["),
        ("config.yaml", lambda content: b"\xff"),
        ("log.jsonl", lambda content: b"{}\n" + content),
    ],
)
def test_damaged_files_of_a_run_are_named(dataset: str, stopped_run: Path, name: str, damage: Callable):
    path = stopped_run / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"`{re.escape(str(path))}`.* must be .* got ") as error:
        train_motion_predictor(make_config(dataset, stopped_run))
    assert len(str(error.value)) < 600


def test_a_damaged_shard_is_named(dataset: str, tmp_path: Path):
    shard = Path(dataset, "train", "clip.tar")
    DatasetFolder(Path(dataset)).mark_finished("clip", {"status": "done", "split": "train", "records": 4})
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=rf"^`{re.escape(str(shard))}` must be as it was written") as error:
        train_motion_predictor(make_config(dataset, tmp_path / "run"))
    assert len(str(error.value)) < 400


def test_errors_of_processes_that_draw_samples_say_what_they_say_without_a_traceback():
    def batches() -> Iterator[MotionSample]:
        try:
            raise ValueError("`train/clip.tar` must be as it was written")
        except ValueError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # as torch carries errors over
        wrapped.reraise()
        yield

    with pytest.raises(ValueError, match=r"^`train/clip\.tar` must be as it was written$"):
        next(training._with_plain_errors(batches()))


def test_a_checkpoint_that_lacks_a_file_is_named(dataset: str, stopped_run: Path):
    (stopped_run / "checkpoint-4" / "state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4` must be a checkpoint with `state\.json`, got none: remove"):
        train_motion_predictor(make_config(dataset, stopped_run))


def test_a_checkpoint_of_another_network_is_named(dataset: str, tmp_path: Path, stopped_run: Path):
    wider = {**NETWORK, "hidden_channels_translator": 16}
    train_motion_predictor(make_config(dataset, tmp_path / "wider", network=wider, steps=4))
    forget_accelerate_state()
    shutil.rmtree(stopped_run / "checkpoint-4")
    shutil.copytree(tmp_path / "wider" / "checkpoint-4", stopped_run / "checkpoint-4")
    with pytest.raises(ValueError, match="checkpoint-4` must be a checkpoint of this network"):
        train_motion_predictor(make_config(dataset, stopped_run))


def test_a_folder_with_another_run_is_refused(dataset: str, tmp_path: Path):
    train_motion_predictor(make_config(dataset, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"`learning_rate` must be 0\.001, .* got 0\.01"):
        train_motion_predictor(make_config(dataset, tmp_path / "run", learning_rate=0.01))


def test_a_run_can_be_prolonged(dataset: str, tmp_path: Path):
    train_motion_predictor(make_config(dataset, tmp_path / "run", decay_share=0.0))
    train_motion_predictor(make_config(dataset, tmp_path / "run", decay_share=0.0, steps=8))
    train_motion_predictor(make_config(dataset, tmp_path / "through", decay_share=0.0, steps=8))
    assert_same_weights(tmp_path / "through", tmp_path / "run")


def test_training_begins_with_the_weights_and_the_layers_of_another_model(dataset: str, tmp_path: Path):
    """After steps of no length the weights are those of the beginning; how points are drawn is the run's own."""
    first = MotionPredictorModel(**{**NETWORK, "straight_share": 0.0})
    first.save_pretrained(tmp_path / "first")
    config = make_config(
        dataset,
        tmp_path / "run",
        start_from=str(tmp_path / "first"),
        network={"sample_size": 16, "straight_share": 0.1},
        steps=1,
        learning_rate=1e-30,
        weight_decay=0.0,
    )
    trained = MotionPredictorModel.from_pretrained(train_motion_predictor(config))
    assert trained.config["hidden_channels_translator"] == NETWORK["hidden_channels_translator"]
    assert trained.config["straight_share"] == 0.1
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weight, msg=name)


def test_layers_of_another_shape_than_those_to_begin_with_are_refused(dataset: str, tmp_path: Path):
    MotionPredictorModel(**NETWORK).save_pretrained(tmp_path / "first")
    wider = {**NETWORK, "hidden_channels_translator": 16}
    with pytest.raises(ValueError, match=r"`start_from`.*hidden_channels_translator"):
        train_motion_predictor(
            make_config(dataset, tmp_path / "run", start_from=str(tmp_path / "first"), network=wider)
        )


@pytest.mark.parametrize("size", [None, 10_000_000])
def test_training_pictures_have_a_size_that_fits_into_memory(dataset: str, tmp_path: Path, size: int | None):
    config = make_config(dataset, tmp_path / "run", network={**NETWORK, "sample_size": size})
    with pytest.raises(ValueError, match=rf"`network\.sample_size` must be .* at most 4096, got {size}\."):
        train_motion_predictor(config)


def test_missing_data_say_how_to_build_them(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="dynadrag build-dataset"):
        train_motion_predictor(make_config(str(tmp_path / "nothing"), tmp_path / "run"))


def test_two_processes_killed_and_resumed_end_with_the_weights_of_the_command(dataset: str, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(save_training_config(make_config(dataset, tmp_path / "through")))
    assert run_together(main, ["train-motion-predictor", str(file)]) == [0, 0]
    stopped = load_training_config(file, [f"out={tmp_path / 'stopped'}"])
    run_together(train_until_killed, stopped, 5)
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / "stopped" / "motion_predictor").exists()
    run_together(train_motion_predictor, stopped)
    assert_same_weights(tmp_path / "through", tmp_path / "stopped")
