"""What a dataset of portraits is built with: a module of its own, as the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .motion_record import HORIZON_STRIDE

WHOLE_FROM_ONE = ("motions_per_portrait", "records_per_motion", "max_track_frames", "horizon_frames", "candidates")


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PortraitSettings:
    """What a dataset is built with. Each field's `metadata["help"]` says what it means, in which unit.

    Raises:
        ValueError: for a value that is not accepted.

    Example:
        >>> PortraitSettings(size=256).records_per_motion
        3
    """

    size: int = _setting(128, "side of the pictures, in pixels")
    motions_per_portrait: int = _setting(1, "random motions of each portrait")
    records_per_motion: int = _setting(3, "start frames drawn from each motion, as far as it moves")
    frames: int = _setting(96, "length of a motion, at 25 frames per second")
    max_track_frames: int = _setting(55, "frames that points are followed for (Sec. 8)")
    horizon_frames: int = _setting(6, "frames that the motion of the whole picture is kept for")
    candidates: int = _setting(256, "points kept for each start frame, from which handles are drawn in training")
    min_motion: float = _setting(
        0.25, "start frames are passed over if nothing moves so fast, in pixels per frame of a picture of 128 pixels"
    )
    val_share: float = _setting(
        0.05, "expected share of portraits for validation, besides those of sources that are held out"
    )
    seed: int = _setting(0, "of everything random")

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % HORIZON_STRIDE:
            raise ValueError(f"`size` is {self.size}: a multiple of {HORIZON_STRIDE} from 32 is accepted.")
        for name in WHOLE_FROM_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a whole number from 1 is accepted.")
        if self.horizon_frames > self.max_track_frames:
            raise ValueError(
                f"`horizon_frames` is {self.horizon_frames}: "
                f"at most `max_track_frames`, {self.max_track_frames}, is accepted."
            )
        needed = self.max_track_frames + self.records_per_motion
        if self.frames < needed:
            raise ValueError(
                f"`frames` is {self.frames}: at least {needed}, the sum of `max_track_frames` and "
                "`records_per_motion`, is accepted."
            )
        if not self.min_motion >= 0:
            raise ValueError(f"`min_motion` is {self.min_motion}: a number that is not negative is accepted.")
        if not 0 <= self.val_share <= 1:
            raise ValueError(f"`val_share` is {self.val_share}: a number from 0 to 1 is accepted.")
