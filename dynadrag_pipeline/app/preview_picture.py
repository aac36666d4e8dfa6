"""The instant preview at the size that a page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from motion_predictor.points import scale_points

from ..commands.edit_errors import edit_errors
from ..drag_instruction import DragInstruction
from .edits import Point
from .limits import check_pairs
from .stage import LARGEST_SHOWN

if TYPE_CHECKING:
    from ..pipeline_dynadrag import DynaDragPipeline


@dataclass(frozen=True)
class PreviewPicture:
    """A picture bent along the motion.

    Attributes:
        image (`PIL.Image.Image`): no larger than it is shown.
        paths (`list`): of each handle to its target, (x, y) in pixels of the picture as it is.
    """

    image: Image.Image
    paths: list[list[Point]]


def preview_of(
    pipe: DynaDragPipeline, picture: Image.Image, handles: list[Point], targets: list[Point], mask: Image.Image | None
) -> PreviewPicture:
    """Bend a picture along the motion that its points ask for.

    Args:
        pipe ([`DynaDragPipeline`]): whose source of motion says how.
        picture (`PIL.Image.Image`): of any size.
        handles, targets (`list`): (x, y) in its pixels.
        mask (`PIL.Image.Image`, *optional*): of its size.

    Raises:
        ValueError: in the words of the API, if points or mask do not fit.
        CommandError: likewise, if the source of motion fails or memory is short.
    """
    check_pairs(handles)
    small = picture.copy()
    small.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    DragInstruction.from_user(handles, targets, mask, (picture.height, picture.width))
    size, shown = (picture.height, picture.width), (small.height, small.width)

    def to_shown(points: list[Point]) -> list[Point]:
        scaled = scale_points(torch.tensor(points, dtype=torch.float32), size, shown)
        return torch.minimum(scaled.clamp(min=0), torch.tensor([shown[1] - 1.0, shown[0] - 1.0])).tolist()

    small_mask = None if mask is None else mask.resize(small.size, Image.Resampling.NEAREST)
    with edit_errors():
        preview = pipe.preview(small, to_shown(handles), to_shown(targets), small_mask)
    paths = [scale_points(torch.as_tensor(path).float(), shown, size).tolist() for path in preview.paths]
    return PreviewPicture(preview.image, paths)
