"""When an edit ends (Sec. 3.4), and how long content that lags behind its handle is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .drag_state import DragPoints
from .settings import DragSettings

STALL_STEP_AT_512 = 0.1
"""Pixels that a handle has to move by in an iteration to be called moving, for a short side of 512 px."""

STALL_ITERATIONS = 3
"""Iterations without a moving handle after which an edit is called stalled."""


@dataclass
class StopRule:
    """Counts down the iterations, first those of the drag, then those of settling.

    Attributes:
        settings ([`DragSettings`]): how many of either there may be.
        scale (`float`): the edit's short side over 512 px.
        can_stall (`bool`): whether small steps are a sign that nothing happens any more.
        remaining (`int`): iterations that there may still be, the one at hand among them.
        is_settling (`bool`): whether all handles have arrived, and wait for their content at their targets.
    """

    settings: DragSettings
    scale: float
    can_stall: bool
    remaining: int = field(init=False)
    is_settling: bool = field(default=False, init=False)
    _still_iterations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.remaining = self.settings.max_iterations

    def is_finished(self, points: DragPoints) -> bool:
        """Whether every handle has arrived that was not given up, and has settled if that is wanted."""
        return points.all_would_arrive(points.handles) and not (self.is_settling and self.remaining > 0)

    @property
    def is_stalled(self) -> bool:
        """Whether no handle has moved noticeably for some iterations."""
        return self.can_stall and not self.is_settling and self._still_iterations >= STALL_ITERATIONS

    def end(self) -> None:
        """Let this iteration be the last one: all content is where it is to be."""
        self.remaining = 1

    def settles_after(self, all_arrive: bool) -> bool:
        """Whether the iteration after this one is one of settling."""
        if self.is_settling:
            return self.remaining > 1
        return self.settings.settle_iterations > 0 and all_arrive

    def ends_after(self, all_arrive: bool) -> bool:
        """Whether this iteration is the last one."""
        return not self.settles_after(all_arrive) and (self.remaining == 1 or all_arrive)

    def advance(self, points: DragPoints, next_handles: torch.Tensor) -> None:
        """Count an iteration that led from `points.handles` to `next_handles`, both `(points, 2)`."""
        begins_to_settle = not self.is_settling and self.settles_after(points.all_would_arrive(next_handles))
        on_their_path = ~(points.arrived | points.abandoned)
        moved_noticeably = (next_handles - points.handles).norm(dim=-1) >= STALL_STEP_AT_512 * self.scale
        self._still_iterations = 0 if moved_noticeably[on_their_path].any() else self._still_iterations + 1
        self.remaining -= 1
        if begins_to_settle:
            self.is_settling, self.remaining = True, self.settings.settle_iterations
