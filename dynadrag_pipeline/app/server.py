"""The app as a server: on a loopback address unless asked otherwise, never shared, and without a trace afterwards."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from motion_predictor.common.command_errors import CommandError, one_line

from .limits import MOST_UPLOAD_MEGABYTES
from .workshop import Workshop

if TYPE_CHECKING:
    from ..pipeline_dynadrag import DynaDragPipeline

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}
"""What keeps the libraries from telling anybody anything."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:"
)
"""Browsers fetch nothing for the page from anywhere else, whatever a library writes into it."""
ASK_TO_STAY = b'addEventListener("beforeunload", (event) => window.dragStage && window.dragStage.askToStay(event))'
"""Stands first in the page: gradio's own listener hangs up before it is known whether somebody leaves."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that can't be listened on, before a model is loaded for it.

    Args:
        host (`str`): a name or an address of this machine.
        port (`int`, *optional*): by default any.

    Raises:
        CommandError: if there is no such host here, or the port is taken.
    """
    bare = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is no longer taken
            door.bind((bare, port or 0))
    except OSError as error:
        if port is not None and error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "choose another, or leave it out for the first free one"
            raise CommandError(f"--port: {port} is taken or not ours ({one_line(error)}): {remedy}.") from error
        raise CommandError(f"--host: cannot listen on {host}: {one_line(error)}.") from error


@contextmanager
def running_app(
    pipe: DynaDragPipeline, model: argparse.Namespace, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Context in which the app is served; its folder is gone afterwards.

    Args:
        pipe ([`DynaDragPipeline`]): the model.
        model (`argparse.Namespace`): `model`, `motion_predictor`, `device` and `dtype`, for records and command lines.
        host (`str`): the address that is listened on.
        port (`int`, *optional*): by default the first free one from 7860 on.

    Yields:
        `str`: where the page is.
    """
    folder = Path(tempfile.mkdtemp(prefix="dynadrag-app-"))
    ours = {**QUIET, "GRADIO_TEMP_DIR": str(folder)}
    kept = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    workshop = Workshop(pipe)
    try:
        page = _page(workshop, model, folder)
        try:
            address = _launched(page, folder, host, port)
        except OSError as error:
            raise CommandError(f"--port: cannot listen there: {one_line(error)}") from error
        try:
            yield address
        finally:
            workshop.close()  # or the threads of gradio wait for the edit that runs
            page.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _page(workshop: Workshop, model: argparse.Namespace, folder: Path) -> Any:
    from .api import Api
    from .handlers import Handlers
    from .layout import build_page
    from .parts import Parts
    from .visitors import Visitors

    handlers = Handlers(workshop, Visitors(folder / "visitors"), model, Parts())
    name = "the small portraits model that comes with the package" if model.model is None else model.model
    return build_page(handlers, Api(workshop, folder, model), name)


def _launched(page: Any, folder: Path, host: str, port: int | None) -> str:
    from starlette.middleware import Middleware

    from .layout import PAGE_CSS, theme

    page.queue(max_size=64, default_concurrency_limit=8)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=f"{MOST_UPLOAD_MEGABYTES}mb",
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        theme=theme(),
        css_paths=PAGE_CSS,
        app_kwargs={"docs_url": None, "redoc_url": None, "middleware": [Middleware(_WithPolicy)]},
    )
    return str(address)


class _WithPolicy:
    """Adds the policy to every answer, and to the page what must stand first in it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        async def send_page(message: Any) -> None:
            if message["type"] == "http.response.start":  # its length is another
                headers = [each for each in message["headers"] if each[0].lower() != b"content-length"]
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                script = b"<head><script>" + ASK_TO_STAY + b"</script>"
                message = {**message, "body": message.get("body", b"").replace(b"<head>", script, 1)}
            await send_with_policy(message)

        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        answer = send_page if is_page else send_with_policy if scope["type"] == "http" else send
        await self.app(scope, receive, answer)


@contextmanager
def ended_by_signals() -> Iterator[threading.Event]:
    """Context that is left the same way whether it ends by itself, by Ctrl+C or by a request to end.

    Yields:
        `threading.Event`: set when the app is to end. Before anybody waits for it, the signals interrupt.
    """
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ended.is_set():
            return
        ended.set()
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn_of_host(host: str) -> None:
    """Say on stderr who can reach an address, if that is not this machine alone.

    Args:
        host (`str`): a name or an address.
    """
    if not is_loopback(host):
        print(
            f"dynadrag: warning: {host} can be reached from other machines: whoever does may upload pictures and use "
            "this machine's time, without a password.",
            file=sys.stderr,
        )
