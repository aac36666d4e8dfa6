"""Records of motion that is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from motion_predictor.data.motion_record import HORIZON_STRIDE, MotionRecord


@pytest.fixture
def make_motion_record() -> Callable[..., MotionRecord]:
    """A function that makes records of 16 x 24 pixels in which all moves with one random velocity."""

    def make(key: str, seed: int = 0, frames: int = 20) -> MotionRecord:
        random = np.random.default_rng(seed)
        height, width = 16, 24
        velocity = random.uniform(-0.3, 0.3, 2).astype(np.float32)
        times = np.arange(1, frames + 1, dtype=np.float32)
        cells = (height // HORIZON_STRIDE, width // HORIZON_STRIDE)
        return MotionRecord(
            key=key,
            frame=random.integers(0, 255, (height, width, 3)).astype(np.uint8),
            flow=np.broadcast_to(velocity, (height, width, 2)).copy(),
            horizon_flows=np.broadcast_to(times[:6, None, None, None] * velocity, (6, *cells, 2)).copy(),
            points=random.uniform(0, height - 1, (12, 2)).astype(np.float32),
            tracks=np.broadcast_to(times[:, None] * velocity, (12, frames, 2)).copy(),
            background=np.zeros((frames, 2), dtype=np.float32),
            info={"video": key},
        )

    return make
