"""The picture with its points and its mask: a component of our own, in plain HTML, CSS and JavaScript."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from motion_predictor.common.checks import got
from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import decode_picture

from ..drag_instruction import as_pairs
from .edits import Point
from .limits import MOST_PIXELS

LARGEST_SHOWN = 1024
"""Pixels of the long side of pictures that come and go: previews, and iterations of an edit."""
DATA_URL = "data:image/png;base64,"
NOTHING = False
"""What takes a preview or a running edit off the picture: gradio leaves None out of what it sends."""


def make_stage(keep: Callable[[str], None]) -> gr.HTML:
    """The component: its parts lie beside this file, and `stage.js` says how they talk to each other.

    Args:
        keep (`Callable`): is told now and then, by a page that is open, the name of its picture.
    """

    def here(picture: str) -> None:  # gradio marks it, and can't mark a method
        keep(picture)

    html, css, script = (
        Path(__file__).with_name(f"stage.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    parts: dict[str, Any] = {
        "html_template": html,
        "css_template": css,
        "js_on_load": script,
        "server_functions": [here],
    }
    said: dict[str, Any] = {"scene": None, "preview": None, "live": None, "parcel": None}
    return gr.HTML(value=None, elem_id="stage", apply_default_css=False, **parts, **said)


@dataclass(frozen=True)
class Drawn:
    """What a visitor has put on the picture.

    Attributes:
        handles, targets (`list`): (x, y) in pixels of the picture.
        mask (`PIL.Image.Image`, *optional*): white where the picture may change.
        revision (`int`): counts what was done, so that late answers are known.
    """

    handles: list[Point]
    targets: list[Point]
    mask: Image.Image | None
    revision: int

    @classmethod
    def of(cls, value: Any, size: tuple[int, int]) -> Drawn:
        """Read what the component tells; it comes from a browser, so nothing of it is believed.

        Args:
            value (`Any`): of the component.
            size (`tuple[int, int]`): (width, height) of the picture that is shown.

        Raises:
            ValueError: if it is not what the component tells.
        """
        value = value or {}
        if not isinstance(value, dict):
            raise ValueError(f"`value` must be what the picture tells, got {got(value)}.")
        pairs = value.get("points") or []
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"`points` must be pairs of a handle and a target, got {got(pairs)}.")
        flat = (
            [_whole(point) for point in as_pairs("points", [point for pair in pairs for point in pair])]
            if pairs
            else []
        )
        mask = mask_of(value.get("mask"), size)
        return cls(flat[0::2], flat[1::2], mask, int(value.get("revision") or 0))


def _whole(point: np.ndarray) -> Point:
    """A point with whole numbers where they are whole."""
    return [int(number) if number.is_integer() else number for number in point.tolist()]


def mask_of(url: Any, size: tuple[int, int]) -> Image.Image | None:
    """Read a mask as the component tells it.

    Args:
        url (`Any`): a PNG in a data URL, opaque where the picture may change; or nothing.
        size (`tuple[int, int]`): (width, height) of the picture, in pixels.

    Returns:
        `PIL.Image.Image`, *optional*: of mode L and that size, 255 where the picture may change; nothing, if that is
        everywhere.

    Raises:
        ValueError: if it is something else, or has another size.
    """
    if not url:
        return None
    if not isinstance(url, str) or not url.startswith(DATA_URL) or len(url) > MOST_PIXELS:
        raise ValueError(f"`mask` must be a picture in a data URL, got {got(url)}.")
    picture = decode_picture(base64.b64decode(url.removeprefix(DATA_URL)), "the mask")
    if picture.size != size:
        raise ValueError(f"`mask` must have the size of the picture, {size[0]}x{size[1]}, got {got(picture.size)}.")
    return as_mask(painted_region(picture))


def as_mask(region: np.ndarray) -> Image.Image | None:
    """A region as a picture.

    Args:
        region (`np.ndarray` of shape `(height, width)`): bool, where the picture may change.

    Returns:
        `PIL.Image.Image`, *optional*: of mode L, 0 or 255; nothing, if the region is everything.
    """
    return None if region.all() else Image.fromarray(region.astype(np.uint8) * 255)


def mask_url(mask: Image.Image | None) -> str | None:
    """A mask as the component takes it, which [`mask_of`] reads again.

    Args:
        mask (`PIL.Image.Image`, *optional*): bright where the picture may change.

    Returns:
        `str`, *optional*: a PNG in a data URL, transparent where the picture must stay.
    """
    if mask is None:
        return None
    drawn = Image.new("RGBA", mask.size, (255, 255, 255, 0))
    drawn.putalpha(mask.convert("L"))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return DATA_URL + base64.b64encode(file.getvalue()).decode()


def passing_url(picture: Image.Image) -> str:
    """A picture that comes and goes, inside its own address.

    Args:
        picture (`PIL.Image.Image`): of any size and mode.

    Returns:
        `str`: a JPEG in a data URL, at most `LARGEST_SHOWN` pixels on its long side.
    """
    small = picture.convert("RGB")
    small.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
