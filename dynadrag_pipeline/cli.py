"""The command line: `dynadrag edit IMAGE --handle X,Y --target X,Y`, and the commands of the other packages.

A command is a parser made by `_add_*_command` and a function that does it. What needs torch or diffusers is imported
when a command runs, so that help and mistakes in the arguments are answered at once.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from conversion.command_line import add_convert_command
from motion_predictor.command_line import add_motion_predictor_commands
from motion_predictor.common.command_errors import CommandError, one_line

from . import EMBEDDED_SETTINGS

if TYPE_CHECKING:
    from .pipeline_dynadrag import DynaDragPipeline
    from .pipeline_output import DynaDragPipelineOutput

BAD_INPUT = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Setting:
    """An option that is passed to the pipeline's call when it is given, and left to the pipeline's default otherwise.

    Attributes:
        flag (`str`): as typed on the command line.
        name (`str`): the keyword of `DynaDragPipeline.__call__`.
        kind (`type` or `tuple[str, ...]`): how to read the value, or the words that are accepted.
        default (`str`): how the pipeline's default is shown in the help.
        help (`str`): meaning, unit and source.
    """

    flag: str
    name: str
    kind: type | tuple[str, ...]
    default: str
    help: str


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "drag loop (Fig. 2)": (
        Setting("--max-iterations", "max_iterations", int, "25", "predict-and-move iterations at most (Sec. 4.2)"),
        Setting(
            "--stop-distance",
            "stop_distance",
            float,
            "4 px for a shorter side of 512, in proportion for others",
            "the edit ends when all handles are this close to their targets, in pixels of the picture",
        ),
        Setting(
            "--settle-iterations",
            "settle_iterations",
            int,
            "0",
            "iterations more once all handles are there, in which content that lags behind its handle catches up",
        ),
        Setting(
            "--motion-guard",
            "motion_guard",
            ("project", "clamp", "none"),
            "project",
            "what is done with predicted steps: `none` takes them as they are, as the paper does; `clamp` ends a step "
            "that would pass its target on it; `project` also removes what points away from the target (Sec. 11)",
        ),
        Setting(
            "--dynamic-selection",
            "dynamic_selection",
            ("all", "first", "random", "none"),
            "all",
            "when the handles worth dragging are chosen: in `all` iterations, in the `first` only, `random` ones, or "
            "`none`: drag every handle always (Sec. 3.2.2)",
        ),
        Setting(
            "--similarity-threshold",
            "similarity_threshold",
            float,
            "0.6",
            "a handle is dragged while the cosine of the features at it and at its target is below this (Sec. 3.2.2)",
        ),
    ),
    "motion supervision (Eq. 2, 3)": (
        Setting("--supervision-steps", "supervision_steps", int, "5", "gradient steps per iteration (Sec. 4.2)"),
        Setting("--supervision-lr", "supervision_lr", float, "0.01", "learning rate of Adam on the latent (Sec. 4.2)"),
        Setting(
            "--supervision-radius",
            "supervision_radius",
            int,
            "1",
            "N of the patch round a handle, 2 N + 1 wide, in pixels of a grid of half the picture's size (Eq. 2)",
        ),
        Setting(
            "--supervision-damping",
            "supervision_damping",
            float,
            "0.0",
            "keeps Adam from moving what has next to no gradient: 0 is plain Adam, 0.05 spares what is far off",
        ),
        Setting(
            "--supervision-reach",
            "supervision_reach",
            float,
            "everywhere",
            "how far from the handles' ways the picture may change, as a share of its shorter side, such as 0.2",
        ),
        Setting("--mask-weight", "mask_weight", float, "0.1", "weight of keeping what the mask protects (Eq. 2)"),
        Setting(
            "--feature-block",
            "feature_block",
            int,
            "-1",
            "up-block of the UNet whose output is compared, counted as Python indices are (Eq. 2)",
        ),
    ),
    "inversion and denoising (Sec. 3.3)": (
        Setting("--steps", "num_inference_steps", int, "50", "DDIM steps of a full inversion or denoising (Sec. 4.2)"),
        Setting(
            "--inversion-strength",
            "inversion_strength",
            float,
            "1.0",
            "share of the steps that the picture is inverted by, above 0 and up to 1; lower keeps more of the picture",
        ),
        Setting(
            "--kv-start-layer",
            "kv_start_layer",
            int,
            "the first of the last two up-blocks: 10 of 0..15 in Stable Diffusion 1.x",
            "first self-attention layer, from 0, whose keys and values are those of the source picture (Sec. 3.3)",
        ),
        Setting(
            "--processing-resolution",
            "processing_resolution",
            int,
            "the model's own",
            "shorter side in pixels that the picture is edited at, 0 for its own; the result has the input's size",
        ),
        Setting(
            "--restore-source",
            "restore_source",
            bool,
            "no",
            "take the source picture's own pixels wherever they show what the edit shows, moved or not",
        ),
    ),
    "speed and memory": (
        Setting(
            "--preview-steps",
            "preview_steps",
            int,
            "all of --steps",
            "DDIM steps for the pictures that only the motion predictor sees: a few are several times as fast; the "
            "result is always denoised in full",
        ),
        Setting(
            "--kv-placement",
            "kv_placement",
            ("auto", "device", "host"),
            "auto",
            "where the source picture's keys and values wait: on the device, in the host's memory, or wherever there "
            "is room",
        ),
    ),
    "identity LoRA (Sec. 4.2)": (
        Setting(
            "--identity-lora-steps",
            "identity_lora_steps",
            int,
            "200",
            "training steps that teach the model this picture before it is edited; 0 to skip",
        ),
        Setting("--identity-lora-rank", "identity_lora_rank", int, "16", "rank of the LoRA"),
        Setting("--identity-lora-lr", "identity_lora_lr", float, "0.0002", "learning rate of its training"),
    ),
}

EDIT_EXAMPLES = """\
examples:
  Turn a head to the right by its nose and its chin, with the model that comes with the package:

    dynadrag edit portrait.png --handle 127,160 --target 151,160 --handle 124,227 --target 144,227

  Drag a photograph by an instruction file, inside a mask, with Stable Diffusion 1.5 on a GPU, and keep a GIF:

    dynadrag edit photo.jpg --instruction turn.json --mask face.png --out turned --gif \\
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda --dtype float16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, without the program's name; by default those of the process.

    Returns:
        `int`: the exit status: 0 done, 2 bad input, 130 interrupted. `--help` and mistakes that argparse finds
        leave by `SystemExit`.

    Example:
        >>> main(["edit", "portrait.png", "--handle", "127,160", "--target", "151,160"])  # doctest: +SKIP
        0
    """
    args = build_parser().parse_args(_negative_points_joined(sys.argv[1:] if argv is None else argv))
    written: list[Path] = []
    try:
        args.run(args, written)
    except CommandError as error:
        print(f"dynadrag: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        kept = f"kept: {', '.join(map(str, written))}" if written else "nothing was written"
        print(f"\ndynadrag: interrupted; {kept}.", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Each sets `run`, which is called with the arguments and a list of files written."""
    parser = argparse.ArgumentParser(
        prog="dynadrag", description="Drag-style image editing by predict-and-move.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_edit_command(commands)
    add_motion_predictor_commands(commands)
    add_convert_command(commands)
    return parser


def _add_edit_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "edit",
        help="move content of a picture from handle points to target points",
        usage="dynadrag edit IMAGE (--handle X,Y --target X,Y ... | --instruction FILE) [options]",
        description="Move the content at each handle point of a picture to its target point. Writes the edited "
        "picture,\na contact sheet of the edit and result.json, a record of it. Sections, figures and equations "
        "are those of\nthe DynaDrag paper, arXiv 2601.00542.",
        epilog=EDIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_edit)
    _add_input_options(parser)
    _add_model_options(parser)
    _add_output_options(parser)
    for title, settings in SETTINGS.items():
        group = parser.add_argument_group(title)
        for setting in settings:
            group.add_argument(
                setting.flag,
                dest=setting.name,
                default=argparse.SUPPRESS,
                help=f"{setting.help} (default: {setting.default})",
                **_value_of(setting),
            )


def _value_of(setting: Setting) -> dict[str, Any]:
    """How argparse is told what a setting's value may be. Truths have no value, but `--no-...` beside them."""
    if setting.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(setting.kind, tuple):
        return {"choices": setting.kind}
    return {"type": setting.kind, "metavar": "N" if setting.kind is int else "VALUE"}


def _add_input_options(parser: argparse.ArgumentParser) -> None:
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
        "--prompt", metavar="TEXT", help="what the picture shows (default: that of the instruction file, or empty)"
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="folder or Hub id of a Stable Diffusion 1.x or 2.x model, or folder of one saved by DynaDragPipeline "
        "(default: the small portrait model that comes with the package, with settings that suit it where none are "
        "given)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default: auto, the first of cuda, mps and cpu that is there)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="number format of the model; the 16-bit ones take half the memory (default: float32)",
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="keep models off the GPU while they don't run, and compute activations twice instead of keeping them: "
        "less memory, slower, the same picture",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="the same seed on the same device gives the same picture, up to rounding on GPUs (default: 0)",
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
        type=Path,
        default=Path("dynadrag-out"),
        help="folder for the results, made if it is not there (default: dynadrag-out)",
    )
    group.add_argument("--gif", action="store_true", help="also write the intermediate pictures as a GIF")
    group.add_argument("--force", action="store_true", help="overwrite results that are already there")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def _edit(args: argparse.Namespace, written: list[Path]) -> None:
    """`dynadrag edit`: all that can be checked without the model is checked first, the results are written last."""
    started = time.perf_counter()
    image = _open_picture("image", args.image)
    call: dict[str, Any] = {**_instruction(args), **_settings(args)}
    if args.mask is not None:
        call["mask"] = _open_picture("--mask", args.mask)
    _check_identity_lora(args, call)
    files = _result_files(args)
    _check_results(args, files)

    args.device = _device(args.device)
    pipe = _load_pipeline(args)
    output = _run(pipe, image, call, args.seed)
    picture = cast(Image.Image, output.images[0])
    record = _record(args, pipe, call, output, picture, files)

    _write_pictures(image, picture, output, call["targets"], files, written)
    if args.save_identity_lora is not None:
        pipe.save_identity_lora(args.save_identity_lora)
        written.append(args.save_identity_lora)
    record["seconds"] = round(time.perf_counter() - started, 2)
    _write_json(record, files["record"], written)
    print(_summary(record, written))


def _instruction(args: argparse.Namespace) -> dict[str, Any]:
    """Handles, targets and prompt, from the options or from the instruction file."""
    if args.instruction is None:
        if not args.handle or len(args.handle) != len(args.target):
            raise CommandError(
                f"give as many --target as --handle, and at least one of each (or --instruction); got "
                f"{len(args.handle)} --handle and {len(args.target)} --target."
            )
        return {"handles": args.handle, "targets": args.target, "prompt": args.prompt or ""}
    if args.handle or args.target:
        raise CommandError("--instruction takes the place of --handle and --target: give one or the other.")
    from .drag_instruction import load_instruction

    try:
        instruction = load_instruction(args.instruction)
    except (OSError, ValueError) as error:
        raise CommandError(f"--instruction: {one_line(error)}") from error
    return instruction if args.prompt is None else {**instruction, "prompt": args.prompt}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of the pipeline's call that were given on the command line.

    The model that comes with the package has settings of its own, which stand where nothing else was given.
    """
    names = [setting.name for group in SETTINGS.values() for setting in group]
    given = {name: value for name, value in vars(args).items() if name in names}
    settings = given if args.model else {**EMBEDDED_SETTINGS, **given}
    if settings.get("dynamic_selection") == "none":
        settings["dynamic_selection"] = None
    return settings


def _open_picture(name: str, path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CommandError(f"{name}: cannot read a picture from `{path}`: {one_line(error)}") from error
    return picture


def _check_identity_lora(args: argparse.Namespace, call: dict[str, Any]) -> None:
    if call.get("identity_lora_steps") == 0 and (args.load_identity_lora or args.save_identity_lora):
        raise CommandError(
            "--identity-lora-steps 0 edits without an identity LoRA: leave it out to load or to save one."
        )
    if args.load_identity_lora is not None and not args.load_identity_lora.is_dir():
        raise CommandError(f"--load-identity-lora: there is no folder `{args.load_identity_lora}`.")


def _result_files(args: argparse.Namespace) -> dict[str, Path]:
    stem = args.image.stem
    files = {"picture": args.out / f"{stem}-edited.png", "sheet": args.out / f"{stem}-sheet.png"}
    if args.gif:
        files["gif"] = args.out / f"{stem}.gif"
    return {**files, "record": args.out / "result.json"}


def _check_results(args: argparse.Namespace, files: dict[str, Path]) -> None:
    """Refuse to start an edit whose results could not be kept, and make the folder for them."""
    if args.save_identity_lora is not None:
        files = {**files, "identity LoRA": args.save_identity_lora}
    existing = [str(path) for path in files.values() if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if existing and not args.force:
        raise CommandError(
            f"{', '.join(existing)} already there: pass --force to overwrite, or choose another folder."
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out: cannot make the folder `{args.out}`: {one_line(error)}") from error
    if not os.access(args.out, os.W_OK):
        raise CommandError(f"--out: no permission to write to the folder `{args.out}`.")


def _load_pipeline(args: argparse.Namespace) -> DynaDragPipeline:
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from . import EMBEDDED_CHECKPOINT, DynaDragPipeline

    model = str(EMBEDDED_CHECKPOINT) if args.model is None else args.model
    if _looks_like_folder(model) and not Path(model).expanduser().is_dir():
        raise CommandError(f"--model: there is no folder `{model}`.")
    if args.quiet:
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    try:
        folder = Path(model).expanduser()
        pipe = DynaDragPipeline.from_pretrained(
            str(folder) if folder.is_dir() else model,
            dtype=getattr(torch, args.dtype),
            safety_checker=None,  # not used, so its gigabyte is not downloaded either
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"--model: cannot load `{model}`: {one_line(error)}") from error
    if args.low_memory:
        pipe.unet.enable_gradient_checkpointing()
    if args.low_memory and args.device != "cpu":
        pipe.enable_model_cpu_offload(device=args.device)
    else:
        pipe.to(args.device)
    pipe.set_progress_bar_config(disable=args.quiet)
    if args.load_identity_lora is not None:
        try:
            pipe.load_identity_lora(args.load_identity_lora)
        except (OSError, ValueError) as error:
            raise CommandError(f"--load-identity-lora: {one_line(error)}") from error
    return pipe


def _device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        raise CommandError(f"--device: {name} is not available here; use one of auto, {', '.join(_true(available))}.")
    return name


def _true(flags: dict[str, bool]) -> list[str]:
    return [name for name, flag in flags.items() if flag]


def _looks_like_folder(model: str) -> bool:
    """Whether the value can only be a path: a Hub id is `name` or `owner/name`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


def _run(pipe: DynaDragPipeline, image: Image.Image, call: dict[str, Any], seed: int) -> DynaDragPipelineOutput:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        return pipe(image, **call, generator=generator, return_intermediates=True)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise CommandError(
            "not enough memory on the GPU: try --dtype float16, a smaller --processing-resolution, or --device cpu."
        ) from error


def _record(
    args: argparse.Namespace,
    pipe: DynaDragPipeline,
    call: dict[str, Any],
    output: DynaDragPipelineOutput,
    picture: Image.Image,
    files: dict[str, Path],
) -> dict[str, Any]:
    """What result.json holds; every number of it can be read without torch."""
    import torch

    from . import __version__

    known = [setting.name for group in SETTINGS.values() for setting in group]
    parameters = inspect.signature(type(pipe).__call__).parameters
    trajectories = torch.as_tensor(output.trajectories)
    remaining = (trajectories[-1] - torch.tensor(call["targets"], dtype=torch.float32)).norm(dim=-1)
    return {
        "dynadrag_version": __version__,
        "image": str(args.image),
        "mask": None if args.mask is None else str(args.mask),
        "model": args.model or "embedded",
        "device": args.device,
        "dtype": args.dtype,
        "seed": args.seed,
        "prompt": call["prompt"],
        "settings": {name: call.get(name, parameters[name].default) for name in known if name in parameters},
        "loaded_identity_lora": None if args.load_identity_lora is None else str(args.load_identity_lora),
        "handles": call["handles"],
        "targets": call["targets"],
        "size": {"width": picture.width, "height": picture.height},
        "motion_source": output.motion_source,
        "stop_reason": output.stop_reason,
        "mean_remaining_distance": float(remaining.mean()),
        "trajectories": trajectories.tolist(),
        "iterations": [
            {name: _number_or_list(value) for name, value in vars(step).items() if name not in ("image", "flow")}
            for step in output.iterations
        ],
        "files": {name: path.name for name, path in files.items()},
    }


def _number_or_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _write_pictures(
    image: Image.Image,
    picture: Image.Image,
    output: DynaDragPipelineOutput,
    targets: Sequence[Sequence[float]],
    files: dict[str, Path],
    written: list[Path],
) -> None:
    from motion_predictor.common.atomic_file import atomic_file

    from .visualization import contact_sheet, save_gif

    pictures = {"picture": picture, "sheet": contact_sheet(image, picture, output, targets)}
    for name, content in pictures.items():
        with atomic_file(files[name]) as file:
            content.save(file, format="PNG")
        written.append(files[name])
    if "gif" in files:
        save_gif(output, files["gif"], source=image)
        written.append(files["gif"])


def _write_json(record: dict[str, Any], path: Path, written: list[Path]) -> None:
    from motion_predictor.common.atomic_file import atomic_file

    text = json.dumps(_finite(record), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as file:
        file.write(text.encode("utf-8") + b"\n")
    written.append(path)


def _finite(value: Any) -> Any:
    """The same with numbers rounded to six places, and null where JSON has no number for NaN or infinity."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _summary(record: dict[str, Any], written: list[Path]) -> str:
    motion = "the motion predictor" if record["motion_source"] == "motion_predictor" else "straight steps"
    figures = (
        f"{len(record['iterations'])} iterations by {motion}, ended: {record['stop_reason'].replace('_', ' ')}; mean "
        f"remaining distance {record['mean_remaining_distance']:.1f} px; {record['seconds']:.0f} s"
    )
    return "\n".join([*(f"wrote {path}" for path in written), figures])


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a point is X,Y, two numbers with a comma and no space between, such as 120,85; got '{text}'"
        ) from None
    if not (math.isfinite(x) and math.isfinite(y) and x >= 0 and y >= 0):
        raise argparse.ArgumentTypeError(f"a point lies inside the picture, so X and Y are 0 or more; got '{text}'")
    return x, y


def _negative_points_joined(argv: Sequence[str]) -> list[str]:
    """Turn `--handle -3,5` into `--handle=-3,5`: argparse takes the value alone for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--handle", "--target") and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _PrintVersion(argparse.Action):
    """`--version` that imports the package only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from . import __version__

        print(f"dynadrag {__version__}")
        parser.exit()
