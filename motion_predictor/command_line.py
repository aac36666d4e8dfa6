"""The commands of the motion predictor: `dynadrag train-motion-predictor` and its neighbours.

What needs torch is imported when a command runs, so that help is answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


class CommandError(Exception):
    """What the user can put right; shown as one line, without a traceback."""


def add_motion_predictor_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this package to the parser of `dynadrag`."""
    _add_train_command(commands)


def _add_train_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train-motion-predictor",
        help="train a motion predictor on datasets of `build-dataset`",
        description="Train a motion predictor (Eq. 1) on one process or, by `accelerate launch`, on many. Runs are\n"
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
        raise CommandError(f"`{unequal[0]}` is not KEY=VALUE, such as steps=200.")
    with _errors_as_one_line(), _training_packages():
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


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    """Show what the user can put right without a traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CommandError(" ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def _training_packages() -> Iterator[None]:
    """Say which extra to install when one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"the package `{error.name}` is not installed: pip install 'dynadrag[training]'."
        ) from error
