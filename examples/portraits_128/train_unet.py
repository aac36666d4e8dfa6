"""Train the UNet of the embedded checkpoint on the latents of the trained autoencoder.

python examples/portraits_128/train_unet.py --pictures portraits.zip faces.zip --hold-out faces.zip \\
    --vae runs/vae/vae --out runs/unet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from fit import fit
from portraits import load_portraits
from start_from import load_matching
from text_encoder import EMBEDDING_SIZE, empty_prompt_embedding
from tqdm import tqdm

MIN_SNR_GAMMA = 5.0


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """Three levels in SD1.5's order of blocks (the coarsest without attention), 10.8 M parameters."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(48, 96, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=EMBEDDING_SIZE,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_posteriors(vae: AutoencoderKL, pictures: torch.Tensor, cache: Path, bfloat16: bool) -> torch.Tensor:
    """Mean and log-variance of each picture and of its mirror image: `[2, N, 2 c, h, w]` float16, kept in `cache`."""
    if cache.exists():
        return torch.load(cache, weights_only=True)
    moments = []
    for part in tqdm(pictures.split(4), desc="Encoding the pictures"):
        both = torch.stack([part, part.flip(-1)]).flatten(0, 1).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            encoded = vae.encode(both).latent_dist.parameters
        moments.append(encoded.half().unflatten(0, (2, -1)))
    posteriors = torch.cat(moments, dim=1)
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(posteriors, cache)
    return posteriors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--hold-out", type=Path, help="the one of --pictures that keeps 60 faces back for evaluation")
    parser.add_argument("--vae", type=Path, required=True, help="the trained autoencoder")
    parser.add_argument("--start-from", type=Path, help="a trained UNet to begin with")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the model")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16: faster on processors with it")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    pictures, weights = load_portraits(args.pictures, held_out_from=args.hold_out)
    posteriors = encode_posteriors(vae, pictures, args.out / "posteriors.pt", args.bfloat16)
    scale, scheduler, prompt = vae.config.scaling_factor, build_scheduler(), empty_prompt_embedding()
    unet = build_unet(vae.config.latent_channels).to(memory_format=torch.channels_last)
    if args.start_from is not None:
        load_matching(unet, UNet2DConditionModel.from_pretrained(args.start_from))
    del vae, pictures

    def draw_latents(generator: torch.Generator) -> torch.Tensor:
        index = torch.multinomial(weights, args.batch_size, replacement=True, generator=generator)
        mirrored = torch.randint(2, (args.batch_size,), generator=generator)
        mean, log_variance = posteriors[mirrored, index].float().chunk(2, dim=1)
        return scale * (mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator))

    def loss_function(generator: torch.Generator) -> torch.Tensor:
        latents = draw_latents(generator)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, prompt.expand(len(latents), -1, -1)).sample.float()
        # Min-SNR weighting (Hang et al., 2023): small budgets go further when nearly clean latents don't dominate.
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()

    ema = fit(
        unet,
        loss_function,
        args.out,
        args.steps,
        args.learning_rate,
        ema_decay=0.998,
        seed=args.seed,
        bfloat16=args.bfloat16,
    )
    ema.copy_to(unet.parameters())
    unet.save_pretrained(args.out / "unet")


if __name__ == "__main__":
    main()
