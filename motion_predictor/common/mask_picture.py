"""What a mask selects: one rule for masks that people paint, in whatever colour, depth and mode."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .picture_array import ROUNDING, pil_to_array


def painted_region(picture: Image.Image) -> np.ndarray:
    """What a mask selects: what is opaque if not all is, else what is bright, in white or in another colour.

    Args:
        picture (`PIL.Image.Image`): of any mode. It is turned by its EXIF data. Whole numbers count by the least of 1,
            255 and 65535 that none of them exceeds.

    Returns:
        `np.ndarray` of shape `(height, width)`: bool, True where it is painted by at least half.

    Raises:
        ValueError: if it has no pixels or too many, is damaged, or its values say no range.

    Example:
        >>> mask = Image.new("RGB", (3, 1))
        >>> mask.putpixel((1, 0), (255, 0, 0))
        >>> painted_region(mask).tolist()
        [[False, True, False]]
    """
    channels = pil_to_array("mask", picture)
    if 0 in channels.shape:
        raise ValueError(f"`mask` must have pixels, got {channels.shape[1]}x{channels.shape[0]}.")
    if channels.shape[-1] == 4:
        opaque = at_least_half(channels[..., 3])
        if not opaque.all():
            return opaque
    return at_least_half(channels[..., :3].max(axis=-1))


def at_least_half(values: np.ndarray) -> np.ndarray:
    """Where values reach half of what is white, which is 1, or for whole numbers what their highest value suggests.

    Args:
        values (`np.ndarray`): of a mask: booleans, floats to 1, or whole numbers to 1, 255 or 65535.

    Returns:
        `np.ndarray`: bool, of the same shape.

    Raises:
        ValueError: if values are negative, or higher than white.

    Example:
        >>> at_least_half(np.array([0, 127, 128, 255])).tolist()
        [False, False, True, True]
    """
    if values.dtype == bool:
        return values
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    lowest, highest = values.min(), values.max()
    if values.dtype.kind != "f":
        white = next((white for white in (1, 255, 65535) if highest <= white), None)
    else:
        white = 1 if highest <= 1 + ROUNDING else None
    if white is None or not lowest >= -ROUNDING:
        raise ValueError(
            f"`mask` must hold floats from 0 to 1, or integers from 0 to 255 or 65535, got {values.dtype} from "
            f"{lowest:g} to {highest:g}."
        )
    return values >= white / 2
