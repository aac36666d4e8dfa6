"""Find the face in each photograph, cut out head and shoulders, and pack them with the landmarks of the faces.

python examples/portraits_128/pack_faces.py photographs/ --size 128 --out portraits

writes `portraits.zip` and `portraits_landmarks.npz`. Needs MediaPipe, whose last version with the models inside asks
for NumPy 1, so it lives in an environment of its own:

python3.11 -m venv packing && packing/bin/pip install mediapipe==0.10.14 'numpy<2' pillow tqdm
packing/bin/python examples/portraits_128/pack_faces.py photographs/ --out portraits
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package is not installed in that environment

from motion_predictor.common.picture_array import upright
from motion_predictor.common.picture_files import open_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MARGIN = 2.1  # side of the square, in heights of the box round the landmarks
LIFT = 0.05  # of the side: hair needs more room than the chin
LEAST_FACE = 48  # pixels; a smaller face would be blurred


def find_landmarks(mesh: Any, picture: Image.Image) -> np.ndarray | None:
    """The vertices `[478, 3]` of the most certain face, in pixels; `None` without a face."""
    faces = mesh.process(np.asarray(picture)).multi_face_landmarks
    if not faces:
        return None
    fractions = np.array([[point.x, point.y, point.z] for point in faces[0].landmark])
    return fractions * [picture.width, picture.height, picture.width]


def square_round(landmarks: np.ndarray, picture: Image.Image) -> tuple[float, float, float]:
    """Left, top and side, in pixels, of a square with head and shoulders; moved, and if need be shrunk, to fit."""
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    side = min(MARGIN * (high - low).max(), *picture.size)
    left, top = (low + high) / 2 - side / 2 - [0, LIFT * side]
    return (
        float(np.clip(left, 0, picture.width - side)),
        float(np.clip(top, 0, picture.height - side)),
        float(side),
    )


def cut(picture: Image.Image, mesh: Any, size: int) -> tuple[Image.Image, np.ndarray] | str:
    """A square of `size` pixels and its landmarks `[478, 3]` as fractions of the side, or why there is none."""
    landmarks = find_landmarks(mesh, picture)
    if landmarks is None:
        return "no face was found"
    height = np.ptp(landmarks[:, 1])
    if height < LEAST_FACE:
        return f"its face is {height:.0f} pixels high, {LEAST_FACE} are needed"
    left, top, side = square_round(landmarks, picture)
    square = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return square, (landmarks - [left, top, 0]) / side


def pack(files: list[Path], size: int, archive: zipfile.ZipFile) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Cut all pictures into an archive: the landmarks by name, and the pictures left out with the reason."""
    import mediapipe
    from tqdm import tqdm

    kept: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True) as mesh:
        for file in tqdm(files, unit="picture"):
            name = f"{file.stem}.jpg"
            if name in kept:
                left_out[str(file)] = f"another picture is called {name}"
                continue
            try:
                found = cut(upright(file.name, open_picture(file)).convert("RGB"), mesh, size)
            except (OSError, ValueError) as error:
                found = f"it cannot be read ({error})"
            if isinstance(found, str):
                left_out[str(file)] = found
                continue
            picture, kept[name] = found
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=95)
            archive.writestr(name, encoded.getvalue())
    return kept, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of photographs, searched with its subfolders")
    parser.add_argument("--size", type=int, default=128, help="side of the squares, in pixels (default: 128)")
    parser.add_argument("--out", type=Path, required=True, help="path and name of what is written, without a suffix")
    args = parser.parse_args()

    files = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"`pictures` is {args.pictures}, where no file ends in one of {SUFFIXES}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    archive_file, landmarks_file = (args.out.with_name(args.out.name + end) for end in (".zip", "_landmarks.npz"))
    partial = archive_file.with_suffix(".zip.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        kept, left_out = pack(files, args.size, archive)
    landmarks = np.array(list(kept.values()), dtype=np.float16).reshape(-1, 478, 3)
    np.savez_compressed(landmarks_file, files=np.array(list(kept)), landmarks=landmarks)
    os.replace(partial, archive_file)
    print(f"{len(kept)} faces in {archive_file}, their landmarks in {landmarks_file}")
    if left_out:
        print(f"{len(left_out)} pictures were left out: {json.dumps(left_out, indent=1)}")


if __name__ == "__main__":
    main()
