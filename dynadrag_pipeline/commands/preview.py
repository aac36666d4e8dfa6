"""`dynadrag preview IMAGE`: where a drag would lead, in a moment, without the model of an edit."""

from __future__ import annotations

import argparse
from pathlib import Path

from motion_predictor.common.checks import got
from motion_predictor.common.command_errors import CommandError, errors_as_one_line, one_line

from .edit_job import given_instruction, open_given_picture
from .edit_model import EMBEDDED, given_predictor
from .edit_options import add_point_options
from .result_saver import ResultSaver

EXAMPLE = """\
example:
  Look where nose and chin would take a head, and turn it:

    dynadrag preview portrait.png --handle 127,160 --target 151,160 --handle 124,227 --target 144,227 --out look.png
    dynadrag edit portrait.png --handle 127,160 --target 151,160 --handle 124,227 --target 144,227
"""


def add_preview_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `preview` to the parser of `dynadrag`."""
    parser = commands.add_parser(
        "preview",
        help="show in a moment where an edit would lead; it is not the edit",
        usage="dynadrag preview IMAGE (--handle X,Y --target X,Y ... | --instruction FILE) [options]",
        description="Bend a picture along the motion from its handles to its targets. It is not the edit: nothing is\n"
        "invented, and no diffusion model takes part. Points are given as for `dynadrag edit`.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_preview)
    add_point_options(parser)
    group = parser.add_argument_group("model and output")
    group.add_argument(
        "--motion-predictor",
        metavar="DIR_OR_ID",
        default=EMBEDDED,
        help="folder or Hub id of the motion predictor (default: embedded, the one that comes with the package)",
    )
    group.add_argument(
        "--out",
        metavar="FILE",
        type=_png,
        default=Path("dynadrag-preview.png"),
        help="the bent picture, a PNG (default: dynadrag-preview.png)",
    )
    group.add_argument("--force", action="store_true", help="overwrite a file that is already there")


def _preview(args: argparse.Namespace, written: list[Path]) -> None:
    """`dynadrag preview`: the picture is bent, written, and said not to be the edit."""
    if args.out.exists() and not args.force:
        raise CommandError(f"{args.out} already there: pass --force to overwrite, or choose another --out.")
    with errors_as_one_line():
        call = given_instruction(args)
        image = open_given_picture("image", args.image)
        mask = None if args.mask is None else open_given_picture("--mask", args.mask)

    from ..drag_instruction import DragInstruction
    from ..motion.choice import choose_motion
    from ..picture import to_picture_tensor
    from ..preview import preview_drag

    with errors_as_one_line():
        picture = to_picture_tensor(image)
        size = picture.shape[-2], picture.shape[-1]
        instruction = DragInstruction.from_user(call["handles"], call["targets"], mask, size)
        wanted = call.get("motion")
        args.dtype = "float32"
        predictor = given_predictor(args)["motion_predictor"] if wanted in (None, "predicted") else None
        source = choose_motion(wanted, predictor)
        source.check(instruction)
    try:
        preview = preview_drag(picture, instruction, source)
    except FloatingPointError as error:
        raise CommandError(one_line(error)) from error
    saver = ResultSaver(written)
    saver.save(args.out, lambda file: preview.image.save(file, format="PNG"))
    print("\n".join(f"wrote {path}" for path in written))
    share = preview.disoccluded.float().mean().item()
    print(f"a preview, not the edit: of what it shows, {share:.1%} would have to be invented")
    saver.raise_if_elsewhere()


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"a file whose name ends in .png is wanted; got {got(text)}")
    return Path(text)
