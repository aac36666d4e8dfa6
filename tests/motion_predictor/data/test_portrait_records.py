"""Records and pairs say what the motion does: its flow, its tracks, its frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from motion_predictor.data.head_factors import POSE, Factors
from motion_predictor.data.head_fields import HeadFields
from motion_predictor.data.portrait_motion import PortraitMotion, pixel_centres
from motion_predictor.data.portrait_records import (
    PortraitPair,
    portrait_pair,
    portrait_record,
    stays_visible,
    where_it_changes,
)
from support.synthetic_face import make_landmarks, make_picture

SIZE = 64


@pytest.fixture(scope="module")
def fields() -> HeadFields:
    return HeadFields.from_landmarks(make_landmarks())


def drawn(fields: HeadFields, seed: int = 0, frames: int = 60) -> PortraitMotion:
    return PortraitMotion.draw(make_picture(SIZE), fields, np.random.default_rng(seed), frames)


def test_a_record_says_what_the_motion_does(fields: HeadFields):
    motion = drawn(fields, 5, frames=70)
    record = portrait_record("face", motion, 9, np.random.default_rng(0), candidates=100)
    assert record.key == "face-0_000009"
    assert record.info["video"] == "face"
    np.testing.assert_array_equal(record.frame, motion.frame(9))
    np.testing.assert_allclose(record.flow, motion.flow(9, 10, pixel_centres(SIZE)), atol=1e-4)
    cells = np.stack(np.meshgrid(np.arange(1.5, SIZE, 4), np.arange(1.5, SIZE, 4)), axis=-1)
    np.testing.assert_allclose(record.horizon_flows[3], motion.flow(9, 13, cells), atol=1e-3)
    assert record.horizon_flows.shape == (6, SIZE // 4, SIZE // 4, 2)
    assert record.end_frames.tolist() == [15, 25, 35, 45, 55]
    np.testing.assert_allclose(record.end_flows[2], motion.flow(9, 44, cells), atol=1e-3)
    known = np.isfinite(record.tracks[:, 54, 0])
    np.testing.assert_allclose(record.tracks[known, 54], motion.flow(9, 64, record.points[known]), atol=1e-3)
    assert known.any()
    assert record.tracks.shape == (100, 55, 2)
    assert not record.background.any()


def test_candidates_lie_where_the_head_moves(fields: HeadFields):
    motion = drawn(fields, 5, frames=70)
    record = portrait_record("face", motion, 9, np.random.default_rng(0), candidates=200)
    speed = np.linalg.norm(motion.flow(9, 10, record.points), axis=-1)
    assert speed.mean() > 1.3 * np.linalg.norm(record.flow, axis=-1).mean()
    assert (speed > 0).all()


def test_points_that_leave_the_picture_are_lost_from_then_on(fields: HeadFields):
    factors = Factors.zeros(80)
    factors.pose[20:40, POSE.index("shift_y")] = -0.12
    near = dataclasses.replace(fields, region=torch.ones_like(fields.region))
    motion = PortraitMotion(make_picture(SIZE), near, factors)
    record = portrait_record("face", motion, 19, np.random.default_rng(0))
    positions = record.points[:, None] + motion.track(record.points, 19, range(20, 75))
    outside = ((positions < -0.5) | (positions > SIZE - 0.5)).any(axis=-1)
    gone = outside.any(axis=1)
    assert gone.any()
    assert not gone.all()
    np.testing.assert_array_equal(np.isnan(record.tracks[..., 0]), np.logical_or.accumulate(outside, axis=1))


def test_a_start_without_enough_frames_after_it_is_refused(fields: HeadFields):
    with pytest.raises(ValueError, match=r"`start` must be from 0 to 4, .* got 5"):
        portrait_record("face", drawn(fields, frames=60), 5, np.random.default_rng(0))


def pair(fields: HeadFields, seed: int) -> PortraitPair:
    return portrait_pair(make_picture(SIZE), fields, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(4))
def test_a_pair_shows_at_the_targets_what_the_source_shows_at_the_handles(fields: HeadFields, seed: int):
    import cv2

    drawn_pair = pair(fields, seed)
    assert 1 <= len(drawn_pair.handles) <= 7
    displacements = drawn_pair.targets - drawn_pair.handles
    at_handles = drawn_pair.flow[drawn_pair.handles[:, 1].astype(int), drawn_pair.handles[:, 0].astype(int)]
    np.testing.assert_allclose(displacements, at_handles, atol=1e-3)
    ends = (pixel_centres(SIZE) + drawn_pair.flow).astype(np.float32)
    seen = cv2.remap(drawn_pair.target, ends[..., 0], ends[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    after = np.abs(seen.astype(float) - drawn_pair.source)[drawn_pair.mask].mean()
    before = np.abs(drawn_pair.target.astype(float) - drawn_pair.source)[drawn_pair.mask].mean()
    assert after < 0.5 * before


@pytest.mark.parametrize("seed", range(4))
def test_what_the_mask_leaves_out_hardly_moves(fields: HeadFields, seed: int):
    drawn_pair = pair(fields, seed)
    displacements = np.linalg.norm(drawn_pair.flow, axis=-1)
    assert displacements[~drawn_pair.mask].max(initial=0) <= 0.15 * displacements.max()
    change = np.abs(drawn_pair.target.astype(int) - drawn_pair.source).mean(axis=-1)
    assert change[~drawn_pair.mask].sum() < 0.15 * change.sum()
    assert drawn_pair.mask[drawn_pair.handles[:, 1].astype(int), drawn_pair.handles[:, 0].astype(int)].all()


def test_handles_of_a_pair_go_far_and_lie_apart(fields: HeadFields):
    for seed in range(8):
        drawn_pair = pair(fields, seed)
        displacements = np.linalg.norm(drawn_pair.targets - drawn_pair.handles, axis=-1)
        assert displacements.min() >= 0.5 * 0.05 * SIZE
        apart = np.linalg.norm(drawn_pair.handles[:, None] - drawn_pair.handles, axis=-1)
        assert (apart[~np.eye(len(apart), dtype=bool)] >= SIZE / 12).all()
        assert (drawn_pair.targets >= 0).all()
        assert (drawn_pair.targets <= SIZE - 1).all()


def test_the_same_seed_draws_the_same_pair(fields: HeadFields):
    first, second, other = pair(fields, 2), pair(fields, 2), pair(fields, 3)
    for name in ("source", "target", "handles", "targets", "mask", "flow"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.target, other.target)


def test_a_displacement_that_no_head_reaches_is_refused(fields: HeadFields, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motion_predictor.data.portrait_records.MAX_TRIES", 2)
    with pytest.raises(ValueError, match=r"`least_displacement` must be smaller, got 0\.9"):
        portrait_pair(make_picture(SIZE), fields, np.random.default_rng(0), least_displacement=0.9)


def test_what_is_seen_where_it_went_stays_visible_and_what_another_thing_covers_does_not():
    """The left third goes 20 pixels to the right, over what rests there."""
    flow, back = np.zeros((2, SIZE, SIZE, 2), dtype=np.float32)
    flow[:, :20, 0], back[:, 20:40, 0] = 20, -20
    visible = stays_visible(flow, back)
    assert visible[:, :19].all()
    assert not visible[:, 21:39].any()
    assert visible[:, 41:].all()


def test_handles_of_a_head_that_turns_far_are_few_and_on_what_is_seen_before_and_after(fields: HeadFields):
    for seed in range(3):
        pair = portrait_pair(
            make_picture(SIZE), fields, np.random.default_rng(seed), 0.08, most_handles=2, largest_turn=0.6
        )
        assert len(pair.handles) <= 2
        assert np.linalg.norm(pair.flow, axis=-1).max() >= 0.08 * SIZE
        columns, rows = pair.handles.astype(int).T
        before = pair.source[rows, columns].astype(float)
        after = pair.target[tuple(pair.targets.round().astype(int).clip(0, SIZE - 1).T[::-1])]
        assert np.abs(after - before).mean() < 25


def test_what_is_hidden_on_its_way_is_in_the_mask_where_what_is_round_it_moves():
    known = np.zeros((64, 64, 2), dtype=np.float32)
    known[16:40, 16:40] = (6.0, 0.0)
    partly = known.copy()
    partly[24:28, 24:28] = np.nan  # in the middle of what moves
    partly[:, -8:] = np.nan  # along the border, far from it
    still = np.zeros_like(known)
    np.testing.assert_array_equal(where_it_changes(partly, still), where_it_changes(known, still))
    np.testing.assert_array_equal(where_it_changes(known, partly), where_it_changes(known, known))
