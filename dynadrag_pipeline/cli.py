"""The command line: `dynadrag edit IMAGE --handle X,Y --target X,Y`, and the commands of the other packages.

What needs torch or diffusers is imported when a command runs, so that help and mistakes in the arguments are answered
at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conversion.command_line import add_convert_command
from motion_predictor.command_line import add_motion_predictor_commands
from motion_predictor.common.command_errors import CommandError, NotSaved, one_line

from .commands.app import add_app_command
from .commands.build_pairs import add_build_pairs_command
from .commands.edit import add_edit_command
from .commands.edit_options import negative_points_joined
from .commands.evaluate import add_evaluate_command
from .commands.preview import add_preview_command
from .commands.streams import make_streams_carefree, output_failure

NOT_SAVED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, without the program's name; by default those of the process.

    Returns:
        `int`: the exit status: 0 done, 1 done but not all could be saved, 2 bad input, 130 interrupted. `--help` and
        mistakes that argparse finds leave by `SystemExit`.

    Example:
        >>> main(["edit", "portrait.png", "--handle", "127,160", "--target", "151,160"])  # doctest: +SKIP
        0
    """
    make_streams_carefree()
    argv = negative_points_joined(sys.argv[1:] if argv is None else argv)
    written: list[Path] = []
    try:
        args = build_parser(argv).parse_args(argv)
        args.run(args, written)
    except SystemExit as leaving:  # of --help and --version, or of a mistake that argparse has told
        if leaving.code or output_failure() is None:
            raise
    except CommandError as error:
        return _end(BAD_INPUT, f"dynadrag: error: {one_line(error)}")
    except NotSaved as error:
        return _end(NOT_SAVED, f"dynadrag: {error}")
    except KeyboardInterrupt:
        kept = f"kept: {', '.join(map(str, written))}" if written else "nothing was written"
        return _end(INTERRUPTED, f"\ndynadrag: interrupted; {kept}.")
    failure = output_failure()
    if failure is not None:
        return _end(NOT_SAVED, f"dynadrag: the output could not be printed ({one_line(failure)}).")
    return 0


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands. Each sets `run`, which is called with the arguments and a list of files written.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments that it is for: help shows the defaults of their model.
    """
    parser = argparse.ArgumentParser(
        prog="dynadrag", description="Drag-style image editing by predict-and-move.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_edit_command(commands, argv)
    add_preview_command(commands)
    add_app_command(commands)
    add_build_pairs_command(commands)
    add_evaluate_command(commands)
    add_motion_predictor_commands(commands)
    add_convert_command(commands)
    return parser


def _end(status: int, message: str) -> int:
    print(message, file=sys.stderr)
    return status


class _PrintVersion(argparse.Action):
    """`--version` that imports the package only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from . import __version__

        print(f"dynadrag {__version__}")
        parser.exit()
