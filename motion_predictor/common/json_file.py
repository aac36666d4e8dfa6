"""JSON files that appear whole or not at all, and are named when they are damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_file import atomic_file
from .checks import got


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values to a file; the same values give the same bytes.

    Args:
        path (`str` or `Path`): of the file.
        values (`Mapping[str, Any]`): what it is to hold.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/run.json", {"step": 3})
        ...     read_json(f"{folder}/run.json", "remove it")
        {'step': 3}
    """
    with atomic_file(path) as file:
        file.write((json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read the values of [`write_json`].

    Args:
        path (`str` or `Path`): of the file.
        remedy (`str`): what to do if it is damaged, for the message.

    Returns:
        `dict[str, Any]`: the values.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it does not hold a JSON object.
    """
    content = Path(path).read_bytes()
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = content
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` must be a JSON object, got {got(values)}: {remedy}.")
    return values
