"""Motion without a network: straight to the targets in equal steps, all at once, or standing on the targets."""

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


class WholeWayMotion(BaseMotionSource):
    """At the targets at once, where the latent is carried there."""

    name = "whole way"
    always_arrives = True

    def propose(self, view: EditView) -> Motion:
        """The targets themselves, with all of the way as a step."""
        destinations = torch.where(view.moving[:, None], view.targets, view.handles)
        return Motion(destinations, destinations - view.handles, torch.zeros_like(view.moving))


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
