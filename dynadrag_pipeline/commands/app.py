"""`dynadrag app`: drag with the mouse, in a browser."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

from motion_predictor.common.command_errors import CommandError

from .edit_model import available_device, load_pipeline, suitable_dtype
from .edit_options import add_loading_options

APP_EXAMPLES = """\
examples:
  Open the app with the small model that comes with the package, and follow the address that it prints:

    dynadrag app

  With Stable Diffusion 1.5 on a GPU:

    dynadrag app --model stable-diffusion-v1-5/stable-diffusion-v1-5 --motion-predictor embedded --device cuda
"""


def add_app_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `app` to the parser of `dynadrag`."""
    parser = commands.add_parser(
        "app",
        help="drag with the mouse, in a browser",
        description="Open a page on which pictures are dragged with the mouse: see it move, undo, go on. It is served "
        "on this\nmachine alone, works without a network, and keeps nothing.",
        epilog=APP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_app)
    add_loading_options(parser.add_argument_group("model"))
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to listen on; others than this machine's own let other machines in, without a password "
        "(default: 127.0.0.1)",
    )
    group.add_argument(
        "--port", metavar="N", type=int, help="port to listen on (default: the first free one from 7860 on)"
    )
    group.add_argument(
        "--share-never",
        action="store_true",
        help="refuse every --host that other machines reach: for scripts that must not open the app to others",
    )


def _app(args: argparse.Namespace, written: list[Path]) -> None:
    """`dynadrag app`: load the model, serve the page, and wait."""
    if importlib.util.find_spec("gradio") is None:
        raise CommandError("the app needs gradio: pip install 'dynadrag[app]', or `make app` in a clone.")
    from ..app.server import check_address, ended_by_signals, is_loopback, running_app, warn_of_host

    if args.share_never and not is_loopback(args.host):
        raise CommandError(f"--host: {args.host} can be reached from other machines, which --share-never refuses.")
    if args.port is not None and not 0 < args.port < 65536:
        raise CommandError(f"--port must be from 1 to 65535, got {args.port}.")
    check_address(args.host, args.port)
    args.device = available_device(args.device)
    args.dtype = suitable_dtype(args.dtype, args.device)
    args.quiet, args.load_identity_lora = True, None
    with suppress(KeyboardInterrupt), ended_by_signals() as ended:
        print("dynadrag app: loading the model ...", file=sys.stderr, flush=True)
        pipe = load_pipeline(args)
        warn_of_host(args.host)
        with running_app(pipe, args, args.host, args.port) as address:
            print(f"dynadrag app: {address} (Ctrl+C ends it)", flush=True)
            while not ended.wait(0.5):
                pass
    print("dynadrag app: ended; nothing was kept.")
