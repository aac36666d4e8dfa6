"""What commands say when something is wrong: one line on stderr, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LINE = 1000
"""Letters of a message; the longest of ours list the names of all options."""


class CommandError(Exception):
    """What the user can put right; the command line shows it as one line, and exits with 2."""


class NotSaved(Exception):
    """The work is done, and not all of it could be saved where it was to be; the command line exits with 1."""


def one_line(error: BaseException, longest: int = LONGEST_LINE) -> str:
    """The message of an error on one line of bearable length; its class, if it has none.

    Args:
        error (`BaseException`): of any kind.
        longest (`int`, *optional*, defaults to 1000): letters, beyond which it is cut.

    Returns:
        `str`: its message.

    Example:
        >>> one_line(ValueError("not\\n  here"))
        'not here'
        >>> one_line(ValueError("not here"), longest=6)
        'not...'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Turn what the user can put right into a [`CommandError`]."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CommandError(one_line(error)) from error
