"""Tiny components in Stable Diffusion 1.x's layout, with random weights: they prove plumbing, not editing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dynadrag_pipeline import DynaDragPipeline
from motion_predictor import MotionPredictorModel

torch.set_num_threads(1)  # tiny networks gain nothing from threads, and lose much on a busy machine


def make_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels in SD1.5's order of blocks: the last up-block has attention. Latents of 16x16."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=8,
    ).eval()


def make_vae(seed: int = 0) -> AutoencoderKL:
    """Factor 4, four latent channels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def make_scheduler(**changes: object) -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(config | changes))


def make_motion_predictor(seed: int = 0) -> MotionPredictorModel:
    """A SimVP of a few thousand parameters."""
    torch.manual_seed(seed)
    return MotionPredictorModel(
        hidden_channels_spatial=8,
        hidden_channels_translator=16,
        num_translator_blocks=2,
        inception_groups=2,
        sample_size=64,
    ).eval()


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
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    ).eval()


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def pipe(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> DynaDragPipeline:
    """A pipeline with random weights and without a motion predictor; it edits at 64 pixels."""
    pipeline = DynaDragPipeline(make_vae(), text_encoder, tokenizer, unet, make_scheduler())
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
