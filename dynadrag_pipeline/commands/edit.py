"""`dynadrag edit IMAGE`: drag a picture, and keep the result, a sheet of how it came about, and a record."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motion_predictor.common.command_errors import errors_as_one_line

from .edit_errors import edit_errors
from .edit_job import Job, checked_job
from .edit_model import available_device, load_pipeline, load_preview_vae, suitable_dtype
from .edit_options import add_edit_options
from .edit_record import edit_record, record_text
from .result_saver import ResultSaver

if TYPE_CHECKING:
    from PIL import Image

    from ..content import ContentLocations
    from ..pipeline_dynadrag import DynaDragPipeline
    from ..pipeline_output import DynaDragPipelineOutput

EDIT_EXAMPLES = """\
examples:
  Turn a head to the right by its nose and its chin, with the model that comes with the package:

    dynadrag edit portrait.png --handle 127,160 --target 151,160 --handle 124,227 --target 144,227

  Drag a photograph by an instruction file, inside a mask, with Stable Diffusion 1.5 on a GPU, and keep a GIF:

    dynadrag edit photo.jpg --instruction turn.json --mask face.png --out turned --gif \\
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda
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
    add_edit_options(parser, argv)


def _edit(args: argparse.Namespace, written: list[Path]) -> None:
    """`dynadrag edit`: all that can be checked without the model is checked first, the results are written last."""
    started = time.perf_counter()
    with errors_as_one_line():
        job = checked_job(args)
    args.device = available_device(args.device)
    args.dtype = suitable_dtype(args.dtype, args.device)
    pipe = load_pipeline(args)
    if args.preview_vae is not None:
        job.call["preview_vae"] = load_preview_vae(args, pipe)
    output = _run(pipe, job, args.seed)
    record = edit_record(args, job, output)
    saver = ResultSaver(written)
    _save_pictures(job, output, saver)
    if args.save_identity_lora is not None:
        saver.save_folder(args.save_identity_lora, pipe.save_identity_lora)
    record["seconds"] = round(time.perf_counter() - started, 2)
    saver.save(job.files["record"], lambda file: file.write(record_text(record)))
    print(_summary(record, written))
    if output.content is not None:
        print(cast("ContentLocations", output.content).summary)
    saver.raise_if_elsewhere()


def _run(pipe: DynaDragPipeline, job: Job, seed: int) -> DynaDragPipelineOutput:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    with edit_errors():
        return cast("DynaDragPipelineOutput", pipe(job.image, **job.call, generator=generator))


def _save_pictures(job: Job, output: DynaDragPipelineOutput, saver: ResultSaver) -> None:
    from ..visualization import contact_sheet, write_gif

    picture = cast("Image.Image", output.images[0])
    saver.save(job.files["picture"], lambda file: picture.save(file, format="PNG"))
    sheet = contact_sheet(job.image, picture, output, job.targets)
    saver.save(job.files["sheet"], lambda file: sheet.save(file, format="PNG"))
    if "gif" in job.files:
        saver.save(job.files["gif"], lambda file: write_gif(output, file, job.image, result=picture))


def _summary(record: dict[str, Any], written: list[Path]) -> str:
    motion = {
        "predicted": "the motion predictor",
        "straight": "straight steps",
        "path": "the paths given",
        "track": "unit steps and tracking",
        "search": "a line search",
    }
    count, source = len(record["iterations"]), record["motion_source"]
    figures = (
        f"{count} iteration{'' if count == 1 else 's'} by {motion.get(source, source)}, "
        f"ended: {record['stop_reason'].replace('_', ' ')}; mean remaining distance "
        f"{record['mean_remaining_distance']:.1f} px; {record['seconds']:.0f} s"
    )
    return "\n".join([*(f"wrote {path}" for path in written), figures])
