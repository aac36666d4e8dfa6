"""Train the motion predictor by the paper's recipe, by the dense one, and without each of its parts, and compare.

python benchmarks/motion_prediction.py --train data/portraits:0.6 data/mixed:0.4 \\
    --evaluate data/portraits data/bodies --out runs/ablation --seeds 0 1 --jobs 2

Every variant has the same data, steps and seeds, and the same network but for what its name says. Runs that are
finished are not repeated, and one that was interrupted goes on, so the same command may be started again. Writes
`ablation.md` and `ablation.json` to `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from motion_predictor import MotionPredictorModel
from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.data.shards import MotionShards
from motion_predictor.evaluation.evaluate import evaluate, short_names
from motion_predictor.evaluation.maps import ONE_SHOT, ROLLED_OUT
from motion_predictor.evaluation.settings import EvaluationSettings

# What each variant changes. A network that answers in pixels has no channel for its unit.
VARIANTS: dict[str, list[str]] = {
    "paper": ["preset=paper"],
    "robust": ["preset=robust"],
    "dense": ["preset=dense"],
    "length of the error": ["preset=dense", "loss.error=length"],
    "Charbonnier": ["preset=dense", "loss.error=charbonnier"],
    "what moves not weighed": ["preset=dense", "loss.moving_weight=0"],
    "no likelihood": ["preset=dense", "loss.likelihood_weight=0", "network.predicts_deviation=false"],
    "delta on discs": ["preset=dense", "network.delta_paint=disc"],
    "no rigid motion": ["preset=dense", "network.takes_rigid=false", "network.in_channels=8"],
    "absolute flow": [
        "preset=dense",
        "network.straight_share=0",
        "network.takes_rigid=false",
        "network.in_channels=8",
    ],
    "in pixels": ["preset=dense", "network.flow_unit=pixel", "network.in_channels=9"],
    "no mask": ["preset=dense", "network.takes_mask=false", "network.in_channels=9", "samples.masks=0"],
    "a step of its own": ["preset=dense", "network.step_share=0", "loss.step_weight=0.02"],
    "the step only": ["preset=dense", "network.horizons=[step]", "network.step_share=0", "loss.step_weight=1"],
    "no framing": ["preset=dense", "samples.framing=false"],
    "as many of each number of handles": ["preset=dense", "samples.few_handles=0"],
    "from many handles to few": ["preset=dense", "samples.few_handles=0.8", "samples.curriculum=4000"],
    "coarser translator": ["preset=dense", "network.num_spatial_blocks=6"],
}
NETWORK = (
    "{hidden_channels_spatial: 24, hidden_channels_translator: 112, num_translator_blocks: 3, "
    "inception_kernels: [3, 5, 7], sample_size: %d}"
)
RECIPES = ("paper", "robust", "dense")
HANDLES = ("1 or 2", "3 or 7")
KINDS = (ONE_SHOT, ROLLED_OUT)
ROLLOUT = "picture stays"  # and no guard: what the network itself does
REFERENCES = ("zero flow", "spline", "rigid", "affine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, metavar="FOLDER[:WEIGHT]", help="datasets to train on")
    parser.add_argument("--evaluate", nargs="+", type=Path, required=True, metavar="FOLDER", help="their split `val`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures that are trained on, in pixels")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--samples", type=int, default=128, help="samples of each dataset whose steps are judged")
    parser.add_argument("--rollouts", type=int, default=16, help="samples of each that are rolled out")
    parser.add_argument("--maps", type=int, default=24, help="whole maps of each, for each of four numbers of handles")
    args = parser.parse_args()

    runs = [(variant, seed) for seed in args.seeds for variant in args.variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        models = list(pool.map(lambda run: train(*run, args), runs))
    torch.set_num_threads(max(args.jobs, 1))
    settings = EvaluationSettings(samples=args.samples, rollouts=args.rollouts, maps=args.maps)
    sources = {name: MotionShards(folder, "val") for name, folder in short_names(args.evaluate).items()}
    predictors = {
        f"{variant}, seed {seed}": MotionPredictorModel.from_pretrained(model).eval()
        for (variant, seed), model in zip(runs, models, strict=True)
    }
    results = evaluate(predictors, sources, settings)
    table = "\n".join(format_source(name, source, args.variants) for name, source in results["sources"].items())
    for name, text in (("ablation.json", json.dumps(results, indent=2) + "\n"), ("ablation.md", table)):
        with atomic_file(args.out / name) as file:
            file.write(text.encode())
    print(table)


def train(variant: str, seed: int, args: argparse.Namespace) -> Path:
    """Train one variant, in a process of its own, and return the folder of its model."""
    out = args.out / f"{variant.replace(',', '').replace(' ', '-')}-{seed}"
    model = out / "motion_predictor"
    if model.exists():
        return model
    data = "".join(
        f"  - {{folder: {folder}, weight: {weight}}}\n"
        for folder, _, weight in ((t if ":" in t else f"{t}:1").rpartition(":") for t in args.train)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    config = args.out / f"{out.name}.yaml"
    config.write_text(
        f"out: {out}\ndata:\n{data}network: {NETWORK % args.size}\nsteps: {args.steps}\nseed: {seed}\n"
        "learning_rate: 2.0e-3\nema_decay: 0.998\nworkers: 0\nvalidate_every: 0\n"
    )
    command = [sys.executable, "-m", "dynadrag_pipeline", "train-motion-predictor", str(config), *VARIANTS[variant]]
    with (args.out / f"{out.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(f"trained {out.name}", flush=True)
    return model


def format_source(name: str, source: dict[str, Any], variants: list[str]) -> str:
    """One dataset as a table: mean over seeds, and half of the range between them."""
    maps, bends = source["maps"], source["maps"]["curves"]
    titles = [f"{what}, {handles} handles" for what in ("one shot", "rolled out") for handles in HANDLES]
    lines = [
        f"## {name}\n",
        f"{maps['samples']} whole maps: error over what moves as a share of the spline's. Sagittas: correlation.\n",
        f"| | {' | '.join(titles)} | 8-24 px from one handle: share, cosine | sagittas | wrong ways | arrive |",
        "| --- | " + "---: | " * (len(titles) + 4),
    ]
    for variant in variants:
        names = [each for each in source["steps"]["all"]["steps"] if each.startswith(f"{variant}, seed")]
        known = maps["whole"]["all"]["all"]["maps"]
        ways = [[kind.format(each) for each in names if kind.format(each) in known] for kind in KINDS]
        lines.append(
            _row(
                variant if variant in RECIPES else f"dense, but: {variant}",
                [[_of_spline(maps, way, handles) for way in kind] for kind in ways for handles in HANDLES],
                [_near(maps, way) for way in ways[0] or ways[1]],
                [bends[each].get("correlation") for each in names],
                [source["steps"]["agreeing"]["steps"][each]["wrong_way_rate"] for each in names],
                [source["rollouts"][each][ROLLOUT]["arrived_samples"] for each in names],
            )
        )
    for reference in REFERENCES:
        shares = [[_of_spline(maps, reference, handles)] for handles in HANDLES]
        lines.append(_row(reference, [*shares, [], []], [_near(maps, reference)], [], [], []))
    return "\n".join(lines) + "\n"


def _of_spline(maps: dict[str, Any], way: str, handles: str) -> float:
    return float(maps["whole"][handles]["all"]["maps"][way]["of_spline"])


def _near(maps: dict[str, Any], way: str) -> tuple[float, float]:
    """Size and cosine of the predicted motion 8 to 24 px from a single handle."""
    figures = maps["whole"]["1"]["8-24"]["maps"][way]
    return figures["size"], figures["cosine"]


def _row(
    title: str,
    errors: list[list[float]],
    near: list[tuple[float, float]],
    sagittas: list[float | None],
    wrong: list[float],
    arrived: list[float],
) -> str:
    cells = [_mean(values, "{:.2f}") for values in errors]
    cells.append(", ".join(_mean(list(values), "{:.2f}") for values in zip(*near, strict=True)))
    cells.append(_mean([value for value in sagittas if value is not None], "{:+.2f}"))
    cells += [_mean(values, "{:.1%}") for values in (wrong, arrived)]
    return f"| {title} | {' | '.join(cells)} |"


def _mean(values: list[float], form: str) -> str:
    """The mean, and half the range where there are several."""
    if not values:
        return ""
    text = form.format(np.mean(values))
    return text if len(values) == 1 else f"{text} ± {form.format(np.ptp(values) / 2).lstrip('+')}"


if __name__ == "__main__":
    main()
