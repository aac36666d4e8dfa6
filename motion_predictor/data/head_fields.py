"""Where the content of a portrait can move: smooth fields over the picture, made from the landmarks of a face.

A motion of the head and the face is a sum of these fields with factors that change in time, so that its inverse, its
flow between any two moments and its determinant follow from one set of fields. Lengths are fractions of the picture's
side, `(x, y)` from the upper left corner; z grows away from the camera, as in the landmarks.

Landmarks are the 478 vertices of MediaPipe's face mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from ..common.checks import got

if TYPE_CHECKING:
    from .hinges import Hinge

NODES = 192  # of the fields per side of the picture: enough for a closed pair of lips
MARGIN = 30 / NODES  # the fields reach beyond the picture, for content that comes in over its border

FOREHEAD, CHIN, LEFT_EDGE, RIGHT_EDGE = 10, 152, 234, 454
LEFT_CORNER, RIGHT_CORNER = 61, 291
LEFT_BROW, RIGHT_BROW = 105, 334
INNER_UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))

# The fields, in the order of `HeadFields.channels`. Those of the head are its weight times position; those of the body
# have a wider weight; the expressions are displacements in the face's axes, in face heights, at their full strength.
HEAD = ("head_x", "head_y", "head_z")
BODY = ("body_x", "body_y", "body")
EXPRESSIONS = ("open_y", "close_y", "smile_x", "smile_y", "brows_y", "blink_y")
CHANNELS = (*HEAD, *BODY, *EXPRESSIONS)

DEPTH_BLURS = (0.065, 0.2)  # of the depth of landmarks, on the face and around it, in face heights
LIP_BAND = 0.022  # height of the seam between closed lips that opens, in face heights


@dataclass(frozen=True)
class HeadFields:
    """The fields of one portrait.

    Attributes:
        channels (`torch.Tensor` of shape `(channels, nodes, nodes)`): float32, the fields `CHANNELS` on a square grid
            of nodes, two for each hinge, and one for each patch.
        seam (`torch.Tensor` of shape `(2, nodes, nodes)`): float32, for painting the open mouth: the position across
            the seam between the lips, 0 at the upper lip and 1 at the lower one, and how far the seam opens there at
            full strength, in fractions of the side.
        region (`torch.Tensor` of shape `(1, nodes, nodes)`): float32, where handles are of use: 1 on the face, 0.3 on
            the head, 0 elsewhere, with smooth transitions; and the patches.
        pivot (`torch.Tensor` of shape `(3,)`): the point that the head turns about, behind the face and above the
            neck.
        axes (`torch.Tensor` of shape `(2, 2)`): its columns are the face's own axes, to its side and down, in the
            picture.
        mouth (`torch.Tensor` of shape `(2,)`): the middle of the mouth.
        fine (`tuple[slice, slice]`): the rows and columns of nodes where fields change quickest, those of eyes and
            mouth.
        depth (`torch.Tensor` of shape `(nodes, nodes)`): float32, of the head and of what is around it, in fractions
            of the side.
        yaw (`float`): how far the still head is turned to a side, in radians, with the sign of a motion's yaw.
        hinges (`tuple[Hinge, ...]`, *optional*): what turns about joints; the first carries the head.
    """

    channels: torch.Tensor
    seam: torch.Tensor
    region: torch.Tensor
    pivot: torch.Tensor
    axes: torch.Tensor
    mouth: torch.Tensor
    fine: tuple[slice, slice]
    depth: torch.Tensor
    yaw: float
    hinges: tuple[Hinge, ...] = ()

    @staticmethod
    def without_face() -> HeadFields:
        """Those of a picture without a face: nothing of it moves but by hinges and patches."""
        nodes = node_positions()[..., 0]
        return HeadFields(
            channels=torch.zeros(len(CHANNELS), *nodes.shape),
            seam=torch.zeros(2, *nodes.shape),
            region=torch.zeros(1, *nodes.shape),
            pivot=torch.zeros(3),
            axes=torch.eye(2),
            mouth=torch.full((2,), 0.5),
            fine=(slice(0, 2), slice(0, 2)),
            depth=torch.zeros_like(nodes),
            yaw=0.0,
        )

    @staticmethod
    def from_landmarks(landmarks: np.ndarray) -> HeadFields:
        """Make the fields of a face.

        Args:
            landmarks (`np.ndarray` of shape `(478, 3)`): x and y as fractions of the side, z in the same scale.

        Raises:
            ValueError: if the shape is another, values are not finite, or the face is no larger than a point.
        """
        if landmarks.shape != (478, 3) or not np.isfinite(landmarks).all():
            raise ValueError(f"`landmarks` must be finite numbers of shape (478, 3), got {got(landmarks)}.")
        face = _Face(torch.from_numpy(np.ascontiguousarray(landmarks, dtype=np.float32)))
        grid = node_positions()
        at = face.coordinates(grid)
        depth, on_face = _surface(face, at)
        head, body = (falloff(face.head_radius(at), 1.0, outer) for outer in (1.65, 1.9))
        from_pivot = at * face.height - face.pivot[:2]  # in the face's axes, fractions of the side
        opening, closing, seam = _jaw(face, at)
        fields = {
            "head_x": head * from_pivot[..., 0],
            "head_y": head * from_pivot[..., 1],
            "head_z": head * (depth - face.pivot[2]),
            "body_x": body * from_pivot[..., 0],
            "body_y": body * from_pivot[..., 1],
            "body": body,
            "open_y": opening * face.height,
            "close_y": closing * face.height,
            **{name: field * face.height for name, field in _smile(face, at).items()},
            "brows_y": _brows(face, at) * face.height,
            "blink_y": _blink(face, at) * face.height,
        }
        seam[1] *= face.height
        lips = face.marks[list(INNER_LOWER_LIP), :2].mean(dim=0)
        return HeadFields(
            channels=torch.stack([fields[name] for name in CHANNELS]),
            seam=seam,
            region=torch.maximum(on_face, 0.3 * falloff(face.head_radius(at), 0.85, 1.25))[None],
            pivot=torch.cat([face.origin + face.axes @ face.pivot[:2], face.pivot[2:]]),
            axes=face.axes,
            mouth=face.origin + face.axes @ lips * face.height,
            fine=_fine_nodes(face),
            depth=depth,
            yaw=face.yaw,
        )

    @property
    def patches(self) -> int:
        """The number of patches."""
        return len(self.channels) - len(CHANNELS) - 2 * len(self.hinges)

    @property
    def has_face(self) -> bool:
        """Whether there is a head that can turn, with a face on it."""
        return bool(self.channels[: len(HEAD)].any())

    def with_hinges(self, hinges: Sequence[Hinge]) -> HeadFields:
        """The same with parts that turn about joints; to be called before there are patches.

        Args:
            hinges (`Sequence[Hinge]`): in place of those that there were, which had none.
        """
        if not hinges:
            return self
        positions = node_positions()
        turned = [(hinge.weight[..., None] * (positions - hinge.pivot)).permute(2, 0, 1) for hinge in hinges]
        parts = torch.stack([hinge.weight * (0.3 if hinge.carrier is None else 0.7) for hinge in hinges])
        return replace(
            self,
            channels=torch.cat([self.channels, *turned]),
            region=torch.cat([self.region, parts]).amax(dim=0, keepdim=True),
            hinges=tuple(hinges),
        )

    def with_patches(self, centres: np.ndarray, radii: np.ndarray) -> HeadFields:
        """The same with soft round patches of the picture, anywhere, that can be dragged.

        Args:
            centres (`np.ndarray` of shape `(points, 2)`): in fractions of the side.
            radii (`np.ndarray` of shape `(points,)`): the standard deviations of Gaussian bumps, in fractions of the
                side.
        """
        positions = node_positions()
        bumps = [
            _bump(positions, torch.from_numpy(centre).float(), radius, radius)
            for centre, radius in zip(centres, radii.tolist(), strict=True)
        ]
        patches = torch.stack(bumps)
        region = torch.cat([self.region, patches]).amax(dim=0, keepdim=True)
        return replace(self, channels=torch.cat([self.channels, patches]), region=region)


def node_positions() -> torch.Tensor:
    """`[G, G, 2]`, where the nodes of the fields are, in fractions of the picture's side."""
    count = round(NODES * (1 + 2 * MARGIN))  # a multiple of 4: the depth is made on every fourth node
    along = (torch.arange(count) + 0.5) / NODES - MARGIN
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], dim=-1)


def read_fields(fields: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Read fields between their nodes, bilinearly; beyond the grid the outermost value holds.

    Args:
        fields (`torch.Tensor` of shape `(channels, nodes, nodes)`): as of [`HeadFields`].
        points (`torch.Tensor` of shape `(..., 2)`): in fractions of the picture's side.

    Returns:
        `torch.Tensor` of shape `(..., channels)`: the fields at the points.
    """
    grid = ((points + MARGIN) * 2 / (1 + 2 * MARGIN) - 1).reshape(1, 1, -1, 2)
    read = grid_sample(fields[None], grid, padding_mode="border", align_corners=False)[0, :, 0]
    return read.T.reshape(*points.shape[:-1], len(fields))


class _Face:
    """The face's own axes: origin between forehead and chin, x to its side, y down, its height the unit."""

    def __init__(self, landmarks: torch.Tensor):
        forehead, chin = landmarks[FOREHEAD, :2], landmarks[CHIN, :2]
        self.landmarks = landmarks
        self.origin = (forehead + chin) / 2
        self.height = float((chin - forehead).norm())
        if not self.height > 0.02:
            raise ValueError(f"`landmarks` must have a face at least 0.02 sides high, got {self.height:.3f}.")
        down = (chin - forehead) / self.height
        self.axes = torch.stack([torch.stack([down[1], -down[0]]), down], dim=1)
        self.marks = torch.cat([self.coordinates(landmarks[:, :2]), landmarks[:, 2:]], dim=1)  # z in sides
        across = landmarks[RIGHT_EDGE] - landmarks[LEFT_EDGE]
        self.yaw = float(torch.atan2(-across[2], across[:2].norm()))
        self.back = landmarks[[LEFT_EDGE, RIGHT_EDGE], 2].mean()
        # The head, in profile too, is round the middle between the edges of the face, and turns on the neck: at the
        # height of the mouth, a little behind those edges.
        self.middle = self.marks[[LEFT_EDGE, RIGHT_EDGE], 0].mean()
        self.pivot = torch.stack(
            [self.middle * self.height, torch.tensor(0.38 * self.height), self.back + 0.04 * self.height]
        )

    def coordinates(self, points: torch.Tensor) -> torch.Tensor:
        """Points `[..., 2]` of the picture in the face's coordinates."""
        return (points - self.origin) @ self.axes / self.height

    def head_radius(self, at: torch.Tensor) -> torch.Tensor:
        """1 on the outline of the head with its hair, an ellipse; `at` is in the face's coordinates."""
        return (((at[..., 0] - self.middle) / 0.56).square() + ((at[..., 1] + 0.15) / 0.72).square()).sqrt()


def _fine_nodes(face: _Face) -> tuple[slice, slice]:
    vertices = [*INNER_UPPER_LIP, *INNER_LOWER_LIP, LEFT_CORNER, RIGHT_CORNER]
    vertices += [vertex for lid in (*UPPER_LIDS, *LOWER_LIDS) for vertex in lid]
    nodes = (face.landmarks[vertices, :2] + MARGIN) * NODES
    around = 0.08 * face.height * NODES
    first, last = (nodes.amin(dim=0) - around).clamp(min=0).long(), (nodes.amax(dim=0) + around).long()
    columns, rows = (slice(begin, end) for begin, end in zip(first.tolist(), last.tolist(), strict=True))
    return rows, columns


def _surface(face: _Face, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth `[G, G]` of the head, that of the landmarks nearby and towards the hair that of a dome, and the face.

    Returns:
        the depth, in fractions of the side, and where the face is, from 0 to 1.
    """
    coarse = interpolate(at.permute(2, 0, 1)[None], scale_factor=1 / 4, mode="area")[0].permute(1, 2, 0)
    marks = face.marks[:468:2]
    squared = torch.cdist(coarse.reshape(-1, 2), marks[:, :2]).square().view(*coarse.shape[:2], -1)
    near, far = (torch.exp(-squared / (2 * blur**2)) for blur in DEPTH_BLURS)
    nearness = near + 0.02 * far
    front = face.landmarks[:, 2].amin()
    dome = (1 - face.head_radius(coarse).square()).clamp(min=0).square()  # flat at its rim, where a sphere is steep
    around = face.back - (face.back - front) * 0.8 * dome
    depth = (nearness @ marks[:, 2] + 0.3 * around) / (nearness.sum(dim=-1) + 0.3)
    maps = torch.stack([depth, _smooth_step(near.sum(dim=-1) / 0.8)])[None]
    fine = interpolate(maps, size=at.shape[:2], mode="bilinear", align_corners=False)
    fine = avg_pool2d(fine, 5, stride=1, padding=2, count_include_pad=False)[0]  # without the coarse grid's folds
    return fine[0], fine[1]


def _jaw(face: _Face, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The jaw going down with a mouth that opens, coming up with one that closes, and the seam `[2, G, G]`.

    Lips part at a seam: a narrow band above the edge of the lower lip, which is stretched to the width of the opening,
    and over which the inside of the mouth is painted. Upper teeth that are to be seen stay where they are.
    """
    upper, lower = face.marks[list(INNER_UPPER_LIP), :2], face.marks[list(INNER_LOWER_LIP), :2]
    along, upper_edge, lower_edge = _between_curves(upper, lower, at[..., 0])
    y = at[..., 1]
    across = (y - lower_edge) / LIP_BAND + 1
    ellipse = (1 - along.square()).clamp(min=0)
    cheeks = _smooth_step((y - lower_edge) / 0.3 + 0.4)
    chin = float(face.marks[CHIN, 1])
    middle = float(face.marks[CHIN, 0] + lower[5, 0]) / 2
    jaw = torch.exp(-((at[..., 0] - middle) / 0.27).square() / 2) * _smooth_step((chin + 0.4 - y) / 0.4)
    parted = ellipse * across.clamp(0, 1) + (1 - ellipse) * cheeks
    gap = (lower_edge - upper_edge).clamp(min=1e-3)
    joined = ellipse * ((y - upper_edge) / gap).clamp(0, 1) + (1 - ellipse) * cheeks
    closing = -jaw * joined * (lower[5, 1] - upper[5, 1]).clamp(min=0)
    return jaw * parted, closing, torch.stack([across, jaw * ellipse])


def _smile(face: _Face, at: torch.Tensor) -> dict[str, torch.Tensor]:
    """The corners of the mouth going outward and up; the middle of the lips and the nose stay."""
    left, right = (_bump(at, face.marks[corner, :2], 0.1, 0.11) for corner in (LEFT_CORNER, RIGHT_CORNER))
    return {"smile_x": 0.6 * (right - left), "smile_y": -0.6 * (right + left)}


def _brows(face: _Face, at: torch.Tensor) -> torch.Tensor:
    return -sum((_bump(at, face.marks[brow, :2], 0.2, 0.1) for brow in (LEFT_BROW, RIGHT_BROW)), torch.tensor(0.0))


def _blink(face: _Face, at: torch.Tensor) -> torch.Tensor:
    """Upper lids coming down over the eyes: skin above is stretched, the eye between the lids is narrowed."""
    down = torch.zeros(at.shape[:2])
    for upper_lid, lower_lid in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        upper, lower = face.marks[list(upper_lid), :2], face.marks[list(lower_lid), :2]
        along, upper_edge, lower_edge = _between_curves(upper, lower, at[..., 0])
        opening = (lower_edge - upper_edge).clamp(min=0) * (along.abs() < 1)
        above = _smooth_step((at[..., 1] - upper_edge) / 0.1 + 1)
        below = ((lower_edge - at[..., 1]) / (lower_edge - upper_edge).clamp(min=1e-3)).clamp(0, 1)
        down = down + opening * above * below
    return down


def _between_curves(
    upper: torch.Tensor, lower: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two edges of lips or lids that meet in their corners, as smooth curves over `x` of the face.

    Args:
        upper (`torch.Tensor` of shape `(points, 2)`): marks from one corner to the other.
        lower (`torch.Tensor` of shape `(points, 2)`): the same below.
        x (`torch.Tensor` of shape `(...,)`): where the curves are read.

    Returns:
        position along the curves, -1 and 1 at the corners, and the height of both curves there: `[...]` each.
    """
    corners = upper[[0, -1], 0]
    half = ((corners[1] - corners[0]).abs() / 2).clamp(min=0.01)
    along = (x - corners.mean()) / half
    inside = along.clamp(-1, 1)
    edges = []
    for marks in (upper, lower):
        # In 64 bits: the solver's last bits depend on where in memory its numbers lie, and would show in 32.
        places = ((marks[:, 0] - corners.mean()) / half).double().numpy()
        a, b, c, d = np.polynomial.polynomial.polyfit(places, marks[:, 1].double().numpy(), 3).tolist()
        edges.append(a + inside * (b + inside * (c + inside * d)))
    return along, edges[0], edges[1]


def falloff(radius: torch.Tensor, inner: float, outer: float) -> torch.Tensor:
    """1 within `inner`, falling smoothly to 0 at `outer`."""
    return _smooth_step((outer - radius) / (outer - inner))


def _smooth_step(share: torch.Tensor) -> torch.Tensor:
    share = share.clamp(0, 1)
    return share.square() * (3 - 2 * share)


def _bump(at: torch.Tensor, centre: torch.Tensor, width: float, height: float) -> torch.Tensor:
    offset = at - centre
    return torch.exp(-(offset[..., 0] / width).square() / 2 - (offset[..., 1] / height).square() / 2)
