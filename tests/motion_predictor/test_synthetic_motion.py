"""The synthetic motion of portraits: what its fields and samples promise to the training script."""

import sys
from pathlib import Path

import pytest
import torch

from motion_predictor.conditioning import sample_flow


@pytest.fixture
def synthetic_motion(monkeypatch):
    examples = Path(__file__).parents[2] / "examples" / "portraits_128"
    monkeypatch.syspath_prepend(str(examples))
    module = pytest.importorskip("synthetic_motion", reason="needs tqdm and Pillow, as the examples do")
    yield module
    for name in ("synthetic_motion", "portraits"):
        sys.modules.pop(name, None)


@pytest.fixture
def faces(synthetic_motion):
    """Two noise pictures with an egg for a face: 478 landmarks on an ellipsoid, the named vertices in their places."""
    generator = torch.Generator().manual_seed(0)
    angle, radius = torch.rand(2, 478, generator=generator) * torch.tensor([[6.2832], [1.0]])
    egg = torch.stack([angle.cos() * radius, angle.sin() * radius, -(1 - radius.square()).sqrt()], dim=1)
    named = {
        synthetic_motion.FOREHEAD: (0, -1, 0),
        synthetic_motion.CHIN: (0, 1, 0),
        synthetic_motion.LEFT_EDGE: (-1, 0, 0),
        synthetic_motion.RIGHT_EDGE: (1, 0, 0),
        synthetic_motion.LOWER_LIP: (0, 0.5, -0.8),
        synthetic_motion.LEFT_CORNER: (-0.35, 0.45, -0.8),
        synthetic_motion.RIGHT_CORNER: (0.35, 0.45, -0.8),
        synthetic_motion.LEFT_BROW: (-0.4, -0.4, -0.8),
        synthetic_motion.RIGHT_BROW: (0.4, -0.4, -0.8),
    }
    for index, place in named.items():
        egg[index] = torch.tensor(place)
    landmarks = egg * torch.tensor([0.23, 0.28, 0.23]) + torch.tensor([0.5, 0.55, 0.0])
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return synthetic_motion.Faces(pictures, landmarks.repeat(2, 1, 1), torch.ones(2))


def test_a_head_that_turns_moves_its_nose_and_not_the_corners_of_the_picture(synthetic_motion, faces):
    motion = synthetic_motion.RandomMotion(faces.landmarks, torch.Generator().manual_seed(0))
    motion.with_head, motion.linear = torch.ones(2, 1, 1), torch.zeros_like(motion.linear)
    yaw = 0.3
    motion.pose = torch.tensor([0, yaw, 0, 0, 0, 0]).repeat(2, 1)
    field = motion.displacement(1.0)
    middle = field[:, 0, 17, 16]  # the tip of the egg, 0.23 in front of its axis
    torch.testing.assert_close(middle, torch.full((2,), -0.23 * torch.tensor(yaw).sin().item()), atol=0.02, rtol=0)
    assert field[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].abs().max() < 1e-6


def test_a_motion_that_is_not_begun_displaces_nothing(synthetic_motion, faces):
    motion = synthetic_motion.RandomMotion(faces.landmarks, torch.Generator().manual_seed(1))
    assert motion.displacement(0.0).abs().max() < 1e-6
    assert motion.displacement(1.0).abs().max() > 1e-3


def test_rotations_keep_lengths_and_turn_the_way_that_their_names_say(synthetic_motion):
    rotation = synthetic_motion._rotation(torch.tensor([[0.0, 0.0, torch.pi / 2]]))[0]
    torch.testing.assert_close(rotation @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    mixed = synthetic_motion._rotation(torch.tensor([[0.2, -0.4, 0.1]]))[0]
    torch.testing.assert_close(mixed @ mixed.T, torch.eye(3))


@pytest.mark.parametrize("augment", [False, True])
def test_the_flow_at_handles_is_about_a_tenth_of_the_way_to_their_targets(synthetic_motion, faces, augment):
    batch = synthetic_motion.draw_motion_batch(faces, 64, torch.Generator().manual_seed(0), augment=augment)
    way = (batch.targets - batch.handles)[batch.valid]
    flow = sample_flow(batch.flow, batch.handles)[batch.valid]
    long = way.norm(dim=-1) > 1
    assert long.sum() > 50
    share = (flow * way).sum(-1)[long] / way[long].square().sum(-1)
    assert share.median().item() == pytest.approx(0.1, abs=0.01)
    assert torch.cosine_similarity(flow[long], way[long]).min() > 0.8


def test_handles_are_one_to_seven_and_sit_where_the_motion_is(synthetic_motion):
    displacement = torch.zeros(200, 2, 16, 16)
    displacement[:, 0, 4:8, 8:12] = 3.0
    handles, valid = synthetic_motion.draw_handles(displacement, torch.Generator().manual_seed(0))
    assert set(valid.sum(dim=1).tolist()) == set(range(1, 8))
    inside = (handles - torch.tensor([9.5, 5.5])).abs().amax(dim=-1) <= 2
    assert 0.85 < inside.float().mean() < 0.95  # one in ten is drawn anywhere


def test_the_same_generator_draws_the_same_batch(synthetic_motion, faces):
    first, second = (synthetic_motion.draw_motion_batch(faces, 4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(value, getattr(second, name)) for name, value in vars(first).items())
