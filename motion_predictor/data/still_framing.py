"""How a still is framed before it is set in motion: as it is, or anew for each motion, nearer or from further away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, grid_sample

from .head_fields import CHIN, FOREHEAD, HeadFields
from .hinges import EARS, SHOULDERS, draw_hinges, hinges_of_body
from .portrait_settings import PortraitSettings
from .portraits import Marks, Pictures
from .tilted_window import surrounded

LARGEST_FACE = 0.75  # height of a face that is framed anew, of the side
LARGEST_FACE_OF_BODY = 0.45  # where there is a body to be shown
LARGEST_TILT = 0.45  # radians
LEAST_CUT = 0.6  # of a picture without marks that is framed anew, of its shorter side
BELOW = 0.1  # of the side: at most so much of the frame is below the still's lower border
BESIDE = 0.15  # of the side: and as much beside it
OVERSAMPLING = 2


@dataclass(frozen=True)
class Framing:
    """Where a square still lies in a square frame: its middle, its side and its tilt.

    Attributes:
        middle (`tuple[float, float]`): where the still's middle is in the frame, in sides of the frame.
        scale (`float`): the still's side, in sides of the frame.
        tilt (`float`): by which the still is turned, in radians.
    """

    middle: tuple[float, float]
    scale: float
    tilt: float

    @staticmethod
    def draw(
        marks: np.ndarray, face: float, random: np.random.Generator, smallest: float, largest: float = LARGEST_FACE
    ) -> Framing:
        """A framing in which a face is anywhere, and of any size.

        Args:
            marks (`np.ndarray` of shape `(points, 2)`): of the face, in fractions of the still's side.
            face (`float`): the height of the face, in fractions of the still's side.
            random (`np.random.Generator`): the only source of chance.
            smallest (`float`): the least height of a face in the frame.
            largest (`float`, *optional*, defaults to 0.75): the greatest.
        """
        height = smallest * (max(largest, smallest) / smallest) ** random.random()
        scale = height / face
        tilt = float(np.clip(random.normal(0, LARGEST_TILT / 3), -LARGEST_TILT, LARGEST_TILT))
        centre = scale * _turn(tilt) @ (marks.mean(axis=0) - 0.5)  # of the face, from the still's middle
        low, high = np.full(2, 0.45 * height), np.full(2, 1 - 0.45 * height)
        rim = np.array([max((1 - scale) / 2, 0) + BESIDE, scale / 2])
        low = np.minimum(np.maximum(low, [0.5 - rim[0] + centre[0], 1 - BELOW - rim[1] + centre[1]]), high)
        high = np.maximum(np.minimum(high, [0.5 + rim[0] + centre[0] if scale < 1 else 1, 1]), low)
        x, y = (random.uniform(low, high) - centre).tolist()
        return Framing((x, y), scale, tilt)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points of the still in the frame.

        Args:
            points (`np.ndarray` of shape `(points, 2 or more)`): x and y in fractions of the still's side; what
                follows is a depth in the same unit, and anything else.

        Returns:
            `np.ndarray`: the same in the frame.
        """
        placed = points.astype(np.float32)
        placed[:, :2] = self.scale * (points[:, :2] - 0.5) @ _turn(self.tilt).T + np.array(self.middle)
        placed[:, 2:3] *= self.scale
        return placed

    def show(self, still: Image.Image, size: int) -> np.ndarray:
        """The frame `[size, size, 3]` uint8; around the still there is its border, blurred.

        Args:
            still (`Image.Image`): square, RGB.
            size (`int`): side of the frame, in pixels.
        """
        along = (torch.arange(OVERSAMPLING * size) + 0.5) / (OVERSAMPLING * size)
        from_middle = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1) - torch.tensor(self.middle)
        in_still = from_middle @ torch.from_numpy(_turn(self.tilt)).float() / self.scale  # in sides, from its middle
        side = max(round(OVERSAMPLING * size * self.scale), 8)
        resized = np.array(still.resize((side, side), Image.Resampling.LANCZOS))
        beyond = float(in_still.abs().max()) - 0.5
        margin = min(max(math.ceil(beyond * side), 0), side)  # no more than is seen
        canvas = surrounded(torch.from_numpy(resized).permute(2, 0, 1)[None].float(), margin)
        grid = in_still * 2 / (1 + 2 * margin / side)
        seen = grid_sample(canvas, grid[None].float(), mode="bilinear", padding_mode="border", align_corners=False)
        return np.asarray(avg_pool2d(seen, OVERSAMPLING)[0].permute(1, 2, 0).round().clamp(0, 255).byte())


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def largest_square(image: Image.Image, shift: float) -> Image.Image:
    """The largest square of a picture, from its middle or, with a `shift` from -1 to 1, nearer to one of its ends."""
    side = min(image.size)
    left, top = (round((length - side) * (1 + shift) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def framed_stills(
    pictures: Pictures, file: str, marks: Marks, settings: PortraitSettings, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, HeadFields]]:
    """A picture as each of its motions shows it, and where its content can move there; without end.

    Args:
        pictures (`Pictures`): that it is one of.
        file (`str`): its name.
        marks (`Marks`): what is known of it. A picture with landmarks or joints must be square.
        settings (`PortraitSettings`): of the dataset.
        random (`np.random.Generator`): the only source of chance.

    Raises:
        ValueError: if the picture or its marks cannot be used.
    """
    if marks.landmarks is None and marks.pose is None:
        still = pictures.open(file)
        while True:
            yield _cut_out(still, settings, random), HeadFields.without_face().with_hinges(draw_hinges(random))
    if settings.smallest_face is None:
        yield from repeat((pictures.read(file, settings.size), _fields(marks)))
        return
    still = pictures.open_square(file)
    while True:
        largest = LARGEST_FACE if marks.pose is None else LARGEST_FACE_OF_BODY
        framing = Framing.draw(*_face(marks), random, settings.smallest_face, largest)
        known = (marks.landmarks, marks.pose)
        placed = Marks(*(points if points is None else framing.place(points) for points in known))
        yield framing.show(still, settings.size), _fields(placed)


def _cut_out(still: Image.Image, settings: PortraitSettings, random: np.random.Generator) -> np.ndarray:
    """A square of a picture of which nothing is known: the largest, or one from within it."""
    square = largest_square(still, shift=random.uniform(-1, 1))
    if settings.smallest_face is not None:
        side = round(square.width * random.uniform(LEAST_CUT, 1))
        left, top = random.integers(0, square.width - side + 1, 2).tolist()
        square = square.crop((left, top, left + side, top + side))
    return np.array(square.resize((settings.size, settings.size), Image.Resampling.LANCZOS))


def _fields(marks: Marks) -> HeadFields:
    has_face = marks.landmarks is not None
    fields = HeadFields.without_face() if marks.landmarks is None else HeadFields.from_landmarks(marks.landmarks)
    return fields if marks.pose is None else fields.with_hinges(hinges_of_body(marks.pose, with_head=not has_face))


def _face(marks: Marks) -> tuple[np.ndarray, float]:
    """Points of the face, and its height; of joints alone, those of the head and what a face would have."""
    if marks.landmarks is not None:
        return marks.landmarks[:, :2], float(np.linalg.norm(marks.landmarks[CHIN, :2] - marks.landmarks[FOREHEAD, :2]))
    if marks.pose is None:
        raise ValueError("`marks` must be those of a face or of a body, got none.")
    ears = marks.pose[list(EARS), :2]
    return ears, 0.5 * float(np.linalg.norm(marks.pose[SHOULDERS[0], :2] - marks.pose[SHOULDERS[1], :2]))
