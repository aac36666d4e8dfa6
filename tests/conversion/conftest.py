"""Folders that tests of conversions read and never change: saved once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTextModel, CLIPTokenizer

from dynadrag_pipeline import DynaDragPipeline
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet, make_vae


@pytest.fixture(scope="session")
def base(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline without a motion predictor."""
    folder: Path = tmp_path_factory.mktemp("pipeline") / "base"
    DynaDragPipeline(make_vae(), text_encoder, tokenizer, make_unet(), make_scheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny motion predictor."""
    folder: Path = tmp_path_factory.mktemp("predictor")
    make_motion_predictor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, as a pipeline's is."""
    folder: Path = tmp_path_factory.mktemp("words")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
