"""Bodies and animals that turn about joints, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from motion_predictor.data.head_factors import Factors, determinants, displacement_sums
from motion_predictor.data.head_fields import HeadFields
from motion_predictor.data.hinges import ARMS, SHOULDERS, draw_hinges, hinges_of_body
from motion_predictor.data.portrait_motion import PortraitMotion, pixel_centres
from support.synthetic_body import make_pose
from support.synthetic_face import make_landmarks, make_picture

SIZE = 64
BODY, UPPER_ARM, FOREARM, HAND = 0, 1, 2, 3  # the first hinges of `make_pose` without a head
SHOULDER, ELBOW, WRIST = (np.array(make_pose()[joint, :2], dtype=float) for joint in ARMS[0][:3])


@pytest.fixture(scope="module")
def body() -> HeadFields:
    return HeadFields.without_face().with_hinges(hinges_of_body(make_pose(), with_head=False))


def bent(fields: HeadFields, **angles: float) -> PortraitMotion:
    """A motion of two frames: the still, and one with the given angles by the names of hinges above."""
    factors = Factors.zeros(2, hinges=len(fields.hinges))
    for name, angle in angles.items():
        factors.bends[1, globals()[name.upper()]] = angle
    return PortraitMotion(make_picture(SIZE), fields, factors)


def turned(points: np.ndarray, pivot: np.ndarray, angle: float) -> np.ndarray:
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return pivot + (points - pivot) @ rotation.T


def moved(motion: PortraitMotion, points: np.ndarray) -> np.ndarray:
    """Where points of the still are in frame 1, all in fractions of the side."""
    return points + motion.flow(None, 1, points * SIZE - 0.5) / SIZE


def test_an_arm_turns_about_its_shoulder_by_the_angle_and_the_other_side_stays(body: HeadFields):
    points = np.stack([SHOULDER, ELBOW, WRIST, (ELBOW + WRIST) / 2])
    motion = bent(body, upper_arm=0.3)
    np.testing.assert_allclose(moved(motion, points), turned(points, SHOULDER, 0.3), atol=1e-4)
    other_side = make_pose()[list(ARMS[1]), :2].astype(float)
    np.testing.assert_allclose(moved(motion, other_side), other_side, atol=1e-5)


def test_a_forearm_turns_about_an_elbow_that_its_upper_arm_has_moved(body: HeadFields):
    motion = bent(body, body=0.1, upper_arm=0.2, forearm=-0.4, hand=0.3)
    hips = np.array([0.5, 0.9])
    points = np.stack([WRIST, make_pose()[ARMS[0][3], :2]]).astype(float)
    expected = turned(turned(turned(turned(points, WRIST, 0.3), ELBOW, -0.4), SHOULDER, 0.2), hips, 0.1)
    np.testing.assert_allclose(moved(motion, points), expected, atol=1e-4)


def test_a_body_carries_its_head_with_what_the_face_does():
    face = HeadFields.from_landmarks(make_landmarks())
    fields = face.with_hinges(hinges_of_body(make_pose(), with_head=False))
    # An eye: within the body's region of weight 1, and within the face's.
    eye = np.array([[0.5, 0.3]])
    factors = Factors.zeros(2, hinges=len(fields.hinges))
    factors.pose[1, 2] = 0.2  # roll
    alone = PortraitMotion(make_picture(SIZE), fields, factors)
    nodded = moved(alone, eye)
    factors.bends[1, BODY] = 0.1
    carried = moved(PortraitMotion(make_picture(SIZE), fields, factors), eye)
    np.testing.assert_allclose(carried, turned(nodded, np.array([0.5, 0.9]), 0.1), atol=1e-4)


def test_a_head_without_a_face_nods(body: HeadFields):
    with_head = hinges_of_body(make_pose(), with_head=True)
    assert len(with_head) == len(body.hinges) + 1
    neck = with_head[1].pivot.numpy().astype(float)
    motion = bent(HeadFields.without_face().with_hinges(with_head), upper_arm=0.2)  # the second hinge is the head's
    head = np.array([[0.5, 0.2]])
    np.testing.assert_allclose(moved(motion, head), turned(head, neck, 0.2), atol=1e-4)


def test_joints_out_of_sight_do_not_turn():
    pose = make_pose()
    pose[ARMS[0][2], 1] = 1.3  # a wrist
    pose[ARMS[1][1], 1] = 1.2  # the other elbow
    pivots = {tuple(hinge.pivot.tolist()) for hinge in hinges_of_body(pose, with_head=False)}
    assert tuple(pose[ARMS[0][1], :2].tolist()) in pivots
    assert len(pivots) == 4  # hips, both shoulders, an elbow


def fields_of(kind: str, seed: int) -> HeadFields:
    if kind == "animal":
        return HeadFields.without_face().with_hinges(draw_hinges(np.random.default_rng(seed)))
    face = HeadFields.from_landmarks(make_landmarks())
    return face.with_hinges(hinges_of_body(make_pose(), with_head=False))


@pytest.mark.parametrize("kind", ["animal", "person"])
@pytest.mark.parametrize("seed", range(3))
def test_drawn_motions_go_there_and_back_and_fold_nothing(kind: str, seed: int):
    motion = PortraitMotion.draw(make_picture(SIZE), fields_of(kind, seed), np.random.default_rng(seed), frames=60)
    sums = displacement_sums(motion.fields, motion.factors)
    assert determinants(motion.fields.channels, sums).min() > 0.19  # 0.2, but for nodes that were not looked at
    points = pixel_centres(SIZE)
    there = motion.flow(5, 40, points)
    assert np.linalg.norm(there, axis=-1).max() > 0.1
    np.testing.assert_allclose(there + motion.flow(40, 5, points + there), np.zeros_like(there), atol=0.01)


def test_the_same_seed_gives_the_same_hinges_and_motion():
    one, other, third = (
        PortraitMotion.draw(make_picture(SIZE), fields_of("animal", seed), np.random.default_rng(seed), frames=60)
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.factors.bends, other.factors.bends)
    assert torch.equal(one.fields.channels, other.fields.channels)
    np.testing.assert_array_equal(one.frame(30), other.frame(30))
    assert not np.array_equal(one.frame(30), third.frame(30))


def test_joints_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"`pose` must be .* got .* \(17, 4\)"):
        hinges_of_body(make_pose()[:17], with_head=False)
    pose = make_pose()
    pose[5] = np.nan
    with pytest.raises(ValueError, match="`pose` must be finite numbers"):
        hinges_of_body(pose, with_head=False)
    pose = make_pose()
    pose[SHOULDERS[0], :2] = pose[SHOULDERS[1], :2] + 0.01
    with pytest.raises(ValueError, match=r"`pose` must have shoulders .* got 0\.014"):
        hinges_of_body(pose, with_head=False)
