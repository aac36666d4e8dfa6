"""What a drag will roughly look like, at once: the photograph itself, bent along the motion. No diffusion takes part.

It is what content would do if nothing had to be invented, and shows where a source of motion would lead it. What comes
into view is stretched from what lies beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from motion_predictor.points import scale_points

from .dense_flow import DenseFlow, resize_shift, shifted, unfolded
from .drag_instruction import DragInstruction
from .motion.source import EditView, MotionSource, dense_flow_of
from .motion.straight import StraightMotion
from .picture import edit_size, resize_picture
from .settings import DragSettings

SHOWN_SIDE = 256  # short side of what a source of motion is shown that looks at pictures, if it does not need less
POINTS_SIDE = 64  # of what is known by points alone: a handle comes within 2 px of 512 of its target
PATH_STEPS = 4  # of the path of each handle
STILL = 1e-3  # pixels: what is shifted by less is shown as it was


@dataclass(frozen=True)
class DragPreview:
    """What [`DynaDragPipeline.preview`] answers: not the edit, but where it would lead.

    Attributes:
        image (`PIL.Image.Image`): the photograph, bent, at its own size: RGB, and outside the mask as it was.
        paths (`torch.Tensor` of shape `(points, steps, 2)`):
            the way of each handle to its target, (x, y) in pixels of the picture. The first is the handle itself, the
            last its target; a pin stays in one place.
        flow ([`DenseFlow`]): where everything goes, and comes from, in pixels of a small grid over the picture.
        disoccluded (`torch.Tensor` of shape `(height, width)`):
            bool, what came into view and would have to be invented.
    """

    image: Image.Image
    paths: torch.Tensor
    flow: DenseFlow
    disoccluded: torch.Tensor


@torch.no_grad()
def preview_drag(
    picture: torch.Tensor,
    instruction: DragInstruction,
    source: MotionSource | None = None,
    settings: DragSettings | None = None,
) -> DragPreview:
    """Bend a picture along the dense flow of a source of motion, all the way from the handles to the targets.

    Args:
        picture (`torch.Tensor` of shape `(1, 3, height, width)`): in [0, 1].
        instruction ([`DragInstruction`]): points and mask, in pixels of the picture.
        source ([`MotionSource`], *optional*):
            says where everything goes; by default what is smooth through the points. One that asks for features gets
            none here, and its handles go straight.
        settings ([`DragSettings`], *optional*): what the guard of predicted steps is read from.

    Returns:
        [`DragPreview`]: on the CPU.

    Raises:
        FloatingPointError: if the source answers with what is not finite.

    Example:
        >>> nose = DragInstruction.from_user([(30, 40)], [(42, 40)], mask=None, size=(96, 96))
        >>> preview = preview_drag(torch.rand(1, 3, 96, 96), nose)
        >>> preview.image.size, preview.paths[0, ::2].round(decimals=1).tolist()
        ((96, 96), [[30.0, 40.0], [36.0, 40.0], [42.0, 40.0]])
    """
    source = source or StraightMotion()
    view = _first_view(picture.cpu(), instruction, _working_side(source), settings or DragSettings())
    flow = _whole_motion(source, view)
    paths = scale_points(_rolled_out(source, view, flow), view.size, instruction.size)
    paths[:, 0], paths[:, -1] = instruction.handles, instruction.targets
    may_change = torch.ones(instruction.size) if instruction.mask is None else instruction.mask
    covered = F.interpolate(flow.covered, size=instruction.size, mode="bilinear", align_corners=False)[0, 0]
    return DragPreview(
        image=_as_pil(_bent_inside(picture.cpu(), flow, may_change)),
        paths=paths,
        flow=flow,
        disoccluded=(covered < 0.5) & (may_change > 0),
    )


class _NoFeatures(Exception):
    """A source of motion asked for features, which nobody has computed."""


def _no_features() -> torch.Tensor:
    raise _NoFeatures


def _working_side(source: MotionSource) -> int:
    """The short side on which a source is asked."""
    if not source.needs_picture:
        return POINTS_SIDE
    return min(SHOWN_SIDE, getattr(source, "picture_side", None) or SHOWN_SIDE)


def _first_view(picture: torch.Tensor, instruction: DragInstruction, side: int, settings: DragSettings) -> EditView:
    """What a source may look at before the first iteration, at a size of its own."""
    size = edit_size(instruction.size, min(side, *instruction.size), multiple=1)
    scaled = instruction.scaled_to(size)
    return EditView(
        handles=scaled.handles,
        targets=scaled.targets,
        moving=(instruction.handles != instruction.targets).any(dim=-1),
        size=size,
        input_size=instruction.size,
        image=resize_picture(picture, size),
        k=0,
        remaining=PATH_STEPS,
        guard=settings.motion_guard,
        features=_no_features,
        original_patches=torch.zeros(len(scaled.handles), 0, 1, 1),
        mask=None if scaled.mask is None else scaled.mask[None, None],
        largest_deviation=settings.largest_deviation,
    )


def _whole_motion(source: MotionSource, view: EditView) -> DenseFlow:
    """Where everything goes while the handles go to their targets."""
    try:
        source.start(view)
        said = dense_flow_of(source, view, view.targets)
    except _NoFeatures:
        said = dense_flow_of(StraightMotion(), view, view.targets)
    return DenseFlow.of(unfolded(said))


def _rolled_out(source: MotionSource, view: EditView, flow: DenseFlow) -> torch.Tensor:
    """`(points, steps, 2)`: where the source sends the handles, step by step, in pixels of the view.

    It is shown the picture as it would be meanwhile: bent by a share of the motion.
    """
    whole_shift = resize_shift(flow.backward, view.size)
    path = [view.handles]
    try:
        for k in range(PATH_STEPS):
            image = (
                shifted(view.image, k / PATH_STEPS * whole_shift).clamp(0, 1) if source.needs_picture else view.image
            )
            here = replace(view, handles=path[-1], image=image, k=k, remaining=PATH_STEPS - k)
            path.append(_next_place(source, here))
    except _NoFeatures:
        shares = torch.linspace(0, 1, PATH_STEPS + 1)
        path = [view.handles.lerp(view.targets, share) for share in shares]
    return torch.stack(path, dim=1)


def _next_place(source: MotionSource, view: EditView) -> torch.Tensor:
    """Where a source sends the handles; as far as they have to go to arrive in time, if it knows of no time."""
    step = source.propose(view).destinations - view.handles
    if not source.always_arrives:
        needed, proposed = (each.norm(dim=-1, keepdim=True) for each in (view.straight_step, step))
        step = torch.where(proposed > 1e-6, step * needed / proposed.clamp(min=1e-6), view.straight_step)
    limits = torch.tensor([view.size[1] - 1.0, view.size[0] - 1.0])
    return torch.where(view.moving[:, None], (view.handles + step).clamp(torch.zeros(2), limits), view.handles)


def _bent_inside(picture: torch.Tensor, flow: DenseFlow, may_change: torch.Tensor) -> torch.Tensor:
    """The picture `(1, 3, height, width)` after a motion where it may change `(height, width)`, else as it was."""
    shift = resize_shift(flow.backward, (picture.shape[-2], picture.shape[-1]))
    moves = (may_change > 0) & (shift.abs() > STILL).any(dim=1, keepdim=True)
    return torch.where(moves, shifted(picture, shift).clamp(0, 1), picture)


def _as_pil(picture: torch.Tensor) -> Image.Image:
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(picture))[0]
