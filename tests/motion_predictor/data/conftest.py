"""Videos that are made by the tests: a picture that moves in a known way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest


def _textured_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 1, (height, width, 3)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 4, 8))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def _moving_picture(
    frames: int, step: tuple[int, int] = (2, -1), height: int = 64, width: int = 80, seed: int = 0
) -> list[np.ndarray]:
    """Frames of a window that slides over a picture so that its content moves by `step` (x, y) pixels a frame."""
    reach_x, reach_y = (abs(part) * (frames - 1) for part in step)
    picture = _textured_picture(height + reach_y, width + reach_x, seed)
    left, top = (reach if part > 0 else 0 for part, reach in zip(step, (reach_x, reach_y), strict=True))
    corners = [(left - step[0] * index, top - step[1] * index) for index in range(frames)]
    return [np.ascontiguousarray(picture[y : y + height, x : x + width]) for x, y in corners]


def _write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "ffv1",
    pixels: str = "bgr0",
    fps: int = 25,
    aspect: Fraction | None = None,
    quarter_turns: int = 0,
    faststart: bool = False,
) -> Path:
    """Write frames to a video file; the default codec is lossless, for `.mkv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 6
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        turn = None
        if quarter_turns:
            options = f"h264_metadata=display_orientation=insert:rotate={90 * quarter_turns}"
            turn = av.bitstream.BitStreamFilterContext(options, stream)
        pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
        for picture in [*pictures, None]:
            for packet in stream.encode(picture):
                container.mux(turn.filter(packet) if turn else packet)
    return path


@pytest.fixture
def textured_picture() -> Callable[..., np.ndarray]:
    return _textured_picture


@pytest.fixture
def moving_picture() -> Callable[..., list[np.ndarray]]:
    return _moving_picture


@pytest.fixture
def write_video() -> Callable[..., Path]:
    return _write_video
