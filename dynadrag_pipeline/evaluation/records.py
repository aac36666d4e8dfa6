"""The records of a run: a line of JSON for each picture and method, which outlive a kill at any moment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motion_predictor.common.json_file import as_json_values


@dataclass(frozen=True)
class Record:
    """One edit of a run.

    Attributes:
        pair (`str`): name of the pair.
        method (`str`): name of the method.
        mark (`str`): hash of all that the edit depends on; with another mark it is made again.
        figures (`dict[str, float]`): what it was measured by.
        told (`dict[str, Any]`): what else there is to say of it.
    """

    pair: str
    method: str
    mark: str
    figures: dict[str, float]
    told: dict[str, Any]


class RecordFile:
    """Lines that are appended one by one, by one process, and safe on the disk when `append` returns.

    Args:
        path (`Path`): of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Write a line; what a kill left of a line before is closed first.

        Args:
            record ([`Record`]): of which numbers that JSON has not are written as null.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(f"{json.dumps(as_json_values(asdict(record)), allow_nan=False)}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def read_records(
    folder: Path, kind: str = "records", counts: Callable[[Record], bool] | None = None
) -> dict[tuple[str, str, str], Record]:
    """All whole lines of the files of a run, by pair, method and mark; of several, the last one that counts.

    Args:
        folder (`Path`): of the run.
        kind (`str`, *optional*, defaults to `"records"`): what the names of the files begin with.
        counts (`Callable`, *optional*):
            whether a record does: files go by their names, which say nothing of time; by default, all do.

    Returns:
        `dict[tuple[str, str, str], Record]`: with NaN where a figure is not known.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RecordFile(Path(folder) / "records.000.jsonl").append(Record("001", "track", "abc", {"lost": 0.5}, {}))
        ...     read_records(Path(folder))["001", "track", "abc"].figures
        {'lost': 0.5}
    """
    lines = (record for record in _lines(folder, kind) if counts is None or counts(record))
    return {(record.pair, record.method, record.mark): record for record in lines}


def _lines(folder: Path, kind: str) -> Iterator[Record]:
    for path in sorted(folder.glob(f"{kind}.*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                said = json.loads(line)
                figures = {name: math.nan if each is None else each for name, each in said["figures"].items()}
                yield Record(**{**said, "figures": figures})
            except (ValueError, TypeError, KeyError, AttributeError):  # what a kill left
                continue
