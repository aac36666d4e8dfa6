"""The pixels of a picture of Pillow, whatever its mode: upright, in its own depth, and in grey, RGB or RGBA."""

from __future__ import annotations

from logging import getLogger
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .checks import got
from .picture_files import check_pixel_count

ROUNDING = 1e-4
"""How far floats may lie outside [0, 1], and count as 0 or 1: resizing and low precision leave less than that."""

RINGING = 0.25
"""By what share of white Pillow's filters may carry pixels past black or white, in modes without an end."""

# What undoes an orientation of EXIF. Pillow's `exif_transpose` does too, but also writes the EXIF data anew, and fails
# where it can't write what it could read.
TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pil_to_array(name: str, picture: Image.Image) -> np.ndarray:
    """`[height, width, channels]`, upright, in the picture's own depth, and in grey, RGB or RGBA.

    Args:
        name (`str`): of the argument, for messages.
        picture (`PIL.Image.Image`): of any mode, with or without an EXIF rotation.

    Returns:
        `np.ndarray` of shape `(height, width, 1, 3 or 4)`: whole numbers to the end of their type, or floats to 1.

    Raises:
        ValueError: if it has too many pixels, is damaged, or can't be converted.

    Example:
        >>> pil_to_array("image", Image.new("I;16", (2, 1), 300)).tolist()
        [[[300], [300]]]
    """
    check_pixel_count(name, picture.width * picture.height, got(picture))
    try:
        picture.load()
        return _in_own_depth(upright(name, picture))
    except Exception as error:  # decoders raise whatever they trip over
        raise ValueError(f"`{name}` must be a whole picture, got {got(picture)} ({error}).") from error


def upright(name: str, picture: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF data say, if they can be read.

    Args:
        name (`str`): of the argument, for the warning where they can't.
        picture (`PIL.Image.Image`): any.

    Returns:
        `PIL.Image.Image`: of the same mode.

    Example:
        >>> sideways = Image.new("L", (8, 4))
        >>> sideways.getexif()[ExifTags.Base.Orientation] = 6
        >>> upright("image", sideways).size
        (4, 8)
    """
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # a reader that trips over what a camera wrote
        warning = f"`{name}` has EXIF data that can't be read ({error}): it is taken as it is, not turned."
        getLogger(__name__).warning(warning)
        return picture
    return picture if turn is None else picture.transpose(turn)


def _in_own_depth(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[..., None]
    if picture.mode in ("I", "F"):
        return _in_guessed_range(np.asarray(picture, dtype=np.float32)[..., None])
    if picture.mode == "La":  # has no way to RGBA but this
        picture = picture.convert("LA")
    has_alpha = picture.mode != "LAB" and {"A", "a"} & set(picture.getbands())  # in LAB, A is a colour
    return np.asarray(picture.convert("RGBA" if has_alpha or "transparency" in picture.info else "RGB"))


def _in_guessed_range(values: np.ndarray) -> np.ndarray:
    """Of modes that don't say what is white: the least of 1, 255 and 65535 that nothing lies far above."""
    highest, lowest = values.max(initial=0), values.min(initial=0)
    for white in (1, 255, 65535):
        if highest <= white * (1 + RINGING):
            return (values / white).clip(0, 1) if lowest >= -white * RINGING else values
    return values
