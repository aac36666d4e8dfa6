"""Checks of single arguments, each a ValueError that names the argument, its value and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def check_number(name: str, value: Any, *, above: float | None = None, least: float = -math.inf, most: float) -> None:
    """Raise unless `value` is a finite number over `above`, or else from `least` on, up to `most`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (value >= least if above is None else value > above) or value > most:
        lower = f"of at least {least:g}" if above is None else f"above {above:g}"
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"`{name}` must be a finite number {lower}{upper}, got {value!r}.")


def check_choice(name: str, value: Any, accepted: Sequence[Any]) -> None:
    """Raise unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, accepted))}, got {value!r}.")
