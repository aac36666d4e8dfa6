"""A checkpoint brings back all that a step changes, to the bit and in the same layout of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from motion_predictor.training_checkpoint import TrainingState


def make_state(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    ema = EMAModel(network.parameters(), decay=0.9)
    return TrainingState(network, optimizer, ema, torch.amp.GradScaler("cpu", init_scale=2.0**seed))


def take_steps(state: TrainingState, steps: int, seed: int) -> None:
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    for _ in range(steps):
        state.network(pictures).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.step(state.network.parameters())


def test_steps_after_a_checkpoint_go_on_as_if_there_had_been_none(tmp_path: Path):
    through, resumed = make_state(seed=1), make_state(seed=2)
    take_steps(through, 3, seed=0)
    through.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.scaler.get_scale() == 2.0
    assert resumed.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    moment = resumed.optimizer.state[resumed.network[0].weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)
    for state in (through, resumed):
        take_steps(state, 3, seed=5)
    for one, other in zip(through.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(through.ema.shadow_params, resumed.ema.shadow_params, strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path: Path):
    make_state(seed=1).save(tmp_path)
    resumed = make_state(seed=2)
    resumed.load(tmp_path)
    assert all(not state for state in resumed.optimizer.state.values())
    take_steps(resumed, 1, seed=0)


@pytest.mark.parametrize(
    ("name", "value"), [("averaged_steps", "many"), ("averaged_steps", None), ("scaler", None), ("sha256", None)]
)
def test_values_that_are_no_checkpoints_are_named(tmp_path: Path, name: str, value: object):
    make_state(seed=1).save(tmp_path)
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=r"must be .* got .*: remove the folder"):
        make_state(seed=2).load(tmp_path)
