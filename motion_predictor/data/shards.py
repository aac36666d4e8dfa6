"""Shards of motion records: tar files as webdataset writes and reads them, one for each source video.

A dataset is a folder:

    train/VIDEO.tar, val/VIDEO.tar      the records of one video each, in one of the two splits
    videos/VIDEO.json                   what became of each video
    dataset.json                        the settings that it was built with

A shard is written beside its place and then renamed, so it is there whole or not at all. The mark in `videos/` holds
its SHA-256.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.atomic_file import atomic_file
from ..common.checks import check_choice, check_number, got
from ..common.checksum import sha256_of
from ..common.json_file import read_json
from .motion_record import MotionRecord, decode_record, encode_record

SPLITS = ("train", "val")
MARKS = "videos"
MEMBERS = {"frame.jpg", "motion.npz", "info.json"}  # of a record
REMEDY = "delete it and start its build again, which makes it anew"


def read_marks(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What became of the sources of a dataset that are finished.

    Args:
        folder (`str` or `Path`): of the dataset.

    Returns:
        `dict[str, dict[str, Any]]`: the contents of `videos/NAME.json` by name.

    Raises:
        ValueError: if one is damaged, naming it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_marks(folder)
        {}
    """
    return {path.stem: _read_mark(path) for path in sorted((Path(folder) / MARKS).glob("*.json"))}


def _read_mark(path: Path) -> dict[str, Any]:
    mark = read_json(path, REMEDY)
    if not _says_what_became(mark):
        raise ValueError(f"`{path}` must say what became of a source, got {got(mark)}: {REMEDY}.")
    return mark


def _says_what_became(mark: dict[str, Any]) -> bool:
    if mark.get("status") == "done":
        return mark.get("split") in SPLITS and isinstance(mark.get("records"), int)
    return mark.get("status") == "skipped" and {"reason", "detail"} <= set(mark)


def split_of(video: str, val_share: float, seed: int) -> str:
    """The split of a source video, which depends on nothing but its name, the share and the seed.

    So it stays the same when videos are added, and all records of a video are on one side.

    Args:
        video (`str`): its name in the dataset.
        val_share (`float`): expected share of videos in `"val"`, from 0 to 1; the paper's is 0.05.
        seed (`int`): of the split.

    Example:
        >>> split_of("interview-3", val_share=0.0, seed=0), split_of("interview-3", val_share=1.0, seed=0)
        ('train', 'val')
    """
    check_number("val_share", val_share, least=0, most=1)
    digest = hashlib.sha256(f"{seed}/{video}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_share else "train"


def write_shard(path: Path, records: Iterable[MotionRecord]) -> int:
    """Write records to a new shard, whole or not at all; the same records give the same bytes.

    Args:
        path (`Path`): of the shard.
        records (`Iterable[MotionRecord]`): in the order in which they are written.

    Returns:
        `int`: the number of records.
    """
    import webdataset

    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_file(path) as file, webdataset.TarWriter(file, mtime=0.0, encoder=False) as writer:
        for record in records:
            writer.write(encode_record(record))
            count += 1
    return count


@dataclass(frozen=True)
class _Place:
    """Where the files of one record lie in a shard: name, offset and length in bytes."""

    shard: Path
    key: str
    members: tuple[tuple[str, int, int], ...]


class MotionShards:
    """The records of one split of a dataset, by number: training draws them in an order of its own.

    Webdataset reads a shard from its beginning to its end. A training run that goes on exactly where it was stopped
    needs the n-th record of a dataset at any time, so the places of all records are read once, from the tar headers.

    Args:
        folder (`str` or `Path`): of the dataset.
        split (`str`): `"train"` or `"val"`.

    Raises:
        FileNotFoundError: if the folder holds no record of this split.
        ValueError: if a shard is gone or damaged, naming it. Its content is checked when its first record is read.
    """

    def __init__(self, folder: str | Path, split: str):
        check_choice("split", split, SPLITS)
        self.folder = Path(folder)
        marks = {name: mark for name, mark in read_marks(self.folder).items() if mark.get("split") == split}
        for name, mark in marks.items():
            if mark.get("records") and not (self.folder / split / f"{name}.tar").is_file():
                raise ValueError(
                    f"`{self.folder / split / name}.tar` must hold {mark['records']} records, got no such file: start "
                    "its build again, which makes it anew."
                )
        self._unchecked = {self.folder / split / f"{name}.tar": mark.get("sha256") for name, mark in marks.items()}
        self.places = [place for shard in sorted((self.folder / split).glob("*.tar")) for place in _places(shard)]
        if not self.places:
            raise FileNotFoundError(
                f"`{self.folder}` holds no records in `{split}`: build it with `dynadrag build-dataset`."
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> MotionRecord:
        place = self.places[index]
        self._check(place.shard)
        sample: dict[str, str | bytes] = {"__key__": place.key}
        with place.shard.open("rb") as file:
            for name, offset, length in place.members:
                file.seek(offset)
                sample[name] = file.read(length)
        try:
            return decode_record(sample)
        except Exception as error:  # whatever decoders say of damaged bytes
            raise ValueError(
                f"`{place.shard}` must hold whole records, got a damaged one, `{place.key}` ({got(str(error))}): "
                f"{REMEDY}."
            ) from error

    def _check(self, shard: Path) -> None:
        """Compare a shard with its checksum, once."""
        expected = self._unchecked.get(shard)
        if expected is not None and sha256_of(shard) != expected:
            raise ValueError(f"`{shard}` must be as it was written, got other bytes: {REMEDY}.")
        self._unchecked.pop(shard, None)


def _places(shard: Path) -> list[_Place]:
    members: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, _, name = member.name.partition(".")
                members.setdefault(key, []).append((name, member.offset_data, member.size))
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"`{shard}` must be a tar file of records, got another ({error}): {REMEDY}.") from error
    size = shard.stat().st_size
    whole = all(
        {name for name, _, _ in files} == MEMBERS and all(offset + length <= size for _, offset, length in files)
        for files in members.values()
    )
    if not members or not whole:
        raise ValueError(f"`{shard}` must hold whole records, got parts of some: {REMEDY}.")
    return [_Place(shard, key, tuple(files)) for key, files in members.items()]
