"""Benchmarks of pictures with points and masks, without true outcomes: DragBench, Drag100, and what is laid out alike.

DragBench (Shi et al., 2023, arXiv 2306.14435) is folders of categories, of which each holds a folder for each picture:
`original_image.png`, a mask, and `meta_data.pkl`. That is a pickle, which can run anything when it is opened, and is
never unpickled here. The same as JSON is read: `drag_instruction.json` or `meta_data.json`, `{"prompt": ...,
"points": [handle, target, handle, target, ...]}`; [`write_instructions`] makes it. Drag100 (Zhang et al., 2024, arXiv
2404.07206) is a folder for each picture, of `original.jpg`, `mask.png` and `points.json`. Folders with and without
categories are read.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import open_picture

from ..drag_instruction import load_instruction
from .pairs import EvaluationPair
from .plain_pickle import read_plain_pickle

INSTRUCTIONS = ("drag_instruction.json", "meta_data.json", "points.json", "instruction.json")
PICTURES = ("original_image.png", "original_image.jpg", "original.jpg", "original.png", "source.png")
MASK = "mask.png"
PICKLE = "meta_data.pkl"


def load_benchmark(folder: Path, limit: int | None = None) -> Iterator[EvaluationPair]:
    """The pictures of a benchmark, in the order of their names, as pairs without a target.

    Args:
        folder (`Path`): of the benchmark, with or without categories.
        limit (`int`, *optional*): how many of them, from the first on; all by default.

    Yields:
        [`EvaluationPair`], whose name has that of its category before it.

    Raises:
        ValueError: if a picture has a pickle alone, which is not unpickled, if there are no pictures, or if they have
            true outcomes, which would be lost.
    """
    places = sorted({path.parent for name in PICTURES for path in folder.rglob(name)})
    if not places:
        raise ValueError(f"`{folder}` must hold pairs, or pictures named {', '.join(PICTURES)}, got none.")
    sets = sorted({str(place.parent) for place in places if any(place.glob("target.*"))})
    if sets:
        raise ValueError(f"`{folder}` must be one set of pairs, got one above or below it: give {' or '.join(sets)}.")
    for place in places[:limit]:
        yield _load(place, folder)


def write_instructions(folder: Path) -> int:
    """Write what the pickles of a benchmark say, if that is plain data, beside them: none is unpickled.

    Points and prompt become `drag_instruction.json`, the mask `mask.png`. What is there already stays.

    Args:
        folder (`Path`): of the benchmark.

    Returns:
        `int`: how many instructions were written.

    Raises:
        ValueError: if there are no pickles, or one holds anything but plain data.
    """
    pickles = sorted(folder.rglob(PICKLE))
    if not pickles:
        raise ValueError(f"`{folder}` must hold files named {PICKLE}, got none.")
    written = 0
    for path in pickles:
        if (path.parent / INSTRUCTIONS[0]).exists():
            continue
        said = read_plain_pickle(path)
        if not isinstance(said, Mapping) or not isinstance(said.get("points"), (list, tuple)):
            raise ValueError(f"`{path}` must hold a mapping with `points`, got a {type(said).__name__}.")
        prompt, mask = said.get("prompt", ""), said.get("mask")
        if not isinstance(prompt, str):  # written out, what is shared in it could unfold without an end
            raise ValueError(f"`{path}` must have a text for its `prompt`, got a {type(prompt).__name__}.")
        instruction = {"prompt": prompt, "points": _as_numbers(path, said["points"])}
        if isinstance(mask, np.ndarray) and not (path.parent / MASK).exists():
            if mask.squeeze().ndim != 2:
                raise ValueError(f"`{path}` must have a mask (height, width), got {mask.shape}.")
            with atomic_file(path.parent / MASK) as file:
                Image.fromarray(np.uint8(255) * (mask.squeeze() > 0)).save(file, "PNG")
        with atomic_file(path.parent / INSTRUCTIONS[0]) as file:
            file.write(json.dumps(instruction).encode())
        written += 1
    return written


def _as_numbers(path: Path, points: Any) -> list[list[float]]:
    try:
        return [[float(x), float(y)] for x, y in points]
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` must have points [x, y], got {reprlib.repr(points)}.") from error


def _load(place: Path, folder: Path) -> EvaluationPair:
    instruction_file = _first(place, INSTRUCTIONS)
    if instruction_file is None:
        if (place / PICKLE).exists():
            raise ValueError(
                f"`{place / PICKLE}` is a pickle, which could run anything, and is not opened: `dynadrag convert "
                f"benchmark {folder}` reads the plain data in it, and writes `{INSTRUCTIONS[0]}` beside it."
            )
        raise ValueError(f"`{place}` must hold one of {', '.join(INSTRUCTIONS)}, got none.")
    instruction = load_instruction(instruction_file)
    picture, mask = _first(place, PICTURES), _first(place, (MASK,))
    assert picture is not None, "it was found by its picture"
    source = np.array(open_picture(picture).convert("RGB"))
    size = (source.shape[0], source.shape[1])
    painted = np.ones(size, dtype=bool) if mask is None else painted_region(open_picture(mask))
    if painted.shape != size:
        raise ValueError(f"`{mask}` must have the size of its picture, {size}, got {painted.shape}.")
    return EvaluationPair(
        name=str(place.relative_to(folder)),
        source=source,
        target=None,
        mask=painted,
        handles=np.array(instruction["handles"], dtype=np.float32),
        targets=np.array(instruction["targets"], dtype=np.float32),
        flow=np.full((*size, 2), np.nan, dtype=np.float32),
        prompt=instruction["prompt"],
    )


def _first(place: Path, names: tuple[str, ...]) -> Path | None:
    return next((place / name for name in names if (place / name).is_file()), None)
