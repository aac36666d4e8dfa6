"""Where the content went, on feature maps whose answers are known, and in edits."""

from __future__ import annotations

import doctest
import logging
from dataclasses import replace

import pytest
import torch

from dynadrag_pipeline import content
from dynadrag_pipeline.content import (
    ContentLocations,
    carried_moves,
    left_behind,
    locate_content,
    moves_after,
    origins_of,
    warn_if_left_behind,
)
from dynadrag_pipeline.dense_flow import DenseFlow

SIZE = (128, 160)


def landscape(seed: int = 1) -> torch.Tensor:
    """Features that change from place to place, and slowly."""
    coarse = torch.randn(1, 24, 16, 20, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic")


def ways(*pairs: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.float32).transpose(0, 1)


class TestLocating:
    def test_nothing_has_moved_in_an_unedited_picture(self):
        found = locate_content(landscape(), landscape(), ways(((40.3, 60), (55, 60)), ((90, 30), (90, 30))), SIZE)
        assert torch.equal(found.places, torch.tensor([[40.3, 60], [90, 30]]))
        assert found.distances.tolist() == pytest.approx([14.7, 0], abs=1e-4)
        assert found.found.tolist() == [True, True]
        assert found.share_of_way == pytest.approx(0)

    def test_content_that_went_half_of_the_way_is_found_there(self):
        found = locate_content(landscape(), landscape().roll((4, 8), (2, 3)), ways(((40, 60), (56, 68))), SIZE)
        assert found.places.tolist() == [[48, 64]]
        assert found.asked.tolist() == pytest.approx([320**0.5])
        assert found.share_of_way == pytest.approx(0.5)
        assert found.found.tolist() == [True]

    def test_places_are_in_pixels_of_the_input(self):
        after = landscape().roll(8, 3)
        found = locate_content(landscape(), after, ways(((80.5, 120.5), (112.5, 120.5))), SIZE, (256, 320))
        assert found.places.tolist() == [[96.5, 120.5]]
        assert found.distances.tolist() == [16]

    def test_what_went_a_long_way_round_is_found_along_it(self):
        """A drawn path leads far off the straight line: content that is on it is inside the window."""
        path = torch.tensor([[40.0, 60], [70, 20], [100, 60]])[:, None]
        after = landscape().roll((-40, 30), (2, 3))
        assert locate_content(landscape(), after, path, SIZE).places.tolist() == [[70, 20]]
        straight = locate_content(landscape(), after, path[[0, 2]], SIZE)
        assert straight.places.tolist() != [[70, 20]]

    def test_content_that_is_gone_is_not_found(self):
        found = locate_content(landscape(), landscape(seed=2), ways(((40, 60), (56, 60)), ((90, 30), (110, 30))), SIZE)
        assert not found.found.any()
        assert found.share_of_way is None

    def test_a_pin_whose_content_moved_is_told_by_its_distance(self):
        found = locate_content(landscape(), landscape().roll(5, 3), ways(((40, 60), (40, 60))), SIZE)
        assert found.distances.tolist() == [5]
        assert found.share_of_way is None, "it was to make no way"


def located(distances: list[float], asked: list[float], found: list[bool]) -> ContentLocations:
    places = torch.zeros(len(asked), 2)
    return ContentLocations(
        places, places, torch.tensor(distances), torch.tensor(asked), torch.ones(len(asked)), torch.tensor(found)
    )


def to_the_right(pixels: float, side: int = 64) -> DenseFlow:
    """Of a picture of 128 x 128: everything goes, on a grid of half of its pixels."""
    return DenseFlow.of(torch.tensor([pixels / 2, 0.0]).view(1, 2, 1, 1).expand(1, 2, side, side))


def arrived(*pairs: tuple[tuple[float, float], tuple[float, float]], found: bool = True) -> ContentLocations:
    """Content that made all of its way, or was not found."""
    handles, places = ways(*pairs)
    asked = (places - handles).norm(dim=-1)
    every = torch.full((len(pairs),), found)
    return ContentLocations(handles, places, torch.zeros(len(pairs)), asked, torch.ones(len(pairs)), every)


class TestMovesSinceTheUneditedPicture:
    """Of one drag after another, in a picture of 128 x 128."""

    BEFORE = torch.tensor([[[60.0, 64.0], [72.0, 64.0]]])
    NOTHING = torch.zeros(0, 2, 2)

    def after(self, content: ContentLocations, earlier: torch.Tensor) -> list:
        origins = origins_of(content.handles, (128, 128), earlier, flow=None)
        return moves_after(content, (128, 128), origins, earlier).tolist()

    def test_a_way_in_two_drags_is_the_way_in_one(self):
        in_one = self.after(arrived(((60, 64), (80, 64))), self.NOTHING)
        assert in_one == [[[60, 64], [80, 64]]]
        assert self.after(arrived(((72, 64), (80, 64))), self.BEFORE) == in_one
        assert self.after(arrived(((73, 64), (81, 64))), self.BEFORE) == [[[61, 64], [81, 64]]], "beside it"

    def test_a_way_forth_and_back_is_none(self):
        assert self.after(arrived(((72, 64), (60, 64))), self.BEFORE) == []

    def test_what_another_drag_moved_elsewhere_is_still_known(self):
        both = self.after(arrived(((20, 20), (30, 20))), self.BEFORE)
        assert both == [[[60, 64], [72, 64]], [[20, 20], [30, 20]]]

    def test_what_was_lost_is_known_from_the_drag_before(self):
        assert self.after(arrived(((72, 64), (80, 64)), found=False), self.BEFORE) == self.BEFORE.tolist()

    def test_content_comes_from_where_the_latent_was_carried_from(self):
        points = torch.tensor([[72.0, 64.0]])
        torch.testing.assert_close(
            origins_of(points, (128, 128), None, to_the_right(12)), points - ways(((12, 0),))[0]
        )
        half = torch.tensor([[36.0, 32.0]])
        torch.testing.assert_close(origins_of(half, (64, 64), None, to_the_right(12)), half - ways(((6, 0),))[0])

    def test_earlier_content_goes_on_with_the_latent(self):
        first, both = to_the_right(12), to_the_right(12).then(to_the_right(8))
        gone_on = carried_moves(self.BEFORE, first, both, (128, 128))
        torch.testing.assert_close(gone_on, torch.tensor([[[60.0, 64.0], [80.0, 64.0]]]))
        torch.testing.assert_close(carried_moves(self.BEFORE, None, None, (128, 128)), self.BEFORE)


class TestTelling:
    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (located([2.0, 3.0], [8.0, 10.0], [True, True]), "content: 2.5 px from its targets, of 9.0 px asked"),
            (
                located([2.0, 9.0, 0.5], [8.0, 10.0, 0.0], [True, False, True]),
                "content: 2.0 px from its targets, of 8.0 px asked; 1 of 2 not found",
            ),
            (located([2.0], [8.0], [False]), "content: not found, of 1 that was to move"),
            (located([0.0], [0.0], [True]), "content: nothing was to move"),
        ],
    )
    def test_one_line(self, content, line):
        assert content.summary == line

    def test_a_record_is_lists(self):
        record = located([2.0], [8.0], [True]).record()
        assert record["distances"] == [2.0]
        assert record["found"] == [True]
        assert set(record) == {"handles", "places", "distances", "asked", "similarities", "found"}

    @pytest.mark.parametrize(
        ("distance", "stop_reason", "warns"),
        [(4.1, "reached", True), (3.9, "reached", False), (8.0, "max_iterations", False), (9.0, "reached", True)],
    )
    def test_a_warning_when_handles_arrived_and_content_did_not(self, caplog, distance, stop_reason, warns):
        with caplog.at_level(logging.WARNING):
            warn_if_left_behind(located([distance], [8.0], [True]), stop_reason)
        assert ("content has made" in caplog.text) == warns
        assert ("so may `settle_iterations`" in caplog.text) == warns, "carried at once, nothing is supervised before"

    @pytest.mark.parametrize(
        ("asked", "found", "warns"),
        [
            ([8.0], [False], True),
            ([8.0] * 8, [True] + 7 * [False], True),
            ([8.0, 8.0], [True, False], False),
            ([8.0, 0.0], [True, False], False),
            ([0.0], [False], False),
        ],
    )
    def test_a_warning_when_handles_arrived_and_most_of_the_content_is_nowhere(self, caplog, asked, found, warns):
        content = located([0.5] * len(asked), asked, found)
        with caplog.at_level(logging.WARNING):
            warn_if_left_behind(content, "reached")
        assert ("their content was not found" in caplog.text) == warns
        assert left_behind(content, "stalled") is None


class TestInAnEdit:
    EDIT = ([(40, 30)], [(52, 30)])

    @pytest.mark.parametrize(("restore", "extra"), [(False, 2), (True, 3)])
    def test_it_costs_a_few_passes_and_changes_nothing(self, pipe, picture, quick, restore, extra):
        options = quick | {"output_type": "pt", "restore_source": restore}
        passes: list[None] = []
        pipe.unet.register_forward_hook(lambda *_: passes.append(None))
        pipe(picture, *self.EDIT, **options)  # the identity LoRA is fitted once
        passes.clear()
        without = pipe(picture, *self.EDIT, locate_content=False, **options)
        count = len(passes)
        passes.clear()
        output = pipe(picture, *self.EDIT, **options)
        assert len(passes) - count == extra
        assert without.content is None
        assert output.content.asked.tolist() == pytest.approx([12])
        if not restore:
            assert torch.equal(output.images, without.images)
        assert torch.equal(output.trajectories, without.trajectories)

    def test_an_edit_of_nothing_moves_nothing(self, pipe, picture, quick):
        output = pipe(picture, [(40, 30)], [(40, 30)], **quick)
        assert output.content.summary == "content: nothing was to move"

    def test_a_list_of_pictures_has_a_list(self, pipe, picture, quick):
        output = pipe([picture, picture], *self.EDIT, **(quick | {"max_iterations": 1}))
        assert len(output.content) == 2

    def test_a_drag_that_goes_on_is_compared_with_where_it_began(self, pipe, picture, quick):
        session = pipe.open_session(picture, **quick)
        list(session.drag(*self.EDIT))
        list(session.drag([(52, 30)], [(60, 30)], continue_from=session.state))
        first, second = session.history
        assert first.start_latents is None
        assert torch.equal(second.start_latents, first.state.latents)
        unchanged = replace(second, state=replace(second.state, latents=first.state.latents))
        assert torch.equal(session.content(unchanged).places, torch.tensor([[52.0, 30.0]]))


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(content).failed == 0
