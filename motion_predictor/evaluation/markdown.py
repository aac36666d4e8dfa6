"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds names, and the others numbers.

    Args:
        header (`Sequence[str]`): the titles of the columns.
        rows (`Iterable[Sequence[str]]`): as long as the header.

    Returns:
        `str`: lines that end with a line break.

    Example:
        >>> print(markdown_table(["name", "px"], [["it", "1.0"]]), end="")
        | name | px |
        | --- | ---: |
        | it | 1.0 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    """A share as a percentage; nothing where it is not known.

    Args:
        share (`float` or `None`): 1 for all.

    Returns:
        `str`: the text.

    Example:
        >>> percent(0.125)
        '12.5%'
    """
    return "" if share is None else f"{share:.1%}"
