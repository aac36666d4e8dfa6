"""Pictures as users have them, to tensors in [0, 1] and to the size that the edit runs at."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from PIL import Image, ImageOps

logger = logging.get_logger(__name__)

Picture = Image.Image | np.ndarray | torch.Tensor
MIN_SIDE = 64


def to_picture_tensor(picture: Picture) -> torch.Tensor:
    """Convert one picture to RGB, `[1, 3, height, width]`, float32 in [0, 1].

    PIL pictures may have any mode and an EXIF rotation, which is applied; transparency is laid over white.
    Arrays are `(height, width)` or `(height, width, 1, 3 or 4)`, tensors `(1, 3 or 4, height, width)`, with or
    without a batch of one; uint8 and uint16 count from 0 to the end of their type, floats from 0 to 1.

    Raises:
        ValueError: if it is none of these, smaller than 64 pixels on a side, not finite, or out of range.
    """
    if isinstance(picture, Image.Image):
        channels_last = pil_to_array(ImageOps.exif_transpose(picture))
    elif isinstance(picture, np.ndarray):
        channels_last = picture[0] if picture.ndim == 4 and len(picture) == 1 else picture
    elif isinstance(picture, torch.Tensor):
        values = picture.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        channels_last = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        raise ValueError(f"`image` must be a PIL image, a numpy array or a tensor, got {type(picture).__name__}.")
    if channels_last.ndim == 2:
        channels_last = channels_last[..., None]
    if channels_last.ndim != 3 or channels_last.shape[-1] not in (1, 3, 4):
        raise ValueError(
            "`image` must have 1, 3 or 4 channels: arrays (height, width, channels), tensors (channels, height, "
            f"width); got shape {picture.shape if not isinstance(picture, Image.Image) else channels_last.shape}."
        )
    if min(channels_last.shape[:2]) < MIN_SIDE:
        height, width = channels_last.shape[:2]
        raise ValueError(f"`image` must be at least {MIN_SIDE} pixels on each side, got {width}x{height}.")
    return torch.from_numpy(_to_rgb(to_unit_range(channels_last))).permute(2, 0, 1)[None].contiguous()


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


def pil_to_array(picture: Image.Image) -> np.ndarray:
    """`[height, width, channels]`, in the picture's own depth."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[..., None]
    if picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float32)[..., None]
        top = 1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        return values / top
    if "A" in picture.getbands() or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def to_unit_range(array: np.ndarray) -> np.ndarray:
    """Whole numbers by the range of their type, floats checked to be in [0, 1]."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        if array.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"`image` in whole numbers must be uint8 or uint16, which say their range; got {array.dtype}."
            )
        array = array / np.iinfo(array.dtype).max
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"`image` must have finite values in [0, 1] (or whole numbers from 0 to the end of their type), got "
            f"values in [{array.min():g}, {array.max():g}]."
        )
    return array


def _to_rgb(array: np.ndarray) -> np.ndarray:
    """Grey to three equal channels, transparency over white."""
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        if (alpha < 1).any():
            logger.warning("`image` has transparent pixels: they are laid over white.")
        array = array[..., :3] * alpha + (1 - alpha)
    return np.repeat(array, 3, axis=2) if array.shape[-1] == 1 else array.copy()
