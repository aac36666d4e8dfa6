"""The source of motion that a call asks for."""

from __future__ import annotations

from typing import Any

from motion_predictor.common.checks import got, naming

from .line_search import LineSearchMotion
from .names import MOTION_NAMES
from .path import PathMotion, Paths
from .predicted import PredictedMotion
from .source import MotionSource
from .straight import StraightMotion
from .tracked import TrackedMotion


def choose_motion(motion: MotionSource | str | Paths | None, predictor: Any) -> MotionSource:
    """What `motion=` of a call means.

    Args:
        motion ([`MotionSource`], `str`, or a path for each pair, *optional*):
            a source; the name of one, of [`MOTION_NAMES`]; or paths, see [`PathMotion`]. By default what the
            pipeline's motion predictor says, and straight where it has none.
        predictor ([`MotionPredictorModel`], *optional*): the pipeline's.

    Raises:
        ValueError: if it is none of these, or there is no predictor to ask.

    Example:
        >>> choose_motion(None, predictor=None).name
        'straight'
    """
    with naming("motion", motion):
        return _chosen(motion, predictor)


def _chosen(motion: MotionSource | str | Paths | None, predictor: Any) -> MotionSource:
    if motion is None:
        motion = "straight" if predictor is None else "predicted"
    if isinstance(motion, MotionSource):
        return motion
    if isinstance(motion, (list, tuple)):
        return PathMotion(motion)
    if not isinstance(motion, str) or motion not in MOTION_NAMES:
        names = ", ".join(map(repr, MOTION_NAMES))
        raise ValueError(
            f"`motion` must be one of {names}, a motion source or a path for each pair, got {got(motion)}."
        )
    if motion == "predicted":
        if predictor is None:
            raise ValueError(
                "`motion` must be 'straight', another name, a motion source or paths where the pipeline has no "
                "`motion_predictor`, got 'predicted'."
            )
        return PredictedMotion(predictor)
    return {"straight": StraightMotion, "track": TrackedMotion, "search": LineSearchMotion}[motion]()
