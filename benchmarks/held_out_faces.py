"""Drag faces that no network has seen, and measure whether the content came closer to where it was to go.

Each face is asked to turn its head: nose tip, chin and the outer corners of both eyes go where a rotation of the
face's own three-dimensional landmarks takes them, alternately to the left and to the right; what may change is a box
round the landmarks. The settings are those of the embedded checkpoint; options that are not listed are passed to the
pipeline over them, as `--max-iterations 10` or `--dynamic-selection first`.

python benchmarks/held_out_faces.py --faces faces.zip --landmarks faces_landmarks.npz --out runs/held_out
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from content_distance import content_distances
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "portraits_128"))

from portraits import held_out_names, iter_image_files

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from dynadrag_pipeline.visualization import contact_sheet
from motion_predictor.common.picture_files import decode_picture

SIZE = 128
NOSE, CHIN, LEFT_EYE, RIGHT_EYE = 1, 152, 33, 263  # vertices of the MediaPipe face mesh
LEFT_EDGE, RIGHT_EDGE = 234, 454
TURN_DEGREES = 12.0
MASK_MARGIN = 0.15  # of the picture's side, round the box of the landmarks


def head_turn(landmarks: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Handles and targets `(4, 2)`, in pixels, of a head that turns about the vertical axis through its middle.

    The axis lies half a face's width behind the face's edges; `landmarks` are `(478, 3)` in pixels.
    """
    face_width = np.linalg.norm(landmarks[RIGHT_EDGE] - landmarks[LEFT_EDGE])
    axis = (landmarks[LEFT_EDGE] + landmarks[RIGHT_EDGE]) / 2 + [0, 0, face_width / 4]
    points = landmarks[[NOSE, CHIN, LEFT_EYE, RIGHT_EYE]]
    angle = np.deg2rad(degrees)
    x, z = (points - axis)[:, 0], (points - axis)[:, 2]
    turned = np.stack([axis[0] + x * np.cos(angle) - z * np.sin(angle), points[:, 1]], axis=1)
    return points[:, :2].clip(0, SIZE - 1), turned.clip(0, SIZE - 1)


def face_mask(landmarks: np.ndarray) -> np.ndarray:
    """`(128, 128)`: 1 in the box of the landmarks `(478, 3)`, widened by `MASK_MARGIN`."""
    low = np.rint(landmarks[:, :2].min(axis=0) - MASK_MARGIN * SIZE).clip(0).astype(int)
    high = np.rint(landmarks[:, :2].max(axis=0) + MASK_MARGIN * SIZE).astype(int)
    mask = np.zeros((SIZE, SIZE), dtype=np.float32)
    mask[low[1] : high[1], low[0] : high[0]] = 1
    return mask


def load_held_out(faces: Path, landmarks: Path, count: int) -> list[tuple[str, Image.Image, np.ndarray]]:
    """Name, picture at 128 pixels and landmarks in its pixels of the first `count` held-out faces that have them."""
    files = dict(iter_image_files(faces))
    known = np.load(landmarks)
    row = {name: index for index, name in enumerate(known["files"].tolist())}
    names = [name for name in held_out_names(files) if name in row][:count]
    return [
        (
            name,
            decode_picture(files[name], name).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS),
            known["landmarks"][row[name]].astype(np.float64) * SIZE - 0.5,
        )
        for name in names
    ]


def edit_face(
    pipe: DynaDragPipeline, face: Image.Image, handles: np.ndarray, targets: np.ndarray, options: dict[str, Any]
) -> tuple[dict[str, Any], Image.Image]:
    """Edit one face: its figures, and a contact sheet."""
    began = time.perf_counter()
    output = pipe(face, handles, targets, return_intermediates=True, **options)
    seconds = time.perf_counter() - began
    source, edited = (np.asarray(picture, dtype=np.float64) / 255 for picture in (face, output.images[0]))
    asked = np.linalg.norm(targets - handles, axis=1)
    left = content_distances(source, edited, handles, targets)
    figures = {
        "asked_px": round(float(asked.mean()), 2),
        "left_px": round(float(left.mean()), 2),
        "closer": bool(left.mean() < asked.mean()),
        "iterations": len(output.iterations),
        "stop_reason": output.stop_reason,
        "wrong_way": sum(record.wrong_way_count for record in output.iterations),
        "seconds": round(seconds, 1),
    }
    return figures, contact_sheet(face, output.images[0], output, targets)


def parse_options(rest: list[str]) -> dict[str, Any]:
    """`["--max-iterations", "10"]` to `{"max_iterations": 10}`; values are JSON or else strings."""
    names = [name.removeprefix("--").replace("-", "_") for name in rest[::2]]
    values: list[Any] = []
    for text in rest[1::2]:
        try:
            values.append(json.loads(text))
        except json.JSONDecodeError:
            values.append(text)
    return dict(zip(names, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="folder or zip archive with the held-out faces")
    parser.add_argument("--landmarks", type=Path, required=True, help="npz with `files` and `landmarks` of the faces")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint (default: the embedded one)")
    parser.add_argument("--count", type=int, default=8, help="number of faces (default: 8)")
    parser.add_argument("--degrees", type=float, default=TURN_DEGREES, help="angle of the turn (default: 12)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the contact sheets and figures.json")
    args, rest = parser.parse_known_args()

    args.out.mkdir(parents=True, exist_ok=True)
    pipe = DynaDragPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(leave=False)
    figures = {}
    for index, (name, face, landmarks) in enumerate(load_held_out(args.faces, args.landmarks, args.count)):
        handles, targets = head_turn(landmarks, args.degrees * (-1) ** index)
        options = {"mask": face_mask(landmarks), **parse_options(rest)}
        figures[name], sheet = edit_face(pipe, face, handles, targets, options)
        sheet.save(args.out / f"{Path(name).stem}.png")
        print(name, figures[name], flush=True)
        (args.out / "figures.json").write_text(json.dumps(figures, indent=2))
    asked, left = (np.mean([row[key] for row in figures.values()]) for key in ("asked_px", "left_px"))
    closer = sum(row["closer"] for row in figures.values())
    print(
        f"content closer to its target on {closer} of {len(figures)} faces; asked {asked:.2f} px, left {left:.2f} px"
    )


if __name__ == "__main__":
    main()
