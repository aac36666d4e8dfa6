"""What the motion of a dataset is like, and how good the labels are that it gives (FIGURES for `statistics.json`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .motion_record import MotionRecord
from .shards import MotionShards

FIRST_END_FRAME = 15  # end frames lie 15 to 55 frames after the start (Sec. 8)
SHORTEST_WAY = 1.0  # pixels: shorter ways have no direction worth the name
HORIZON_SHARE = 10  # the horizon label of a way of n frames is the motion after ceil(n / 10) of them
PERCENTILES = (5, 25, 50, 75, 95)


class MotionStatistics:
    """Figures of motion and of labels, gathered record by record.

    A *pair* is a point of a record and an end frame that it can be followed to. The label of one frame is the flow at
    the point (the paper's), that of the horizon the motion after `ceil(n / 10)` of the n frames to the end. A label is
    *wrong* if it leads away from the target: a negative dot product with the way. *Straightness* is the way over the
    length of the path.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, np.ndarray]] = []

    def add(self, record: MotionRecord) -> None:
        """Take a record into account."""
        self.records.append(_figures(record))

    def summary(self) -> dict[str, Any]:
        """All figures, as plain numbers; lengths in pixels of the frames, shares from 0 to 1, None where unknown."""
        columns = self.columns()
        judged = len(columns["wrong_one_frame"])
        return {
            "records": len(self.records),
            "points": len(columns["speed"]),
            "points_per_record": _mean(np.array([len(record["speed"]) for record in self.records])),
            "pairs": len(columns["way"]),
            "pairs_judged": judged,
            "speed": _percentiles(columns["speed"]),
            "way": _percentiles(columns["way"]),
            "straightness": _percentiles(columns["straightness"]),
            "wrong_way_one_frame": _mean(columns["wrong_one_frame"]),
            "wrong_way_horizon": _mean(columns["wrong_horizon"]),
            "lost_tracks": _mean(columns["lost"]),
        }

    def columns(self) -> dict[str, np.ndarray]:
        """The values behind the figures, of all records one after the other."""
        names = ("speed", "way", "straightness", "wrong_one_frame", "wrong_horizon", "lost")
        return {
            name: np.concatenate([record[name] for record in self.records] or [np.empty(0, np.float32)])
            for name in names
        }


def _figures(record: MotionRecord) -> dict[str, np.ndarray]:
    """Speeds [P]; ways, straightness and wrong labels of pairs; lost points [P], by the last frame."""
    columns, rows = np.rint(record.points).astype(int).T
    flow = record.flow[rows, columns]  # [P, 2]
    tracks = record.tracks
    frames = np.arange(FIRST_END_FRAME, tracks.shape[1] + 1)
    ways = tracks[:, frames - 1]  # [P, E, 2]
    known = ~np.isnan(ways[..., 0])
    length = np.linalg.norm(ways, axis=-1)
    judged = known & (np.nan_to_num(length) > SHORTEST_WAY)
    horizon = tracks[:, -(-frames // HORIZON_SHARE) - 1]
    steps = np.diff(tracks, axis=1, prepend=np.zeros_like(tracks[:, :1]))
    path = np.linalg.norm(steps, axis=-1).cumsum(axis=1)[:, frames - 1]
    return {
        "speed": np.linalg.norm(flow, axis=-1),
        "way": length[known],
        "straightness": length[judged] / path[judged],
        "wrong_one_frame": ((flow[:, None] * ways).sum(axis=-1) < 0)[judged],
        "wrong_horizon": ((horizon * ways).sum(axis=-1) < 0)[judged],
        "lost": np.isnan(tracks[:, -1, 0]),
    }


def _mean(values: np.ndarray) -> float | None:
    return _rounded(values.mean()) if len(values) else None


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{q}": _rounded(value) for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def dataset_statistics(folder: str | Path, split: str) -> dict[str, Any]:
    """Figures of one split of a dataset: see `MotionStatistics`."""
    shards, statistics = MotionShards(folder, split), MotionStatistics()
    for index in range(len(shards)):
        statistics.add(shards[index])
    return statistics.summary()
