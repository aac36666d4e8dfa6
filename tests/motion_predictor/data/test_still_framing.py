"""Stills that are framed anew: faces of any size and anywhere, whose landmarks stay where the face is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from motion_predictor.data.still_framing import LARGEST_FACE, Framing, largest_square
from support.synthetic_face import HEIGHT, make_landmarks, make_picture

MARKS = make_landmarks()[:, :2]


def drawn(seed: int, smallest: float = 0.2) -> Framing:
    return Framing.draw(MARKS, HEIGHT, np.random.default_rng(seed), smallest)


def test_faces_are_of_all_heights_between_the_least_and_the_greatest_and_lie_in_the_frame():
    heights, centres = [], []
    for seed in range(200):
        placed = drawn(seed).place(make_landmarks())
        heights.append(np.linalg.norm(placed[152, :2] - placed[10, :2]))
        centres.append(placed[:, :2].mean(axis=0))
    assert 0.19 < min(heights) < 0.24
    assert 0.65 < max(heights) < LARGEST_FACE + 0.01
    assert (np.array(centres) > 0.08).all()
    assert (np.array(centres) < 0.92).all()
    assert np.std(centres, axis=0).min() > 0.08


@pytest.mark.parametrize("seed", range(5))
def test_landmarks_are_placed_where_the_frame_shows_their_content(seed: int):
    still = Image.new("RGB", (320, 320), "black")
    ImageDraw.Draw(still).ellipse([150, 130, 170, 150], fill="white")
    framing = drawn(seed)
    dot = framing.place(np.array([[160.5, 140.5]]) / 320) * 128 - 0.5
    brightness = framing.show(still, 128).astype(float).mean(axis=-1)
    y, x = np.mgrid[:128, :128]
    middle = [(brightness * along).sum() / brightness.sum() for along in (x, y)]
    assert brightness.sum() > 0
    np.testing.assert_allclose(middle, dot[0], atol=0.2)


def test_depth_grows_with_the_face():
    framing = Framing((0.5, 0.5), 0.5, 0.1)
    np.testing.assert_allclose(framing.place(make_landmarks())[:, 2], make_landmarks()[:, 2] / 2, rtol=1e-6)


def test_a_still_that_fills_its_frame_is_the_still():
    picture = make_picture(128)
    shown = Framing((0.5, 0.5), 1.0, 0.0).show(Image.fromarray(picture), 128)
    assert np.abs(shown[2:-2, 2:-2].astype(float) - picture[2:-2, 2:-2]).mean() < 3


@pytest.mark.parametrize(("shift", "left"), [(-1, 0), (0, 20), (1, 40)])
def test_the_largest_square_is_cut_out_between_the_ends(shift: float, left: int):
    picture = np.arange(100 * 60, dtype=np.uint16).reshape(60, 100) % 251
    wide = Image.fromarray(picture.astype(np.uint8))
    np.testing.assert_array_equal(np.array(largest_square(wide, shift)), picture[:, left : left + 60])
    high = Image.fromarray(picture.T.astype(np.uint8))
    np.testing.assert_array_equal(np.array(largest_square(high, shift)), picture.T[left : left + 60])
