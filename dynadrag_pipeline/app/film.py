"""An edit as a film."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from PIL import Image

from .edits import Edit

FRAMES_PER_SECOND = 6
HELD = 6
"""Frames that the first and the last picture stay."""
SHORTEST_SIDE = 256
"""Pixels of a film's short side, at least: players show small films badly."""


def can_film() -> bool:
    """Whether PyAV is there, which writes films."""
    return importlib.util.find_spec("av") is not None


def write_mp4(edit: Edit, file: BinaryIO) -> None:
    """Write the pictures between, from the one that the edit began with to the edited one, as MP4 (H.264).

    Args:
        edit ([`Edit`]): with pictures between.
        file (`BinaryIO`): open for writing, and for going back in.
    """
    import av

    between = [step.image for step in edit.result.iterations if step.image is not None]
    pictures = [
        edit.order.base.shown,
        *(Image.fromarray(np.rint(each.permute(1, 2, 0).float().numpy() * 255).astype(np.uint8)) for each in between),
        edit.after,
    ]
    size = _even_size(pictures[0].size, min(pictures[1].size))
    frames = [each.resize(size, Image.Resampling.BICUBIC) for each in pictures]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(FRAMES_PER_SECOND))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in [frames[0]] * HELD + frames[1:-1] + [frames[-1]] * 2 * HELD:
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def _even_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """About the size that the edit ran at, with sides that H.264 takes."""
    scale = max(short_side, SHORTEST_SIDE) / min(size)
    width, height = (2 * max(1, round(side * scale / 2)) for side in size)
    return width, height
