"""Motion without a network: straight to the targets in equal steps, or at the targets at once, to settle there."""

from __future__ import annotations

import torch

from .source import BaseMotionSource, EditView, Motion, guarded_motion


class StraightMotion(BaseMotionSource):
    """Equal steps over what remains of the path and of the iterations."""

    name = "straight"
    always_arrives = True

    def propose(self, view: EditView) -> Motion:
        """A share of what remains of each path."""
        return guarded_motion(view, view.straight_step)


class SettlingMotion(BaseMotionSource):
    """Handles stand on their targets, until their content is there too."""

    name = "settling"
    always_arrives = True

    def propose(self, view: EditView) -> Motion:
        """The targets themselves."""
        moving = view.moving[:, None]
        return Motion(
            torch.where(moving, view.targets, view.handles),
            torch.where(moving, view.straight_step, torch.zeros_like(view.handles)),
            torch.zeros_like(view.moving),
        )
