"""Checks of single arguments, each a ValueError that names the argument, its value and what is accepted.

Each answers with the value as a plain Python object: a fraction or a number of numpy goes no further than here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

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
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, (Real, str)) and shape != ():
        return f"{type(value).__name__} of shape {tuple(shape)}"
    try:
        text = repr(value[:LONGEST_SHOWN] if isinstance(value, (str, bytes)) else value)
    except Exception:  # numbers of more digits than Python prints, and objects that can't be shown
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


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


def _finite(value: Any) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
