"""A body for tests: joints in the order of MediaPipe's pose, arms hanging, hands in sight."""

from __future__ import annotations

import numpy as np

from motion_predictor.data import hinges

JOINTS = {
    hinges.NOSE: (0.5, 0.2),
    **dict(zip(hinges.EARS, [(0.55, 0.2), (0.45, 0.2)], strict=True)),
    **dict(zip(hinges.SHOULDERS, [(0.65, 0.4), (0.35, 0.4)], strict=True)),
    **dict(zip(hinges.HIPS, [(0.58, 0.9), (0.42, 0.9)], strict=True)),
    **dict(zip(hinges.ARMS[0][1:], [(0.8, 0.55), (0.8, 0.75), (0.8, 0.82)], strict=True)),
    **dict(zip(hinges.ARMS[1][1:], [(0.2, 0.55), (0.2, 0.75), (0.2, 0.82)], strict=True)),
}


def make_pose() -> np.ndarray:
    """`[33, 4]` float32: a person who faces the camera, from the hips up."""
    pose = np.full((33, 4), 0.5, dtype=np.float32)
    for joint, place in JOINTS.items():
        pose[joint, :2] = place
    return pose
