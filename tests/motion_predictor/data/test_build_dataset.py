"""Datasets are built video by video: records tell the truth, and a build that is stopped loses and doubles nothing."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from motion_predictor.data.build_dataset import BuildSummary, build_dataset
from motion_predictor.data.build_settings import BuildSettings
from motion_predictor.data.motion_record import MotionRecord
from motion_predictor.data.shards import MotionShards

SMALL = BuildSettings(short_side=64, records_per_video=2, candidates=24, region="whole", val_share=0.0)


class KnownFlow:
    """The flow of videos whose content moves by `step` pixels a frame, or nothing if two frames are alike."""

    name = "known"

    def __init__(self, step: tuple[float, float] = (1, -1)):
        self.step = np.array(step, np.float32)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        onwards = np.roll(first, self.step.astype(int)[::-1], (0, 1)).astype(int)
        back = np.roll(first, -self.step.astype(int)[::-1], (0, 1)).astype(int)
        inner = np.s_[8:-8, 8:-8]
        errors = [np.abs(frame - second)[inner].mean() for frame in (first.astype(int), onwards, back)]
        return np.zeros((*first.shape[:2], 2), np.float32) + self.step * (0, 1, -1)[int(np.argmin(errors))]


def records_of(folder: Path, split: str = "train") -> list[MotionRecord]:
    shards = MotionShards(folder, split)
    return [shards[index] for index in range(len(shards))]


def build(videos: list[Path], out: Path, settings: BuildSettings = SMALL, **options: Any) -> BuildSummary:
    summary = build_dataset(videos, out, settings, show_progress=False, **options)
    assert summary is not None
    return summary


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def clip(tmp_path: Path, moving_picture: Callable, write_video: Callable) -> Path:
    """22 frames whose content moves by (1, -1) pixels a frame."""
    return write_video(tmp_path / "videos" / "clip.mkv", moving_picture(22, (1, -1), 64, 80))


def test_tracks_follow_what_moves_forwards_and_backwards_in_time(tmp_path: Path, clip: Path):
    summary = build([clip], tmp_path / "out", replace(SMALL, candidates=200))  # with real flow
    records = records_of(tmp_path / "out")
    assert summary.outcomes["clip"]["records"] == len(records) == 4
    assert sorted(record.info["direction"] for record in records) == [-1, -1, 1, 1]
    for record in records:
        direction, start = record.info["direction"], record.info["start"]
        frames = 21 - start if direction > 0 else start
        assert record.tracks.shape == (200, frames, 2)
        assert 15 <= frames <= 21
        true = direction * np.arange(1, frames + 1)[:, None] * np.array([1, -1])
        inner = (np.abs(record.points - (39.5, 31.5)) < (16, 8)).all(axis=1)  # far from where the picture enters
        errors = np.abs(record.tracks[inner] - true)
        assert np.nanmedian(errors) < 0.1
        known = np.isfinite(record.horizon_flows[5, 4:-4, 4:-4, 0])
        assert known.mean() > 0.95
        assert np.nanmedian(np.abs(record.horizon_flows[5, 4:-4, 4:-4] - true[5])) < 0.1
        assert np.median(np.abs(record.flow[8:-8, 8:-8] - true[0])) < 0.05
        assert not record.background.any()  # all of it is the region
        assert record.info == {
            "video": "clip",
            "start": start,
            "direction": direction,
            "fps": 25.0,
            "source": "",
            "region": "whole",
            "flow": "dis",
        }


def test_a_record_holds_its_start_frame(tmp_path: Path, clip: Path, moving_picture: Callable):
    frames = moving_picture(22, (1, -1), 64, 80)
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    for record in records_of(tmp_path / "out"):
        errors = [np.abs(record.frame.astype(float) - frame).mean() for frame in frames]
        assert np.argmin(errors) == record.info["start"] == int(record.key.removesuffix("r").rpartition("_")[2])


def test_points_leave_the_picture_and_are_lost(tmp_path: Path, clip: Path):
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    for record in records_of(tmp_path / "out"):
        displacement = record.info["direction"] * np.arange(1, record.tracks.shape[1] + 1)[:, None] * np.array([1, -1])
        place = record.points[:, None] + displacement
        inside = ((place >= -0.5) & (place <= (79.5, 63.5))).all(axis=-1)
        np.testing.assert_array_equal(np.isfinite(record.tracks[..., 0]), inside)
        np.testing.assert_allclose(record.tracks[inside], np.broadcast_to(displacement, place.shape)[inside])


def test_the_background_is_what_moves_outside_the_region(
    tmp_path: Path, textured_picture: Callable, write_video: Callable
):
    scene, thing = textured_picture(64, 140), textured_picture(24, 24, seed=1)
    frames = []
    for index in range(20):
        frame = scene[:, 30 - index : 126 - index].copy()  # the camera turns left: all moves right by 1 pixel
        frame[20:44, 40 - index : 64 - index] = thing
        frames.append(frame)
    video = write_video(tmp_path / "clip.mkv", frames)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:44, 22:64] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "clip.png")
    build(
        [video],
        tmp_path / "out",
        replace(SMALL, region="masks", masks=str(tmp_path / "masks")),
    )
    for record in records_of(tmp_path / "out"):
        times = np.arange(1, len(record.background) + 1)
        np.testing.assert_allclose(record.background[:, 0], record.info["direction"] * times, atol=0.3)
        np.testing.assert_allclose(record.background[:, 1], 0, atol=0.1)
        columns, rows = record.points.astype(int).T
        assert mask[rows, columns].all()


def test_long_tracks_end_at_the_longest(tmp_path: Path, clip: Path):
    settings = replace(SMALL, max_track_frames=16, records_per_video=100)
    build([clip], tmp_path / "out", settings, optical_flow=KnownFlow())
    records = records_of(tmp_path / "out")
    assert {record.info["start"] for record in records if record.info["direction"] > 0} == set(
        range(7)
    )  # all there are
    assert {record.tracks.shape[1] for record in records} == {15, 16}


def test_time_runs_forwards_only_if_wanted_and_only_so_many_frames_are_read(tmp_path: Path, clip: Path):
    settings = replace(SMALL, reverse=False, max_frames=18, records_per_video=9)
    outcome = build([clip], tmp_path / "out", settings, optical_flow=KnownFlow()).outcomes["clip"]
    assert (outcome["frames"], outcome["records"]) == (18, 3)
    assert all(record.info["direction"] == 1 for record in records_of(tmp_path / "out"))


def test_no_flow_is_computed_that_no_record_needs(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    class CountingFlow(KnownFlow):
        calls = 0

        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            self.calls += 1
            return super().__call__(first, second)

    flow = CountingFlow()
    video = write_video(tmp_path / "clip.mkv", moving_picture(120, (1, 0), 32, 40))
    settings = replace(SMALL, short_side=32, max_track_frames=15, records_per_video=1, reverse=False)
    build([video], tmp_path / "out", settings, optical_flow=flow)
    assert flow.calls == 2 * 15


@pytest.fixture
def odd_videos(tmp_path: Path, clip: Path, moving_picture: Callable, write_video: Callable) -> Path:
    """A folder of videos that give no records, for many reasons, beside some that do."""
    folder = clip.parent
    still = moving_picture(1)[0]
    write_video(folder / "short.mkv", moving_picture(15))
    write_video(folder / "still.mkv", [still] * 17)
    write_video(folder / "scenes.mkv", [moving_picture(1, seed=seed)[0] for seed in range(17)])
    write_video(folder / "other" / "clip.mkv", moving_picture(18, (1, -1), 64, 80, seed=5))
    shutil.copy(clip, folder / "copy.mkv")
    shutil.copy(folder / "short.mkv", folder / "zopy.mkv")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.avi").write_bytes(np.random.default_rng(0).bytes(4000))
    cut = write_video(folder / "cut.mkv", moving_picture(60, (1, -1), 64, 80, seed=2))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    stub = write_video(folder / "stub.mkv", moving_picture(60, (1, -1), 64, 80, seed=3))
    stub.write_bytes(stub.read_bytes()[: stub.stat().st_size // 8])
    return folder


def test_videos_without_records_are_named_with_the_reason(
    tmp_path: Path, odd_videos: Path, capsys: pytest.CaptureFixture[str]
):
    settings = replace(SMALL, records_per_video=1, max_track_frames=15, reverse=False)
    summary = build_dataset([odd_videos], tmp_path / "out", settings)
    assert summary is not None
    reasons = {name: o["reason"] for name, o in summary.outcomes.items() if o["status"] == "skipped"}
    assert reasons == {
        "copy": "same content as another",
        "empty": "cannot be opened",
        "noise": "cannot be opened",
        "scenes": "points cannot be followed",
        "short": "too short",
        "still": "hardly any motion",
        "stub": "too short",
        "zopy": "same content as another",
    }
    done = {name: o["note"] for name, o in summary.outcomes.items() if o["status"] == "done"}
    assert set(done) == {"clip", "other__clip", "cut"}
    assert done["cut"].startswith("truncated")
    assert done["other__clip"] == ""
    table = capsys.readouterr().out
    assert "too short: 2" in table
    assert "short: 15 frames, 16 are needed" in table
    assert "used in part: 1" in table
    assert "cut: truncated" in table


def test_a_video_that_breaks_off_without_a_word_is_used_as_far_as_it_goes(
    tmp_path: Path, moving_picture: Callable, write_video: Callable
):
    video = write_video(tmp_path / "clip.mp4", moving_picture(60, (1, -1), 64, 80), "libx264", "yuv420p")
    content = bytearray(video.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    video.write_bytes(content)
    outcome = build([video], tmp_path / "out", optical_flow=KnownFlow()).outcomes["clip"]
    assert 20 <= outcome["frames"] < 60
    assert outcome["note"] == f"only {outcome['frames']} of 60 frames can be read, up to damage or a gap"
    assert max(record.info["start"] for record in records_of(tmp_path / "out")) < outcome["frames"]


def test_no_record_depends_on_the_other_videos(tmp_path: Path, odd_videos: Path):
    for out, videos in (("all", [odd_videos]), ("one", [odd_videos / "clip.mkv"])):
        build(videos, tmp_path / out, optical_flow=KnownFlow())
    assert contents(tmp_path / "all")["train/clip.tar"] == contents(tmp_path / "one")["train/clip.tar"]


def test_the_seed_draws_other_records(tmp_path: Path, clip: Path):
    for seed in (0, 1):
        build([clip], tmp_path / str(seed), replace(SMALL, seed=seed), optical_flow=KnownFlow())
    first, second = (records_of(tmp_path / str(seed)) for seed in (0, 1))
    assert [record.key for record in first] != [record.key for record in second]


def test_videos_are_split_as_wholes(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    for seed in range(6):
        write_video(tmp_path / "videos" / f"clip-{seed}.mkv", moving_picture(17, (1, -1), 32, 40, seed=seed))
    settings = replace(SMALL, short_side=32, val_share=0.5)
    summary = build([tmp_path / "videos"], tmp_path / "out", settings, optical_flow=KnownFlow())
    for split in ("train", "val"):
        videos = {record.info["video"] for record in records_of(tmp_path / "out", split)}
        assert videos == {name for name, outcome in summary.outcomes.items() if outcome["split"] == split}
        assert videos


def _build_quietly(videos: Path, out: Path) -> None:
    build_dataset([videos], out, SMALL, optical_flow=KnownFlow(), show_progress=False)


def _build_until(line: float, videos: Path, out: Path, lines: Any) -> None:
    """Build, but be killed at a line of code of ours; `lines` counts them."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "motion_predictor" not in frame.f_code.co_filename:
            return None
        lines.value += 1
        if lines.value > line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    _build_quietly(videos, out)


def test_a_build_killed_at_any_moment_ends_like_one_that_was_not(tmp_path: Path, odd_videos: Path):
    chance, fork, unfinished = random.Random(0), multiprocessing.get_context("fork"), 0

    def lines_until(line: float, out: Path) -> int:
        lines = fork.Value("q", 0, lock=False)
        process = fork.Process(target=_build_until, args=(line, odd_videos, out, lines))
        process.start()
        process.join()
        return lines.value

    whole = lines_until(math.inf, tmp_path / "whole")
    for _ in range(12):
        lines_until(chance.randint(1, whole // 4), tmp_path / "killed")
        unfinished += contents(tmp_path / "killed") != contents(tmp_path / "whole")
    assert unfinished >= 3  # a quarter each at most
    _build_quietly(odd_videos, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_is_finished_is_not_done_again(tmp_path: Path, odd_videos: Path):
    class NoFlow(KnownFlow):
        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            raise AssertionError("flow was asked for")

    first = build([odd_videos], tmp_path / "out", optical_flow=KnownFlow())
    again = build([odd_videos], tmp_path / "out", optical_flow=NoFlow())
    assert again.outcomes == first.outcomes


def test_videos_may_be_added_later(tmp_path: Path, odd_videos: Path, moving_picture: Callable, write_video: Callable):
    before = build([odd_videos], tmp_path / "out", optical_flow=KnownFlow()).outcomes
    write_video(odd_videos / "new.mkv", moving_picture(20, (1, -1), 64, 80, seed=8))
    after = build([odd_videos], tmp_path / "out", optical_flow=KnownFlow()).outcomes
    assert after["new"]["status"] == "done"
    assert {name: outcome for name, outcome in after.items() if name != "new"} == before


def test_an_error_or_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, odd_videos: Path, capsys: pytest.CaptureFixture[str]
):
    class Stopping(KnownFlow):
        def __init__(self, error: type[BaseException], after: int):
            super().__init__()
            self.error, self.left = error, after

        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            self.left -= 1
            if self.left < 0:
                raise self.error
            return super().__call__(first, second)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_dataset([odd_videos], out, SMALL, optical_flow=Stopping(KeyboardInterrupt, 60))
    assert "Interrupted: 2 of 11 videos are kept" in "".join(capsys.readouterr())
    with pytest.raises(ZeroDivisionError):
        build([odd_videos], out, optical_flow=Stopping(ZeroDivisionError, 10))
    assert not list(out.rglob("*.partial"))
    _build_quietly(odd_videos, out)
    _build_quietly(odd_videos, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_other_settings_are_refused_by_name_and_both_values(tmp_path: Path, clip: Path):
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"`seed` must be 0, which .* was begun with, got 5"):
        build([clip], tmp_path / "out", replace(SMALL, seed=5), optical_flow=KnownFlow())
    with pytest.raises(ValueError, match=r"`flow` must be 'known', which .* got 'dis'"):
        build([clip], tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_another_video_of_a_name_is_refused(
    tmp_path: Path, clip: Path, moving_picture: Callable, write_video: Callable
):
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    write_video(clip, moving_picture(18, (1, -1), 64, 80, seed=4))
    with pytest.raises(ValueError, match=r"another of the name `clip`: delete `videos/clip\.json`"):
        build([clip], tmp_path / "out", optical_flow=KnownFlow())
    (tmp_path / "out" / "videos" / "clip.json").unlink()
    assert build([clip], tmp_path / "out", optical_flow=KnownFlow()).outcomes["clip"]["frames"] == 18


def test_two_builds_of_one_folder_do_not_meet(tmp_path: Path, clip: Path):
    class Nested(KnownFlow):
        def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
            with pytest.raises(BlockingIOError, match="another build is writing"):
                build([clip], tmp_path / "out", optical_flow=KnownFlow())
            return super().__call__(first, second)

    assert build([clip], tmp_path / "out", optical_flow=Nested()).outcomes["clip"]["status"] == "done"


@pytest.mark.parametrize("damage", [Path.unlink, lambda shard: shard.write_bytes(shard.read_bytes()[:-1] + b"!")])
def test_a_shard_that_is_gone_or_damaged_is_built_anew(tmp_path: Path, clip: Path, damage: Callable):
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    whole = contents(tmp_path / "out")
    damage(tmp_path / "out" / "train" / "clip.tar")
    build([clip], tmp_path / "out", optical_flow=KnownFlow())
    assert contents(tmp_path / "out") == whole
