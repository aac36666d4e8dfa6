"""`dynadrag edit IMAGE`: drag a picture, and keep the result, a sheet of how it came about, and a record."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motion_predictor.common.command_errors import CommandError, errors_as_one_line, one_line

from .edit_job import Job, checked_job
from .edit_model import EMBEDDED, available_device, load_pipeline, load_preview_vae, suitable_dtype
from .edit_options import add_edit_options
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
    record = _record(args, job, output)
    saver = ResultSaver(written)
    _save_pictures(job, output, saver)
    if args.save_identity_lora is not None:
        saver.save_folder(args.save_identity_lora, pipe.save_identity_lora)
    record["seconds"] = round(time.perf_counter() - started, 2)
    text = json.dumps(_finite(record), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    saver.save(job.files["record"], lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    print(_summary(record, written))
    if output.content is not None:
        print(cast("ContentLocations", output.content).summary)
    saver.raise_if_elsewhere()


def _run(pipe: DynaDragPipeline, job: Job, seed: int) -> DynaDragPipelineOutput:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        output = pipe(job.image, **job.call, generator=generator)
    except (ValueError, FloatingPointError) as error:
        raise CommandError(one_line(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise CommandError(
            "not enough memory on the GPU: try --low-memory, --dtype float16, a smaller --processing-resolution, or "
            "--device cpu."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # what torch says on the CPU
            raise
        raise CommandError("not enough memory: try a smaller --processing-resolution, or --low-memory.") from error
    return cast("DynaDragPipelineOutput", output)


def _record(args: argparse.Namespace, job: Job, output: DynaDragPipelineOutput) -> dict[str, Any]:
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
        "model": args.model or EMBEDDED,
        "motion_predictor": args.motion_predictor,
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
        "content": None if output.content is None else cast("ContentLocations", output.content).record(),
        "trajectories": trajectories.tolist(),
        "iterations": [
            {
                name: _number_or_list(value)
                for name, value in vars(step).items()
                if name not in ("image", "flow") and value is not None
            }
            for step in output.iterations
        ],
        "files": {name: _shown(Path(path.name)) for name, path in job.files.items()},
    }


def _shown(path: Path) -> str:
    """A path as text: letters that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _number_or_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _save_pictures(job: Job, output: DynaDragPipelineOutput, saver: ResultSaver) -> None:
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
    motion = {
        "predicted": "the motion predictor",
        "straight": "straight steps",
        "path": "the paths given",
        "track": "unit steps and tracking",
        "search": "a line search",
    }
    figures = (
        f"{len(record['iterations'])} iterations by {motion.get(record['motion_source'], record['motion_source'])}, "
        f"ended: {record['stop_reason'].replace('_', ' ')}; mean remaining distance "
        f"{record['mean_remaining_distance']:.1f} px; {record['seconds']:.0f} s"
    )
    return "\n".join([*(f"wrote {path}" for path in written), figures])
