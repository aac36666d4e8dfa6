"""Pairs of pictures to judge edits by: a source, an instruction, and the picture that it should lead to (Sec. 4).

A folder holds sets of pairs, and a pair is a folder: `source.png`, `target.png`, `mask.png` (white may change),
`instruction.json` (what `dynadrag edit --instruction` reads) and `flow.npz` (the true motion).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dynadrag_pipeline import load_instruction
from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import open_picture

MARGIN = 12  # pixels from the border that nobody misplaces a handle in


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
            source=np.array(open_picture(place / "source.png").convert("RGB")),
            target=np.array(open_picture(place / "target.png").convert("RGB")),
            mask=painted_region(open_picture(place / "mask.png")),
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


def with_misplaced_handle(pair: EvaluationPair) -> EvaluationPair:
    """The pair with one handle more in its instruction, the last one, that leads astray.

    It lies on the tenth of the mask that moves least, the likelier the farther from the other handles' paths, and is
    to go as far as they do on average, in any direction. Pairs of the same name get the same one.
    """
    random = np.random.default_rng(list(pair.name.encode()))
    height, width = pair.mask.shape
    y, x = np.mgrid[:height, :width]
    allowed = pair.mask & (np.minimum(x, width - 1 - x) >= MARGIN) & (np.minimum(y, height - 1 - y) >= MARGIN)
    moved = np.linalg.norm(np.nan_to_num(pair.flow, nan=np.inf), axis=-1)
    still = allowed & (moved <= np.quantile(moved[allowed], 0.1, method="lower"))
    shares = np.linspace(0, 1, 11)[:, None, None]
    paths = (pair.handles * (1 - shares) + pair.targets * shares).reshape(-1, 2)
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    chances = np.linalg.norm(pixels - paths, axis=-1).min(axis=1) * still.ravel()
    handle = pixels[random.choice(len(pixels), p=chances / chances.sum())]
    angle = random.uniform(0, 2 * np.pi)
    distance = np.linalg.norm(pair.targets - pair.handles, axis=1).mean()
    target = (handle + distance * np.array([np.cos(angle), np.sin(angle)])).clip(0, [width - 1, height - 1])
    return replace(
        pair,
        handles=np.concatenate([pair.handles, handle]).astype(np.float32),
        targets=np.concatenate([pair.targets, target]).astype(np.float32),
    )
