"""Figures of steps and rollouts that were measured: numpy in, plain values out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .rollout import ROLLOUT_STEPS

ARRIVED_AT_512 = 4.0  # px: nearer handles have arrived, as in an edit, and are not judged
BINS_AT_512 = (4.0, 8.0, 16.0, 32.0, float("inf"))  # px
BEST_LINEAR = "best linear"
STRAIGHT_SHARES = {"displacement / 25": 1 / 25, "displacement / 10": 1 / 10}
RESAMPLES = 2000


@dataclass(frozen=True)
class Steps:
    """n handles of a dataset, the true step of each, and those that were predicted.

    Attributes:
        record (`np.ndarray` of shape `(points,)`): int, the record that the handle was drawn from.
        sample (`np.ndarray` of shape `(points,)`): int, the sample.
        displacement (`np.ndarray` of shape `(points, 2)`): from handle to target, in pixels.
        label (`np.ndarray` of shape `(points, 2)`): the true step.
        distance_at_512 (`np.ndarray` of shape `(points,)`): the length of the displacement in pixels of 512.
        predicted (`dict[str, np.ndarray]`): `[n, 2]` for each predictor.
    """

    record: np.ndarray
    sample: np.ndarray
    displacement: np.ndarray
    label: np.ndarray
    distance_at_512: np.ndarray
    predicted: dict[str, np.ndarray]

    @property
    def judged(self) -> np.ndarray:
        """`[n]` bool: handles that are not at their targets already."""
        return self.distance_at_512 > ARRIVED_AT_512

    @property
    def agreeing(self) -> np.ndarray:
        """`[n]` bool: judged handles whose true step leads towards their targets, as an edit's steps should."""
        return self.judged & (_dot(self.label, self.displacement) > 0)

    def bins(self) -> dict[str, np.ndarray]:
        """`[n]` bool for each bin of distances, by its limits in pixels of 512."""
        return {
            f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+": (self.distance_at_512 > low)
            & (self.distance_at_512 <= high)
            for low, high in itertools.pairwise(BINS_AT_512)
        }


def step_figures(steps: Steps, chosen: np.ndarray) -> dict[str, Any]:
    """How good the steps of some handles are.

    Args:
        steps (`Steps`): as measured.
        chosen (`np.ndarray` of shape `(points,)`): bool.

    Returns:
        `dict`: the number of `handles`; `label_cosine` and `label_wrong_way_rate`, how well the true steps themselves
        lead to the targets; the `best_linear_share` of the displacement, fitted to these very handles so that its mean
        endpoint error is the smallest, and the `least_squares_share`; and for each predictor and reference
        under `steps`:

        - `endpoint_error`: mean distance of predicted and true step, in pixels;
        - `minus_best_linear`: how much more that is than for the best linear step, and `minus_best_linear_95`, the
          interval of 95 % by bootstrap over records;
        - `cosine`: mean cosine of the step and the displacement; a step of zero counts 0;
        - `wrong_way_rate`: share of steps that lead away from their targets;
        - `wrong_way_rate_of_agreeing`: the same among handles whose true step leads towards the target.
    """
    count = int(chosen.sum())
    if count == 0:
        return {"handles": 0}
    displacement, label, record = steps.displacement[chosen], steps.label[chosen], steps.record[chosen]
    share = best_linear_share(label, displacement)
    candidates = {name: predicted[chosen] for name, predicted in steps.predicted.items()}
    candidates["zero flow"] = np.zeros_like(displacement)
    candidates |= {name: straight * displacement for name, straight in STRAIGHT_SHARES.items()}
    candidates[BEST_LINEAR] = share * displacement
    best = length_of(share * displacement - label)
    agreeing = _dot(label, displacement) > 0
    figures = {}
    for name, step in candidates.items():
        error = length_of(step - label)
        wrong = _dot(step, displacement) < 0
        figures[name] = {
            "endpoint_error": float(error.mean()),
            "minus_best_linear": float((error - best).mean()),
            "minus_best_linear_95": bootstrap_interval(error - best, record),
            "cosine": _mean_cosine(step, displacement),
            "wrong_way_rate": float(wrong.mean()),
            "wrong_way_rate_of_agreeing": float(wrong[agreeing].mean()) if agreeing.any() else None,
        }
    return {
        "handles": count,
        "label_cosine": _mean_cosine(label, displacement),
        "label_wrong_way_rate": float((_dot(label, displacement) < 0).mean()),
        "best_linear_share": share,
        "least_squares_share": float(_dot(label, displacement).sum() / _dot(displacement, displacement).sum()),
        "steps": figures,
    }


def best_linear_share(label: np.ndarray, displacement: np.ndarray) -> float:
    """The share of the displacement with the smallest mean endpoint error: an oracle, since it knows the labels.

    The error is convex in the share, so a golden-section search finds it.

    Args:
        label (`np.ndarray` of shape `(points, 2)`): true steps.
        displacement (`np.ndarray` of shape `(points, 2)`): none of them zero.

    Returns:
        `float`: the share.

    Example:
        >>> round(best_linear_share(np.array([[1.0, 0.0], [2.0, 0.0], [9.0, 0.0]]), np.full((3, 2), [10.0, 0.0])), 6)
        0.2
    """
    shares = _dot(label, displacement) / _dot(displacement, displacement)  # the best of each handle by itself
    low, high = float(shares.min()), float(shares.max())
    golden = (5**0.5 - 1) / 2

    def error(share: float) -> float:
        return float(length_of(share * displacement - label).mean())

    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = error(left), error(right)
    while high - low > 1e-9 * max(1.0, abs(high)):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = error(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = error(right)
    return (low + high) / 2


@lru_cache(maxsize=16)
def resamplings(count: int, seed: int = 0) -> np.ndarray:
    """How often each of some things is drawn when as many are drawn anew, many times over.

    Args:
        count (`int`): of the things.
        seed (`int`, *optional*, defaults to 0): of the drawing.

    Returns:
        `np.ndarray` of shape `(resamplings, count)`: int.

    Example:
        >>> set(resamplings(5).sum(axis=1).tolist())
        {5}
    """
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)


def bootstrap_interval(
    values: np.ndarray, record: np.ndarray, seed: int = 0, per: np.ndarray | None = None
) -> list[float]:
    """The 95 % interval of the mean of `values` `[n]`, if the records that they come from were drawn anew.

    Args:
        values (`np.ndarray` of shape `(points,)`): of handles.
        record (`np.ndarray` of shape `(points,)`): int, the record, or the video, that each handle was drawn from.
        seed (`int`, *optional*, defaults to 0): of the drawing.
        per (`np.ndarray` of shape `(points,)`, *optional*): in place of the mean, the sum of the values over the sum
            of these.

    Returns:
        `list[float]`: the lower and the upper limit.

    Example:
        >>> bootstrap_interval(np.ones(4), np.arange(4))
        [1.0, 1.0]
    """
    _, group = np.unique(record, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group, weights=per)
    times = resamplings(len(sums), seed)
    low, high = np.percentile((times @ sums) / (times @ counts), (2.5, 97.5))
    return [float(low), float(high)]


@dataclass(frozen=True)
class Rollouts:
    """n handles of a dataset and how far they were from their targets, before the first and after each step.

    Attributes:
        sample (`np.ndarray` of shape `(points,)`): int.
        distance (`np.ndarray` of shape `(points,)`): the length of the displacement, in pixels of 512.
        distances (`dict[str, dict[str, np.ndarray]]`): `[n, 26]` in pixels of 512, for each predictor and each of
            `ROLLOUTS`.
    """

    sample: np.ndarray
    distance: np.ndarray
    distances: dict[str, dict[str, np.ndarray]]


def linear_distances(distance: np.ndarray, share: float) -> np.ndarray:
    """`[n, 26]`: how far handles `[n]` px from their targets are after each step that goes a share of what is left.

    Args:
        distance (`np.ndarray` of shape `(points,)`): of handles from their targets, in any unit.
        share (`float`): of what is left, that a step goes.

    Returns:
        `np.ndarray` of shape `(points, 26)`: in the same unit.

    Example:
        >>> linear_distances(np.array([8.0]), 0.5)[0, :4].tolist()
        [8.0, 4.0, 2.0, 1.0]
    """
    return distance[:, None] * abs(1 - share) ** np.arange(ROLLOUT_STEPS + 1)


def rollout_figures(rollouts: Rollouts, distances: np.ndarray) -> dict[str, Any]:
    """Where a rollout has led.

    Args:
        rollouts (`Rollouts`): whose handles these are.
        distances (`np.ndarray` of shape `(points, 26)`): in pixels of 512.

    Returns:
        `dict`: of the handles that are judged, `arrived`, the share that is in the end within 4 px (at 512) of its
        target, and `remaining`, the mean share of the displacement that is left; `arrived_samples`, the share of
        samples all of whose handles have arrived; and the first two after each step, as lists of 26.
    """
    judged = rollouts.distance > ARRIVED_AT_512
    arrived = distances <= ARRIVED_AT_512
    all_arrived = [arrived[rollouts.sample == number, -1].all() for number in np.unique(rollouts.sample)]
    arrived_per_step = arrived[judged].mean(axis=0)
    remaining_per_step = (distances / rollouts.distance[:, None].clip(1e-9))[judged].mean(axis=0)
    return {
        "handles": int(judged.sum()),
        "samples": len(all_arrived),
        "arrived": float(arrived_per_step[-1]),
        "arrived_samples": float(np.mean(all_arrived)),
        "remaining": float(remaining_per_step[-1]),
        "arrived_per_step": arrived_per_step.tolist(),
        "remaining_per_step": remaining_per_step.tolist(),
    }


def length_of(vectors: np.ndarray) -> np.ndarray:
    """`[..., 2]` to `[...]`.

    Args:
        vectors (`np.ndarray` of shape `(..., 2)`): of any unit.

    Returns:
        `np.ndarray` of shape `(...,)`: their lengths.

    Example:
        >>> float(length_of(np.array([3.0, 4.0])))
        5.0
    """
    return np.hypot(vectors[..., 0], vectors[..., 1])


def _dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray((one * other).sum(axis=-1))


def _mean_cosine(step: np.ndarray, displacement: np.ndarray) -> float:
    return float((_dot(step, displacement) / (length_of(step) * length_of(displacement)).clip(1e-12)).mean())
