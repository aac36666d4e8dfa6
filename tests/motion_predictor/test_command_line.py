"""The commands of the motion predictor: from a video to a measured predictor, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dynadrag_pipeline.cli import main
from motion_predictor import MotionPredictorModel


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """40 frames of a smooth random texture that drifts by 1 px a frame to the right."""
    random = np.random.default_rng(0)
    coarse = np.kron(random.integers(40, 215, (12, 40, 3)), np.ones((8, 8, 1)))
    texture = (coarse + np.roll(coarse, 3, axis=0) + np.roll(coarse, 3, axis=1)) / 3
    path = tmp_path / "drift.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.bit_rate = 128, 96, 4_000_000
        for index in range(40):
            picture = np.ascontiguousarray(texture[:, 60 - index : 188 - index]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_from_a_video_to_a_measured_predictor(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    build = ["build-dataset", str(video), "--short-side", "48", "--records-per-video", "2", "--candidates", "32"]
    build += ["--no-reverse", "--max-frames", "18"]
    data, run, figures = tmp_path / "data", tmp_path / "run", tmp_path / "figures"
    assert main([*build, "--region", "whole", "--val-share", "0", "--out", str(data)]) == 0
    assert main([*build, "--region", "whole", "--val-share", "1", "--out", str(tmp_path / "held-out")]) == 0
    assert "point away" in capsys.readouterr().out
    assert (data / "statistics.png").stat().st_size > 0

    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {run}\ndata: [{{folder: {data}}}]\nsteps: 500\nbatch_size: 2\nworkers: 0\nvalidate_every: 0\n"
        "network: {hidden_channels_spatial: 4, hidden_channels_translator: 8, num_translator_blocks: 2,"
        " inception_kernels: [3], inception_groups: 2, sample_size: 16}\n"
    )
    assert main(["train-motion-predictor", str(config), "steps=2"]) == 0
    assert MotionPredictorModel.from_pretrained(run / "motion_predictor").config["delta_paint"] == "disc"

    evaluate = ["evaluate-motion-predictor", "--model", str(run), "--data", str(tmp_path / "held-out")]
    counts = ["--samples", "4", "--rollouts", "2", "--pictures", "1"]
    assert main([*evaluate, *counts, "--out", str(figures)]) == 0
    results = json.loads((figures / "evaluation.json").read_text())
    steps = results["sources"]["held-out"]["steps"]["all"]["steps"]
    assert (
        steps["run"]["endpoint_error"] < steps["zero flow"]["endpoint_error"]
    )  # a tenth of the displacement, from the start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-motion-predictor", "missing.yaml"], "missing.yaml"),
        (["train-motion-predictor", "missing.yaml", "200"], "`KEY=VALUE` must be such as steps=200, got '200'"),
        (["evaluate-motion-predictor", "--model", "m", "--data", "nowhere", "--out", "o"], "nowhere"),
        (["build-dataset", "nowhere.mp4", "--out", "o"], "nowhere.mp4"),
        (["build-dataset", "nowhere.mp4", "--out", "o", "--max-frames", "15"], "`max_frames` must be"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynadrag: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["build-dataset", "v", "--val-share", "2"],
            "--val-share: must be a finite number of at least 0 and at most 1",
        ),
        (["build-dataset", "v", "--short-side", "10000000"], "--short-side: must be a whole number of at least 32"),
        (["build-dataset", "v", "--region", "hands"], "--region: must be one of 'motion', "),
        (["build-portraits", "p", "--landmarks", "l", "--size", "1e3"], "--size: must be a whole number"),
        (["evaluate-motion-predictor", "--batch-size", "10000000"], "--batch-size: must be a whole number"),
    ],
)
def test_values_that_are_not_accepted_are_told_with_the_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--out", "o"])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) <= 3


def test_a_missing_package_is_told_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    (tmp_path / "run.yaml").write_text("out: runs\n")
    assert main(["train-motion-predictor", str(tmp_path / "run.yaml")]) == 2
    assert "pip install 'dynadrag[training]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["build-dataset", "build-portraits", "train-motion-predictor", "evaluate-motion-predictor"]
)
def test_help_teaches_with_examples_and_loads_no_torch(command: str):
    code = (
        "import sys; from dynadrag_pipeline.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f"dynadrag {command}" in shown.split("example")[-1]


def test_a_dataset_of_nothing_is_an_error_that_says_where_to_look(tmp_path: Path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "face.png")
    assert main(["build-dataset", str(tmp_path / "face.png"), "--out", str(tmp_path / "set")]) != 0
    assert f"not a single record came of this; the files in {tmp_path / 'set' / 'videos'}" in capsys.readouterr().err
