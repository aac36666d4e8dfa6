"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import dynadrag_pipeline
from support.fake_pipeline import FakePipeline


@pytest.fixture
def pipeline(monkeypatch, tmp_path) -> FakePipeline:
    fake = FakePipeline()
    embedded = tmp_path / "embedded"
    embedded.mkdir()
    monkeypatch.setattr(dynadrag_pipeline, "EMBEDDED_CHECKPOINT", embedded)
    monkeypatch.setattr("dynadrag_pipeline.commands.edit_model.EMBEDDED_CHECKPOINT", embedded)
    monkeypatch.setattr(dynadrag_pipeline.DynaDragPipeline, "from_pretrained", fake.from_pretrained)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return fake


@pytest.fixture
def portrait(tmp_path) -> Path:
    path = tmp_path / "portrait.jpg"
    Image.new("RGB", (96, 80), (90, 60, 30)).save(path)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "results"
