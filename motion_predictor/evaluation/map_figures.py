"""Figures of whole maps that were measured: numpy in, plain values out."""

from __future__ import annotations

from typing import Any

import numpy as np

from .curves import curve_figures
from .figures import best_linear_share, bootstrap_interval, length_of
from .maps import HANDLE_COUNTS, ZERO, Maps
from .references import AFFINE, RIGID, SPLINE
from .regions import BIN_TITLES, BINS_AT_128

ALL = "all"
HANDLE_GROUPS = {  # by title: numbers of handles
    ALL: HANDLE_COUNTS,
    **{str(count): (count,) for count in HANDLE_COUNTS},
    "1 or 2": (1, 2),
    "3 or 7": (3, 7),
}
TRUE_STEP, TRUE_WAY = "true step", "true way"
SHARE_OF = {name: f"best share of {name}" for name in (SPLINE, RIGID, AFFINE, TRUE_WAY)}


def map_figures(maps: Maps) -> dict[str, Any]:
    """How good whole maps are.

    Args:
        maps (`Maps`): as measured.

    Returns:
        `dict`: the numbers of `samples` and `videos`; `shares`, the best share of the whole way of each reference as a
        next step, found for the smallest mean error on these very samples; `step` and `whole`, each by numbers of
        handles, by distance from the nearest handle, and by name of what predicted: see [`region_figures`]; `curves`,
        `curve_figures` by predictor; and `order`, the numbers of all samples from the best to the worst, by the first
        map's error over that of zero flow.
    """
    known = np.isfinite(maps.step).all(axis=1)
    ways = {**{name: maps.wholes[name] for name in (SPLINE, RIGID, AFFINE)}, TRUE_WAY: maps.whole}
    shares = {SHARE_OF[name]: _best_share(maps.step[known], way[known]) for name, way in ways.items()}
    steps = {
        **maps.steps,
        ZERO: np.zeros_like(maps.whole),
        **{SHARE_OF[name]: shares[SHARE_OF[name]] * way for name, way in ways.items()},
        TRUE_STEP: maps.step,
    }
    return {
        "samples": len(maps.video),
        "videos": len(np.unique(maps.video)),
        "shares": shares,
        "step": _by_handles_and_distance(maps, steps, maps.step, SHARE_OF[SPLINE]),
        "whole": _by_handles_and_distance(maps, maps.wholes, maps.whole, SPLINE),
        "curves": {
            name: curve_figures(maps.bend, bends, maps.bend_video) if len(bends) else {"paths": 0}
            for name, bends in maps.bends.items()
        },
        "order": _from_best_to_worst(maps),
    }


def region_figures(
    maps: Maps, predicted: dict[str, np.ndarray], truth: np.ndarray, chosen: np.ndarray, spline: str
) -> dict[str, Any]:
    """How good maps are on some pixels: means over the pixels of each sample, and over samples.

    Args:
        maps (`Maps`): as measured.
        predicted (`dict[str, np.ndarray]`): `[n, 2]` by name.
        truth (`np.ndarray` of shape `(pixels, 2)`): what they should be.
        chosen (`np.ndarray` of shape `(pixels,)`): bool.
        spline (`str`): the name of what all are compared with.

    Returns:
        `dict`: the number of `samples` with such pixels, and for each name under `maps`

        - `endpoint_error`, in pixels;
        - `minus_spline`, how much more that is than the spline's, and `of_spline`, how many times as much, each with
            its interval of 95 % by bootstrap over videos, `minus_spline_95` and `of_spline_95`;
        - `size`, the mean length over that of the true whole way, and `cosine`, the mean cosine to it; where nothing
            is predicted it counts 0.
    """
    chosen = chosen & np.isfinite(truth).all(axis=1)
    sample, index = np.unique(maps.sample[chosen], return_inverse=True)
    if not len(sample):
        return {"samples": 0}
    video, counts = maps.video[sample], np.bincount(index)

    def by_sample(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(index, weights=values) / counts)

    true, whole = truth[chosen], maps.whole[chosen]
    length = length_of(whole)
    errors = {name: by_sample(length_of(motion[chosen] - true)) for name, motion in predicted.items()}
    figures = {}
    for name, motion in predicted.items():
        error, more, here = errors[name], errors[name] - errors[spline], motion[chosen]
        dot, product = (here * whole).sum(axis=-1), length_of(here) * length
        figures[name] = {
            "endpoint_error": float(error.mean()),
            "minus_spline": float(more.mean()),
            "minus_spline_95": bootstrap_interval(more, video),
            "of_spline": float(error.sum() / errors[spline].sum().clip(1e-12)),
            "of_spline_95": bootstrap_interval(error, video, per=errors[spline].clip(1e-12)),
            "size": float(by_sample(length_of(here)).mean() / by_sample(length).mean()),
            "cosine": float(by_sample(np.where(product > 1e-9, dot / product.clip(1e-12), 0.0)).mean()),
        }
    return {"samples": len(sample), "maps": figures}


def _by_handles_and_distance(
    maps: Maps, predicted: dict[str, np.ndarray], truth: np.ndarray, spline: str
) -> dict[str, Any]:
    distance = np.digitize(maps.distance, BINS_AT_128[1:-1])
    everywhere = np.ones(len(distance), dtype=bool)
    bins = {ALL: everywhere, **{title: distance == number for number, title in enumerate(BIN_TITLES)}}
    return {
        handles: {
            title: region_figures(maps, predicted, truth, inside & np.isin(maps.handles[maps.sample], counts), spline)
            for title, inside in bins.items()
        }
        for handles, counts in HANDLE_GROUPS.items()
    }


def _best_share(step: np.ndarray, way: np.ndarray) -> float:
    """The share of a way that is nearest to the step in the mean; 0 if the way leads nowhere."""
    goes = length_of(way) > 1e-6
    return best_linear_share(step[goes], way[goes]) if goes.any() else 0.0


def _from_best_to_worst(maps: Maps) -> list[int]:
    first = next(iter(maps.wholes.values()))
    counts = np.bincount(maps.sample)
    error, zero = (
        np.bincount(maps.sample, weights=length_of(maps.whole - motion)) / counts
        for motion in (first, np.zeros_like(first))
    )
    return [int(number) for number in maps.number[np.argsort(error / zero, kind="stable")]]
