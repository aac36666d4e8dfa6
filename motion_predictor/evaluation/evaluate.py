"""Evaluation of motion predictors on datasets, side by side: figures, a plot and pictures in a folder.

Every figure is given by dataset, and those of single steps by the distance of handles to their targets. Errors are in
pixels of the dataset's own frames; distances in those of a picture with a short side of 512, so that sizes compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..common.atomic_file import atomic_file
from ..common.checks import got
from ..data.shards import MotionShards
from ..modeling_motion_predictor import MotionPredictorModel
from .figures import (
    ARRIVED_AT_512,
    BEST_LINEAR,
    STRAIGHT_SHARES,
    Rollouts,
    linear_distances,
    rollout_figures,
    step_figures,
)
from .map_figures import map_figures
from .maps import HANDLE_COUNTS, drawn_maps, measure_maps
from .measurement import ROLLOUTS, drawn_batches, measure_rollouts, measure_steps, spread
from .predictor import FlowPredictor, Predictor
from .report import format_table
from .rollout import ROLLOUT_STEPS
from .settings import EvaluationSettings


def evaluate_motion_predictor(
    models: Sequence[str | Path],
    data: Sequence[str | Path],
    out: str | Path,
    settings: EvaluationSettings | None = None,
) -> dict[str, Any]:
    """Evaluate motion predictors side by side, and write figures, plot and pictures to a folder.

    Writes `evaluation.json`, `evaluation.md`, `evaluation.png` and, for each dataset, `trajectories-NAME.png` and
    `flows-NAME.png`.

    Args:
        models (`Sequence[str | Path]`): folders of `MotionPredictorModel`, of training runs or of pipelines; or names
            on the Hugging Face Hub.
        data (`Sequence[str | Path]`): datasets that `dynadrag build-dataset` wrote.
        out (`str` or `Path`): folder for the results; made if it is not there.
        settings (`EvaluationSettings`, *optional*): what is drawn and how it is judged.

    Returns:
        `dict`: the figures, as `evaluation.json` holds them; see `evaluate`.

    Raises:
        OSError: if a model or a dataset can't be read.
        ValueError: if no handle can be judged.

    Example:
        >>> results = evaluate_motion_predictor(["runs/a", "runs/b"], ["clips"], "compared")  # doctest: +SKIP
        >>> print(format_table(results))  # doctest: +SKIP
    """
    from .flow_pictures import save_flows
    from .plots import save_plot, save_trajectories

    settings = settings or EvaluationSettings()
    sources = {name: MotionShards(folder, settings.split) for name, folder in short_names(data).items()}
    predictors = {
        name: Predictor.of(_load_predictor(model).to(settings.torch_device))
        for name, model in short_names(models).items()
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)  # now, since it would be a pity to find out later that it can't be made
    results = evaluate(predictors, sources, settings)
    save_results(results, out)
    save_plot(results, out)
    for name, shards in sources.items():
        file_name = f"{name.replace('/', '-')}.png"
        save_trajectories(predictors, shards, settings, out / f"trajectories-{file_name}")
        maps = results["sources"][name]["maps"]
        if maps is not None and settings.pictures:
            save_flows(predictors, shards, settings, maps["order"], out / f"flows-{file_name}")
    return results


def evaluate(
    predictors: Mapping[str, MotionPredictorModel | Predictor | FlowPredictor],
    sources: Mapping[str, MotionShards],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """The figures of predictors on datasets, as plain values for JSON.

    Args:
        predictors (`Mapping[str, MotionPredictorModel | Predictor | FlowPredictor]`): by name; a model, or a function
            like its `predict_flow`.
        sources (`Mapping[str, MotionShards]`): datasets by name.
        settings (`EvaluationSettings`): what is drawn and how it is judged.

    Returns:
        `dict`: `settings`, `models` and `sources`. A source holds the numbers of records, samples and judged handles;
        `steps`, `step_figures` of `"all"` and of `"agreeing"` handles, whose true step leads towards their targets;
        `bins`, the same for each bin of distances; `rollouts`, a dict of `rollout_figures` by name of the predictor or
        linear step, and by kind of rollout; and `maps`, the `map_figures`, None where the records do not say where
        everything goes, as those of earlier versions don't.

    Raises:
        ValueError: if no handle of a source can be judged.
    """
    asked = {name: Predictor.of(predictor) for name, predictor in predictors.items()}
    return {
        "settings": asdict(settings),
        "limits": {"arrived_at_512": ARRIVED_AT_512, "rollout_steps": ROLLOUT_STEPS},
        "models": list(predictors),
        "sources": {name: _evaluate_source(name, asked, sources[name], settings) for name in sources},
    }


def _evaluate_source(
    name: str, predictors: Mapping[str, Predictor], shards: MotionShards, settings: EvaluationSettings
) -> dict[str, Any]:
    numbers = tqdm(range(settings.samples), desc=f"{name}: steps", unit="sample")
    steps = measure_steps(predictors, drawn_batches(shards, numbers, settings), settings.torch_device)
    if steps is None or not steps.judged.any():
        raise ValueError(
            f"no handle in {settings.samples} samples of `{shards.folder}` has a displacement longer than "
            f"{ARRIVED_AT_512:g} px (at 512): is there motion in its split `{settings.split}`, over 15 frames or more?"
        )
    everything = step_figures(steps, steps.judged)
    rolled_out = spread(np.unique(steps.sample[steps.judged]), settings.rollouts)
    rollouts = _roll_out_all(name, predictors, shards, rolled_out, settings) if settings.rollouts else None
    return {
        "folder": str(shards.folder),
        "records": len(np.unique(steps.record)),
        "samples": len(np.unique(steps.sample)),
        "handles": int(steps.judged.sum()),
        "steps": {"all": everything, "agreeing": step_figures(steps, steps.agreeing)},
        "bins": {title: step_figures(steps, inside) for title, inside in steps.bins().items()},
        "rollouts": _all_rollout_figures(rollouts, everything["best_linear_share"]) if rollouts else {},
        "maps": _evaluate_maps(name, predictors, shards, settings),
    }


def _evaluate_maps(
    name: str, predictors: Mapping[str, Predictor], shards: MotionShards, settings: EvaluationSettings
) -> dict[str, Any] | None:
    numbers = tqdm(range(settings.maps * len(HANDLE_COUNTS)), desc=f"{name}: maps", unit="sample")
    maps = measure_maps(predictors, drawn_maps(shards, numbers, settings), settings.torch_device)
    return None if maps is None else map_figures(maps)


def _roll_out_all(
    name: str,
    predictors: Mapping[str, Predictor],
    shards: MotionShards,
    numbers: np.ndarray,
    settings: EvaluationSettings,
) -> Rollouts:
    total = len(numbers) * len(predictors) * len(ROLLOUTS) * ROLLOUT_STEPS
    with tqdm(total=total, desc=f"{name}: rollouts", unit="prediction") as progress:
        counted = {name: _counting(predictor, progress) for name, predictor in predictors.items()}
        return measure_rollouts(counted, drawn_batches(shards, numbers, settings), settings.torch_device)


def _all_rollout_figures(rollouts: Rollouts, best_linear_share: float) -> dict[str, dict[str, Any]]:
    """Figures of what the predictors have led to, and of what linear steps lead to, which see no picture."""
    predicted = {
        name: {kind: rollout_figures(rollouts, distances) for kind, distances in kinds.items()}
        for name, kinds in rollouts.distances.items()
    }
    shares = {**STRAIGHT_SHARES, BEST_LINEAR: best_linear_share}
    linear = {
        name: {"any picture": rollout_figures(rollouts, linear_distances(rollouts.distance, share))}
        for name, share in shares.items()
    }
    return predicted | linear


def short_names(paths: Sequence[str | Path]) -> dict[str, str | Path]:
    """Paths by as many of their last parts as tell them apart.

    Args:
        paths (`Sequence[str | Path]`): of models or of datasets.

    Returns:
        `dict[str, str | Path]`: the paths by short name.

    Raises:
        ValueError: if two are the same.

    Example:
        >>> short_names(["runs/one/model", "runs/two/model"])
        {'one/model': 'runs/one/model', 'two/model': 'runs/two/model'}
    """
    parts = [Path(path).absolute().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"`paths` must be different, got {got([str(path) for path in paths])}.")


def save_results(results: Mapping[str, Any], out: Path) -> None:
    """Write `evaluation.json` and `evaluation.md` to a folder.

    Args:
        results (`Mapping[str, Any]`): as [`evaluate`] returns them.
        out (`Path`): the folder.
    """
    for name, text in (
        ("evaluation.json", json.dumps(results, indent=2) + "\n"),
        ("evaluation.md", format_table(results)),
    ):
        with atomic_file(out / name) as file:
            file.write(text.encode())


def _load_predictor(model: str | Path) -> MotionPredictorModel:
    """A model from its own folder, from a training run's or a pipeline's folder, or from the Hub."""
    inside = (Path(model) / "motion_predictor" / "config.json").exists()
    predictor: MotionPredictorModel = MotionPredictorModel.from_pretrained(
        str(model), subfolder="motion_predictor" if inside else None
    )
    return predictor.eval()


def _counting(predictor: Predictor, progress: tqdm) -> Predictor:
    def counted(image: torch.Tensor, *points: Any, **more: Any) -> torch.Tensor:
        flow = predictor.predict_flow(image, *points, **more)
        progress.update(len(image))
        return flow

    return replace(predictor, predict_flow=counted)
