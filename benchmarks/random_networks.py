"""Networks of Stable Diffusion 1.5's size with random weights, built where they run: what they cost does not depend on
their values.

On a GPU that takes less than a second; on the CPU over a minute. `tiny` ones take no time anywhere, and prove nothing
but that a benchmark runs.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from motion_predictor import MotionPredictorModel

TINY_UNET = {
    "sample_size": 32,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
TINY_PREDICTOR = {"hidden_channels_spatial": 8, "hidden_channels_translator": 16, "num_translator_blocks": 2}


@dataclass
class RandomNetworks:
    """The networks of an edit, and the embedding of a prompt; frozen, on their device.

    Attributes:
        side (`int`): pixels of the pictures that they are for.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    predictor: MotionPredictorModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    side: int

    @property
    def prompt_embeds(self) -> torch.Tensor:
        """`(1, 77, width)`, of no prompt."""
        generator = torch.Generator().manual_seed(0)
        width = self.unet.config.cross_attention_dim
        return torch.randn(1, 77, width, generator=generator).to(self.unet.device, self.unet.dtype)

    def pipeline(self) -> DynaDragPipeline:
        """A pipeline of them."""
        models = (self.vae, self.text_encoder, self.tokenizer, self.unet, self.scheduler)
        pipe = DynaDragPipeline(*models, motion_predictor=self.predictor)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def random_networks(device: torch.device | str, dtype: torch.dtype, is_tiny: bool = False) -> RandomNetworks:
    """The same ones each time on the same device."""
    channels, default = (8, 8, 8) if is_tiny else (128, 256, 512, 512), torch.get_default_dtype()
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_CHECKPOINT / "tokenizer")
    width = 16 if is_tiny else 768
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = (
                UNet2DConditionModel(cross_attention_dim=width, **TINY_UNET)
                if is_tiny
                else UNet2DConditionModel(sample_size=64, cross_attention_dim=width, attention_head_dim=8)
            )
            vae = AutoencoderKL(
                block_out_channels=channels,
                layers_per_block=1 if is_tiny else 2,
                down_block_types=("DownEncoderBlock2D",) * len(channels),
                up_block_types=("UpDecoderBlock2D",) * len(channels),
                norm_num_groups=4 if is_tiny else 32,
            )
            predictor = MotionPredictorModel(**(TINY_PREDICTOR | {"sample_size": 64} if is_tiny else {}))
            text_encoder = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_hidden_layers=1 if is_tiny else 12,
                    num_attention_heads=2 if is_tiny else 12,
                    eos_token_id=0,
                )
            )
    finally:
        torch.set_default_dtype(default)
    for model in (unet, vae, predictor, text_encoder):
        model.eval().requires_grad_(False)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return RandomNetworks(unet, vae, predictor, text_encoder, tokenizer, scheduler, 128 if is_tiny else 512)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing else has to be waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: torch.device) -> None:
    """Begin to measure memory anew, on a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Bytes at most: what torch had allocated on a GPU, or else what the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
