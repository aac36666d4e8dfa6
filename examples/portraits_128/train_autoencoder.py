"""Train the autoencoder of the embedded checkpoint: 128x128 pictures to 32x32 latents of eight channels.

python examples/portraits_128/train_autoencoder.py --pictures portraits.zip faces.zip --hold-out faces.zip \\
    --out runs/vae
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from fit import fit
from portraits import draw_batch, load_held_out, load_portraits
from start_from import load_matching
from torch.nn.functional import interpolate, l1_loss, mse_loss

CROP = 64
KL_WEIGHT = 1e-4
SHRUNK_SHARE, SHRINKING = 0.25, (0.5, 0.75)
SQUARED_WEIGHT, ABSOLUTE_WEIGHT = 4.0, 0.25  # the first is what PSNR measures, the second keeps edges crisp


def build_autoencoder() -> AutoencoderKL:
    """Three levels (factor 4), 1.5 M parameters.

    Eight channels: the best linear code of four leaves 27 dB of these pictures, the best of eight 31 dB.
    """
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=128,
    )


def random_crops(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut one `CROP` x `CROP` window from each picture: the networks are convolutional, and crops cost a quarter."""
    limit = batch.shape[-1] - CROP + 1
    corners = torch.randint(limit, (len(batch), 2), generator=generator).tolist()
    crops = [image[:, top : top + CROP, left : left + CROP] for image, (top, left) in zip(batch, corners, strict=True)]
    return torch.stack(crops)


def shrink(maps: torch.Tensor, factor: float) -> torch.Tensor:
    """Pictures or latents `[B, c, h, w]` at `factor` of their size."""
    return interpolate(maps.float(), scale_factor=factor, mode="bilinear", antialias=True)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, pictures: torch.Tensor, weights: torch.Tensor, count: int = 256) -> float:
    """The factor that gives latents unit standard deviation, over a fixed draw of `count` pictures."""
    batch = draw_batch(pictures, weights, count, torch.Generator().manual_seed(0))
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in batch.split(32)])
    return 1.0 / latents.std().item()


@torch.no_grad()
def mean_psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Mean over pictures `[N, 3, size, size]` (uint8) of the decibels that encoding and decoding leave of each."""
    decibels = []
    for part in pictures.split(15):
        batch = part.float() / 127.5 - 1
        decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        decibels.append(10 * torch.log10(4 / (decoded - batch).square().mean(dim=(1, 2, 3))))
    return torch.cat(decibels).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--hold-out", type=Path, help="the one of --pictures that keeps 60 faces back for evaluation")
    parser.add_argument("--start-from", type=Path, help="a trained autoencoder to begin with")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the model")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16: faster on processors with it")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures, weights = load_portraits(args.pictures, held_out_from=args.hold_out)
    vae = build_autoencoder().to(memory_format=torch.channels_last)
    if args.start_from is not None:
        load_matching(vae, AutoencoderKL.from_pretrained(args.start_from))

    def loss_function(generator: torch.Generator) -> torch.Tensor:
        batch = random_crops(draw_batch(pictures, weights, args.batch_size, generator), generator)
        posterior = vae.encode(batch).latent_dist
        latents = posterior.sample(generator)
        if torch.rand((), generator=generator) < SHRUNK_SHARE:
            # Latents that shrink as pictures do are smoother, and a UNet learns them faster (EQ-VAE; Kouzelis et al.,
            # 2025).
            factor = SHRINKING[int(torch.randint(len(SHRINKING), (), generator=generator))]
            latents, batch = shrink(latents, factor), shrink(batch, factor)
        decoded = vae.decode(latents).sample.float()
        distortion = SQUARED_WEIGHT * mse_loss(decoded, batch) + ABSOLUTE_WEIGHT * l1_loss(decoded, batch)
        return distortion + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    ema = fit(
        vae,
        loss_function,
        args.out,
        args.steps,
        args.learning_rate,
        ema_decay=0.999,
        seed=args.seed,
        bfloat16=args.bfloat16,
    )
    ema.copy_to(vae.parameters())
    vae.register_to_config(scaling_factor=latent_scale(vae.eval(), pictures, weights))
    vae.save_pretrained(args.out / "vae")
    if args.hold_out is not None:
        print(f"PSNR on held-out faces: {mean_psnr(vae, load_held_out(args.hold_out)):.2f} dB")


if __name__ == "__main__":
    main()
