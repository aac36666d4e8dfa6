"""From still portraits to shards of motion records: the second source of training data, beside videos."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .dataset_folder import DatasetFolder, build_processes, only_writer
from .motion_record import MotionRecord
from .portrait_motion import FoldedPicture, PortraitMotion
from .portrait_records import portrait_record
from .portrait_settings import PortraitSettings
from .portraits import Marks, Pictures, PortraitSource
from .shards import split_of, write_shard
from .statistics import MotionStatistics
from .still_framing import framed_stills

FORMAT = 1
SIDE_OF_MIN_MOTION = 128  # pixels


@dataclass(frozen=True)
class _Portrait:
    """A picture of one of the sources, by its name in the dataset."""

    name: str
    source: int
    file: str
    marks: Marks
    split: str


def build_portraits(
    sources: Sequence[PortraitSource],
    out: str | Path,
    settings: PortraitSettings | None = None,
    *,
    show_progress: bool = True,
) -> dict[str, int] | None:
    """Move portraits at random and keep records of it, or go on with that: a dataset in the layout of `shards.py`.

    A build that was stopped ends with the same bytes as one that was not: all that is random depends on the seed and
    the portrait's name. Under `accelerate launch --num_processes N`, or without GPUs `torchrun --nproc-per-node N`,
    the portraits are shared out among N processes.

    Args:
        sources (`Sequence[PortraitSource]`): pictures and the landmarks of their faces.
        out (`str` or `Path`): folder of the dataset.
        settings (`PortraitSettings`, *optional*): of the dataset; the defaults if None.
        show_progress (`bool`, *optional*, defaults to `True`): show a bar over the portraits.

    Returns:
        `dict`: the numbers of `portraits`, of `records`, and of portraits that were `skipped` since their picture or
        their landmarks cannot be used (`videos/NAME.json` says why); None in all processes but the main one.

    Raises:
        ValueError: if `out` was begun with other settings, or a source cannot be read.
        BlockingIOError: if another build is writing to `out`.

    Example:
        >>> source = PortraitSource(Path("faces.zip"), Path("faces_landmarks.npz"))  # doctest: +SKIP
        >>> build_portraits([source], "portrait-motion")  # doctest: +SKIP
        {'portraits': 5127, 'records': 14980, 'skipped': 0}
    """
    settings = settings or PortraitSettings()
    portraits = _find_portraits(sources, settings)
    state = build_processes()
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        if state.is_main_process:
            stack.enter_context(only_writer(out))
            begun = DatasetFolder.open(out, _recorded(sources, settings))
            begun.take_back_damaged({portrait.name for portrait in portraits})
        state.wait_for_everyone()
        folder = DatasetFolder(Path(out))
        pictures = [stack.enter_context(source.open()) for source in sources]
        hidden = not (show_progress and state.is_main_process)
        for number, portrait in enumerate(tqdm(portraits, unit="portrait", disable=hidden)):
            if number % state.num_processes == state.process_index and not folder.is_finished(portrait.name):
                _do(portrait, pictures[portrait.source], folder, settings)
        state.wait_for_everyone()
    if not state.is_main_process:
        return None
    outcomes = [outcome for outcome in folder.outcomes().values() if outcome["status"] == "done"]
    return {
        "portraits": len(outcomes),
        "records": sum(outcome["records"] for outcome in outcomes),
        "skipped": len(portraits) - len(outcomes),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """The work is small, and shared out among processes. More threads would slow it down, and round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _recorded(sources: Sequence[PortraitSource], settings: PortraitSettings) -> dict[str, Any]:
    """What records depend on, for `dataset.json`."""
    named = [[source.pictures.name, _name(source.landmarks), source.hold_out] for source in sources]
    listed = [[_name(source.people), _name(source.held_out_list)] for source in sources]
    return {
        "format": FORMAT,
        "kind": "portraits",
        "sources": named,
        **({"lists": listed} if any(map(any, listed)) else {}),
        **{name: value for name, value in asdict(settings).items() if value is not None},
    }


def _name(path: Path | None) -> str | None:
    return path.name if path else None


def _find_portraits(sources: Sequence[PortraitSource], settings: PortraitSettings) -> list[_Portrait]:
    """The pictures of all sources that have landmarks, each with its split."""
    portraits: dict[str, _Portrait] = {}
    for number, source in enumerate(sources):
        marks, held_out, people = source.load_marks(), source.held_out(), source.load_people()
        with source.open() as pictures:
            files = [file for file in pictures.names() if file in marks]
        for file, name in _named(source, files).items():
            if name in portraits:
                other = portraits[name]
                raise ValueError(
                    f"`sources` must have a name for each portrait, got {name!r} for `{file}` in {source.pictures} "
                    f"and for `{other.file}` in {sources[other.source].pictures}: rename one of them."
                )
            person = people.get(file, name)
            split = "val" if {file, person} & held_out else split_of(person, settings.val_share, settings.seed)
            portraits[name] = _Portrait(name, number, file, marks[file], split)
    return list(portraits.values())


def _named(source: PortraitSource, files: Sequence[str]) -> dict[str, str]:
    """Names for the pictures of a source, by file; where two would have one, both get a digest of their file names."""
    names = {file: re.sub(r"[^\w-]+", "_", f"{source.pictures.stem}-{Path(file).stem}") for file in files}
    count = Counter(name.casefold() for name in names.values())
    for file, name in names.items():
        if count[name.casefold()] > 1:
            names[file] = f"{name}-{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    return names


def _do(portrait: _Portrait, pictures: Pictures, folder: DatasetFolder, settings: PortraitSettings) -> None:
    """Write the shard of a portrait, then its outcome: a portrait without an outcome is done again."""
    outcome: dict[str, Any] = {"source": portrait.file}
    try:
        records = list(_records(portrait, pictures, settings))
    except ValueError as error:
        outcome |= {"status": "skipped", "reason": "unusable picture or landmarks", "detail": str(error)}
    else:
        statistics = MotionStatistics()
        for record in records:
            statistics.add(record)
        if records:
            write_shard(folder.shard(portrait.split, portrait.name), records)
        outcome |= {
            "status": "done",
            "split": portrait.split,
            "records": len(records),
            "note": "" if records else "hardly moved",
            "statistics": statistics.summary(),
        }
    folder.mark_finished(portrait.name, outcome)


def _records(portrait: _Portrait, pictures: Pictures, settings: PortraitSettings) -> Iterator[MotionRecord]:
    digest = hashlib.sha256(portrait.name.encode()).digest()
    random = np.random.default_rng([settings.seed, int.from_bytes(digest[:8], "big")])
    stills = framed_stills(pictures, portrait.file, portrait.marks, settings, random)
    largest_turn = None if settings.largest_turn is None else math.radians(settings.largest_turn)
    for take, (picture, fields) in zip(range(settings.motions_per_portrait), stills, strict=False):
        motion = PortraitMotion.draw(picture, fields, random, settings.frames, largest_turn)
        speeds = motion.speeds()[: settings.frames - settings.max_track_frames]
        moving = np.flatnonzero(speeds >= settings.min_motion / SIDE_OF_MIN_MOTION)
        starts = random.choice(moving, min(settings.records_per_motion, len(moving)), replace=False)
        for start in sorted(starts.tolist()):
            try:
                yield portrait_record(
                    portrait.name,
                    motion,
                    start,
                    random,
                    take=take,
                    horizon_frames=settings.horizon_frames,
                    track_frames=settings.max_track_frames,
                    candidates=settings.candidates,
                )
            except FoldedPicture:  # rounding, in a frame that is close to it: the others are good
                continue
