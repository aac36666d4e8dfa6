"""Pictures as users have them, to tensors in [0, 1] and to the size that the edit runs at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from PIL import Image

from motion_predictor.common.checks import got, naming
from motion_predictor.common.picture_array import ROUNDING, pil_to_array
from motion_predictor.common.picture_files import check_pixel_count

logger = logging.get_logger(__name__)

Picture = Image.Image | np.ndarray | torch.Tensor
MIN_SIDE = 64


def to_picture_tensor(picture: Picture) -> torch.Tensor:
    """Convert one picture to RGB, `[1, 3, height, width]`, float32 in [0, 1].

    Args:
        picture (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            PIL pictures may have any mode and an EXIF rotation, which is applied. Arrays are `(height, width)` or
            `(height, width, 1, 3 or 4)`, tensors `(1, 3 or 4, height, width)`, with or without a batch of one; uint8
            and uint16 count from 0 to the end of their type, floats from 0 to 1. Transparency is laid over white.

    Raises:
        ValueError: if it is none of these, smaller than 64 pixels on a side, larger than 8192 x 8192 pixels, damaged,
            not finite, or out of range.

    Example:
        >>> to_picture_tensor(Image.new("CMYK", (80, 64)))[0, :, 0, 0]
        tensor([1., 1., 1.])
    """
    with naming("image", picture):
        return _as_rgb_tensor(picture)


def _as_rgb_tensor(picture: Picture) -> torch.Tensor:
    """See [`to_picture_tensor`]."""
    if isinstance(picture, Image.Image):
        channels_last = pil_to_array("image", picture)
    elif isinstance(picture, (np.ndarray, torch.Tensor)):
        array = plain_numbers("image", picture)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        channels_last = np.moveaxis(array, 0, -1) if isinstance(picture, torch.Tensor) and array.ndim == 3 else array
    else:
        raise ValueError(f"`image` must be a PIL image, a numpy array or a tensor, got {got(picture)}.")
    if channels_last.ndim == 2:
        channels_last = channels_last[..., None]
    if channels_last.ndim != 3 or channels_last.shape[-1] not in (1, 3, 4):
        raise ValueError(
            "`image` must have 1, 3 or 4 channels: arrays (height, width, channels), tensors (channels, height, "
            f"width); got {got(picture)}."
        )
    height, width = channels_last.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"`image` must be at least {MIN_SIDE} pixels on each side, got {width}x{height}.")
    check_pixel_count("image", height * width, f"{width}x{height}")
    return torch.from_numpy(_to_rgb(to_unit_range("image", channels_last))).permute(2, 0, 1)[None].contiguous()


def edit_size(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """(height, width) to edit a picture of `size` at: about `short_side`, each a multiple of the VAE's factor.

    A `short_side` of 0 keeps the picture's own size up to that rounding.

    Example:
        >>> edit_size((600, 512), short_side=128, multiple=4)
        (152, 128)
    """
    scale = short_side / min(size) if short_side else 1.0
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return height, width


def resize_picture(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize `[batch, 3, height, width]` in [0, 1] by antialiased cubic interpolation."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def plain_numbers(name: str, values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The booleans, whole numbers or floats of any array or tensor that has a value everywhere; maybe not a copy.

    Raises:
        ValueError: if it is of another kind, or so large that it can't be a picture.
    """
    accepted = f"`{name}` must be an array or a dense tensor of real numbers"
    if isinstance(values, torch.Tensor) and (values.is_nested or values.layout != torch.strided):
        raise ValueError(f"{accepted}, got a {'nested' if values.is_nested else values.layout} tensor.")
    check_pixel_count(name, math.prod(values.shape) // 4, got(values))  # four channels at most
    array: Any = values
    if isinstance(values, torch.Tensor):
        try:
            dense = values.detach().resolve_conj().resolve_neg().cpu()
            array = (dense.float() if dense.is_floating_point() else dense).numpy()
        except Exception as error:  # no values, as on the device "meta", or none that numpy has a type for
            raise ValueError(f"{accepted}, got {got(values)}, {values.dtype} on {values.device}.") from error
    if isinstance(array, np.ma.MaskedArray) or array.dtype.kind not in "biuf":
        kind = "masked" if isinstance(array, np.ma.MaskedArray) else array.dtype.name
        raise ValueError(f"{accepted}, got {got(values)}, {kind}.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


def to_unit_range(name: str, array: np.ndarray) -> np.ndarray:
    """A copy in float32: whole numbers by the range of their type, floats checked to be in [0, 1]."""
    if np.issubdtype(array.dtype, np.integer):
        if array.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"`{name}` in whole numbers must be uint8 or uint16, which say their range; got {array.dtype}."
            )
        array = array / np.iinfo(array.dtype).max
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < -ROUNDING or array.max() > 1 + ROUNDING:
        raise ValueError(
            f"`{name}` must have finite values in [0, 1] (or whole numbers from 0 to the end of their type), got "
            f"values in [{array.min():g}, {array.max():g}]."
        )
    return array.clip(0, 1, out=array)


def _to_rgb(array: np.ndarray) -> np.ndarray:
    """Grey to three equal channels, transparency over white."""
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        if (alpha < 1).any():
            logger.warning("`image` has transparent pixels: they are laid over white.")
        array = array[..., :3] * alpha + (1 - alpha)
    return np.repeat(array, 3, axis=2) if array.shape[-1] == 1 else array.copy()
