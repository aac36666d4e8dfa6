"""The tables and sheets of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from ..visualization import draw_points
from .metrics import Metrics
from .pairs import EvaluationPair
from .records import Record
from .set_metrics import ENOUGH

RESAMPLES = 2000
OF_THE_EDIT = {
    "distance": "content to target, px",
    "lost": "points not found, share",
    "iterations": "iterations",
    "passes": "UNet passes of the drag",
}
OF_THE_WAY_BACK = {"drag_back": "forth and back, LPIPS"}


def interval(values: np.ndarray, seed: int = 0, weights: np.ndarray | None = None) -> tuple[float, float, float]:
    """Mean over pairs and the ends of its 95 % confidence interval, by bootstrap; unknown values are left out.

    Args:
        values (`np.ndarray` of shape `(pairs,)`): NaN where unknown.
        seed (`int`, *optional*, defaults to 0): of the resampling.
        weights (`np.ndarray` of shape `(pairs,)`, *optional*):
            what pairs count, such as their numbers of points; by default all count alike.

    Returns:
        `tuple[float, float, float]`: NaN if nothing is known.

    Example:
        >>> interval(np.array([2.0, 2.0, float("nan")]))
        (2.0, 2.0, 2.0)
        >>> interval(np.array([1.0, 4.0]), weights=np.array([2, 1]))[0]
        2.0
    """
    is_known = np.isfinite(values)
    known = values[is_known]
    if not len(known):
        return (float("nan"),) * 3
    counts = np.ones(len(known)) if weights is None else weights[is_known]
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    means = (known * counts)[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float((known * counts).sum() / counts.sum()), float(low), float(high)


def format_tables(records: Sequence[Record], metrics: Metrics, baseline: str | None = None) -> str:
    """Means of each method, and differences to one of them, pair by pair, in Markdown.

    Args:
        records (`Sequence` of [`Record`]): every method for every pair.
        metrics ([`Metrics`]): that the pictures were measured by.
        baseline (`str`, *optional*): the method that others are compared with; the last one by default.

    Returns:
        `str`: with what the columns are.

    Example:
        >>> records = [Record("001", "track", "", {"asked": 8.0, "distance": 2.0}, {})]
        >>> print(format_tables(records, Metrics({})).splitlines()[0])
        1 pair, 8.00 px asked for; means, with 95 % confidence intervals.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    pairs = list(dict.fromkeys(record.pair for record in records))
    figures = {(record.method, record.pair): record.figures for record in records}
    points = np.array([figures[methods[0], pair].get("points", 1.0) for pair in pairs])

    def values(method: str, column: str) -> np.ndarray:
        return np.array([figures[method, pair].get(column, np.nan) for pair in pairs])

    def is_there(column: str) -> bool:
        return any(np.isfinite(values(method, column)).any() for method in methods)

    titles = {**OF_THE_EDIT, **{name: metric.title for name, metric in metrics.had.items()}, **OF_THE_WAY_BACK}
    columns = {name: title for name, title in titles.items() if name in OF_THE_EDIT or is_there(name)}
    per_point = {"lost", *(name for name, metric in metrics.wanted.items() if metric.is_per_point)}

    def cell(column: str, shown: np.ndarray) -> str:
        return _cell(*interval(shown, weights=points if column in per_point else None))

    asked = interval(np.array([figures[methods[0], pair]["asked"] for pair in pairs]))[0]
    head = f"| | {' | '.join(columns.values())} |\n|---|{'---:|' * len(columns)}"
    count = f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
    lines = [f"{count}, {asked:.2f} px asked for; means, with 95 % confidence intervals.\n", head]
    for method in methods:
        own = {column: values(method, column) for column in columns}
        cells = [_counted(cell(column, each), each) for column, each in own.items()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    baseline = methods[-1] if baseline is None else baseline
    others = [each for each in methods if each != baseline]
    if others:
        lines += [
            f"\nDifference to {baseline}, pair by pair; on how many of the pairs that have both it is lower:\n",
            head,
        ]
    for method in others:
        differences = {column: values(method, column) - values(baseline, column) for column in columns}
        cells = [_compared(cell(column, each), each) for column, each in differences.items()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append(
        "\nContent is looked for by features of the UNet; for each pair, its distance is the mean over the points "
        "that are found again under that method. n: how many pairs a cell is of, where it is not all."
    )
    lines += [f"{metric.title}: {metrics.protocol(name)}." for name, metric in metrics.had.items() if is_there(name)]
    if "drag_back" in columns:
        lines.append("Forth and back: LPIPS (alex) to the source, after another edit from targets to handles.")
    lines += [f"{metrics.wanted[name].title}: not measured: {why}" for name, why in metrics.missing.items()]
    return "\n".join(lines) + "\n"


def format_set_table(distances: Mapping[str, Mapping[str, float]], count: int, protocol: str) -> str:
    """FID and KID of each method, in Markdown, with the number of pictures.

    Args:
        distances (`Mapping`): by method, `fid` and `kid`.
        count (`int`): of pictures in each set.
        protocol (`str`): what exactly they are.

    Returns:
        `str`: with a warning where there are fewer than 2000.

    Example:
        >>> print(format_set_table({"track": {"fid": 12.3, "kid": 1.5}}, 2000, "torchmetrics").splitlines()[3])
        | track | 12.3 | 1.5 |
    """
    lines = [f"\n| N = {count} | FID | KID x 10^3 |\n|---|---:|---:|"]
    lines += [f"| {method} | {each['fid']:.4g} | {each['kid']:.3g} |" for method, each in distances.items()]
    lines.append(f"\nAll edits of a method against all true outcomes: {protocol}.")
    if count < ENOUGH:
        lines.append(
            f"Warning: {count} pictures are fewer than {ENOUGH}: these say more of that number than of the method. "
            "Compare within this table alone."
        )
    return "\n".join(lines) + "\n"


def _cell(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def _counted(cell: str, values: np.ndarray) -> str:
    known = np.isfinite(values).sum()
    return f"{cell} (n = {known})" if 0 < known < len(values) else cell


def _compared(cell: str, differences: np.ndarray) -> str:
    known = differences[np.isfinite(differences)]
    return f"{cell}; {(known < 0).sum()} of {len(known)}" if len(known) else cell


def best_median_worst(records: Sequence[Record], method: str, column: str = "distance") -> list[str]:
    """Names of three pairs: where a method did best, as usual, and worst; fewer if there are fewer.

    Args:
        records (`Sequence` of [`Record`]): of a run.
        method (`str`): that is judged.
        column (`str`, *optional*, defaults to `"distance"`): by what; less is better, unknown is worst.

    Returns:
        `list[str]`: names, the best first.

    Example:
        >>> records = [Record(name, "track", "", {"distance": away}, {}) for name, away in zip("abc", (3.0, 1.0, 2.0))]
        >>> best_median_worst(records, "track")
        ['b', 'c', 'a']
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
    """Source with its points, each method's edit, and the true outcome if it is known: one pair a line.

    Args:
        pairs (`Sequence` of [`EvaluationPair`]): lines.
        methods (`Sequence[str]`): columns between.
        picture (`Callable`): `(method, pair) -> (height, width, 3)` uint8.
        side (`int`, *optional*, defaults to 256): of a cell, in pixels, in which pictures keep their proportions.

    Returns:
        `PIL.Image.Image`: `side` pixels for each line and column, white where no picture is.
    """
    columns = len(methods) + 1 + any(pair.target is not None for pair in pairs)
    sheet = Image.new("RGB", (columns * side, len(pairs) * side), "white")
    for line, pair in enumerate(pairs):
        edits = [picture(method, pair.name) for method in methods]
        if pair.target is not None:
            edits.append(pair.target)
        source, *cells = (ImageOps.contain(Image.fromarray(each), (side, side)) for each in (pair.source, *edits))
        zoom = np.array(source.size) / pair.mask.shape[::-1]
        handles, targets = (torch.from_numpy(zoom * (points + 0.5) - 0.5) for points in (pair.handles, pair.targets))
        for column, cell in enumerate([draw_points(source, handles, targets), *cells]):
            sheet.paste(cell, (column * side + (side - cell.width) // 2, line * side + (side - cell.height) // 2))
    return sheet
