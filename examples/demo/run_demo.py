"""Drag a portrait with the model that comes with the package, through the command line's own function.

python examples/demo/run_demo.py
python examples/demo/run_demo.py --edit hopper_smile --edit hopper_head_turn --max-iterations 10

Options that are not its own are handed to `dynadrag edit`. Results of an earlier run are overwritten.
Several edits are shown below each other in `edits.png`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo_portraits import write_portraits
from PIL import Image

from dynadrag_pipeline import load_instruction
from dynadrag_pipeline.app.samples import SIDE
from dynadrag_pipeline.cli import main as dynadrag
from dynadrag_pipeline.visualization import draw_points

INSTRUCTIONS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def main() -> int:
    parser = argparse.ArgumentParser(description="Drag a portrait. Other options are handed to `dynadrag edit`.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for pictures and results (default: demo)"
    )
    parser.add_argument(
        "--edit",
        choices=sorted(INSTRUCTIONS),
        action="append",
        help="which edit; may be repeated (default: astronaut_head_turn)",
    )
    args, edit_options = parser.parse_known_args()
    names = args.edit or ["astronaut_head_turn"]
    pictures = write_portraits(args.out)
    for name in names:
        picture = pictures[name.split("_")[0]]
        results = args.out / name
        print(f"{name}: dragging {picture}", flush=True)
        command = ["edit", str(picture), "--instruction", str(INSTRUCTIONS[name]), "--out", str(results), "--force"]
        status = dynadrag([*command, *edit_options])
        if status:
            return status
        print(f"Look at {results / f'{picture.stem}-sheet.png'}")
    if len(names) > 1:
        edits_sheet(args.out, names).save(args.out / "edits.png")
        print(f"All of them: {args.out / 'edits.png'}")
    return 0


def edits_sheet(folder: Path, names: list[str]) -> Image.Image:
    """Each edit in a row of its own: the portrait with its points, and what came out."""
    sheet = Image.new("RGB", (2 * SIDE, len(names) * SIDE))
    for row, name in enumerate(names):
        portrait = name.split("_")[0]
        instruction = load_instruction(INSTRUCTIONS[name])
        source = draw_points(Image.open(folder / f"{portrait}.png"), instruction["handles"], instruction["targets"])
        sheet.paste(source, (0, row * SIDE))
        sheet.paste(Image.open(folder / name / f"{portrait}-edited.png"), (SIDE, row * SIDE))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
