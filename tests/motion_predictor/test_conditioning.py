"""The maps that a motion predictor is given, against pictures drawn by hand."""

import doctest

import pytest
import torch

from motion_predictor import conditioning
from motion_predictor.conditioning import rasterize_points
from support.points import points


def test_the_examples_in_the_docstrings_run():
    results = doctest.testmod(conditioning)
    assert results.attempted > 0
    assert results.failed == 0


class TestRasterizePoints:
    def test_a_disc_of_radius_four_on_a_9x9_grid_is_the_one_drawn_by_hand(self):
        by_hand = """
            . . . . # . . . .
            . . # # # # # . .
            . # # # # # # # .
            . # # # # # # # .
            # # # # # # # # #
            . # # # # # # # .
            . # # # # # # # .
            . . # # # # # . .
            . . . . # . . . .
        """
        expected = torch.tensor([[float(cell == "#") for cell in row.split()] for row in by_hand.split("\n")[1:-1]])
        delta_map, heatmap = rasterize_points(points((4, 4)), points((7, 2)), 9, 9)
        assert torch.equal(heatmap[0, 0], expected)
        assert delta_map[0, :, 4, 4].tolist() == [-3.0, 2.0]
        assert delta_map.count_nonzero() == 2

    def test_a_disc_at_the_corner_is_cut_off_by_the_border(self):
        _, heatmap = rasterize_points(points((0, 0)), points((0, 0)), 3, 3, radius=1.5)
        assert heatmap[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]

    def test_discs_that_meet_are_one_region_of_ones(self):
        _, heatmap = rasterize_points(points((1, 0), (2, 0)), points((1, 0), (2, 0)), 1, 5, radius=1)
        assert heatmap.flatten().tolist() == [1, 1, 1, 1, 0]

    def test_deltas_on_one_pixel_are_averaged(self):
        delta_map, _ = rasterize_points(points((2.2, 2), (1.8, 2), (4, 4)), points((0.2, 2), (1.8, 6), (4, 3)), 5, 5)
        assert delta_map[0, :, 2, 2].tolist() == pytest.approx([1.0, -2.0])
        assert delta_map[0, :, 4, 4].tolist() == [0.0, 1.0]

    def test_where_painted_discs_overlap_the_nearest_handle_counts(self):
        delta_map, _ = rasterize_points(
            points((1, 0), (2, 0)), points((3, 0), (7, 0)), 1, 6, radius=2, delta_paint="disc"
        )
        assert delta_map[0, 0, 0].tolist() == [-2, -2, -5, -5, -5, 0]

    def test_painted_discs_are_averaged_half_way_between_their_handles(self):
        delta_map, _ = rasterize_points(
            points((1, 0), (3, 0)), points((3, 0), (7, 0)), 1, 6, radius=1, delta_paint="disc"
        )
        assert delta_map[0, 0, 0].tolist() == [-2, -2, -3, -4, -4, 0]

    def test_handles_are_rounded_to_the_nearest_pixel_and_halves_go_up(self):
        _, heatmap = rasterize_points(points((0.49, 0), (2.5, 0)), points((0, 0), (0, 0)), 1, 5, radius=0)
        assert heatmap.flatten().tolist() == [1, 0, 0, 1, 0]

    def test_the_delta_is_that_of_the_fractional_points(self):
        delta_map, _ = rasterize_points(points((1.25, 0)), points((1.75, 0)), 1, 3)
        assert delta_map[0, 0, 0].tolist() == [0, -0.5, 0]

    def test_the_other_convention_turns_the_sign_and_the_scale_multiplies(self):
        arguments = (points((1, 1)), points((2, 3)), 4, 4)
        paper, _ = rasterize_points(*arguments)
        other, _ = rasterize_points(*arguments, delta_convention="target_minus_handle", delta_scale=0.5)
        assert torch.equal(other, -0.5 * paper)

    def test_invalid_points_leave_no_trace_whatever_they_hold(self):
        handles = torch.tensor([[[1.0, 1.0], [float("nan"), 999.0]]])
        targets = torch.tensor([[[2.0, 1.0], [3.0, float("inf")]]])
        padded = rasterize_points(handles, targets, 4, 4, valid=torch.tensor([[True, False]]))
        alone = rasterize_points(handles[:, :1], targets[:, :1], 4, 4)
        assert all(torch.equal(left, right) for left, right in zip(padded, alone, strict=True))

    def test_pictures_of_a_batch_do_not_touch_each_other(self):
        handles, targets = torch.cat([points((1, 1)), points((2, 3))]), torch.cat([points((3, 1)), points((0, 0))])
        batch = rasterize_points(handles, targets, 4, 5)
        for index in range(2):
            single = rasterize_points(handles[index : index + 1], targets[index : index + 1], 4, 5)
            assert torch.equal(batch[0][index], single[0][0])
            assert torch.equal(batch[1][index], single[1][0])

    def test_mirroring_the_points_mirrors_the_maps(self):
        handles, targets = points((2, 3), (5, 1)), points((4, 4), (0, 2))
        mirror = torch.tensor([-1.0, 1.0])
        delta_map, heatmap = rasterize_points(handles, targets, 6, 8, delta_paint="disc", radius=2)
        offset = torch.tensor([7.0, 0.0])
        mirrored = rasterize_points(
            handles * mirror + offset, targets * mirror + offset, 6, 8, delta_paint="disc", radius=2
        )
        assert torch.equal(mirrored[0], delta_map.flip(-1) * mirror[:, None, None])
        assert torch.equal(mirrored[1], heatmap.flip(-1))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"handles": torch.zeros(3, 2)}, "`handles` must be of .*shape"),
            ({"targets": torch.zeros(1, 2, 2)}, "`targets` must be of .*shape"),
            ({"handles": points((9, 0))}, "`handles` must have .* got a point at"),
            ({"handles": points((float("nan"), 0))}, "`handles` must have .* got a point at"),
            ({"delta_paint": "square"}, "`delta_paint` must be .* got 'square'"),
            ({"delta_convention": "up"}, "`delta_convention` must be .* got 'up'"),
            ({"radius": -1.0}, "`radius` must be .* got -1.0"),
            ({"valid": torch.ones(1, 1)}, "`valid` must be of .*shape"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, change, message):
        arguments = {"handles": points((1, 1)), "targets": points((2, 2)), "height": 8, "width": 8} | change
        with pytest.raises(ValueError, match=message):
            rasterize_points(**arguments)
