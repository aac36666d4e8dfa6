"""Tilted windows: what is around a picture, and where its points come to."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from motion_predictor.data.tilted_window import TiltedWindow, _running_mean, surrounded


def test_running_means_are_those_of_pooling():
    values = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(_running_mean(values, 7, 2), avg_pool2d(values, (7, 1), stride=1))
    torch.testing.assert_close(_running_mean(values, 7, 3), avg_pool2d(values, (1, 7), stride=1))


def test_a_picture_lies_unchanged_in_its_surroundings_and_a_flat_one_has_flat_ones():
    picture = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(surrounded(picture, 8)[..., 8:-8, 8:-8], picture, atol=0, rtol=0)
    flat = torch.full((1, 3, 20, 30), 0.25)
    torch.testing.assert_close(surrounded(flat, 8), torch.full((1, 3, 36, 46), 0.25))


def test_a_tilted_window_shows_a_point_where_it_says_that_it_lies():
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :128]
    for _ in range(20):
        window = TiltedWindow.draw(128, 96, random, size=64)
        point = np.array([random.uniform(30, 98), random.uniform(24, 72)], dtype=np.float32)
        if not window.contains(point):
            continue
        bump = np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / 50)
        seen = window.picture((255 * bump[..., None].repeat(3, axis=2)).astype(np.uint8))[..., 0].astype(float)
        seen[seen < 40] = 0
        y, x = np.mgrid[:64, :64]
        centre = np.array([(seen * x).sum(), (seen * y).sum()]) / seen.sum()
        np.testing.assert_allclose(centre, window.points(point), atol=1.0)


def test_what_lies_beyond_the_frame_has_no_label():
    window = TiltedWindow(middle=(0.0, 31.5), side=64.0, tilt=0.0, size=32, frame_size=(64, 64))
    seen = window.field(np.ones((16, 16, 2), dtype=np.float32), stride=4)
    assert np.isnan(seen[:, :15]).all()
    np.testing.assert_allclose(seen[2:-2, 18:], 0.5)
