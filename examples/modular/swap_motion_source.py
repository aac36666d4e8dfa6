"""Drag a portrait with another source of motion: one block of the editor is exchanged.

Handles swing round the chin to their targets, where the motion predictor, or none, would send them more or less
straight. Uses the checkpoint that comes with the package and a photograph that comes with scikit-image (Eileen
Collins, NASA, public domain); takes a minute or two without a GPU.

python examples/modular/swap_motion_source.py --out swung.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage.data
import torch
from PIL import Image

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_SETTINGS
from dynadrag_pipeline.modular_blocks import DynaDragBlocks, IterationBlock

HANDLES, TARGETS = [(63, 50), (63, 80)], [(77, 52), (70, 81)]  # between the eyes, and the tip of the nose
CHIN = (63.0, 105.0)


class SwingStep(IterationBlock):
    """Leaves `predicted_step`: an equal share of the turn round a pivot, and of the change of distance to it."""

    about = "Swing each handle round the chin to its target."

    def work_on(self, edit) -> None:
        start, end = (torch.view_as_complex(points - torch.tensor(CHIN)) for points in (edit.handles, edit.targets))
        turn, share = (end / start).angle(), 1 / edit.remaining
        distance = start.abs() + share * (end.abs() - start.abs())
        swung = torch.polar(distance, start.angle() + share * turn)
        edit.predicted_step = torch.view_as_real(swung - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Drag a portrait with another source of motion.")
    parser.add_argument(
        "--out", type=Path, default=Path("swung.png"), help="where the picture goes (default: swung.png)"
    )
    parser.add_argument("--max-iterations", type=int, default=EMBEDDED_SETTINGS["max_iterations"])
    args = parser.parse_args()
    portrait = Image.fromarray(skimage.data.astronaut()).crop((126, 0, 326, 200)).resize((128, 128))

    blocks = DynaDragBlocks()
    blocks.sub_blocks["drag"].sub_blocks["predict"] = SwingStep()
    pipe = blocks.init_pipeline(EMBEDDED_CHECKPOINT)
    pipe.load_components()
    settings = EMBEDDED_SETTINGS | {"max_iterations": args.max_iterations}
    state = pipe(image=portrait, handles=HANDLES, targets=TARGETS, **settings)

    state.images[0].save(args.out)
    for number, way in enumerate(state.trajectory.transpose(0, 1)):
        print(f"handle {number}: " + " -> ".join(f"({x:.1f}, {y:.1f})" for x, y in way.tolist()))
    print(f"{state.stop_reason}; wrote {args.out}")


if __name__ == "__main__":
    main()
