"""The benchmark of a GPU runs without one, with tiny networks, and with a stand-in for what a GPU captures."""

from __future__ import annotations

import json
from dataclasses import replace

import gpu
import pytest
import torch
from random_networks import random_networks

from support.standin_graph import StandInCapture

CPU = torch.device("cpu")
LEAST = replace(gpu.TINY, steps=2, lora_steps=1, eager_lora_steps=1, repeats=1, dtypes=("float32",), is_whole=False)


@pytest.fixture
def stand_in(monkeypatch) -> None:
    for module in ("graphed_denoiser", "session"):
        monkeypatch.setattr(f"dynadrag_pipeline.{module}.capture_on", lambda device: StandInCapture())
    monkeypatch.setattr(gpu, "TINY", LEAST)


def test_every_section_of_a_run_comes_to_something(stand_in, tmp_path, capsys):
    results = gpu.main(["--device", "cpu", "--tiny", "--dtype", "float32", "--out", str(tmp_path)])
    assert not [title for title, rows in results.items() if isinstance(rows, str)], capsys.readouterr().err
    assert json.loads((tmp_path / "gpu.json").read_text()) == json.loads(json.dumps(results))
    passes = results["passes"]
    assert all(row["apart"] == 0 for row in passes.values()), "the stand-in computes what Python does"
    assert results["one iteration"]["replayed and by Python"]["latent apart"] == 0
    assert results["identity LoRA"]["replayed"]["apart"] == 0
    assert results["repeats"]["float32"]["two calls"] == "the same bits"
    stages = results["edits"]["exact"]["stages"]
    assert {"inversion", "reference", "motion prediction", "motion supervision", "denoising"} <= set(stages)
    assert results["edits"]["exact"]["over the floor"] > 0
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {title}" in text for title in ("passes", "edits", "memory", "bars"))


def test_a_section_that_fails_leaves_the_others(stand_in, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    for name in ("passes", "edits", "lora", "whole", "busy"):
        monkeypatch.setattr(gpu.Bench, name, fail)
    results = gpu.main(["--device", "cpu", "--tiny", "--dtype", "float32", "--out", str(tmp_path)])
    assert results["edits"] == "failed: RuntimeError: out of memory\n"
    assert results["bars"]["LoRA, seconds: at most 6"]["holds"] == "not measured"
    assert "two calls" in results["repeats"]["float32"]


def test_a_gpu_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "no CUDA here" in capsys.readouterr().err


def test_random_networks_are_the_same_each_time():
    first, second = (random_networks(CPU, torch.bfloat16, is_tiny=True) for _ in range(2))
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(first.unet.parameters(), second.unet.parameters(), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)
