"""Checks of single arguments, each a ValueError that names the argument, its value and what is accepted.

Each answers with the value as a plain Python object: a fraction or a number of numpy goes no further than here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

LONGEST_SHOWN = 120  # letters of a value in a message


def got(value: Any) -> str:
    """How a message shows a value: as Python writes it, cut short, whatever it is.

    Args:
        value (`Any`): of an argument, whatever it is.

    Returns:
        `str`: at most 120 letters.

    Example:
        >>> got(0.5), got("x" * 1000)[-4:]
        ('0.5', 'x...')
    """
    try:
        text = _shown(value)
    except Exception:  # numbers of more digits than Python prints, and objects that can't be shown
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


@contextmanager
def naming(name: str, value: Any) -> Iterator[None]:
    """Context in which an argument is read: whatever goes wrong there is a ValueError that names it.

    Values are anybody's objects, which may raise wherever they are looked at: when they are compared, counted,
    iterated over or turned into arrays.

    Args:
        name (`str`): of the argument.
        value (`Any`): what was passed.

    Raises:
        ValueError: what a check said, as it is, if it begins with a name in backticks; or one about `value`.

    Example:
        >>> with naming("points", {1: 2}):
        ...     _ = {1: 2}[0]
        Traceback (most recent call last):
        ...
        ValueError: `points` must be a value that can be read, got {1: 2}, which raised KeyError(0).
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise
        raise ValueError(
            f"`{name}` must be a value that can be read, got {got(value)}, which raised {got(error)}."
        ) from error


Check = TypeVar("Check", bound=Callable[..., Any])


def _total(check: Check) -> Check:
    """A check of `(name, value, ...)` that raises nothing but a ValueError, whatever the value does."""

    @functools.wraps(check)
    def checked_totally(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        with naming(name, value):
            return check(name, value, *args, **kwargs)

    return checked_totally  # type: ignore[return-value]


@_total
def check_whole_number(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """The whole number from `least` to `most` that `value` is, or a ValueError.

    Args:
        name (`str`): of the argument, for the message.
        value (`Any`): that was given.
        least (`int`): that is accepted.
        most (`float`, *optional*): that is accepted.

    Returns:
        `int`: the value.

    Example:
        >>> check_whole_number("steps", 25, least=1)
        25
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) <= most:
        upper = "" if most == math.inf else f" and at most {most:.0f}"
        raise ValueError(f"`{name}` must be a whole number of at least {least}{upper}, got {got(value)}.")
    return int(value)


@_total
def check_number(
    name: str, value: Any, *, above: float | None = None, least: float = -math.inf, most: float = math.inf
) -> float:
    """The finite number over `above`, or else from `least` on, up to `most`, that `value` is, or a ValueError.

    Args:
        name (`str`): of the argument, for the message.
        value (`Any`): that was given.
        above (`float`, *optional*): that it must lie over, in place of `least`.
        least (`float`, *optional*, defaults to -math.inf): that is accepted.
        most (`float`, *optional*): that is accepted.

    Returns:
        `float`: the value.

    Example:
        >>> check_number("rate", 1.5, least=0, most=1)
        Traceback (most recent call last):
        ...
        ValueError: `rate` must be a finite number of at least 0 and at most 1, got 1.5.
    """
    number = _finite(value)
    if number is None or not (number >= least if above is None else number > above) or number > most:
        limits = [] if least == -math.inf or above is not None else [f"of at least {least:g}"]
        limits += [] if above is None else [f"above {above:g}"]
        limits += [] if most == math.inf else [f"and at most {most:g}" if limits else f"of at most {most:g}"]
        accepted = " ".join(["a finite number", *limits])
        raise ValueError(f"`{name}` must be {accepted}, got {got(value)}.")
    return number


@_total
def check_choice(name: str, value: Any, accepted: Sequence[Any]) -> Any:
    """The one of `accepted` that `value` is, or a ValueError.

    Args:
        name (`str`): of the argument, for the message.
        value (`Any`): that was given.
        accepted (`Sequence[Any]`): values; one of them may be `None`.

    Returns:
        `Any`: the one that it is.

    Example:
        >>> check_choice("guard", "clamp", ("none", "clamp"))
        'clamp'
    """
    for each in accepted:
        if value is each or (isinstance(value, str) and isinstance(each, str) and value == each):
            return each
    raise ValueError(f"`{name}` must be one of {', '.join(map(repr, accepted))}, got {got(value)}.")


@_total
def check_switch(name: str, value: Any) -> bool:
    """Whether `value` is true, for `True` and `False` alone, Python's or numpy's; else a ValueError.

    Args:
        name (`str`): of the argument, for the message.
        value (`Any`): that was given.

    Returns:
        `bool`: the value.

    Example:
        >>> check_switch("gif", 1)
        Traceback (most recent call last):
        ...
        ValueError: `gif` must be True or False, got 1.
    """
    if type(value).__name__ not in ("bool", "bool_") or getattr(value, "shape", ()) != ():
        raise ValueError(f"`{name}` must be True or False, got {got(value)}.")
    return bool(value)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, (Real, str)) and shape != ():
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = repr(value[:LONGEST_SHOWN] if isinstance(value, (str, bytes)) else value)
    return " ".join(text.split()) if "\n" in text else text


def _finite(value: Any) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
