"""Tracks follow analytic flows exactly, and end where they leave the picture or contradict themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from motion_predictor.data.optical_flow import DISFlow
from motion_predictor.data.tracks import (
    FlowStep,
    background_motion,
    background_points,
    cell_centres,
    chain_tracks,
    has_texture,
    is_cut,
)

HEIGHT, WIDTH = 40, 60
GRID = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).astype(np.float64)


def affine_step(matrix: np.ndarray, offset: np.ndarray) -> FlowStep:
    """The step that takes x to `matrix @ x + offset`; exact between pixels, too, since it is linear."""
    inverse = np.linalg.inv(matrix)
    forward = GRID @ matrix.T + offset - GRID
    backward = (GRID - offset) @ inverse.T - GRID
    return FlowStep.from_arrays(forward.astype(np.float32), backward.astype(np.float32))


def test_a_rotation_is_followed_to_its_end():
    angle, centre = math.radians(3), np.array([30.0, 20.0])
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    step = affine_step(rotation, centre - rotation @ centre)
    points = np.array([[36.3, 20.0], [30.0, 12.5], [30.0, 20.0]])
    tracks = chain_tracks(points, [step] * 40)
    for frames in (1, 10, 40):
        turned = np.linalg.matrix_power(rotation, frames)
        np.testing.assert_allclose(tracks[:, frames - 1], (points - centre) @ turned.T + centre - points, atol=2e-3)


def test_both_flows_are_read_where_the_point_has_come_to():
    growing = affine_step(np.eye(2) * 1.5, np.zeros(2))
    tracks = chain_tracks(np.array([[10.0, 8.0]]), [growing] * 3)
    np.testing.assert_allclose(tracks[0, :, 0], [5, 12.5, 23.75], rtol=1e-5)  # 10 x 1.5^n - 10


def test_points_that_leave_the_picture_are_lost_for_good():
    away, back = (affine_step(np.eye(2), np.array([shift, 0.0])) for shift in (4.0, -4.0))
    tracks = chain_tracks(np.array([[50.0, 5.0], [55.3, 5.0], [55.7, 5.0]]), [away, back, back])
    assert np.isnan(tracks[:, :, 0]).tolist() == [[False] * 3, [False] * 3, [True] * 3]  # the edge is at 59.5
    np.testing.assert_allclose(tracks[0, :, 0], [4, 0, -4], atol=1e-5)


@pytest.mark.parametrize(
    ("motion", "error", "kept"),
    [(0.0, 0.99, True), (0.0, 1.01, False), (10.0, 1.49, True), (10.0, 1.51, False)],
)
def test_forward_and_backward_may_differ_by_a_pixel_and_a_twentieth(motion: float, error: float, kept: bool):
    forward = np.zeros((HEIGHT, WIDTH, 2), np.float32) + np.float32([motion, 0])
    backward = np.zeros((HEIGHT, WIDTH, 2), np.float32) + np.float32([-motion, error])
    (track,) = chain_tracks(np.array([[20.0, 20.0]]), [FlowStep.from_arrays(forward, backward)])
    assert (not np.isnan(track).any()) == kept


def test_what_is_covered_on_the_way_is_lost():
    forward, backward = np.zeros((2, HEIGHT, WIDTH, 2), np.float32)
    forward[:, :30, 0] = 5  # the left half slides over the right one, which stands still
    backward[:, :35, 0] = -5
    tracks = chain_tracks(np.array([[28.0, 9.0], [31.0, 9.0], [40.0, 9.0]]), [FlowStep.from_arrays(forward, backward)])
    assert np.isnan(tracks[:, 0, 0]).tolist() == [False, True, False]


def test_a_step_reversed_leads_back():
    step = affine_step(np.eye(2), np.array([2.0, -1.0]))
    tracks = chain_tracks(np.array([[20.0, 20.0]]), [step, step, step.reversed, step.reversed])
    np.testing.assert_allclose(tracks[0], [[2, -1], [4, -2], [2, -1], [0, 0]], atol=1e-5)


def test_no_points_and_no_steps_give_empty_tracks():
    step = affine_step(np.eye(2), np.zeros(2))
    assert chain_tracks(np.empty((0, 2)), [step]).shape == (0, 1, 2)
    assert chain_tracks(np.ones((3, 2)), []).shape == (3, 0, 2)


def test_cells_cover_the_picture_evenly():
    centres = cell_centres(HEIGHT, WIDTH)
    assert centres.shape == (10, 15, 2)
    np.testing.assert_allclose(centres.mean(axis=(0, 1)), [(WIDTH - 1) / 2, (HEIGHT - 1) / 2])


def test_points_of_the_background_lie_in_it():
    background = np.zeros((HEIGHT, WIDTH), dtype=bool)
    background[:, 20:] = True
    points = background_points(background).astype(int)
    assert len(points) == 25  # 8 pixels apart
    assert background[points[:, 1], points[:, 0]].all()


def test_the_background_moves_as_its_median_whatever_a_few_points_do():
    tracks = np.tile(np.array([[3.0, 1.0], [6.0, 2.0]]), (40, 1, 1))
    tracks[:12] *= -50
    tracks[30:, 1] = np.nan
    np.testing.assert_allclose(background_motion(tracks), [[3, 1], [6, 2]])


def test_a_background_that_is_hardly_known_counts_as_still():
    tracks = np.ones((20, 3, 2), np.float32)
    tracks[15:, 1] = np.nan
    np.testing.assert_array_equal(background_motion(tracks), [[1, 1], [0, 0], [1, 1]])
    assert background_motion(np.empty((0, 3, 2), np.float32)).tolist() == [[0, 0]] * 3


def test_texture_is_where_grey_levels_change_at_any_size():
    noise = np.random.default_rng(0).uniform(-20, 20, (64, 40)).astype(np.float32)
    for scale in (1, 2, 4):
        picture = np.full((64 * scale, 96 * scale, 3), 120, np.uint8)
        enlarged = cv2.resize(noise, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        picture[:, : 40 * scale] = (120 + enlarged)[..., None]
        seen = has_texture(picture)
        assert seen[:, : 34 * scale].mean() > 0.9
        assert not seen[:, 46 * scale :].any()


def test_a_cut_to_another_scene_ends_every_track(textured_picture: Callable):
    first, second, other = (
        textured_picture(64, 84)[:, 4:],
        textured_picture(64, 84)[:, :-4],
        textured_picture(64, 80, 1),
    )
    flow = DISFlow()
    moved, cut = (FlowStep.from_arrays(flow(first, picture), flow(picture, first)) for picture in (second, other))
    seen = has_texture(first)
    assert not is_cut(moved, seen)
    assert is_cut(cut, seen)
    assert not is_cut(cut, np.zeros_like(seen))  # a blank frame tells nothing
    tracks = chain_tracks(np.array([[40.0, 30.0]]), [moved, replace(moved, cut=True), moved])
    assert np.isnan(tracks[0, :, 0]).tolist() == [False, True, True]
    assert replace(moved, cut=True).reversed.cut
