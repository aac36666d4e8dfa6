"""What the checkpoint in the package can do, on a real portrait that none of its networks has seen."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_SETTINGS, DynaDragPipeline
from dynadrag_pipeline.ddim_inversion import make_ddim_schedulers
from dynadrag_pipeline.drag_engine import DragEngine, DragSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from content_distance import content_distances


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """Eileen Collins, 128x128."""
    return Image.fromarray(data.astronaut()).crop((126, 0, 326, 200)).resize((128, 128), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def embedded() -> DynaDragPipeline:
    pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return -10 * math.log10((first - second).square().mean().item())


@contextmanager
def no_progress(total: int, description: str) -> Iterator[torch.nn.Module]:
    class Bar:
        def update(self) -> None: ...

    yield Bar()


def test_it_is_small_half_precision_safetensors():
    files = [file for file in EMBEDDED_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 50e6
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == {"vae", "text_encoder", "unet", "motion_predictor"}
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


@torch.no_grad()
def test_inversion_and_denoising_lose_less_than_three_decibels_beside_the_autoencoder(embedded, portrait):
    picture = as_tensor(portrait)
    latents, _ = embedded.encode_image(picture)
    sampler, inverse = make_ddim_schedulers(embedded.scheduler.config, 50)
    engine = DragEngine(
        embedded.unet,
        sampler,
        inverse,
        embedded.encode_prompt(""),
        embedded.decode_latents,
        no_progress,
        settings=DragSettings(kv_start_layer=3),
    )
    autoencoder = psnr(embedded.decode_latents(latents), picture)
    round_trip = psnr(embedded.decode_latents(engine.denoise_reference(engine.invert(latents)).latents), picture)
    assert autoencoder > 24
    assert round_trip > autoencoder - 3


def test_the_motion_predictor_sends_the_nose_where_it_is_asked_to_go(embedded, portrait):
    picture, nose = as_tensor(portrait), torch.tensor([[63.0, 80.0]])
    for direction in ([12.0, 0.0], [-12.0, 0.0], [0.0, 10.0]):
        way = torch.tensor(direction)
        flow = embedded.motion_predictor.predict_flow(picture, nose, nose + way)[0]
        step = flow[:, 80, 63]
        assert torch.cosine_similarity(step, way, dim=0) > 0.9
        assert 0.03 < step.norm() / way.norm() < 0.3


@pytest.mark.embedded
def test_an_edit_moves_the_content_towards_its_target(embedded, portrait):
    handles, targets = np.array([[63.0, 80.0]]), np.array([[75.0, 80.0]])  # the tip of the nose
    mask = np.zeros((128, 128), dtype=np.float32)
    mask[25:115, 15:115] = 1
    result = embedded(portrait, handles, targets, mask, **EMBEDDED_SETTINGS)
    source, edited = (np.asarray(picture, dtype=np.float64) / 255 for picture in (portrait, result.images[0]))
    assert content_distances(source, edited, handles, targets)[0] < 0.7 * 12
    assert result.motion_source == "motion_predictor"
