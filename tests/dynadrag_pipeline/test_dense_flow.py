"""Dense flows: their inverse, their composition, their folds and their holes, against closed forms."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from dynadrag_pipeline import dense_flow
from dynadrag_pipeline.dense_flow import DenseFlow, area_ratio, filled, flow_size, folds, sampling_device, unfolded
from dynadrag_pipeline.motion import smooth
from dynadrag_pipeline.motion.smooth import corrected_flow, smooth_flow
from motion_predictor.points import sample_flow

SIDE = 64


def places(side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of each pixel, from the centre."""
    at = torch.arange(side) - (side - 1) / 2
    return torch.meshgrid(at, at, indexing="xy")


def translation(x: float, y: float, side: int = SIDE) -> torch.Tensor:
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, side, side)


def linear(matrix: list[list[float]]) -> torch.Tensor:
    """The flow of a linear map about the centre."""
    x, y = places()
    return torch.stack([(matrix[0][0] - 1) * x + matrix[0][1] * y, matrix[1][0] * x + (matrix[1][1] - 1) * y])[None]


def rotation(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return linear([[c, -s], [s, c]])


def bump(height: float, width: float = 10.0) -> torch.Tensor:
    x, y = places()
    hill = height * torch.exp(-(x**2 + y**2) / (2 * width**2))
    return torch.stack([hill, torch.zeros_like(hill)])[None]


def middle(values: torch.Tensor, border: int = 12) -> torch.Tensor:
    return values[..., border:-border, border:-border]


def swap(x: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two handles, each of which goes to where the other one is."""
    handles = torch.tensor([[32.0 - x, 32.0], [32.0 + x, 32.0]])
    return handles, handles.flip(0)


def read(flow: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return sample_flow(flow, points[None])[0]


def straight(handles: torch.Tensor, targets: torch.Tensor, **options: object) -> torch.Tensor:
    return smooth_flow(lambda share: handles.lerp(targets, share), (SIDE, SIDE), **options)


TRIANGLE = torch.tensor([[22.0, 22.0], [42.0, 22.0], [32.0, 44.0]])


def off(true: torch.Tensor, handles: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the smooth flow is from a true one whose ways handles go, at each pixel; and their longest way."""
    ways = read(true, handles)
    return (straight(handles, handles + ways, **options) - true).norm(dim=1)[0], ways.norm(dim=1).max()


def hull(points: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Bool, by pixel: what is no further than a margin from the convex hull of points."""
    at = torch.arange(float(SIDE))
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
    angles = torch.arange(360) * math.pi / 180
    directions = torch.stack([angles.cos(), angles.sin()])
    return (grid @ directions - (points @ directions).amax(dim=0)).amax(dim=-1) <= margin + 1e-3


def test_examples_in_the_docstrings():
    assert doctest.testmod(dense_flow).failed == 0


class TestBothWays:
    def test_nothing_moves_in_a_flow_of_noughts(self):
        flow = DenseFlow.of(torch.zeros(1, 2, SIDE, SIDE))
        assert not flow.backward.any()
        assert flow.covered.all()
        assert not flow.occluded.any()

    @pytest.mark.parametrize("way", [(3.0, 0.0), (-2.5, 4.25)])
    def test_a_translation_comes_from_as_far_away(self, way):
        backward = DenseFlow.of(translation(*way)).backward
        torch.testing.assert_close(middle(backward), middle(translation(-way[0], -way[1])))

    def test_a_rotation_is_undone_by_one_the_other_way(self):
        torch.testing.assert_close(
            middle(DenseFlow.of(rotation(15)).backward), middle(rotation(-15)), atol=1e-3, rtol=0
        )

    def test_a_stretch_is_undone_by_its_inverse(self):
        backward = DenseFlow.of(linear([[1.5, 0], [0, 0.75]])).backward
        torch.testing.assert_close(middle(backward), middle(linear([[1 / 1.5, 0], [0, 1 / 0.75]])), atol=1e-3, rtol=0)

    def test_there_and_back_through_a_bump_is_where_it_began(self):
        flow = DenseFlow.of(bump(8))
        back = flow.then(DenseFlow(flow.backward, flow.forward, flow.covered))
        assert middle(back.forward).abs().max() < 0.1
        assert flow.covered.all()

    def test_content_that_leaves_the_picture_is_occluded_and_what_it_leaves_is_uncovered(self):
        flow = DenseFlow.of(translation(5, 0))
        assert flow.covered[0, 0, 20].tolist() == [0.0] * 5 + [1.0] * (SIDE - 5)
        assert flow.occluded[0, 0, 20].tolist() == [0.0] * (SIDE - 5) + [1.0] * 5

    def test_a_tear_leaves_a_hole_as_wide_as_it_is(self):
        torn = translation(0, 0).clone()
        torn[:, 0, :, SIDE // 2 :] = 10.0
        covered = DenseFlow.of(torn).covered[0, 0, 20]
        hole = (covered == 0).nonzero().flatten()
        assert hole.numel() == pytest.approx(10, abs=1)
        assert hole.float().mean() == pytest.approx(SIDE / 2 + 4.5, abs=1)


class TestComposition:
    def test_translations_add(self):
        both = DenseFlow.of(translation(3, 1)).then(DenseFlow.of(translation(-1, 2.5)))
        torch.testing.assert_close(middle(both.forward), middle(translation(2, 3.5)))
        torch.testing.assert_close(middle(both.backward), middle(translation(-2, -3.5)))

    def test_rotations_add(self):
        both = DenseFlow.of(rotation(10)).then(DenseFlow.of(rotation(12)))
        torch.testing.assert_close(middle(both.forward, 16), middle(rotation(22), 16), atol=0.02, rtol=0)
        torch.testing.assert_close(middle(both.backward, 16), middle(rotation(-22), 16), atol=0.02, rtol=0)

    def test_what_was_uncovered_moves_on_as_a_hole(self):
        both = DenseFlow.of(translation(4, 0)).then(DenseFlow.of(translation(6, 0)))
        assert both.covered[0, 0, 20].tolist() == [0.0] * 10 + [1.0] * (SIDE - 10)


class TestFolds:
    def test_areas_are_those_of_the_jacobian(self):
        torch.testing.assert_close(area_ratio(linear([[1.5, 0.2], [0, 0.5]])), torch.full((1, 1, SIDE, SIDE), 0.75))

    def test_a_reflection_folds_everywhere_and_a_rotation_nowhere(self):
        assert folds(linear([[-1, 0], [0, 1]])).all()
        assert not folds(rotation(80)).any()

    def test_a_steep_bump_folds_in_front_of_it_alone(self):
        folded = folds(bump(20, 5))
        x, _ = places()
        assert folded.any()
        assert (x[folded[0, 0]] > -0.5).all()

    def test_what_folds_is_relaxed_and_what_does_not_stays_to_the_bit(self):
        smooth = bump(4)
        assert torch.equal(unfolded(smooth), smooth)
        relaxed = unfolded(bump(20, 5))
        assert not folds(relaxed).any()
        assert relaxed.max() > 4
        torch.testing.assert_close(relaxed[..., 0], bump(20, 5)[..., 0])  # far from the fold

    def test_a_reflection_is_relaxed_to_something_without_folds(self):
        assert not folds(unfolded(linear([[-1, 0], [0, 1]]))).any()


class TestFilling:
    def test_unknown_places_get_what_is_near(self):
        values = torch.arange(16.0).expand(1, 1, 16, 16)
        known = torch.ones(1, 1, 16, 16)
        known[..., 6:10] = 0
        result = filled(values, known)
        assert torch.equal(result[..., :6], values[..., :6])
        assert (result[0, 0, 8, 6:10].diff() >= 0).all()
        assert result[0, 0, 8, 6] < 7.5 < result[0, 0, 8, 9]

    def test_where_nothing_is_known_nothing_changes(self):
        values = torch.randn(1, 2, 8, 8)
        assert torch.equal(filled(values, torch.zeros(1, 1, 8, 8)), values)


class TestSmoothFlow:
    def test_one_point_goes_to_its_target_and_the_border_stays(self):
        handle, target = torch.tensor([[30.0, 34.0]]), torch.tensor([[38.0, 31.0]])
        flow = straight(handle, target)
        torch.testing.assert_close(read(flow, handle), target - handle, atol=0.1, rtol=0)
        assert max(flow[..., 0].abs().max(), flow[..., -1, :].abs().max()) < 0.5
        assert not folds(flow).any()

    def test_points_on_a_line_go_to_their_targets(self):
        handles = torch.tensor([[16.0, 32.0], [28.0, 32.0], [44.0, 32.0]])
        targets = handles + torch.tensor([[0.0, 4.0], [0.0, -4.0], [0.0, 4.0]])
        torch.testing.assert_close(read(straight(handles, targets), handles), targets - handles, atol=0.15, rtol=0)

    def test_a_point_at_the_border_may_leave_it(self):
        handle, target = torch.tensor([[1.0, 32.0]]), torch.tensor([[12.0, 32.0]])
        flow = straight(handle, target)
        assert not folds(flow).any()
        torch.testing.assert_close(read(flow, handle), target - handle, atol=1.0, rtol=0)

    def test_nothing_moves_far_outside_the_mask(self):
        mask = torch.zeros(1, 1, SIDE, SIDE)
        mask[..., 16:48, 16:48] = 1
        handle, target = torch.tensor([[30.0, 30.0]]), torch.tensor([[36.0, 30.0]])
        flow = straight(handle, target, mask=mask)
        outside = flow.norm(dim=1)[0][mask[0, 0] == 0]
        assert outside.max() < 0.6
        torch.testing.assert_close(read(flow, handle), target - handle, atol=0.1, rtol=0)

    def test_a_point_that_is_pressed_against_the_mask_s_border_folds_nothing(self):
        mask = torch.zeros(1, 1, SIDE, SIDE)
        mask[..., 12:52, 12:52] = 1
        handle, target = torch.tensor([[32.0, 32.0]]), torch.tensor([[48.0, 32.0]])
        flow = unfolded(straight(handle, target, mask=mask))
        assert not folds(flow).any()
        torch.testing.assert_close(read(flow, handle), target - handle, atol=1.0, rtol=0)
        assert flow.norm(dim=1)[0][mask[0, 0] == 0].max() < 1.0

    def test_handles_that_pass_each_other_do_not_fold_what_is_between(self):
        handles = torch.tensor([[22.0, 28.0], [42.0, 36.0]])
        targets = torch.tensor([[42.0, 28.0], [22.0, 36.0]])
        flow = straight(handles, targets)
        assert not folds(flow).any()
        torch.testing.assert_close(read(flow, handles), targets - handles, atol=1.5, rtol=0)

    def test_handles_that_swap_places_are_detected_and_relaxed(self):
        flow = straight(*swap(8.0))
        assert folds(flow).any()
        assert not folds(unfolded(flow)).any()

    @pytest.mark.parametrize("degrees", [-40, 10, 20])
    def test_what_lies_between_points_that_turn_together_turns_with_them_to_a_hundredth(self, degrees):
        error, way = off(rotation(degrees), TRIANGLE)
        assert error[hull(TRIANGLE)].max() < 0.01 * way

    def test_so_does_what_lies_round_them_and_under_a_mask(self):
        error, way = off(rotation(20), TRIANGLE)
        assert error[hull(TRIANGLE, margin=4)].max() < 0.05 * way
        x, y = places()
        oval = ((x / 28) ** 2 + (y / 30) ** 2 < 1).float()[None, None]
        error, way = off(rotation(20), TRIANGLE, mask=oval)
        assert error[hull(TRIANGLE)].mean() < 0.01 * way

    def test_between_four_points_a_stretch_is_one(self):
        square = torch.tensor([[22.0, 20.0], [42.0, 22.0], [44.0, 44.0], [20.0, 42.0]])
        error, way = off(linear([[1.4, 0.2], [0.0, 0.8]]), square)
        assert error[hull(square)].max() < 0.02 * way

    def test_three_points_on_a_line_that_turn_together_turn_what_is_between(self):
        line = torch.tensor([[16.0, 32.0], [30.0, 32.0], [46.0, 32.0]])
        error, way = off(rotation(25), line)
        assert error[hull(line)].max() < 0.01 * way

    def test_a_pin_and_a_handle_agree_on_nothing(self):
        """Two points fit a turn whatever they do: what surrounds the pin would swing about it."""
        handles, down = torch.tensor([[20.0, 32.0], [44.0, 32.0]]), torch.tensor([[0.0, 0.0], [0.0, 10.0]])
        beyond_the_pin = torch.tensor([[13.0, 32.0]])
        both = torch.tensor([[0.0, -8.0], [0.0, 10.0]])
        assert read(straight(handles, handles + down), beyond_the_pin)[0, 1] > -1
        assert read(straight(handles, handles + both), beyond_the_pin)[0, 1] < -8, "these turn about their middle"

    def test_points_that_do_not_agree_make_nothing_stiff(self):
        """An open mouth: the lower lip goes, the eyes stay, and so does what lies between these."""
        handles = torch.tensor([[24.0, 20.0], [40.0, 20.0], [32.0, 44.0]])
        targets = handles + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 8.0]])
        flow = straight(handles, targets)
        torch.testing.assert_close(read(flow, handles), targets - handles, atol=0.15, rtol=0)
        assert read(flow, torch.tensor([[32.0, 20.0]])).norm() < 1.0

    def test_points_that_turn_so_far_that_they_cross_make_nothing_stiff(self):
        flow = straight(TRIANGLE, TRIANGLE + read(rotation(150), TRIANGLE))
        assert not folds(unfolded(flow)).any()
        assert unfolded(flow).abs().max() > 4

    def test_points_that_go_together_against_the_border_fold_nothing(self):
        handles = torch.tensor([[44.0, 22.0], [54.0, 32.0], [44.0, 42.0]])
        flow = straight(handles, handles + torch.tensor([8.0, 0.0]))
        assert not folds(unfolded(flow)).any()
        torch.testing.assert_close(read(flow, handles), torch.tensor([[8.0, 0.0]]).expand(3, 2), atol=0.5, rtol=0)

    @pytest.mark.parametrize("seed", range(12))
    def test_whatever_points_do_the_relaxed_flow_has_no_folds(self, seed):
        """One to five of them, anywhere, with or without a mask: some cross, some lie at the border."""
        generator = torch.Generator().manual_seed(seed)
        handles = 1 + 62 * torch.rand(1 + seed % 5, 2, generator=generator)
        targets = (handles + 12 * torch.randn(handles.shape, generator=generator)).clamp(0, SIDE - 1)
        x, y = places()
        mask = ((x**2 + y**2).sqrt() < 26).float()[None, None] if seed % 2 else None
        flow = unfolded(straight(handles, targets, mask=mask))
        assert torch.isfinite(flow).all()
        assert not folds(flow).any()

    def test_the_cost_of_a_way_is_bounded_however_many_corners_it_has(self, monkeypatch):
        parts = []
        spline = smooth.spline_flow
        monkeypatch.setattr(
            smooth, "spline_flow", lambda *args, **options: parts.append(1) or spline(*args, **options)
        )
        monkeypatch.setattr(smooth, "folds", torch.ones_like)
        straight(*swap(8.0), least_parts=300)
        assert len(parts) == 16

    def test_a_large_motion_has_no_folds(self):
        handle, target = torch.tensor([[24.0, 32.0]]), torch.tensor([[40.0, 32.0]])
        flow = straight(handle, target)
        assert not folds(flow).any()
        torch.testing.assert_close(read(flow, handle), target - handle, atol=0.5, rtol=0)

    def test_a_flow_from_elsewhere_is_corrected_at_the_handles_alone(self):
        said = translation(2, 0)
        handles, targets = torch.tensor([[32.0, 32.0]]), torch.tensor([[36.0, 33.0]])
        flow = corrected_flow(said, handles, targets, (SIDE, SIDE))
        torch.testing.assert_close(read(flow, handles), targets - handles, atol=0.1, rtol=0)
        torch.testing.assert_close(flow[..., 0, :], said[..., 0, :], atol=0.3, rtol=0)
        assert torch.equal(corrected_flow(said, handles, handles + torch.tensor([2.0, 0.0]), (SIDE, SIDE)), said)


def test_large_pictures_have_flows_of_128_pixels():
    assert flow_size((512, 768)) == (128, 192)
    assert flow_size((96, 64)) == (96, 64)


@pytest.mark.parametrize(("device", "expected"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_maps_are_sampled_where_torch_can_do_it(device, expected):
    assert sampling_device(torch.device(device)) == torch.device(expected)
