"""Train the motion predictor by the paper's recipe, by the robust one, and without each of its parts, and compare.

python benchmarks/motion_prediction.py --train data/portraits:0.7 data/clips:0.3 \\
    --evaluate data/portraits data/others --out runs/ablation --seeds 0 1 --jobs 2

Every variant has the same data, network, steps and seeds. Runs that are finished are not repeated, and one that was
interrupted goes on, so the same command may be started again. Writes `ablation.md` and `ablation.json` to `--out`.
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
from motion_predictor.evaluation.settings import EvaluationSettings

# What each variant changes.
VARIANTS: dict[str, list[str]] = {
    "paper": ["preset=paper"],
    "robust": ["preset=robust"],
    "one-frame labels": ["preset=robust", "samples.horizon=0"],
    "all labels": ["preset=robust", "samples.min_cosine=-1"],
    "delta on one pixel": ["preset=robust", "network.delta_paint=pixel", "network.straight_share=0"],
    "absolute flow": ["preset=robust", "network.straight_share=0"],
    "handles not weighed": ["preset=robust", "loss.handle_weight=0"],
    "absolute, squared error": ["preset=robust", "loss.relative=false", "loss.error=squared"],
}
NETWORK = "{hidden_channels_spatial: 16, hidden_channels_translator: 96, num_translator_blocks: 2, sample_size: %d}"
ROLLOUT = "picture stays"  # and no guard: what the network itself does


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
    parser.add_argument("--samples", type=int, default=256, help="samples of each dataset that are evaluated")
    parser.add_argument("--rollouts", type=int, default=24, help="samples of each that are rolled out")
    args = parser.parse_args()

    runs = [(variant, seed) for seed in args.seeds for variant in args.variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        models = list(pool.map(lambda run: train(*run, args), runs))
    torch.set_num_threads(max(args.jobs, 1))
    settings = EvaluationSettings(samples=args.samples, rollouts=args.rollouts)
    sources = {name: MotionShards(folder, "val") for name, folder in short_names(args.evaluate).items()}
    predictors = {
        f"{variant}, seed {seed}": MotionPredictorModel.from_pretrained(model).eval().predict_flow
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
    steps, agreeing, rollouts = source["steps"]["all"], source["steps"]["agreeing"], source["rollouts"]
    lines = [
        f"## {name}\n",
        f"{source['handles']} handles, {agreeing['handles']} of them with a label that leads towards the target.\n",
        "| | error where labels agree, px | error of all, px | wrong ways | samples that arrive "
        "| displacement that remains |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]

    def row(title: str, names: list[str], rollout: str) -> str:
        columns = [
            ([agreeing["steps"][n]["endpoint_error"] for n in names], "{:.3f} ± {:.3f}"),
            ([steps["steps"][n]["endpoint_error"] for n in names], "{:.3f} ± {:.3f}"),
            ([agreeing["steps"][n]["wrong_way_rate"] for n in names], "{:.1%} ± {:.1%}"),
            ([rollouts[n][rollout]["arrived_samples"] for n in names if n in rollouts], "{:.1%} ± {:.1%}"),
            ([rollouts[n][rollout]["remaining"] for n in names if n in rollouts], "{:.1%} ± {:.1%}"),
        ]
        cells = [text.format(np.mean(values), np.ptp(values) / 2) if values else "" for values, text in columns]
        if len(names) == 1:
            cells = [cell.split(" ±")[0] for cell in cells]
        return f"| {title} | {' | '.join(cells)} |"

    for variant in variants:
        title = variant if variant in ("paper", "robust") else f"robust, but: {variant}"
        lines.append(
            row(title, [n for n in source["steps"]["all"]["steps"] if n.startswith(f"{variant}, seed")], ROLLOUT)
        )
    lines += [row(title, [title], "any picture") for title in ("zero flow", "displacement / 10", "best linear")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
