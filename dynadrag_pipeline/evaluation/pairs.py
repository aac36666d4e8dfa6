"""Pairs of pictures to judge edits by: a source, an instruction, and the picture that it should lead to (Sec. 4).

A set is a folder, and so is a pair in it: `source.png` and `target.png` (or `.jpg`), `instruction.json` (what
`dynadrag edit --instruction` reads) and, if there are such, `mask.png` (white may change; without it everything may)
and `flow.npz` with the true motion under `flow`. Whatever has true outcomes can be brought into this layout, such as
PRDBench's sources, targets, points and masks.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import open_picture

from ..drag_instruction import load_instruction

MARGIN = 12  # pixels from the border that nobody misplaces a handle in


@dataclass(frozen=True, eq=False)
class EvaluationPair:
    """An instruction with the picture that it should lead to, if that is known.

    Attributes:
        name (`str`): of its folder; the order of a set is that of the names.
        source (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
        target (`np.ndarray` of shape `(height, width, 3)`, *optional*): uint8 RGB; benchmarks may have none.
        mask (`np.ndarray` of shape `(height, width)`): bool, True where the picture may change.
        handles, targets (`np.ndarray` of shape `(points, 2)`): float32, (x, y) in pixels.
        flow (`np.ndarray` of shape `(height, width, 2)`):
            float32, the true motion from source to target in pixels of the source; NaN where it is not known.
        prompt (`str`): a description of the source.
    """

    name: str
    source: np.ndarray
    target: np.ndarray | None
    mask: np.ndarray
    handles: np.ndarray
    targets: np.ndarray
    flow: np.ndarray
    prompt: str = ""

    @property
    def outcome(self) -> np.ndarray:
        """The target; a ValueError where there is none."""
        if self.target is None:
            raise ValueError(f"Pair {self.name!r} has no true outcome to compare with.")
        return self.target

    @property
    def has_flow(self) -> bool:
        """Whether the true motion is known somewhere."""
        return bool(np.isfinite(self.flow).any())

    def save(self, folder: Path) -> None:
        """Write the pair to a folder of its name, whole or not at all.

        Args:
            folder (`Path`): of the set.
        """
        folder.mkdir(parents=True, exist_ok=True)
        points = np.stack([self.handles, self.targets], axis=1).reshape(-1, 2)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
            place = Path(temporary) / self.name
            place.mkdir()
            Image.fromarray(self.source).save(place / "source.png")
            Image.fromarray(self.outcome).save(place / "target.png")
            Image.fromarray(np.uint8(255) * self.mask).save(place / "mask.png")
            instruction = {"prompt": self.prompt, "points": [[round(float(v), 3) for v in point] for point in points]}
            (place / "instruction.json").write_text(json.dumps(instruction) + "\n")
            np.savez_compressed(place / "flow.npz", flow=self.flow.astype(np.float16))
            shutil.rmtree(folder / self.name, ignore_errors=True)
            place.rename(folder / self.name)

    @classmethod
    def load(cls, place: Path) -> EvaluationPair:
        """Read a pair.

        Args:
            place (`Path`): its own folder.

        Raises:
            ValueError: if its pictures differ in size.
        """
        instruction = load_instruction(place / "instruction.json")
        source = _picture(place, "source")
        flow = np.full((*source.shape[:2], 2), np.nan, dtype=np.float32)
        if (place / "flow.npz").is_file():
            with np.load(place / "flow.npz", allow_pickle=False) as stored:
                flow = stored["flow"].astype(np.float32)
        pair = cls(
            name=place.name,
            source=source,
            target=_picture(place, "target"),
            mask=_mask(place / "mask.png", (source.shape[0], source.shape[1])),
            handles=np.array(instruction["handles"], dtype=np.float32),
            targets=np.array(instruction["targets"], dtype=np.float32),
            flow=flow,
            prompt=instruction["prompt"],
        )
        for part in ("target", "mask", "flow"):
            size = getattr(pair, part).shape[:2]
            if size != source.shape[:2]:
                raise ValueError(f"`{place}` must hold pictures of one size, got a {part} of {size}.")
        return pair


def _picture(place: Path, name: str) -> np.ndarray:
    paths = [place / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
    path = next((path for path in paths if path.is_file()), paths[0])
    return np.array(open_picture(path).convert("RGB"))


def _mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    return painted_region(open_picture(path)) if path.is_file() else np.ones(size, dtype=bool)


def holds_pairs(folder: Path) -> bool:
    """Whether a folder is a set of pairs, rather than a benchmark without true outcomes."""
    return any(any(path.parent.glob("target.*")) for path in folder.glob("[!.]*/instruction.json"))


def load_pairs(folder: Path, limit: int | None = None) -> list[EvaluationPair]:
    """The pairs of a set, in the order of their names, of which numbers go by value.

    Args:
        folder (`Path`): of the set.
        limit (`int`, *optional*): how many of them, from the first on; all by default.

    Raises:
        FileNotFoundError: if there are none.
    """
    places = [place.parent for place in folder.glob("[!.]*/instruction.json")]
    if not places:
        raise FileNotFoundError(f"`{folder}` holds no pairs: `dynadrag build-pairs` makes some.")
    return [EvaluationPair.load(place) for place in sorted(places, key=_in_order)[:limit]]


def _in_order(place: Path) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", place.name)
    return [(int(part), part) if number % 2 else (0, part) for number, part in enumerate(parts)]


def with_misplaced_handle(pair: EvaluationPair) -> EvaluationPair:
    """The pair with one handle more in its instruction, the last one, that leads astray.

    It lies on the tenth of the mask that moves least, the likelier the farther from the other handles' paths, and is
    to go as far as they do on average, in any direction. Pairs of the same name get the same one. It keeps off the
    picture's border, unless the mask is nowhere else.

    Args:
        pair ([`EvaluationPair`]): whose flow is known.
    """
    random = np.random.default_rng(list(pair.name.encode()))
    height, width = pair.mask.shape
    y, x = np.mgrid[:height, :width]
    inside = pair.mask & (np.minimum(x, width - 1 - x) >= MARGIN) & (np.minimum(y, height - 1 - y) >= MARGIN)
    allowed = inside if inside.any() else pair.mask
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
