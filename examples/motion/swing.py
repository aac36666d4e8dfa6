"""Drag a portrait with a source of motion of one's own: handles swing round the chin to their targets.

The motion predictor, or none, would send them more or less straight. Uses the checkpoint that comes with the package
and a photograph that comes with scikit-image (Eileen Collins, NASA, public domain); takes half a minute without a GPU.

python examples/motion/swing.py --out swung.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage.data
import torch
from PIL import Image

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, BaseMotionSource, DynaDragPipeline, EditView, Motion

HANDLES, TARGETS = [(63, 50), (63, 80)], [(77, 52), (70, 81)]  # between the eyes, and the tip of the nose
CHIN = (63.0, 105.0)


class SwingMotion(BaseMotionSource):
    """An equal share of the turn round a pivot, and of the change of distance to it, in each iteration."""

    name = "swing"
    always_arrives = True

    def propose(self, view: EditView) -> Motion:
        start, end = (torch.view_as_complex(points - torch.tensor(CHIN)) for points in (view.handles, view.targets))
        turn, share = (end / start).angle(), 1 / view.remaining
        distance = start.abs() + share * (end.abs() - start.abs())
        swung = torch.view_as_real(torch.polar(distance, start.angle() + share * turn) - start)
        step = torch.where(view.moving[:, None], swung, torch.zeros_like(swung))
        return Motion(view.handles + step, step, wrong_way=torch.zeros_like(view.moving))


def main() -> None:
    parser = argparse.ArgumentParser(description="Drag a portrait with a source of motion of one's own.")
    parser.add_argument(
        "--out", type=Path, default=Path("swung.png"), help="where the picture goes (default: swung.png)"
    )
    parser.add_argument("--max-iterations", type=int, default=15, help="iterations at most (default: 15)")
    args = parser.parse_args()
    portrait = Image.fromarray(skimage.data.astronaut()).crop((126, 0, 326, 200)).resize((128, 128))

    pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
    result = pipe(portrait, HANDLES, TARGETS, motion=SwingMotion(), max_iterations=args.max_iterations)

    result.images[0].save(args.out)
    for number, path in enumerate(result.trajectories.transpose(0, 1)):
        print(f"handle {number}: " + " -> ".join(f"({x:.1f}, {y:.1f})" for x, y in path.tolist()))
    print(f"{result.stop_reason} by {result.motion_source}; wrote {args.out}")


if __name__ == "__main__":
    main()
