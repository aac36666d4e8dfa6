"""Faces framed anew, for the autoencoder and the UNet: small and large, anywhere in the picture, tilted, in any light.

python examples/portraits_128/framed_faces.py --pictures faces.zip --landmarks faces.npz --people faces-people.json \\
    --held-out held_out.txt --per-portrait 12 --out runs/data/framed.zip
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from moving_frames import SIZE, Frames, random_source, write_archive
from PIL import Image, ImageEnhance
from tqdm import tqdm

from motion_predictor.data.head_fields import CHIN, FOREHEAD
from motion_predictor.data.portraits import PortraitSource
from motion_predictor.data.still_framing import Framing

SMALLEST_FACE, LARGEST_FACE = 0.2, 0.75  # height, of the side
LIT_SHARE, LIGHT = 0.5, (0.7, 1.3)  # colours are left alone: a UNet that saw tints draws from noise in grey


def framed(source: PortraitSource, per_portrait: int, seed: int) -> Frames:
    """`per_portrait` framings `[128, 128, 3]` uint8 of each portrait whose face is known."""
    landmarks, held_out, people = source.load_landmarks(), source.held_out(), source.load_people()
    with source.open() as pictures:
        for name in tqdm([file for file in pictures.names() if file in landmarks], desc=source.pictures.name):
            if name in held_out or people.get(name) in held_out:
                continue
            random, marks = random_source(seed, name), landmarks[name][:, :2]
            still, face = pictures.open_square(name), float(np.linalg.norm(marks[CHIN] - marks[FOREHEAD]))
            for take in range(per_portrait):
                framing = Framing.draw(marks, face, random, SMALLEST_FACE, LARGEST_FACE)
                yield f"{Path(name).stem}_{take}", in_other_light(framing.show(still, SIZE), random)


def in_other_light(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Half of the frames darker or lighter, flatter or harder."""
    if random.random() >= LIT_SHARE:
        return frame
    lit = ImageEnhance.Brightness(Image.fromarray(frame)).enhance(random.uniform(*LIGHT))
    return np.asarray(ImageEnhance.Contrast(lit).enhance(random.uniform(*LIGHT)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder or zip archive of square pictures")
    parser.add_argument("--landmarks", type=Path, required=True, help="npz with `files` and `landmarks`")
    parser.add_argument("--people", type=Path, help="JSON that says who is on a picture, for --held-out")
    parser.add_argument("--held-out", type=Path, help="text file: pictures and people to leave out, one in a line")
    parser.add_argument("--per-portrait", type=int, default=8, help="framings of each portrait (default: 8)")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files (default: 95)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="zip archive to write")
    args = parser.parse_args()
    source = PortraitSource(args.pictures, args.landmarks, people=args.people, held_out_list=args.held_out)
    written = write_archive(framed(source, args.per_portrait, args.seed), args.out, args.quality)
    print(f"{written} frames in {args.out}")


if __name__ == "__main__":
    main()
