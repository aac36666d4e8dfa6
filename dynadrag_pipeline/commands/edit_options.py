"""The options of `dynadrag edit`, and what their values may be."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motion_predictor.common.checks import check_whole_number
from motion_predictor.common.options import add_options
from motion_predictor.common.output_folder import folder_of

from ..motion.names import MOTION_NAMES
from ..settings import PRESETS, DragSettings, settings_in_force
from .edit_model import settings_of_model

LARGEST_SEED = 2**63 - 1


def add_edit_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add all options of an edit; the help shows the defaults of the model and the preset that `argv` names."""
    add_point_options(parser)
    _add_model_options(parser)
    _add_output_options(parser)
    add_options(parser, DragSettings, _defaults_in_force(argv))


def _defaults_in_force(argv: Sequence[str]) -> dict[str, Any]:
    """What options come to if they are not given, with the model and the preset of a command line."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    known.add_argument("--model")
    known.add_argument("--preset", choices=tuple(PRESETS))
    try:
        said, _ = known.parse_known_args([each for each in argv if each not in ("-h", "--help")])
        return vars(settings_in_force({}, None, said.preset, settings_of_model(said.model)).settings)
    except (argparse.ArgumentError, ValueError):  # the parser proper says what is wrong
        return {}


def add_point_options(parser: argparse.ArgumentParser) -> None:
    """Add the picture, and what says where its content goes."""
    group = parser.add_argument_group(
        "picture and points", "Points are X,Y in pixels of the picture, from 0,0 in its upper left corner."
    )
    group.add_argument("image", metavar="IMAGE", type=Path, help="the picture; its EXIF rotation is respected")
    group.add_argument(
        "--handle", metavar="X,Y", type=_point, action="append", default=[], help="what to move; may be repeated"
    )
    group.add_argument(
        "--target",
        metavar="X,Y",
        type=_point,
        action="append",
        default=[],
        help="where to move it: the first target belongs to the first handle, and so on",
    )
    group.add_argument(
        "--instruction",
        metavar="FILE",
        type=Path,
        help="instead of --handle and --target: a JSON file in DragBench's layout, "
        '{"points": [handle, target, handle, target, ...], "prompt": "..."} with each point as [x, y]',
    )
    group.add_argument(
        "--mask",
        metavar="FILE",
        type=Path,
        help="a picture that is white where the edit may change something, black elsewhere (default: everywhere)",
    )
    group.add_argument(
        "--motion",
        choices=tuple(MOTION_NAMES),
        help=f"where handles go next: {'; '.join(f'`{name}` {text}' for name, text in MOTION_NAMES.items())} "
        "(default: predicted if the model has a predictor, else straight)",
    )
    group.add_argument(
        "--path",
        metavar="X,Y[;X,Y...]",
        type=_path,
        action="append",
        default=[],
        help="points that a handle passes on its way to its target; one --path for each --handle, `straight` for none",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="what the picture shows (default: that of the instruction file, or empty)"
    )


def add_loading_options(group: argparse._ArgumentGroup) -> None:
    """Add which model is loaded, and how: for every command that edits."""
    group.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="folder or Hub id of a Stable Diffusion 1.x or 2.x model, or folder of one saved by DynaDragPipeline "
        "(default: the small portrait model that comes with the package)",
    )
    group.add_argument(
        "--motion-predictor",
        metavar="DIR_OR_ID",
        help="folder or Hub id of a motion predictor, in place of the model's own; `embedded` is the one that comes "
        "with the package (default: the model's own, if it has one)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default: auto, the first of cuda, mps and cpu that is there)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="number format of the model; the 16-bit ones take half the memory, and far less time on a GPU (default: "
        "auto, float16 on cuda and float32 elsewhere)",
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="keep models off the GPU while they don't run, and compute activations twice instead of keeping them: "
        "less memory, slower, the same picture",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add_loading_options(group)
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="options by name, in place of those that the model recommends: `paper` is the paper to the letter, "
        "`fast` trades quality for time, `carry` goes beyond the paper",
    )
    group.add_argument(
        "--settings",
        metavar="FILE",
        type=Path,
        help="a JSON file with options, as the `settings` of a result.json or as an object of names and values; "
        "options that are given go before it",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=_seed,
        default=0,
        help="the same seed on the same device, with the same versions, gives the same picture (default: 0)",
    )
    group.add_argument(
        "--preview-vae",
        metavar="DIR_OR_ID",
        help="a small autoencoder (AutoencoderTiny) for the pictures of --preview-steps (default: the model's own)",
    )
    group.add_argument(
        "--cross-attention-kwargs",
        metavar="JSON",
        type=_json_object,
        help="for the attention processors, such as '{\"scale\": 0.8}', which weighs LoRAs that the model has loaded",
    )
    group.add_argument(
        "--load-identity-lora",
        metavar="DIR",
        type=Path,
        help="use the identity LoRA of an earlier edit of this picture instead of training one",
    )
    group.add_argument(
        "--save-identity-lora", metavar="DIR", type=Path, help="keep the identity LoRA of this edit for later ones"
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        type=folder_of,
        default=Path("dynadrag-out"),
        help="folder for the results, made if it is not there (default: dynadrag-out)",
    )
    group.add_argument("--gif", action="store_true", help="also write the intermediate pictures as a GIF")
    group.add_argument("--force", action="store_true", help="overwrite results that are already there")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def _seed(text: str) -> int:
    try:
        return check_whole_number("--seed", int(text), least=0, most=LARGEST_SEED)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a seed is a whole number from 0 to {LARGEST_SEED}; got '{text[:40]}'"
        ) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is wanted, such as '{{\"scale\": 0.8}}'; got '{text[:40]}'")
    return content


def _path(text: str) -> list[tuple[float, float]] | None:
    return None if text == "straight" else [_point(corner) for corner in text.split(";")]


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a point is X,Y, two numbers with a comma and no space between, such as 120,85; got '{text[:40]}'"
        ) from None
    if not (math.isfinite(x) and math.isfinite(y) and x >= 0 and y >= 0):
        raise argparse.ArgumentTypeError(
            f"a point lies inside the picture, so X and Y are 0 or more; got '{text[:40]}'"
        )
    return x, y


def negative_points_joined(argv: Sequence[str]) -> list[str]:
    """Turn `--handle -3,5` into `--handle=-3,5`: argparse takes the value alone for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--handle", "--target") and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
