"""The commands of the motion predictor: `dynadrag train-motion-predictor` and its neighbours.

What needs torch is imported when a command runs, so that help is answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .common.checks import got
from .common.command_errors import CommandError, errors_as_one_line
from .common.options import add_options, given_options
from .common.output_folder import folder_of

BUILD_EXAMPLES = """\
examples:
  All videos of a folder; press Ctrl-C at any time, and start the same command again to go on:

    dynadrag build-dataset talks/ --out data/talks

  As the paper does for faces, on four processes, with UniMatch and a face-parsing model:

    torchrun --nproc-per-node 4 -m dynadrag_pipeline build-dataset faces/ --out data/faces \\
        --flow unimatch --flow-checkpoint gmflow-scale2-regrefine6-mixdata.pth \\
        --region face-parsing --region-model jonathandinu/face-parsing

what is written to --out:
  train/VIDEO.tar, val/VIDEO.tar   shards that webdataset reads, one for each video
  videos/VIDEO.json                what became of each video
  statistics.md, .json, .png       what the motion is like, and how many labels lead away from their targets
"""

PORTRAITS_EXAMPLES = """\
examples:
  Two collections, each a folder or a zip archive with its landmarks; of the second, 60 faces are held out:

    dynadrag build-portraits portraits.zip --landmarks portraits.npz --out data/portraits
    dynadrag build-portraits faces/ --landmarks faces.npz --hold-out --motions-per-portrait 6 --out data/faces

  Faces of any size and anywhere, turned up to 40 degrees to a side, so that parts are hidden; split by people:

    dynadrag build-portraits faces.zip --landmarks faces.npz --people meta.json --held-out held_out.txt \\
        --smallest-face 0.2 --largest-turn 40 --out data/turning

  Animals, or whatever else: the subject sways, and soft parts of it turn and are dragged:

    dynadrag build-portraits animals.zip --motions-per-portrait 12 --out data/animals

landmarks are an npz file with `files` and one or both of the others:
  files      [N]          names of pictures, without folders
  landmarks  [N, 478, 3]  vertices of MediaPipe's face mesh: x and y as fractions of the side, z in the same scale
  pose       [N, 33, 4]   joints of MediaPipe's pose, alike, and how visible each is: body and arms move, too

what is written to --out is as for `build-dataset`, with a shard for each portrait.
"""

TRAIN_EXAMPLES = """\
a run is a YAML file; what it leaves out has a default:

    preset: robust                # or `paper`: one-frame labels, a delta on one pixel, plain MSE (Eq. 1)
    out: runs/predictor
    data:
      - {folder: data/clips, weight: 0.3}
      - {folder: data/portraits, weight: 0.7}
    network: {hidden_channels_spatial: 16, hidden_channels_translator: 96, num_translator_blocks: 2, sample_size: 128}
    steps: 20000

examples:
  Train; press Ctrl-C at any time, and start the same command again to go on where it was:

    dynadrag train-motion-predictor predictor.yaml

  The same with other values, on two GPUs, watched by tensorboard:

    accelerate launch --num_processes 2 -m dynadrag_pipeline train-motion-predictor predictor.yaml \\
        out=runs/short samples.horizon=5 mixed_precision=bf16
    tensorboard --logdir runs/short
"""


EVALUATE_EXAMPLES = """\
examples:
  Two training runs side by side, on two datasets; each is a kind of content, named by its folder:

    dynadrag evaluate-motion-predictor --model runs/paper runs/robust --data data/talks data/portraits --out compared

  Whole maps above all, and few of the rest:

    dynadrag evaluate-motion-predictor --model runs/robust --data data/faces data/hands --out maps \\
        --samples 64 --rollouts 8 --maps 128

what is written to --out:
  evaluation.md, .json      errors and wrong ways by dataset and distance, beside straight steps; rollouts; whole
                            maps by number of handles and distance from them, beside a spline; paths that bend
  evaluation.png            errors at the handles, and rollouts, as curves
  trajectories-DATASET.png  predicted paths over the true ones, on the pictures
  flows-DATASET.png         where everything goes, in colours: the best, the middle and the worst sample
"""


def add_motion_predictor_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this package to the parser of `dynadrag`."""
    _add_build_command(commands)
    _add_portraits_command(commands)
    _add_train_command(commands)
    _add_evaluate_command(commands)


def _add_build_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .data.build_settings import BuildSettings

    parser = commands.add_parser(
        "build-dataset",
        usage="dynadrag build-dataset VIDEOS [VIDEOS ...] --out DIR [options]",
        help="turn videos into a dataset that motion predictors are trained on",
        description="Turn videos into motion records (Sec. 3.2.1 and 8): optical flow, an editing region, and the\n"
        "tracks of points in it. Nothing is rasterised: handles, end frames and maps are drawn anew in training.\n"
        "Videos that are broken, too short or still are skipped and named.",
        epilog=BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "videos", metavar="VIDEOS", nargs="+", type=Path, help="files, and folders, which are searched recursively"
    )
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="folder of the dataset")
    add_options(parser, BuildSettings)
    parser.set_defaults(run=_build)


def _build(args: argparse.Namespace, written: list[Path]) -> None:
    with errors_as_one_line(), _training_packages():
        from .data.build_dataset import build_dataset
        from .data.build_settings import BuildSettings
        from .data.statistics import save_statistics

        settings = BuildSettings(**given_options(args, BuildSettings))
        with _kept_when_stopped(args.out, written):
            summary = build_dataset(args.videos, args.out, settings)
        if summary is not None:
            _check_not_empty(sum(outcome.get("records", 0) for outcome in summary.outcomes.values()), args.out)
            print(save_statistics(args.out))
            written.append(args.out)


def _check_not_empty(records: int, out: Path) -> None:
    """A dataset without a record is of no use to anybody: say so before a training run does."""
    if records == 0:
        raise CommandError(f"not a single record came of this; the files in {out / 'videos'} say why.")


@contextmanager
def _kept_when_stopped(folder: Path, written: list[Path]) -> Iterator[None]:
    """What is in the folder when Ctrl-C comes stays there, and the same command goes on from it."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.exists():
            written.append(folder)
        raise


def _add_portraits_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .data.portrait_settings import PortraitSettings

    parser = commands.add_parser(
        "build-portraits",
        usage="dynadrag build-portraits PICTURES [--landmarks FILE] --out DIR [options]",
        help="set still portraits in motion, as a dataset with exact labels",
        description="Set still portraits in motion: heads turn, tilt and shift, faces change their expression,\n"
        "bodies sway and arms bend. The motion is a formula, so that every label is exact. Pictures that the file of\n"
        "landmarks does not name are left out.",
        epilog=PORTRAITS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("pictures", metavar="PICTURES", type=Path, help="a folder or a zip archive of square pictures")
    parser.add_argument(
        "--landmarks", metavar="FILE", type=Path, help="npz file, see below; without it, pictures may have any shape"
    )
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="folder of the dataset")
    parser.add_argument(
        "--hold-out", action="store_true", help="keep the 60 pictures whose names have the smallest SHA-256 for `val`"
    )
    parser.add_argument(
        "--people",
        metavar="FILE",
        type=Path,
        help="JSON list of objects with `file` and `person`: all pictures of a person are on one side of the split",
    )
    parser.add_argument(
        "--held-out", metavar="FILE", type=Path, help="names of pictures or people for `val`, one in a line"
    )
    add_options(parser, PortraitSettings)
    parser.set_defaults(run=_build_portraits)


def _build_portraits(args: argparse.Namespace, written: list[Path]) -> None:
    with errors_as_one_line(), _training_packages():
        from .data.build_portraits import build_portraits
        from .data.portrait_settings import PortraitSettings
        from .data.portraits import PortraitSource
        from .data.statistics import save_statistics

        settings = PortraitSettings(**given_options(args, PortraitSettings))
        source = PortraitSource(args.pictures, args.landmarks, args.hold_out, args.people, args.held_out)
        with _kept_when_stopped(args.out, written):
            counts = build_portraits([source], args.out, settings)
        if counts is not None:
            _check_not_empty(counts["records"], args.out)
            print(", ".join(f"{count} {what}" for what, count in counts.items()))
            print(save_statistics(args.out))
            written.append(args.out)


def _add_train_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train-motion-predictor",
        help="train a motion predictor on datasets of `build-dataset`",
        description="Train a motion predictor (Eq. 1) on one process or on many: by `accelerate launch`, and without\n"
        "GPUs by `torchrun --nproc-per-node N -m dynadrag_pipeline train-motion-predictor CONFIG.yaml`. Runs are\n"
        "resumable: one that was interrupted ends with the same weights as one that ran through.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="the run; all keys: `TrainingConfig`")
    parser.add_argument(
        "changes", metavar="KEY=VALUE", nargs="*", help="values that go before the file's, such as `steps=200`"
    )
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace, written: list[Path]) -> None:
    unequal = [change for change in args.changes if "=" not in change]
    if unequal:
        raise CommandError(f"`KEY=VALUE` must be such as steps=200, got {got(unequal[0])}.")
    with errors_as_one_line(), _training_packages():
        from .training import train_motion_predictor
        from .training_config import load_training_config

        config = load_training_config(args.config, args.changes)
        try:
            folder = train_motion_predictor(config)
        except KeyboardInterrupt:
            written += sorted(Path(config.out).glob("checkpoint-*[0-9]"))
            raise
    written.append(folder)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"wrote {folder}")


def _add_evaluate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .evaluation.settings import EvaluationSettings

    parser = commands.add_parser(
        "evaluate-motion-predictor",
        usage="dynadrag evaluate-motion-predictor --model DIR_OR_ID [...] --data DIR [...] --out DIR [options]",
        help="measure how well motion predictors predict",
        description="Measure motion predictors on datasets whose motion is known: single steps beside zero flow,\n"
        "straight steps and the best linear step; rollouts of all 25 steps of an edit; and the motion of everything\n"
        "beside a spline through the same points.",
        epilog=EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        nargs="+",
        required=True,
        help="folders of motion predictors, of training runs or of pipelines, or names on the Hugging Face Hub",
    )
    parser.add_argument("--data", metavar="DIR", nargs="+", type=Path, required=True, help="datasets to judge by")
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="folder for figures and pictures")
    add_options(parser, EvaluationSettings)
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, written: list[Path]) -> None:
    with errors_as_one_line(), _training_packages():
        from .evaluation.evaluate import evaluate_motion_predictor
        from .evaluation.report import format_table
        from .evaluation.settings import EvaluationSettings

        settings = EvaluationSettings(**given_options(args, EvaluationSettings))
        results = evaluate_motion_predictor(args.model, args.data, args.out, settings)
    written.append(args.out)
    print(format_table(results))
    print(f"wrote {args.out}")


@contextmanager
def _training_packages() -> Iterator[None]:
    """Say which extra to install when one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"the package `{error.name}` is not installed: pip install 'dynadrag[training]'."
        ) from error
