"""Points and their steps, against closed forms written out by hand."""

import doctest

import pytest
import torch

import motion_predictor.points
from motion_predictor.points import (
    ZERO_STEP,
    guard_step,
    is_wrong_way,
    move_handles,
    sample_flow,
    scale_points,
    straight_step,
)
from support.points import points


def test_the_examples_in_the_docstrings_run():
    results = doctest.testmod(motion_predictor.points)
    assert results.attempted >= 6
    assert results.failed == 0


class TestScalePoints:
    def test_the_edges_of_the_picture_stay_its_edges_on_any_grid(self):
        edges = torch.tensor([[-0.5, -0.5], [511.5, 255.5]])
        scaled = scale_points(edges, (256, 512), (37, 91))
        torch.testing.assert_close(scaled, torch.tensor([[-0.5, -0.5], [90.5, 36.5]]))

    def test_the_centre_of_a_block_of_pixels_is_the_centre_of_the_pixel_that_replaces_it(self):
        assert scale_points(torch.tensor([1.5, 5.5]), (8, 8), (2, 2)).tolist() == [0.0, 1.0]

    def test_there_and_back_again_is_the_identity(self):
        original = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 500
        there = scale_points(original, (512, 640), (128, 160))
        torch.testing.assert_close(scale_points(there, (128, 160), (512, 640)), original, rtol=0, atol=1e-4)

    def test_x_goes_with_the_width_and_y_with_the_height(self):
        assert scale_points(torch.tensor([1.0, 1.0]), (10, 10), (10, 20)).tolist() == [2.5, 1.0]

    def test_half_precision_and_integer_points_come_back_in_float32(self):
        assert scale_points(torch.tensor([[3, 4]]), (8, 8), (16, 16)).dtype == torch.float32

    @pytest.mark.parametrize("size", [(0, 8), (8, -1)])
    def test_a_size_that_is_not_positive_is_refused(self, size):
        with pytest.raises(ValueError, match="`to_size`"):
            scale_points(torch.zeros(1, 2), (8, 8), size)

    def test_points_that_are_not_pairs_are_refused(self):
        with pytest.raises(ValueError, match=r"`points` must be of .*shape"):
            scale_points(torch.zeros(2, 3), (8, 8), (8, 8))


class TestSampleFlow:
    def test_a_linear_flow_is_read_exactly_between_the_pixels(self):
        y, x = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
        flow = torch.stack([0.5 * x - 0.25 * y + 3, -2 * x + y])[None]
        at = points((0, 0), (3.25, 1.5), (7.875, 4.125), (8, 5))
        expected = torch.stack([0.5 * at[..., 0] - 0.25 * at[..., 1] + 3, -2 * at[..., 0] + at[..., 1]], dim=-1)
        torch.testing.assert_close(sample_flow(flow, at), expected, rtol=0, atol=1e-5)

    def test_beyond_the_border_the_value_of_the_border_holds(self):
        flow = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(1, 2, 1, 1)
        sampled = sample_flow(flow, points((-5, -5), (50, 50), (-0.4, 1)))
        assert sampled[0, :, 0].tolist() == [0.0, 5.0, 3.0]

    def test_a_single_pixel_is_flow_enough(self):
        assert sample_flow(torch.full((1, 2, 1, 1), 7.0), points((0.3, -0.2))).tolist() == [[[7.0, 7.0]]]

    def test_a_half_precision_flow_is_read_in_float32(self):
        flow = torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]], dtype=torch.bfloat16)
        sampled = sample_flow(flow, points((0.3, 0)))
        assert sampled.dtype == torch.float32
        assert sampled[0, 0, 0].item() == pytest.approx(0.3)

    def test_the_gradient_reaches_the_four_pixels_round_the_point(self):
        flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
        sample_flow(flow, points((1.25, 2.5)))[..., 0].sum().backward()
        assert flow.grad[0, 0, 2:4, 1:3].flatten().tolist() == [0.375, 0.125, 0.375, 0.125]
        assert flow.grad.sum().item() == 1

    @pytest.mark.parametrize(
        ("flow", "at", "message"),
        [
            (torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2), "`flow` must be of .*shape"),
            (torch.zeros(2, 2, 4, 4), torch.zeros(1, 1, 2), "`points` must be of .*shape"),
            (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2), "`points` must be of .*shape"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, flow, at, message):
        with pytest.raises(ValueError, match=message):
            sample_flow(flow, at)


class TestSteps:
    def test_straight_steps_arrive_in_the_iterations_that_remain(self):
        handles, targets = points((1, 2), (30, 7)), points((11, -3), (5, 7))
        for remaining in range(25, 0, -1):
            handles = handles + straight_step(handles, targets, remaining)
        torch.testing.assert_close(handles, targets, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("remaining", [1, 0, -3])
    def test_with_no_iterations_left_the_straight_step_is_the_whole_displacement(self, remaining):
        assert straight_step(points((1, 1)), points((4, 5)), remaining).tolist() == [[[3, 4]]]

    def test_only_steps_with_a_backward_component_are_wrong_way(self):
        handles, targets = torch.zeros(5, 2), torch.tensor([[3.0, 4.0]] * 4 + [[0.0, 0.0]])
        step = torch.tensor([[1.0, 0.0], [-4.0, 3.0], [-4.0, 2.9], [0.0, 0.0], [1.0, 1.0]])
        assert is_wrong_way(step, handles, targets).tolist() == [False, False, True, False, False]

    def test_handles_move_by_the_step_and_stop_at_the_border(self):
        moved = move_handles(points((5, 5), (1, 1), (18, 8)), points((0.25, -0.5), (-3, -3), (7, 7)), (10, 20))
        assert moved.tolist() == [[[5.25, 4.5], [0, 0], [19, 9]]]

    def test_an_image_without_pixels_is_refused(self):
        with pytest.raises(ValueError, match="`image_size`"):
            move_handles(points((0, 0)), points((0, 0)), (0, 4))


class TestGuardStep:
    HANDLES = torch.zeros(7, 2)
    TARGETS = torch.tensor([[4.0, 0.0]] * 6 + [[0.0, 0.0]])
    STRAIGHT = torch.tensor([[0.5, 0.0]] * 6 + [[0.0, 0.0]])
    #                     on the way, passes,    lands,      wrong way,    backwards,    zero,        arrived
    STEP = torch.tensor([[1.0, 2.0], [9.0, 3.0], [4.0, 1.0], [-2.0, 1.5], [-2.0, 0.0], [0.0, 0.0], [2.0, 1.0]])

    @pytest.mark.parametrize(
        ("guard", "expected"),
        [
            ("none", [[1, 2], [9, 3], [4, 1], [-2, 1.5], [-2, 0], [0, 0], [2, 1]]),
            ("clamp", [[1, 2], [4, 0], [4, 0], [-2, 1.5], [-2, 0], [0, 0], [0, 0]]),
            ("project", [[1, 2], [4, 0], [4, 0], [0, 1.5], [0.5, 0], [0.5, 0], [0, 0]]),
        ],
    )
    def test_each_guard_does_what_its_table_says(self, guard, expected):
        guarded = guard_step(self.STEP, self.HANDLES, self.TARGETS, self.STRAIGHT, guard)
        assert guarded.tolist() == expected

    def test_after_projection_no_step_is_wrong_way_or_zero_in_any_direction(self):
        generator = torch.Generator().manual_seed(0)
        handles, targets, noise = torch.randn(3, 500, 2, generator=generator) * 20
        straight = straight_step(handles, targets, 25)
        step = torch.cat([noise[:250], handles[250:] - targets[250:]])  # the latter are all backwards
        guarded = guard_step(step, handles, targets, straight, "project")
        displacement = targets - handles
        assert ((guarded * displacement).sum(-1) >= -1e-3).all()
        assert (guarded.norm(dim=-1) >= ZERO_STEP).all()
        assert torch.equal(guarded[250:], straight[250:])

    def test_a_step_onto_a_target_that_is_nearly_reached_lands_and_is_not_replaced(self):
        displacement = torch.tensor([[ZERO_STEP / 4, 0.0]])
        guarded = guard_step(displacement * 2, torch.zeros(1, 2), displacement, displacement / 10, "project")
        assert torch.equal(guarded, displacement)

    @pytest.mark.parametrize("guard", ["none", "clamp", "project"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_step_that_is_not_finite_is_refused_under_every_guard(self, guard, value):
        step = self.STEP.clone()
        step[2, 1] = value
        with pytest.raises(ValueError, match=r"`step` must be finite, got others at \[\[2\]\]"):
            guard_step(step, self.HANDLES, self.TARGETS, self.STRAIGHT, guard)

    def test_an_unknown_guard_is_refused(self):
        with pytest.raises(ValueError, match=r"`guard` must be .* got 'off'"):
            guard_step(self.STEP, self.HANDLES, self.TARGETS, self.STRAIGHT, "off")

    def test_shapes_that_differ_are_refused(self):
        with pytest.raises(ValueError, match=r"`straight` must be of .*shape"):
            guard_step(self.STEP, self.HANDLES, self.TARGETS, self.STRAIGHT[:3], "none")
