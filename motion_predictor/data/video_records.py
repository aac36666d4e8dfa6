"""From the frames of one video to its motion records (Sec. 8): one pass, with a window of frames in memory."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .editing_region import EditingRegion, StartFrame
from .motion_record import MotionRecord
from .optical_flow import OpticalFlow
from .tracks import FlowStep, background_motion, background_points, cell_centres, chain_tracks
from .video import VideoFile

if TYPE_CHECKING:
    from .build_dataset import BuildSettings

HORIZON_FRAMES = 6  # ceil(55 / 10): the horizon of the longest way
SMALLEST_REGION = 0.005  # of the picture

# The motion of a start frame is that of the fastest twentieth of its region: a mouth may move in a still face.
MOTION_PERCENTILE = 95

NO_REGION = "no editing region"
NO_MOTION = "hardly any motion"


@dataclass(frozen=True, order=True)
class Start:
    """A frame that a record starts from, and the direction of time: 1, or -1 for the video played backwards."""

    index: int
    direction: int


class EndedEarlyError(Exception):
    """Fewer frames could be decoded than the file promised.

    Attributes:
        frames: the number that could be.
    """

    def __init__(self, frames: int):
        super().__init__(f"{frames} frames could be decoded")
        self.frames = frames


def random_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the labels alone, so that no record depends on another."""
    digest = hashlib.sha256("/".join(map(str, (seed, *labels))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def draw_starts(video: str, frames: int, settings: BuildSettings) -> list[Start]:
    """Start frames of a video, drawn without replacement, as many for each direction of time."""
    starts = []
    for direction in (1, -1) if settings.reverse else (1,):
        possible = frames - settings.min_track_frames
        count = min(settings.records_per_video, max(possible, 0))
        drawn = random_generator(settings.seed, video, "starts", direction).choice(possible, count, replace=False)
        starts += [Start(int(i) if direction > 0 else frames - 1 - int(i), direction) for i in drawn]
    return sorted(starts)


def video_records(
    video: VideoFile,
    fps: float,
    frames: Iterable[np.ndarray],
    frame_count: int,
    starts: Sequence[Start],
    settings: BuildSettings,
    optical_flow: OpticalFlow,
    editing_region: EditingRegion,
    passed_over: Counter[str],
) -> Iterator[MotionRecord]:
    """Records from all start frames that have an editing region with motion in it.

    Flow is computed for those pairs of frames only that a record needs, once, and no more frames are kept than the
    longest track has.

    Args:
        video: that the frames are of.
        fps: frames per second, for the record.
        frames: `[H, W, 3]` uint8 RGB each.
        frame_count: how many frames may be expected.
        starts: frames to start from.
        settings: of the dataset.
        optical_flow: from one frame to the next.
        editing_region: of a start frame.
        passed_over: counts the start frames that give no record, by reason.

    Yields:
        Records, in the order in which their last frames come.

    Raises:
        EndedEarlyError: if there are fewer frames than expected.
    """
    longest = settings.max_track_frames
    due: dict[int, list[Start]] = {}
    needed: set[int] = set()
    for start in starts:
        end = min(start.index + longest, frame_count - 1) if start.direction > 0 else start.index
        due.setdefault(end, []).append(start)
        needed.update(range(start.index, end) if start.direction > 0 else range(max(end - longest, 0), end))

    pictures: deque[np.ndarray] = deque(maxlen=longest + 1)
    steps: deque[FlowStep | None] = deque(maxlen=longest)
    last, index = max(due), -1
    for index, picture in enumerate(frames):
        if index - 1 in needed:
            forward, backward = optical_flow(pictures[-1], picture), optical_flow(picture, pictures[-1])
            steps.append(FlowStep.from_arrays(forward, backward))
        elif index:
            steps.append(None)
        pictures.append(picture)
        for start in due.get(index, []):
            path = _steps_from(start, index, steps, longest)
            start_picture = pictures[-1 - (index - start.index)]
            record = _record(
                video, fps, start, start_picture, path, settings, optical_flow, editing_region, passed_over
            )
            if record is not None:
                yield record
        if index == last:
            return
    raise EndedEarlyError(index + 1)


def _steps_from(start: Start, now: int, steps: deque[FlowStep | None], longest: int) -> list[FlowStep]:
    """The steps of a record whose last frame (in the order of the video) has just come."""
    if start.direction > 0:
        return [step for step in list(steps)[len(steps) - (now - start.index) :] if step is not None]
    return [step.reversed for step in list(steps)[::-1][: min(now, longest)] if step is not None]


def _record(
    video: VideoFile,
    fps: float,
    start: Start,
    picture: np.ndarray,
    steps: list[FlowStep],
    settings: BuildSettings,
    optical_flow: OpticalFlow,
    editing_region: EditingRegion,
    passed_over: Counter[str],
) -> MotionRecord | None:
    flow = np.ascontiguousarray(steps[0].forward[0].permute(1, 2, 0).numpy())
    region = editing_region(StartFrame(picture, flow, video.source, start.index))
    if region.mean() < SMALLEST_REGION:
        passed_over[NO_REGION] += 1
        return None
    speed = np.linalg.norm(flow, axis=-1)
    if np.percentile(speed[region], MOTION_PERCENTILE) < settings.min_motion:
        passed_over[NO_MOTION] += 1
        return None

    generator = random_generator(settings.seed, video.name, "points", start.index, start.direction)
    points = draw_points(speed, region, settings.candidates, generator)
    outside = background_points(region)
    centres = cell_centres(*region.shape)
    horizon = chain_tracks(centres.reshape(-1, 2), steps[:HORIZON_FRAMES])
    tracks = chain_tracks(np.concatenate([points, outside]), steps)
    return MotionRecord(
        key=f"{video.name}_{start.index:06d}" + ("" if start.direction > 0 else "r"),
        frame=picture,
        flow=flow,
        horizon_flows=horizon.transpose(1, 0, 2).reshape(-1, *centres.shape),
        points=points,
        tracks=tracks[: len(points)],
        background=background_motion(tracks[len(points) :]),
        info={
            "video": video.name,
            "start": start.index,
            "direction": start.direction,
            "fps": round(fps, 3),
            "source": settings.source,
            "region": editing_region.name,
            "flow": optical_flow.name,
        },
    )


def draw_points(speed: np.ndarray, region: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Pixels of a region, without replacement, with a probability in proportion to their speed (Sec. 8).

    Args:
        speed: `[H, W]`, the length of the flow.
        region: `[H, W]` bool.
        count: number of points; fewer pixels that move are all taken.
        generator: of random numbers.

    Returns:
        `[P, 2]` float32 pixel centres `(x, y)`.
    """
    weight = np.where(region, speed, 0).astype(np.float64).ravel()
    moving = int(np.count_nonzero(weight))
    drawn = generator.choice(weight.size, min(count, moving), replace=False, p=weight / weight.sum())
    return np.stack([drawn % speed.shape[1], drawn // speed.shape[1]], axis=-1).astype(np.float32)
