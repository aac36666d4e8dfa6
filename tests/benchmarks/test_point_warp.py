"""A picture bent by its points alone: what an edit by a model has to be compared with."""

import numpy as np
import pytest
from point_warp import warp_by_points

from dynadrag_pipeline.evaluation.pairs import EvaluationPair

SIDE = 64


def instruct(handles: list[list[float]], targets: list[list[float]], mask: np.ndarray) -> EvaluationPair:
    """A pair whose source is a spot on a slope of grey, round (20, 30)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    spot = 150 * np.exp(-((x - 20) ** 2 + (y - 30) ** 2) / 18) + x
    source = np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2)
    points = (np.array(each, dtype=np.float32) for each in (handles, targets))
    return EvaluationPair("000_spot", source, source, mask, *points, np.zeros((SIDE, SIDE, 2), dtype=np.float32))


def test_the_handle_comes_to_its_target_and_what_is_outside_the_mask_stays():
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[12:48, 8:52] = True
    pair = instruct([[20, 30]], [[28, 33]], mask)
    bent = warp_by_points(pair)
    assert bent.dtype == np.uint8
    assert np.unravel_index((bent[..., 0] - np.arange(SIDE)).argmax(), mask.shape) == (33, 28)
    far = np.abs(bent.astype(int) - pair.source)[~mask]
    assert far.mean() < 2


@pytest.mark.parametrize("points", [1, 2, 7])
def test_where_everything_may_change_any_number_of_points_will_do(points):
    handles = np.array([[20, 30], [40, 20], [30, 50], [10, 10], [50, 50], [40, 40], [12, 48]][:points])
    pair = instruct(handles, handles + np.array([3, 0]), np.ones((SIDE, SIDE), dtype=bool))
    moved = warp_by_points(pair)[30, 23, 0]
    assert abs(int(moved) - int(pair.source[30, 20, 0])) <= 1


def test_two_handles_with_one_target_are_no_error():
    pair = instruct([[20, 30], [24, 30]], [[30, 30], [30, 30]], np.ones((SIDE, SIDE), dtype=bool))
    assert warp_by_points(pair).shape == pair.source.shape
