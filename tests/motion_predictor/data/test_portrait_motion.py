"""Portraits in motion against closed forms: rotations, motion there and back, frames that are where the flow says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from motion_predictor.data.head_factors import (
    EXPRESSION,
    POSE,
    Factors,
    depth_sums,
    determinants,
    displacement_sums,
)
from motion_predictor.data.head_fields import NODES, HeadFields, node_positions, read_fields
from motion_predictor.data.portrait_motion import PortraitMotion, invert, pixel_centres
from support.synthetic_face import make_landmarks, make_picture

SIZE = 64


@pytest.fixture(scope="module")
def fields() -> HeadFields:
    return HeadFields.from_landmarks(make_landmarks())


def drawn(fields: HeadFields, seed: int = 0, frames: int = 60, size: int = SIZE) -> PortraitMotion:
    return PortraitMotion.draw(make_picture(size), fields, np.random.default_rng(seed), frames)


def posed(fields: HeadFields, size: int = SIZE, **values: float) -> PortraitMotion:
    """A motion of two frames: the still, and one with the given pose and expression."""
    factors = Factors.zeros(2)
    for name, value in values.items():
        if name in POSE:
            factors.pose[1, POSE.index(name)] = value
        else:
            factors.expression[1, EXPRESSION.index(name)] = value
    return PortraitMotion(make_picture(size), fields, factors)


def every_determinant(motion: PortraitMotion) -> torch.Tensor:
    return determinants(motion.fields.channels, displacement_sums(motion.fields, motion.factors))


def warped(frame: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`frame` as seen at `positions` `[S, S, 2]`, in pixels."""
    import cv2

    x, y = positions.astype(np.float32)[..., 0], positions.astype(np.float32)[..., 1]
    return cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / ((a.astype(float) - b) ** 2).mean())


def test_a_motion_of_nothing_gives_the_still_picture_back(fields: HeadFields):
    motion = posed(fields)
    np.testing.assert_array_equal(motion.frame(0), make_picture(SIZE))
    np.testing.assert_array_equal(motion.frame(None), make_picture(SIZE))
    assert np.abs(motion.flow(0, 1, pixel_centres(SIZE))).max() < 1e-4


@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_a_roll_turns_the_head_about_the_pivot_and_leaves_the_corners(tilt: float):
    fields = HeadFields.from_landmarks(make_landmarks(tilt))
    angle = 0.2
    pivot = fields.pivot[:2].numpy() * SIZE - 0.5
    landmarks = make_landmarks(tilt)[:, :2] * SIZE - 0.5
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flow = posed(fields, roll=angle).flow(None, 1, landmarks)
    np.testing.assert_allclose(landmarks + flow, pivot + (landmarks - pivot) @ turn.T, atol=0.01)
    lower_corners = np.array([[0.0, SIZE - 1], [SIZE - 1, SIZE - 1]])
    assert np.abs(posed(fields, roll=angle).flow(None, 1, lower_corners)).max() < 0.5


def test_a_yaw_moves_the_nose_sideways_and_more_than_the_edges_of_the_face(fields: HeadFields):
    middle, edges = np.array([[0.5, 0.53]]) * SIZE, make_landmarks()[[234, 454], :2] * SIZE
    motion = posed(fields, yaw=0.2)
    nose, side = motion.flow(None, 1, middle), motion.flow(None, 1, edges)
    assert abs(nose[0, 0]) > 1.5 * np.abs(side[:, 0]).max()
    assert abs(nose[0, 1]) < 0.1


def test_shift_and_scale_are_exact_on_the_face(fields: HeadFields):
    landmarks = make_landmarks()[:, :2] * SIZE - 0.5
    pivot = fields.pivot[:2].numpy() * SIZE - 0.5
    flow = posed(fields, shift_x=0.03, shift_y=-0.02, scale=math.log(1.05)).flow(None, 1, landmarks)
    np.testing.assert_allclose(flow, 0.05 * (landmarks - pivot) + SIZE * np.array([0.03, -0.02]), atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_there_and_back_is_no_displacement_and_displacements_add_up(fields: HeadFields, seed: int):
    motion = drawn(fields, seed)
    points = pixel_centres(SIZE)
    half = motion.flow(5, 30, points)
    np.testing.assert_allclose(half + motion.flow(30, 5, points + half), np.zeros_like(half), atol=0.01)
    whole = motion.flow(5, 55, points)
    np.testing.assert_allclose(half + motion.flow(30, 55, points + half), whole, atol=0.01)
    np.testing.assert_array_equal(motion.track(points, 5, [30, 55])[..., 1, :], whole)


@pytest.mark.parametrize("seed", range(8))
def test_no_frame_folds_the_picture(fields: HeadFields, seed: int):
    assert every_determinant(drawn(fields, seed)).min() > 0.19  # 0.2, but for nodes that were not looked at


@pytest.mark.parametrize("seed", range(6))
def test_frames_are_where_the_flow_says(fields: HeadFields, seed: int):
    """But inside an opening mouth, and where content comes in over the border."""
    motion = drawn(fields, seed, size=128)
    motion.factors.expression[:, EXPRESSION.index("open")] = 0
    motion = PortraitMotion(make_picture(128), motion.fields, motion.factors)
    points = pixel_centres(128)
    middle = motion.track(points[32:96:8, 32:96:8], 0, range(60))
    end = int(np.linalg.norm(middle, axis=-1).max(axis=(0, 1)).argmax())
    back = motion.flow(end, 0, points)
    predicted = warped(motion.frame(0), points + back)
    inner = (slice(16, -16), slice(16, -16))
    assert decibels(predicted[inner], motion.frame(end)[inner]) > 32
    assert (
        decibels(predicted[inner], motion.frame(end)[inner])
        > decibels(motion.frame(0)[inner], motion.frame(end)[inner]) + 3
    )


def test_an_opening_mouth_is_dark_inside_and_the_lips_part(fields: HeadFields):
    motion = posed(fields, size=128, open=0.14)
    upper, lower = make_landmarks()[[13, 14], :2] * 128 - 0.5
    lips = np.stack([upper - np.array([0, 1]), lower + np.array([0, 1])])
    moved = lips + motion.flow(None, 1, lips)
    assert moved[1, 1] - moved[0, 1] > 7  # 0.14 face heights are 10 px
    middle = moved.mean(axis=0).round().astype(int)
    gap, before = motion.frame(1)[middle[1], middle[0]], make_picture(128)[middle[1], middle[0]]
    assert gap.mean() < 0.5 * before.mean()


def test_closing_eyes_bring_the_lids_together_and_leave_the_rest(fields: HeadFields):
    motion = posed(fields, blink=0.75)
    upper, lower, chin = make_landmarks()[[159, 145, 152], :2] * SIZE - 0.5
    moved = motion.flow(None, 1, np.stack([upper, lower, chin]))
    before, after = lower[1] - upper[1], lower[1] + moved[1, 1] - upper[1] - moved[0, 1]
    assert 0.15 * before < after < 0.45 * before
    assert np.abs(moved[2]).max() < 1e-3


def test_the_same_seed_gives_the_same_motion_at_any_size(fields: HeadFields):
    small, large = drawn(fields, 3, size=64), drawn(fields, 3, size=128)
    points = np.array([[10.0, 20.0], [31.5, 40.0]])
    np.testing.assert_allclose(small.flow(2, 50, points) * 2, large.flow(2, 50, (points + 0.5) * 2 - 0.5), atol=0.01)
    assert not np.allclose(drawn(fields, 4).flow(2, 50, points), small.flow(2, 50, points), atol=0.01)


def test_a_picture_that_is_not_square_is_refused(fields: HeadFields):
    with pytest.raises(ValueError, match=r"`picture` must be of shape .* \(64, 60, 3\)"):
        PortraitMotion(make_picture()[:, :60], fields, Factors.zeros(2))


def test_landmarks_of_another_mesh_are_refused():
    with pytest.raises(ValueError, match=r"`landmarks` must be .* got .* \(468, 3\)"):
        HeadFields.from_landmarks(make_landmarks()[:468])


def test_the_inverse_is_exact_where_lips_part(fields: HeadFields):
    motion = posed(fields, open=0.16, smile=0.13, yaw=0.1)
    displacement = torch.einsum("ac,chw->ahw", displacement_sums(fields, motion.factors)[1], fields.channels)
    here = torch.from_numpy((pixel_centres(SIZE) + 0.5) / SIZE).view(-1, 2)
    origin = invert(displacement, here)
    missed = (origin + read_fields(displacement, origin) - here).norm(dim=1) * SIZE
    assert missed.max() < 0.001


def test_a_patch_is_dragged_by_a_bump_and_the_rest_stays(fields: HeadFields):
    patched = fields.with_patches(np.array([[0.2, 0.8]]), np.array([0.06]))
    factors = Factors.zeros(2, patches=1)
    factors.drags[1, 0] = torch.tensor([0.03, -0.02])
    motion = PortraitMotion(make_picture(SIZE), patched, factors)
    points = np.array([[0.2, 0.8], [0.26, 0.8], [0.2, 0.2]]) * SIZE - 0.5
    bump = np.array([1, math.exp(-0.5), 0])
    np.testing.assert_allclose(motion.flow(None, 1, points), SIZE * bump[:, None] * np.array([0.03, -0.02]), atol=0.01)


def test_faces_too_small_to_have_parts_are_refused():
    landmarks = 0.5 + 0.02 * (make_landmarks() - 0.5)
    with pytest.raises(ValueError, match=r"`landmarks` must have a face .* got 0\.011"):
        HeadFields.from_landmarks(landmarks)


def test_a_motion_that_folds_the_picture_cannot_be_shown(fields: HeadFields):
    with pytest.raises(ValueError, match="folds the picture"):
        posed(fields, yaw=1.4).frame(1)


def test_the_same_landmarks_give_the_same_bits_wherever_they_lie_in_memory():
    landmarks = make_landmarks(0.1)
    memory = np.zeros(landmarks.size + 8, dtype=np.float32)
    expected, others = HeadFields.from_landmarks(landmarks), []
    for offset in range(8):
        others.append(torch.zeros(100 * offset + 1))  # moves what is allocated next
        copy = memory[offset : offset + landmarks.size].reshape(landmarks.shape)
        copy[:] = landmarks
        fields = HeadFields.from_landmarks(copy)
        assert torch.equal(fields.channels, expected.channels)
        assert torch.equal(fields.seam, expected.seam)


def turned(fields: HeadFields, size: int = 128, **values: float) -> PortraitMotion:
    """As `posed`, of a head that hides parts of itself."""
    motion = posed(fields, size, **values)
    return PortraitMotion(motion.picture, fields, motion.factors, hides=True)


def test_a_head_that_turns_far_goes_where_the_rotation_says(fields: HeadFields):
    angle = 0.65
    landmarks = make_landmarks()[:468:20, :2].astype(np.float64)
    from_pivot = landmarks - fields.pivot[:2].numpy()
    depth = read_fields(fields.depth[None], torch.from_numpy(landmarks).float())[:, 0].numpy() - float(fields.pivot[2])
    expected = (math.cos(angle) - 1) * from_pivot[:, 0] + math.sin(angle) * depth
    flow = turned(fields, yaw=angle).flow(None, 1, landmarks * 128 - 0.5)
    np.testing.assert_allclose(flow[:, 0], expected * 128, atol=0.1)
    np.testing.assert_allclose(flow[:, 1], 0, atol=0.01)


@pytest.mark.parametrize("pose", [{"yaw": 1.3}, {"yaw": -1.3, "roll": 0.1}, {"pitch": 0.7, "yaw": 1.2}])
def test_what_is_seen_of_a_turned_head_came_from_where_its_flow_says(fields: HeadFields, pose: dict[str, float]):
    """Back to the still, where nothing is hidden, and there again."""
    motion = turned(fields, **pose)
    assert every_determinant(motion).min() < 0
    points = pixel_centres(128)
    back = motion.flow(1, None, points)
    missed = np.linalg.norm(back + motion.flow(None, 1, points + back), axis=-1)
    assert np.quantile(missed, 0.995) < 0.01
    assert missed.max() < 0.5  # at the very edge of the head


def test_nothing_nearer_to_the_camera_lies_on_what_is_seen(fields: HeadFields):
    motion = turned(fields, yaw=1.3)
    nodes = node_positions()
    moved = nodes + torch.einsum("ac,chw->hwa", displacement_sums(fields, motion.factors)[1], fields.channels)
    away = depth_sums(fields, motion.factors)[1]
    depth = fields.depth + torch.einsum("c,chw->hw", away, fields.channels)
    points = pixel_centres(128)[8:120:4, 8:120:4].reshape(-1, 2)
    origin = torch.from_numpy((points + motion.flow(1, None, points) + 0.5) / 128)
    seen = read_fields(depth[None], origin)[:, 0]
    on_it = torch.cdist(torch.from_numpy((points + 0.5) / 128), moved.view(-1, 2)) < 0.5 / NODES
    nearest = torch.where(on_it, depth.flatten(), torch.inf).amin(dim=1)
    assert on_it.any(dim=1).float().mean() > 0.5
    # Half a node to a side the surface is a little nearer, where it is steep, and far nearer at the edge of the head.
    assert (seen - nearest)[on_it.any(dim=1)].quantile(0.97) < 0.01
    hidden = torch.where(on_it, depth.flatten(), -torch.inf).amax(dim=1) - seen
    assert (hidden > 0.2).sum() > 5  # so that there was a choice


@pytest.mark.parametrize("seed", range(4))
def test_drawn_turns_go_as_far_as_they_may_and_no_further(fields: HeadFields, seed: int):
    largest = math.radians(40)
    motion = PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(seed), 60, largest)
    assert motion.factors.pose[:, 1].abs().max() < largest + 0.06  # a head sways a little about where it rests
    for number in (0, 59):
        assert motion.frame(number).shape == (SIZE, SIZE, 3)
    again = PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(seed), 60, largest)
    np.testing.assert_array_equal(again.frame(59), motion.frame(59))


def test_a_pose_that_folds_is_made_smaller_while_the_head_turns_as_far(
    fields: HeadFields, monkeypatch: pytest.MonkeyPatch
):
    plain = PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(0), 60, 0.7)
    monkeypatch.setattr("motion_predictor.data.head_factors.LEAST_DETERMINANT", 0.9)
    small = PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(0), 60, 0.7)
    assert torch.equal(small.factors.pose[:, :2], plain.factors.pose[:, :2])
    assert plain.factors.pose[:, 2:].any()
    assert small.factors.pose[:, 2:].abs().max() < 0.8 * plain.factors.pose[:, 2:].abs().max()


def test_some_drawn_heads_rest_in_three_quarter_view(fields: HeadFields):
    yaws = [
        PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(seed), 60, 0.7).factors.pose[:, 1]
        for seed in range(12)
    ]
    assert any(yaw.abs().min() > 0.25 for yaw in yaws)


def test_a_still_that_looks_to_a_side_turns_less_far_to_it(fields: HeadFields):
    assert abs(fields.yaw) < 0.01
    landmarks = make_landmarks()
    landmarks[234, 2] += 0.1
    landmarks[454, 2] -= 0.1  # the right edge is nearer: as after a turn by a positive yaw
    aside = HeadFields.from_landmarks(landmarks)
    assert 0.3 < aside.yaw < 0.6
    for seed in range(4):
        motion = PortraitMotion.draw(make_picture(SIZE), aside, np.random.default_rng(seed), 60, 0.7)
        assert motion.factors.pose[:, 1].max() + aside.yaw < 0.7 + 0.1
