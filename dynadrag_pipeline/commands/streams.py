"""Standard output and error that never end the work: what can't be written is left out, and remembered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, cast


class CarefreeStream:
    """A text stream that raises nothing, whether its disk is full, its reader gone, or a letter not in its encoding.

    Args:
        stream (`TextIO`, *optional*): what to write to; `None`, which is a stream that the caller closed, is nowhere.

    Attributes:
        failure (`OSError`, *optional*): the first that writing met.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115 - as long as the process
        self.failure: OSError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or leave it out."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what was kept back, or leave it out."""
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.failure = self.failure or error


def make_streams_carefree() -> None:
    """Put such streams in the place of the process's own, for good: Python writes to them until it ends."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), CarefreeStream):
            setattr(sys, name, CarefreeStream(getattr(sys, name)))


def output_failure() -> OSError | None:
    """Why what was printed so far could not be written, if it could not."""
    output = cast(CarefreeStream, sys.stdout)
    output.flush()
    return output.failure
