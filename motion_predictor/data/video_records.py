"""From the frames of one video to its motion records (Sec. 8): one pass, with a window of frames in memory."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .build_settings import BuildSettings
from .editing_region import EditingRegion, StartFrame
from .motion_record import MotionRecord, end_frames_within
from .optical_flow import OpticalFlow
from .tracks import FlowStep, background_motion, background_points, cell_centres, chain_tracks, has_texture, is_cut
from .video import VideoFile

# Dense motion is kept for so many frames: labels over a tenth of the longest span of frames, or a third of the
# shortest, need no more (15 to 55 frames, Sec. 8).
HORIZON_FRAMES = 6
SMALLEST_REGION = 0.005  # of the picture
FEWEST_FOLLOWED = 7  # points, for the shortest track: as many as a sample has handles; a cut loses them all

MOVING_SHARE = 0.05  # of the region, at the least: a mouth may move in a still face

NO_REGION = "no editing region"
NO_MOTION = "hardly any motion"
LOST_AT_ONCE = "points cannot be followed"


@dataclass(frozen=True, order=True)
class Start:
    """A frame that a record starts from, and the direction of time: 1, or -1 for the video played backwards."""

    index: int
    direction: int


class EndedEarlyError(Exception):
    """Fewer frames could be decoded than the file promised.

    Attributes:
        frames (`int`): the number that could be.
    """

    def __init__(self, frames: int):
        super().__init__(f"{frames} frames could be decoded")
        self.frames = frames


def random_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the labels alone, so that no record depends on another.

    Args:
        seed (`int`): of the dataset.

    Returns:
        `np.random.Generator`: the same for the same seed and labels.

    Example:
        >>> random_generator(0, "clip", 3).random() == random_generator(0, "clip", 3).random()
        True
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *labels))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def draw_starts(video: str, frames: int, settings: BuildSettings) -> list[Start]:
    """Start frames of a video, drawn without replacement, as many for each direction of time.

    Args:
        video (`str`): its name in the dataset.
        frames (`int`): number of its frames; empty is what too few give.
        settings (`BuildSettings`): of the dataset.

    Returns:
        `list[Start]`: in their order.

    Example:
        >>> starts = draw_starts("clip", 40, BuildSettings(records_per_video=3))
        >>> len(starts), {start.direction for start in starts}, max(start.index for start in starts) < 40
        (6, {1, -1}, True)
    """
    starts = []
    for direction in (1, -1) if settings.reverse else (1,):
        possible = max(frames - settings.min_track_frames, 0)
        count = min(settings.records_per_video, possible)
        drawn = random_generator(settings.seed, video, "starts", direction).choice(possible, count, replace=False)
        starts += [Start(int(i) if direction > 0 else frames - 1 - int(i), direction) for i in drawn]
    return sorted(starts)


@dataclass(frozen=True, eq=False)
class RecordMaker:
    """Makes the records of one video after another.

    Attributes:
        settings (`BuildSettings`): of the dataset.
        optical_flow (`OpticalFlow`): from one frame to the next.
        editing_region (`EditingRegion`): of a start frame.
    """

    settings: BuildSettings
    optical_flow: OpticalFlow
    editing_region: EditingRegion

    def records(
        self,
        video: VideoFile,
        fps: float,
        frames: Iterable[np.ndarray],
        frame_count: int,
        starts: Sequence[Start],
        passed_over: Counter[str],
    ) -> Iterator[MotionRecord]:
        """Records from all start frames that have an editing region with motion in it.

        Flow is computed once, for those pairs of frames only that a record needs, and no more frames are kept than the
        longest track has.

        Args:
            video (`VideoFile`): that the frames are of.
            fps (`float`): frames per second, for people.
            frames (`Iterable[np.ndarray]`): `[H, W, 3]` uint8 RGB each.
            frame_count (`int`): how many of them there are; tracks end at the last.
            starts (`Sequence[Start]`): frames to start from, at least one.
            passed_over (`Counter[str]`): counts the start frames that give no record, by reason.

        Yields:
            Records, in the order in which their last frames come.

        Raises:
            EndedEarlyError: if there are fewer frames than expected.
        """
        longest = self.settings.max_track_frames
        due: dict[int, list[Start]] = {}
        needed: set[int] = set()
        for start in starts:
            first, last = _span(start, frame_count, longest)
            due.setdefault(last, []).append(start)
            needed.update(range(first, last))

        pictures: deque[np.ndarray] = deque(maxlen=longest + 1)
        steps: deque[FlowStep | None] = deque(maxlen=longest)
        index = -1
        for index, picture in enumerate(frames):
            if index > 0:
                steps.append(self._step(pictures[-1], picture) if index - 1 in needed else None)
            pictures.append(picture)
            for start in due.pop(index, []):
                length = index - _span(start, frame_count, longest)[0]
                path = [step for step in list(steps)[len(steps) - length :] if step is not None]
                if start.direction < 0:
                    path = [step.reversed for step in reversed(path)]
                record = self._record(video, fps, start, pictures[start.index - index - 1], path, passed_over)
                if record is not None:
                    yield record
            if not due:
                return
        raise EndedEarlyError(index + 1)

    def _step(self, first: np.ndarray, second: np.ndarray) -> FlowStep:
        step = FlowStep.from_arrays(self.optical_flow(first, second), self.optical_flow(second, first))
        return replace(step, cut=is_cut(step, has_texture(first)))

    def _record(
        self,
        video: VideoFile,
        fps: float,
        start: Start,
        picture: np.ndarray,
        steps: list[FlowStep],
        passed_over: Counter[str],
    ) -> MotionRecord | None:
        flow = np.ascontiguousarray(steps[0].forward[0].permute(1, 2, 0).numpy())
        speed = np.hypot(flow[..., 0], flow[..., 1])
        seen = has_texture(picture)
        if (seen & (speed >= self.settings.min_motion)).mean() < SMALLEST_REGION * MOVING_SHARE:
            passed_over[NO_MOTION] += 1
            return None
        region = self.editing_region(StartFrame(picture, flow, video.source, start.index))
        draggable = region & seen  # the paper draws anywhere in the region; but the flow of a blank cheek is a guess
        if draggable.mean() < SMALLEST_REGION:
            passed_over[NO_REGION] += 1
            return None
        if (speed[draggable] >= self.settings.min_motion).mean() < MOVING_SHARE:
            passed_over[NO_MOTION] += 1
            return None

        generator = random_generator(self.settings.seed, video.name, "points", start.index, start.direction)
        points = draw_points(speed, draggable, self.settings.candidates, generator)
        tracks = chain_tracks(np.concatenate([points, background_points(seen & ~region)]), steps)
        followed = ~np.isnan(tracks[: len(points), self.settings.min_track_frames - 1, 0])
        if followed.sum() < min(FEWEST_FOLLOWED, self.settings.candidates):
            passed_over[LOST_AT_ONCE] += 1
            return None
        centres = cell_centres(*region.shape)
        dense = chain_tracks(centres.reshape(-1, 2), steps).transpose(1, 0, 2).reshape(-1, *centres.shape)
        ends = end_frames_within(len(steps))
        return MotionRecord(
            key=f"{video.name}_{start.index:06d}" + ("" if start.direction > 0 else "r"),
            frame=picture,
            flow=flow,
            horizon_flows=dense[:HORIZON_FRAMES],
            end_frames=ends,
            end_flows=dense[ends - 1],
            points=points,
            tracks=tracks[: len(points)],
            background=background_motion(tracks[len(points) :]),
            info={
                "video": video.name,
                "start": start.index,
                "direction": start.direction,
                "fps": round(fps, 3),
                "source": self.settings.source,
                "region": self.editing_region.name,
                "flow": self.optical_flow.name,
            },
        )


def _span(start: Start, frame_count: int, longest: int) -> tuple[int, int]:
    """The first and the last frame of a record, in the order of the video."""
    if start.direction > 0:
        return start.index, min(start.index + longest, frame_count - 1)
    return max(start.index - longest, 0), start.index


def draw_points(speed: np.ndarray, region: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Pixels of a region, without replacement, with a probability in proportion to their speed (Sec. 8).

    Args:
        speed (`np.ndarray` of shape `(height, width)`): the length of the flow.
        region (`np.ndarray` of shape `(height, width)`): bool.
        count (`int`): number of points; if fewer pixels move, all of them are taken.
        generator (`np.random.Generator`): of random numbers.

    Returns:
        `np.ndarray` of shape `(points, 2)`: float32 pixel centres `(x, y)`.

    Example:
        >>> speed = np.zeros((4, 4))
        >>> speed[1, 2] = 3
        >>> draw_points(speed, np.ones((4, 4), bool), 256, np.random.default_rng(0)).tolist()
        [[2.0, 1.0]]
    """
    weight = np.where(region, speed, 0).astype(np.float64).ravel()
    moving = int(np.count_nonzero(weight))
    if moving == 0:
        return np.empty((0, 2), np.float32)
    drawn = generator.choice(weight.size, min(count, moving), replace=False, p=weight / weight.sum())
    return np.stack([drawn % speed.shape[1], drawn // speed.shape[1]], axis=-1).astype(np.float32)
