"""The tables and sheets of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ..visualization import draw_points
from .metrics import Metrics
from .pairs import EvaluationPair
from .records import Record

RESAMPLES = 2000
OF_THE_EDIT = {
    "distance": "content to target, px",
    "lost": "content not found",
    "iterations": "iterations",
    "passes": "UNet passes of the drag",
}


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over pairs and the ends of its 95 % confidence interval, by bootstrap; unknown values are left out.

    Args:
        values (`np.ndarray` of shape `(pairs,)`): NaN where unknown.
        seed (`int`, *optional*, defaults to 0): of the resampling.

    Returns:
        `tuple[float, float, float]`: NaN if nothing is known.

    Example:
        >>> interval(np.array([2.0, 2.0, float("nan")]))
        (2.0, 2.0, 2.0)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return (float("nan"),) * 3
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def format_tables(records: Sequence[Record], metrics: Metrics, baseline: str | None = None) -> str:
    """Means of each method, and differences to one of them, pair by pair, in Markdown.

    Args:
        records (`Sequence` of [`Record`]): every method for every pair.
        metrics ([`Metrics`]): that the pictures were measured by.
        baseline (`str`, *optional*): the method that others are compared with; the last one by default.

    Returns:
        `str`: with what the columns are.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    pairs = list(dict.fromkeys(record.pair for record in records))
    figures = {(record.method, record.pair): record.figures for record in records}
    had = {name: metric for name, metric in metrics.wanted.items() if name not in metrics.missing}
    columns = {**OF_THE_EDIT, **{name: metric.title for name, metric in had.items()}}

    def values(method: str, column: str) -> np.ndarray:
        return np.array([figures[method, pair].get(column, np.nan) for pair in pairs])

    asked = interval(np.array([figures[methods[0], pair]["asked"] for pair in pairs]))[0]
    head = f"| | {' | '.join(columns.values())} |\n|---|{'---:|' * len(columns)}"
    count = f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
    lines = [f"{count}, {asked:.2f} px asked for; means, with 95 % confidence intervals.\n", head]
    for method in methods:
        cells = [_cell(*interval(values(method, column))) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    baseline = methods[-1] if baseline is None else baseline
    lines += [f"\nDifference to {baseline}, pair by pair:\n", head]
    for method in [each for each in methods if each != baseline]:
        cells = [_cell(*interval(values(method, column) - values(baseline, column))) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append("\nContent is looked for by features of the UNet; its distance is the mean over what was found.")
    lines += [f"{metric.title}: {metric.protocol}." for metric in had.values()]
    lines += [f"{metrics.wanted[name].title}: not measured: {why}" for name, why in metrics.missing.items()]
    return "\n".join(lines) + "\n"


def _cell(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def best_median_worst(records: Sequence[Record], method: str, column: str = "distance") -> list[str]:
    """Names of three pairs: where a method did best, as usual, and worst; fewer if there are fewer.

    Args:
        records (`Sequence` of [`Record`]): of a run.
        method (`str`): that is judged.
        column (`str`, *optional*, defaults to `"distance"`): by what; less is better, unknown is worst.
    """
    own = [record for record in records if record.method == method]
    ranked = sorted(
        own, key=lambda record: (np.nan_to_num(record.figures.get(column, np.nan), nan=np.inf), record.pair)
    )
    places = sorted({0, len(ranked) // 2, len(ranked) - 1} - {-1})
    return [ranked[place].pair for place in places]


def edits_sheet(
    pairs: Sequence[EvaluationPair], methods: Sequence[str], picture: Callable[[str, str], np.ndarray], side: int = 256
) -> Image.Image:
    """Source with its points, each method's edit, and the true outcome: one pair a line.

    Args:
        pairs (`Sequence` of [`EvaluationPair`]): lines.
        methods (`Sequence[str]`): columns between.
        picture (`Callable`): `(method, pair) -> (height, width, 3)` uint8.
        side (`int`, *optional*, defaults to 256): of a cell, in pixels.
    """
    sheet = Image.new("RGB", ((len(methods) + 2) * side, len(pairs) * side), "white")
    for line, pair in enumerate(pairs):
        height, width = pair.mask.shape
        zoom = np.array([side / width, side / height])
        handles, targets = (torch.from_numpy(zoom * (points + 0.5) - 0.5) for points in (pair.handles, pair.targets))
        cells = [draw_points(Image.fromarray(pair.source).resize((side, side)), handles, targets)]
        edits = [*(picture(method, pair.name) for method in methods), pair.target]
        cells += [Image.fromarray(edit).resize((side, side)) for edit in edits]
        for column, cell in enumerate(cells):
            sheet.paste(cell, (column * side, line * side))
    return sheet
