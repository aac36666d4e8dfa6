"""The figures of whole maps as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .map_figures import ALL
from .markdown import markdown_table, percent
from .regions import BIN_TITLES

HANDLES = {"1": "1 handle", "2": "2 handles", "3": "3 handles", "7": "7 handles"}
NEAR = BIN_TITLES[1]
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


def format_kinds(maps: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """The whole way on all datasets, each a kind of content, side by side.

    Args:
        maps (`Mapping[str, Mapping[str, Any] | None]`): `map_figures` by dataset.

    Returns:
        `list[str]`: tables, with a title; nothing if there are no figures.
    """
    wholes = {kind: figures["whole"] for kind, figures in maps.items() if figures}
    if not wholes:
        return []
    compared = [
        _kind_table(f"error, of the spline's, {title} (95 %)", wholes, key, ALL, _of_spline)
        for key, title in COMPARED.items()
    ]
    near = _kind_table(f"{NEAR} px from a single handle: size, cosine", wholes, "1", NEAR, _size_and_cosine)
    return ["## The whole way, by kind\n", *compared, near]


def _kind_table(
    title: str, wholes: Mapping[str, Any], handles: str, distance: str, cell: Callable[[Mapping[str, Any]], str]
) -> str:
    there = {kind: whole[handles][distance] for kind, whole in wholes.items() if whole[handles][distance]["samples"]}
    if not there:
        return ""
    header = [title, *(f"{kind} ({figures['samples']})" for kind, figures in there.items())]
    names = next(iter(there.values()))["maps"]
    return markdown_table(header, [[name, *(cell(each["maps"][name]) for each in there.values())] for name in names])


def _of_spline(figures: Mapping[str, Any]) -> str:
    low, high = figures["of_spline_95"]
    return f"{figures['of_spline']:.2f} ({low:.2f} ... {high:.2f})"


def _size_and_cosine(figures: Mapping[str, Any]) -> str:
    return f"{figures['size']:.2f}, {figures['cosine']:.2f}"


def _handle_table(by_handles: Mapping[str, Any]) -> str:
    """Errors by number of handles, and how many times the spline's they are."""
    if not by_handles[ALL][ALL]["samples"]:
        return ""
    titles = {key: title for key, title in HANDLES.items() if by_handles[key][ALL]["samples"]}
    compared = {key: title for key, title in COMPARED.items() if by_handles[key][ALL]["samples"]}
    header = ["endpoint error, px"]
    header += [f"{title} ({by_handles[key][ALL]['samples']})" for key, title in titles.items()]
    header += [f"{title}: of the spline's (95 %)" for title in compared.values()]
    rows = []
    for name in by_handles[ALL][ALL]["maps"]:
        errors = [f"{by_handles[key][ALL]['maps'][name]['endpoint_error']:.2f}" for key in titles]
        rows.append([name, *errors, *(_of_spline(by_handles[key][ALL]["maps"][name]) for key in compared)])
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
