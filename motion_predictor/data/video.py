"""Source videos: which files they are, what they are called in a dataset, and their frames one after the other."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..common.checks import got
from .motion_record import HORIZON_STRIDE

# Taken from folders; files that are named one by one may have any suffix. FFmpeg opens texts and pictures, too.
VIDEO_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("3gp", "asf", "avi", "f4v", "flv", "gif", "m2ts", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
FINGERPRINT_BYTES = 1 << 16
LONGEST_NAME = 150  # bytes: a file name has 255, with the suffixes of a file in the making
MOST_FRAMES_MISSING = 5  # between two that are taken for neighbours: cameras leave out some
SHORT_OF_DECLARED = 0.9  # of the declared duration: containers round it, and count the sound


class UnusableVideo(Exception):
    """A video that gives no records.

    Attributes:
        reason (`str`): a few words, the same for all videos that share it.
        detail (`str`): what was found, in one line.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class VideoFile:
    """A video and its name in a dataset.

    Attributes:
        name (`str`): unique among the videos that were found together; letters, digits, `_` and `-`.
        path (`Path`): of the file.
        source (`str`): the path relative to the folder that holds all videos, with `/` on every system.
    """

    name: str
    path: Path
    source: str


def find_videos(paths: Sequence[str | Path]) -> list[VideoFile]:
    """Videos in files and folders, sorted by name.

    A video is named by its path relative to the folder that holds all of `paths` (for one folder: that folder),
    without the suffix and with `__` for the separators; of a long one, the end. Where two would have one name, both
    get a digest of that path.

    Args:
        paths (`Sequence[str | Path]`): files of any suffix, and folders that are searched recursively for files with a
            suffix of `VIDEO_SUFFIXES`; hidden files and folders are passed over.

    Returns:
        `list[VideoFile]`: each with its name.

    Raises:
        FileNotFoundError: if a path does not exist, or there is no video.

    Example:
        >>> [video.name for video in find_videos(["talks"])]  # doctest: +SKIP
        ['anna__interview-1', 'ben__interview-1']
    """
    files: set[Path] = set()
    roots = []
    for path in (Path(os.path.abspath(path)) for path in paths):  # links keep their own names
        if path.is_dir():
            files.update(_videos_below(path))
            roots.append(path)
        elif path.exists():
            files.add(path)
            roots.append(path.parent)
        else:
            raise FileNotFoundError(f"`videos` must be files and folders that exist, got `{path}`.")
    if not files:
        raise FileNotFoundError(
            "`videos` must be folders with videos, or the videos themselves, got "
            f"{got([str(path) for path in paths])}, where no file ends in one of {', '.join(VIDEO_SUFFIXES)}."
        )
    root = Path(os.path.commonpath(roots))
    sources = {path: path.relative_to(root).as_posix() for path in files}
    names = {path: _slug(source) for path, source in sources.items()}
    count = Counter(name.casefold() for name in names.values())
    for path, name in names.items():
        if count[name.casefold()] > 1:
            names[path] = f"{name}-{hashlib.sha256(sources[path].encode()).hexdigest()[:8]}"
    return sorted(
        (VideoFile(names[path], path, sources[path]) for path in files), key=lambda video: (video.name, video.source)
    )


def _videos_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in VIDEO_SUFFIXES and not hidden and path.is_file():
            yield path


def _slug(source: str) -> str:
    stem = source.removesuffix(Path(source).suffix) if Path(source).stem else source
    slug = re.sub(r"[^\w-]", "-", stem.replace("/", "__"))
    return slug.encode()[-LONGEST_NAME:].decode(errors="ignore")


def fingerprint(path: Path) -> str:
    """What tells a video from all others: a digest of its size, beginning and end.

    So a file that was replaced, or that lies in two places, is noticed without being read as a whole.

    Args:
        path (`Path`): of the file.

    Returns:
        `str`: 16 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("one", "two"):
        ...         _ = Path(folder, name).write_bytes(b"frames")
        ...     fingerprint(Path(folder, "one")) == fingerprint(Path(folder, "two"))
        True
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        file.seek(max(size - FINGERPRINT_BYTES, 0))
        digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class VideoHeader:
    """What is known of a video before its frames are decoded.

    Attributes:
        frames (`int`): number of pictures that the file holds.
        fps (`float`): frames per second, by the time from one frame to the next; 0 if the file does not say.
        note (`str`): empty, or in which way the file is damaged.
    """

    frames: int
    fps: float
    note: str


def read_header(path: Path) -> VideoHeader:
    """Count the frames of a video without decoding them.

    Args:
        path (`Path`): of the file.

    Returns:
        `VideoHeader`: what was found.

    Raises:
        UnusableVideo: if the file can't be opened or holds no pictures.
    """
    import av

    frames, note, times = 0, "", []
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            declared_frames, declared_seconds = stream.frames, _declared_seconds(container, stream)
            try:
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        note = "a packet is damaged"
                        break
                    frames += packet.size > 0
                    time = packet.dts if packet.pts is None else packet.pts
                    if packet.size > 0 and time is not None:
                        times.append(float(time * stream.time_base))
            except av.FFmpegError as error:
                note = _message(error)
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideo("cannot be opened", _message(error)) from error
    interval = _usual_interval(times)
    seconds = max(times) - min(times) + interval if times else 0.0
    if not note and frames < declared_frames:
        note = f"it ends after {frames} of {declared_frames} frames"
    if not note and not declared_frames and interval and seconds < declared_seconds * SHORT_OF_DECLARED:
        note = f"it ends after {seconds:.1f} of {declared_seconds:.1f} s"
    return VideoHeader(frames, 1 / interval if interval else 0.0, note and f"truncated: {note}")


def _usual_interval(times: Sequence[float]) -> float:
    """Seconds from one frame to the next: the mean of those near the median, as containers round them; 0 if unknown.

    What a container declares is of no use here: for frames at any time it may be their clock, such as 1000 per second.
    """
    intervals = np.diff(np.sort(times))
    intervals = intervals[intervals > 0]
    if len(intervals) == 0:
        return 0.0
    median = np.median(intervals)
    return float(intervals[(intervals > median / 2) & (intervals < median * 2)].mean())


def read_frames(path: Path, short_side: int, fps: float | None = None) -> Iterator[np.ndarray]:
    """The frames of a video as people see them: upright, with square pixels, resized.

    Ends without an error where the file can't be decoded any further, or where frames are missing: what comes after a
    gap would be taken for a sudden motion.

    Args:
        path (`Path`): of the file.
        short_side (`int`): that frames are resized to, in pixels. Both sides are rounded to multiples of 4.
        fps (`float`, *optional*): frames per second, as [`read_header`] finds them; by default it is asked.

    Yields:
        `np.ndarray` of shape `(height, width, 3)`: uint8 RGB.

    Raises:
        UnusableVideo: if the file can't be opened or holds no pictures.
    """
    import av
    from av.video.reformatter import VideoReformatter

    fps = read_header(path).fps if fps is None else fps
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideo("cannot be opened", _message(error)) from error
    with container:
        stream = _video_stream(container)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        reformatter = VideoReformatter()  # one for all frames: a new one costs more than it saves
        size: tuple[int, int] | None = None
        for frame in _sound_frames(container, stream, longest_gap=MOST_FRAMES_MISSING / (fps or 1)):
            if size is None:  # the first frame's, should it change on the way
                quarter_turns = round(frame.rotation / 90) % 4
                size = fitted_size(round(frame.width * aspect), frame.height, short_side)
                method = "BICUBIC" if min(size) > min(frame.width, frame.height) else "AREA"
            rgb = reformatter.reformat(frame, *size, format="rgb24", interpolation=method).to_ndarray()
            yield np.ascontiguousarray(np.rot90(rgb, quarter_turns))


def _sound_frames(container: Any, stream: Any, longest_gap: float) -> Iterator[Any]:
    """Decoded frames from the first sound one (recordings may begin between key frames) to the first damage or gap."""
    import av

    stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, and not patched up from memory
    time = None
    try:
        for packet in container.demux(stream):
            try:
                frames = [] if packet.is_corrupt else packet.decode()
                damaged = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
            except av.FFmpegError:
                damaged = True
            if damaged and time is None:
                continue
            if damaged:
                return
            for frame in frames:
                if time is not None and frame.time is not None and frame.time - time > longest_gap:
                    return
                time = frame.time or 0.0
                yield frame
    except av.FFmpegError:
        return


def fitted_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """`(width, height)` with the given short side, both rounded to multiples of 4.

    Args:
        width (`int`): in pixels.
        height (`int`): in pixels.
        short_side (`int`): that is wanted, in pixels.

    Returns:
        `tuple[int, int]`: width and height.

    Example:
        >>> fitted_size(1920, 1080, 256)
        (456, 256)
    """
    scale = short_side / min(width, height)
    wide, high = (max(round(side * scale / HORIZON_STRIDE), 1) * HORIZON_STRIDE for side in (width, height))
    return wide, high


def _video_stream(container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.__class__.attached_pic:  # the cover of a song is no video
            return stream
    raise UnusableVideo("no pictures", "the file has no video stream")


def _declared_seconds(container: Any, stream: Any) -> float:
    """How long the file says that it is; where it says when it ends, from its start."""
    import av

    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return 0.0
    return (container.duration - max(container.start_time or 0, 0)) / av.time_base


def _message(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
