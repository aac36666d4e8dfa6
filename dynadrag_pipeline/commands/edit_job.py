"""What a command line of `dynadrag edit` asks for: all that can be known of it before the model is loaded."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motion_predictor.common.checks import got
from motion_predictor.common.command_errors import CommandError, one_line
from motion_predictor.common.options import given_options

from ..settings import DragSettings, settings_in_force
from .edit_model import EMBEDDED, model_folder, settings_of_model, shortened
from .unloaded_model import check_unloaded_model

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Job:
    """What a command line asks for, checked as far as that goes without the model."""

    image: Image.Image
    call: dict[str, Any]
    targets: Sequence[Sequence[float]]
    pins: list[bool]
    files: dict[str, Path]


def checked_job(args: argparse.Namespace) -> Job:
    """Refuse what can't work, before the model is loaded."""
    options = given_options(args, DragSettings)
    call: dict[str, Any] = {**given_instruction(args), **options}
    if args.settings is not None:
        call["settings"] = _settings_file(args.settings)
    if args.preset is not None:
        call["preset"] = args.preset
    settings = settings_in_force(options, call.get("settings"), args.preset, settings_of_model(args.model)).settings
    if args.cross_attention_kwargs is not None:
        call["cross_attention_kwargs"] = args.cross_attention_kwargs
    if "return_intermediates" not in options:
        call["return_intermediates"] = True  # for the sheet
    elif args.gif and not options["return_intermediates"]:
        raise CommandError("--gif is made of the pictures between: leave --no-return-intermediates out.")
    _check_identity_lora(args, settings)
    _check_models(args, settings)
    image = open_given_picture("image", args.image)
    if args.mask is not None:
        call["mask"] = open_given_picture("--mask", args.mask)
    files = _result_files(args)
    _check_results(args, files)
    pins = _check_points(image, call)
    check_unloaded_model(model_folder(args), settings, args.cross_attention_kwargs)
    _make_folder(args.out)
    _check_space(args.out, image)
    return Job(image, call, call["targets"], pins, files)


def given_instruction(args: argparse.Namespace) -> dict[str, Any]:
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
    of_file = instruction.pop("paths", None)
    motion = args.path or args.motion or of_file
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


def open_given_picture(name: str, path: Path) -> Image.Image:
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


def _check_models(args: argparse.Namespace, settings: DragSettings) -> None:
    if args.preview_vae is not None and settings.preview_steps is None:
        raise CommandError("--preview-vae decodes the pictures of --preview-steps: give that too.")
    predictor = None if args.motion_predictor == EMBEDDED else args.motion_predictor
    models = {"--model": args.model, "--motion-predictor": predictor, "--preview-vae": args.preview_vae}
    for flag, model in models.items():
        place = os.path.expanduser(model or ".")
        if os.path.exists(place) and not os.path.isdir(place):
            raise CommandError(f"{flag}: `{model}` is a file; a folder is wanted (`dynadrag convert` makes one).")
        if model is not None and _looks_like_folder(model) and not os.path.isdir(place):
            raise CommandError(f"{flag}: there is no folder `{model}`.")


def _looks_like_folder(model: str) -> bool:
    """Whether the value can only be a path: a Hub id is `name` or `owner/name`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


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


def _read_identity_lora(folder: Path) -> None:
    """Read a LoRA once before the model is loaded, to see that it is one."""
    from ..identity_lora import IdentityLora

    try:
        IdentityLora.load(folder)
    except Exception as error:  # damaged files make the libraries raise anything
        raise CommandError(f"--load-identity-lora: {shortened(error)}") from error


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
