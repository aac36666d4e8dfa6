"""What is kept of a stretch of video to train the motion predictor: a start frame and where its content goes.

Nothing is rasterised: handles, end frame and maps are drawn anew each time that a record is used, so that one record
serves many samples (DynaDrag, arXiv 2601.00542, Sec. 3.2.1).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..common.checks import got
from ..common.picture_files import decode_picture

HORIZON_STRIDE = 4  # pixels of the frame per cell of `horizon_flows`
JPEG_QUALITY = 95
END_FRAMES = (15, 25, 35, 45, 55)
"""After how many frames a record keeps where everything has gone (15 to 55, Sec. 8)."""

# Motion is stored in 16 bits: 1/64 px is finer than any optical flow, and reaches 512 px.
FIXED_POINT = 64
LOST = np.iinfo(np.int16).min


@dataclass(frozen=True, eq=False)
class MotionRecord:
    """A start frame v_s, the motion of all its pixels for some frames, and that of some points for many.

    Points are `(x, y)` in pixels of `frame`, integers at pixel centres; motion is `(u, v)`, u to the right, v down, in
    pixels, measured from the start frame. NaN marks motion that is not known: it left the picture, or the flow forward
    and the flow back did not agree. Motion is rounded to 1/64 px when the record is stored.

    Attributes:
        key (`str`): unique in a dataset, without dots and slashes: `"{video}_{start:06d}"`.
        frame (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB; H and W are multiples of `HORIZON_STRIDE`.
        flow (`np.ndarray` of shape `(height, width, 2)`): float32, the flow f_s to the next frame; never NaN.
        horizon_flows (`np.ndarray` of shape `(frames, height / 4, width / 4, 2)`): float32, the motion after 1 ... M
            frames at the centres of cells of 4 x 4 pixels.
        points (`np.ndarray` of shape `(points, 2)`): float32, candidates for handles inside the editing region.
        tracks (`np.ndarray` of shape `(points, frames, 2)`): float32, the motion of each point after 1 ... T frames.
        background (`np.ndarray` of shape `(frames, 2)`): float32, the median motion outside the editing region after 1
            ... T frames: that of the camera. Zero where it is not known.
        info (`dict[str, Any]`, *optional*): plain values for people and statistics: the source video, the start frame,
            the direction of time, the kind of content.
        end_frames (`np.ndarray` of shape `(ends,)`, *optional*): int, rising: after how many frames `end_flows` are.
        end_flows (`np.ndarray` of shape `(ends, height / 4, width / 4, 2)`, *optional*): float32, the motion until
            then at the centres of cells, as of `horizon_flows`: where everything goes on the way to an end frame.
    """

    key: str
    frame: np.ndarray
    flow: np.ndarray
    horizon_flows: np.ndarray
    points: np.ndarray
    tracks: np.ndarray
    background: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    end_frames: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    end_flows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 2), dtype=np.float32))

    def __post_init__(self) -> None:
        height, width = self.frame.shape[:2]
        if height % HORIZON_STRIDE or width % HORIZON_STRIDE:
            raise ValueError(
                f"`frame` of {self.key} must have sides of multiples of {HORIZON_STRIDE} pixels, "
                f"got {width} x {height}."
            )
        cells = (height // HORIZON_STRIDE, width // HORIZON_STRIDE)
        count, frames = self.tracks.shape[:2]
        expected = {
            "frame": (height, width, 3),
            "flow": (height, width, 2),
            "horizon_flows": (len(self.horizon_flows), *cells, 2),
            "points": (count, 2),
            "tracks": (count, frames, 2),
            "background": (frames, 2),
        }
        if len(self.end_frames) or len(self.end_flows):
            expected["end_flows"] = (len(self.end_frames), *cells, 2)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"`{name}` of {self.key} must be of shape {shape}, got {got(getattr(self, name))}.")


def end_frames_within(frames: int) -> np.ndarray:
    """Those of `END_FRAMES` that a record of so many frames reaches.

    Args:
        frames (`int`): after the start frame.

    Returns:
        `np.ndarray`: int, rising.

    Example:
        >>> end_frames_within(40).tolist()
        [15, 25, 35]
    """
    return np.array([end for end in END_FRAMES if end <= frames], dtype=np.int64)


def encode_record(record: MotionRecord) -> dict[str, Any]:
    """A record as a sample of webdataset: a JPEG, an npz of 16-bit motion, and JSON.

    Args:
        record (`MotionRecord`): to store.

    Returns:
        `dict`: `__key__`, `frame.jpg`, `motion.npz` and `info.json`; the values but for the key are bytes.
    """
    motion, picture = io.BytesIO(), io.BytesIO()
    np.savez_compressed(
        motion,
        flow=_to_fixed_point(record.flow),
        horizon_flows=_to_fixed_point(record.horizon_flows),
        points=record.points.astype(np.float32),
        tracks=_to_fixed_point(record.tracks),
        background=record.background.astype(np.float32),
        end_frames=record.end_frames.astype(np.int64),
        end_flows=_to_fixed_point(record.end_flows),
    )
    Image.fromarray(record.frame).save(picture, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return {
        "__key__": record.key,
        "frame.jpg": picture.getvalue(),
        "motion.npz": motion.getvalue(),
        "info.json": json.dumps(record.info, sort_keys=True).encode(),
    }


def decode_record(sample: dict[str, Any]) -> MotionRecord:
    """The inverse of `encode_record`, but for the losses of JPEG and of rounding.

    Args:
        sample (`dict[str, Any]`): as [`encode_record`] makes it.

    Returns:
        `MotionRecord`: the record.
    """
    key = sample["__key__"]
    with np.load(io.BytesIO(sample["motion.npz"]), allow_pickle=False) as motion:
        ends = {}
        if "end_flows" in motion:  # not in datasets of earlier versions
            ends = {"end_frames": motion["end_frames"], "end_flows": _from_fixed_point(motion["end_flows"])}
        return MotionRecord(
            key=key,
            frame=np.asarray(decode_picture(sample["frame.jpg"], f"{key}.frame.jpg").convert("RGB")),
            flow=_from_fixed_point(motion["flow"]),
            horizon_flows=_from_fixed_point(motion["horizon_flows"]),
            points=motion["points"],
            tracks=_from_fixed_point(motion["tracks"]),
            background=motion["background"],
            info=json.loads(sample["info.json"]),
            **ends,
        )


def _to_fixed_point(motion: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    scaled = np.clip(np.rint(motion * FIXED_POINT), limits.min + 1, limits.max)
    return np.where(np.isnan(motion), LOST, np.nan_to_num(scaled)).astype(np.int16)


def _from_fixed_point(stored: np.ndarray) -> np.ndarray:
    motion = stored.astype(np.float32) / FIXED_POINT
    motion[stored == LOST] = np.nan
    return motion
