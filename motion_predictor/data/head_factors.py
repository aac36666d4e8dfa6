"""What moves when: the factors of a head's fields over time, drawn at random and kept from folding the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .head_fields import BODY, CHANNELS, HEAD, NODES, HeadFields
from .hinges import turns_of
from .natural_timing import blink_curve, expression_curve, pose_curve, speech_curve

FPS = 25.0
POSE = ("pitch", "yaw", "roll", "shift_x", "shift_y", "scale")
TURNS = POSE[:2]  # that hide parts of a head
LARGEST_POSE = np.array([0.30, 0.42, 0.26, 0.08, 0.06, 0.08])  # radians, fractions of the side, logarithm
EXPRESSION = ("open", "close", "smile", "brows", "blink")
LARGEST_EXPRESSION = np.array([0.16, 0.75, 0.1, 0.07, 0.74])  # face heights; of the mouth's and the eyes' opening
LARGEST_DRAG = 0.9  # of a patch, in its radii

# The least factor by which a map from the still to a frame may shrink areas; a motion that comes below is made
# smaller. One part of a pose alone keeps twice that.
LEAST_DETERMINANT = 0.2


@dataclass(frozen=True)
class Factors:
    """The factors of the fields over T frames.

    Attributes:
        pose (`torch.Tensor` of shape `(frames, 6)`): of `POSE`: radians, fractions of the side, and the logarithm of
            the scale.
        expression (`torch.Tensor` of shape `(frames, 5)`): of `EXPRESSION`: face heights, and shares of the opening of
            mouth and eyes.
        drags (`torch.Tensor` of shape `(frames, points, 2)`): of the patches that the fields have, in fractions of the
            side.
        bends (`torch.Tensor` of shape `(frames, hinges)`): of the hinges that the fields have, in radians.
    """

    pose: torch.Tensor
    expression: torch.Tensor
    drags: torch.Tensor
    bends: torch.Tensor

    @staticmethod
    def zeros(frames: int, patches: int = 0, hinges: int = 0) -> Factors:
        """Those of the still portrait."""
        return Factors(
            pose=torch.zeros(frames, len(POSE)),
            expression=torch.zeros(frames, len(EXPRESSION)),
            drags=torch.zeros(frames, patches, 2),
            bends=torch.zeros(frames, hinges),
        )

    def scaled(self, pose: float, others: float, turns: float | None = None) -> Factors:
        """A motion that goes less far, or further; `turns` says it of nods and turns to a side apart from the pose."""
        turns = pose if turns is None else turns
        factors = torch.tensor([turns if part in TURNS else pose for part in POSE])
        return Factors(self.pose * factors, self.expression * others, self.drags * others, self.bends * others)


def draw_factors(
    fields: HeadFields, random: np.random.Generator, frames: int, largest_turn: float | None = None
) -> tuple[HeadFields, Factors]:
    """Draw a motion: of the head, of the face, of soft patches anywhere in the picture, or of some of these.

    What has hinges moves these, too, or nothing else.

    Args:
        fields (`HeadFields`): of the still.
        random (`np.random.Generator`): the only source of chance.
        frames (`int`): how many.
        largest_turn (`float`, *optional*): radians that a head is turned to a side at most, and nods by 0.6 of it; a
            head that turns so far hides parts of itself. None: as far as it can turn and hide nothing.

    Returns:
        the fields with the patches, and the factors, so small that no frame folds the picture, but for what a head
        hides.

    Raises:
        ValueError: if the smallest motion folds the picture.
    """
    with_head, with_face, with_patches = _KINDS[int(random.choice(len(_KINDS), p=_CHANCES))]
    if not fields.has_face:
        with_patches = bool(random.random() < 0.6)
    fields, drags = _draw_patches(fields, random, frames) if with_patches else (fields, torch.zeros(frames, 0, 2))
    slowness = 2 ** random.uniform(0, 1.5)
    pose = _draw_pose(fields, random, frames, slowness) * with_head
    if largest_turn is not None:
        pose[:, :2] = _draw_turns(fields, random, frames, slowness, largest_turn, moves=with_head)
    factors = Factors(
        pose=pose,
        expression=_draw_expression(random, frames, slowness) * with_face,
        drags=drags,
        bends=_draw_bends(fields, random, frames, slowness),
    )
    for _ in range(40):
        facing = factors if largest_turn is None else factors.scaled(pose=1.0, others=1.0, turns=0.0)
        if _smallest_determinant(fields, facing) >= LEAST_DETERMINANT:
            return fields, factors
        factors = factors.scaled(pose=0.9, others=0.95, turns=None if largest_turn is None else 1.0)
    raise ValueError("`landmarks` must be those of a face, got some that fold the picture with the smallest motion.")


# Whether the head, the face and patches move, and how often.
_KINDS = ((True, True, False), (True, False, False), (False, True, False), (False, False, True), (True, True, True))
_CHANCES = (0.45, 0.2, 0.15, 0.1, 0.1)


def _draw_pose(fields: HeadFields, random: np.random.Generator, frames: int, slowness: float) -> torch.Tensor:
    low, high = _pose_limits(fields)
    strength = 10 ** random.uniform(-0.3, 0, len(POSE)) * (random.random(len(POSE)) < 0.8)
    curves = np.stack([pose_curve(random, frames, FPS, slowness) for _ in POSE], axis=1)
    return torch.from_numpy((low + (high - low) * (curves + 1) / 2) * strength).float()


def _draw_turns(
    fields: HeadFields, random: np.random.Generator, frames: int, slowness: float, largest: float, moves: bool
) -> torch.Tensor:
    """Pitch and yaw `[T, 2]`: moves about a position that is itself turned, in half of all motions, or that alone."""
    low = np.array([-0.6 * largest, np.clip(-largest - fields.yaw, -largest, 0)])
    high = np.array([0.6 * largest, np.clip(largest - fields.yaw, 0, largest)])
    rest = random.uniform(low, high) * (random.random() < 0.5)
    curves = np.stack([pose_curve(random, frames, FPS, slowness) for _ in low], axis=1)
    share = random.uniform(0.3, 1, 2) * moves
    return torch.from_numpy((1 - share) * rest + share * (low + (high - low) * (curves + 1) / 2)).float()


def _draw_bends(fields: HeadFields, random: np.random.Generator, frames: int, slowness: float) -> torch.Tensor:
    """`[T, hinges]`: each turns on a schedule of its own, and one in four rests."""
    if not fields.hinges:
        return torch.zeros(frames, 0)
    strength = _bend_limits(fields) * random.uniform(0.4, 1, len(fields.hinges))
    strength *= random.random(len(fields.hinges)) < 0.75
    curves = np.stack([pose_curve(random, frames, FPS, slowness) for _ in fields.hinges], axis=1)
    return torch.from_numpy(curves * strength).float()


def _bend_limits(fields: HeadFields) -> np.ndarray:
    """How far each hinge may turn by itself, either way."""
    largest = np.array([hinge.largest for hinge in fields.hinges])
    shares = np.linspace(1, 0.1, 7)
    bends = np.concatenate([np.diag(largest * share * sign) for sign in (-1, 1) for share in shares])
    factors = Factors.zeros(len(bends), fields.patches, len(largest))
    factors.bends[:] = torch.from_numpy(bends)
    smallest = determinants(fields.channels[:, ::4, ::4], displacement_sums(fields, factors), spacing=4)
    fits = (smallest.amin(dim=(1, 2)) >= 1.5 * LEAST_DETERMINANT).view(2, len(shares), -1).all(dim=0).numpy()
    return np.asarray(largest * np.where(fits.any(axis=0), shares[fits.argmax(axis=0)], 0.05))


def _pose_limits(fields: HeadFields) -> tuple[np.ndarray, np.ndarray]:
    """How far each part of the pose may go down and up by itself: a head that is turned already turns less."""
    limits = []
    shares = np.linspace(1, 0.1, 10)
    for sign in (-1, 1):
        poses = np.concatenate([np.diag(LARGEST_POSE * sign * share) for share in shares])
        factors = Factors.zeros(len(poses), fields.patches, len(fields.hinges))
        factors.pose[:] = torch.from_numpy(poses)
        sums = displacement_sums(fields, factors)
        smallest = determinants(fields.channels[:, ::4, ::4], sums, spacing=4).amin(dim=(1, 2))
        fits = (smallest >= 2 * LEAST_DETERMINANT).view(len(shares), len(POSE)).numpy()
        best = np.where(fits.any(axis=0), shares[fits.argmax(axis=0)], 0.05)
        limits.append(LARGEST_POSE * sign * best)
    return limits[0], limits[1]


def _draw_expression(random: np.random.Generator, frames: int, slowness: float) -> torch.Tensor:
    mouth = speech_curve if random.random() < 0.5 else expression_curve
    # A face at rest smiles and frowns less far than it can go the other way.
    smile, brows = ((1 + 3 * pose_curve(random, frames, FPS, slowness)) / 4 for _ in range(2))
    curves = [
        mouth(random, frames, FPS),
        expression_curve(random, frames, FPS),
        smile,
        brows,
        blink_curve(random, frames, FPS),
    ]
    present = random.random(len(EXPRESSION)) < (0.7, 0.5, 0.6, 0.5, 0.6)
    present[1] &= not present[0]  # a mouth opens or closes
    strength = random.uniform(0.4, 1, len(EXPRESSION))
    strength[-1] = 1  # eyes close, or don't
    return torch.from_numpy(np.stack(curves, axis=1) * LARGEST_EXPRESSION * present * strength).float()


def _draw_patches(fields: HeadFields, random: np.random.Generator, frames: int) -> tuple[HeadFields, torch.Tensor]:
    """One to three soft patches, of any size and anywhere, each on a path of its own: `[T, n, 2]`."""
    number = int(random.integers(1, 4))
    radii = 0.05 * 5 ** random.uniform(0, 1, number)
    fields = fields.with_patches(random.uniform(0.05, 0.95, (number, 2)), radii)
    paths = np.stack([[pose_curve(random, frames, FPS, 1.5) for _ in range(2)] for _ in radii])  # [n, 2, T]
    drags = paths.transpose(2, 0, 1) * LARGEST_DRAG * radii[:, None] * random.uniform(0.3, 1, (number, 1))
    return fields, torch.from_numpy(drags).float()


def _smallest_determinant(fields: HeadFields, factors: Factors) -> float:
    """Looked for on all nodes about eyes and mouth, elsewhere on every fourth, and on all of the lowest frames."""
    sums = displacement_sums(fields, factors)
    coarse = determinants(fields.channels[:, ::4, ::4], sums, spacing=4).amin(dim=(1, 2))
    fine = determinants(fields.channels[:, *fields.fine], sums).min()
    lowest = determinants(fields.channels, sums[coarse.argsort()[:3]]).min()
    return float(torch.minimum(fine, lowest))


def determinants(channels: torch.Tensor, sums: torch.Tensor, spacing: int = 1) -> torch.Tensor:
    """`[T, h - 1, w - 1]`, by how much each frame's map enlarges areas; negative where it folds.

    Args:
        channels (`torch.Tensor` of shape `(channels, h, w)`): fields, or some of their nodes.
        sums (`torch.Tensor` of shape `(frames, 2, channels)`): see [`displacement_sums`].
        spacing (`int`, *optional*, defaults to 1): every so many nodes of the fields are given.
    """
    displacement = torch.einsum("tac,chw->tahw", sums, channels) * (NODES / spacing)
    by_x = (displacement[..., 1:] - displacement[..., :-1])[:, :, :-1]
    by_y = (displacement[:, :, 1:] - displacement[:, :, :-1])[..., :-1]
    return (1 + by_x[:, 0]) * (1 + by_y[:, 1]) - by_x[:, 1] * by_y[:, 0]


def displacement_sums(fields: HeadFields, factors: Factors) -> torch.Tensor:
    """`[T, 2, C]`: the displacement of frame t is `sums[t] @ channels`, in fractions of the side.

    With the turn R of the head, the position f from the pivot in the face's axes, the scale s, the shift and the
    expression E, it is, in the face's axes, `head (R - 1) f + body ((s - 1) f + shift) + s R E`; and the drags of the
    patches are added. Only x and y of it are used: the camera is far away. A body that turns about its hips carries
    its head along.
    """
    turn = _rotation(factors.pose[:, :3])[:, :2]  # [T, 2, 3]
    scale = factors.pose[:, 5, None].exp()
    side, down = (scale * turn[..., axis] for axis in (0, 1))  # [T, 2], the face's axes once it has turned
    opened, closed, smile, brows, blink = factors.expression[..., None].unbind(1)  # [T, 1] each
    columns = {
        **{name: turn[..., axis] - torch.eye(2, 3)[:, axis] for axis, name in enumerate(HEAD)},
        "body_x": (scale - 1) * torch.tensor([1.0, 0.0]),
        "body_y": (scale - 1) * torch.tensor([0.0, 1.0]),
        "open_y": down * opened,
        "close_y": down * closed,
        "smile_x": side * smile,
        "smile_y": down * smile,
        "brows_y": down * brows,
        "blink_y": down * blink,
    }
    in_picture = {name: column @ fields.axes.T for name, column in columns.items()}
    in_picture[BODY[2]] = factors.pose[:, 3:5]
    head_and_face = torch.stack([in_picture[name] for name in CHANNELS], dim=-1)
    if not fields.hinges:
        return torch.cat([head_and_face, factors.drags.transpose(1, 2)], dim=-1)
    bent, turned = turns_of(fields.hinges, factors.bends)
    of_hinges = bent.transpose(1, 2).flatten(2)  # [T, 2, 2 hinges], the fields of a hinge side by side
    return torch.cat([turned[:, 0] @ head_and_face, of_hinges, factors.drags.transpose(1, 2)], dim=-1)


def depth_sums(fields: HeadFields, factors: Factors) -> torch.Tensor:
    """`[T, C]`: what is at depth d in the still is at `d + depth_sums[t] @ channels` in frame t, in sides."""
    away = _rotation(factors.pose[:, :3])[:, 2] - torch.tensor([0.0, 0.0, 1.0])
    rest = len(fields.channels) - len(HEAD)
    return torch.cat([away, torch.zeros(len(away), rest)], dim=1)


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices `[T, 3, 3]` of pitch, yaw and roll `[T, 3]`, in radians."""
    generators = torch.tensor(
        [
            [[0.0, 0, 0], [0, 0, -1], [0, 1, 0]],
            [[0.0, 0, 1], [0, 0, 0], [-1, 0, 0]],
            [[0.0, -1, 0], [1, 0, 0], [0, 0, 0]],
        ]
    )
    return torch.matrix_exp(torch.einsum("ta,aij->tij", angles, generators))
