"""Show what carry does to a picture, stage by stage: the figure of docs/notebook/carry.md.

python benchmarks/carry_stages.py --out docs/images/carry.png

From left to right: the source with its points; the bent latent, denoised; the same after supervision; the result, with
the photograph's own pixels taken back.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline, load_instruction
from dynadrag_pipeline.picture import resize_picture
from dynadrag_pipeline.visualization import draw_points

DEMO = Path(__file__).parents[1] / "examples" / "demo"
sys.path.append(str(DEMO))

from demo_portraits import portraits  # noqa: E402 - a folder of scripts, not a package


def as_image(picture: torch.Tensor) -> Image.Image:
    """A picture `(1, 3, height, width)` in [0, 1]."""
    return Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())


GENTLE = {"carry": "once", "supervision_lr": 0.2, "supervision_steps": 4}
"""Supervision at a rate that suits what was carried; the checkpoint's own is for edits without carry."""


def stages(edit: str, settle_iterations: int) -> list[Image.Image]:
    """Source, bent latent, after supervision, result."""
    pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    portrait, instruction = portraits()[edit.split("_")[0]], load_instruction(DEMO / f"{edit}.json")
    session = pipe.open_session(portrait, settle_iterations=settle_iterations, preview_steps=None, **GENTLE)
    points = (instruction["handles"], instruction["targets"], instruction.get("mask"))
    pictures = [step.image for step in _settled(session.drag(*points, is_watched=True))]
    source = draw_points(portrait, *(torch.tensor(each).float() for each in points[:2]))
    between = [as_image(resize_picture(picture, session.input_size)) for picture in (pictures[0], pictures[-1])]
    return [source, *between, as_image(session.image(session.history[-1]))]


def _settled(steps):
    """The steps of a drag, each once the loop has gone on and decoded it."""
    last = None
    for step in steps:
        if last is not None:
            yield last
        last = step
    yield last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edit", default="astronaut_head_turn", help="of examples/demo (default: %(default)s)")
    parser.add_argument("--settle-iterations", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    args = parser.parse_args()
    pictures = stages(args.edit, args.settle_iterations)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (4 * width + 3 * 8, height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * (width + 8), 0))
    sheet.save(args.out)


if __name__ == "__main__":
    main()
