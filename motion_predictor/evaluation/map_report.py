"""The figures of whole maps as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .map_figures import ALL
from .markdown import markdown_table, percent
from .regions import BIN_TITLES

HANDLES = {"1": "1 handle", "2": "2 handles", "3": "3 handles", "7": "7 handles"}
COMPARED = {"1 or 2": "1 or 2 handles", "3 or 7": "3 or 7 handles"}


def format_maps(figures: Mapping[str, Any] | None) -> list[str]:
    """All figures of whole maps of a dataset.

    Args:
        figures (`Mapping[str, Any]` or `None`): as `map_figures` returns them.

    Returns:
        `list[str]`: tables, and what stands between them.
    """
    if figures is None:
        return ["There are no whole maps to judge: the records do not say where everything goes. Build them anew.\n"]
    shares = ", ".join(
        f"{share:.3f} ({name.removeprefix('best share of ')})" for name, share in figures["shares"].items()
    )
    return [
        f"### Whole maps\n\n{figures['samples']} samples of {figures['videos']} videos or people.\n",
        "The whole way, everything that moves:\n",
        _handle_table(figures["whole"]),
        _distance_table("the whole way from all handles", figures["whole"][ALL]),
        _distance_table("the whole way from a single handle", figures["whole"]["1"]),
        f"The next step, everything that moves; the best shares are {shares}:\n",
        _handle_table(figures["step"]),
        _distance_table("the next step from all handles; size in tenths", figures["step"][ALL], 10),
        _distance_table("the next step from a single handle; size in tenths", figures["step"]["1"], 10),
        _curve_table(figures["curves"]),
    ]


def _handle_table(by_handles: Mapping[str, Any]) -> str:
    """Errors by number of handles, and how many times the spline's they are."""
    titles = {key: title for key, title in HANDLES.items() if by_handles[key][ALL]["samples"]}
    compared = {key: title for key, title in COMPARED.items() if by_handles[key][ALL]["samples"]}
    header = ["endpoint error, px"]
    header += [f"{title} ({by_handles[key][ALL]['samples']})" for key, title in titles.items()]
    header += [f"{title}: of the spline's (95 %)" for title in compared.values()]
    rows = []
    for name in by_handles[ALL][ALL]["maps"]:
        errors = [f"{by_handles[key][ALL]['maps'][name]['endpoint_error']:.2f}" for key in titles]
        of_spline = [by_handles[key][ALL]["maps"][name] for key in compared]
        rows.append(
            [name, *errors]
            + [
                f"{each['of_spline']:.2f} ({each['of_spline_95'][0]:.2f} ... {each['of_spline_95'][1]:.2f})"
                for each in of_spline
            ]
        )
    return markdown_table(header, rows)


def _distance_table(title: str, by_distance: Mapping[str, Any], parts: int = 1) -> str:
    """Errors, sizes and cosines by distance from the nearest handle."""
    bins = [name for name in BIN_TITLES if by_distance[name]["samples"]]
    if not bins:
        return ""
    header = [f"{title}: error, size, cosine", *(f"{name} px away ({by_distance[name]['samples']})" for name in bins)]
    return markdown_table(header, _distance_rows(by_distance, bins, parts))


def _distance_rows(by_distance: Mapping[str, Any], bins: Sequence[str], parts: int) -> Iterable[list[str]]:
    for name in by_distance[bins[0]]["maps"]:
        of_name = [by_distance[each]["maps"][name] for each in bins]
        yield [
            name,
            *(f"{it['endpoint_error']:.2f}, {parts * it['size']:.2f}, {it['cosine']:.2f}" for it in of_name),
        ]


def _curve_table(curves: Mapping[str, Any]) -> str:
    known = {name: figures for name, figures in curves.items() if figures["paths"]}
    header = ["paths that bend", "number", "correlation of sagittas (95 %)", "to the right side"]
    rows = [
        [name, str(figures["paths"]), _correlation(figures), percent(figures["same_side"])]
        for name, figures in known.items()
    ]
    return markdown_table(header, rows) if rows else ""


def _correlation(figures: Mapping[str, Any]) -> str:
    if figures["correlation"] is None:
        return "none: not a path bends"
    low, high = figures["correlation_95"]
    return f"{figures['correlation']:+.2f} ({low:+.2f} ... {high:+.2f})"
