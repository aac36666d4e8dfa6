"""Whole maps measured on known motion: the next step of everything that moves, and the whole way."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.samples import MotionSample, SampleSettings, draw_sample
from ..data.shards import MotionShards
from .curves import LEAST_BEND, sagittas, true_paths
from .measurement import Drawn, spread
from .predictor import STEP, TOTAL, Predictor
from .references import reference_maps
from .regions import distance_to_handles, moving_region
from .rollout import roll_out_map
from .settings import EvaluationSettings

HANDLE_COUNTS = (1, 2, 3, 7)
FAR_HANDLES = 0.5  # of the longest displacement: people take hold of what is to move, not of what hardly does
PIXELS = 1024  # of a sample's moving region that are judged, evenly spread
MAX_TRIES = 8
ZERO = "zero flow"
ROLLED_OUT, ONE_SHOT = "{}, rolled out", "{}, in one shot"


@dataclass(frozen=True)
class DrawnMap(Drawn):
    """A sample with its whole way, and the paths of its handles.

    Attributes:
        video (`int`): the number of the video, or of the portrait, that its record comes from.
        paths (`np.ndarray` of shape `(points, frames, 2)`): where the handles are from the start on, in pixels.
    """

    video: int = 0
    paths: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 2)))


@dataclass(frozen=True)
class Maps:
    """S samples of a dataset, n pixels of their moving regions, and c paths of handles that bend.

    Attributes:
        video (`np.ndarray` of shape `(samples,)`): int, the video that each sample comes from.
        handles (`np.ndarray` of shape `(samples,)`): int, how many handles it has.
        number (`np.ndarray` of shape `(samples,)`): int, the number that it is drawn by.
        sample (`np.ndarray` of shape `(pixels,)`): int, the index of the sample that a pixel belongs to.
        distance (`np.ndarray` of shape `(pixels,)`): from the nearest handle, in pixels of 128.
        step (`np.ndarray` of shape `(pixels, 2)`): the true next step in pixels; NaN where it is not known.
        whole (`np.ndarray` of shape `(pixels, 2)`): the true whole way.
        steps (`dict[str, np.ndarray]`): `[n, 2]`, the next step by predictor.
        wholes (`dict[str, np.ndarray]`): `[n, 2]`, the whole way by predictor and by reference.
        bend (`np.ndarray` of shape `(paths,)`): sagittas of the paths that bend, in pixels.
        bend_video (`np.ndarray` of shape `(paths,)`): int, the video that each comes from.
        bends (`dict[str, np.ndarray]`): `[c]`, the sagittas of the same handles' rollouts, by predictor.
    """

    video: np.ndarray
    handles: np.ndarray
    number: np.ndarray
    sample: np.ndarray
    distance: np.ndarray
    step: np.ndarray
    whole: np.ndarray
    steps: dict[str, np.ndarray]
    wholes: dict[str, np.ndarray]
    bend: np.ndarray
    bend_video: np.ndarray
    bends: dict[str, np.ndarray]


def draw_map(shards: MotionShards, number: int, settings: EvaluationSettings) -> DrawnMap | None:
    """The n-th sample whose whole map is judged: a whole frame as it is, with a mask, and without the camera's motion.

    The numbers go through the records, and for each through the numbers of handles.

    Args:
        shards (`MotionShards`): the dataset.
        number (`int`): of the sample.
        settings (`EvaluationSettings`): how to draw.

    Returns:
        `DrawnMap` or `None`: the sample; None if its record has no motion of the whole picture to an end frame, or too
        little of it, or too few points to draw so many handles from.
    """
    index, count = (
        number // len(HANDLE_COUNTS) * len(shards) // settings.maps,
        HANDLE_COUNTS[number % len(HANDLE_COUNTS)],
    )
    record = shards[index]
    draw = SampleSettings(
        horizon=settings.horizon, remove_background=True, total=True, masks=1.0, far_handles=FAR_HANDLES
    )
    random = np.random.default_rng((settings.seed, number))
    for _ in range(MAX_TRIES if len(record.end_frames) else 0):
        sample = draw_sample(record, draw, random, handles=count)
        if sample is None or int(sample.valid.sum()) != count or not moving_region(sample.total[None]).any():
            continue
        videos = sorted({place.shard for place in shards.places})
        paths = true_paths(record, sample, without_camera=True)
        drawn = DrawnMap(number, index, sample, videos.index(shards.places[index].shard), paths)
        if drawn.is_judged:
            return drawn
    return None


def drawn_maps(shards: MotionShards, numbers: Iterable[int], settings: EvaluationSettings) -> Iterator[list[DrawnMap]]:
    """The samples of these numbers in batches, each of pictures of one size.

    Args:
        shards (`MotionShards`): the dataset.
        numbers (`Iterable[int]`): of the samples.
        settings (`EvaluationSettings`): how to draw.
    """
    drawn = (draw_map(shards, int(number), settings) for number in numbers)
    there = (entry for entry in drawn if entry is not None)
    for _, alike in itertools.groupby(there, key=lambda entry: entry.sample.image.shape):
        while batch := list(itertools.islice(alike, settings.batch_size)):
            yield batch


@torch.no_grad()
def predicted_wholes(
    predictors: Mapping[str, Predictor], batch: MotionSample
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The whole way of everything: by rollout, and in one shot where a predictor has it.

    Args:
        predictors (`Mapping[str, Predictor]`): by name.
        batch (`MotionSample`): samples with a leading dimension.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]`: maps `[B, 2, H, W]` in pixels by predictor and way;
        and by predictor the paths `[B, 26, N, 2]` of the handles in the rollout.
    """
    wholes, paths = {}, {}
    for name, predictor in predictors.items():
        paths[name], wholes[ROLLED_OUT.format(name)] = roll_out_map(predictor, batch)
        if TOTAL in predictor.horizons:
            wholes[ONE_SHOT.format(name)] = predictor(
                batch.image, batch.handles, batch.targets, batch.valid, batch.mask, TOTAL
            )
    return wholes, paths


@torch.no_grad()
def measure_maps(
    predictors: Mapping[str, Predictor],
    batches: Iterable[list[DrawnMap]],
    device: str,
) -> Maps | None:
    """Predict the next step and the whole way of everything that moves. None if there is no sample.

    Args:
        predictors (`Mapping[str, Predictor]`): by name.
        batches (`Iterable[list[DrawnMap]]`): of [`drawn_maps`].
        device (`str`): that samples are moved to.

    Returns:
        `Maps` or `None`: what was measured.
    """
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    steps: dict[str, list[np.ndarray]] = defaultdict(list)
    wholes: dict[str, list[np.ndarray]] = defaultdict(list)
    bends: dict[str, list[np.ndarray]] = defaultdict(list)
    done = 0
    for drawn in batches:
        batch = MotionSample.stack([entry.sample for entry in drawn]).to(device)
        places = _spread_pixels(batch)
        of_batch, paths = predicted_wholes(predictors, batch)
        columns["video"].append(np.array([entry.video for entry in drawn]))
        columns["handles"].append(batch.valid.sum(dim=1).cpu().numpy())
        columns["number"].append(np.array([entry.number for entry in drawn]))
        columns["sample"].append(done + places[0])
        distance = distance_to_handles(batch.handles, batch.valid, *batch.image.shape[2:])
        columns["distance"].append(_at(distance[:, None], places)[:, 0])
        columns["step"].append(_at(batch.label, places))
        columns["whole"].append(_at(batch.total, places))
        for name, predictor in predictors.items():
            flow = predictor(batch.image, batch.handles, batch.targets, batch.valid, batch.mask, STEP)
            steps[name].append(_at(flow, places))
        zero = {ZERO: torch.zeros_like(batch.total)}
        for name, whole in {**of_batch, **zero, **reference_maps(batch)}.items():
            wholes[name].append(_at(whole, places))
        _measure_bends(drawn, paths, columns, bends)
        done += len(drawn)
    if not done:
        return None
    return Maps(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        steps={name: np.concatenate(parts) for name, parts in steps.items()},
        wholes={name: np.concatenate(parts) for name, parts in wholes.items()},
        bends={name: np.concatenate(parts) for name, parts in bends.items()},
    )


def _spread_pixels(batch: MotionSample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample, row and column of pixels of the moving regions, at most so many of each, evenly spread."""
    chosen: list[np.ndarray] = []
    for index, region in enumerate(moving_region(batch.total).cpu().numpy()):
        rows, columns = np.nonzero(region)
        kept = spread(np.arange(len(rows)), PIXELS)
        chosen.append(np.stack([np.full(len(kept), index), rows[kept], columns[kept]]))
    sample, row, column = np.concatenate(chosen, axis=1)
    return sample, row, column


def _at(maps: torch.Tensor, places: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Of `[B, C, H, W]`, what is at pixels: `[n, C]` float64."""
    sample, row, column = (torch.from_numpy(place).to(maps.device) for place in places)
    return maps[sample, :, row, column].cpu().double().numpy()


def _measure_bends(
    drawn: Sequence[DrawnMap],
    paths: Mapping[str, torch.Tensor],
    columns: dict[str, list[np.ndarray]],
    bends: dict[str, list[np.ndarray]],
) -> None:
    """Of each handle that is judged and whose true path bends, its sagitta and those of its rollouts."""
    for index, entry in enumerate(drawn):
        valid = entry.sample.valid
        here, there = (points[valid].cpu().numpy() for points in (entry.sample.handles, entry.sample.targets))
        chord = np.linalg.norm(there - here, axis=-1)
        goes = entry.goes.cpu().numpy()
        bend = np.zeros(len(here))
        bend[goes] = sagittas(entry.paths[goes], here[goes], there[goes])
        kept = np.abs(bend) > LEAST_BEND * np.where(goes, chord, np.inf)
        columns["bend"].append(bend[kept])
        columns["bend_video"].append(np.full(int(kept.sum()), entry.video))
        for name, path in paths.items():
            rolled_out = path[index].movedim(0, 1)[valid.to(path.device)].cpu().numpy()  # [n, 26, 2]
            bends[name].append(sagittas(rolled_out[kept], here[kept], there[kept]))
