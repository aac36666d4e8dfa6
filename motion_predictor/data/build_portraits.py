"""From still portraits to shards of motion records: the second source of training data, beside videos."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .dataset_folder import DatasetFolder
from .head_fields import HeadFields
from .motion_record import HORIZON_STRIDE, MotionRecord
from .portrait_motion import PortraitMotion
from .portrait_records import portrait_record
from .portraits import Pictures, PortraitSource
from .shards import split_of, write_shard


@dataclass(frozen=True)
class PortraitSettings:
    """What the records of portraits depend on, besides the portraits.

    Attributes:
        size: side of the pictures in pixels, a multiple of 4.
        motions: random motions of each portrait.
        records: start frames of each motion, at most; frames without motion are none.
        frames: of each motion, 25 in a second.
        track_frames: the end frame of a sample lies at most so many frames after its start (the paper's 55).
        horizon_frames: labels reach at most so many frames ahead.
        candidates: points of each record that handles are drawn from.
        least_motion: of the fastest part of the head from a start frame to the next, as a fraction of the side.
        val_share: expected share of portraits for validation, besides those of sources that are held out.
        seed: of everything random.
    """

    size: int = 128
    motions: int = 1
    records: int = 3
    frames: int = 96
    track_frames: int = 55
    horizon_frames: int = 6
    candidates: int = 256
    least_motion: float = 0.002
    val_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % HORIZON_STRIDE:
            raise ValueError(f"`size` is {self.size}: a multiple of {HORIZON_STRIDE} from 32 is accepted.")
        for name in ("motions", "records", "track_frames", "horizon_frames", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a whole number from 1 is accepted.")
        if self.horizon_frames > self.track_frames:
            raise ValueError(
                f"`horizon_frames` is {self.horizon_frames}: at most `track_frames`, {self.track_frames}, is accepted."
            )
        if self.frames < self.track_frames + self.records:
            raise ValueError(
                f"`frames` is {self.frames}: at least `track_frames` + `records`, "
                f"{self.track_frames + self.records}, is accepted."
            )
        if not self.least_motion >= 0:
            raise ValueError(f"`least_motion` is {self.least_motion}: a number that is not negative is accepted.")
        if not 0 <= self.val_share <= 1:
            raise ValueError(f"`val_share` is {self.val_share}: a number from 0 to 1 is accepted.")


@dataclass(frozen=True)
class _Portrait:
    """One picture of a source, under its name in the dataset."""

    name: str
    file: str
    landmarks: np.ndarray
    split: str


def build_portraits(
    sources: Sequence[PortraitSource], out: str | Path, settings: PortraitSettings | None = None
) -> dict[str, int]:
    """Move portraits at random, and keep records of it: one shard for each portrait, in the layout of `shards.py`.

    A build that was stopped goes on where it was, and ends with the same bytes as one that was not: everything random
    depends on the seed and the portrait's name. Under `accelerate launch` the processes share the portraits.

    Args:
        sources: pictures and the landmarks of their faces.
        out: the dataset's folder.
        settings: how to move them; None for the defaults.

    Returns:
        `dict`: the number of `portraits`, of `records`, and of portraits that were `skipped` since their picture or
        their landmarks cannot be used; why, says `videos/NAME.json`.

    Raises:
        ValueError: if the folder was begun with other settings, or a source cannot be read.

    Example:
        >>> source = PortraitSource(Path("faces.zip"), Path("faces_landmarks.npz"))  # doctest: +SKIP
        >>> build_portraits([source], "portrait-motion")  # doctest: +SKIP
        {'portraits': 5127, 'records': 14980, 'skipped': 0}
    """
    from accelerate import PartialState

    settings = settings or PortraitSettings()
    process = PartialState()
    described = {
        "kind": "portraits",
        "sources": [[source.pictures.name, source.landmarks.name, source.hold_out] for source in sources],
        **asdict(settings),
    }
    portraits = [_portraits(source, settings) for source in sources]
    names = [portrait.name for found in portraits for portrait in found]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"`sources` have portraits of one name, {twice[0]!r} for instance: rename an archive.")
    if process.is_main_process:
        DatasetFolder.open(out, described)
    process.wait_for_everyone()
    folder = DatasetFolder(Path(out))

    with tqdm(total=len(names), desc="Moving portraits", disable=not process.is_main_process) as progress:
        for source, found in zip(sources, portraits, strict=True):
            with source.open() as pictures:
                for number, portrait in enumerate(found):
                    if number % process.num_processes == process.process_index and not folder.is_finished(
                        portrait.name
                    ):
                        _build(folder, pictures, portrait, settings)
                    progress.update()
    process.wait_for_everyone()
    outcomes = folder.outcomes().values()
    return {
        "portraits": sum("error" not in outcome for outcome in outcomes),
        "records": sum(outcome["records"] for outcome in outcomes),
        "skipped": sum("error" in outcome for outcome in outcomes),
    }


def _portraits(source: PortraitSource, settings: PortraitSettings) -> list[_Portrait]:
    """The pictures of a source that have landmarks, each with its split."""
    landmarks, held_out = source.load_landmarks(), source.held_out()
    with source.open() as pictures:
        files = [file for file in pictures.names() if file in landmarks]
    portraits = []
    for file in files:
        name = re.sub(r"[^\w-]+", "_", f"{source.pictures.stem}-{Path(file).stem}")
        split = "val" if file in held_out else split_of(name, settings.val_share, settings.seed)
        portraits.append(_Portrait(name, file, landmarks[file], split))
    return portraits


def _build(folder: DatasetFolder, pictures: Pictures, portrait: _Portrait, settings: PortraitSettings) -> None:
    outcome = {"split": portrait.split, "records": 0}
    try:
        picture = pictures.read(portrait.file, settings.size)
        records = list(_records(portrait, picture, settings))
    except ValueError as error:
        outcome["error"] = str(error)
    else:
        outcome["records"] = len(records)
        if records:
            write_shard(folder.shard(portrait.split, portrait.name), records)
    folder.mark_finished(portrait.name, outcome)


def _records(portrait: _Portrait, picture: np.ndarray, settings: PortraitSettings) -> Iterator[MotionRecord]:
    digest = hashlib.sha256(portrait.name.encode()).digest()
    random = np.random.default_rng([settings.seed, int.from_bytes(digest[:8], "big")])
    fields = HeadFields.from_landmarks(portrait.landmarks)
    for number in range(settings.motions):
        motion = PortraitMotion.draw(picture, fields, random, settings.frames)
        moving = np.flatnonzero(motion.speeds()[: settings.frames - settings.track_frames] >= settings.least_motion)
        starts = random.choice(moving, min(settings.records, len(moving)), replace=False)
        for start in sorted(starts.tolist()):
            yield portrait_record(
                f"{portrait.name}-{number}",
                motion,
                start,
                random,
                horizon_frames=settings.horizon_frames,
                track_frames=settings.track_frames,
                candidates=settings.candidates,
            )
