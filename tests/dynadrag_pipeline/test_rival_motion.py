"""Rival frameworks as sources of motion, on feature maps whose answers are known (Fig. 1 of the paper)."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import pytest
import torch

from dynadrag_pipeline.motion import line_search, tracked
from dynadrag_pipeline.motion.choice import choose_motion
from dynadrag_pipeline.motion.line_search import LineSearchMotion, template_share
from dynadrag_pipeline.motion.source import EditView
from dynadrag_pipeline.motion.tracked import TrackedMotion
from dynadrag_pipeline.motion_supervision import sample_patches

SIZE = (64, 96)
GRID = (32, 48)
RADIUS = 1
FIVE_CELLS = 5 * 512 / 64  # the longest step of a search, which is told for 512 pixels


def pixels(cells: list[tuple[float, float]]) -> torch.Tensor:
    """Points of the supervision grid in pixels of the edit."""
    return 2 * torch.tensor(cells, dtype=torch.float32) + 0.5


def cells(points: torch.Tensor) -> list[list[float]]:
    return ((points - 0.5) / 2).tolist()


def codes() -> torch.Tensor:
    """A feature map on which no two places are alike."""
    return torch.randn(1, 16, *GRID, generator=torch.Generator().manual_seed(3))


def moved(features: torch.Tensor, right: int, down: int = 0) -> torch.Tensor:
    """The same content that many cells further."""
    return features.roll((down, right), dims=(2, 3))


def view_of(
    handles: list[tuple[float, float]], targets: list[tuple[float, float]], original: torch.Tensor, **changes: object
) -> EditView:
    points = torch.tensor(handles, dtype=torch.float32)
    view = EditView(
        handles=pixels(handles),
        targets=pixels(targets),
        moving=torch.ones(len(points), dtype=torch.bool),
        size=SIZE,
        input_size=SIZE,
        image=torch.zeros(1, 3, *SIZE),
        k=0,
        remaining=5,
        guard="project",
        features=lambda: original,
        original_patches=sample_patches(original, points, RADIUS),
    )
    return replace(view, **changes)


class TestTrack:
    def located(self, after: torch.Tensor, handle=(20.0, 16.0), target=(30.0, 16.0), radius: int = 3) -> list[float]:
        """Where a handle is found in the features after supervision, in cells; it was sent one cell to the right."""
        motion, view = TrackedMotion(radius), view_of([handle], [target], codes())
        motion.start(view)
        proposed = motion.propose(view).destinations
        return cells(motion.locate(replace(view, features=lambda: after), proposed))[0]

    def test_a_step_is_one_cell_towards_the_target(self):
        view = view_of([(20, 16), (20, 16)], [(30, 16), (23, 20)], codes())
        motion = TrackedMotion().propose(view)
        assert cells(motion.destinations) == [pytest.approx([21, 16]), pytest.approx([20.6, 16.8])]
        assert not motion.wrong_way.any()

    def test_a_step_does_not_pass_its_target_and_pins_stay(self):
        view = view_of([(20, 16), (9, 9)], [(20.4, 16.3), (9, 9)], codes(), moving=torch.tensor([True, False]))
        motion = TrackedMotion().propose(view)
        torch.testing.assert_close(motion.destinations, view.targets)

    @pytest.mark.parametrize("way", [(1, 0), (0, 0), (3, -3), (-2, 1)])
    def test_content_is_found_wherever_it_came_to_in_the_window(self, way):
        assert self.located(moved(codes(), *way)) == pytest.approx([20 + way[0], 16 + way[1]], abs=1e-4)

    def test_handles_between_cells_keep_their_fraction(self):
        after = moved(codes(), 2)
        assert self.located(after, handle=(20.3, 16.6), target=(30, 16.6)) == pytest.approx([22.3, 16.6], abs=1e-4)

    def test_content_that_followed_to_a_target_between_cells_is_found_on_it(self):
        """Features that grow linearly, shifted by 0.4 cells: a place that is no whole number of cells away."""
        x = torch.arange(48.0).expand(1, 1, *GRID)
        motion, view = TrackedMotion(), view_of([(20, 16)], [(20.4, 16)], x)
        proposed = motion.propose(view).destinations
        found = motion.locate(replace(view, features=lambda: x - 0.4), proposed)
        assert cells(found)[0] == pytest.approx([20.4, 16], abs=1e-4)

    def test_missed_tracking_content_that_left_the_window_is_lost(self):
        """Fig. 1(b): the answer is somewhere in the window, and the content is not there."""
        found = self.located(moved(codes(), 5))
        assert found != pytest.approx([25, 16], abs=1)
        assert max(abs(found[0] - 20), abs(found[1] - 16)) <= 3
        assert self.located(moved(codes(), 5), radius=5) == pytest.approx([25, 16], abs=1e-4), "a wider one has it"

    def test_ambiguous_tracking_a_like_place_is_taken_for_the_content(self):
        """Fig. 1(c): the content has come one cell further and changed a little; another place is more like it."""
        after = moved(codes(), 1)
        after[..., 16, 21] += 0.05
        assert self.located(after) == pytest.approx([21, 16], abs=1e-4)
        after[..., 18, 18] = codes()[..., 16, 20]
        assert self.located(after) == pytest.approx([18, 18], abs=1e-4)

    def test_what_is_tracked_is_the_original_not_the_last_look(self):
        """Content that changes by a little in each iteration is compared with what it was at first."""
        motion, original = TrackedMotion(), codes()
        view = view_of([(20, 16)], [(30, 16)], original)
        for k in range(1, 4):
            after = moved(original, k) + 0.1 * k
            at = motion.locate(replace(view, features=lambda after=after: after), motion.propose(view).destinations)
            view = replace(view, handles=at)
            assert cells(at)[0] == pytest.approx([20 + k, 16], abs=1e-4)

    def test_nothing_is_found_off_the_picture(self):
        """The edge's features go on beyond it, so that places there would be as good as those on it."""
        edge = codes()[..., :1].expand(1, 16, *GRID).contiguous()
        found = self.located(edge, handle=(0.0, 16.0), target=(5.0, 16.0))
        assert found[0] >= -0.5

    @pytest.mark.parametrize(("name", "value"), [("radius", 0), ("radius", 1.5), ("step", 0), ("step", math.inf)])
    def test_numbers_out_of_range_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"^`{name}` must be"):
            TrackedMotion(**{name: value})


class TestSearch:
    """On a feature map that grows by half a unit a cell to the right, the loss of a place is half its distance."""

    def ramp(self) -> torch.Tensor:
        return torch.arange(48.0).expand(1, 3, *GRID) / 2

    def sent(self, motion: LineSearchMotion, view: EditView) -> list[float]:
        return cells(motion.propose(view).destinations)[0]

    @pytest.mark.parametrize(("expected", "length"), [(1.0, 2.0), (0.5, 1.0), (2.0, 4.0), (99.0, 5.0), (0.01, 0.5)])
    def test_the_next_place_is_the_one_of_the_expected_loss(self, expected, length):
        motion, view = LineSearchMotion(expected, FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        assert self.sent(motion, view) == pytest.approx([20 + length, 16], abs=1e-4)

    def test_no_place_lies_beyond_the_target(self):
        motion, view = LineSearchMotion(99.0, FIVE_CELLS), view_of([(20, 16)], [(22, 17)], self.ramp())
        motion.start(view)
        assert self.sent(motion, view) == pytest.approx([22, 17], abs=1e-4)

    def after(self, motion: LineSearchMotion, view: EditView, lag: float) -> EditView:
        """The next view, where content is `lag` cells short of where the handle was sent."""
        proposed = motion.propose(view).destinations
        come = cells(proposed)[0][0] - cells(view.handles)[0][0] - lag
        features = self.ramp() - come / 2
        seen = replace(view, features=lambda: features)
        return replace(seen, handles=motion.locate(seen, proposed))

    def test_where_content_has_followed_the_search_goes_on(self):
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        assert self.sent(motion, self.after(motion, view, lag=0)) == pytest.approx([24, 16], abs=1e-4)

    def test_where_content_comes_nearer_it_is_waited_for(self):
        """Sent two cells, at a loss of 1, and come half a cell: the loss fell to 0.75, which is not under 0.5 yet."""
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        assert self.sent(motion, self.after(motion, view, lag=1.5)) == pytest.approx([22, 16], abs=1e-4)

    def test_where_content_does_not_come_nearer_the_search_goes_back(self):
        """Sent from 20 to 22, content stayed: back by five cells, and to the place of ten that is like the template.

        A template that saw a loss of 1 has taken on a share of what is at 22, that share of two cells further.
        """
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        view = self.after(motion, view, lag=2)
        share = float(template_share(torch.tensor(1.0), 1.0))
        assert share < 0.06
        back = motion.propose(view)
        assert cells(back.destinations)[0] == pytest.approx([20, 16], abs=1e-4)
        assert back.wrong_way.tolist() == [True]

    def test_what_is_pulled_is_the_template_which_takes_on_what_it_sees(self):
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        before = motion.propose(view).templates
        assert torch.equal(before, view.original_patches)
        proposed = motion.propose(view).destinations
        motion.locate(replace(view, features=lambda: self.ramp() - 0.6), proposed)  # at 22: 0.4 more than at 20
        templates = motion.propose(view).templates
        share = 1 / (1 + 9 ** ((0.4 - 0.2) / 0.6))
        torch.testing.assert_close(templates, before + 0.4 * share)

    def test_shares_are_those_of_the_paper_s_formula(self):
        losses = torch.tensor([0.2, 0.8, -0.4])
        torch.testing.assert_close(template_share(losses, 1.0), torch.tensor([0.5, 0.1, 0.9]))
        torch.testing.assert_close(template_share(3 * losses, 3.0), torch.tensor([0.5, 0.1, 0.9]))

    def test_an_edit_begins_anew(self):
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        motion.start(view)
        self.after(motion, view, lag=2)
        motion.start(view)
        assert self.sent(motion, view) == pytest.approx([22, 16], abs=1e-4)

    def test_a_like_place_far_off_the_line_misleads_nobody(self):
        """What tracking takes for the content in Fig. 1(c): a search asks the line alone."""
        motion, view = LineSearchMotion(longest_step=FIVE_CELLS), view_of([(20, 16)], [(40, 16)], self.ramp())
        after = self.ramp() - 1
        after[..., 18, 18] = self.ramp()[..., 16, 20]
        motion.start(view)
        proposed = motion.propose(view).destinations
        seen = replace(view, features=lambda: after)
        view = replace(seen, handles=motion.locate(seen, proposed))
        assert self.sent(motion, view) == pytest.approx([24, 16], abs=1e-4)

    @pytest.mark.parametrize(("name", "value"), [("expected_loss", 0), ("longest_step", -1), ("longest_step", "5")])
    def test_numbers_out_of_range_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"^`{name}` must be"):
            LineSearchMotion(**{name: value})


@pytest.mark.parametrize("name", ["track", "search"])
class TestInAnEdit:
    def test_they_are_chosen_by_name(self, name):
        assert choose_motion(name, None).name == name

    def test_they_take_the_call_at_no_pass_more_than_straight_steps(self, pipe, picture, quick, name):
        def passes(motion: str) -> int:
            count: list[None] = []
            hook = pipe.unet.register_forward_hook(lambda *_: count.append(None))
            output = pipe(picture, [(40, 30)], [(88, 30)], motion=motion, **quick)
            hook.remove()
            assert output.motion_source == motion
            assert len(output.iterations) == 3
            return len(count)

        passes("straight")  # the identity LoRA is fitted once
        assert passes(name) == passes("straight")

    def test_carried_all_the_way_at_once_it_is_not_asked_and_the_edit_says_so(
        self, pipe, picture, quick, name, caplog
    ):
        def edit(motion: str, carry: str) -> torch.Tensor:
            caplog.clear()
            output = pipe(picture, [(40, 30)], [(88, 30)], motion=motion, carry=carry, output_type="pt", **quick)
            return output.images

        straight = edit("straight", "once")
        assert "asks for no steps" not in caplog.text
        assert torch.equal(edit(name, "once"), straight)
        assert f"`motion` {name!r} says where handles go step by step" in caplog.text
        edit(name, "iteration")
        assert "asks for no steps" not in caplog.text

    def test_content_that_does_not_move_holds_the_tracked_handle_alone(self, pipe, picture, quick, name):
        """At a learning rate of next to nothing a handle is found where it was; a search looks for easier places."""
        output = pipe(picture, [(40, 30)], [(88, 30)], motion=name, supervision_lr=1e-9, **quick)
        stayed = torch.allclose(output.trajectories[-1], output.trajectories[0], atol=1e-3)
        assert stayed == (name == "track")


def test_supervision_pulls_the_templates_of_a_search(pipe, picture, quick):
    """With a template that stays what it was at first, a search is an edit by the patches of the unedited picture."""

    class Fixed(LineSearchMotion):
        def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
            return proposed

    class WithoutTemplates(Fixed):
        def propose(self, view: EditView):
            return replace(super().propose(view), templates=None)

    options = quick | {"output_type": "pt", "dynamic_selection": None}
    edits = [
        pipe(picture, [(40, 30)], [(88, 30)], motion=motion, source_patches=patches, **options).images
        for motion, patches in ((Fixed(), "iteration"), (WithoutTemplates(), "original"), (WithoutTemplates(), "step"))
    ]
    assert torch.equal(edits[0], edits[1])
    assert not torch.equal(edits[0], edits[2])


@pytest.mark.parametrize("module", [line_search, tracked])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
