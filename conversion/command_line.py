"""The command that turns other people's weights into ours: `dynadrag convert`.

What needs torch is imported when a command runs, so that help is answered at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from motion_predictor.choices import DELTA_CONVENTIONS, DELTA_PAINTS
from motion_predictor.common.command_errors import CommandError, errors_as_one_line
from motion_predictor.common.output_folder import folder_of

from .choices import DTYPE_NAMES, PREDICTION_TYPES

PIPELINE_EXAMPLES = """\
examples:
  Stable Diffusion 1.5 from the Hub in half precision, with a motion predictor that was trained here:

    dynadrag convert pipeline --base stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16 \\
        --motion-predictor runs/predictor/motion_predictor --out sd15-drag
    dynadrag edit photo.jpg --model sd15-drag --handle 210,180 --target 250,180

  One file, without a network: the tokenizer's vocabulary is in no such file, and is taken from any Stable Diffusion
  model in diffusers' layout:

    dynadrag convert pipeline --base photoreal.safetensors --tokenizer sd15-drag --out photoreal-drag

  Stable Diffusion 2.1 of 768 pixels in one file, and a repository of the result:

    dynadrag convert pipeline --base v2-1_768-ema-pruned.safetensors --prediction-type v_prediction \\
        --out sd21-drag --push-to-hub my-name/sd21-drag --private
"""

PREDICTOR_EXAMPLES = """\
examples:
  A SimVP of one frame with six channels in and two out, which computes the same afterwards:

    dynadrag convert motion-predictor results/drag/checkpoint.pth --sample-size 256 --out predictor

  One that was trained on videos, as the beginning of a training:

    dynadrag convert motion-predictor kth_simvp.ckpt --warm-start --out predictor-start
"""

LORA_EXAMPLES = """\
examples:
  A LoRA that DragDiffusion fitted to a picture, used for that picture alone:

    dynadrag convert identity-lora lora_tmp/pytorch_lora_weights.bin --image cat.png --out cat-lora
    dynadrag edit cat.png --model sd15-drag --load-identity-lora cat-lora --handle 90,120 --target 90,100

  One of the self-attention only, for a model that says which layers there are besides:

    dynadrag convert identity-lora partly.safetensors --base sd15-drag --out lora
"""

CONDITIONING = {
    "sample_size": ("N", int, "short side in pixels of the pictures it was trained on; 0: the picture's own", "256"),
    "heatmap_radius": ("R", float, "radius of the discs round handles, in pixels", "4"),
    "delta_paint": (DELTA_PAINTS, str, "whether a delta is painted on the handle's pixel or on its disc", "pixel"),
    "delta_convention": (DELTA_CONVENTIONS, str, "the sign of the deltas", "handle_minus_target"),
    "delta_scale": ("X", float, "factor on the deltas at the input", "1"),
    "flow_scale": ("X", float, "factor on the output that gives pixels", "1"),
}


def add_convert_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `convert`, with a command for each kind of weights.

    Args:
        commands (`argparse._SubParsersAction`): the commands of `dynadrag`.
    """
    parser = commands.add_parser(
        "convert",
        help="turn other people's weights into a pipeline, a motion predictor or an identity LoRA",
        description="Turn other people's weights into ours. No code that may be in their files is run, and a\n"
        "conversion that fails leaves nothing behind. `dynadrag convert KIND --help` has examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)
    _add_pipeline_command(kinds)
    _add_motion_predictor_command(kinds)
    _add_identity_lora_command(kinds)
    _add_benchmark_command(kinds)


def _add_benchmark_command(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "benchmark",
        help="DragBench's pickles, to JSON beside them",
        description="Write what the pickles of DragBench say (`meta_data.pkl`: prompt, points and mask) to\n"
        "`drag_instruction.json` and `mask.png` beside them. Plain data is read out of the pickles; nothing of them\n"
        "is run, and one that holds anything else is refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_convert_benchmark)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the benchmark")


def _add_pipeline_command(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "pipeline",
        help="a Stable Diffusion 1.x or 2.x and a motion predictor, to a pipeline that edits",
        description="Put a pipeline together from a Stable Diffusion 1.x or 2.x (a folder, a repository of the Hub,\n"
        "or one file) and a motion predictor. The base's noise schedule is kept, its safety checker is not.",
        epilog=PIPELINE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_convert_pipeline)
    parser.add_argument(
        "--base",
        metavar="DIR_OR_ID_OR_FILE",
        required=True,
        help="folder or Hub id of a diffusers model, or a file that holds all of one (.safetensors, or .ckpt of which "
        "only tensors are read)",
    )
    parser.add_argument(
        "--motion-predictor",
        metavar="DIR_OR_ID",
        help="folder or Hub id of a motion predictor, or folder of a pipeline with one (default: the base's, if it "
        "has one; otherwise handles move in straight steps)",
    )
    _add_output_options(parser)
    parser.add_argument(
        "--push-to-hub",
        metavar="ID",
        help="then upload the folder to this repository of the Hub, such as my-name/drag",
    )
    parser.add_argument("--private", action="store_true", help="make that repository a private one, if it is new")
    parser.add_argument("--variant", metavar="NAME", help="which weights of the base to read, such as fp16")
    parser.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        help="number format to save weights in (default: that of the base's text encoder, or of the file's UNet)",
    )
    group = parser.add_argument_group("for a base of one file")
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of the tokenizer, or of a pipeline with one (default: openai/clip-vit-large-patch14 of the Hub)",
    )
    group.add_argument(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="what the UNet predicts: for 2.x epsilon at 512 pixels, v_prediction at 768 (default: what the file "
        "says, or epsilon for 1.x)",
    )
    group.add_argument("--ema", action="store_true", help="take the averaged weights of a file that has both")


def _add_motion_predictor_command(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "motion-predictor",
        help="a SimVP checkpoint, of its authors' code or of OpenSTL's, to a motion predictor",
        description="Convert a SimVP checkpoint, of its authors' code (CVPR 2022) or of OpenSTL's with the\n"
        "translator IncepU. One of a single frame, with the predictor's six channels in and two out, computes the\n"
        "same afterwards. Any other can only be the beginning of a training, which --warm-start accepts: its\n"
        "layers that depend on frames and channels begin anew, and of OpenSTL's those that double the size.",
        epilog=PREDICTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_convert_motion_predictor)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the file (.pth, .ckpt or .safetensors)")
    _add_output_options(parser)
    parser.add_argument("--warm-start", action="store_true", help="accept a model that has to be trained on")
    group = parser.add_argument_group("how it was trained to be asked", "No shape of a weight tells this.")
    for name, (values, kind, text, default) in CONDITIONING.items():
        group.add_argument(
            _flag(name),
            type=kind,
            choices=None if isinstance(values, str) else values,
            metavar=values if isinstance(values, str) else None,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {default})",
        )


def _add_identity_lora_command(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "identity-lora",
        help="a LoRA of a picture, of DragDiffusion, FreeDrag and others, to an identity LoRA",
        description="Convert a LoRA of the UNet's attention, in the names of DragDiffusion, FreeDrag, diffusers,\n"
        "peft or kohya's scripts, to a folder for `dynadrag edit --load-identity-lora`. Rank and alpha are kept.",
        epilog=LORA_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_convert_identity_lora)
    parser.add_argument("lora", metavar="LORA", type=Path, help="the file, or the folder that it is in")
    _add_output_options(parser)
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        help="the picture that it was fitted to: for others, edits then fit one of their own (default: it is used for "
        "every picture)",
    )
    parser.add_argument(
        "--base",
        metavar="DIR_OR_ID",
        help="the diffusers model that it is for: the LoRA is checked to fit, and layers that it leaves alone are "
        "filled with zeros",
    )
    parser.add_argument(
        "--processing-resolution",
        metavar="N",
        type=int,
        help="with --image: what edits will be given by that name, if anything (default: the base's own, or 512)",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", type=folder_of, required=True, help="the new folder")
    parser.add_argument("--force", action="store_true", help="replace the folder of an earlier conversion")


def _convert_pipeline(args: argparse.Namespace, written: list[Path]) -> None:
    if args.private and args.push_to_hub is None:
        raise CommandError("--private is for the repository of --push-to-hub.")
    with _errors_that_name_options(args):
        import torch

        from .stable_diffusion import check_signed_in, convert_pipeline, push_to_hub

        if args.push_to_hub is not None:
            check_signed_in()
        notes = convert_pipeline(
            args.base,
            args.out,
            motion_predictor=args.motion_predictor,
            variant=args.variant,
            dtype=None if args.dtype is None else getattr(torch, args.dtype),
            prediction_type=args.prediction_type,
            tokenizer=args.tokenizer,
            ema=args.ema,
            repository=args.push_to_hub,
            force=args.force,
        )
        _say_written(args.out, notes, written)
        if args.push_to_hub is not None:
            print(f"uploaded to {push_to_hub(args.out, args.push_to_hub, args.private)}")


def _convert_motion_predictor(args: argparse.Namespace, written: list[Path]) -> None:
    conditioning = {name: value for name, value in vars(args).items() if name in CONDITIONING}
    if conditioning.get("sample_size") == 0:
        conditioning["sample_size"] = None
    with _errors_that_name_options(args):
        from .simvp import convert_motion_predictor

        converted = convert_motion_predictor(
            args.checkpoint, args.out, warm_start=args.warm_start, force=args.force, **conditioning
        )
    shape = converted.shape
    notes = [
        f"{shape.layout} of T {shape.frames}, {shape.channels[0]} to {shape.channels[1]} channels, N_S "
        f"{shape.spatial_blocks}, N_T {shape.translator_blocks}, hid_S {shape.spatial}, hid_T {shape.translator}, "
        f"groups {shape.groups}.",
        "It computes the same as before."
        if converted.exact
        else "A warm start: it has to be trained on, by `dynadrag train-motion-predictor` with `start_from`.",
        *(f"  begins anew: {name}" for name in converted.reinitialised),
    ]
    _say_written(args.out, notes, written)


def _convert_identity_lora(args: argparse.Namespace, written: list[Path]) -> None:
    with _errors_that_name_options(args):
        from .foreign_lora import convert_identity_lora

        lora = convert_identity_lora(
            args.lora,
            args.out,
            image=args.image,
            base=args.base,
            processing_resolution=args.processing_resolution,
            force=args.force,
        )
    whose = "every picture" if lora.picture is None else "its picture alone"
    _say_written(args.out, [f"Rank {lora.rank}, alpha {lora.alpha:g}; used for {whose}."], written)


def _say_written(out: Path, notes: list[str], written: list[Path]) -> None:
    written.append(out)
    print("\n".join([f"wrote {out}", *notes]))


@contextmanager
def _errors_that_name_options(args: argparse.Namespace) -> Iterator[None]:
    """Show what the user can put right as one line, and arguments of functions as options of the command."""
    options = {*vars(args), *CONDITIONING}  # those of the conditioning are not in `args` unless they are given
    try:
        with errors_as_one_line():
            yield
    except CommandError as error:
        named = re.sub(r"`(\w+)`", lambda quoted: _flag(quoted[1]) if quoted[1] in options else quoted[0], str(error))
        raise CommandError(named) from error.__cause__


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _convert_benchmark(args: argparse.Namespace, written: list[Path]) -> None:
    from dynadrag_pipeline.evaluation.dragbench import write_instructions

    with errors_as_one_line():
        written.append(args.folder)
        count = write_instructions(args.folder)
    print(f"wrote {count} instruction{'s' * (count != 1)} in {args.folder}")
