"""Learn where sampling has to begin: what is left of a picture where the noise schedule ends.

python examples/portraits_128/layout.py --pictures faces.zip --hold-out faces.zip --vae runs/vae/vae \\
    --out runs/layout.safetensors
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from portraits import load_portraits
from safetensors.torch import load_file, save
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from tqdm import tqdm

from motion_predictor.common.atomic_file import atomic_file

GRID = 4  # cells a side: with 8 the sheet of samples was no better
BATCH = 16


@dataclass(frozen=True)
class LayoutDistribution:
    """The normal distribution of the layouts of pictures: their latents, averaged over `GRID` x `GRID` cells.

    Attributes:
        mean (`torch.Tensor` of shape `(channels * GRID**2,)`)
        root (`torch.Tensor` of shape `(channels * GRID**2, channels * GRID**2)`): times its transpose, the covariance.
    """

    mean: torch.Tensor
    root: torch.Tensor

    @classmethod
    def fit(cls, latents: torch.Tensor) -> LayoutDistribution:
        """To latents `[N, c, h, w]` and their mirror images."""
        layouts = adaptive_avg_pool2d(torch.cat([latents, latents.flip(-1)]), GRID).flatten(1)
        variances, directions = torch.linalg.eigh(torch.cov(layouts.T))
        return cls(layouts.mean(dim=0), directions * variances.clamp(min=0).sqrt())

    @classmethod
    def load(cls, file: Path) -> LayoutDistribution:
        """From a file that [`save`] wrote, in single precision."""
        return cls(**{name: tensor.float() for name, tensor in load_file(file).items()})

    def save(self, file: Path) -> None:
        """In half precision, like the checkpoint's weights."""
        with atomic_file(file) as opened:
            opened.write(save({"mean": self.mean.half(), "root": self.root.half().contiguous()}))

    def draw(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Smooth latents `[c, size, size]` of a layout that is drawn at random."""
        layout = self.mean + self.root @ torch.randn(len(self.mean), generator=generator)
        return interpolate(layout.view(1, -1, GRID, GRID), size=size, mode="bilinear")[0]


@torch.no_grad()
def encode(pictures: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
    """Pictures `[N, 3, H, W]` (uint8) to the latents `[N, c, h, w]` that the UNet is trained on."""
    batches = [
        vae.encode(batch / 127.5 - 1).latent_dist.mean for batch in tqdm(pictures.split(BATCH), desc="Encoding")
    ]
    return vae.config.scaling_factor * torch.cat(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders or zip archives of faces")
    parser.add_argument("--hold-out", type=Path, help="the one of --pictures that keeps 60 faces back for evaluation")
    parser.add_argument("--vae", type=Path, required=True, help="the trained autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="file to write, of safetensors")
    args = parser.parse_args()

    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32)
    pictures, _ = load_portraits(args.pictures, held_out_from=args.hold_out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    LayoutDistribution.fit(encode(pictures, vae)).save(args.out)
    print(f"{args.out}: the layouts of {len(pictures)} pictures")


if __name__ == "__main__":
    main()
