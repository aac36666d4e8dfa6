"""Start frames and points are drawn fairly, and a video goes through memory frame by frame."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from motion_predictor.data.build_settings import BuildSettings
from motion_predictor.data.editing_region import WholeFrame
from motion_predictor.data.motion_record import MotionRecord
from motion_predictor.data.video import VideoFile
from motion_predictor.data.video_records import (
    EndedEarlyError,
    RecordMaker,
    Start,
    draw_points,
    draw_starts,
    random_generator,
)

SETTINGS = BuildSettings(short_side=32, records_per_video=4, candidates=16, region="whole")
CLIP = VideoFile("clip", Path("clip.mkv"), "clip.mkv")


class ShiftFlow:
    """All moves by (1, 0) pixels a frame; frames carry their number in their first pixel."""

    name = "shift"

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        distance = int(second[0, 0, 0]) - int(first[0, 0, 0])
        return np.zeros((*first.shape[:2], 2), np.float32) + np.array([distance, 0], np.float32)


@pytest.fixture
def numbered_frames(textured_picture: Callable) -> Callable[[int], Iterator[np.ndarray]]:
    picture = textured_picture(32, 120)

    def frames(count: int) -> Iterator[np.ndarray]:
        for index in range(count):
            frame = picture.copy()
            frame[0, 0] = index
            yield frame

    return frames


def make_records(
    frames: Iterator[np.ndarray], count: int, starts: list[Start], settings: BuildSettings = SETTINGS
) -> list[MotionRecord]:
    maker = RecordMaker(settings, ShiftFlow(), WholeFrame())
    return list(maker.records(CLIP, 25.0, frames, count, starts, Counter()))


def test_points_are_drawn_in_proportion_to_their_speed():
    speed = np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 0.0]])
    region = np.array([[True, True, False], [True, True, True]])
    generator = np.random.default_rng(0)
    drawn = Counter(tuple(draw_points(speed, region, 1, generator)[0].astype(int)) for _ in range(5000))
    for (x, y), share in {(0, 0): 0.1, (1, 0): 0.2, (0, 1): 0.3, (1, 1): 0.4}.items():
        assert drawn[x, y] / 5000 == pytest.approx(share, abs=0.025)
    assert len(drawn) == 4


def test_points_are_drawn_once_and_only_where_something_moves():
    speed = np.zeros((20, 30))
    speed[4:9, 10:14] = 0.5
    points = draw_points(speed, np.ones((20, 30), dtype=bool), 64, np.random.default_rng(1))
    assert sorted(map(tuple, points.astype(int))) == [(x, y) for x in range(10, 14) for y in range(4, 9)]
    assert draw_points(np.zeros((4, 4)), np.ones((4, 4), dtype=bool), 5, np.random.default_rng(0)).shape == (0, 2)


def test_starts_are_distinct_and_leave_enough_frames_behind_them():
    starts = draw_starts("clip", 40, replace(SETTINGS, records_per_video=12))
    assert len(starts) == len(set(starts)) == 24
    assert all(0 <= start.index <= 24 for start in starts if start.direction > 0)
    assert all(15 <= start.index <= 39 for start in starts if start.direction < 0)
    everywhere = draw_starts("clip", 18, SETTINGS)
    assert [start.index for start in everywhere if start.direction > 0] == [0, 1, 2]
    assert draw_starts("clip", 15, SETTINGS) == draw_starts("clip", 0, SETTINGS) == []


def test_starts_depend_on_the_video_and_the_seed_alone():
    assert draw_starts("clip", 200, SETTINGS) == draw_starts("clip", 200, SETTINGS)
    assert draw_starts("clip", 200, SETTINGS) != draw_starts("drive", 200, SETTINGS)
    assert draw_starts("clip", 200, SETTINGS) != draw_starts("clip", 200, replace(SETTINGS, seed=1))
    assert random_generator(0, "a", 1).random() != random_generator(0, "a", 2).random()


def test_a_video_played_backwards_gives_the_motion_of_its_mirror(numbered_frames: Callable):
    backwards = make_records(numbered_frames(40), 40, [Start(30, -1)])
    assert backwards[0].key == "clip_000030r"
    forwards = make_records(numbered_frames(40), 40, [Start(9, 1)])
    np.testing.assert_allclose(backwards[0].flow, -forwards[0].flow)
    assert backwards[0].tracks.shape[1] == forwards[0].tracks.shape[1] == 30
    middle = np.s_[:, :, 8:-8]  # farther from the border than points come in six frames
    np.testing.assert_allclose(backwards[0].horizon_flows[middle], -forwards[0].horizon_flows[middle])
    np.testing.assert_allclose(forwards[0].horizon_flows[middle][..., 0].mean(axis=(1, 2)), [1, 2, 3, 4, 5, 6])


def test_tracks_are_as_long_as_the_video_and_the_settings_let_them(numbered_frames: Callable):
    starts = [Start(0, 1), Start(60, 1), Start(20, -1), Start(79, -1)]
    records = {record.key: record for record in make_records(numbered_frames(80), 80, starts)}
    lengths = {key: record.tracks.shape[1] for key, record in records.items()}
    assert lengths == {"clip_000000": 55, "clip_000060": 19, "clip_000020r": 20, "clip_000079r": 55}
    ends = {key: record.end_frames.tolist() for key, record in records.items()}
    assert ends == {"clip_000000": [15, 25, 35, 45, 55], "clip_000060": [15], "clip_000020r": [15]} | {
        "clip_000079r": [15, 25, 35, 45, 55]
    }
    for key, record in records.items():
        assert int(record.frame[0, 0, 0]) == int(key.removesuffix("r")[-6:])


def test_no_more_frames_are_kept_than_the_longest_track_has(numbered_frames: Callable):
    alive: list[weakref.ref] = []
    most = 0

    def watched(count: int) -> Iterator[np.ndarray]:
        nonlocal most
        for frame in numbered_frames(count):
            alive.append(weakref.ref(frame))
            most = max(most, sum(reference() is not None for reference in alive))
            yield frame

    settings = replace(SETTINGS, max_track_frames=20)
    maker = RecordMaker(settings, ShiftFlow(), WholeFrame())
    starts = draw_starts("clip", 150, settings)
    for _ in maker.records(CLIP, 25.0, watched(150), 150, starts, Counter()):
        pass
    assert most <= 20 + 3


def test_reading_stops_after_the_last_frame_that_is_needed(numbered_frames: Callable):
    frames = numbered_frames(200)
    make_records(frames, 200, [Start(3, 1)])
    assert int(next(frames)[0, 0, 0]) == 3 + 55 + 1


def test_fewer_frames_than_expected_are_reported(numbered_frames: Callable):
    with pytest.raises(EndedEarlyError) as caught:
        make_records(numbered_frames(30), 40, [Start(20, 1)])
    assert caught.value.frames == 30


def test_start_frames_that_give_no_record_are_counted(numbered_frames: Callable):
    maker, passed_over = RecordMaker(replace(SETTINGS, min_motion=1.5), ShiftFlow(), WholeFrame()), Counter()
    assert list(maker.records(CLIP, 25.0, numbered_frames(40), 40, [Start(0, 1), Start(3, 1)], passed_over)) == []
    assert passed_over == {"hardly any motion": 2}


def test_no_track_survives_a_cut(numbered_frames: Callable):
    class FlowWithCut(ShiftFlow):
        """Between frames 20 and 21 flow is nonsense, but for a stripe where it agrees by chance."""

        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            flow = super().__call__(first, second)
            if {int(first[0, 0, 0]), int(second[0, 0, 0])} == {20, 21}:
                flow[:, :56] = flow[:, 64:] = (0, 7)
            return flow

    maker = RecordMaker(replace(SETTINGS, candidates=200), FlowWithCut(), WholeFrame())
    (record,) = maker.records(CLIP, 25.0, numbered_frames(40), 40, [Start(4, 1)], Counter())
    assert np.isfinite(record.tracks[:, 15]).all(axis=-1).any()  # frame 20
    assert not np.isfinite(record.tracks[:, 16:]).any()


@pytest.mark.parametrize("start", [Start(10, 1), Start(30, -1)])
def test_steps_are_chained_in_the_order_of_time(numbered_frames: Callable, start: Start):
    def place(frame: float) -> float:
        return 0.02 * frame**2  # all moves faster and faster

    class FasterAndFaster(ShiftFlow):
        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            shift = place(int(second[0, 0, 0])) - place(int(first[0, 0, 0]))
            return np.zeros((*first.shape[:2], 2), np.float32) + np.array([shift, 0], np.float32)

    maker = RecordMaker(SETTINGS, FasterAndFaster(), WholeFrame())
    (record,) = maker.records(CLIP, 25.0, numbered_frames(40), 40, [start], Counter())
    times = start.index + start.direction * np.arange(1, record.tracks.shape[1] + 1)
    true = [place(time) - place(start.index) for time in times]
    known = np.isfinite(record.tracks[..., 0])
    assert known[:, -1].any()
    np.testing.assert_allclose(record.tracks[..., 0][known], np.broadcast_to(true, known.shape)[known], atol=1e-4)


def test_few_candidates_are_enough(numbered_frames: Callable):
    (record,) = make_records(numbered_frames(40), 40, [Start(5, 1)], replace(SETTINGS, candidates=2))
    assert record.points.shape == (2, 2)
