"""`dynadrag evaluate`: edits by several methods, all else equal, judged by pairs whose true outcome is known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motion_predictor.common.checks import check_choice
from motion_predictor.common.command_errors import CommandError, errors_as_one_line, one_line
from motion_predictor.common.options import add_options, given_options
from motion_predictor.common.output_folder import folder_of

from ..settings import PRESETS, DragSettings
from .build_pairs import count_of
from .edit_model import available_device, load_pipeline

if TYPE_CHECKING:
    from ..evaluation.methods import Method
    from ..evaluation.metrics import Metrics
    from ..evaluation.pairs import EvaluationPair
    from ..evaluation.records import Record
    from ..evaluation.run import EvaluationRun
    from ..pipeline_dynadrag import DynaDragPipeline

EXAMPLES = """\
examples:
  The frameworks of the paper's Fig. 1 on the same engine. The model that comes with the package carries the latent,
  all the way at once, which asks no framework for steps; without that, they move content by gradients:

    dynadrag evaluate pairs/portraits --methods "no edit" straight track search predicted \\
        --carry none --settle-iterations 1 --out runs/frameworks

  All methods, on four processes; press Ctrl-C at any time, and start the same command again to go on:

    torchrun --nproc-per-node 4 -m dynadrag_pipeline evaluate pairs/portraits --carry none \\
        --settle-iterations 1 --out runs/all

  Rows of your own, such as `{"carried once": {"motion": "straight", "carry": "once", "settle_iterations": 0},
  "half as far": {"inversion_strength": 0.5}}`, beside a method that has a name:

    dynadrag evaluate pairs/portraits --methods straight --rows rows.yaml --baseline straight --out runs/rows

  DragBench, whose pickles are read without being run (by --judge own, figures are of this run alone):

    dynadrag convert benchmark drag_bench_data
    dynadrag evaluate drag_bench_data --judge own --drag-back --methods "no edit" one-step predicted --out runs/bench

what is written to --out:
  evaluation.md        means, and differences to the baseline pair by pair, with intervals
  evaluation.png       the best, the median and the worst pair of the baseline
  paths.png            the paths of their handles, by method (Fig. 5)
  distances.png        how far content is from its targets, by method, with intervals
  records.*.jsonl      a line for each pair and method, with its path and its content
  figures.*.jsonl      a line for each number that a picture was measured by
  pictures/METHOD/     the edits
"""


def add_evaluate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the parser of `dynadrag`."""
    from ..evaluation.method_names import METHOD_NAMES

    parser = commands.add_parser(
        "evaluate",
        usage="dynadrag evaluate PAIRS --out DIR [options]",
        help="edit pairs whose true outcome is known by several methods, and compare",
        description="Edit pairs of `dynadrag build-pairs` by several sources of motion, with all else equal, and\n"
        "measure what came out against the true outcome.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "pairs",
        metavar="PAIRS",
        type=Path,
        help="a set of pairs, or a benchmark without true outcomes, in the layout of DragBench or Drag100",
    )
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="folder of the run")
    parser.add_argument(
        "--methods",
        metavar="METHOD",
        nargs="+",
        choices=METHOD_NAMES,
        help=f"of {', '.join(METHOD_NAMES)} (default: all, of which `true motion` only where it is known of all "
        "pairs; or none beside --rows)",
    )
    parser.add_argument(
        "--rows",
        metavar="FILE",
        type=Path,
        help="rows of your own, after those of --methods: a YAML or JSON file that maps the name of each to options "
        "of its edits, with `motion` (one of those of `edit`, or `true motion`), `motion_predictor` (`own`, "
        "`embedded`, or the folder or Hub id of one) and `preset` among them",
    )
    parser.add_argument(
        "--baseline", metavar="ROW", help="the method or row that others are compared with (default: the last one)"
    )
    parser.add_argument("--limit", metavar="N", type=count_of, help="the first so many pairs (default: all)")
    parser.add_argument("--model", metavar="DIR_OR_ID", help="as for `edit` (default: the model of the package)")
    parser.add_argument(
        "--motion-predictor", metavar="DIR_OR_ID", help="as for `edit` (default: the model's own, if it has one)"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="options by name, as for `edit`")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--clip", metavar="DIR_OR_ID", help="the CLIP model that pictures are compared by")
    parser.add_argument("--dino", metavar="DIR_OR_ID", help="compare them by this DINO or DINOv2 as well")
    parser.add_argument(
        "--judge",
        metavar="DIR_OR_ID",
        help="the Stable Diffusion by whose features mean distances (MD) are measured, in three protocols; `own` is "
        "the UNet that edits (default: Stable Diffusion 2.1 for benchmarks, nobody where outcomes are known)",
    )
    parser.add_argument(
        "--drag-back",
        action="store_true",
        help="edit each result back, from targets to handles, and compare with the source: twice the time",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars of models and edits")
    add_options(parser, DragSettings)
    parser.set_defaults(run=_evaluate, low_memory=False, load_identity_lora=None)


def _evaluate(args: argparse.Namespace, written: list[Path]) -> None:
    settings: dict[str, Any] = given_options(args, DragSettings)
    args.device = _own_device(available_device(args.device))
    with errors_as_one_line():
        try:
            from ..evaluation.perceptual import LearnedPerceptualDistance
            from ..evaluation.plots import paths_figure  # noqa: F401 - whether what it needs is there, before any work
            from ..evaluation.run import EvaluationRun

            rows = _rows(args)
        except ModuleNotFoundError as error:
            raise CommandError(f"this needs {error.name}: pip install 'dynadrag[evaluation]'.") from error
        pairs = _pairs(args)
        methods = [*_named(args, rows, pairs), *rows]
        names = [method.name for method in methods]
        baseline = names[-1] if args.baseline is None else check_choice("--baseline", args.baseline, names)
        back = LearnedPerceptualDistance("alexnet", args.device) if args.drag_back else None
    pipe = load_pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    metrics = _metrics(args, pairs, pipe)
    with errors_as_one_line():
        run = EvaluationRun(pipe, args.out, metrics, settings, args.preset, back)
        run.prepare(pairs, methods)
        written.append(args.out)
        records = run(pairs, methods)
    from motion_predictor.data.dataset_folder import build_processes

    if build_processes().is_main_process:
        with errors_as_one_line():
            _write_report(run, pairs, methods, records, baseline, args.device)


def _own_device(device: str) -> str:
    """The device of this process: each of several has a GPU of its own."""
    import torch

    from motion_predictor.data.dataset_folder import build_processes

    processes = build_processes()
    if device != "cuda" or processes.num_processes == 1:
        return device
    return f"cuda:{processes.local_process_index % torch.cuda.device_count()}"


def _pairs(args: argparse.Namespace) -> list[EvaluationPair]:
    """A set of pairs, or the pictures of a benchmark."""
    from ..evaluation.dragbench import load_benchmark
    from ..evaluation.pairs import holds_pairs, load_pairs

    if holds_pairs(args.pairs):
        return load_pairs(args.pairs, args.limit)
    return list(load_benchmark(args.pairs, args.limit))


def _metrics(args: argparse.Namespace, pairs: list[EvaluationPair], pipe: DynaDragPipeline) -> Metrics:
    """What these pairs can be measured by."""
    from ..evaluation.judge import DEFAULT_JUDGE, distance_metrics
    from ..evaluation.metrics import DEFAULT_CLIP, Metrics, picture_metrics

    has_targets = _have_targets(pairs)
    wanted = picture_metrics(args.clip or DEFAULT_CLIP, args.device, args.dino)
    wanted = {name: metric for name, metric in wanted.items() if has_targets or not metric.needs_target}
    judge = args.judge or (None if has_targets else DEFAULT_JUDGE)
    return Metrics({**wanted, **({} if judge is None else distance_metrics(judge, pipe, args.device))})


def _have_targets(pairs: list[EvaluationPair]) -> bool:
    return all(pair.target is not None for pair in pairs)


def _write_report(
    run: EvaluationRun,
    pairs: list[EvaluationPair],
    methods: list[Method],
    records: list[Record],
    baseline: str,
    device: str,
) -> None:
    """Tables and figures of a run, beside its pictures; the tables are printed too."""
    from motion_predictor.common.atomic_file import atomic_file

    from ..evaluation.plots import distances_figure, paths_figure
    from ..evaluation.report import best_median_worst, edits_sheet, format_tables

    names = [method.name for method in methods]
    table = format_tables(records, run.metrics, baseline)
    if _have_targets(pairs):
        table += _set_table(pairs, names, run, device)
    table += "".join(f"\n{line}" for line in _described(methods, run))
    by_name = {pair.name: pair for pair in pairs}
    shown = [by_name[name] for name in best_median_worst(records, baseline)]
    with atomic_file(run.folder / "evaluation.md") as file:
        file.write(table.encode())
    with atomic_file(run.folder / "evaluation.png") as file:
        edits_sheet(shown, names, run.picture).save(file, "PNG")
    with atomic_file(run.folder / "distances.png") as file:
        distances_figure(records).savefig(file, format="png", dpi=150)
    with atomic_file(run.folder / "paths.png") as file:
        paths_figure(shown, records, names).savefig(file, format="png", dpi=150)
    print(table)


def _set_table(pairs: list[EvaluationPair], names: list[str], run: EvaluationRun, device: str) -> str:
    """FID and KID of the methods, or why they can't be had."""
    from ..evaluation.report import format_set_table
    from ..evaluation.set_metrics import InceptionDistances

    targets = [pair.outcome for pair in pairs]
    if len(targets) < 2:
        return "FID, KID: not measured: a set is two pictures or more.\n"
    try:
        measure = InceptionDistances(device)
        distances = {name: measure([run.picture(name, pair.name) for pair in pairs], targets) for name in names}
    except Exception as error:  # whatever packages, downloads and devices raise
        return f"FID, KID: not measured: {one_line(error, 300)}\n"
    return format_set_table(distances, len(targets), measure.protocol)


def _rows(args: argparse.Namespace) -> list[Method]:
    """Those of a file."""
    if args.rows is None:
        return []
    from ..evaluation.rows import load_rows

    return load_rows(args.rows)


def _named(args: argparse.Namespace, rows: list[Method], pairs: list[EvaluationPair]) -> list[Method]:
    """The methods that have a name; by default all that can be run, or none beside rows."""
    from ..evaluation.method_names import METHOD_NAMES, TRUE_MOTION
    from ..evaluation.methods import METHODS

    if args.methods or rows:
        return [METHODS[name] for name in args.methods or []]
    is_known = all(pair.has_flow for pair in pairs)
    return [METHODS[name] for name in METHOD_NAMES if is_known or name != TRUE_MOTION]


def _described(methods: list[Method], run: EvaluationRun) -> list[str]:
    """A line for what holds for all edits, and for each method that says more than how it is called."""
    from ..evaluation.method_names import METHOD_NAMES
    from ..evaluation.methods import SOURCES_WITH_NUMBERS

    lines = []
    if run.preset or run.settings:
        lines.append(f"All edits: {json.dumps({'preset': run.preset, **run.settings})}.\n")
    rivals = [method for method in methods if method.motion in SOURCES_WITH_NUMBERS]
    unasked = [method.name for method in rivals if run.in_force(method).settings.carry == "once"]
    if unasked:
        lines.append(f"{', '.join(unasked)}: as straight, since `carry` is 'once', which asks for no steps.\n")
    for method in methods:
        said: dict[str, Any] = {**method.said(), **method.options}
        empty = {"options", *(name for name in said if said[name] in ({}, None) or said[name] is False)}
        told = {name: value for name, value in said.items() if name not in empty or name in method.options}
        if method.name in METHOD_NAMES and not method.options:
            continue
        if method.motion not in (None, "predicted"):
            del told["motion_predictor"]
        lines.append(f"{method.name}: {json.dumps(told)}.\n")
    return lines
