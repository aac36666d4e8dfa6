"""The files that an edit leaves: what `dynadrag edit` writes, with a film, and the command line that repeats it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from motion_predictor.common.atomic_file import atomic_file

from ..commands.edit_job import Job
from ..commands.edit_options import add_edit_options
from ..commands.edit_record import edit_record, record_text
from ..settings import DragSettings
from ..visualization import contact_sheet, write_gif
from .edits import Edit, Order, Point
from .film import can_film, write_mp4
from .instruction_file import instruction_text

MASK_NAME = "mask.png"


def write_edit(edit: Edit, folder: Path, model: argparse.Namespace) -> dict[str, Path]:
    """Write all files of an edit.

    Args:
        edit ([`Edit`]): that was made.
        folder (`Path`): a new one, for it alone.
        model (`argparse.Namespace`): `model`, `motion_predictor`, `device` and `dtype` of the app's command line.

    Returns:
        `dict[str, Path]`: the files by what people call them, the `picture` first.
    """
    folder.mkdir()
    order, stem, output = edit.order, edit.order.base.name, edit.output
    written: dict[str, Path] = {}

    def save(title: str, name: str, write: Callable[[BinaryIO], object]) -> None:
        with atomic_file(folder / name) as file:
            write(file)
        written[title] = folder / name

    save("picture", f"{stem}-edited.png", lambda file: edit.after.save(file, format="PNG"))
    sheet = contact_sheet(order.base.shown, edit.after, output, order.targets)
    save("sheet", f"{stem}-sheet.png", lambda file: sheet.save(file, format="PNG"))
    if any(step.image is not None for step in edit.result.iterations):
        save("GIF", f"{stem}.gif", lambda file: write_gif(output, file, order.base.shown, result=edit.after))
        if can_film():
            save("film", f"{stem}.mp4", lambda file: write_mp4(edit, file))
    points = instruction_text(order.handles, order.targets, order.prompt)
    save("record", "result.json", lambda file: file.write(_record(edit, model)))
    save("points", "points.json", lambda file: file.write(points))
    if order.mask is not None:
        mask = order.mask
        save("mask", MASK_NAME, lambda file: mask.save(file, format="PNG"))
    save("original", f"{stem}.png", lambda file: order.base.opened.save(file, format="PNG"))
    save("command", "command.txt", lambda file: file.write(f"{command_line(order, model)}\n".encode()))
    return written


def command_line(order: Order, model: argparse.Namespace) -> str:
    """The command line that makes an edit again, in the folder of its files.

    Args:
        order ([`Order`]): what was asked for.
        model (`argparse.Namespace`): `model`, `motion_predictor`, `device` and `dtype` of the app's command line.

    Returns:
        `str`: for a shell; of an edit that was continued it says that it is only the last part.
    """
    text = shlex.join(["dynadrag", "edit", *_arguments(order, model)])
    if order.base.start is None:
        return text
    return f"{text}  # goes on from an edit before: in Python, session.drag(..., continue_from=session.state)"


def _arguments(order: Order, model: argparse.Namespace) -> list[str]:
    """What comes after `dynadrag edit`."""
    arguments = [f"{order.base.name}.png"]
    for handle, target in zip(order.handles, order.targets, strict=True):
        arguments += [f"--handle={_shown(handle)}", f"--target={_shown(target)}"]
    if order.mask is not None:
        arguments += ["--mask", MASK_NAME]
    if order.prompt:
        arguments += [f"--prompt={order.prompt}"]
    for name in ("model", "motion_predictor"):
        if getattr(model, name) is not None:
            arguments += [f"--{name.replace('_', '-')}", getattr(model, name)]
    arguments += ["--device", model.device, "--dtype", model.dtype]
    if order.preset is not None:
        arguments += ["--preset", order.preset]
    for name, value in order.given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(getattr(DragSettings, name), bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            arguments.append(f"{flag}={'no' if value is False else 'none' if value is None else value}")
    return [*arguments, "--seed", str(order.seed), "--out", f"{order.base.name}-edit"]


def _record(edit: Edit, model: argparse.Namespace) -> bytes:
    """`result.json`, as the command line that repeats the edit writes it."""
    order, arguments = edit.order, _arguments(edit.order, model)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_edit_options(parser, arguments)
    args = parser.parse_args(arguments)
    call = {"handles": order.handles, "targets": order.targets, "prompt": order.prompt}
    stem = order.base.name
    files = {"picture": Path(f"{stem}-edited.png"), "sheet": Path(f"{stem}-sheet.png"), "gif": Path(f"{stem}.gif")}
    job = Job(order.base.shown, call, order.targets, order.pins, {**files, "record": Path("result.json")})
    record = edit_record(args, job, edit.output)
    record["continued"] = order.base.start is not None
    record["seconds"] = round(edit.seconds, 2)
    return record_text(record)


def _shown(point: Point) -> str:
    return ",".join(f"{number:.10g}" for number in point)
