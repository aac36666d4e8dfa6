"""Drag a portrait with the model that comes with the package, through the command line's own function.

python examples/demo/run_demo.py
python examples/demo/run_demo.py --edit hopper_smile --edit hopper_head_turn --max-iterations 10

Options that are not its own are handed to `dynadrag edit`. Results of an earlier run are overwritten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo_portraits import write_portraits

from dynadrag_pipeline.cli import main as dynadrag

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
    pictures = write_portraits(args.out)
    for name in args.edit or ["astronaut_head_turn"]:
        picture = pictures[name.split("_")[0]]
        results = args.out / name
        print(f"{name}: dragging {picture}", flush=True)
        command = ["edit", str(picture), "--instruction", str(INSTRUCTIONS[name]), "--out", str(results), "--force"]
        status = dynadrag([*command, *edit_options])
        if status:
            return status
        print(f"Look at {results / f'{picture.stem}-sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
