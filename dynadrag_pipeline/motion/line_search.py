"""Search and move: the next place on the way to the target is one that is neither too easy nor too hard to reach.

The framework of FreeDrag (Ling et al., 2023, arXiv 2307.04684), which the paper compares itself with (Fig. 1(d), (e)).
"""

from __future__ import annotations

import math

import torch

from motion_predictor.common.checks import check_number
from motion_predictor.points import is_wrong_way, move_handles, scale_points

from ..motion_supervision import sample_patches
from ..unet_features import supervision_grid
from .source import BaseMotionSource, EditView, Motion

CANDIDATES = 10  # places that a search looks at, at equal distances
CLOSE = 0.5  # of the expected loss: a place whose loss is less has been reached
RENEWED = 0.2  # of the expected loss, at which a template takes half of what it sees
KEPT = 0.8  # of the expected loss, at which it takes a tenth


class LineSearchMotion(BaseMotionSource):
    """Sends each handle along the straight line to its target, as far as features say that content can follow.

    What is dragged is a template of the content, which begins as the features round the handle, and takes on what the
    edit made of them. The loss of a place is the mean absolute difference of its features to the template. Where the
    last place was reached, the next one is that among ten on the line whose loss is nearest to the expected one; where
    the loss fell, the handle stays for another iteration; where it did not fall, the handle goes back by the longest
    step, and from there to the place on the line, up to twice that step away, that is most like the template.

    The numbers are those of FreeDrag's code for diffusion models (github.com/LPengYang/FreeDrag): an expected loss of
    1, and steps of at most 5 cells of the supervision grid of a picture of 512 px, in proportion for others. It
    compares patches of radius 4, and takes up to 5 Adam steps at each place, 300 in all (`supervision_radius=4`,
    `supervision_steps=5`, `max_iterations=60`); here these are the edit's own, so that sources of motion can be
    compared with all else alike. The template is what motion supervision pulls, whatever `source_patches` says. Steps
    back belong to the search: no guard removes them. It knows no selection of handles: a handle that is set aside
    looks like one whose content does not follow (`dynamic_selection=None`). There, a template whose content has
    arrived takes on all that it sees; here it goes by the same shares as before.

    Args:
        expected_loss (`float`, *optional*, defaults to 1.0):
            l, how different the features at the next place may be from the template. Features of other models than
            Stable Diffusion have another scale: take what theirs differ by over a step that you find right.
        longest_step (`float`, *optional*, defaults to 5.0):
            d_max, in cells of the supervision grid, for a short side of 512 px.

    Raises:
        ValueError: if one of them is out of range.

    Example:
        >>> LineSearchMotion(expected_loss=0.3).name
        'search'
    """

    name = "search"
    always_arrives = True  # a handle stays where it is as long as its content comes nearer
    knows_steps_alone = True

    def __init__(self, expected_loss: float = 1.0, longest_step: float = 5.0) -> None:
        self.expected_loss = check_number("expected_loss", expected_loss, above=0, most=1e6)
        self.longest_step = check_number("longest_step", longest_step, above=0, most=1e3)

    def start(self, view: EditView) -> None:
        """Templates are what was there when the edit began; all places so far are reached."""
        self._longest = self.longest_step * min(view.size) / 512
        self._templates = view.original_patches
        self._loss_before = torch.zeros(len(view.handles), device=view.handles.device)
        self._loss_after = self._loss_before

    def propose(self, view: EditView) -> Motion:
        """The next place of each handle, and the templates that are to be pulled there."""
        grid = supervision_grid(view.size)
        handles, targets = (scale_points(points, view.size, grid) for points in (view.handles, view.targets))
        features = view.features()
        places = torch.stack([self._next_place(index, handles, targets, features) for index in range(len(handles))])
        step = torch.where(view.moving[:, None], scale_points(places, grid, view.size) - view.handles, 0.0)
        destinations = torch.where(view.moving[:, None], move_handles(view.handles, step, view.size), view.handles)
        self._loss_before = self._losses(features, scale_points(destinations, view.size, grid), self._templates)
        wrong_way = is_wrong_way(step, view.handles, view.targets)
        return Motion(destinations, step, wrong_way, templates=self._templates)

    def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
        """Where they were sent; the templates take on what is there now, the more of it the nearer it came."""
        places = scale_points(proposed, view.size, supervision_grid(view.size))
        seen = sample_patches(view.features(), places, self._radius)
        self._loss_after = _difference(seen, self._templates)
        share = template_share(self._loss_after, self.expected_loss)[:, None, None, None]
        self._templates = torch.lerp(self._templates, seen, share.to(seen))
        return proposed

    @property
    def _radius(self) -> int:
        return self._templates.shape[-1] // 2

    def _next_place(
        self, index: int, handles: torch.Tensor, targets: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """`(2,)` in cells: where a handle goes from where it is."""
        handle, target = handles[index], targets[index]
        if self._loss_after[index] < CLOSE * self.expected_loss:
            return self._searched(index, handle, target, features, self._longest, self.expected_loss)
        if self._loss_after[index] < self._loss_before[index]:
            return handle
        back = handle - _towards(handle, target, self._longest)
        return self._searched(index, back, target, features, 2 * self._longest, 0.0)

    def _searched(
        self,
        index: int,
        start: torch.Tensor,
        target: torch.Tensor,
        features: torch.Tensor,
        reach: float,
        wanted_loss: float,
    ) -> torch.Tensor:
        """`(2,)` in cells: the place within reach on the line from `start` whose loss is nearest to the wanted one."""
        shares = torch.arange(1, CANDIDATES + 1, device=start.device)[:, None] / CANDIDATES
        places = start + shares * _towards(start, target, reach)
        losses = self._losses(features, places, self._templates[index].expand(CANDIDATES, -1, -1, -1))
        return places[(losses - wanted_loss).abs().argmin()]

    def _losses(self, features: torch.Tensor, places: torch.Tensor, templates: torch.Tensor) -> torch.Tensor:
        """`(places,)`: how different a feature map is at each place from a template."""
        return _difference(sample_patches(features, places, self._radius), templates)


def template_share(loss: torch.Tensor, expected_loss: float) -> torch.Tensor:
    """What a template takes of what it sees where it was pulled to: half at 0.2, a tenth at 0.8 of the expected loss.

    Example:
        >>> template_share(torch.tensor([0.4, 1.6]), expected_loss=2.0)
        tensor([0.5000, 0.1000])
    """
    steepness = math.log(9) / ((KEPT - RENEWED) * expected_loss)
    return torch.sigmoid(steepness * (RENEWED * expected_loss - loss))


def _difference(patches: torch.Tensor, templates: torch.Tensor) -> torch.Tensor:
    """`(points,)`: mean absolute difference of `(points, channels, side, side)`."""
    return (patches - templates).abs().mean(dim=(1, 2, 3))


def _towards(place: torch.Tensor, target: torch.Tensor, length: float) -> torch.Tensor:
    """The way of `length` from a place towards a target, both `(2,)`, or what is left of it."""
    way = target - place
    return way * min(1.0, length / max(float(way.norm()), 1e-8))
