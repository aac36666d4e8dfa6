"""Shards of motion records: tar files as webdataset writes and reads them, one for each source video.

A dataset is a folder:

    train/VIDEO.tar, val/VIDEO.tar      the records of one video each, in one of the two splits
    videos/VIDEO.json                   what became of each video
    dataset.json                        the settings that it was built with

A shard is written beside its place and then renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.atomic_file import atomic_file
from ..common.checks import check_choice, check_number
from .motion_record import MotionRecord, decode_record, encode_record

SPLITS = ("train", "val")


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
    """

    def __init__(self, folder: str | Path, split: str):
        check_choice("split", split, SPLITS)
        self.folder = Path(folder)
        self.places = [place for shard in sorted((self.folder / split).glob("*.tar")) for place in _places(shard)]
        if not self.places:
            raise FileNotFoundError(
                f"`{self.folder}` holds no records in `{split}`: build it with `dynadrag build-dataset`."
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> MotionRecord:
        place = self.places[index]
        sample: dict[str, str | bytes] = {"__key__": place.key}
        with place.shard.open("rb") as file:
            for name, offset, length in place.members:
                file.seek(offset)
                sample[name] = file.read(length)
        return decode_record(sample)


def _places(shard: Path) -> list[_Place]:
    members: dict[str, list[tuple[str, int, int]]] = {}
    with tarfile.open(shard) as archive:
        for member in archive:
            key, _, name = member.name.partition(".")
            members.setdefault(key, []).append((name, member.offset_data, member.size))
    return [_Place(shard, key, tuple(files)) for key, files in members.items()]
