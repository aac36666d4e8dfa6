"""`dynadrag edit IMAGE`: drag a picture, and keep the result, a sheet of how it came about, and a record."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from motion_predictor.common.checks import check_whole_number, got
from motion_predictor.common.command_errors import CommandError, NotSaved, errors_as_one_line, one_line
from motion_predictor.common.options import add_options, given_options

from .. import EMBEDDED_CHECKPOINT
from ..settings import PRESETS, DragSettings, recommended_settings, settings_in_force
from .unloaded_model import check_unloaded_model

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline_dynadrag import DynaDragPipeline
    from ..pipeline_output import DynaDragPipelineOutput

LARGEST_SEED = 2**63 - 1

EDIT_EXAMPLES = """\
examples:
  Turn a head to the right by its nose and its chin, with the model that comes with the package:

    dynadrag edit portrait.png --handle 127,160 --target 151,160 --handle 124,227 --target 144,227

  Drag a photograph by an instruction file, inside a mask, with Stable Diffusion 1.5 on a GPU, and keep a GIF:

    dynadrag edit photo.jpg --instruction turn.json --mask face.png --out turned --gif \\
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda --dtype float16
"""


def add_edit_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], argv: Sequence[str] = ()) -> None:
    """Add `edit` to the parser of `dynadrag`; its help shows the defaults of the model that `argv` names."""
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
    add_options(parser, DragSettings, _defaults_in_force(argv))


def _defaults_in_force(argv: Sequence[str]) -> dict[str, Any]:
    """What options come to if they are not given, with the model and the preset of a command line."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--model")
    known.add_argument("--preset", choices=tuple(PRESETS))
    try:
        said, _ = known.parse_known_args([each for each in argv if each not in ("-h", "--help")])
        return vars(settings_in_force({}, None, said.preset, _recommended(said.model)).settings)
    except (SystemExit, ValueError):  # the parser proper says what is wrong
        return {}


def _recommended(model: str | None) -> dict[str, Any]:
    """What a model recommends, if it is in a folder; nobody asks the Hub before an edit."""
    return recommended_settings(EMBEDDED_CHECKPOINT if model is None else model)


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
        "--motion",
        choices=("predicted", "straight"),
        help="where handles go next: by the model's motion predictor, or straight, in equal steps (default: predicted "
        "if the model has a predictor)",
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


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="folder or Hub id of a Stable Diffusion 1.x or 2.x model, or folder of one saved by DynaDragPipeline "
        "(default: the small portrait model that comes with the package)",
    )
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="options by name, in place of those that the model recommends: `paper` is the paper to the letter, "
        "`fast` trades quality for time",
    )
    group.add_argument(
        "--settings",
        metavar="FILE",
        type=Path,
        help="a JSON file with options, as the `settings` of a result.json or as an object of names and values; "
        "options that are given go before it",
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
        type=_seed,
        default=0,
        help="the same seed on the same device gives the same picture, up to rounding on GPUs (default: 0)",
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
        type=Path,
        default=Path("dynadrag-out"),
        help="folder for the results, made if it is not there (default: dynadrag-out)",
    )
    group.add_argument("--gif", action="store_true", help="also write the intermediate pictures as a GIF")
    group.add_argument("--force", action="store_true", help="overwrite results that are already there")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


@dataclass
class _Job:
    """What a command line asks for, checked as far as that goes without the model."""

    image: Image.Image
    call: dict[str, Any]
    targets: Sequence[Sequence[float]]
    pins: list[bool]
    files: dict[str, Path]


def _edit(args: argparse.Namespace, written: list[Path]) -> None:
    """`dynadrag edit`: all that can be checked without the model is checked first, the results are written last."""
    started = time.perf_counter()
    with errors_as_one_line():
        job = _checked_job(args)
    args.device = _device(args.device)
    pipe = _load_pipeline(args)
    if args.preview_vae is not None:
        job.call["preview_vae"] = _load_preview_vae(args, pipe)
    output = _run(pipe, job, args.seed)
    record = _record(args, job, output)
    saver = _Saver(written)
    _save_pictures(job, output, saver)
    if args.save_identity_lora is not None:
        saver.save_folder(args.save_identity_lora, pipe.save_identity_lora)
    record["seconds"] = round(time.perf_counter() - started, 2)
    text = json.dumps(_finite(record), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    saver.save(job.files["record"], lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    print(_summary(record, written))
    saver.raise_if_elsewhere()


def _checked_job(args: argparse.Namespace) -> _Job:
    """Refuse what can't work, before the model is loaded."""
    options = given_options(args, DragSettings)
    call: dict[str, Any] = {**_instruction(args), **options}
    if args.settings is not None:
        call["settings"] = _settings_file(args.settings)
    if args.preset is not None:
        call["preset"] = args.preset
    settings = settings_in_force(options, call.get("settings"), args.preset, _recommended(args.model)).settings
    if args.cross_attention_kwargs is not None:
        call["cross_attention_kwargs"] = args.cross_attention_kwargs
    if "return_intermediates" not in options:
        call["return_intermediates"] = True  # for the sheet
    elif args.gif and not options["return_intermediates"]:
        raise CommandError("--gif is made of the pictures between: leave --no-return-intermediates out.")
    _check_identity_lora(args, settings)
    if args.preview_vae is not None and settings.preview_steps is None:
        raise CommandError("--preview-vae decodes the pictures of --preview-steps: give that too.")
    for flag, model in (("--model", args.model), ("--preview-vae", args.preview_vae)):
        if model is not None and _looks_like_folder(model) and not os.path.isdir(os.path.expanduser(model)):
            raise CommandError(f"{flag}: there is no folder `{model}`.")
    image = _open_picture("image", args.image)
    if args.mask is not None:
        call["mask"] = _open_picture("--mask", args.mask)
    files = _result_files(args)
    _check_results(args, files)
    pins = _check_points(image, call)
    check_unloaded_model(_model_folder(args), settings, args.cross_attention_kwargs)
    _make_folder(args.out)
    _check_space(args.out, image)
    return _Job(image, call, call["targets"], pins, files)


def _instruction(args: argparse.Namespace) -> dict[str, Any]:
    """Handles, targets, prompt and motion, from the options or from the instruction file."""
    if args.instruction is None:
        if not args.handle or len(args.handle) != len(args.target):
            raise CommandError(
                f"give as many --target as --handle, and at least one of each (or --instruction); got "
                f"{len(args.handle)} --handle and {len(args.target)} --target."
            )
        instruction: dict[str, Any] = {"handles": args.handle, "targets": args.target, "prompt": args.prompt or ""}
    elif args.handle or args.target:
        raise CommandError("--instruction takes the place of --handle and --target: give one or the other.")
    else:
        instruction = _instruction_file(args)
    if args.path and args.motion is not None:
        raise CommandError("--path says where handles go, as --motion does: give one or the other.")
    motion = args.path or instruction.pop("paths", None) or args.motion
    return instruction if motion is None else {**instruction, "motion": motion}


def _instruction_file(args: argparse.Namespace) -> dict[str, Any]:
    from ..drag_instruction import load_instruction

    try:
        instruction = load_instruction(args.instruction)
    except (OSError, ValueError) as error:
        raise CommandError(f"--instruction: {one_line(error)}") from error
    return instruction if args.prompt is None else {**instruction, "prompt": args.prompt}


def _settings_file(path: Path) -> dict[str, Any]:
    """Options of a JSON file: an object of names and values, or a record of an edit that holds one."""
    from motion_predictor.common.json_file import read_json_object

    try:
        content = read_json_object(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"--settings: {one_line(error)}") from error
    content = content.get("settings", content)
    if not isinstance(content, dict):
        raise ValueError(f"--settings: `{path}` must hold an object of options and their values, got {got(content)}.")
    return {
        name: value["value"] if isinstance(value, dict) and "value" in value else value
        for name, value in content.items()
    }


def _open_picture(name: str, path: Path) -> Image.Image:
    from motion_predictor.common.picture_files import open_picture

    try:
        return open_picture(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"{name}: {one_line(error)}") from error


def _check_points(image: Image.Image, call: dict[str, Any]) -> list[bool]:
    """Check points, mask, paths and prompt, against the picture; say which pairs are pins."""
    from ..components import check_prompt
    from ..drag_instruction import DragInstruction
    from ..motion.path import PathMotion
    from ..picture import to_picture_tensor

    picture = to_picture_tensor(image)
    size = (picture.shape[-2], picture.shape[-1])
    instruction = DragInstruction.from_user(call["handles"], call["targets"], call.get("mask"), size)
    if isinstance(call.get("motion"), list):
        PathMotion(call["motion"]).check(instruction)
    check_prompt(call["prompt"])
    return (instruction.handles == instruction.targets).all(dim=-1).tolist()


def _check_identity_lora(args: argparse.Namespace, settings: DragSettings) -> None:
    if settings.identity_lora_steps == 0 and (args.load_identity_lora or args.save_identity_lora):
        raise CommandError(
            "--identity-lora-steps 0 edits without an identity LoRA: leave it out to load or to save one."
        )
    if args.load_identity_lora is not None and not args.load_identity_lora.is_dir():
        raise CommandError(f"--load-identity-lora: there is no folder `{args.load_identity_lora}`.")
    if args.load_identity_lora is not None:
        _read_identity_lora(args.load_identity_lora)
    saved = args.save_identity_lora
    if saved is not None and saved.exists() and not saved.is_dir():
        raise CommandError(f"--save-identity-lora: `{saved}` is a file; a folder is made there.")


def _result_files(args: argparse.Namespace) -> dict[str, Path]:
    stem = args.image.stem
    files = {"picture": args.out / f"{stem}-edited.png", "sheet": args.out / f"{stem}-sheet.png"}
    if args.gif:
        files["gif"] = args.out / f"{stem}.gif"
    return {**files, "record": args.out / "result.json"}


def _check_results(args: argparse.Namespace, files: dict[str, Path]) -> None:
    """Refuse to start an edit whose results could not be kept."""
    folders = [str(path) for path in files.values() if path.is_dir()]
    if folders:
        raise CommandError(f"{', '.join(folders)} must be free for a file, got a folder: choose another --out.")
    lora = args.save_identity_lora
    if lora is not None:
        if any(each in (lora.absolute(), *lora.absolute().parents) for each in map(Path.absolute, files.values())):
            raise CommandError(f"--save-identity-lora: `{lora}` is where a result is to be; choose another folder.")
        files = {**files, "identity LoRA": lora}
    for given in (args.image, args.mask):
        if given is not None and any(
            path.exists() and given.exists() and path.samefile(given) for path in files.values()
        ):
            raise CommandError(f"`{given}` would be overwritten by a result: choose another --out.")
    existing = [str(path) for path in files.values() if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if existing and not args.force:
        raise CommandError(
            f"{', '.join(existing)} already there: pass --force to overwrite, or choose another folder."
        )
    for flag, folder in (("--out", args.out), ("--save-identity-lora", lora)):
        if folder is not None:
            _check_writable(flag, folder)


def _check_writable(flag: str, folder: Path) -> None:
    """Refuse a folder that can't be made or written to; nothing is made yet."""
    there = next((each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        raise CommandError(f"{flag}: cannot make the folder `{folder}`: `{there}` is a file.")
    if not os.access(there, os.W_OK):
        raise CommandError(f"{flag}: no permission to write to the folder `{there}`.")


def _check_space(folder: Path, image: Image.Image) -> None:
    """Refuse a disk that has no room for the edited picture; what an edit may write beside it is smaller, mostly."""
    needed, free = image.width * image.height * 3, shutil.disk_usage(folder).free
    if free < needed:
        raise CommandError(f"--out: `{folder}` has {free:,} bytes left, and the picture alone may need {needed:,}.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out: cannot make the folder `{folder}`: {one_line(error)}") from error


def _load_pipeline(args: argparse.Namespace) -> DynaDragPipeline:
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from .. import DynaDragPipeline

    model = _model_folder(args)
    if args.quiet:
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    try:
        pipe = DynaDragPipeline.from_pretrained(
            model,
            dtype=getattr(torch, args.dtype),
            safety_checker=None,  # not used, so its gigabyte is not downloaded either
        )
    except Exception as error:  # damaged files make the libraries raise anything
        raise CommandError(f"--model: cannot load `{model}`: {_short(error)}") from error
    if args.low_memory:
        pipe.unet.enable_gradient_checkpointing()
    if args.low_memory and args.device != "cpu":
        pipe.enable_model_cpu_offload(device=args.device)
    else:
        pipe.to(args.device)
    pipe.set_progress_bar_config(disable=args.quiet)
    if args.load_identity_lora is not None:
        pipe.load_identity_lora(args.load_identity_lora)
    return pipe


def _model_folder(args: argparse.Namespace) -> str:
    """Where the model is: a folder, or else an id of the Hub."""
    if args.model is None:
        return str(EMBEDDED_CHECKPOINT)
    folder = os.path.expanduser(args.model)
    return folder if os.path.isdir(folder) else args.model


def _read_identity_lora(folder: Path) -> None:
    """Read a LoRA once before the model is loaded, to see that it is one."""
    from ..identity_lora import IdentityLora

    try:
        IdentityLora.load(folder)
    except Exception as error:  # damaged files make the libraries raise anything
        raise CommandError(f"--load-identity-lora: {_short(error)}") from error


def _load_preview_vae(args: argparse.Namespace, pipe: DynaDragPipeline) -> Any:
    from diffusers import AutoencoderTiny

    try:
        return AutoencoderTiny.from_pretrained(os.path.expanduser(args.preview_vae), dtype=pipe.vae.dtype).to(
            args.device
        )
    except Exception as error:
        raise CommandError(f"--preview-vae: cannot load `{args.preview_vae}`: {_short(error)}") from error


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


def _run(pipe: DynaDragPipeline, job: _Job, seed: int) -> DynaDragPipelineOutput:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        output = pipe(job.image, **job.call, generator=generator)
    except (ValueError, FloatingPointError) as error:
        raise CommandError(one_line(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise CommandError(
            "not enough memory on the GPU: try --dtype float16, a smaller --processing-resolution, or --device cpu."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # what torch says on the CPU
            raise
        raise CommandError("not enough memory: try a smaller --processing-resolution, or --low-memory.") from error
    return cast("DynaDragPipelineOutput", output)


def _record(args: argparse.Namespace, job: _Job, output: DynaDragPipelineOutput) -> dict[str, Any]:
    """What result.json holds; every number of it can be read without torch."""
    import torch

    trajectories = torch.as_tensor(output.trajectories)
    remaining = (trajectories[-1] - torch.tensor(job.targets, dtype=torch.float32)).norm(dim=-1)
    moving = ~torch.tensor(job.pins)
    picture = cast("Image.Image", output.images[0])
    assert output.settings is not None
    return {
        "versions": output.provenance.get("versions"),
        "image": _shown(args.image),
        "mask": None if args.mask is None else _shown(args.mask),
        "model": args.model or "embedded",
        "preset": args.preset,
        "device": args.device,
        "dtype": args.dtype,
        "seed": args.seed,
        "seed_drawn": output.provenance.get("seed"),
        "prompt": job.call["prompt"],
        "settings": output.settings.record(),
        "cross_attention_kwargs": args.cross_attention_kwargs,
        "preview_vae": args.preview_vae,
        "loaded_identity_lora": None if args.load_identity_lora is None else _shown(args.load_identity_lora),
        "handles": job.call["handles"],
        "targets": job.targets,
        "pins": job.pins,
        "size": {"width": picture.width, "height": picture.height},
        "motion_source": output.motion_source,
        "paths": job.call["motion"] if isinstance(job.call.get("motion"), list) else None,
        "stop_reason": output.stop_reason,
        "mean_remaining_distance": float(remaining[moving].mean()) if moving.any() else 0.0,
        "trajectories": trajectories.tolist(),
        "iterations": [
            {name: _number_or_list(value) for name, value in vars(step).items() if name not in ("image", "flow")}
            for step in output.iterations
        ],
        "files": {name: _shown(Path(path.name)) for name, path in job.files.items()},
    }


def _shown(path: Path) -> str:
    """A path as text: letters that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _number_or_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


@dataclass
class _Saver:
    """Saves results where they are to be, or, if that fails after the work is done, in a folder of its own.

    Attributes:
        written (`list[Path]`): what was saved, as it comes.
    """

    written: list[Path]
    elsewhere: Path | None = None
    problems: list[str] = field(default_factory=list)

    def save(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file, whole or not at all."""
        from motion_predictor.common.atomic_file import atomic_file

        def write_to(place: Path) -> None:
            with atomic_file(place) as file:
                write(file)

        self._save(path, write_to)

    def save_folder(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Write a folder."""
        self._save(path, write)

    def raise_if_elsewhere(self) -> None:
        """Say what is not where it was to be."""
        if self.problems:
            raise NotSaved("; ".join(self.problems))

    def _save(self, path: Path, write_to: Callable[[Path], Any]) -> None:
        try:
            write_to(path)
            self.written.append(path)
        except OSError as error:
            self._save_elsewhere(path, write_to, one_line(error))

    def _save_elsewhere(self, path: Path, write_to: Callable[[Path], Any], problem: str) -> None:
        try:
            self.elsewhere = self.elsewhere or Path(tempfile.mkdtemp(prefix="dynadrag-"))
            write_to(self.elsewhere / path.name)
            self.written.append(self.elsewhere / path.name)
            self.problems.append(f"cannot write `{path}` ({problem}): it is in `{self.elsewhere}`")
        except OSError as error:
            self.problems.append(f"cannot write `{path}` ({problem}), nor elsewhere ({one_line(error)})")


def _save_pictures(job: _Job, output: DynaDragPipelineOutput, saver: _Saver) -> None:
    from ..visualization import contact_sheet, write_gif

    picture = cast("Image.Image", output.images[0])
    saver.save(job.files["picture"], lambda file: picture.save(file, format="PNG"))
    sheet = contact_sheet(job.image, picture, output, job.targets)
    saver.save(job.files["sheet"], lambda file: sheet.save(file, format="PNG"))
    if "gif" in job.files:
        saver.save(job.files["gif"], lambda file: write_gif(output, file, job.image))


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
    motion = {"predicted": "the motion predictor", "straight": "straight steps", "path": "the paths given"}
    figures = (
        f"{len(record['iterations'])} iterations by {motion.get(record['motion_source'], record['motion_source'])}, "
        f"ended: {record['stop_reason'].replace('_', ' ')}; mean remaining distance "
        f"{record['mean_remaining_distance']:.1f} px; {record['seconds']:.0f} s"
    )
    return "\n".join([*(f"wrote {path}" for path in written), figures])


def _short(error: BaseException) -> str:
    """An error of a library on one line of readable length."""
    text = one_line(error)
    return text if len(text) <= 400 else f"{text[:397]}..."


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
