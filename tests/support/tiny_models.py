"""Tiny components in Stable Diffusion 1.x's layout, with random weights: they prove plumbing, not editing."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from motion_predictor import MotionPredictorModel


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


def make_text_encoder(seed: int = 0) -> CLIPTextModel:
    """One layer of width 16, for the letters of CLIP's alphabet."""
    torch.manual_seed(seed)
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
