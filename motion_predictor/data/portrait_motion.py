"""Portraits in motion: still portraits whose heads turn and whose faces change expression, with their exact flow.

The still portrait is the canonical picture. Its point X is at `x_t = X + D_t(X)` in frame t, where D_t is a sum of
smooth fields (see `head_fields.py`) with factors that follow natural curves in time (see `natural_timing.py`): a head
with the depth of its landmarks turns about the neck, shoulders and background stay, the jaw opens, lids come down.
Amplitudes are limited so that no D_t folds the picture. Frame t is the portrait seen through the inverse of that map,
and the flow between any two frames is exact: no optical flow was estimated.

An opening mouth shows what a shut one hides. Between the lips a dark inside is painted, and its flow is that of the
seam that is stretched between them: it goes over from the upper lip's to the lower lip's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample

from .head_fields import BODY, CHANNELS, HEAD, MARGIN, NODES, HeadFields, read_fields
from .motion_record import HORIZON_STRIDE, MotionRecord
from .natural_timing import blink_curve, expression_curve, pose_curve, speech_curve

FPS = 25.0
LEAST_DETERMINANT = 0.2  # of the map from the still to a frame; a motion that comes below is made smaller
POSE = ("pitch", "yaw", "roll", "shift_x", "shift_y", "scale")
LARGEST_POSE = np.array([0.30, 0.42, 0.26, 0.08, 0.06, 0.08])  # radians, fractions of the side, logarithm
EXPRESSION = ("open", "close", "smile", "brows", "blink")
LARGEST_EXPRESSION = np.array([0.16, 0.75, 0.1, 0.07, 0.74])  # face heights; of the mouth's and the eyes' opening
NEWTON_STEPS = 40
TOLERANCE = 2e-6  # of the side: about 1/4000 px at 128 px


@dataclass(frozen=True)
class Factors:
    """The factors of the fields over time.

    Attributes:
        pose: `[T, 6]` of `POSE`: radians, fractions of the side, and the logarithm of the scale.
        expression: `[T, 5]` of `EXPRESSION`: face heights, and shares of the opening of mouth and eyes.
    """

    pose: torch.Tensor
    expression: torch.Tensor


class PortraitMotion:
    """A motion of one portrait over some frames, drawn at random.

    Frames are numbered from 0; `None` in place of a number is the still portrait. Points are `(x, y)` in pixels of a
    picture of the portrait's size, integers at pixel centres.

    Args:
        picture: `[S, S, 3]` uint8 RGB, the still portrait.
        fields: of its face.
        random: the only source of chance.
        frames: how many.
    """

    def __init__(self, picture: np.ndarray, fields: HeadFields, random: np.random.Generator, frames: int = 96):
        self._set(picture, fields, _limited(fields, *_draw_curves(fields, random, frames)))

    @classmethod
    def from_factors(cls, picture: np.ndarray, fields: HeadFields, factors: Factors) -> PortraitMotion:
        """The motion with the given factors, which is not kept from folding."""
        motion = cls.__new__(cls)
        motion._set(picture, fields, factors)
        return motion

    def _set(self, picture: np.ndarray, fields: HeadFields, factors: Factors) -> None:
        if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
            raise ValueError(f"`picture` has shape {picture.shape}: [S, S, 3] is accepted.")
        self.picture = np.array(picture)  # one that torch may share
        self.side = len(picture)
        self.fields = fields
        self.factors = factors
        self.frames = len(factors.pose)
        self.sums = _sums(fields, factors)  # [T, 2, C]
        self._last: tuple[int | None, torch.Tensor] | None = None

    def frame(self, number: int | None) -> np.ndarray:
        """`[S, S, 3]` uint8, the portrait at that moment."""
        if number is None:
            return self.picture
        origin = self._origin(number)
        image = torch.from_numpy(self.picture).permute(2, 0, 1)[None].float()
        seen = grid_sample(
            image,
            (origin * 2 - 1).view(1, self.side, self.side, 2),
            mode="bicubic",
            padding_mode="reflection",
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
        moved = self._moved(here, self._inverse(here, start), frames) * self.side
        return moved.view(*points.shape[:-1], len(frames), 2).numpy()

    def _moved(self, here: torch.Tensor, origin: torch.Tensor, frames: Sequence[int | None]) -> torch.Tensor:
        """`[P, F, 2]`, the way to each frame from `here` of what is at `origin` in the still, in sides."""
        channels = read_fields(self.fields.channels, origin)
        sums = torch.stack([self._sums_at(frame) for frame in frames])
        return origin[:, None] + torch.einsum("fac,pc->pfa", sums, channels) - here[:, None]

    def _origin(self, number: int | None) -> torch.Tensor:
        """The canonical points `[S * S, 2]` of all pixels; those of the frame asked for last are kept."""
        if self._last is None or self._last[0] != number:
            self._last = number, self._inverse(self._pixels(), number)
        return self._last[1]

    def speeds(self) -> np.ndarray:
        """`[T - 1]`, how far the fastest part of the head moves to the next frame, as a fraction of the side."""
        coarse = self.fields.channels[:, ::8, ::8].flatten(1)
        steps = (self.sums[1:] - self.sums[:-1]) @ coarse
        return np.asarray(steps.norm(dim=1).amax(dim=1))

    def flow_and_weight(self, start: int | None, end: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The dense flow `[S, S, 2]`, and the weight `[S, S]` of the head: 1 on it, 0 far from it."""
        flow = self._moved(self._pixels(), self._origin(start), [end])[:, 0] * self.side
        weight = read_fields(self.fields.head, self._origin(start))
        return flow.view(self.side, self.side, 2).numpy(), weight.view(self.side, self.side).numpy()

    def _sums_at(self, number: int | None) -> torch.Tensor:
        return torch.zeros_like(self.sums[0]) if number is None else self.sums[number]

    def _pixels(self) -> torch.Tensor:
        along = (torch.arange(self.side) + 0.5) / self.side
        y, x = torch.meshgrid(along, along, indexing="ij")
        return torch.stack([x, y], dim=-1).view(-1, 2)

    def _inverse(self, here: torch.Tensor, number: int | None) -> torch.Tensor:
        """The canonical points X `[P, 2]` of which `X + D_t(X)` is `here`, in fractions of the side."""
        if number is None:
            return here
        displacement = torch.einsum("ac,chw->ahw", self.sums[number], self.fields.channels)
        return invert(displacement, here)

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


def portrait_record(
    name: str,
    motion: PortraitMotion,
    start: int,
    random: np.random.Generator,
    horizon_frames: int = 6,
    track_frames: int = 55,
    candidates: int = 256,
) -> MotionRecord:
    """What training keeps of a motion from one frame on.

    Args:
        name: of the motion; the key is `"{name}_{start:06d}"`.
        motion: of which frames `start` to `start + track_frames` are needed.
        start: the number of the start frame.
        random: chooses the candidates, with a probability proportional to |f_s| on the head and, less, around it.
        horizon_frames: the motion of all cells is kept for so many frames.
        track_frames: the motion of the candidates is kept for so many frames.
        candidates: at most so many.
    """
    if not 0 <= start < motion.frames - track_frames:
        raise ValueError(
            f"`start` is {start}: 0 to {motion.frames - track_frames - 1} is accepted, as {track_frames} of the "
            f"motion's {motion.frames} frames must follow."
        )
    side = motion.side
    pixels = pixel_centres(side)
    flow, weight = motion.flow_and_weight(start, start + 1)
    points = _draw_candidates(np.linalg.norm(flow, axis=-1) * weight, candidates, random)
    cells = pixels.reshape(side // HORIZON_STRIDE, HORIZON_STRIDE, side // HORIZON_STRIDE, HORIZON_STRIDE, 2)
    horizon = list(range(start + 1, start + 1 + horizon_frames))
    tracks = motion.track(points, start, list(range(start + 1, start + 1 + track_frames)))
    return MotionRecord(
        key=f"{name}_{start:06d}",
        frame=motion.frame(start),
        flow=flow,
        horizon_flows=np.moveaxis(motion.track(cells.mean(axis=(1, 3)), start, horizon), 2, 0),
        points=points,
        tracks=_lost_outside(points, tracks, side),
        background=np.zeros((track_frames, 2), dtype=np.float32),
        info={"source": "portraits", "portrait": name, "start": start, "fps": FPS},
    )


def pixel_centres(side: int) -> np.ndarray:
    """`[side, side, 2]` float32, the points `(x, y)` of all pixels."""
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).astype(np.float32)


def _draw_candidates(weight: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Points `[P, 2]` within different pixels, with a probability proportional to `weight` `[S, S]`."""
    chances = weight.astype(np.float64).ravel()
    number = min(most, int((chances > 0).sum()))
    if number == 0:
        return np.zeros((0, 2), dtype=np.float32)
    chosen = random.choice(chances.size, number, replace=False, p=chances / chances.sum())
    y, x = np.divmod(chosen, weight.shape[1])
    points = np.stack([x, y], axis=-1) + random.uniform(-0.5, 0.5, (number, 2))
    return np.asarray(points.clip(0, len(weight) - 1), dtype=np.float32)


def _lost_outside(points: np.ndarray, tracks: np.ndarray, side: int) -> np.ndarray:
    """Tracks that are NaN from the frame on in which the point is not on the picture's pixels."""
    positions = points[:, None] + tracks
    outside = ((positions < -0.5) | (positions > side - 0.5)).any(axis=-1)
    lost = np.logical_or.accumulate(outside, axis=1)
    return np.where(lost[..., None], np.float32(np.nan), tracks)


def invert(displacement: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Solve `X + D(X) = here` by Newton's method, where a step that does not come closer is halved.

    Args:
        displacement: D, `[2, G, G]` at the nodes of the fields; between them it is bilinear.
        here: `[P, 2]`, in fractions of the side.
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
            break
        left, at, error, step, factor = (values[going] for values in (left, at, error, step, factor))
        trial = at - factor * step
        trial_error, trial_step = _newton_step(field, trial, here[left])
        closer = (trial_error.norm(dim=1) < error.norm(dim=1))[:, None]
        at, error, step = (
            torch.where(closer, new, old) for new, old in ((trial, at), (trial_error, error), (trial_step, step))
        )
        factor = torch.where(closer, (2 * factor).clamp(max=1), factor / 2)
    return origin


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


def determinants(fields: HeadFields, sums: torch.Tensor, stride: int = 2) -> torch.Tensor:
    """`[T, h, w]`, by how much each frame's map enlarges areas; negative where it folds."""
    channels = fields.channels[:, ::stride, ::stride]
    displacement = torch.einsum("tac,chw->tahw", sums, channels) * (NODES / stride)
    by_x = (displacement[..., 1:] - displacement[..., :-1])[:, :, :-1]
    by_y = (displacement[:, :, 1:] - displacement[:, :, :-1])[..., :-1]
    return (1 + by_x[:, 0]) * (1 + by_y[:, 1]) - by_x[:, 1] * by_y[:, 0]


def _draw_curves(fields: HeadFields, random: np.random.Generator, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose `[T, 6]` and expression `[T, 5]` as they are meant, before they are kept from folding."""
    kind = random.random()
    with_pose, with_expression = kind < 0.85, kind > 0.25
    low, high = _pose_limits(fields)
    strength = 10 ** random.uniform(-0.4, 0, len(POSE)) * (random.random(len(POSE)) < 0.8) * with_pose
    slowness = 2 ** random.uniform(0, 1.5)
    curves = np.stack([pose_curve(random, frames, FPS, slowness) for _ in POSE], axis=1)
    pose = (low + (high - low) * (curves + 1) / 2) * strength

    mouth = speech_curve if random.random() < 0.5 else expression_curve
    curves = np.stack(
        [
            mouth(random, frames, FPS),
            expression_curve(random, frames, FPS),
            (1 + 3 * pose_curve(random, frames, FPS, slowness)) / 4,  # lips are spread further than pursed
            (1 + 3 * pose_curve(random, frames, FPS, slowness)) / 4,
            blink_curve(random, frames, FPS),
        ],
        axis=1,
    )
    present = random.random(len(EXPRESSION)) < (0.7, 0.5, 0.6, 0.5, 0.6)
    if present[0]:
        present[1] = False  # a mouth opens or closes
    expression = curves * LARGEST_EXPRESSION * present * with_expression
    expression *= np.append(random.uniform(0.4, 1, len(EXPRESSION) - 1), 1.0)
    return torch.from_numpy(pose).float(), torch.from_numpy(expression).float()


def _pose_limits(fields: HeadFields) -> tuple[np.ndarray, np.ndarray]:
    """How far each part of the pose may go down and up by itself: a head that is turned already turns less."""
    limits = []
    shares = np.linspace(1, 0.1, 10)
    for sign in (-1, 1):
        poses = np.concatenate([np.diag(LARGEST_POSE * sign * share) for share in shares])
        factors = Factors(torch.from_numpy(poses).float(), torch.zeros(len(poses), len(EXPRESSION)))
        smallest = determinants(fields, _sums(fields, factors), stride=4).amin(dim=(1, 2))
        fits = (smallest >= 2.5 * LEAST_DETERMINANT).view(len(shares), len(POSE)).numpy()
        best = np.where(fits.any(axis=0), shares[fits.argmax(axis=0)], 0.05)
        limits.append(LARGEST_POSE * sign * best)
    return limits[0], limits[1]


def _limited(fields: HeadFields, pose: torch.Tensor, expression: torch.Tensor) -> Factors:
    """The motion as it is meant, made smaller until no frame folds the picture."""
    for _ in range(30):
        factors = Factors(pose, expression)
        if _smallest_determinant(fields, _sums(fields, factors)) >= LEAST_DETERMINANT:
            return factors
        pose, expression = pose * 0.9, expression * 0.95
    raise ValueError("`landmarks` fold the picture with the smallest motion: those of a face are accepted.")


def _smallest_determinant(fields: HeadFields, sums: torch.Tensor) -> float:
    """Looked for on every second node of every second frame, and then on all nodes of the frames that come lowest."""
    coarse = determinants(fields, sums[::2], stride=2).amin(dim=(1, 2))
    lowest = coarse.argsort()[:3] * 2
    return min(float(coarse.min()), float(determinants(fields, sums[lowest], stride=1).min()))


def _sums(fields: HeadFields, factors: Factors) -> torch.Tensor:
    """`[T, 2, C]`: the displacement of frame t is `sums[t] @ channels`.

    With the turn R of the head, its position f from the pivot in the face's axes, the scale s, the shift and the
    expression E, it is, in the face's axes, `head (R - 1) f + body ((s - 1) f + shift) + s R E`.
    """
    turn = _rotation(factors.pose[:, :3])[:, :2]  # [T, 2, 3]
    scale = factors.pose[:, 5].exp()[:, None, None]
    still = torch.eye(2, 3)
    shift = factors.pose[:, 3:5, None]
    opened, closed, smile, brows, blink = factors.expression[:, None, :].unbind(-1)  # [T, 1] each
    columns = {
        **{name: (turn - still)[..., axis] for axis, name in enumerate(HEAD)},
        "body_x": (scale - 1)[..., 0] * torch.tensor([1.0, 0.0]),
        "body_y": (scale - 1)[..., 0] * torch.tensor([0.0, 1.0]),
        "open_y": (scale * turn)[..., 1] * opened,
        "close_y": (scale * turn)[..., 1] * closed,
        "smile_x": (scale * turn)[..., 0] * smile,
        "smile_y": (scale * turn)[..., 1] * smile,
        "brows_y": (scale * turn)[..., 1] * brows,
        "blink_y": (scale * turn)[..., 1] * blink,
    }
    in_picture = {name: column @ fields.axes.T for name, column in columns.items()}
    in_picture[BODY[2]] = shift[..., 0]
    return torch.stack([in_picture[name] for name in CHANNELS], dim=-1)


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
