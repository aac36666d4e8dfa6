"""Train the UNet of the embedded checkpoint on the latents of the trained autoencoder.

python examples/portraits_128/train_unet.py --pictures portraits.zip faces.zip --hold-out faces.zip \\
    --framed wide.zip --vae runs/vae/vae --out runs/unet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from fit import fit
from framed_faces import FramedFaces, source_of
from portraits import draw_batch, enlarge_some, load_held_out, load_portraits
from start_from import load_matching
from text_encoder import EMBEDDING_SIZE, empty_prompt_embedding

MIN_SNR_GAMMA = 25.0  # with 5 the last steps were hardly learnt, and samples grainy


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
    """Stable Diffusion 1.x's kind of noise schedule, to more noise and down to none.

    Averaged over 32x32 latents, what Stable Diffusion's last betas (0.012) leave of a picture outweighs the noise. A
    UNet learns to read it, and from pure noise, which has nothing there to read, draws pale and grey pictures (Lin et
    al., 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed"). With 0.02 a quarter as much is left.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--shares", type=float, nargs="+", help="how much of a batch each of --pictures makes up")
    parser.add_argument("--hold-out", type=Path, help="folder or archive that keeps 60 faces back for evaluation")
    parser.add_argument(
        "--framed",
        type=Path,
        nargs="+",
        default=[],
        metavar="ZIP",
        help="archives of square pictures with faces, framed anew at each draw; NAME_landmarks.npz, and "
        "NAME_people.json if people are held out, lie beside NAME.zip",
    )
    parser.add_argument("--framed-share", type=float, default=0.8, help="of a batch (default: 0.8)")
    parser.add_argument("--held-out", type=Path, help="text file: pictures and people to leave out of --framed")
    parser.add_argument("--vae", type=Path, required=True, help="the trained autoencoder")
    parser.add_argument("--start-from", type=Path, help="a trained UNet to begin with")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the model")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument(
        "--patience", type=int, help="stop after so many lines of the log without a lower loss of held-out faces"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16: faster where the hardware can")
    parser.add_argument("--compile", action="store_true", help="compile the networks first: worth it on a GPU")
    args = parser.parse_args()
    if args.shares is not None and len(args.shares) != len(args.pictures):
        parser.error(f"--shares: {len(args.shares)} given, and {len(args.pictures)} --pictures; one for each.")
    if not 0 <= args.framed_share <= 1:
        parser.error(f"--framed-share: from 0 to 1, got {args.framed_share}.")

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures, weights = load_portraits(args.pictures, held_out_from=args.hold_out, shares=args.shares)
    pictures, weights = pictures.to(device), weights.to(device)
    sources = [source_of(archive, args.held_out) for archive in args.framed]
    framed = FramedFaces.load(sources, args.seed).to(device) if sources else None
    framed_count = 0 if framed is None else round(args.framed_share * args.batch_size)
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).requires_grad_(False)
    unet = build_unet(vae.config.latent_channels)
    if args.start_from is not None:
        load_matching(unet, UNet2DConditionModel.from_pretrained(args.start_from))
    for model in (vae.encoder, unet):
        model.to(device, memory_format=torch.channels_last)
        if args.compile:
            model.compile()
    vae.quant_conv.to(device)
    scheduler, prompt = build_scheduler(), empty_prompt_embedding().to(device)

    def denoising_loss(batch: torch.Tensor, timesteps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of pictures `[B, 3, size, size]` in `[-1, 1]`, with Min-SNR weighting (Hang et al., 2023): small budgets go
        further when nearly clean latents don't dominate."""
        latents = vae.config.scaling_factor * vae.encode(batch).latent_dist.sample(generator).float()
        noise = torch.randn(latents.shape, generator=generator, device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, prompt.expand(len(batch), -1, -1)).sample.float()
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()

    def loss_function(generator: torch.Generator) -> torch.Tensor:
        drawn = [] if framed is None or not framed_count else [framed.draw(framed_count, generator)]
        if framed_count < args.batch_size:
            as_they_are = draw_batch(pictures, weights, args.batch_size - framed_count, generator)
            drawn.append(enlarge_some(as_they_are, generator))
        batch = torch.cat(drawn)
        # One timestep in each part of the schedule, along which the loss differs a hundredfold.
        share = torch.rand(args.batch_size, generator=generator, device=device)
        parts = torch.randperm(args.batch_size, generator=generator, device=device)
        timesteps = ((parts + share) / args.batch_size * scheduler.config.num_train_timesteps).long()
        return denoising_loss(batch, timesteps, generator)

    def held_out_loss() -> torch.Tensor:
        """The same at evenly spaced timesteps, with the same noise at every call."""
        timesteps = torch.linspace(0, scheduler.config.num_train_timesteps - 1, len(held_out), device=device).long()
        with torch.compiler.set_stance("force_eager"):  # another batch size: not worth a second compilation
            return denoising_loss(held_out, timesteps, torch.Generator(device).manual_seed(args.seed))

    if args.hold_out is not None:
        held_out = load_held_out(args.hold_out).to(device).float() / 127.5 - 1
    ema = fit(
        unet,
        loss_function,
        args.out,
        args.steps,
        args.learning_rate,
        ema_decay=0.998,
        seed=args.seed,
        bfloat16=args.bfloat16,
        held_out_loss=None if args.hold_out is None else held_out_loss,
        patience=args.patience,
    )
    ema.copy_to(unet.parameters())
    unet.save_pretrained(args.out / "unet")


if __name__ == "__main__":
    main()
