"""The plot of an evaluation, and pictures of rollouts over the frames that they start from."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from ..common.atomic_file import atomic_file
from ..data.samples import MotionSample
from ..data.shards import MotionShards
from .curves import true_paths
from .figures import ARRIVED_AT_512, BEST_LINEAR, STRAIGHT_SHARES
from .measurement import draw_numbered, spread
from .predictor import FlowPredictor
from .rollout import roll_out
from .settings import EvaluationSettings

PREDICTOR_COLOURS = (
    "tab:orange",
    "tab:blue",
    "tab:red",
    "tab:purple",
    "tab:cyan",
    "tab:pink",
    "tab:olive",
    "tab:brown",
)
REFERENCES = {  # by name: colour and marker
    "zero flow": ("0.75", "v"),
    **dict(zip(STRAIGHT_SHARES, [("0.6", "s"), ("0.4", "D")], strict=True)),
    BEST_LINEAR: ("black", "o"),
}
TRUE_COLOUR = "#50e060"
MARK: dict[str, Any] = {"linestyle": "none", "color": "white", "markeredgecolor": "black"}
HANDLE_MARK = {**MARK, "marker": "o", "markersize": 5}
TARGET_MARK = {**MARK, "marker": "X", "markersize": 6.5}
PANEL_INCHES = 3.84  # three times the 128 px of a small frame, at 100 dots per inch
MOST_REMAINING = 1.5  # of the displacement; what goes farther astray leaves the plot
PANELS_PER_ROW = 4
SMALLEST_VIEW = 1 / 3  # of the shorter side of a frame


def save_plot(results: Mapping[str, Any], out: Path) -> None:
    """Write `evaluation.png`: a row for each dataset, with errors by distance, and rollouts step by step.

    Args:
        results (`Mapping[str, Any]`): as `evaluate` returns them.
        out (`Path`): a folder.
    """
    sources = results["sources"]
    figure = Figure(figsize=(19, 4.2 * len(sources)), layout="constrained")
    for row, (name, source) in zip(figure.subplots(len(sources), 4, squeeze=False), sources.items(), strict=True):
        _plot_errors(row[0], row[1], source["bins"], source["steps"]["all"]["steps"], results["models"])
        _plot_rollouts(row[2], row[3], source["rollouts"], results["models"])
        row[0].set_title(name, loc="left", fontweight="bold")
        row[0].legend(fontsize="small")
    save_figure(figure, out / "evaluation.png")


def _plot_errors(
    errors: Axes, differences: Axes, bins: Mapping[str, Any], names: Iterable[str], models: Sequence[str]
) -> None:
    """Endpoint errors by bin, and how much they are above that of the best linear step."""
    bins = {title: figures for title, figures in bins.items() if figures["handles"]}
    places = np.arange(len(bins))
    for name in names:
        colour, marker = _style(name, models)
        of_step = [figures["steps"][name] for figures in bins.values()]
        errors.plot(places, [step["endpoint_error"] for step in of_step], color=colour, marker=marker, label=name)
        middle = np.array([step["minus_best_linear"] for step in of_step])
        low, high = np.array([step["minus_best_linear_95"] for step in of_step]).T
        if name in models:
            reach = np.maximum([middle - low, high - middle], 0)
            offset = 0.08 * (models.index(name) - (len(models) - 1) / 2)
            differences.errorbar(
                places + offset, middle, reach, color=colour, marker=marker, capsize=4, linestyle="none"
            )
    differences.axhline(0, color=_style(BEST_LINEAR, models)[0], linewidth=1)
    errors.set_ylabel("endpoint error, px")
    differences.set_ylabel("error above best linear, px (95 %)")
    for axes in (errors, differences):
        axes.set_xticks(places, [f"{title}\n{figures['handles']} handles" for title, figures in bins.items()])
        axes.set_xlabel("distance to the target, px at 512")
        axes.set_xlim(-0.5, len(bins) - 0.5)


def _plot_rollouts(arrived: Axes, remaining: Axes, rollouts: Mapping[str, Any], models: Sequence[str]) -> None:
    kinds: dict[str, Any] = {"picture stays": "-", "picture warped": "--", "any picture": ":"}
    for name, of_step in rollouts.items():
        for kind, line in kinds.items():
            if kind in of_step:
                colour, _ = _style(name, models)
                arrived.plot(of_step[kind]["arrived_per_step"], line, color=colour)
                remaining.plot(of_step[kind]["remaining_per_step"], line, color=colour)
    arrived.set_ylabel(f"share of handles within {ARRIVED_AT_512:g} px of their targets")
    remaining.set_ylabel("share of the displacement that remains")
    for axes, top in ((arrived, 1.02), (remaining, MOST_REMAINING)):
        axes.set_xlabel("step of the rollout")
        axes.set_ylim(0, top)
    remaining.legend(handles=[Line2D([], [], color="0.3", ls=line, label=kind) for kind, line in kinds.items()])


@dataclass(frozen=True)
class Trajectories:
    """Where the handles of a sample went, and where predictors would lead them.

    Attributes:
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8, the frame that they start from.
        targets (`np.ndarray` of shape `(points, 2)`): in pixels.
        true (`np.ndarray` of shape `(points, frames, 2)`): from the start frame to the end frame; NaN where it is not
            known.
        predicted (`dict[str, np.ndarray]`): `[n, 26, 2]` for each predictor.
    """

    picture: np.ndarray
    targets: np.ndarray
    true: np.ndarray
    predicted: dict[str, np.ndarray]


def save_trajectories(
    predictors: Mapping[str, FlowPredictor],
    shards: MotionShards,
    settings: EvaluationSettings,
    path: Path,
) -> None:
    """Draw rollouts of samples, evenly spread over a dataset, beside the paths that the handles really took.

    The rollouts are those without a guard, on a picture that stays.

    Args:
        predictors (`Mapping[str, FlowPredictor]`): by name.
        shards (`MotionShards`): the dataset.
        settings (`EvaluationSettings`): what is drawn; `pictures` says how many.
        path (`Path`): of the picture.
    """
    drawn = []
    for number in spread(np.arange(settings.samples), settings.pictures):
        trajectories = _trajectories(predictors, shards, int(number), settings)
        if trajectories is not None:
            drawn.append(trajectories)
    if drawn:
        save_figure(_drawing(drawn, list(predictors)), path)


def _trajectories(
    predictors: Mapping[str, FlowPredictor], shards: MotionShards, number: int, settings: EvaluationSettings
) -> Trajectories | None:
    """None if there is no sample of this number, or all of its handles are at their targets."""
    drawn = draw_numbered(shards, number, settings)
    if drawn is None or not drawn.is_judged:
        return None
    batch = MotionSample.stack([drawn.sample]).to(settings.torch_device)
    valid = drawn.sample.valid
    record = shards[drawn.record]
    return Trajectories(
        picture=record.frame,
        targets=drawn.sample.targets[valid].numpy(),
        true=true_paths(record, drawn.sample),
        predicted={
            name: roll_out(predict_flow, batch, guard="none", warped=False)[0].movedim(0, 1).cpu()[valid].numpy()
            for name, predict_flow in predictors.items()
        },
    )


def _drawing(drawn: Sequence[Trajectories], models: Sequence[str]) -> Figure:
    columns = min(PANELS_PER_ROW, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, trajectories in zip(panels, drawn, strict=False):
        _draw(axes, trajectories, models)
    figure.legend(handles=_legend(models), loc="outside lower center", ncols=3 + len(models))
    return figure


def _draw(axes: Axes, trajectories: Trajectories, models: Sequence[str]) -> None:
    axes.imshow(trajectories.picture, interpolation="bilinear")
    outline = [Stroke(linewidth=3.5, foreground="black", alpha=0.6), Normal()]
    for path in trajectories.true:
        axes.plot(*path.T, color=TRUE_COLOUR, linewidth=2, path_effects=outline)
    for name, paths in trajectories.predicted.items():
        for path in paths:
            axes.plot(*path.T, color=_style(name, models)[0], linewidth=1.5, marker=".", markersize=3.5)
    axes.plot(*trajectories.true[:, 0].T, **HANDLE_MARK)
    axes.plot(*trajectories.targets.T, **TARGET_MARK)
    points = np.concatenate(
        [trajectories.true.reshape(-1, 2), *(paths.reshape(-1, 2) for paths in trajectories.predicted.values())]
    )
    left, top, side = _view(points, trajectories.picture.shape[:2])
    axes.set_xlim(left, left + side)
    axes.set_ylim(top + side, top)


def _legend(models: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], label="handle", **HANDLE_MARK),
        Line2D([], [], label="target", **TARGET_MARK),
        Line2D([], [], label="true path", color=TRUE_COLOUR, linewidth=2),
        *(Line2D([], [], label=name, color=_style(name, models)[0], linewidth=1.5, marker=".") for name in models),
    ]


def _view(points: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float]:
    """Left, top and side of a square that shows all points, as far as it fits into the picture."""
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    side = min(max(1.4 * float((high - low).max()), SMALLEST_VIEW * min(size)), min(size))
    left, top = np.clip((low + high - side) / 2, -0.5, np.array([size[1], size[0]]) - 0.5 - side)
    return float(left), float(top), side


def _style(name: str, models: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a predictor or a reference."""
    if name in models:
        return PREDICTOR_COLOURS[models.index(name) % len(PREDICTOR_COLOURS)], "o"
    return REFERENCES[name]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Args:
        figure (`Figure`): drawn.
        path (`Path`): of the file.
    """
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    with atomic_file(path) as file:
        file.write(picture.getvalue())
