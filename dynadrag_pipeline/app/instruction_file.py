"""Points in DragBench's layout, to a file and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..drag_instruction import load_instruction
from .edits import Point


def instruction_text(handles: list[Point], targets: list[Point], prompt: str = "") -> bytes:
    """What [`load_instruction`] reads.

    Args:
        handles, targets (`list`): as many (x, y) of each, in pixels of the picture.
        prompt (`str`, *optional*): what the picture shows.

    Returns:
        `bytes`: JSON in UTF-8, on one line.

    Example:
        >>> instruction_text([[1, 2]], [[3, 4]])
        b'{"prompt": "", "points": [[1, 2], [3, 4]]}\\n'
    """
    points = [point for pair in zip(handles, targets, strict=True) for point in pair]
    return (json.dumps({"prompt": prompt, "points": points}, ensure_ascii=False) + "\n").encode()


def read_instruction(path: str | Path, size: tuple[int, int]) -> tuple[list[list[Point]], str]:
    """Pairs and prompt of a file, for a picture.

    Args:
        path (`str` or `Path`): of the file.
        size (`tuple[int, int]`): (width, height) of the picture, in pixels.

    Returns:
        `tuple[list, str]`: pairs of a handle and a target, (x, y) each, and the prompt, which may be empty.

    Raises:
        ValueError: if it is no such file, or a point lies outside the picture.
    """
    from ..drag_instruction import DragInstruction

    content: dict[str, Any] = load_instruction(path)
    DragInstruction.from_user(content["handles"], content["targets"], None, (size[1], size[0]))
    pairs = [
        [list(handle), list(target)] for handle, target in zip(content["handles"], content["targets"], strict=True)
    ]
    return pairs, content["prompt"]
