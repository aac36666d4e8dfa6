"""Move and track: a small step towards the target, then a search for where the content has really come to.

The framework of DragGAN (Pan et al., 2023, arXiv 2305.10973) and DragDiffusion (Shi et al., 2023, arXiv 2306.14435),
which the paper compares itself with (Fig. 1(a) to (c)).
"""

from __future__ import annotations

import torch

from motion_predictor.common.checks import check_number, check_whole_number
from motion_predictor.points import is_wrong_way, move_handles, scale_points

from ..motion_supervision import sample_patches
from ..unet_features import supervision_grid
from .source import BaseMotionSource, EditView, Motion


class TrackedMotion(BaseMotionSource):
    """Sends each handle one cell towards its target; after supervision, it is where its features are found again.

    It is found at the place in a window round where it was that is most like what was at the handle when the edit
    began, by the sum of the absolute differences of their features. Nothing keeps it from missing content that left
    the window (Fig. 1(b) of the paper), or from taking a like place for it (Fig. 1(c)).

    The numbers are those of DragDiffusion's code (github.com/Yujun-Shi/DragDiffusion): steps of one cell of the
    supervision grid, r_2 = 3 cells, features of the unedited latent. It takes a single Adam step between two searches,
    and at most 80 of them (`supervision_steps=1`, `max_iterations=80`); here both are the edit's own, so that sources
    of motion can be compared with all else alike. Its handles are rounded to cells. Here they stay fractional: what is
    searched are the places whole cells away from where the handle was, and the one that it was sent to, without which
    a handle might never land on its target.

    Args:
        radius (`int`, *optional*, defaults to 3): r_2, half the side of the window, in cells of the supervision grid.
        step (`float`, *optional*, defaults to 1.0): length of a step in these cells; it never passes the target.

    Raises:
        ValueError: if one of them is out of range.

    Example:
        >>> TrackedMotion(radius=5).name
        'track'
    """

    name = "track"
    always_arrives = True  # a handle may rest for some iterations, until its content is a cell further
    knows_steps_alone = True

    def __init__(self, radius: int = 3, step: float = 1.0) -> None:
        self.radius = check_whole_number("radius", radius, least=1, most=256)
        self.step = check_number("step", step, above=0, most=1e3)

    def propose(self, view: EditView) -> Motion:
        """A unit step towards each target, or what is left of the way."""
        grid = supervision_grid(view.size)
        way = scale_points(view.targets, view.size, grid) - scale_points(view.handles, view.size, grid)
        share = self.step / way.norm(dim=-1, keepdim=True).clamp(min=self.step)
        step = torch.where(view.moving[:, None], share * (view.targets - view.handles), 0.0)
        destinations = move_handles(view.handles, step, view.size)
        return Motion(
            torch.where(view.moving[:, None], destinations, view.handles),
            step,
            is_wrong_way(step, view.handles, view.targets),
        )

    def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
        """Where in the window the features are most like those at the handles when the edit began."""
        features = view.features()
        grid = supervision_grid(view.size)
        handles, sent = (scale_points(points, view.size, grid) for points in (view.handles, proposed))
        places = torch.cat([handles[:, None] + window_offsets(self.radius).to(handles), sent[:, None]], dim=1)
        radius = view.original_patches.shape[-1] // 2
        wanted = view.original_patches[:, :, radius, radius]
        found = sample_patches(features, places.flatten(0, 1), radius=0).view(*places.shape[:2], -1)
        difference = (found - wanted[:, None]).abs().sum(dim=-1)
        outside = ((places < -0.5) | (places > places.new_tensor([grid[1], grid[0]]) - 0.5)).any(dim=-1)
        nearest = difference.masked_fill(outside, torch.inf).argmin(dim=1)
        return scale_points(places[torch.arange(len(places)), nearest], grid, view.size)


def window_offsets(radius: int) -> torch.Tensor:
    """`((2 radius + 1)^2, 2)`: (x, y) of all cells of a square window, from its middle.

    Example:
        >>> window_offsets(1)[:4].tolist()
        [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 0.0]]
    """
    cells = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(cells, cells, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
