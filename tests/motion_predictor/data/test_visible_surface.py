"""What is seen of sheets whose shape is known."""

from __future__ import annotations

import numpy as np

from motion_predictor.data.visible_surface import VisibleSurface


def grid(columns: int, rows: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(float(columns)), np.arange(float(rows))), axis=-1)


def test_a_flat_sheet_is_read_linearly_and_elsewhere_there_is_nothing():
    nodes = grid(9, 9)
    turned = nodes @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + [4, 1]
    sheet = VisibleSurface(turned, np.zeros((9, 9)), nodes, side=16)
    points = np.random.default_rng(0).uniform(1, 7, (200, 2))
    places = points @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + [4, 1]
    inside = ((places > 0) & (places < 15)).all(axis=1)
    assert inside.sum() > 50
    np.testing.assert_allclose(sheet.at(places[inside]), points[inside], atol=1e-9)
    assert np.isnan(sheet.at(np.array([[0.0, 0.0], [15.0, 0.0]]))).all()


def test_of_a_folded_sheet_the_nearest_front_is_seen():
    """A sheet goes right to x = 8, back to 4 and right again: over 4 to 8 two fronts lie on each other."""
    nodes = grid(21, 5)
    column = nodes[..., 0]
    x = np.where(column <= 8, column, np.where(column <= 12, 16 - column, column - 8))
    positions = np.stack([x, nodes[..., 1]], axis=-1)
    points = np.array([[2.0, 2.0], [6.0, 1.5], [7.5, 3.0], [10.0, 2.0]])
    for depth, expected in ((column, [2, 6, 7.5, 18]), (-column, [2, 14, 15.5, 18])):
        seen = VisibleSurface(positions, depth, nodes, side=16).at(points)
        np.testing.assert_allclose(seen, np.stack([expected, points[:, 1]], axis=1), atol=1e-9)


def test_a_sheet_that_shows_its_back_is_not_seen():
    nodes = grid(9, 9)
    mirrored = nodes * [-1, 1] + [8, 0]
    assert np.isnan(VisibleSurface(mirrored, np.zeros((9, 9)), nodes, side=9).at(np.array([[4.0, 4.0]]))).all()


def test_points_beyond_the_picture_are_taken_to_its_border():
    nodes = grid(12, 12) - 2
    sheet = VisibleSurface(nodes, np.zeros((12, 12)), nodes, side=8)
    np.testing.assert_allclose(sheet.at(np.array([[-3.0, 4.0], [4.0, 20.0]])), [[-0.5, 4], [4, 7.5]], atol=1e-5)
