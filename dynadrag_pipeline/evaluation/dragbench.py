"""DragBench, and what is laid out like it: pictures with points and masks, without true outcomes.

DragBench (Shi et al., 2023, arXiv 2306.14435) is folders of categories, of which each holds a folder for each picture:
`original_image.png`, a mask, and `meta_data.pkl`. That is a pickle, which can run anything when it is opened, and is
never opened here. The same as JSON is read: `drag_instruction.json` or `meta_data.json`, `{"prompt": ..., "points":
[handle, target, handle, target, ...]}`. Folders without categories are read alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import open_picture

from ..drag_instruction import load_instruction

INSTRUCTIONS = ("drag_instruction.json", "meta_data.json", "instruction.json")
PICTURES = ("original_image.png", "original_image.jpg", "source.png", "user_drag.png")
MASKS = ("mask.png",)
PICKLE = "meta_data.pkl"


@dataclass(frozen=True, eq=False)
class BenchmarkPicture:
    """A picture of a benchmark with its instruction.

    Attributes:
        name (`str`): of its folder, with that of its category before it, if it has one.
        source (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
        handles, targets (`np.ndarray` of shape `(points, 2)`): float32, (x, y) in pixels.
        mask (`np.ndarray` of shape `(height, width)`, *optional*): bool, True where the picture may change.
        prompt (`str`): a description.
    """

    name: str
    source: np.ndarray
    handles: np.ndarray
    targets: np.ndarray
    mask: np.ndarray | None
    prompt: str


def load_benchmark(folder: Path) -> Iterator[BenchmarkPicture]:
    """The pictures of a benchmark, in the order of their names.

    Args:
        folder (`Path`): of the benchmark, with or without categories.

    Yields:
        [`BenchmarkPicture`].

    Raises:
        ValueError: if a picture has a pickle alone, which is not opened, or there are no pictures.
    """
    places = sorted({path.parent for name in PICTURES for path in folder.rglob(name)})
    if not places:
        raise ValueError(f"`{folder}` must hold pictures named {', '.join(PICTURES)}, got none.")
    for place in places:
        yield _load(place, folder)


def _load(place: Path, folder: Path) -> BenchmarkPicture:
    instruction_file = _first(place, INSTRUCTIONS)
    if instruction_file is None:
        if (place / PICKLE).exists():
            raise ValueError(
                f"`{place / PICKLE}` is a pickle, which could run anything, and is not opened: let somebody trusting "
                f"it write its prompt and points to `{INSTRUCTIONS[0]}` beside it."
            )
        raise ValueError(f"`{place}` must hold one of {', '.join(INSTRUCTIONS)}, got none.")
    instruction = load_instruction(instruction_file)
    picture, mask = _first(place, PICTURES), _first(place, MASKS)
    assert picture is not None, "it was found by its picture"
    return BenchmarkPicture(
        name=str(place.relative_to(folder)),
        source=np.array(open_picture(picture).convert("RGB")),
        handles=np.array(instruction["handles"], dtype=np.float32),
        targets=np.array(instruction["targets"], dtype=np.float32),
        mask=None if mask is None else painted_region(open_picture(mask)),
        prompt=instruction["prompt"],
    )


def _first(place: Path, names: tuple[str, ...]) -> Path | None:
    return next((place / name for name in names if (place / name).is_file()), None)
