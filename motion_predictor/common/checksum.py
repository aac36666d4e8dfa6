"""What tells whether a file is still as it was written."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file.

    Args:
        path (`str` or `Path`): of the file.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "empty")
        ...     _ = path.write_bytes(b"")
        ...     sha256_of(path)[:8]
        'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
