"""Picture files, opened only if they are what they claim to be: regular files, of usual formats, of bearable size."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from .checks import got

MOST_PIXELS = 8192 * 8192
"""Of a picture: checking and resizing a larger one takes most of a minute before its edit starts."""

# Pillow picks a decoder by content, not by name, and some start other programs: Ghostscript, for PostScript.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture file with all of its pixels; of an animation, the first frame.

    What the file is, its format and its size are checked before anything is decoded.

    Args:
        path (`str` or `Path`): a file in one of the formats of `PICTURE_FORMATS`, with at most `MOST_PIXELS` pixels.

    Returns:
        `PIL.Image.Image`: independent of the file, and not turned by its EXIF data.

    Raises:
        ValueError: if it is no such file, or is damaged.
        OSError: if there is no file, or it may not be read.

    Example:
        >>> open_picture("portrait.png").size  # doctest: +SKIP
        (512, 512)
    """
    check_regular_file(path)
    with open(path, "rb") as file:
        return _decoded(file, got(os.fspath(path)))


def decode_picture(data: bytes, source: str) -> Image.Image:
    """What [`open_picture`] gives, from the bytes of a file, such as a member of an archive.

    Args:
        data (`bytes`): content of the file.
        source (`str`): where it comes from, for messages.

    Raises:
        ValueError: see [`open_picture`].

    Example:
        >>> decode_picture(b"P5 2 1 255 \\x00\\xff", "two grey pixels").getpixel((1, 0))
        255
    """
    return _decoded(io.BytesIO(data), got(source))


def check_regular_file(path: Any) -> None:
    """Raise unless a path leads to a regular file: to open a pipe or a device may block for ever.

    Raises:
        ValueError: if it leads to something else.
        OSError: if it leads nowhere.
    """
    try:
        mode = Path(path).stat().st_mode
    except (TypeError, ValueError) as error:  # no path, or one with a zero byte
        raise ValueError(f"`path` must be the path of a file, got {got(path)}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"`path` must be the path of a regular file, got {got(os.fspath(path))}, which is {kind}.")


def check_pixel_count(name: str, count: int, shown: str) -> None:
    """Raise a ValueError if a picture has more than `MOST_PIXELS` pixels."""
    if count > MOST_PIXELS:
        raise ValueError(f"`{name}` must have at most {MOST_PIXELS:,} pixels, got {shown}.")


def _decoded(file: BinaryIO, shown: str) -> Image.Image:
    """All pixels of an open file; `shown` is how messages show its path."""
    try:
        picture = Image.open(file, formats=PICTURE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # beyond a limit of Pillow's
        raise ValueError(f"`path` must have at most {MOST_PIXELS:,} pixels, got {shown}, which has more.") from error
    except Exception as error:  # decoders raise whatever they trip over
        raise ValueError(f"`path` must be a picture file ({', '.join(PICTURE_FORMATS)}), got {shown}.") from error
    check_pixel_count("path", picture.width * picture.height, f"{shown} of {picture.width}x{picture.height}")
    try:
        picture.load()
    except Exception as error:
        raise ValueError(f"`path` must be a whole picture file, got {shown}, which is damaged ({error}).") from error
    return picture.copy()
