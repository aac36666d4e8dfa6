"""Portraits in motion against closed forms: still frames, rotations, ways there and back, frames that match flows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from synthetic_face import make_landmarks, make_picture

from motion_predictor.data import portrait_motion
from motion_predictor.data.head_fields import HeadFields, read_fields
from motion_predictor.data.portrait_motion import (
    EXPRESSION,
    POSE,
    Factors,
    PortraitMotion,
    determinants,
    pixel_centres,
    portrait_record,
)

SIZE = 64


@pytest.fixture(scope="module")
def fields() -> HeadFields:
    return HeadFields.from_landmarks(make_landmarks())


def drawn(fields: HeadFields, seed: int = 0, frames: int = 60, size: int = SIZE) -> PortraitMotion:
    return PortraitMotion(make_picture(size), fields, np.random.default_rng(seed), frames)


def posed(fields: HeadFields, size: int = SIZE, **values: float) -> PortraitMotion:
    """A motion of two frames: the still, and one with the given pose and expression."""
    factors = Factors(torch.zeros(2, len(POSE)), torch.zeros(2, len(EXPRESSION)))
    for name, value in values.items():
        if name in POSE:
            factors.pose[1, POSE.index(name)] = value
        else:
            factors.expression[1, EXPRESSION.index(name)] = value
    return PortraitMotion.from_factors(make_picture(size), fields, factors)


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
def test_there_and_back_is_no_way_and_ways_can_be_split(fields: HeadFields, seed: int):
    motion = drawn(fields, seed)
    points = pixel_centres(SIZE)
    half = motion.flow(5, 30, points)
    np.testing.assert_allclose(half + motion.flow(30, 5, points + half), np.zeros_like(half), atol=0.01)
    whole = motion.flow(5, 55, points)
    np.testing.assert_allclose(half + motion.flow(30, 55, points + half), whole, atol=0.01)
    np.testing.assert_array_equal(motion.track(points, 5, [30, 55])[..., 1, :], whole)


@pytest.mark.parametrize("seed", range(8))
def test_no_frame_folds_the_picture(fields: HeadFields, seed: int):
    assert determinants(fields, drawn(fields, seed).sums, stride=1).min() > 0.15


@pytest.mark.parametrize("seed", range(4))
def test_frames_are_where_the_flow_says(fields: HeadFields, seed: int):
    motion = drawn(fields, seed, size=128)
    moving = motion.factors.expression[:, : EXPRESSION.index("blink")].abs().sum() + motion.factors.pose.abs().sum()
    assert moving > 0
    start, end = 0, int(np.argmax(np.linalg.norm(motion.track(np.array([[64.0, 64.0]]), 0, range(60))[0], axis=1)))
    back = motion.flow(end, start, pixel_centres(128))
    inner = (slice(12, -12), slice(12, -12))
    predicted = warped(motion.frame(start), pixel_centres(128) + back)
    assert decibels(predicted[inner], motion.frame(end)[inner]) > 30


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
    assert not torch.equal(drawn(fields, 4).sums, small.sums)


def test_a_record_says_what_the_motion_does(fields: HeadFields):
    motion = drawn(fields, 5, frames=70)
    record = portrait_record("face-0", motion, 9, np.random.default_rng(0), candidates=100)
    assert record.key == "face-0_000009"
    np.testing.assert_array_equal(record.frame, motion.frame(9))
    np.testing.assert_allclose(record.flow, motion.flow(9, 10, pixel_centres(SIZE)), atol=1e-4)
    cells = np.stack(np.meshgrid(np.arange(1.5, SIZE, 4), np.arange(1.5, SIZE, 4)), axis=-1)
    np.testing.assert_allclose(record.horizon_flows[3], motion.flow(9, 13, cells), atol=1e-3)
    assert record.horizon_flows.shape == (6, SIZE // 4, SIZE // 4, 2)
    known = np.isfinite(record.tracks[:, 54, 0])
    np.testing.assert_allclose(record.tracks[known, 54], motion.flow(9, 64, record.points[known]), atol=1e-3)
    assert known.any()
    assert record.tracks.shape == (100, 55, 2)
    assert not record.background.any()


def test_candidates_lie_where_the_head_moves(fields: HeadFields):
    motion = drawn(fields, 5, frames=70)
    record = portrait_record("face-0", motion, 9, np.random.default_rng(0), candidates=200)
    speed = np.linalg.norm(motion.flow(9, 10, record.points), axis=-1)
    assert speed.mean() > 1.3 * np.linalg.norm(record.flow, axis=-1).mean()
    assert (speed > 0).all()


def test_points_that_leave_the_picture_are_lost_from_then_on(fields: HeadFields):
    factors = Factors(torch.zeros(80, len(POSE)), torch.zeros(80, len(EXPRESSION)))
    factors.pose[20:40, POSE.index("shift_y")] = -0.12
    near = dataclasses.replace(fields, head=torch.ones_like(fields.head))
    motion = PortraitMotion.from_factors(make_picture(SIZE), near, factors)
    record = portrait_record("face-0", motion, 19, np.random.default_rng(0))
    positions = record.points[:, None] + motion.track(record.points, 19, range(20, 75))
    outside = ((positions < -0.5) | (positions > SIZE - 0.5)).any(axis=-1)
    gone = outside.any(axis=1)
    assert gone.any()
    assert not gone.all()
    np.testing.assert_array_equal(np.isnan(record.tracks[..., 0]), np.logical_or.accumulate(outside, axis=1))


def test_a_start_without_enough_frames_after_it_is_refused(fields: HeadFields):
    with pytest.raises(ValueError, match=r"`start` is 5: 0 to 4 is accepted"):
        portrait_record("face-0", drawn(fields, frames=60), 5, np.random.default_rng(0))


def test_a_picture_that_is_not_square_is_refused(fields: HeadFields):
    with pytest.raises(ValueError, match=r"`picture` has shape \(64, 60, 3\)"):
        PortraitMotion(make_picture()[:, :60], fields, np.random.default_rng(0))


def test_landmarks_of_another_mesh_are_refused():
    with pytest.raises(ValueError, match=r"`landmarks` has shape \(468, 3\)"):
        HeadFields.from_landmarks(make_landmarks()[:468])


def test_the_inverse_is_exact_where_lips_part(fields: HeadFields):
    motion = posed(fields, open=0.16, smile=0.13, yaw=0.1)
    displacement = torch.einsum("ac,chw->ahw", motion.sums[1], fields.channels)
    here = torch.from_numpy((pixel_centres(SIZE) + 0.5) / SIZE).view(-1, 2)
    origin = portrait_motion.invert(displacement, here)
    missed = (origin + read_fields(displacement, origin) - here).norm(dim=1) * SIZE
    assert missed.max() < 0.001
