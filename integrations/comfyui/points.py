"""Points as people have them in ComfyUI: instruction files, DragBench's layout, and what a spline editor writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynadrag_pipeline.drag_instruction import as_pairs
from motion_predictor.common.checks import got
from motion_predictor.common.json_file import MOST_JSON_BYTES

Pair = list[float]

ACCEPTED = (
    '`points` must be {"points": [handle, target, handle, target, ...]}, [[x, y], ...] in the same order, or splines '
    'of {"x": ..., "y": ...} from a handle to its target'
)
STRAIGHT_WITHIN = 1.0  # pixel: a spline that bends less says where to go, not how
OVER_THE_EDGE = 1.0  # pixel: an editor's canvas ends at its width, a picture at the centre of its last pixel


@dataclass(frozen=True)
class Drags:
    """What is to be dragged, in pixels.

    Attributes:
        handles, targets (`list[list[float]]`): as many (x, y) of each.
        paths (`list`): for each handle what it passes on its way, or `None` for straight.
        prompt (`str`): of an instruction file, if it has one.
    """

    handles: list[Pair]
    targets: list[Pair]
    paths: list[list[Pair] | None]
    prompt: str = ""

    @property
    def drawn(self) -> list[list[Pair] | None] | None:
        """The paths, if there is one."""
        return self.paths if any(self.paths) else None


def read_points(points: str | Sequence[str], size: tuple[int, int] | None = None) -> Drags:
    """Read points of any of the layouts.

    Args:
        points (`str` or a list of `str`):
            JSON, as of an instruction file or of `result.json`; or splines, in one list, in a list of lists, in a list
            of texts, or one after the other. Single quotes, which some nodes write, are double ones. A spline of one
            point, or one that stays in its place, is a pin.
        size (`tuple[int, int]`, *optional*):
            (height, width) of the picture: splines that end on the edge of an editor's canvas end on its last pixel.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> read_points('[{"x": 20, "y": 30}, {"x": 24, "y": 38}, {"x": 40, "y": 30}]')
        Drags(handles=[[20.0, 30.0]], targets=[[40.0, 30.0]], paths=[[[24.0, 38.0]]], prompt='')
        >>> read_points('{"points": [[20, 30], [40, 30]]}').targets
        [[40.0, 30.0]]
    """
    texts = [points] if isinstance(points, str) else list(points)
    documents = [document for text in texts for document in _documents(text)]
    if len(documents) == 1 and isinstance(documents[0], dict) and "x" not in documents[0]:
        return _instruction(documents[0])
    if len(documents) == 1 and _are_pairs(documents[0]):
        return _instruction({"points": documents[0]})
    splines = [spline for document in documents for spline in _splines(document)]
    if not splines:
        raise ValueError(f"{ACCEPTED}, got {got(points)}.")
    return _of_splines([[_on_picture(point, size) for point in spline] for spline in splines])


def _documents(text: str) -> list[Any]:
    """The JSON values that a text has, one after the other."""
    if not isinstance(text, str) or len(text) > MOST_JSON_BYTES:
        raise ValueError(f"{ACCEPTED}, got {got(text)}.")
    try:
        return _decoded(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _decoded(text.replace("'", '"'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{ACCEPTED}, got {got(text)}, which is no JSON.") from error


def _decoded(text: str) -> list[Any]:
    decoder, values, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
        while at < len(text) and (text[at].isspace() or text[at] in ",;"):
            at += 1
    return values


def _instruction(content: dict[str, Any]) -> Drags:
    """Points of an object in the layout of instruction files, or with handles and targets as results have them."""
    if "points" in content:
        points = content["points"]
        if not _are_pairs(points) or len(points) % 2:
            raise ValueError(
                f"`points` must be an even number of [x, y], handle, target, handle, target, ...; got {got(points)}."
            )
        handles, targets = _pairs(points[0::2]), _pairs(points[1::2])
    else:
        handles, targets = _pairs(content.get("handles")), _pairs(content.get("targets"))
    paths = content.get("paths") or [None] * len(handles)
    if not isinstance(paths, list) or not len(handles) == len(targets) == len(paths):
        raise ValueError(
            f"`points` must have as many handles as targets, and a path or null for each if it has paths: got "
            f"{len(handles)} handles, {len(targets)} targets and {got(paths)}."
        )
    prompt = content.get("prompt") or ""
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` of `points` must be a string, got {got(prompt)}.")
    return Drags(handles, targets, [_pairs(path) if path else None for path in paths], prompt)


def _of_splines(splines: list[list[Pair]]) -> Drags:
    """Each from its first point to its last."""
    paths: list[list[Pair] | None] = []
    for spline in splines:
        start, end = spline[0], spline[-1]
        passed = [point for point in spline[1:-1] if point not in (start, end)]
        if start == end and passed:
            raise ValueError(f"`points` must have splines that end elsewhere than they begin, got one at {start}.")
        paths.append(passed if _bends(start, end, passed) else None)
    return Drags([spline[0] for spline in splines], [spline[-1] for spline in splines], paths)


def _bends(start: Pair, end: Pair, passed: list[Pair]) -> bool:
    """Whether a polyline leaves the straight way by more than a pixel, to the side or beyond its ends."""
    x, y = end[0] - start[0], end[1] - start[1]
    length = max((x * x + y * y) ** 0.5, 1e-9)
    ways = [((point[0] - start[0], point[1] - start[1])) for point in passed]
    aside = [abs(a * y - b * x) / length for a, b in ways]
    along = [(a * x + b * y) / length for a, b in ways]
    beyond = [max(-each, each - length) for each in along]
    return max([*aside, *beyond], default=0.0) > STRAIGHT_WITHIN


def _splines(document: Any) -> list[list[Pair]]:
    """The splines of a JSON value: a point, a list of points, or a list of lists, or of texts, of points."""
    if isinstance(document, dict):
        return [[_point(document)]]
    if not isinstance(document, list) or not document:
        raise ValueError(f"{ACCEPTED}, got {got(document)}.")
    if isinstance(document[0], dict):
        return [[_point(point) for point in document]]
    if isinstance(document[0], str):
        return [spline for text in document for each in _documents(text) for spline in _splines(each)]
    return [[_point(point) for point in _as_list(spline)] for spline in document]


def _as_list(spline: Any) -> list[Any]:
    if not isinstance(spline, list) or not spline:
        raise ValueError(f"{ACCEPTED}, got {got(spline)}.")
    return spline


def _point(point: Any) -> Pair:
    if not isinstance(point, dict) or not {"x", "y"} <= point.keys():
        raise ValueError(f"{ACCEPTED}, got {got(point)}.")
    return _pairs([[point["x"], point["y"]]])[0]


def _are_pairs(points: Any) -> bool:
    """Whether it is a list whose entries are lists of numbers, well-formed or not."""
    return (
        isinstance(points, list)
        and len(points) > 0
        and all(isinstance(each, list) and all(isinstance(value, (int, float)) for value in each) for each in points)
    )


def _pairs(points: Any) -> list[Pair]:
    """Finite [x, y], checked as the pipeline does it."""
    return [[float(x), float(y)] for x, y in as_pairs("points", points)]


def _on_picture(point: Pair, size: tuple[int, int] | None) -> Pair:
    """A point, back on the picture if it is over the edge by a pixel; others are left for the pipeline to refuse."""
    if size is None:
        return point
    limits = size[1] - 1, size[0] - 1
    return [
        min(max(value, 0.0), float(limit)) if -OVER_THE_EDGE <= value <= limit + OVER_THE_EDGE else value
        for value, limit in zip(point, limits, strict=True)
    ]
