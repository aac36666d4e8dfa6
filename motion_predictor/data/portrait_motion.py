"""Portraits in motion: still portraits whose heads turn and whose faces change expression, with their exact flow.

The still portrait is the canonical picture. Its point X is at `x_t = X + D_t(X)` in frame t, where D_t is a sum of
smooth fields (see `head_fields.py`) with factors that follow natural curves in time (see `natural_timing.py`): a head
with the depth of its landmarks turns about the neck, shoulders and background stay, the jaw opens, lids come down.
Amplitudes are limited so that no D_t folds the picture. Frame t is the portrait seen through the inverse of that map,
and the flow between any two frames is exact: no optical flow was estimated.

An opening mouth shows what a shut one hides. Between the lips a dark inside is painted, and its flow is that of the
seam that is stretched between them: it goes over from the upper lip's to the lower lip's.

A head that turns further than the picture can follow hides parts of itself. Then of all points X that come to lie on a
pixel the one nearest to the camera is seen. Where it goes is known by the same formula, in frames that hide it, too.
What a turning head lays open shows what lies around it, stretched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import grid_sample

from ..common.checks import got
from .head_factors import (
    EXPRESSION,
    LEAST_DETERMINANT,
    Factors,
    depth_sums,
    determinants,
    displacement_sums,
    draw_factors,
)
from .head_fields import MARGIN, NODES, HeadFields, node_positions, read_fields
from .tilted_window import surrounded
from .visible_surface import VisibleSurface

NEWTON_STEPS = 40  # a handful do, but for some points in seams of lips
TOLERANCE = 2e-6  # of the side: about 1/4000 px at 128 px
POLISHING_STEPS = 6
GREATEST_ERROR = 1e-4  # of the side: where rounding keeps a point from the tolerance


class FoldedPicture(ValueError):
    """A frame in which some point of the picture cannot be found."""


class PortraitMotion:
    """A motion of one portrait over some frames.

    Frames are numbered from 0; `None` in place of a number is the still portrait. Points are `(x, y)` in pixels of a
    picture of the portrait's size, integers at pixel centres.

    Args:
        picture (`np.ndarray` of shape `(side, side, 3)`): uint8 RGB, the still portrait.
        fields (`HeadFields`): where its content can move.
        factors (`Factors`): how far each field moves it in each frame. They are not kept from folding the picture.
        hides (`bool`, *optional*, defaults to `False`): whether what folds is a surface that hides parts of itself;
            otherwise it is an error.

    Example:
        >>> landmarks = np.load("landmarks.npy")  # [478, 3]  # doctest: +SKIP
        >>> random = np.random.default_rng(0)
        >>> motion = PortraitMotion.draw(picture, HeadFields.from_landmarks(landmarks), random)  # doctest: +SKIP
        >>> motion.flow(0, 25, np.array([[64.0, 70.0]]))  # in the first second  # doctest: +SKIP
        array([[3.21, -0.87]], dtype=float32)
    """

    def __init__(self, picture: np.ndarray, fields: HeadFields, factors: Factors, hides: bool = False):
        if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
            raise ValueError(f"`picture` must be of shape (side, side, 3), got {got(picture)}.")
        self.picture = np.array(picture)  # one that torch may share
        self.side = len(picture)
        self.fields = fields
        self.factors = factors
        self.frames = len(factors.pose)
        self._sums = displacement_sums(fields, factors)  # [T, 2, C]
        self._margin = round(MARGIN * self.side)
        still = torch.from_numpy(self.picture).permute(2, 0, 1)[None].float()
        self._canvas = surrounded(still, self._margin)
        self._last: tuple[int | None, torch.Tensor] | None = None
        self._hides = hides
        self._surface: tuple[int, VisibleSurface | None] | None = None

    @staticmethod
    def draw(
        picture: np.ndarray,
        fields: HeadFields,
        random: np.random.Generator,
        frames: int = 96,
        largest_turn: float | None = None,
    ) -> PortraitMotion:
        """A random motion: see [`draw_factors`].

        Args:
            picture (`np.ndarray` of shape `(side, side, 3)`): uint8 RGB, the still portrait.
            fields (`HeadFields`): of its face.
            random (`np.random.Generator`): the only source of chance.
            frames (`int`, *optional*, defaults to 96): how many, 25 in a second.
            largest_turn (`float`, *optional*): radians that the head is turned at most, and hides parts of itself.
                None: as far as it can turn and hide nothing.
        """
        drawn = draw_factors(fields, random, frames, largest_turn)
        return PortraitMotion(picture, *drawn, hides=largest_turn is not None)

    def frame(self, number: int | None) -> np.ndarray:
        """`[S, S, 3]` uint8, the portrait at that moment."""
        if number is None:
            return self.picture
        origin = self._origin(number)
        grid = (origin * 2 - 1) / (1 + 2 * self._margin / self.side)
        seen = grid_sample(
            self._canvas,
            grid.view(1, self.side, self.side, 2),
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )[0].permute(1, 2, 0)
        seen = self._paint_mouth(seen, origin.view(self.side, self.side, 2), number)
        return np.asarray(seen.round().clamp(0, 255).byte())

    def flow(self, start: int | None, end: int | None, points: np.ndarray) -> np.ndarray:
        """The motion `[..., 2]` in pixels, from frame `start` to frame `end`, of what is at `points` in `start`."""
        return self.track(points, start, [end])[..., 0, :]

    def track(self, points: np.ndarray, start: int | None, frames: Sequence[int | None]) -> np.ndarray:
        """The motion `[..., F, 2]` from frame `start` to each of `frames` of what is at `points` `[..., 2]`."""
        here = (torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)) + 0.5) / self.side
        here = here.view(-1, 2)
        displacements = self._displacements(here, self._inverse(here, start), frames) * self.side
        return displacements.view(*points.shape[:-1], len(frames), 2).numpy()

    def flow_and_region(self, start: int | None, end: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The motion `[S, S, 2]` of all pixels of frame `start`, and where handles are of use there, `[S, S]` to 1."""
        origin = self._origin(start)
        flow = self._displacements(self._pixels(), origin, [end]) * self.side
        region = read_fields(self.fields.region, origin)
        return flow.view(self.side, self.side, 2).numpy(), region.view(self.side, self.side).numpy()

    def speeds(self) -> np.ndarray:
        """`[T - 1]`, how far the fastest content moves to the next frame, as a fraction of the side."""
        coarse = self.fields.channels[:, ::8, ::8].flatten(1)
        return np.asarray((self._sums.diff(dim=0) @ coarse).norm(dim=1).amax(dim=1))

    def _displacements(self, here: torch.Tensor, origin: torch.Tensor, frames: Sequence[int | None]) -> torch.Tensor:
        """`[P, F, 2]`, the displacement to each frame from `here` of what is at `origin` in the still, in sides."""
        channels = read_fields(self.fields.channels, origin)
        sums = torch.stack([self._sums_of(frame) for frame in frames]) if len(frames) else self._sums[:0]
        return origin[:, None] + torch.einsum("fac,pc->pfa", sums, channels) - here[:, None]

    def _sums_of(self, number: int | None) -> torch.Tensor:
        return torch.zeros_like(self._sums[0]) if number is None else self._sums[number]

    def _pixels(self) -> torch.Tensor:
        return (torch.from_numpy(pixel_centres(self.side)).view(-1, 2) + 0.5) / self.side

    def _origin(self, number: int | None) -> torch.Tensor:
        """The still's points `[S * S, 2]` that all pixels show; those of the frame asked for last are kept."""
        if self._last is None or self._last[0] != number:
            self._last = number, self._inverse(self._pixels(), number)
        return self._last[1]

    def _inverse(self, here: torch.Tensor, number: int | None) -> torch.Tensor:
        """The still's points X `[P, 2]` of which `X + D_t(X)` is `here`, in fractions of the side."""
        if number is None:
            return here
        displacement = torch.einsum("ac,chw->ahw", self._sums[number], self.fields.channels)
        if self._hides and (self._surface is None or self._surface[0] != number):
            self._surface = number, self._surface_of(number, displacement)
        if self._surface is not None and self._surface[1] is not None:
            seen = torch.from_numpy(self._surface[1].at((here * self.side - 0.5).numpy())).float()
            return polish(displacement, here, torch.where(seen.isfinite(), seen, here))
        return invert(displacement, here)

    def _surface_of(self, number: int, displacement: torch.Tensor) -> VisibleSurface | None:
        """The surface in a frame, if some of it may be hidden there. Around it goes a rim that moves as its border."""
        steep = determinants(self.fields.channels, self._sums[number][None]).min() < LEAST_DETERMINANT / 2
        if not steep and displacement.abs().max() < MARGIN:
            return None
        away = torch.einsum("c,chw->hw", depth_sums(self.fields, self.factors)[number], self.fields.channels)
        still = np.pad(node_positions().numpy(), ((1, 1), (1, 1), (0, 0)), mode="edge")
        still[:, [0, -1], 0] += [-1, 1]
        still[[0, -1], :, 1] += [[-1], [1]]
        moved = still + np.pad(displacement.permute(1, 2, 0).numpy(), ((1, 1), (1, 1), (0, 0)), mode="edge")
        depth = np.pad((self.fields.depth + away).numpy(), 1, mode="edge")
        return VisibleSurface(moved * self.side - 0.5, depth, still, self.side)

    def _paint_mouth(self, seen: torch.Tensor, origin: torch.Tensor, number: int) -> torch.Tensor:
        opening = float(self.factors.expression[number, EXPRESSION.index("open")])
        if opening <= 0:
            return seen
        across, parting = read_fields(self.fields.seam, origin).unbind(-1)
        gap = parting * opening * self.side  # pixels between the lips
        edge = torch.minimum(across, 1 - across) * gap
        alpha = edge.clamp(0, 1) * (gap - 0.5).clamp(0, 1)
        return torch.lerp(seen, self._inside_of_mouth(), alpha[..., None])

    def _inside_of_mouth(self) -> torch.Tensor:
        x, y = (self.fields.mouth * self.side).long().clamp(2, self.side - 3).tolist()
        lips = torch.from_numpy(self.picture[y - 2 : y + 3, x - 2 : x + 3]).float().mean(dim=(0, 1))
        return lips * 0.2


def pixel_centres(side: int) -> np.ndarray:
    """`[side, side, 2]` float32, the points `(x, y)` of all pixels."""
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).astype(np.float32)


def invert(displacement: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Solve `X + D(X) = here` by Newton's method, where a step that does not come closer is halved.

    Args:
        displacement (`torch.Tensor`): D, `[2, G, G]` at the nodes of the fields; between them it is bilinear.
        here (`torch.Tensor` of shape `(points, 2)`): in fractions of the side.

    Returns:
        `torch.Tensor` of shape `(points, 2)`: X, in fractions of the side.

    Raises:
        FoldedPicture: if some point is not found, as where `X + D(X)` folds.
    """
    field = displacement.permute(1, 2, 0).contiguous()
    origin = here - _value_and_slope(field, here)[0]
    left = torch.arange(len(here))  # the points that have not arrived
    at, error, step = origin.clone(), *_newton_step(field, origin, here)
    factor = torch.ones(len(here), 1)
    for _ in range(NEWTON_STEPS):
        going = error.norm(dim=1) > TOLERANCE
        origin[left] = at
        if not going.any():
            return origin
        left, at, error, step, factor = (values[going] for values in (left, at, error, step, factor))
        trial = at - factor * step
        trial_error, trial_step = _newton_step(field, trial, here[left])
        closer = (trial_error.norm(dim=1) < error.norm(dim=1))[:, None]
        at, error, step = (
            torch.where(closer, new, old) for new, old in ((trial, at), (trial_error, error), (trial_step, step))
        )
        factor = torch.where(closer, (2 * factor).clamp(max=1), factor / 2)
    origin[left] = at
    if error.norm(dim=1).max() > GREATEST_ERROR:
        raise FoldedPicture("`displacement` must have a determinant above 0, got one that folds the picture.")
    return origin


def polish(displacement: torch.Tensor, here: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Solve `X + D(X) = here` from solutions that are almost right, staying on their part of a folded surface.

    Args:
        displacement (`torch.Tensor`): D, `[2, G, G]` as for [`invert`].
        here (`torch.Tensor` of shape `(points, 2)`): in fractions of the side.
        near (`torch.Tensor` of shape `(points, 2)`): the solutions, in fractions of the side.

    Returns:
        `torch.Tensor` of shape `(points, 2)`: better ones, or those of `near` where there are none within a node.
    """
    field = displacement.permute(1, 2, 0).contiguous()
    best = near.clone()
    least, step = _newton_step(field, best, here)
    for _ in range(POLISHING_STEPS):
        trial = best - step
        error, following = _newton_step(field, trial, here)
        better = (error.norm(dim=1) < least.norm(dim=1)) & ((trial - near).abs().amax(dim=1) < 1 / NODES)
        better = better[:, None]
        best, least, step = (
            torch.where(better, new, old) for new, old in ((trial, best), (error, least), (following, step / 2))
        )
    return best


def _newton_step(field: torch.Tensor, at: torch.Tensor, here: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much `X + D(X)` misses `here`, and the step that makes up for it as far as D is linear."""
    value, by_x, by_y = _value_and_slope(field, at)
    error = at + value - here
    a, b, c, d = 1 + by_x[:, 0], by_y[:, 0], by_x[:, 1], 1 + by_y[:, 1]
    determinant = (a * d - b * c).clamp(min=0.05)
    step = torch.stack([d * error[:, 0] - b * error[:, 1], a * error[:, 1] - c * error[:, 0]], dim=1)
    return error, (step / determinant[:, None]).clamp(-0.05, 0.05)


def _value_and_slope(field: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A field `[G, G, 2]` and its derivatives by x and y at `points` `[P, 2]`, within each cell: `[P, 2]` each."""
    nodes = ((points + MARGIN) * NODES - 0.5).clamp(0, len(field) - 1)
    corner = nodes.floor().clamp(max=len(field) - 2)
    x, y = (nodes - corner)[:, :1], (nodes - corner)[:, 1:]
    index = (corner[:, 1] * len(field) + corner[:, 0]).long()
    flat = field.view(-1, 2)
    upper_left, upper_right = flat[index], flat[index + 1]
    lower_left, lower_right = flat[index + len(field)], flat[index + len(field) + 1]
    left, right = torch.lerp(upper_left, lower_left, y), torch.lerp(upper_right, lower_right, y)
    upper, lower = torch.lerp(upper_left, upper_right, x), torch.lerp(lower_left, lower_right, x)
    return torch.lerp(left, right, x), (right - left) * NODES, (lower - upper) * NODES
