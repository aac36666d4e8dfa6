"""Sources of motion: what they propose, what they are shown, and pins, which none of them moves."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from swing import CHIN, SwingMotion

from dynadrag_pipeline.dense_flow import resize_shift
from dynadrag_pipeline.drag_instruction import DragInstruction
from dynadrag_pipeline.motion import choice, path, source
from dynadrag_pipeline.motion.choice import choose_motion
from dynadrag_pipeline.motion.path import PathMotion
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.source import BaseMotionSource, EditView, Motion, MotionSource, guarded_motion
from dynadrag_pipeline.motion.straight import SettlingMotion, StraightMotion
from motion_predictor import MotionPredictorOutput
from motion_predictor.points import sample_flow
from support.tiny_models import make_motion_predictor

SIZE = (64, 96)


def view_of(handles: list, targets: list, remaining: int = 4, guard: str = "project", **changes: object) -> EditView:
    points = torch.tensor(handles, dtype=torch.float32)
    view = EditView(
        handles=points,
        targets=torch.tensor(targets, dtype=torch.float32),
        moving=torch.ones(len(points), dtype=torch.bool),
        size=SIZE,
        input_size=SIZE,
        image=torch.zeros(1, 3, *SIZE),
        k=0,
        remaining=remaining,
        guard=guard,
        features=lambda: torch.zeros(1, 2, 32, 48),
        original_patches=torch.zeros(len(points), 2, 3, 3),
    )
    return replace(view, **changes)


def walk(motion: MotionSource, handles: list, targets: list, iterations: int, **changes: object) -> torch.Tensor:
    """`[iterations + 1, points, 2]`: where a source sends handles."""
    view = view_of(handles, targets, iterations, **changes)
    motion.start(view)
    places = [view.handles]
    for remaining in range(iterations, 0, -1):
        proposed = motion.propose(replace(view, handles=places[-1], remaining=remaining))
        places.append(motion.locate(view, proposed.destinations))
    return torch.stack(places)


class TestStraight:
    def test_steps_are_equal_and_arrive(self):
        places = walk(StraightMotion(), [(10, 10), (60, 40)], [(30, 20), (20, 40)], 4)
        torch.testing.assert_close(places[1:] - places[:-1], torch.tensor([[5.0, 2.5], [-10.0, 0.0]]).expand(4, 2, 2))

    def test_settling_stands_on_the_targets(self):
        motion = SettlingMotion().propose(view_of([(10, 10)], [(11, 10)], remaining=2))
        assert motion.destinations.tolist() == [[11, 10]]
        assert not motion.wrong_way.any()


class TestPredicted:
    def test_steps_are_the_flow_at_the_handles(self):
        flow = torch.zeros(1, 2, *SIZE)
        flow[0, 0, :, 50:], flow[0, 1, :, 50:] = 2.0, 1.0
        asked = []

        def predict_flow(image, handles, targets):
            asked.append((handles.tolist(), targets.tolist()))
            return flow

        moving = torch.tensor([True, False, True])
        view = view_of([(10, 10), (20, 20), (60, 40)], [(30, 10), (20, 20), (90, 60)], guard="none", moving=moving)
        motion = PredictedMotion(SimpleNamespace(predict_flow=predict_flow)).propose(view)
        assert motion.predicted_step.tolist() == [[0, 0], [0, 0], [2, 1]]
        assert motion.destinations.tolist() == [[10, 10], [20, 20], [62, 41]]
        assert asked == [([[10, 10], [60, 40]], [[30, 10], [90, 60]])], "of handles that move alone"
        assert motion.flow is flow

    def test_wrong_ways_are_told_whatever_the_guard_makes_of_them(self):
        step = torch.tensor([[-3.0, 1.0]])
        for guard, expected in (("none", [7.0, 11.0]), ("project", [10.0, 11.0])):
            motion = guarded_motion(view_of([(10, 10)], [(30, 10)], guard=guard), step)
            assert motion.wrong_way.tolist() == [True]
            assert motion.destinations[0].tolist() == pytest.approx(expected, abs=1e-5)


class TestPath:
    def test_a_handle_follows_its_polyline_in_steps_of_equal_length(self):
        """From (10, 10) over (30, 10) to (30, 30): 40 px in four steps."""
        places = walk(PathMotion([[(30, 10)]]), [(10, 10)], [(30, 30)], 4)
        assert places[:, 0].tolist() == [[10, 10], [20, 10], [30, 10], [30, 20], [30, 30]]

    def test_paths_that_lead_away_at_first_are_nobody_s_fault(self):
        view = view_of([(30, 30)], [(40, 30)], remaining=3)
        motion = PathMotion([[(10, 30)]])
        motion.start(view)
        proposed = motion.propose(view)
        assert proposed.destinations[0, 0] < 30
        assert not proposed.wrong_way.any()

    def test_none_is_straight_and_paths_are_in_pixels_of_the_input(self):
        places = walk(
            PathMotion([None, [(121, 21)]]), [(10, 10), (60, 10)], [(20, 10), (60, 31)], 2, input_size=(128, 192)
        )
        assert places[1, 0].tolist() == [15, 10]
        corner = torch.tensor([60.25, 10.25])  # of (121, 21) at half the size
        assert (places[:, 1] - corner).norm(dim=-1).min() < 11

    def test_an_edit_begins_each_path_anew(self):
        motion = PathMotion([[(30, 10)]])
        first, again = (walk(motion, [(10, 10)], [(30, 30)], 4) for _ in range(2))
        assert torch.equal(first, again)

    def test_a_closed_path_comes_back(self):
        places = walk(PathMotion([[(50, 10), (50, 50)]]), [(10, 10)], [(10, 11)], 30)
        assert places[..., 0].max() > 45
        torch.testing.assert_close(places[-1], torch.tensor([[10.0, 11.0]]))

    @pytest.mark.parametrize(
        ("paths", "message"),
        [
            ([[(1, 2)]], "a path for each of the 2 pairs, got 1"),
            ([None, [(200, 3)]], r"must stay inside the picture.* the path of pair 1 has \(200, 3\)"),
            ([None, [(1, 2)], None], "a path for each of the 2 pairs, got 3"),
            ([[(1, 2)], None], "must be None for pair 0, whose handle is its target"),
        ],
    )
    def test_paths_that_do_not_fit_are_named_before_any_work(self, paths, message):
        instruction = DragInstruction.from_user([(5, 5), (9, 9)], [(5, 5), (20, 20)], None, SIZE)
        with pytest.raises(ValueError, match=message):
            PathMotion(paths).check(instruction)

    @pytest.mark.parametrize("paths", [[], [[(1, 2, 3)]], [["here"]], [[(float("nan"), 2)]], {"a": 1}, [5]])
    def test_what_is_no_path_is_named(self, paths):
        with pytest.raises(ValueError, match=r"^`motion` "):
            PathMotion(paths)


class TestDenseFlow:
    """Where everything else goes, asked for once for all of the way."""

    OFF_THE_PICTURE = -0.375  # column 0 of four times the picture, which a destination can't be outside of

    def at(self, flow: torch.Tensor, point: tuple[float, float]) -> torch.Tensor:
        return sample_flow(resize_shift(flow, SIZE), torch.tensor([[point]]))[0, 0]

    def test_a_target_on_the_outermost_pixel_of_a_larger_picture_is_all_of_the_way(self):
        view = view_of([(20, 30)], [(self.OFF_THE_PICTURE, 30)])
        sent = view.targets.clamp(min=0)
        whole = PredictedMotion(WholePredictor()).dense_flow(view, sent)
        assert self.at(whole, (80, 60))[1] == pytest.approx(8, abs=1), "the map of the whole way, far from the handle"
        on_the_way = PredictedMotion(WholePredictor()).dense_flow(view, sent + torch.tensor([5.0, 0.0]))
        assert self.at(on_the_way, (80, 60))[1] == pytest.approx(1, abs=1)

    def test_a_path_to_it_is_gone_along_and_so_is_one_beside_a_handle_that_is_held(self):
        view = view_of([(20, 20), (70, 50)], [(self.OFF_THE_PICTURE, 20), (80, 50)])
        motion = PathMotion([[(20, 50), (0, 50)], None])
        motion.start(view)
        held = torch.stack([view.targets[0].clamp(min=0), view.handles[1]])
        beside_the_path = (20, 30)
        along = self.at(motion.dense_flow(view, held), beside_the_path)
        straight = self.at(BaseMotionSource().dense_flow(view, held), beside_the_path)
        assert along[1] > 2 * straight[1].abs(), "downwards first"
        assert self.at(motion.dense_flow(view, held), (70, 50)).norm() < 0.5

    @pytest.mark.parametrize("motion", [BaseMotionSource(), PathMotion([None, None])], ids=["smooth", "paths"])
    def test_a_handle_that_was_given_up_holds_nothing(self, motion):
        view = view_of([(40, 30), (46, 30)], [(52, 30), (60, 30)], moving=torch.tensor([True, False]))
        motion.start(view)
        alone = view_of([(40, 30)], [(52, 30)])
        flow = motion.dense_flow(view, torch.stack([view.targets[0], view.handles[1]]))
        assert torch.equal(flow, BaseMotionSource().dense_flow(alone, alone.targets))

    def test_nor_does_it_in_a_predictors_map(self):
        view = view_of([(40, 30), (46, 30)], [(52, 38), (60, 30)], moving=torch.tensor([True, False]))
        flow = PredictedMotion(WholePredictor()).dense_flow(view, torch.stack([view.targets[0], view.handles[1]]))
        assert self.at(flow, (46, 30))[1] == pytest.approx(8, abs=0.1)


class TestChoice:
    def test_by_default_it_is_predicted_where_there_is_a_predictor(self):
        assert choose_motion(None, None).name == "straight"
        assert choose_motion(None, make_motion_predictor()).name == "predicted"
        assert choose_motion("straight", make_motion_predictor()).name == "straight"
        assert choose_motion([None, [(1, 2)]], None).name == "path"

    @pytest.mark.parametrize("motion", ["predicted", "curved", 5, {"a": 1}, torch.zeros(2)])
    def test_what_it_can_not_be_is_named(self, motion):
        with pytest.raises(ValueError, match="`motion` must be"):
            choose_motion(motion, None)

    def test_the_example_swings_each_handle_round_the_chin_to_its_target(self):
        chin = torch.tensor(CHIN)
        start = chin + torch.tensor([[0.0, -50.0], [0.0, -20.0]])
        end = chin + torch.tensor([[50.0, 0.0], [10.0, 0.0]])
        places = walk(choose_motion(SwingMotion(), None), start.tolist(), end.tolist(), 5)
        torch.testing.assert_close(places[-1], end)
        distances = (places[1:] - chin).norm(dim=-1)
        torch.testing.assert_close(distances[:, 0], torch.full((5,), 50.0))
        torch.testing.assert_close(distances[:, 1], torch.tensor([18.0, 16.0, 14.0, 12.0, 10.0]))


HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (20, 50)]


class Tracking(BaseMotionSource):
    """Sends handles straight, and finds that they have come half as far; counts what it is shown."""

    name = "tracking"

    def __init__(self, needs_picture: bool = False) -> None:
        self.needs_picture = needs_picture
        self.seen: list[torch.Tensor] = []
        self.features: list[torch.Tensor] = []

    def propose(self, view: EditView) -> Motion:
        self.seen.append(view.image)
        self.features.append(view.features())
        return guarded_motion(view, view.straight_step)

    def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
        self.features.append(view.features())
        return (view.handles + proposed) / 2


class TestInAnEdit:
    def test_a_source_says_where_handles_are_after_supervision(self, pipe, picture, quick):
        output = pipe(picture, [(40, 30)], [(52, 30)], motion=Tracking(), **quick)
        assert output.motion_source == "tracking"
        places = output.trajectories[:, 0, 0]
        torch.testing.assert_close(places, torch.tensor([40.0, 42.0, 44.5, 48.25]), rtol=0, atol=1e-3)
        assert output.stop_reason == "max_iterations"

    def test_features_before_and_after_supervision_cost_no_pass_of_their_own(self, pipe, picture, quick):
        def passes(motion: MotionSource) -> int:
            count: list[None] = []
            hook = pipe.unet.register_forward_hook(lambda *_: count.append(None))
            pipe(picture, [(40, 30)], [(52, 30)], motion=motion, **quick)
            hook.remove()
            return len(count)

        passes(StraightMotion())  # the identity LoRA is fitted once
        tracking = Tracking()
        assert passes(tracking) == passes(StraightMotion())
        assert not torch.equal(tracking.features[0], tracking.features[1]), "the latent has moved between"
        assert torch.equal(tracking.features[1], tracking.features[2])

    @pytest.mark.parametrize("needs_picture", [True, False])
    def test_pictures_are_made_for_sources_that_need_them(self, pipe, picture, quick, needs_picture):
        tracking = Tracking(needs_picture)
        pipe(picture, [(40, 30)], [(52, 30)], motion=tracking, **quick)
        assert torch.equal(tracking.seen[1], tracking.seen[0]) == (not needs_picture)

    @pytest.mark.parametrize("falls_back", [0, 1, 2])
    def test_no_iteration_sees_a_stale_picture_because_a_handle_was_thought_to_have_arrived(
        self, pipe, picture, quick, falls_back
    ):
        """A handle that is sent to its target, and found not to be there yet, needs the picture of that iteration."""

        class Falling(Tracking):
            def propose(self, view: EditView) -> Motion:
                return replace(super().propose(view), destinations=view.targets)

            def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
                return (view.handles + proposed) / 2 if view.k < falls_back else proposed

        falling = Falling(needs_picture=True)
        output = pipe(picture, [(40, 30)], [(70, 30)], motion=falling, settle_iterations=1, **quick)
        assert output.stop_reason == "reached"
        assert len(falling.seen) == falls_back + 1
        assert all(not torch.equal(one, other) for one, other in zip(falling.seen, falling.seen[1:], strict=False))

    @pytest.mark.parametrize("where", ["propose", "locate"])
    def test_an_answer_that_is_not_finite_ends_the_edit_with_what_is_good(self, pipe, picture, quick, where):
        class Lost(Tracking):
            def propose(self, view: EditView) -> Motion:
                motion = super().propose(view)
                lost = where == "propose" and view.k == 1
                return replace(motion, destinations=motion.destinations * math.nan) if lost else motion

            def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
                return proposed * (math.nan if where == "locate" and view.k == 1 else 1)

        output = pipe(picture, [(40, 30)], [(52, 30)], motion=Lost(), **quick)
        assert output.stop_reason == "diverged"
        assert len(output.iterations) == 1
        assert torch.isfinite(output.trajectories).all()

    def test_answers_outside_are_moved_onto_the_picture(self, pipe, picture, quick):
        class Far(Tracking):
            def locate(self, view: EditView, proposed: torch.Tensor) -> torch.Tensor:
                return proposed + 1e30

        output = pipe(picture, [(40, 30)], [(52, 30)], motion=Far(), **(quick | {"max_iterations": 1}))
        assert (output.trajectories >= 0).all()
        assert (output.trajectories < 1000).all()

    def test_the_latent_is_free_along_a_drawn_path(self, pipe, picture, quick):
        reach = {"supervision_reach": 0.1, "identity_lora_steps": 0, "source_patches": "original"}
        session = pipe.open_session(picture, **(quick | reach))
        height, width = session.noise.shape[-2:]

        def changes(motion: Any) -> torch.Tensor:
            *_, last = session.drag([(20, 50)], [(60, 50)], motion=motion)
            change = (last.noise - session.noise).abs().amax(dim=(0, 1))
            return change[: height // 4, width // 4 : width * 3 // 4]  # the upper edge, where only the path leads

        assert changes(None).max() < 1e-6
        assert changes([[(40, 5)]]).max() > 1e-3

    def test_paths_go_through_the_call(self, pipe, picture, quick):
        output = pipe(picture, [(20, 30)], [(60, 30)], motion=[[(40, 10)]], **(quick | {"max_iterations": 2}))
        torch.testing.assert_close(output.trajectories[1, 0], torch.tensor([40.0, 10.0]), rtol=0, atol=1e-3)
        assert output.motion_source == "path"
        assert sum(record.wrong_way_count for record in output.iterations) == 0


class TestPins:
    def test_a_pin_is_supervised_in_every_iteration_and_stays(self, pipe, picture, quick):
        output = pipe(picture, HANDLES, TARGETS, similarity_threshold=-1.0, **quick)
        assert all(record.valid.tolist() == [True, True] for record in output.iterations)
        assert torch.equal(output.trajectories[:, 1], torch.tensor([[20.0, 50.0]]).expand(4, 2))
        assert output.stop_reason == "reached"

    def test_a_pin_is_never_in_the_maps(self, pipe, picture, quick):
        asked = []

        def predict_flow(image, handles, targets):
            asked.append(len(handles))
            return torch.ones(1, 2, *image.shape[-2:])

        pipe.motion_predictor = SimpleNamespace(predict_flow=predict_flow)
        pipe(picture, HANDLES, TARGETS, **quick)
        assert set(asked) == {1}

    def test_a_pin_holds_what_was_there_at_first(self, pipe, picture, quick):
        """Beside a handle that is dragged close by, content at the pin changes less than without the pin."""
        options = quick | {
            "max_iterations": 3,
            "supervision_steps": 8,
            "supervision_lr": 0.05,
            "supervision_radius": 2,
        }

        def moved(handles: list, targets: list) -> float:
            session = pipe.open_session(picture, **options)
            list(session.drag(handles, targets, dynamic_selection=None))
            with torch.no_grad(), session.working(), session.carrying_lora():
                engine = session.engine()
                before, after = (
                    engine.features(state.noise, session.size)[1][0, :, 16:24, 4:12]
                    for state in (session.original, session.state)
                )
            return (after - before).abs().mean().item()

        free = moved([(26, 50)], [(50, 50)])
        pinned = moved([(26, 50), (20, 50)], [(50, 50), (20, 50)])
        assert pinned < 0.95 * free

    def test_pins_alone_are_no_edit(self, pipe, picture, quick):
        output = pipe(picture, HANDLES, HANDLES, **quick)
        assert output.iterations == []
        assert output.stop_reason == "reached"


@pytest.mark.parametrize("module", [choice, path, source])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0


class SurePredictor:
    """A predictor that takes masks: a flow of (2, 0) everywhere, wrong by so much at the left and at the right."""

    takes_mask = True

    def __init__(self, left: float, right: float) -> None:
        self.deviations = left, right

    def predict(self, image, handles, targets, mask=None):
        self.seen = handles, targets, mask
        deviation = torch.full((1, 1, *SIZE), self.deviations[0])
        deviation[..., SIZE[1] // 2 :] = self.deviations[1]
        flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, *SIZE)
        return MotionPredictorOutput(flow=flow, deviation=deviation)


class WholePredictor:
    """Everything goes down, by a pixel in a step, and by eight all the way."""

    takes_mask = True
    horizons = ("step", "total")

    def predict(self, image, handles, targets, mask=None):
        flow = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, *SIZE)
        return MotionPredictorOutput(flow=flow, total_flow=8 * flow)


class TestDensePredictors:
    def test_a_predictor_that_takes_masks_is_told_what_may_change_and_which_points_stay(self):
        predictor, mask = SurePredictor(1.0, 1.0), torch.ones(1, 1, *SIZE)
        view = view_of([(10, 10), (60, 40)], [(30, 20), (60, 40)], moving=torch.tensor([True, False]), mask=mask)
        motion = PredictedMotion(predictor).propose(view)
        handles, targets, seen = predictor.seen
        assert handles.tolist() == [[10, 10], [60, 40]]
        assert targets.tolist() == [[30, 20], [60, 40]]
        assert seen is mask
        assert motion.destinations.tolist() == [[12, 10], [60, 40]]

    def test_the_expected_error_of_each_step_is_told(self):
        view = view_of([(10, 10), (60, 40)], [(30, 10), (80, 40)])
        motion = PredictedMotion(SurePredictor(0.25, 3.0)).propose(view)
        assert motion.deviation.tolist() == [0.5, 6.0]

    def test_a_step_that_is_too_unsure_gives_way_to_a_straight_one(self):
        view = view_of([(10, 10), (60, 40)], [(30, 10), (80, 40)], remaining=4, largest_deviation=1.0)
        motion = PredictedMotion(SurePredictor(0.25, 3.0)).propose(view)
        assert motion.destinations.tolist() == [[12, 10], [65, 40]]
        assert motion.predicted_step.tolist() == [[2, 0], [2, 0]], "the record keeps the prediction as it was"
        followed = PredictedMotion(SurePredictor(0.25, 3.0)).propose(replace(view, largest_deviation=None))
        assert followed.destinations.tolist() == [[12, 10], [62, 40]]
