"""Figures of a dataset are those of motion that is known exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motion_predictor.data.motion_record import MotionRecord
from motion_predictor.data.shards import write_shard
from motion_predictor.data.statistics import (
    Histogram,
    MotionStatistics,
    dataset_statistics,
    save_statistics,
    statistics_table,
)

FRAMES = 40


def record_of(paths: np.ndarray, key: str = "clip_000000", video: str = "clip") -> MotionRecord:
    """A record of points that follow given paths [P, FRAMES, 2]; the flow at each point is its first step."""
    count = len(paths)
    points = np.stack([np.arange(count), np.full(count, 5)], axis=-1).astype(np.float32)
    flow = np.zeros((16, 64, 2), np.float32)
    flow[5, :count] = paths[:, 0]
    return MotionRecord(
        key=key,
        frame=np.zeros((16, 64, 3), np.uint8),
        flow=flow,
        horizon_flows=np.zeros((6, 4, 16, 2), np.float32),
        points=points,
        tracks=paths.astype(np.float32),
        background=np.zeros((FRAMES, 2), np.float32),
        info={"video": video},
    )


def straight(velocity: tuple[float, float]) -> np.ndarray:
    return np.arange(1.0, FRAMES + 1)[:, None] * np.array(velocity)


def summary_of(*records: MotionRecord) -> dict:
    statistics = MotionStatistics()
    for record in records:
        statistics.add(record)
    return statistics.summary()


def test_straight_motion_is_straight_and_its_labels_are_right():
    summary = summary_of(record_of(np.stack([straight((0.3, 0.4)), straight((-3, 4))])))
    assert (summary["records"], summary["videos"], summary["points_per_record"]) == (1, 1, 2)
    assert summary["pairs"] == summary["pairs_judged"] == 2 * (40 - 15 + 1)
    assert summary["wrong_way_one_frame"] == summary["wrong_way_horizon"] == summary["lost_tracks"] == 0
    assert summary["straightness"]["p5"] >= 0.99
    assert summary["speed"]["p5"] == pytest.approx(0.5, rel=0.02)
    assert summary["speed"]["p95"] == pytest.approx(5, rel=0.02)
    assert summary["displacement"]["p95"] == pytest.approx(5 * 38.7, rel=0.03)


def test_labels_that_lead_away_are_counted_by_their_horizon():
    """A first step back, then straight on: wrong for one frame, and for horizons of one or two frames, if at all."""
    back_once = straight((1, 0)) - (3, 0)  # -2, -1, 0, 1, ...
    summary = summary_of(record_of(np.stack([back_once, straight((1, 0))])))
    assert summary["wrong_way_one_frame"] == 0.5
    # end frames 15 ... 20 are labelled by the motion of 2 frames, which is -1; 21 ... 30 by that of 3, which is 0
    assert summary["wrong_way_horizon"] == pytest.approx(6 / 52, abs=1e-4)
    there = np.arange(15, 41) - 3
    assert summary["straightness"]["p5"] < np.max(there / (there + 4)) < 1


def test_a_sideways_label_does_not_lead_away():
    path = straight((1, 0))
    path[0] = (0, 1)
    summary = summary_of(record_of(path[None]))
    assert summary["wrong_way_one_frame"] == 0


def test_short_ways_are_not_judged():
    circle = np.stack([np.sin(np.arange(1, FRAMES + 1)), np.zeros(FRAMES)], axis=-1) * 0.9
    summary = summary_of(record_of(circle[None]))
    assert (summary["pairs"], summary["pairs_judged"]) == (26, 0)
    assert summary["wrong_way_one_frame"] is summary["straightness"] is None


def test_lost_tracks_count_as_lost_and_as_pairs_up_to_their_loss():
    lost = straight((1, 0))
    lost[20:] = np.nan
    summary = summary_of(record_of(np.stack([lost, straight((1, 0)), straight((0, 1)), straight((1, 1))])))
    assert summary["lost_tracks"] == 0.25
    assert summary["pairs"] == 6 + 3 * 26


def test_a_dataset_without_records_has_no_figures():
    summary = summary_of()
    assert summary["records"] == 0
    assert summary["displacement"] is summary["lost_tracks"] is summary["points_per_record"] is None
    assert "videos | 0" in statistics_table({"train": summary})


def test_percentiles_of_a_histogram_are_those_of_its_values():
    values = np.random.default_rng(0).exponential(3, 20_000)
    histogram = Histogram(np.linspace(0, 60, 6001))
    for part in np.array_split(values, 7):
        histogram.add(part)
    for percent in (0.1, 5, 50, 95):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values, percent), abs=0.05)
    assert np.isnan(Histogram(np.linspace(0, 1, 3)).percentile(50))


def test_values_beyond_a_histogram_count_as_its_ends():
    histogram = Histogram(np.array([0.0, 1.0, 2.0]))
    histogram.add(np.array([-5.0, 0.5, 7.0, 7.0]))
    assert histogram.counts.tolist() == [2, 2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_shard(
        tmp_path / "train" / "clip.tar",
        [record_of(straight((1, 0))[None]), record_of(straight((2, 0))[None], key="clip_000009")],
    )
    write_shard(tmp_path / "train" / "drive.tar", [record_of(straight((4, 3))[None], "drive_000000", "drive")])
    write_shard(tmp_path / "val" / "walk.tar", [record_of(straight((0, 1))[None], "walk_000000", "walk")])
    return tmp_path


def test_figures_come_from_the_shards(dataset: Path):
    train, val = dataset_statistics(dataset, "train"), dataset_statistics(dataset, "val")
    assert (train["videos"], train["records"]) == (2, 3)
    assert (val["videos"], val["records"]) == (1, 1)
    assert train["speed"]["p50"] == pytest.approx(2, rel=0.02)
    with pytest.raises(FileNotFoundError, match="build-dataset"):
        dataset_statistics(dataset / "train", "val")


def test_figures_are_saved_as_json_table_and_picture(dataset: Path):
    table = save_statistics(dataset)
    saved = json.loads((dataset / "statistics.json").read_text())
    assert saved == {split: dataset_statistics(dataset, split) for split in ("train", "val")}
    assert (dataset / "statistics.md").read_text() == table
    rows = [line.split("|")[1:-1] for line in table.splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["", "train", "val"]
    assert ["records", "3", "1"] in [[cell.strip() for cell in row] for row in rows]
    picture = np.asarray(Image.open(dataset / "statistics.png").convert("RGB"))
    assert picture.shape[0] > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_a_dataset_of_one_split_is_summed_up_and_an_empty_one_is_not(dataset: Path, tmp_path: Path):
    (dataset / "val" / "walk.tar").unlink()
    assert "val" not in save_statistics(dataset)
    (tmp_path / "empty").mkdir()
    assert save_statistics(tmp_path / "empty") == ""
