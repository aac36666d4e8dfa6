"""Samples hold what their record says, wherever the window lies and however it is mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from motion_predictor.data.motion_record import HORIZON_STRIDE, MotionRecord
from motion_predictor.data.samples import MotionSample, MotionSamples, SampleSettings, Window, draw_sample
from motion_predictor.data.shards import MotionShards, write_shard
from motion_predictor.points import sample_flow

HEIGHT, WIDTH, FRAMES = 32, 48, 20
VELOCITY = np.array([0.25, -0.125], dtype=np.float32)  # pixels per frame


def steady_record(velocity: np.ndarray = VELOCITY, key: str = "clip_000000", **changes) -> MotionRecord:
    """All moves with one velocity; the picture's red is the column, its green the row."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    frame = np.stack([columns * 5, rows * 5, 0 * rows], axis=-1).astype(np.uint8)
    times = np.arange(1, FRAMES + 1, dtype=np.float32)
    cells = (HEIGHT // HORIZON_STRIDE, WIDTH // HORIZON_STRIDE)
    points = np.random.default_rng(0).uniform((2, 2), (WIDTH - 3, HEIGHT - 3), (40, 2)).astype(np.float32)
    parts = {
        "key": key,
        "frame": frame,
        "flow": np.broadcast_to(velocity, (HEIGHT, WIDTH, 2)).copy(),
        "horizon_flows": np.broadcast_to(times[:6, None, None, None] * velocity, (6, *cells, 2)).copy(),
        "points": points,
        "tracks": np.broadcast_to(times[:, None] * velocity, (40, FRAMES, 2)).copy(),
        "background": np.zeros((FRAMES, 2), dtype=np.float32),
        "end_frames": np.array([15]),
        "end_flows": np.broadcast_to(np.float32(15) * velocity, (1, *cells, 2)).copy(),
    }
    return MotionRecord(**{**parts, **changes})


def draws(
    record: MotionRecord, settings: SampleSettings, count: int = 30, size: int | None = 16
) -> list[MotionSample]:
    random = np.random.default_rng(1)
    samples = [draw_sample(record, settings, random, size) for _ in range(count)]
    assert None not in samples
    return [sample for sample in samples if sample is not None]


def test_the_papers_labels_are_the_motion_over_one_frame():
    for sample in draws(steady_record(), SampleSettings(), size=None):
        displacement = (sample.targets - sample.handles)[sample.valid]
        torch.testing.assert_close(
            displacement, torch.from_numpy(VELOCITY).expand_as(displacement) * sample.frames, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(sample.steps[sample.valid], torch.from_numpy(VELOCITY).expand_as(displacement))
        assert 15 <= sample.frames <= FRAMES
        assert sample.image.shape == (3, HEIGHT, WIDTH)


def test_labels_over_a_horizon_are_the_motion_over_a_tenth_of_the_frames_rounded_up():
    for sample in draws(steady_record(), SampleSettings(horizon=10), size=None):
        expected = torch.from_numpy(VELOCITY) * 2  # ceil(15 ... 20 / 10)
        torch.testing.assert_close(sample.steps[sample.valid], expected.expand_as(sample.steps[sample.valid]))
        torch.testing.assert_close(sample.label, expected[:, None, None].expand_as(sample.label))


@pytest.mark.parametrize("augment", [False, True])
def test_a_window_carries_handles_ways_and_labels_along(augment: bool):
    for sample in draws(steady_record(), SampleSettings(augment=augment)):
        displacement = (sample.targets - sample.handles)[sample.valid]
        steps = sample.steps[sample.valid]
        torch.testing.assert_close(displacement, steps * sample.frames, atol=1e-4, rtol=1e-4)
        at_handles = sample_flow(sample.label[None], sample.handles[None])[0][sample.valid]
        torch.testing.assert_close(at_handles, steps, atol=1e-4, rtol=1e-4)
        zoom = steps[0].norm() / np.linalg.norm(VELOCITY) / (16 / HEIGHT)
        assert 1 - 1e-4 <= zoom <= 1.6 + 1e-4
        assert augment or zoom == pytest.approx(1, abs=1e-4)


def test_handles_stay_on_the_content_that_they_were_drawn_on():
    record = steady_record()
    for sample in draws(record, SampleSettings(), size=16):
        x = sample_flow(sample.image[None, :2], sample.handles[None])[0][sample.valid, 0] * 255 / 5
        known = torch.from_numpy(record.points[:, 0])
        assert (x[:, None] - known).abs().amin(dim=1).max() < 0.6  # the rounding of the window's picture to 1/255


def test_mirrored_samples_turn_and_do_not_only_mirror_the_picture():
    samples = draws(steady_record(), SampleSettings(augment=True), count=60)
    right = torch.stack([sample.steps[0, 0] > 0 for sample in samples])
    down = torch.stack([sample.steps[0, 1] > 0 for sample in samples])
    assert 15 <= right.sum() <= 45
    assert not down.any()


def test_the_cameras_motion_is_taken_off_labels_and_displacements():
    camera = np.array([1.0, 0.5], dtype=np.float32)
    times = np.arange(1, FRAMES + 1, dtype=np.float32)
    record = steady_record(VELOCITY + camera, background=times[:, None] * camera)
    for horizon in (0, 10):
        for sample in draws(record, SampleSettings(horizon=horizon, remove_background=True), size=None):
            displacement = (sample.targets - sample.handles)[sample.valid]
            expected = torch.from_numpy(VELOCITY)
            torch.testing.assert_close(
                displacement, (expected * sample.frames).expand_as(displacement), atol=1e-4, rtol=0
            )
            step = expected * (2 if horizon else 1)
            torch.testing.assert_close(sample.label, step[:, None, None].expand_as(sample.label), atol=1e-5, rtol=0)


def test_handles_whose_step_leads_away_are_not_drawn_when_a_cosine_is_asked_for():
    record = steady_record()
    tracks = record.tracks.copy()
    tracks[:20, 0] *= -1  # the first frame goes the wrong displacement at half of the points
    record = steady_record(tracks=tracks)
    drawn = torch.cat([s.steps[s.valid] for s in draws(record, SampleSettings(), count=60)])
    assert (drawn[:, 0] < 0).any()
    filtered = torch.cat([s.steps[s.valid] for s in draws(record, SampleSettings(min_cosine=0.3), count=60)])
    assert (filtered[:, 0] > 0).all()


def test_lost_points_are_not_drawn_and_lost_cells_have_no_label():
    record = steady_record()
    record.tracks[:39, 5:] = np.nan
    record.horizon_flows[:, 0] = np.nan
    for sample in draws(record, SampleSettings(horizon=10), size=None):
        assert sample.valid.sum() == 1
        np.testing.assert_allclose(sample.handles[0], record.points[39], atol=1e-4)
        assert torch.isnan(sample.label[:, :HORIZON_STRIDE]).all()
        assert torch.isfinite(sample.label[:, 2 * HORIZON_STRIDE :]).all()


def test_a_record_that_is_too_short_or_all_lost_gives_no_sample():
    record = steady_record()
    random = np.random.default_rng(0)
    assert draw_sample(record, SampleSettings(first_end_frame=21), random) is None
    record.tracks[:] = np.nan
    assert draw_sample(record, SampleSettings(), random) is None


def test_a_horizon_that_the_record_does_not_reach_says_so():
    with pytest.raises(ValueError, match="`horizon` must be larger, got 2"):
        draw_sample(steady_record(), SampleSettings(horizon=2), np.random.default_rng(0))


@pytest.mark.parametrize("framing", [False, True])
def test_the_whole_ways_label_leads_each_handle_to_its_target(framing: bool):
    settings = SampleSettings(total=True, augment=True, framing=framing)
    for sample in draws(steady_record(), settings):
        assert sample.frames == 15
        displacement = (sample.targets - sample.handles)[sample.valid]
        at_handles = sample_flow(sample.total[None], sample.handles[None])[0][sample.valid]
        known = torch.isfinite(at_handles).all(dim=1)  # not beside the frame's border
        torch.testing.assert_close(at_handles[known], displacement[known], atol=1e-3, rtol=1e-3)


def test_framed_samples_keep_handles_on_their_content_and_tilt_motion_with_it():
    record = steady_record()
    lengths, tilts = [], []
    for sample in draws(record, SampleSettings(framing=True), count=60, size=32):
        red = sample_flow(sample.image[None, :2], sample.handles[None])[0][sample.valid, 0] * 255 / 5
        known = torch.from_numpy(record.points[:, 0])
        assert (red[:, None] - known).abs().amin(dim=1).max() < 1.0
        step = sample.steps[0]
        lengths.append(float(step.norm()) / np.linalg.norm(VELOCITY) / (32 / HEIGHT))
        tilts.append(float(torch.atan2(step[1], step[0])) - np.arctan2(VELOCITY[1], VELOCITY[0]))
    assert 0.4 <= min(lengths) < 0.6  # of a window of 2.5 short sides
    assert 1.2 < max(lengths) <= 1 / 0.65
    assert np.abs(tilts).max() == pytest.approx(np.radians(20), abs=0.1)


def test_masks_hold_what_moves_where_it_is_and_where_it_comes_to_and_no_more():
    record = steady_record()
    record.end_flows[:] = 0
    record.end_flows[:, 2:4, 2:4] = (8.0, 0.0)  # what is at x and y from 8 to 15 goes 8 pixels to the right
    record.tracks[:] = np.float32(8), np.float32(0)
    (sample,) = draws(record, SampleSettings(total=True, masks=1.0), count=1, size=None)
    mask = sample.mask[0]
    assert mask[9:15, 9:23].all()
    assert not mask[:, 30:].any()
    assert not mask[22:].any()
    (free,) = draws(record, SampleSettings(total=True), count=1, size=None)
    assert free.mask.all()


def test_what_is_not_known_of_a_motion_tears_no_hole_into_a_mask_and_opens_none_outside():
    known, partly = steady_record(), steady_record()
    for record in (known, partly):
        record.end_flows[:] = 0
        record.end_flows[:, 1:7, 1:5] = (8.0, 0.0)
    partly.end_flows[:, 3:5, 2:4] = np.nan  # in the middle of what moves
    partly.end_flows[:, :, -2:] = np.nan  # along the border, far from it
    masks = [
        draws(record, SampleSettings(total=True, masks=1.0), count=1, size=None)[0].mask[0]
        for record in (known, partly)
    ]
    assert masks[0][8:24, 6:24].all()
    assert torch.equal(*masks)


def test_far_handles_go_at_least_their_share_of_the_longest_displacement():
    record = steady_record()
    record.tracks[:20] *= 0.3
    for sample in draws(record, SampleSettings(far_handles=0.5), size=None):
        length = (sample.targets - sample.handles)[sample.valid].norm(dim=1)
        torch.testing.assert_close(length, sample.frames * torch.full_like(length, float(np.linalg.norm(VELOCITY))))


def test_few_handles_come_in_with_the_curriculum(datasets: list[MotionShards]):
    settings = SampleSettings(few_handles=1.0, curriculum=400)
    samples = MotionSamples(datasets, [1, 1], [settings] * 2, size=16)
    early = np.mean([int(samples[index].valid.sum()) <= 2 for index in range(100)])
    late = [int(samples[index].valid.sum()) <= 2 for index in range(400, 440)]
    assert early < 0.65  # 2 of 7, and an eighth of the rest, expected
    assert all(late)


def test_pins_are_put_where_nothing_moves_and_stay():
    record = steady_record()
    record.end_flows[:] = 0
    record.end_flows[:, :4] = (8.0, 0.0)
    random = np.random.default_rng(0)
    pinned = [draw_sample(record, SampleSettings(total=True, pins=1.0), random, None, handles=2) for _ in range(20)]
    counts = [int(sample.valid.sum()) for sample in pinned]
    assert set(counts) == {3, 4, 5}
    for sample in pinned:
        pins = sample.handles[sample.valid][2:]
        torch.testing.assert_close(pins, sample.targets[sample.valid][2:])
        assert not sample_flow(sample.total[None], pins[None]).any()
        assert not sample.steps[sample.valid][2:].any()


def test_a_number_of_handles_can_be_asked_for():
    random = np.random.default_rng(0)
    sample = draw_sample(steady_record(), SampleSettings(), random, 16, handles=3)
    assert sample is not None
    assert sample.valid.sum() == 3


def test_masks_without_the_whole_way_are_refused():
    for name in ("masks", "pins"):
        with pytest.raises(ValueError, match=f"`{name}` must be 0 unless `total`"):
            SampleSettings(**{name: 0.5})


def test_windows_see_a_ramp_where_it_is():
    window = Window(left=8, top=4, width=16, height=16, to_width=8, to_height=8)
    seen = window.picture(steady_record().frame)
    columns = (np.arange(8) + 0.5) * 2 + 8 - 0.5
    np.testing.assert_allclose(seen[4, 1:-1, 0], columns[1:-1] * 5, atol=1)
    np.testing.assert_allclose(window.points(np.stack([columns, columns], axis=-1))[:, 0], np.arange(8), atol=1e-5)


@pytest.fixture
def datasets(tmp_path: Path) -> list[MotionShards]:
    for name, velocity in (("left", (-0.5, 0.0)), ("right", (0.5, 0.0))):
        record = steady_record(np.array(velocity, dtype=np.float32), key=f"{name}_000000")
        write_shard(tmp_path / name / "train" / f"{name}.tar", [record])
    return [MotionShards(tmp_path / name, "train") for name in ("left", "right")]


def test_the_nth_sample_is_always_the_same(datasets: list[MotionShards]):
    settings = SampleSettings(augment=True)
    first = MotionSamples(datasets, [1, 1], [settings] * 2, size=16, seed=3)
    again = MotionSamples(datasets, [1, 1], [settings] * 2, size=16, seed=3)
    for index in (5, 0, 5):
        for one, other in zip(vars(first[index]).values(), vars(again[index]).values(), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
    assert not torch.equal(first[0].image, first[1].image)
    assert not torch.equal(first[0].image, MotionSamples(datasets, [1, 1], [settings] * 2, size=16, seed=4)[0].image)


def test_sources_are_drawn_from_by_their_weights(datasets: list[MotionShards]):
    samples = MotionSamples(datasets, [3, 1], [SampleSettings()] * 2, size=16)
    to_the_left = sum(bool(samples[index].steps[0, 0] < 0) for index in range(200))
    assert 125 <= to_the_left <= 175  # 150 expected, standard deviation 6.1


def test_a_source_without_any_fitting_record_says_why(datasets: list[MotionShards]):
    with pytest.raises(ValueError, match="`first_end_frame`, 40"):
        MotionSamples(datasets, [1, 1], [SampleSettings(first_end_frame=40)] * 2, size=16)[0]


def test_each_source_is_drawn_from_in_its_own_way(datasets: list[MotionShards]):
    settings = [SampleSettings(), SampleSettings(first_end_frame=18)]
    samples = MotionSamples(datasets, [1, 1], settings, size=16)
    frames = {side: set() for side in ("left", "right")}
    for index in range(60):
        sample = samples[index]
        frames["left" if sample.steps[0, 0] < 0 else "right"].add(int(sample.frames))
    assert min(frames["left"]) == 15
    assert min(frames["right"]) == 18
    with pytest.raises(ValueError, match="`settings` must be 2"):
        MotionSamples(datasets, [1, 1], settings[:1], size=16)


def test_weights_must_fit_the_sources(datasets: list[MotionShards]):
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="`weights`"):
            MotionSamples(datasets, weights, [SampleSettings()] * 2, size=16)


def test_samples_stack_to_a_batch(datasets: list[MotionShards]):
    samples = MotionSamples(datasets, [1, 1], [SampleSettings()] * 2, size=16)
    batch = MotionSample.stack([samples[0], samples[1]])
    assert batch.image.shape == (2, 3, 16, 16)
    assert batch.valid.shape == (2, 7)
    assert batch.to("cpu").frames.tolist() == [samples[0].frames, samples[1].frames]
