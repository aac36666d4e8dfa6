"""Motion along paths that the user draws: a polyline for each handle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from motion_predictor.common.checks import got
from motion_predictor.points import Points, scale_points

from ..drag_instruction import DragInstruction, as_pairs
from .smooth import smooth_flow
from .source import BaseMotionSource, EditView, Motion

Paths = Sequence[Points | None]
"""For each pair, the points that its handle passes on its way, in pixels of the input; `None` is straight."""


class PathMotion(BaseMotionSource):
    """Each handle follows its own polyline to its target, in steps of equal length.

    A path is where the user wants the handle to go, so no guard changes it, and no step of it is the wrong way.

    Args:
        paths (a list with an entry for each pair):
            `(points, 2)` numbers, (x, y) in pixels of the input, that a handle passes between where it is and its
            target; `None` for a straight path.

    Raises:
        ValueError: if a path is not finite (x, y) pairs.

    Example:
        >>> PathMotion([[(40, 20), (60, 20)], None]).name
        'path'
    """

    name = "path"
    always_arrives = True
    paths: Sequence[torch.Tensor]

    def __init__(self, paths: Paths) -> None:
        if not isinstance(paths, (list, tuple)) or not len(paths):
            raise ValueError(f"`motion` must be a name, a motion source or a path for each pair, got {got(paths)}.")
        self.paths = [_as_path(index, path) for index, path in enumerate(paths)]
        self._corners: list[torch.Tensor] = []
        self._travelled = 0.0

    def check(self, instruction: DragInstruction) -> None:
        """Raise a ValueError if there are not as many paths as pairs, one leaves the picture, or a pin has one."""
        if len(self.paths) != len(instruction.handles):
            raise ValueError(
                f"`motion` must have a path for each of the {len(instruction.handles)} pairs, got {len(self.paths)}."
            )
        for index, path in enumerate(self.paths):
            if len(path) and torch.equal(instruction.handles[index], instruction.targets[index]):
                raise ValueError(f"`motion` must be None for pair {index}, whose handle is its target, got a path.")
            _check_on_picture(index, path, instruction.size)

    def start(self, view: EditView) -> None:
        """Carry the paths to the grid of the edit, from the handles to the targets."""
        self._travelled = 0.0
        self._corners = [
            torch.cat([handle[None], scale_points(path, view.input_size, view.size).to(handle), target[None]])
            for path, handle, target in zip(self.paths, view.handles, view.targets, strict=True)
        ]

    def propose(self, view: EditView) -> Motion:
        """The next point of each path: an equal share of what remains of its length."""
        self._travelled += (1 - self._travelled) / max(view.remaining, 1)
        destinations = torch.where(view.moving[:, None], self._on_paths(self._travelled), view.handles)
        return Motion(destinations, destinations - view.handles, torch.zeros_like(view.moving))

    def dense_flow(self, view: EditView, destinations: torch.Tensor) -> torch.Tensor:
        """Smooth, along the paths if that is all the way, else straight."""
        if self._travelled or not view.ends_at_targets(destinations):
            return super().dense_flow(view, destinations)
        stays = (destinations == view.handles).all(dim=-1, keepdim=True)
        return smooth_flow(
            lambda share: torch.where(stays, view.handles, self._on_paths(share))[view.known],
            view.size,
            view.mask,
            least_parts=max(len(each) for each in self._corners) - 1,
        )

    def _on_paths(self, share: float) -> torch.Tensor:
        """`(points, 2)`: where all paths are at a share of their lengths."""
        return torch.stack([_at_share(corners, share) for corners in self._corners])


def _as_path(index: int, path: Any) -> torch.Tensor:
    """`(corners, 2)` float32; none for a straight path."""
    if path is None:
        return torch.zeros(0, 2)
    corners = as_pairs("motion", path, f" for pair {index}")
    with np.errstate(over="ignore"):  # to infinity, which is outside
        return torch.from_numpy(corners.astype(np.float32))


def _check_on_picture(index: int, path: torch.Tensor, size: tuple[int, int]) -> None:
    limits = torch.tensor([size[1] - 1, size[0] - 1])
    outside = ((path < 0) | (path > limits)).any(dim=-1)
    if outside.any():
        x, y = path[outside][0].tolist()
        raise ValueError(
            f"`motion` must stay inside the picture, x in [0, {size[1] - 1}] and y in [0, {size[0] - 1}]; the path of "
            f"pair {index} has ({x:g}, {y:g})."
        )


def _at_share(corners: torch.Tensor, share: float) -> torch.Tensor:
    """The point (x, y) at a share in [0, 1] of the length of a polyline `(corners, 2)`.

    Example:
        >>> _at_share(torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]]), 0.75)
        tensor([4., 2.])
    """
    device, corners = corners.device, corners.cpu()  # a few numbers, of which a GPU sums in any order
    lengths = (corners[1:] - corners[:-1]).norm(dim=-1)
    if share >= 1 or not lengths.sum() > 0:
        return corners[-1].to(device)
    ends = lengths.cumsum(dim=0)
    wanted = share * ends[-1]
    segment = int(torch.searchsorted(ends, wanted).clamp(max=len(lengths) - 1))
    within = (wanted - (ends[segment] - lengths[segment])) / lengths[segment].clamp(min=1e-12)
    return torch.lerp(corners[segment], corners[segment + 1], within).to(device)
