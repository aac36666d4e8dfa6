"""JSON files: ours appear whole or not at all, and those of users are read strictly, whatever is in them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_file import atomic_file
from .checks import got
from .picture_files import check_regular_file

MOST_JSON_BYTES = 2**20
"""Of a file that a user wrote."""


def as_json_values(value: Any, places: int | None = None) -> Any:
    """The same with null where JSON has no number, for NaN and infinity, and with lists for tuples.

    Args:
        value (`Any`): plain values, in mappings and lists of any depth.
        places (`int`, *optional*): decimal places that numbers are rounded to; by default they are not.

    Example:
        >>> as_json_values({"left": (1.23456, float("nan"))}, places=2)
        {'left': [1.23, None]}
    """
    if isinstance(value, dict):
        return {name: as_json_values(each, places) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json_values(each, places) for each in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if places is None else round(value, places)


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


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file, if it has each key once, and no number but those of JSON.

    Args:
        path (`str` or `Path`): a regular file in UTF-8, with or without a mark at its start, of at most
            `MOST_JSON_BYTES`.

    Raises:
        ValueError: if it is no such file.
        OSError: if there is no file, or it may not be read.
    """
    check_regular_file(path)
    shown = got(os.fspath(path))
    with open(path, "rb") as file:
        data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise ValueError(f"`path` must be a file of at most {MOST_JSON_BYTES:,} bytes, got {shown}.")
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_as_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`path` must be a JSON file in UTF-8, got {shown} ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"`path` must be a file of a JSON object, got {shown} with {got(content)}.")
    return content


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"more than one {got(repeated[0])}")
    return dict(pairs)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
