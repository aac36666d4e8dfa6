"""What a dataset of videos is built with; a module of its own, since the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLOWS = ("dis", "unimatch", "raft")
REGIONS = ("motion", "face-parsing", "face-landmarks", "person", "masks", "whole")


def _setting(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class BuildSettings:
    """What a dataset is built with. Each field's `metadata["help"]` says what it means, in which unit.

    Raises:
        ValueError: for a value that is not accepted.

    Example:
        >>> BuildSettings(short_side=128).records_per_video
        8
    """

    short_side: int = _setting(256, "shorter side that frames are resized to, in pixels")
    records_per_video: int = _setting(8, "start frames drawn from each video, in each direction of time")
    min_track_frames: int = _setting(15, "frames that must follow a start frame (Sec. 8)")
    max_track_frames: int = _setting(55, "frames that points are followed for, at most (Sec. 8)")
    candidates: int = _setting(256, "points kept for each start frame, from which handles are drawn in training")
    min_motion: float = _setting(
        0.25,
        "start frames are passed over if less than a twentieth of their region moves so fast, in pixels per frame",
    )
    reverse: bool = _setting(True, "also start from as many frames of the video played backwards")
    max_frames: int | None = _setting(None, "frames of a video that are looked at, from its beginning; none: all")
    flow: str = _setting(
        "dis", "optical flow: OpenCV's DIS, UniMatch (the paper's) or torchvision's RAFT", choices=FLOWS
    )
    flow_checkpoint: str | None = _setting(None, "weights of `unimatch` (needed) or `raft` (else torchvision's own)")
    region: str = _setting(
        "motion",
        "editing region that handles lie in: the face by a parsing model (Sec. 8) or by landmarks, a person by a "
        "detector (Sec. 8), what moves, your own masks, or the whole frame",
        choices=REGIONS,
    )
    region_model: str | None = _setting(
        None, "model for the region `face-parsing` or `person`: a name on the Hugging Face Hub, or a folder"
    )
    region_labels: tuple[str, ...] | None = _setting(
        None, "classes of the region's model, by name or number; none: those of a face without hair, or of a person"
    )
    region_threshold: float = _setting(
        0.25, "for the region `motion`: what moves faster belongs to it, in pixels per frame"
    )
    masks: str | None = _setting(
        None, "for the region `masks`: a folder with VIDEO.png, or VIDEO/000012.png for frame 12; white may be edited"
    )
    source: str = _setting("", "where the videos come from, kept with each record for your own use")
    val_share: float = _setting(0.05, "share of the videos that is held out for validation (Sec. 8)")
    seed: int = _setting(0, "of all that is drawn at random")

    def __post_init__(self) -> None:
        for name, least in (("short_side", 32), ("records_per_video", 1), ("min_track_frames", 1), ("candidates", 1)):
            _require(getattr(self, name) >= least, name, getattr(self, name), f"a whole number from {least} on")
        _require(
            self.max_track_frames >= self.min_track_frames,
            "max_track_frames",
            self.max_track_frames,
            f"a whole number from `min_track_frames` ({self.min_track_frames}) on",
        )
        needed = self.min_track_frames + 1
        if self.max_frames is not None:
            _require(self.max_frames >= needed, "max_frames", self.max_frames, f"a whole number from {needed} on")
        for name in ("min_motion", "region_threshold"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number that is not negative")
        _require(0 <= self.val_share <= 1, "val_share", self.val_share, "a number from 0 to 1")
        for name, choices in (("flow", FLOWS), ("region", REGIONS)):
            _require(getattr(self, name) in choices, name, getattr(self, name), f"one of {choices}")


def _require(met: bool, name: str, value: Any, accepted: str) -> None:
    if not met:
        raise ValueError(f"`{name}` is {value!r}: {accepted} is accepted.")
