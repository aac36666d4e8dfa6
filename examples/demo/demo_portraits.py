"""Write the two portraits of the demo: heads cut from public domain photographs that come with Python packages.

The astronaut Eileen Collins (NASA) comes with scikit-image, Grace Hopper (US Navy) with matplotlib; both packages must
be installed, nothing is downloaded.

python examples/demo/demo_portraits.py --out demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from dynadrag_pipeline.app.samples import SAMPLES, sample_picture


def portraits() -> dict[str, Image.Image]:
    """The portraits by name, 256x256 RGB; the instruction files beside this script are in pixels of these."""
    return {name: sample_picture(name) for name in SAMPLES}


def write_portraits(folder: Path) -> dict[str, Path]:
    """Write each portrait to `folder`/name.png and return the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, picture in portraits().items():
        paths[name] = folder / f"{name}.png"
        picture.save(paths[name])
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the two portraits of the demo.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for them (default: demo)")
    for path in write_portraits(parser.parse_args().out).values():
        print(f"wrote {path}")
