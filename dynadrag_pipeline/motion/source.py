"""What a source of motion is: before supervision it says where handles should go, after it where they are.

Eq. 4 and the guard of Sec. 11 are here, since each source decides whether what it proposes needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from diffusers.utils import logging

from motion_predictor.choices import MotionGuard
from motion_predictor.points import guard_step, is_wrong_way, move_handles, straight_step

from ..dense_flow import flow_size, resize_shift
from ..drag_instruction import DragInstruction
from .smooth import smooth_flow

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EditView:
    """What a source of motion may look at. Points are (x, y) in pixels of the edit.

    Attributes:
        handles (`torch.Tensor` of shape `(points, 2)`): h^k.
        targets (`torch.Tensor` of shape `(points, 2)`): where they are to go.
        moving (`torch.Tensor` of shape `(points,)`, bool): handles to propose a motion for; the others stay.
        size (`tuple[int, int]`): (height, width) of the edit.
        input_size (`tuple[int, int]`): (height, width) of the picture that the user gave.
        image (`torch.Tensor` of shape `(1, 3, height, width)`):
            I_k in [0, 1], if the source needs pictures; else the last one that was made.
        k (`int`): number of the iteration, from 0.
        remaining (`int`): iterations that there may still be, this one among them.
        guard (`str`): what the user wants done with predicted steps.
        features (`Callable`):
            answers with F(z_t^k) on the supervision grid, `(1, channels, h, w)`, without a graph. A pass that was made
            anyway before supervision; one that will be made anyway after it.
        original_patches (`torch.Tensor` of shape `(points, channels, 2 r_1 + 1, 2 r_1 + 1)`):
            F(z_t^0) round the handles as they were when the edit began.
        mask (`torch.Tensor` of shape `(1, 1, height, width)`, *optional*):
            1 where the picture may change; `None` where all of it may.
        largest_deviation (`float`, *optional*):
            in lengths of a step: one that may be more wrong than that is not to be followed.
    """

    handles: torch.Tensor
    targets: torch.Tensor
    moving: torch.Tensor
    size: tuple[int, int]
    input_size: tuple[int, int]
    image: torch.Tensor
    k: int
    remaining: int
    guard: MotionGuard
    features: Callable[[], torch.Tensor]
    original_patches: torch.Tensor
    mask: torch.Tensor | None = None
    largest_deviation: float | None = None

    @property
    def known(self) -> torch.Tensor:
        """`(points,)` bool: handles to propose a motion for, and pins; not those that were given up."""
        return self.moving | (self.handles == self.targets).all(dim=-1)

    def ends_at_targets(self, destinations: torch.Tensor) -> bool:
        """Whether all that are sent anywhere are sent to their targets, as far as these are on the picture.

        Targets on its outermost pixels lie up to half a pixel beyond those of a smaller grid.
        """
        sent = self.moving & (destinations != self.handles).any(dim=-1)
        return bool(sent.any()) and bool(((destinations - self.targets)[sent].abs() <= 0.5).all())

    @property
    def straight_step(self) -> torch.Tensor:
        """`(points, 2)`: equal steps over what remains of path and iterations."""
        return straight_step(self.handles, self.targets, self.remaining)


@dataclass(frozen=True)
class Motion:
    """What a source proposes for one iteration.

    Attributes:
        destinations (`torch.Tensor` of shape `(points, 2)`): h^{k+1}, inside the picture, in pixels of the edit.
        predicted_step (`torch.Tensor` of shape `(points, 2)`): what the source answered, before the guard.
        wrong_way (`torch.Tensor` of shape `(points,)`, bool): answers that point away from their targets.
        flow (`torch.Tensor` of shape `(1, 2, height, width)`, *optional*): what they were read from.
        deviation (`torch.Tensor` of shape `(points,)`, *optional*):
            how far the source expects its steps to be wrong, in pixels of the edit.
        templates (`torch.Tensor` of the shape of `original_patches`, *optional*):
            what supervision is to pull there, if the source says so; else it is as `source_patches` says.
    """

    destinations: torch.Tensor
    predicted_step: torch.Tensor
    wrong_way: torch.Tensor
    flow: torch.Tensor | None = None
    deviation: torch.Tensor | None = None
    templates: torch.Tensor | None = None


@runtime_checkable
class MotionSource(Protocol):
    """Where handles go. `motion=` of a call takes one; [`BaseMotionSource`] has what most of them share.

    Attributes:
        name (`str`): as records name it.
        needs_picture (`bool`): whether it looks at I_k, which then must be denoised and decoded in each iteration.
        always_arrives (`bool`): whether small steps are no sign that it is stuck.
    """

    name: str
    needs_picture: bool
    always_arrives: bool

    def check(self, instruction: DragInstruction) -> None:
        """Before any work, in pixels of the input: a ValueError if the source can't serve this instruction."""

    def start(self, view: EditView) -> None:
        """Once, before the first iteration of an edit: forget earlier edits."""

    def propose(self, view: EditView) -> Motion:
        """Before supervision: where the handles should go next, and what that was read from."""

    def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
        """After supervision: where the handles are now, `(points, 2)`, of which `proposed` is where they were sent.

        Whether they have arrived is judged by the answer. The picture that is shown is still I_k.
        """


def dense_flow_of(source: MotionSource, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
    """What a source says of everything but the handles; that it is smooth, if the source knows points alone.

    Outside the mask, nothing moves, whatever the source says.

    Returns:
        `torch.Tensor` of shape `(1, 2, h, w)`: forward, in pixels of the grid of dense flows. It may fold.

    Raises:
        FloatingPointError: if it is not finite.
    """
    said = getattr(source, "dense_flow", BaseMotionSource().dense_flow)(view, destinations)
    if not torch.isfinite(said).all():
        raise FloatingPointError(f"The source of motion `{source.name}` answered with what is not finite.")
    grid = flow_size(view.size)
    said = resize_shift(said, grid)
    return said if view.mask is None else said * F.interpolate(view.mask.to(said), size=grid, mode="area")


def warn_if_not_asked(source: MotionSource, carry: str) -> None:
    """Say so when a latent is carried all the way at once, and the source knows nothing but steps.

    Args:
        source ([`MotionSource`]): of an edit.
        carry (`str`): as in its settings.
    """
    if carry == "once" and getattr(source, "knows_steps_alone", False):
        logger.warning(
            f"`motion` {source.name!r} says where handles go step by step, and `carry='once'` asks for no steps: this "
            "is the edit of 'straight'. `carry='none'` and `carry='iteration'` ask for them."
        )


class BaseMotionSource:
    """A source that keeps nothing between iterations, and takes handles to be where they were sent.

    Attributes:
        paths (`Sequence[torch.Tensor]` of shape `(corners, 2)`, *optional*):
            what handles are known to pass before they arrive, in pixels of the input, for `supervision_reach`.
        knows_steps_alone (`bool`): whether its dense flow says nothing but where handles are sent, and straight.
    """

    paths: Sequence[torch.Tensor] | None = None

    needs_picture = False
    always_arrives = False
    knows_steps_alone = False

    def check(self, instruction: DragInstruction) -> None:
        """Serves every instruction."""

    def start(self, view: EditView) -> None:
        """Nothing to prepare."""

    def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
        """Where they were sent."""
        return proposed

    def dense_flow(self, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
        """Where everything else goes while handles go to `destinations` `(points, 2)`: asked by `carry` alone.

        Returns:
            `torch.Tensor` of shape `(1, 2, h, w)`: forward, in pixels of a picture of that size. Smooth, and straight.
        """
        handles, destinations = view.handles[view.known], destinations[view.known]
        return smooth_flow(lambda share: handles.lerp(destinations, share), view.size, view.mask)


def guarded_motion(
    view: EditView,
    step: torch.Tensor,
    flow: torch.Tensor | None = None,
    deviation: torch.Tensor | None = None,
) -> Motion:
    """A motion by steps as a source answers them: guarded (Sec. 11), added to the handles (Eq. 4), on the picture.

    A step that is too unsure gives way to a straight one.

    Args:
        view ([`EditView`]): of the iteration.
        step (`torch.Tensor` of shape `(points, 2)`): in pixels of the edit; of handles that stay it is left out.
        flow (`torch.Tensor` of shape `(1, 2, height, width)`, *optional*): what they were read from.
        deviation (`torch.Tensor` of shape `(points,)`, *optional*): how far steps may be wrong, in pixels of the edit.

    Raises:
        FloatingPointError: if a step is not finite, which ends the edit with its last good iteration.
    """
    step = torch.where(view.moving[:, None], step, torch.zeros_like(step))
    if not torch.isfinite(step).all():
        raise FloatingPointError("The source of motion answered with steps that are not finite.")
    followed = step
    if deviation is not None and view.largest_deviation is not None:
        unsure = deviation > view.largest_deviation * step.norm(dim=-1)
        followed = torch.where(unsure[:, None], view.straight_step, step)
    guarded = guard_step(followed, view.handles, view.targets, view.straight_step, view.guard)
    destinations = move_handles(view.handles, guarded, view.size)
    return Motion(
        torch.where(view.moving[:, None], destinations, view.handles),
        step,
        is_wrong_way(step, view.handles, view.targets),
        flow,
        deviation,
    )
