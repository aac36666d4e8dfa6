"""Datasets of motion that is known exactly, and predictors whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from motion_predictor.data.motion_record import HORIZON_STRIDE, MotionRecord
from motion_predictor.data.shards import MotionShards, write_shard

FRAMES = 20


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., MotionShards]:
    """A function that writes a dataset in which all of a record moves with one velocity, in pixels per frame."""

    def make(
        velocities: Sequence[tuple[float, float]], *, scale: int = 1, backwards: Sequence[int] = (), name: str = "data"
    ) -> MotionShards:
        records = []
        for index, velocity in enumerate(velocities):
            path = np.arange(1, FRAMES + 1)[:, None] * np.array(velocity) * scale
            if index in backwards:
                path[:3] *= -1  # so short a motion leads away from where it ends
            records.append(uniform_record(f"clip_{index:06d}", path, scale))
        write_shard(tmp_path / name / "val" / "clip.tar", records)
        return MotionShards(tmp_path / name, "val")

    return make


def uniform_record(key: str, path: np.ndarray, scale: int) -> MotionRecord:
    """A record of 48 x 64 pixels, times `scale`, all of whose points are on `path` `[T, 2]` after 1 ... T frames."""
    random = np.random.default_rng(0)
    height, width = 48 * scale, 64 * scale
    path = path.astype(np.float32)
    cells = (height // HORIZON_STRIDE, width // HORIZON_STRIDE)
    return MotionRecord(
        key=key,
        frame=random.integers(0, 255, (height, width, 3)).astype(np.uint8),
        flow=np.broadcast_to(path[0], (height, width, 2)).copy(),
        horizon_flows=np.broadcast_to(path[:3, None, None], (3, *cells, 2)).copy(),
        points=(random.uniform(20, 28, (12, 2)) * scale).astype(np.float32),
        tracks=np.broadcast_to(path, (12, FRAMES, 2)).copy(),
        background=np.zeros((FRAMES, 2), dtype=np.float32),
        end_frames=np.array([15]),
        end_flows=np.broadcast_to(path[14], (1, *cells, 2)).copy(),
    )


@pytest.fixture
def share_of_the_displacement() -> Callable[[float], Callable[..., torch.Tensor]]:
    """A function that makes predictors of a share of the first handle's displacement, for all pixels."""

    def make(share: float) -> Callable[..., torch.Tensor]:
        def predict_flow(
            image: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None
        ) -> torch.Tensor:
            step = share * (targets - handles)[:, 0]
            return step[:, :, None, None].expand(-1, 2, *image.shape[2:])

        return predict_flow

    return make
