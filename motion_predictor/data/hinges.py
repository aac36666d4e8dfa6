"""Limbs, heads and bodies that turn about their joints: soft regions of a picture, each with a point it turns about.

A hinge turns what lies in its region by an angle about its pivot, and less and less of it towards the region's rim. It
is two fields beside those of `head_fields.py`, the weight of the region times the position from the pivot. One that is
carried by another, as a forearm is by its upper arm, turns about a pivot that the other has moved.

Joints are the 33 points of MediaPipe's pose. What has no joints, an animal, sways as a whole, with parts of any place
and size that turn in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..common.checks import got
from .head_fields import falloff, node_positions

NOSE, EARS, SHOULDERS, HIPS = 0, (7, 8), (11, 12), (23, 24)
ARMS = ((11, 13, 15, 19), (12, 14, 16, 20))  # shoulder, elbow, wrist, tip of the hand

# The most that a part turns either way, in radians.
LARGEST_SWAY, LARGEST_NOD, LARGEST_ARM, LARGEST_FOREARM, LARGEST_HAND = 0.15, 0.3, 0.4, 0.6, 0.5
LARGEST_SUBJECT, LARGEST_PART = 0.25, 0.5  # of something without joints
LEAST_SHOULDERS = 0.02  # of the side: nearer to each other they show no body
OUT_OF_SIGHT = 1.05  # of the side: a joint beyond is not turned about


@dataclass(frozen=True, eq=False)
class Hinge:
    """A soft region that turns about a point.

    Attributes:
        pivot (`torch.Tensor` of shape `(2,)`): in fractions of the side.
        weight (`torch.Tensor` of shape `(nodes, nodes)`): how much of the angle each node of the fields turns by, from
            0 to 1.
        largest (`float`): angle that it turns by at most, either way, in radians.
        carrier (`int`, *optional*): the number of the hinge that moves this one, an earlier one in the picture's list.
    """

    pivot: torch.Tensor
    weight: torch.Tensor
    largest: float
    carrier: int | None = None


def hinges_of_body(pose: np.ndarray, with_head: bool) -> list[Hinge]:
    """The hinges of a person: the body on its hips first, then arms, forearms and hands as far as they are in sight.

    Args:
        pose (`np.ndarray` of shape `(33, 4)`): x and y as fractions of the side, z, and how visible each joint is.
        with_head (`bool`): whether the head is one of them; it need not be where fields of its face turn it.

    Raises:
        ValueError: if the shape is another, values are not finite, or the shoulders are no further apart than a point.
    """
    if pose.shape != (33, 4) or not np.isfinite(pose).all():
        raise ValueError(f"`pose` must be finite numbers of shape (33, 4), got {got(pose)}.")
    joints = torch.from_numpy(np.ascontiguousarray(pose[:, :2], dtype=np.float32))
    width = float((joints[SHOULDERS[0]] - joints[SHOULDERS[1]]).norm())
    if not width > LEAST_SHOULDERS:
        raise ValueError(f"`pose` must have shoulders at least {LEAST_SHOULDERS} sides apart, got {width:.3f}.")
    neck, hips = joints[list(SHOULDERS)].mean(dim=0), joints[list(HIPS)].mean(dim=0)
    head = joints[list(EARS)].mean(dim=0)
    arms = [joints[list(arm)] for arm in ARMS]
    of_head = _along([head, head], 0.5 * width, 0.9 * width)
    of_trunk = _along([hips, neck], 0.5 * width, 0.95 * width)
    of_arms = [_along(list(arm), 0.17 * width, 0.45 * width) for arm in arms]
    hinges = [Hinge(hips, torch.stack([of_head, of_trunk, *of_arms]).amax(dim=0), LARGEST_SWAY)]
    if with_head:
        hinges.append(Hinge(torch.lerp(neck, head, 0.3), of_head, LARGEST_NOD, carrier=0))
    for arm, weight in zip(arms, of_arms, strict=True):
        carrier = 0
        for number, (inner, outer, largest) in enumerate(
            ((0.17, 0.45, LARGEST_ARM), (0.16, 0.4, LARGEST_FOREARM), (0.13, 0.32, LARGEST_HAND))
        ):
            if not bool(((arm[number] > 1 - OUT_OF_SIGHT) & (arm[number] < OUT_OF_SIGHT)).all()):
                break
            region = weight if number == 0 else _along(list(arm[number:]), inner * width, outer * width)
            hinges.append(Hinge(arm[number], region, largest, carrier))
            carrier = len(hinges) - 1
    return hinges


def draw_hinges(random: np.random.Generator) -> list[Hinge]:
    """Hinges for a picture of which nothing is known: something in the middle that sways, and one to three parts."""
    middle = random.uniform(0.38, 0.62, 2)
    height = random.uniform(0.2, 0.34)
    foot = middle + np.array([random.uniform(-0.5, 0.5) * height, height])
    up = np.array([0, 0.3 * height])
    ends = [torch.from_numpy(end).float() for end in (middle - up, middle + up)]
    hinges = [Hinge(torch.from_numpy(foot).float(), _along(ends, height, 2.2 * height), LARGEST_SUBJECT)]
    for _ in range(int(random.integers(1, 4))):
        pivot = middle + random.uniform(-0.8, 0.8, 2) * height
        angle, length, inner = random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.35), random.uniform(0.06, 0.14)
        end = pivot + length * np.array([np.cos(angle), np.sin(angle)])
        part = _along([torch.from_numpy(point).float() for point in (pivot, end)], inner, inner * 3.5)
        hinges.append(Hinge(torch.from_numpy(pivot).float(), part, LARGEST_PART, carrier=0))
    return hinges


def turns_of(hinges: Sequence[Hinge], angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What hinges do to their fields, frame by frame.

    With the turn R of a hinge by its own angle and the turn P of what carries it, it adds `P (R - 1)` times its two
    fields: at weights of 1 that is the turn about a pivot that was carried along.

    Args:
        hinges (`Sequence[Hinge]`): of a picture.
        angles (`torch.Tensor` of shape `(frames, hinges)`): radians, as the picture's x axis turns towards its y axis.

    Returns:
        the factors of the fields, `[T, hinges, 2, 2]`, and the whole turn of each hinge, of the same shape.
    """
    cosine, sine = angles.cos(), angles.sin()
    own = torch.stack([cosine, -sine, sine, cosine], dim=-1).view(*angles.shape, 2, 2)
    factors, whole = torch.zeros_like(own), torch.zeros_like(own)
    for number, hinge in enumerate(hinges):
        factors[:, number], whole[:, number] = own[:, number] - torch.eye(2), own[:, number]
        if hinge.carrier is not None:
            carried = whole[:, hinge.carrier]
            factors[:, number], whole[:, number] = carried @ factors[:, number], carried @ whole[:, number]
    return factors, whole


def _along(points: Sequence[torch.Tensor], inner: float, outer: float) -> torch.Tensor:
    """A weight `[G, G]`: 1 within `inner` of the line through the points, falling smoothly to 0 at `outer`."""
    at = node_positions()
    distances = []
    for begin, end in pairwise(points):
        way = end - begin
        share = ((at - begin) @ way / way.square().sum().clamp(min=1e-8)).clamp(0, 1)
        distances.append((at - begin - share[..., None] * way).norm(dim=-1))
    return falloff(torch.stack(distances).amin(dim=0), inner, outer)
