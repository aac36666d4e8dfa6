"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes its name only when the block ends without an exception.

    Until then it has a name of its own in the same folder, whoever else writes there, and however long that of `path`
    is. If the block fails, it is removed, and an older file at `path` stays as it was.

    Args:
        path (`str` or `Path`): of the file.

    Example:
        >>> with atomic_file("result.json") as file:  # doctest: +SKIP
        ...     file.write(b"{}")
    """
    path = Path(path)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
