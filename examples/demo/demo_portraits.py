"""Write the two portraits of the demo: heads cut from public domain photographs that come with Python packages.

The astronaut Eileen Collins (NASA) comes with scikit-image, Grace Hopper (US Navy) with matplotlib; both packages must
be installed, nothing is downloaded.

python examples/demo/demo_portraits.py --out demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.cbook
import skimage.data
from PIL import Image

SIDE = 256
ASTRONAUT_HEAD = (126, 0, 326, 200)
HOPPER_HEAD = (85, 20, 455, 390)


def portraits() -> dict[str, Image.Image]:
    """The portraits by name, 256x256 RGB; the instruction files beside this script are in pixels of these."""
    astronaut = Image.fromarray(skimage.data.astronaut()).crop(ASTRONAUT_HEAD)
    hopper = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    size = (SIDE, SIDE)
    return {
        "astronaut": astronaut.resize(size, Image.Resampling.LANCZOS),
        "hopper": hopper.convert("RGB").crop(HOPPER_HEAD).resize(size, Image.Resampling.LANCZOS),
    }


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
