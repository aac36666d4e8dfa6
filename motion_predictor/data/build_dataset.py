"""Build a dataset of motion records from videos (DynaDrag, arXiv 2601.00542, Sec. 3.2.1 and 8).

One shard for each video, and a report of what became of it. A build that was stopped, in whatever way, goes on with
the same command, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .build_settings import BuildSettings
from .dataset_folder import DatasetFolder, build_processes, only_writer
from .motion_record import MotionRecord
from .shards import split_of, write_shard
from .statistics import MotionStatistics
from .video import UnusableVideo, VideoFile, VideoHeader, find_videos, fingerprint, read_frames, read_header

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

    from .editing_region import EditingRegion
    from .optical_flow import OpticalFlow
    from .video_records import RecordMaker

FORMAT = 1
NAMES_SHOWN = 8
POLL_SECONDS = 0.5
SAME_CONTENT = "same content as another"


@dataclass(frozen=True)
class BuildSummary:
    """What became of the videos: the contents of `videos/VIDEO.json`, by name of video."""

    outcomes: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        done = [outcome for outcome in self.outcomes.values() if outcome["status"] == "done"]
        rows = [
            (split, sum(o["split"] == split for o in done), sum(o["records"] for o in done if o["split"] == split))
            for split in ("train", "val")
        ]
        lines = ["split    videos  records", *(f"{split:6} {videos:8} {records:8}" for split, videos, records in rows)]
        notes = {name: o["note"] for name, o in self.outcomes.items() if o["status"] == "done" and o.get("note")}
        lines += _listing("used in part", notes)
        skipped: dict[str, dict[str, str]] = {}
        for name, outcome in self.outcomes.items():
            if outcome["status"] == "skipped":
                skipped.setdefault(outcome["reason"], {})[name] = outcome["detail"]
        for reason in sorted(skipped):
            lines += _listing(f"skipped, {reason}", skipped[reason])
        return "\n".join(lines)


def _listing(title: str, details: Mapping[str, str]) -> list[str]:
    if not details:
        return []
    lines = [f"{title}: {len(details)}"]
    lines += [f"  {name}: {detail}" for name, detail in list(details.items())[:NAMES_SHOWN]]
    if len(details) > NAMES_SHOWN:
        lines.append(f"  ... and {len(details) - NAMES_SHOWN} more, see videos/*.json")
    return lines


@dataclass(frozen=True)
class _Job:
    """A video that is still to be done; `same_as` names the first with this content: mostly itself."""

    video: VideoFile
    fingerprint: str
    same_as: str


def build_dataset(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: BuildSettings | None = None,
    *,
    optical_flow: OpticalFlow | None = None,
    editing_region: EditingRegion | None = None,
    show_progress: bool = True,
) -> BuildSummary | None:
    """Build a dataset of motion records, or go on with one.

    Under `accelerate launch --num_processes N`, or without GPUs `torchrun --nproc-per-node N`, the videos are shared
    out among N processes.

    Args:
        videos (`Sequence[str | Path]`): files and folders, see `find_videos`.
        out (`str` or `Path`): folder of the dataset; `shards.py` says what it holds.
        settings (`BuildSettings`, *optional*): of the dataset; the defaults if None.
        optical_flow (`OpticalFlow`, *optional*): in place of the one that the settings name.
        editing_region (`EditingRegion`, *optional*): in place of the one that the settings name.
        show_progress (`bool`, *optional*, defaults to `True`): show a bar over the videos, and at the end what became
            of them.

    Returns:
        `BuildSummary`, or None in all processes but the main one.

    Raises:
        FileNotFoundError: if there are no videos.
        ValueError: if `out` was begun with other settings or other videos of the same names.
        BlockingIOError: if another build is writing to `out`.

    Example:
        >>> summary = build_dataset(["talks"], "dataset", BuildSettings(short_side=128))  # doctest: +SKIP
    """
    import cv2

    from .editing_region import make_editing_region
    from .optical_flow import make_optical_flow
    from .video_records import RecordMaker

    cv2.setNumThreads(1)  # videos are shared out among processes
    settings = settings or BuildSettings()
    state = build_processes()
    device = _device(state)
    maker = RecordMaker(
        settings,
        optical_flow or make_optical_flow(settings.flow, settings.flow_checkpoint, device),
        editing_region or make_editing_region(settings, device),
    )
    if not state.is_main_process:
        _help(state, Path(out), maker)
        return None
    with only_writer(out):
        return _lead(state, find_videos(videos), Path(out), maker, show_progress)


def _lead(
    state: PartialState, files: Sequence[VideoFile], out: Path, maker: RecordMaker, show_progress: bool
) -> BuildSummary:
    """The main process: prepare the folder, hand out the videos, do a share of them, and wait for the others."""
    from accelerate.utils import broadcast_object_list

    folder = DatasetFolder.open(out, _recorded(maker))
    jobs = _open_jobs(files, folder)
    broadcast_object_list([jobs])
    with tqdm(total=len(files), unit="video", disable=not show_progress) as bar:
        try:
            for job in jobs[:: state.num_processes]:
                _show_finished(bar, files, folder)
                _do(job, folder, maker)
            while _show_finished(bar, files, folder) < len(files):
                time.sleep(POLL_SECONDS)  # not a barrier, which would give up on a long video
        except KeyboardInterrupt:
            kept = _show_finished(bar, files, folder)
            bar.write(f"Interrupted: {kept} of {len(files)} videos are kept in {out}. The same command goes on.")
            raise
    outcomes = folder.outcomes()
    summary = BuildSummary({file.name: outcomes[file.name] for file in files})
    if show_progress:
        print(summary)
    return summary


def _help(state: PartialState, out: Path, maker: RecordMaker) -> None:
    """Any other process: do a share of the videos that the main process hands out."""
    from accelerate.utils import broadcast_object_list

    (jobs,) = broadcast_object_list([None])
    for job in jobs[state.process_index :: state.num_processes]:
        _do(job, DatasetFolder(out), maker)


def _device(state: PartialState) -> torch.device:
    """For networks: where there are GPUs, the processes take turns on them."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", state.local_process_index % torch.cuda.device_count())
    return state.device


def _recorded(maker: RecordMaker) -> dict[str, Any]:
    """What records depend on, for `dataset.json`."""
    backends = {"flow": maker.optical_flow.name, "region": maker.editing_region.name}
    return {"format": FORMAT, "kind": "videos", **asdict(maker.settings), **backends}


def _open_jobs(files: Sequence[VideoFile], folder: DatasetFolder) -> list[_Job]:
    """The videos that have no outcome yet. Those with one must still be the same files."""
    folder.take_back_damaged({file.name for file in files})
    outcomes = folder.outcomes()
    owners = {o.get("fingerprint"): name for name, o in outcomes.items() if o.get("reason") != SAME_CONTENT}
    jobs = []
    for file in files:
        digest = fingerprint(file.path)
        if file.name not in outcomes:
            jobs.append(_Job(file, digest, owners.setdefault(digest, file.name)))
        elif outcomes[file.name].get("fingerprint") != digest:
            raise ValueError(
                f"`{file.path}` must be the video that `{folder.path}` was built with, got another of the name "
                f"`{file.name}`: delete `videos/{file.name}.json` there to build it anew, or choose another folder."
            )
    return jobs


def _show_finished(bar: tqdm, files: Sequence[VideoFile], folder: DatasetFolder) -> int:
    bar.n = sum(folder.is_finished(file.name) for file in files)
    bar.refresh()
    return int(bar.n)


def _do(job: _Job, folder: DatasetFolder, maker: RecordMaker) -> None:
    """Write the shard of a video, then its outcome: a video without an outcome is done again."""
    outcome: dict[str, Any] = {"source": job.video.source, "fingerprint": job.fingerprint}
    try:
        if job.same_as != job.video.name:
            raise UnusableVideo(SAME_CONTENT, f"as {job.same_as}")
        outcome |= {"status": "done", **_write_video(job.video, folder, maker)}
    except UnusableVideo as error:
        outcome |= {"status": "skipped", "reason": error.reason, "detail": error.detail}
    folder.mark_finished(job.video.name, outcome)


def _write_video(video: VideoFile, folder: DatasetFolder, maker: RecordMaker) -> dict[str, Any]:
    """Write the shard of a video, as far as it can be read."""
    from .video_records import EndedEarlyError

    header = read_header(video.path)
    most = maker.settings.max_frames
    seen = header if most is None else replace(header, frames=min(header.frames, most))
    while True:
        try:
            return _write_records(video, seen, folder, maker)
        except EndedEarlyError as error:
            note = header.note or f"only {error.frames} of {header.frames} frames can be read, up to damage or a gap"
            seen = replace(seen, frames=error.frames, note=note)


def _write_records(video: VideoFile, header: VideoHeader, folder: DatasetFolder, maker: RecordMaker) -> dict[str, Any]:
    from .video_records import draw_starts

    settings, note = maker.settings, header.note and f" ({header.note})"
    starts = draw_starts(video.name, header.frames, settings)
    if not starts:
        needed = settings.min_track_frames + 1
        raise UnusableVideo("too short", f"{header.frames} frames, {needed} are needed{note}")
    passed_over: Counter[str] = Counter()
    frames = read_frames(video.path, settings.short_side, header.fps)
    records = maker.records(video, header.fps, frames, header.frames, starts, passed_over)
    first = next(records, None)
    if first is None:
        raise UnusableVideo(passed_over.most_common(1)[0][0], f"in all {len(starts)} start frames{note}")
    split = split_of(video.name, settings.val_share, settings.seed)
    statistics = MotionStatistics()
    count = write_shard(folder.shard(split, video.name), _counted(chain([first], records), statistics))
    return {
        "split": split,
        "records": count,
        "frames": header.frames,
        "fps": round(header.fps, 3),
        "note": header.note,
        "passed_over": dict(sorted(passed_over.items())),
        "statistics": statistics.summary(),
    }


def _counted(records: Iterator[MotionRecord], statistics: MotionStatistics) -> Iterator[MotionRecord]:
    for record in records:
        statistics.add(record)
        yield record
