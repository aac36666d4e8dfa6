"""What a dataset of portraits is built with: a module of its own, as the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.checks import check_whole_number
from ..common.options import Number, WholeNumber, check_fields, option
from .build_settings import LARGEST_SIDE
from .motion_record import HORIZON_STRIDE


@dataclass(frozen=True)
class PortraitSettings:
    """What a dataset is built with; [`options_of`] tells what each field means, in which unit.

    Raises:
        ValueError: if one is out of range, naming it, its value and what is accepted.

    Example:
        >>> PortraitSettings(size=256).records_per_motion
        3
    """

    size: int = option(128, WholeNumber(least=32, most=LARGEST_SIDE), "side of the pictures, in pixels")
    motions_per_portrait: int = option(1, WholeNumber(least=1, most=10_000), "random motions of each portrait")
    records_per_motion: int = option(
        3, WholeNumber(least=1, most=10_000), "start frames drawn from each motion, as far as it moves"
    )
    frames: int = option(96, WholeNumber(least=2, most=10_000), "length of a motion, at 25 frames per second")
    max_track_frames: int = option(
        55, WholeNumber(least=1, most=10_000), "frames that points are followed for", source="Sec. 8"
    )
    horizon_frames: int = option(
        6, WholeNumber(least=1, most=10_000), "frames that the motion of the whole picture is kept for"
    )
    candidates: int = option(
        256,
        WholeNumber(least=1, most=100_000),
        "points kept for each start frame, from which handles are drawn in training",
    )
    min_motion: float = option(
        0.25,
        Number(least=0, most=LARGEST_SIDE),
        "start frames are passed over if nothing moves so fast, in pixels per frame of a picture of 128 pixels",
    )
    largest_turn: float | None = option(
        None,
        Number(or_none=True, least=0, most=60),
        "degrees that a face may be turned to a side, and hide parts of itself; heads nod by 0.6 of it",
        default_text="as far as nothing is hidden",
    )
    smallest_face: float | None = option(
        None,
        Number(or_none=True, least=0.1, most=0.75),
        "frame each motion anew, with a face anywhere, tilted, and of a height from this to 0.75 of the side, or to "
        "0.45 where there is a body, too",
        default_text="pictures stay as they are framed",
    )
    val_share: float = option(
        0.05,
        Number(least=0, most=1),
        "expected share of portraits, or of people where they are known, for validation, besides those that are held "
        "out by name",
    )
    seed: int = option(0, WholeNumber(least=0, most=2**32 - 1), "of all that is drawn at random")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size % HORIZON_STRIDE:
            raise ValueError(f"`size` must be a multiple of {HORIZON_STRIDE}, got {self.size}.")
        check_whole_number("horizon_frames", self.horizon_frames, least=1, most=self.max_track_frames)
        needed = self.max_track_frames + self.records_per_motion
        if self.frames < needed:
            raise ValueError(
                f"`frames` must be at least {needed}, the sum of `max_track_frames` and `records_per_motion`, "
                f"got {self.frames}."
            )
