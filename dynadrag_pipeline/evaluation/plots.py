"""Figures of a run: how far content is from its targets, by method, and the paths that handles took (Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .method_names import TRUE_MOTION
from .pairs import EvaluationPair
from .records import Record
from .report import interval

INCH = 3.2  # of a panel
COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]


def distances_figure(records: Sequence[Record], column: str = "distance", title: str = "") -> Figure:
    """Means over pairs with their 95 % confidence intervals, a line for each method, in the order of the records.

    Methods that are known on fewer pairs than all say on how many, n.

    Args:
        records (`Sequence` of [`Record`]): every method for every pair.
        column (`str`, *optional*, defaults to `"distance"`): the figure that is shown.
        title (`str`, *optional*): of the axis; by default what the distance of content is.

    Returns:
        `matplotlib.figure.Figure`: not yet drawn.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    figure = Figure((6.4, 0.9 + 0.32 * len(methods)), layout="constrained")
    axes = figure.subplots()
    labels: list[str] = []
    for line, method in enumerate(methods):
        values = np.array([each.figures.get(column, math.nan) for each in records if each.method == method])
        known = np.isfinite(values).sum()
        labels.append(method if known == len(values) else f"{method} (n = {known})")
        mean, low, high = interval(values)
        axes.plot([low, high], [line, line], color="0.4", linewidth=1.5)
        axes.plot(mean, line, "o", color=COLOURS[0])
    axes.set_yticks(range(len(methods)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel(title or "content to target, px: mean and 95 % interval")
    axes.grid(axis="x", color="0.9")
    return figure


def paths_figure(pairs: Sequence[EvaluationPair], records: Sequence[Record], methods: Sequence[str]) -> Figure:
    """The paths of handles under several methods, on the sources, a panel for each pair.

    The true path, where it was run as a method, is black; circles are handles, crosses targets.

    Args:
        pairs (`Sequence` of [`EvaluationPair`]): to show.
        records (`Sequence` of [`Record`]): of a run.
        methods (`Sequence[str]`): whose paths are drawn; those that took none are left out.

    Returns:
        `matplotlib.figure.Figure`: not yet drawn.
    """
    told = {(record.pair, record.method): record.told.get("trajectory") for record in records}
    drawn = [name for name in methods if any(told.get((pair.name, name)) for pair in pairs)]
    drawn.sort(key=lambda name: name != TRUE_MOTION)  # the true one lies under the others
    colours = {name: "black" if name == TRUE_MOTION else COLOURS[index % 10] for index, name in enumerate(drawn)}
    figure = Figure((INCH * len(pairs), INCH + 0.7), layout="constrained")
    for axes, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        axes.imshow(pair.source, alpha=0.5)
        for name in drawn:
            trajectory = told.get((pair.name, name))
            if not trajectory:
                continue
            path = np.array(trajectory)[:, : len(pair.handles)]  # [places, points, 2]
            width = 2.5 if name == TRUE_MOTION else 1.2
            for point in range(path.shape[1]):
                label = name if point == 0 else None
                axes.plot(*path[:, point].T, ".-", color=colours[name], linewidth=width, markersize=2, label=label)
        axes.plot(*pair.handles.T, "o", color="white", markeredgecolor="black", markersize=5)
        axes.plot(*pair.targets.T, "x", color="black", markersize=6)
        points = np.concatenate([pair.handles, pair.targets])
        centre, half = (points.min(axis=0) + points.max(axis=0)) / 2, np.ptp(points, axis=0).max() * 0.7 + 4
        axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] + half, centre[1] - half), title=pair.name)
        axes.set_xticks([])
        axes.set_yticks([])
    artists, names = figure.axes[0].get_legend_handles_labels()
    if names:
        figure.legend(artists, names, loc="outside lower center", ncols=min(5, len(names)), fontsize="small")
    return figure
