"""A face for tests: landmarks in the order of MediaPipe's face mesh, laid on an ellipsoid."""

from __future__ import annotations

import numpy as np

from motion_predictor.data import head_fields

CENTRE, HEIGHT = np.array([0.5, 0.53]), 0.56  # of the face, in fractions of the picture's side


def make_landmarks(roll: float = 0.0) -> np.ndarray:
    """`[478, 3]` float32: a face that looks into the camera, turned in the picture by `roll` radians."""
    number = np.arange(478)
    radius, angle = np.sqrt((number + 0.5) / 478), number * np.pi * (3 - np.sqrt(5))
    marks = np.stack([0.4 * radius * np.cos(angle), 0.5 * radius * np.sin(angle)], axis=1)  # in face heights
    for vertex, place in _named_places().items():
        marks[vertex] = place
    height = np.sqrt(np.clip(1 - (marks[:, 0] / 0.45) ** 2 - (marks[:, 1] / 0.55) ** 2, 0, None))
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    places = CENTRE + HEIGHT * marks @ turn.T
    return np.column_stack([places, 0.35 - 0.4 * height * HEIGHT]).astype(np.float32)


def make_picture(size: int = 64) -> np.ndarray:
    """`[size, size, 3]` uint8: the head and shoulders of a real person, to whom the landmarks fit roughly."""
    from PIL import Image
    from skimage.data import astronaut

    return np.array(Image.fromarray(astronaut()[14:206, 128:320]).resize((size, size), Image.Resampling.LANCZOS))


def _named_places() -> dict[int, tuple[float, float]]:
    places = {
        head_fields.FOREHEAD: (0.0, -0.5),
        head_fields.CHIN: (0.0, 0.5),
        head_fields.LEFT_EDGE: (-0.42, -0.08),
        head_fields.RIGHT_EDGE: (0.42, -0.08),
        head_fields.LEFT_BROW: (-0.17, -0.22),
        head_fields.RIGHT_BROW: (0.17, -0.22),
        **_arc(head_fields.INNER_UPPER_LIP, -0.13, 0.13, 0.24, 0.0),
        **_arc(head_fields.INNER_LOWER_LIP, -0.13, 0.13, 0.24, 0.01),
    }
    for side, upper, lower in zip((-1, 1), head_fields.UPPER_LIDS, head_fields.LOWER_LIDS, strict=True):
        places |= _arc(upper, side * 0.27, side * 0.1, -0.11, -0.03)
        places |= _arc(lower, side * 0.27, side * 0.1, -0.11, 0.03)
    return {**places, head_fields.LEFT_CORNER: (-0.17, 0.25), head_fields.RIGHT_CORNER: (0.17, 0.25)}


def _arc(vertices: tuple[int, ...], first: float, last: float, y: float, sag: float) -> dict[int, tuple[float, float]]:
    along = np.linspace(-1, 1, len(vertices))
    x = first + (last - first) * (along + 1) / 2
    return dict(zip(vertices, zip(x, y + sag * (1 - along**2), strict=True), strict=True))
