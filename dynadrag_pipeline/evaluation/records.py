"""The records of a run: a line of JSON for each picture and method, which outlive a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
        """Write a line; what a kill left of a line before is closed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(f"{json.dumps(asdict(record))}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def read_records(folder: Path, kind: str = "records") -> dict[tuple[str, str, str], Record]:
    """All whole lines of the files of a run, by pair, method and mark; the last of each counts.

    Args:
        folder (`Path`): of the run.
        kind (`str`, *optional*, defaults to `"records"`): what the names of the files begin with.
    """
    records: dict[tuple[str, str, str], Record] = {}
    for record in _lines(folder, kind):
        records[record.pair, record.method, record.mark] = record
    return records


def _lines(folder: Path, kind: str) -> Iterator[Record]:
    for path in sorted(folder.glob(f"{kind}.*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError):  # what a kill left
                continue
