"""A head that turns, for tests: an ellipsoid with a drawn face, rendered, so that its motion is known exactly.

The camera is far away, so the head's surface at pixel (x, y) is at a depth that its ellipsoid gives, and a turn about
its own middle brings it to a place that is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from motion_predictor.data.samples import LEAST_CHANGE, MAX_HANDLES, MotionSample
from motion_predictor.evaluation.maps import predicted_wholes
from motion_predictor.evaluation.predictor import Predictor
from motion_predictor.evaluation.regions import distance_to_handles, moving_region, pixel_grid

SIDE = 128  # pixels
MIDDLE = np.array([64.0, 62.0])
NOSE = (64, 66)
HALF_AXES = np.array([27.0, 38.0, 32.0])  # pixels to the right, down, and towards the camera
SKIN, HAIR, LIPS, IRIS = (np.array(colour) for colour in ((0.8, 0.6, 0.5), (0.22, 0.15, 0.1), (0.7, 0.3, 0.3), 0.15))
RING = (8.0, 24.0)  # pixels from the handle


@dataclass(frozen=True)
class HeadTurn:
    """A rendered head, and a turn of it: to the right of the picture by `yaw`, down by `pitch`, in degrees."""

    yaw: float = 0.0
    pitch: float = 0.0

    def sample(self) -> MotionSample:
        """As a batch of one, with the tip of the nose as its single handle, and a mask of what moves."""
        motion = torch.from_numpy(self.flow()).permute(2, 0, 1)[None].float()
        padded = torch.zeros(1, MAX_HANDLES, 2)
        handles, steps = padded.clone(), padded.clone()
        handles[0, 0] = torch.tensor(NOSE)
        steps[0, 0] = motion[0, :, NOSE[1], NOSE[0]]
        length = torch.nan_to_num(motion.norm(dim=1, keepdim=True))
        widened = torch.nn.functional.max_pool2d((length > LEAST_CHANGE * length.amax()).float(), 17, 1, 8)
        return MotionSample(
            image=torch.from_numpy(rendered_head()).permute(2, 0, 1)[None].float(),
            handles=handles,
            targets=handles + steps,
            valid=(torch.arange(MAX_HANDLES) < 1)[None],
            steps=steps / 10,
            label=motion / 10,
            frames=torch.tensor([25]),
            total=motion,
            mask=widened,
        )

    def flow(self) -> np.ndarray:
        """`[128, 128, 2]`: where each pixel goes; 0 beside the head, NaN where the head turns out of sight."""
        places, on_head = _surface()
        turned = places @ self._matrix().T
        # Out of sight is what looks away from the camera: the gradient of the turned ellipsoid's equation says so.
        away = ((places / HALF_AXES**2) @ self._matrix().T)[..., 2] < 0
        moved = np.where(on_head[..., None], (turned - places)[..., :2], 0.0)
        return np.where((on_head & away)[..., None], np.nan, moved)

    def _matrix(self) -> np.ndarray:
        yaw, pitch = math.radians(self.yaw), math.radians(self.pitch)
        about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        about_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
        return about_y @ about_x


def shares_that_are_moved(predictor: Predictor, turn: HeadTurn) -> list[float]:
    """How much of the head's true motion, 8 to 24 px from the nose, is predicted: its part in the right direction.

    By rollout, and where the predictor has it in one shot too. 1 is the truth, 0 no motion or motion aside, below
    that motion backwards.
    """
    batch = turn.sample()
    wholes, _ = predicted_wholes({"it": predictor}, batch)
    distance = distance_to_handles(batch.handles, batch.valid, SIDE, SIDE)
    ring = (moving_region(batch.total) & (distance >= RING[0]) & (distance < RING[1]))[0]
    true = batch.total[0][:, ring]
    return [float((true * whole[0][:, ring]).sum() / true.square().sum()) for whole in wholes.values()]


def rendered_head() -> np.ndarray:
    """`[128, 128, 3]` in [0, 1]: the head, looking into the camera, on shoulders before a wall."""
    picture = _surroundings()
    places, on_head = _surface()
    head = _face(places / HALF_AXES)
    light = 0.65 + 0.35 * (places / HALF_AXES**2 @ np.array([-0.4, -0.5, 0.77])) * HALF_AXES.min()
    return np.where(on_head[..., None], np.clip(head * light[..., None], 0, 1), picture)


def _surface() -> tuple[np.ndarray, np.ndarray]:
    """The head's surface from its middle, `[128, 128, 3]` in pixels, and which pixels show it."""
    offset = pixel_grid(SIDE, SIDE, "cpu").double().numpy() - MIDDLE
    inside = 1 - ((offset / HALF_AXES[:2]) ** 2).sum(axis=-1)
    depth = HALF_AXES[2] * np.sqrt(np.clip(inside, 0, None))
    return np.concatenate([offset, depth[..., None]], axis=-1), inside > 0


def _face(at: np.ndarray) -> np.ndarray:
    """The colour of the head's surface at places `[..., 3]` of a unit sphere."""
    x, y = at[..., 0], at[..., 1]
    grain = 0.04 * np.sin(9 * x + 3 * y) * np.sin(7 * y - 2 * x) + 0.03 * np.sin(23 * x) * np.sin(19 * y)
    colour = SKIN + grain[..., None]
    strands = 0.05 * np.sin(30 * x + 8 * y)[..., None]
    hairline = -0.5 + 0.5 * x**2 * np.sign(x**2 - 0.3)
    colour = np.where((y < hairline)[..., None] | (np.abs(x) > 0.9)[..., None], HAIR + strands, colour)

    def painted(colour: np.ndarray, paint: np.ndarray | float, centre: tuple[float, float], size: tuple[float, float]):
        inside = ((x - centre[0]) / size[0]) ** 2 + ((y - centre[1]) / size[1]) ** 2 < 1
        return np.where(inside[..., None], paint, colour)

    for side in (-1, 1):
        colour = painted(colour, HAIR, (0.36 * side, -0.3), (0.2, 0.035))
        colour = painted(colour, 0.92, (0.36 * side, -0.16), (0.16, 0.06))
        colour = painted(colour, IRIS, (0.36 * side, -0.16), (0.065, 0.06))
        colour = painted(colour, SKIN * 0.6, (0.09 * side, 0.2), (0.05, 0.025))
    colour = painted(colour, SKIN * 1.12, (0.0, 0.08), (0.06, 0.1))
    return painted(colour, LIPS, (0.0, 0.45), (0.28, 0.07))


def _surroundings() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    wall = np.stack([0.5 + 0.1 * np.sin(x / 17), 0.55 + 0.08 * np.sin(y / 13), 0.6 + 0.1 * np.sin((x + y) / 23)], -1)
    neck = (np.abs(x - MIDDLE[0]) < 14) & (y > 80)
    body = ((x - MIDDLE[0]) / 52) ** 2 + ((y - 132) / 28) ** 2 < 1
    picture = np.where(neck[..., None], SKIN * 0.75, wall)
    return np.where(body[..., None], np.array([0.25, 0.3, 0.5]) + 0.05 * np.sin(x / 3)[..., None], picture)
