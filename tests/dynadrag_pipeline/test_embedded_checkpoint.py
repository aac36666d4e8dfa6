"""What the checkpoint in the package can do, on a real portrait that none of its networks has seen."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline


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


def test_it_is_small_half_precision_safetensors():
    files = [file for file in EMBEDDED_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 50e6
    weights = [file for file in files if file.suffix == ".safetensors"]
    networks = {"vae", "text_encoder", "unet", "motion_predictor"}
    assert {file.parent.name for file in weights} == networks | {EMBEDDED_CHECKPOINT.name}
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


@pytest.mark.embedded
@torch.no_grad()
def test_without_an_edit_inversion_and_denoising_lose_little_beside_the_autoencoder(embedded, portrait):
    picture, nose = as_tensor(portrait), [(63.0, 80.0)]
    autoencoder = psnr(embedded.decode_latents(embedded.encode_image(picture)[0]), picture)
    unedited = embedded(portrait, nose, nose, restore_source=False).images[0]
    assert autoencoder > 30
    assert psnr(as_tensor(unedited), picture) > autoencoder - 1.5


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
    """A turn of the head: eyes, nose and chin."""
    handles = np.array([[49.0, 64.5], [77.5, 66.0], [63.5, 80.0], [62.0, 113.5]])
    targets = np.array([[60.0, 64.5], [88.0, 66.0], [76.5, 80.0], [72.5, 113.0]])
    mask = np.zeros((128, 128), dtype=np.float32)
    mask[25:120, 15:115] = 1
    result = embedded(portrait, handles, targets, mask)
    assert result.content.found.all()
    assert result.content.share_of_way > 0.6
    assert result.motion_source == "predicted"
    outside = torch.from_numpy(mask == 0)
    assert psnr(as_tensor(result.images[0])[..., outside], as_tensor(portrait)[..., outside]) > 30
