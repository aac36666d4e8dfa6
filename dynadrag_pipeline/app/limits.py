"""What one visitor may ask of a machine that others use too; each limit is said in clear words."""

from __future__ import annotations

from typing import Any

from PIL import Image

MOST_UPLOAD_MEGABYTES = 30
MOST_PIXELS = 4096 * 4096
MOST_PAIRS = 40
MOST_CANDIDATES = 4
MOST_SECONDS = 1800.0
"""Of one edit; it then ends with what there is."""
MOST_WAITING = 8
"""Edits in the queue, the one that runs apart."""
MOST_VISITORS = 200
MOST_EDITS = 20
"""Edits that are kept of one visitor."""
IDLE_SECONDS = 3600.0
"""After which a visitor's pictures are thrown away."""
GONE_SECONDS = 60.0
"""After which an edit that nobody looks at any more is ended."""
SIGN_SECONDS = 90.0
"""After which a tab that gave no sign any more is taken for closed; hidden ones may give one a minute."""


def check_picture(picture: Image.Image) -> None:
    """Refuse a picture that is too large for the app.

    Args:
        picture (`PIL.Image.Image`): of any mode.

    Raises:
        ValueError: if it has more than `MOST_PIXELS` pixels.
    """
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(
            f"`image` must have at most {MOST_PIXELS:,} pixels here, got {picture.width}x{picture.height}: scale it "
            "down, or use `dynadrag edit`."
        )


def check_pairs(points: Any) -> None:
    """Refuse too many pairs of points, or none.

    Args:
        points (`list`): one (x, y) of each pair; what else it may be is refused where points are read.

    Raises:
        ValueError: if there is none, or more than `MOST_PAIRS`.
    """
    if points is None or points == []:
        raise ValueError("`handles` must be at least one point: click what to move, and then where to.")
    if isinstance(points, list) and len(points) > MOST_PAIRS:
        raise ValueError(f"`handles` must be at most {MOST_PAIRS} points here, got {len(points)}.")
