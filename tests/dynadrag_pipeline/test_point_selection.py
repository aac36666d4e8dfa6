from __future__ import annotations

import doctest
import math

import pytest
import torch

from dynadrag_pipeline import point_selection
from dynadrag_pipeline.point_selection import PointSelector, below_threshold, handle_target_similarity

NOBODY = torch.zeros(4, dtype=torch.bool)
SIMILARITIES = torch.tensor([0.9, 0.2, 0.7, -0.5])


def arrived(*indices: int, points: int = 4) -> torch.Tensor:
    flags = torch.zeros(points, dtype=torch.bool)
    flags[list(indices)] = True
    return flags


def chosen(selection: torch.Tensor) -> set[int]:
    return set(selection.nonzero().flatten().tolist())


def test_examples_in_docstrings():
    results = doctest.testmod(point_selection)
    assert results.attempted >= 3
    assert results.failed == 0


def test_similarity_is_the_cosine_of_the_angle_between_features():
    """Features that turn by 30 degrees per column, and whose length must not matter."""
    angles = torch.arange(7) * math.pi / 6
    features = torch.stack([angles.cos(), angles.sin()])[None, :, None, :] * (1 + torch.arange(7.0))
    handles = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
    expected = torch.tensor([1.0, 0.5, 0.0, -0.5])
    torch.testing.assert_close(handle_target_similarity(features, handles, targets), expected)


def test_similarity_between_cells_is_that_of_the_interpolated_features():
    """A quarter of the way from (1, 0) to (0, 1) is (0.75, 0.25): cos = 0.75 / sqrt(0.625) with (1, 0)."""
    features = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    similarity = handle_target_similarity(features, torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.5]]))
    assert similarity.item() == pytest.approx(0.75 / math.sqrt(0.625))


def test_handles_below_the_threshold_are_valid():
    assert chosen(below_threshold(SIMILARITIES, ~NOBODY, 0.6)) == {1, 3}
    assert chosen(below_threshold(SIMILARITIES, ~NOBODY, 0.8)) == {1, 2, 3}


def test_a_similarity_at_the_threshold_is_not_below_it():
    assert chosen(below_threshold(torch.tensor([0.5, 0.25]), ~NOBODY[:2], 0.5)) == {1}


def test_without_any_below_the_threshold_the_least_similar_is_valid():
    assert chosen(below_threshold(SIMILARITIES, ~NOBODY, -1.0)) == {3}


def test_the_least_similar_is_sought_among_those_that_have_not_arrived():
    assert chosen(below_threshold(SIMILARITIES, ~arrived(1, 3), 0.6)) == {2}


def test_nobody_is_valid_when_all_have_arrived():
    for strategy in ("all", "first", "random", None):
        assert chosen(PointSelector(strategy)(SIMILARITIES, ~NOBODY)) == set()


def test_all_judges_anew_in_each_iteration():
    selector = PointSelector("all")
    assert chosen(selector(SIMILARITIES, NOBODY)) == {1, 3}
    assert chosen(selector(-SIMILARITIES, NOBODY)) == {0, 1, 2, 3}
    assert chosen(selector(SIMILARITIES, arrived(1))) == {3}
    assert selector.abandoned is None


def test_none_takes_every_handle_that_has_not_arrived():
    selector = PointSelector(None)
    assert chosen(selector(torch.ones(4), NOBODY)) == {0, 1, 2, 3}
    assert chosen(selector(SIMILARITIES, arrived(0, 3))) == {1, 2}


def test_first_keeps_its_choice_and_abandons_the_rest_for_good():
    selector = PointSelector("first")
    assert chosen(selector(SIMILARITIES, NOBODY)) == {1, 3}
    assert chosen(selector.abandoned) == {0, 2}
    assert chosen(selector(-SIMILARITIES, NOBODY)) == {1, 3}, "also when the others have become dissimilar"
    assert chosen(selector(torch.ones(4), NOBODY)) == {1, 3}, "also when they have become similar themselves"
    assert chosen(selector(SIMILARITIES, arrived(1))) == {3}
    assert chosen(selector(SIMILARITIES, arrived(1, 3))) == set(), "not even as the least similar"
    assert chosen(selector.abandoned) == {0, 2}


def test_first_does_not_abandon_a_handle_that_starts_at_its_target():
    selector = PointSelector("first")
    assert chosen(selector(SIMILARITIES, arrived(0))) == {1, 3}
    assert chosen(selector.abandoned) == {2}


def test_random_takes_as_many_as_all_would_and_none_that_has_arrived():
    similarities = torch.tensor([0.9, 0.2, 0.7, -0.5, 0.1, 0.8])
    selector = PointSelector("random", generator=torch.Generator().manual_seed(0))
    drawn = [frozenset(chosen(selector(similarities, arrived(3, points=6)))) for _ in range(200)]
    assert {len(each) for each in drawn} == {2}
    assert {frozenset(pair) for pair in drawn} == {
        frozenset({a, b}) for a in (0, 1, 2, 4, 5) for b in (0, 1, 2, 4, 5) if a < b
    }


def test_random_is_drawn_from_its_generator_alone():
    def draws(seed: int) -> list[set[int]]:
        selector = PointSelector("random", generator=torch.Generator().manual_seed(seed))
        return [chosen(selector(SIMILARITIES, NOBODY)) for _ in range(20)]

    state = torch.get_rng_state()
    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_threshold_is_the_callers():
    assert chosen(PointSelector("all", threshold=0.0)(SIMILARITIES, NOBODY)) == {3}
    assert PointSelector().threshold == 0.6
