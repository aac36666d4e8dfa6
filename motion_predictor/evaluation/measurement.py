"""Predictions measured on known motion: one step of each handle, and whole rollouts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..data.samples import MotionSample, SampleSettings, draw_sample
from ..data.shards import MotionShards
from ..points import sample_flow
from .figures import ARRIVED_AT_512, Rollouts, Steps, length_of
from .predictor import Predictor
from .rollout import roll_out
from .settings import EvaluationSettings

ROLLOUTS = {  # by name: whether the picture is warped, and the guard
    "picture stays": (False, "none"),
    "picture stays, guarded": (False, "project"),
    "picture warped": (True, "none"),
    "picture warped, guarded": (True, "project"),
}


@dataclass(frozen=True)
class Drawn:
    """A sample and where it comes from: its number among all, and that of its record."""

    number: int
    record: int
    sample: MotionSample

    @property
    def at_512(self) -> float:
        """Pixels of a picture with a short side of 512 in a pixel of this one."""
        return 512 / min(self.sample.image.shape[1:])

    @property
    def goes(self) -> torch.Tensor:
        """`[n]` bool: which of its handles are not at their targets already."""
        displacements = (self.sample.targets - self.sample.handles)[self.sample.valid]
        return displacements.norm(dim=-1) * self.at_512 > ARRIVED_AT_512

    @property
    def is_judged(self) -> bool:
        """Whether a handle is not at its target already."""
        return bool(self.goes.any())


def draw_numbered(shards: MotionShards, number: int, settings: EvaluationSettings) -> Drawn | None:
    """The n-th sample of a dataset: a whole frame as it is. None if its record is too short.

    It depends on `settings.samples`, `settings.horizon` and `settings.seed` alone.

    Args:
        shards (`MotionShards`): the dataset.
        number (`int`): of the sample.
        settings (`EvaluationSettings`): how to draw.

    Returns:
        `Drawn` or `None`: the sample.
    """
    record = number * len(shards) // settings.samples
    random = np.random.default_rng((settings.seed, number))
    sample = draw_sample(shards[record], SampleSettings(horizon=settings.horizon), random)
    return None if sample is None else Drawn(number, record, sample)


def drawn_batches(shards: MotionShards, numbers: Iterable[int], settings: EvaluationSettings) -> Iterator[list[Drawn]]:
    """The samples of these numbers, in their order; those of one batch have pictures of one size.

    Args:
        shards (`MotionShards`): the dataset.
        numbers (`Iterable[int]`): of the samples.
        settings (`EvaluationSettings`): how to draw.
    """
    drawn = (draw_numbered(shards, int(number), settings) for number in numbers)
    there = (entry for entry in drawn if entry is not None)
    for _, alike in itertools.groupby(there, key=lambda entry: entry.sample.image.shape):
        while batch := list(itertools.islice(alike, settings.batch_size)):
            yield batch


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread.

    Args:
        values (`np.ndarray`): in their order.
        most (`int`): how many are wanted.

    Returns:
        `np.ndarray`: some of the values, in their order.

    Example:
        >>> spread(np.arange(10), 4).tolist()
        [0, 2, 5, 7]
    """
    count = min(most, len(values))
    return values[np.arange(count) * len(values) // max(count, 1)]


def measure_steps(predictors: Mapping[str, Predictor], batches: Iterable[list[Drawn]], device: str) -> Steps | None:
    """Predict one step of every handle. None if there is no sample.

    Args:
        predictors (`Mapping[str, Predictor]`): by name.
        batches (`Iterable[list[Drawn]]`): of [`drawn_batches`].
        device (`str`): that samples are moved to.

    Returns:
        `Steps` or `None`: what was measured.
    """
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    predicted: dict[str, list[np.ndarray]] = defaultdict(list)
    for drawn in batches:
        batch = MotionSample.stack([entry.sample for entry in drawn]).to(device)
        valid = batch.valid.cpu()
        of_handle = np.nonzero(valid.numpy())[0]
        displacement = _flat(batch.targets - batch.handles, valid)
        columns["record"].append(np.array([entry.record for entry in drawn])[of_handle])
        columns["sample"].append(np.array([entry.number for entry in drawn])[of_handle])
        columns["displacement"].append(displacement)
        columns["label"].append(_flat(batch.steps, valid))
        columns["distance_at_512"].append(length_of(displacement) * drawn[0].at_512)
        for name, predictor in predictors.items():
            flow = predictor(batch.image, batch.handles, batch.targets, batch.valid, batch.mask)
            predicted[name].append(_flat(sample_flow(flow, batch.handles), valid))
    if not columns:
        return None
    return Steps(**_concatenated(columns), predicted=_concatenated(predicted))


def measure_rollouts(predictors: Mapping[str, Predictor], batches: Iterable[list[Drawn]], device: str) -> Rollouts:
    """Roll out every sample with every predictor in every way.

    Args:
        predictors (`Mapping[str, Predictor]`): by name.
        batches (`Iterable[list[Drawn]]`): of [`drawn_batches`].
        device (`str`): that samples are moved to.

    Returns:
        `Rollouts`: what was measured.
    """
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    distances: dict[str, dict[str, list[np.ndarray]]] = {name: defaultdict(list) for name in predictors}
    for drawn in batches:
        batch = MotionSample.stack([entry.sample for entry in drawn]).to(device)
        valid, at_512 = batch.valid.cpu(), drawn[0].at_512
        columns["sample"].append(np.array([entry.number for entry in drawn])[np.nonzero(valid.numpy())[0]])
        columns["distance"].append(length_of(_flat(batch.targets - batch.handles, valid)) * at_512)
        for name, predictor in predictors.items():
            for kind, (warped, guard) in ROLLOUTS.items():
                path = roll_out(predictor, batch, guard=guard, warped=warped)  # [B, 26, N, 2]
                left = (path - batch.targets[:, None]).norm(dim=-1).movedim(1, 2)  # [B, N, 26]
                distances[name][kind].append(_flat(left, valid) * at_512)
    return Rollouts(
        **_concatenated(columns), distances={name: _concatenated(kinds) for name, kinds in distances.items()}
    )


def _flat(values: torch.Tensor, valid: torch.Tensor) -> np.ndarray:
    """Of `[B, N, ...]`, what belongs to handles: `[n, ...]` float64."""
    return values.cpu()[valid].double().numpy()


def _concatenated(columns: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(parts) for name, parts in columns.items()}
