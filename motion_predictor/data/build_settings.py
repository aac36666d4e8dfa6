"""What a dataset of videos is built with; a module of its own, since the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.checks import check_whole_number
from ..common.options import Choice, Number, Switch, Text, WholeNumber, check_fields, option

FLOWS = ("dis", "unimatch", "raft")
REGIONS = ("motion", "face-parsing", "face-landmarks", "person", "masks", "whole")
LARGEST_SIDE = 4096
"""Pixels of a training picture's side, at most."""


@dataclass(frozen=True)
class BuildSettings:
    """What a dataset is built with; [`options_of`] tells what each field means, in which unit.

    Raises:
        ValueError: if one is out of range, naming it, its value and what is accepted.

    Example:
        >>> BuildSettings(short_side=128).records_per_video
        8
    """

    short_side: int = option(
        256, WholeNumber(least=32, most=LARGEST_SIDE), "shorter side that frames are resized to, in pixels"
    )
    records_per_video: int = option(
        8, WholeNumber(least=1, most=100_000), "start frames drawn from each video, in each direction of time"
    )
    min_track_frames: int = option(
        15, WholeNumber(least=1, most=10_000), "frames that must follow a start frame", source="Sec. 8"
    )
    max_track_frames: int = option(
        55, WholeNumber(least=1, most=10_000), "frames that points are followed for, at most", source="Sec. 8"
    )
    candidates: int = option(
        256,
        WholeNumber(least=1, most=100_000),
        "points kept for each start frame, from which handles are drawn in training",
    )
    min_motion: float = option(
        0.25,
        Number(least=0, most=LARGEST_SIDE),
        "start frames are passed over if less than a twentieth of their region moves so fast, in pixels per frame",
    )
    reverse: bool = option(True, Switch(), "also start from as many frames of the video played backwards")
    max_frames: int | None = option(
        None,
        WholeNumber(or_none=True, least=1, most=100_000_000),
        "frames of a video that are looked at, from its beginning",
        default_text="all",
    )
    flow: str = option(
        "dis",
        Choice(accepted=FLOWS),
        "optical flow: OpenCV's DIS, UniMatch (the paper's) or torchvision's RAFT",
    )
    flow_checkpoint: str | None = option(
        None,
        Text(or_none=True),
        "file with the weights of `unimatch` or `raft`; `unimatch` needs one",
        default_text="torchvision's own for `raft`",
    )
    region: str = option(
        "motion",
        Choice(accepted=REGIONS),
        "editing region that handles lie in: the face by a parsing model (Sec. 8) or by landmarks, a person by a "
        "detector (Sec. 8), what moves, your own masks, or the whole frame",
    )
    region_model: str | None = option(
        None,
        Text(or_none=True),
        "model for the region `face-parsing` or `person`: a name on the Hugging Face Hub, or a folder; for "
        "`face-landmarks`: a face_landmarker.task file",
    )
    region_labels: tuple[str, ...] | None = option(
        None,
        Text(or_none=True, many=True),
        "classes of the region's model, by name or number",
        default_text="those of a face without hair, or of a person",
    )
    region_threshold: float = option(
        0.25,
        Number(least=0, most=LARGEST_SIDE),
        "for the region `motion`: what moves faster belongs to it, in pixels per frame",
    )
    masks: str | None = option(
        None,
        Text(or_none=True),
        "for the region `masks`: a folder with VIDEO.png, or VIDEO/000012.png for frame 12; white may be edited",
    )
    source: str = option("", Text(), "where the videos come from, kept with each record for your own use")
    val_share: float = option(
        0.05, Number(least=0, most=1), "share of the videos that is held out for validation", source="Sec. 8"
    )
    seed: int = option(0, WholeNumber(least=0, most=2**32 - 1), "of all that is drawn at random")

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole_number("max_track_frames", self.max_track_frames, least=self.min_track_frames)
        if self.max_frames is not None:
            check_whole_number("max_frames", self.max_frames, least=self.min_track_frames + 1)
