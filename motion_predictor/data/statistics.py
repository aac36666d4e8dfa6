"""What the motion of a dataset is like, and how good the labels are that it gives."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..common.atomic_file import atomic_file
from .motion_record import MotionRecord
from .shards import SPLITS, MotionShards

FIRST_END_FRAME = 15  # end frames lie 15 to 55 frames after the start (Sec. 8)
SHORTEST_DISPLACEMENT = 1.0  # pixels: shorter ones have no direction worth the name
HORIZON_SHARE = 10  # the horizon label of a displacement over n frames is the motion after ceil(n / 10) of them
PERCENTILES = (5, 25, 50, 75, 95)

LENGTHS = np.concatenate([[0.0], np.geomspace(0.01, 1000, 1001)])  # pixels: bins are 1.2 % wide
SHARES = np.linspace(0, 1, 201)
BINS_PER_STAIR = 10  # of the plot


class Histogram:
    """Counts of values, so that the memory of a million records is that of one.

    Args:
        edges (`np.ndarray`): of the bins, rising; values beyond the outermost count as these.

    Example:
        >>> histogram = Histogram(np.linspace(0, 10, 101))
        >>> histogram.add(np.arange(0, 10, 0.01))
        >>> round(histogram.percentile(50), 6)
        5.0
    """

    def __init__(self, edges: np.ndarray):
        self.edges = edges
        self.counts = np.zeros(len(edges) - 1, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count values of any shape."""
        self.counts += np.histogram(np.clip(values, self.edges[0], self.edges[-1]), self.edges)[0]

    def percentile(self, percent: float) -> float:
        """The value that so many percent of all lie below, to the width of a bin; NaN if there is none."""
        total = int(self.counts.sum())
        if total == 0:
            return float("nan")
        below = np.concatenate([[0], np.cumsum(self.counts)])
        filled = np.flatnonzero(self.counts)
        wanted = percent / 100 * total
        bin_ = filled[np.searchsorted(below[filled + 1], wanted).clip(max=len(filled) - 1)]
        share = (wanted - below[bin_]) / self.counts[bin_]
        return float(self.edges[bin_] + share * (self.edges[bin_ + 1] - self.edges[bin_]))


class MotionStatistics:
    """Figures of motion and of labels, gathered record by record.

    A *pair* is a point of a record and an end frame that it can be followed to; pairs with a displacement of more than
    1 px are judged. The label of one frame is the flow at the point (the paper's), that of the horizon the motion
    after `ceil(n / 10)` of the n frames to the end. A label is *wrong* if it leads away from the target: a negative
    dot product with the displacement. *Straightness* is the displacement over the length of the path.
    """

    def __init__(self) -> None:
        self.videos: set[str] = set()
        self.records = self.points = self.lost = 0
        self.pairs = self.judged = self.wrong_one_frame = self.wrong_horizon = 0
        self.speed, self.displacement, self.straightness = Histogram(LENGTHS), Histogram(LENGTHS), Histogram(SHARES)

    def add(self, record: MotionRecord) -> None:
        """Take a record into account."""
        columns, rows = np.rint(record.points).astype(int).T
        flow, tracks = record.flow[rows, columns], record.tracks  # [P, 2], [P, T, 2]
        self.videos.add(str(record.info.get("video", record.key)))
        self.records += 1
        self.points += len(tracks)
        self.lost += int(np.isnan(tracks[:, -1, 0]).sum())
        self.speed.add(np.hypot(flow[:, 0], flow[:, 1]))

        frames = np.arange(FIRST_END_FRAME, tracks.shape[1] + 1)
        displacements = tracks[:, frames - 1]  # [P, E, 2]
        length = np.hypot(displacements[..., 0], displacements[..., 1])
        known, judged = ~np.isnan(length), np.nan_to_num(length) > SHORTEST_DISPLACEMENT
        horizon = tracks[:, -(-frames // HORIZON_SHARE) - 1]
        steps = np.diff(tracks, axis=1, prepend=0)
        path = np.hypot(steps[..., 0], steps[..., 1]).cumsum(axis=1)[:, frames - 1]
        self.pairs += int(known.sum())
        self.judged += int(judged.sum())
        self.wrong_one_frame += int(((flow[:, None] * displacements).sum(axis=-1) < 0)[judged].sum())
        self.wrong_horizon += int(((horizon * displacements).sum(axis=-1) < 0)[judged].sum())
        self.displacement.add(length[known])
        self.straightness.add(length[judged] / path[judged])

    def summary(self) -> dict[str, Any]:
        """All figures as plain values: lengths in pixels of the frames, shares from 0 to 1, None where unknown."""
        return {
            "videos": len(self.videos),
            "records": self.records,
            "points_per_record": _share(self.points, self.records),
            "pairs": self.pairs,
            "pairs_judged": self.judged,
            "speed": _percentiles(self.speed),
            "displacement": _percentiles(self.displacement),
            "straightness": _percentiles(self.straightness),
            "wrong_way_one_frame": _share(self.wrong_one_frame, self.judged),
            "wrong_way_horizon": _share(self.wrong_horizon, self.judged),
            "lost_tracks": _share(self.lost, self.points),
        }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _percentiles(histogram: Histogram) -> dict[str, float] | None:
    if not histogram.counts.any():
        return None
    return {f"p{percent}": round(histogram.percentile(percent), 3) for percent in PERCENTILES}


def dataset_statistics(folder: str | Path, split: str) -> dict[str, Any]:
    """Figures of one split of a dataset, computed from its shards; `MotionStatistics` says what they mean.

    Args:
        folder (`str` or `Path`): of the dataset.
        split (`str`): `"train"` or `"val"`.

    Returns:
        `dict[str, Any]`: the figures.

    Raises:
        FileNotFoundError: if the folder holds no record of this split.
    """
    return _gather(Path(folder), split).summary()


def save_statistics(folder: str | Path) -> str:
    """Write `statistics.json`, `statistics.md` and the histograms `statistics.png` into the folder of a dataset.

    Args:
        folder (`str` or `Path`): of the dataset.

    Returns:
        `str`: the table of `statistics.md`; empty if the dataset has no record.

    Example:
        >>> print(save_statistics("dataset"))  # doctest: +SKIP
    """
    folder = Path(folder)
    gathered = {split: _gather(folder, split) for split in SPLITS if any((folder / split).glob("*.tar"))}
    if not gathered:
        return ""
    summaries = {split: statistics.summary() for split, statistics in gathered.items()}
    table = statistics_table(summaries)
    _write(folder / "statistics.json", (json.dumps(summaries, indent=2) + "\n").encode())
    _write(folder / "statistics.md", table.encode())
    _write(folder / "statistics.png", _plot(gathered))
    return table


def statistics_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures of one or more splits as a table in Markdown, a column for each.

    Args:
        summaries (`Mapping[str, Mapping[str, Any]]`): of [`dataset_statistics`], by title of the column.

    Returns:
        `str`: the table.
    """
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        ("videos", "videos", str),
        ("records", "records", str),
        ("points per record", "points_per_record", _number),
        ("speed at the points, px per frame: median (5 % ... 95 %)", "speed", _spread),
        ("displacement to the end frame, px: median (5 % ... 95 %)", "displacement", _spread),
        ("straightness, displacement / path length: median (5 % ... 95 %)", "straightness", _spread),
        ("labels of one frame that point away", "wrong_way_one_frame", _percent),
        ("labels of a horizon of n / 10 frames that point away", "wrong_way_horizon", _percent),
        ("tracks lost before their last frame", "lost_tracks", _percent),
    ]
    lines = [("", *summaries), ("---", *("---:" for _ in summaries))]
    lines += [(title, *(show(summary[key]) for summary in summaries.values())) for title, key, show in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _spread(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['p50']:.2f} ({value['p5']:.2f} ... {value['p95']:.2f})"


def _gather(folder: Path, split: str) -> MotionStatistics:
    shards, statistics = MotionShards(folder, split), MotionStatistics()
    for index in tqdm(range(len(shards)), desc=f"statistics of {split}", unit="record", leave=False):
        statistics.add(shards[index])
    return statistics


def _plot(gathered: Mapping[str, MotionStatistics]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    columns = (
        ("speed", "speed at the points, px per frame"),
        ("displacement", "displacement, px"),
        ("straightness", "displacement / path length"),
    )
    for axes, (name, title) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        for split, statistics in gathered.items():
            histogram: Histogram = getattr(statistics, name)
            every = [*range(0, len(histogram.counts), BINS_PER_STAIR), len(histogram.counts)]
            counts = np.add.reduceat(histogram.counts, every[:-1])
            axes.stairs(counts / max(counts.sum(), 1), histogram.edges[every], label=split)
        if histogram.edges[-1] > 1:
            axes.set_xscale("log")
            axes.set_xlim(0.05, 200)
        axes.set_xlabel(title)
        axes.set_yticks([])
    axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)
