"""Pairs of pictures to judge edits by: a source, an instruction, and the picture that it should lead to (Sec. 4).

A folder holds sets of pairs, and a pair is a folder: `source.png`, `target.png`, `mask.png` (white may change),
`instruction.json` (what `dynadrag edit --instruction` reads) and `flow.npz` (the true motion).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dynadrag_pipeline import load_instruction


@dataclass(frozen=True, eq=False)
class EvaluationPair:
    """An instruction with the picture that it should lead to.

    Attributes:
        name: of its folder; the order of a set is that of the names.
        source, target: `[S, S, 3]` uint8 RGB.
        mask: `[S, S]` bool, True where the picture may change.
        handles, targets: `[n, 2]` float32, (x, y) in pixels, 1 to 7 of them.
        flow: `[S, S, 2]` float32, the true motion from source to target in pixels of the source; NaN where unknown.
    """

    name: str
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    handles: np.ndarray
    targets: np.ndarray
    flow: np.ndarray

    def save(self, folder: Path) -> None:
        """Write the pair to `folder / name`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        points = np.stack([self.handles, self.targets], axis=1).reshape(-1, 2)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
            place = Path(temporary) / self.name
            place.mkdir()
            Image.fromarray(self.source).save(place / "source.png")
            Image.fromarray(self.target).save(place / "target.png")
            Image.fromarray(np.uint8(255) * self.mask).save(place / "mask.png")
            instruction = {"prompt": "", "points": [[round(float(v), 3) for v in point] for point in points]}
            (place / "instruction.json").write_text(json.dumps(instruction) + "\n")
            np.savez_compressed(place / "flow.npz", flow=self.flow.astype(np.float16))
            shutil.rmtree(folder / self.name, ignore_errors=True)
            place.rename(folder / self.name)

    @classmethod
    def load(cls, place: Path) -> EvaluationPair:
        """Read the pair in the folder `place`."""
        instruction = load_instruction(place / "instruction.json")
        with np.load(place / "flow.npz", allow_pickle=False) as stored:
            flow = stored["flow"].astype(np.float32)
        return cls(
            name=place.name,
            source=np.array(Image.open(place / "source.png").convert("RGB")),
            target=np.array(Image.open(place / "target.png").convert("RGB")),
            mask=np.array(Image.open(place / "mask.png").convert("L")) > 127,
            handles=np.array(instruction["handles"], dtype=np.float32),
            targets=np.array(instruction["targets"], dtype=np.float32),
            flow=flow,
        )


def load_pairs(folder: Path, limit: int | None = None) -> list[EvaluationPair]:
    """The first `limit` pairs of a set, in order; all of them by default.

    Raises:
        FileNotFoundError: if there are none.
    """
    places = sorted(place.parent for place in folder.glob("[!.]*/instruction.json"))
    if not places:
        raise FileNotFoundError(f"`{folder}` holds no pairs: make them with benchmarks/build_pairs.py.")
    return [EvaluationPair.load(place) for place in places[:limit]]
