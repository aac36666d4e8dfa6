"""The folder of a dataset in the making: its settings, what is finished, and what an interrupted build left behind.

Sources (videos, portraits) are built one by one, each into a shard of its own. A source is finished once its mark is
there, `videos/NAME.json`, which is written after the shard. So a build that was stopped at any moment goes on with the
sources that have no mark, and ends with the same bytes as one that was never stopped, if each source's records depend
on nothing but its name and the settings.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..common.checks import got
from ..common.checksum import sha256_of
from ..common.json_file import read_json, write_json
from .shards import MARKS, SPLITS, read_marks

logger = logging.getLogger(__name__)

SETTINGS_FILE = "dataset.json"
LOCK = ".lock"
LONGEST_WAIT = timedelta(days=7)
"""Of processes for the last of them, whose share may take hours more than the others'; gloo's is half an hour."""

_NAME = re.compile(r"[^/.\s][^/.]*")

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset's files by the names of its sources. `DatasetFolder.open` makes the folder, or goes on with it."""

    path: Path

    @staticmethod
    def open(path: str | Path, settings: dict[str, Any]) -> DatasetFolder:
        """Make the folder, or go on with one that was begun with the same settings.

        Where several processes build one dataset, the main process calls this before the others begin. Files that a
        killed build had not finished are removed, so one build at a time may write to a folder: see [`only_writer`].

        Args:
            path (`str` or `Path`): of the folder.
            settings (`dict[str, Any]`): all that records depend on, besides the sources themselves; plain values for
                JSON.

        Raises:
            ValueError: if the folder was begun with other settings.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as temporary:
            ...     folder = DatasetFolder.open(temporary, {"seed": 0})
            ...     folder.mark_finished("interview", {"status": "skipped"})
            ...     folder.is_finished("interview"), folder.is_finished("lecture")
            (True, False)
        """
        folder = DatasetFolder(Path(path))
        settings = json.loads(json.dumps(settings))  # as they are read back: tuples are lists
        file = folder.path / SETTINGS_FILE
        if file.exists():
            remedy = "put its like back, or build into another folder"
            check_same_settings(file, read_json(file, remedy), settings)
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)
        for place in (folder.path, *(folder.path / name for name in (*SPLITS, MARKS))):
            for partial in place.glob(".*.partial"):
                partial.unlink(missing_ok=True)
        return folder

    def shard(self, split: str, name: str) -> Path:
        """Where the records of a source lie: `train/NAME.tar` or `val/NAME.tar`.

        Args:
            split (`str`): `"train"` or `"val"`.
            name (`str`): of the source.

        Returns:
            `Path`: of the shard, whether it is there or not.
        """
        return self.path / split / f"{_checked(name)}.tar"

    def mark(self, name: str) -> Path:
        """What became of a source, and the sign that it is finished: `videos/NAME.json`.

        Args:
            name (`str`): of the source.

        Returns:
            `Path`: of the mark, whether it is there or not.
        """
        return self.path / MARKS / f"{_checked(name)}.json"

    def is_finished(self, name: str) -> bool:
        """Whether a source needs no more work.

        Args:
            name (`str`): of the source.

        Returns:
            `bool`: whether its mark is there.
        """
        return self.mark(name).exists()

    def mark_finished(self, name: str, outcome: dict[str, Any]) -> None:
        """Note what became of a source, with the checksum of its shard; to be called when that is in its place.

        Args:
            name (`str`): of the source.
            outcome (`dict[str, Any]`): plain values, among them the `split` and the number of `records` of a shard.
        """
        self.mark(name).parent.mkdir(parents=True, exist_ok=True)
        if outcome.get("records"):
            outcome = {**outcome, "sha256": sha256_of(self.shard(outcome["split"], name))}
        write_json(self.mark(name), outcome)

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What became of all finished sources, by name.

        Raises:
            ValueError: if a mark is damaged, naming it.
        """
        return read_marks(self.path)

    def take_back_damaged(self, names: Collection[str]) -> None:
        """Take back the marks of sources whose shards are gone or damaged, so that they are built anew.

        Args:
            names (`Collection[str]`): of the sources that are about to be built.

        Raises:
            ValueError: if the shard of another source is gone or damaged, naming it.
        """
        for name, outcome in self.outcomes().items():
            if not outcome.get("records"):
                continue
            shard, digest = self.shard(outcome["split"], name), outcome.get("sha256")
            if not shard.is_file():
                damage = "gone"
            elif digest is not None and sha256_of(shard) != digest:
                damage = "damaged"
            else:
                continue
            if name not in names:
                raise ValueError(
                    f"`{shard}` must be as it was written, got one that is {damage}: build it from "
                    f"{got(outcome.get('source'))}, too, or delete `{self.mark(name)}` to go on without it."
                )
            logger.warning(f"`{shard}` is {damage}: it is built anew.")
            self.mark(name).unlink()
            shard.unlink(missing_ok=True)


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold the lock of a dataset's folder, which ends with the process, however that ends.

    Args:
        path (`str` or `Path`): of the folder; made if it is not there.

    Raises:
        BlockingIOError: if another build holds it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"`out` is `{path}`, which another build is writing to: wait until it has ended."
        ) from error
    try:
        yield
    finally:
        lock.release()


def build_processes() -> PartialState:
    """The processes that share a build, as `accelerate launch` or `torchrun` started them; they need no GPU each."""
    from accelerate import PartialState

    return PartialState(cpu="LOCAL_RANK" in os.environ, timeout=LONGEST_WAIT)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"`name` must be the name of a source, without dots and slashes, got {got(name)}.")
    return name


def check_same_settings(file: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on in a folder with other settings than it was begun with.

    Args:
        file (`Path`): of the folder, which keeps them.
        found (`dict[str, Any]`): the settings in it.
        wanted (`dict[str, Any]`): those to go on with.

    Raises:
        ValueError: if they differ, naming the first that does.
    """
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"`{name}` must be {got(found.get(name))}, which `{file.parent}` was begun with, "
                f"got {got(wanted.get(name))}: go on with the same settings, or choose another folder."
            )
