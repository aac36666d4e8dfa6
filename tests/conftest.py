"""Fixtures of all tests: a pipeline of tiny components, and a picture."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dynadrag_pipeline import DynaDragPipeline
from support.tiny_models import make_scheduler, make_text_encoder, make_unet, make_vae

torch.set_num_threads(1)  # tiny networks gain nothing from threads, and lose much on a busy machine


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks of diffusers' own suites known, where `DIFFUSERS_TESTS` says that these run too."""
    if "DIFFUSERS_TESTS" in os.environ:
        files = Path(os.environ["DIFFUSERS_TESTS"], "tests").rglob("*.py")
        for name in sorted({name for file in files for name in re.findall(r"pytest\.mark\.(\w+)", file.read_text())}):
            config.addinivalue_line("markers", f"{name}: of diffusers' suites")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


@pytest.fixture(scope="session")
def text_encoder() -> CLIPTextModel:
    """For fixtures that live longer than a test, which must leave it as it is."""
    return make_text_encoder()


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def pipe(unet: UNet2DConditionModel, tokenizer: CLIPTokenizer) -> DynaDragPipeline:
    """A pipeline with random weights and without a motion predictor; it edits at 64 pixels."""
    pipeline = DynaDragPipeline(make_vae(), make_text_encoder(), tokenizer, unet, make_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def quick() -> dict[str, object]:
    """Call arguments that make an edit with the tiny pipeline a matter of a second."""
    return {"num_inference_steps": 4, "max_iterations": 3, "supervision_steps": 2, "identity_lora_steps": 2}


@pytest.fixture(scope="session")
def picture() -> torch.Tensor:
    """A smooth random picture, `[3, 80, 96]` in [0, 1]: neither square nor a multiple of the edit's size."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(80, 96), mode="bicubic").clamp(0, 1)[0]
