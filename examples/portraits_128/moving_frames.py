"""Frames of faces that talk and turn, for the autoencoder and the UNet: they should know more than one expression.

python examples/portraits_128/moving_frames.py --portraits portraits.zip faces.zip \\
    --landmarks portraits_landmarks.npz faces_landmarks.npz --hold-out faces.zip --out runs/data/moved.zip
python examples/portraits_128/moving_frames.py --videos talking_heads/ --out runs/data/talking.zip
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.data.head_fields import HeadFields
from motion_predictor.data.portrait_motion import PortraitMotion
from motion_predictor.data.portraits import PortraitSource
from motion_predictor.data.video import UnusableVideo, find_videos, read_frames

SIZE = 128
Frames = Iterator[tuple[str, np.ndarray]]


def random_source(seed: int, name: str) -> np.random.Generator:
    """Chance that depends on the seed and a picture's name, and not on what comes before it."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])


def frames_of_portraits(source: PortraitSource, per_portrait: int, seed: int) -> Frames:
    """`per_portrait` frames `[128, 128, 3]` uint8 of each portrait, from different random motions."""
    landmarks, held_out = source.load_landmarks(), source.held_out()
    with source.open() as pictures:
        for name in tqdm([file for file in pictures.names() if file in landmarks], desc=source.pictures.name):
            if name in held_out:
                continue
            random = random_source(seed, name)
            try:
                fields, picture = HeadFields.from_landmarks(landmarks[name]), pictures.read(name, SIZE)
            except ValueError as error:
                tqdm.write(f"Without {name}: {error}")
                continue
            for take in range(per_portrait):
                motion = PortraitMotion.draw(picture, fields, random)
                yield f"{Path(name).stem}_{take}", motion.frame(int(random.integers(motion.frames)))


def frames_of_videos(videos: list[Path], per_video: int, seed: int) -> Frames:
    """`per_video` frames `[128, 128, 3]` uint8 of each video, drawn at random: their central squares."""
    for video in tqdm(find_videos(videos), desc="Videos"):
        random = random_source(seed, video.name)
        try:
            frames = list(read_frames(video.path, SIZE))
        except UnusableVideo as error:
            tqdm.write(f"Without {video.name}: {error}")
            continue
        for number in random.choice(len(frames), min(per_video, len(frames)), replace=False).tolist():
            height, width = frames[number].shape[:2]
            top, left = (height - SIZE) // 2, (width - SIZE) // 2
            yield f"{video.name}_{number:05d}", frames[number][top : top + SIZE, left : left + SIZE]


def write_archive(frames: Frames, out: Path, quality: int = 95) -> int:
    """Write frames as JPEG into a zip archive, and return their number."""
    written = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, frame in frames:
            encoded = io.BytesIO()
            Image.fromarray(frame).save(encoded, "JPEG", quality=quality)
            archive.writestr(f"{name}.jpg", encoded.getvalue())
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, nargs="*", default=[], help="folders or zip archives of faces")
    parser.add_argument("--landmarks", type=Path, nargs="*", default=[], help="an npz for each of --portraits")
    parser.add_argument("--hold-out", type=Path, help="the one of --portraits that keeps 60 faces back for evaluation")
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="videos, or folders of them")
    parser.add_argument("--per-source", type=int, default=1, help="frames of each portrait or video (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="zip archive to write")
    args = parser.parse_args()
    if len(args.landmarks) != len(args.portraits):
        parser.error(f"--landmarks: {len(args.landmarks)} given, and {len(args.portraits)} --portraits; one for each.")

    def frames() -> Frames:
        for pictures, landmarks in zip(args.portraits, args.landmarks, strict=True):
            source = PortraitSource(pictures, landmarks, hold_out=pictures == args.hold_out)
            yield from frames_of_portraits(source, args.per_source, args.seed)
        if args.videos:
            yield from frames_of_videos(args.videos, args.per_source, args.seed)

    print(f"{write_archive(frames(), args.out)} frames in {args.out}")


if __name__ == "__main__":
    main()
