"""The measure of a drag, on pictures whose content was moved by a known amount."""

import numpy as np
import pytest
import torch
from content_distance import content_distances, content_positions, descriptors, feature_distances
from skimage import data, transform

HANDLES = np.array([[52.0, 58.0], [70.0, 60.0]])  # the eyes


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return transform.resize(data.astronaut()[0:200, 126:326], (128, 128), anti_aliasing=True)


def test_an_unchanged_picture_is_as_far_from_the_target_as_was_asked(face):
    assert content_distances(face, face, HANDLES, HANDLES + np.array([6.0, 8.0])) == pytest.approx([10.0, 10.0])


@pytest.mark.parametrize("shift", [(9, 0), (-7, 4), (0, -11)])
def test_a_shifted_picture_has_its_content_at_the_target(face, shift):
    moved = np.roll(face, shift[::-1], axis=(0, 1))
    assert content_distances(face, moved, HANDLES, HANDLES + shift) == pytest.approx([0.0, 0.0])


def test_content_is_found_at_another_brightness_and_contrast(face):
    moved = 0.1 + 0.6 * np.roll(face, 5, axis=1)
    assert content_positions(face, moved, HANDLES, search_radius=10) == pytest.approx(HANDLES + np.array([5, 0]))


def test_handles_at_the_border_are_measured_too(face):
    corner = np.array([[0.0, 127.0]])
    assert content_positions(face, face, corner, search_radius=4) == pytest.approx(corner)


def test_descriptors_find_what_was_moved_and_leave_the_rest_where_it_is():
    """Random vectors per pixel, the first handle's moved by (6, 8), to its target; the other's by nothing."""
    source = torch.nn.functional.normalize(torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(0)), dim=0)
    edited = source.clone()
    edited[:, 28, 26], edited[:, 20, 20] = source[:, 20, 20], source[:, 28, 26]
    handles, targets = np.array([[20.0, 20.0], [40.0, 40.0]]), np.array([[26.0, 28.0], [43.0, 44.0]])
    assert feature_distances(source, edited, handles, targets) == pytest.approx([0, 5])


def test_descriptors_are_as_large_as_the_picture_and_each_layer_counts_alike():
    layers = [torch.rand(1, 3, 64, 64), 100 * torch.rand(1, 5, 16, 16)]
    found = descriptors(layers, (64, 64))
    assert found.shape == (8, 64, 64)
    assert found[:3].norm(dim=0).mean().item() == pytest.approx(found[3:].norm(dim=0).mean().item(), rel=1e-4)
