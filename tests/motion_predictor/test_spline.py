"""The spline comes where it is told to, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from motion_predictor.points import sample_flow
from motion_predictor.spline import spline_flow


def pairs(*numbers: tuple[float, float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.tensor(numbers, dtype=torch.float32)
    return points[None, :, :2], points[None, :, 2:]


def square_mask(side: int = 64, low: int = 16, high: int = 48) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., low:high, low:high] = 1
    return mask


@pytest.mark.parametrize(
    "numbers",
    [
        [(32, 32, 40, 30)],
        [(24, 24, 28, 24), (32, 32, 36, 32), (40, 40, 44, 40)],
        [(28, 32, 36, 32), (36, 32, 28, 32)],
        [(30, 20, 34, 24), (40, 41, 40, 41)],
    ],
    ids=["one point", "points on a line", "points that cross", "a static point"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_each_handle_goes_to_its_target(numbers: list[tuple[float, float, float, float]], masked: bool):
    handles, targets = pairs(*numbers)
    flow = spline_flow(handles, targets, 64, 64, mask=square_mask() if masked else None)
    torch.testing.assert_close(sample_flow(flow, handles), targets - handles, atol=0.35, rtol=0)


def test_what_the_mask_leaves_out_stays():
    handles, targets = pairs((32, 32, 40, 30))
    mask = square_mask()
    flow = spline_flow(handles, targets, 64, 64, mask=mask)
    length = flow.norm(dim=1)
    assert length[:, :12].max() < 0.3
    assert length[(mask[:, 0] < 0.5)].mean() < 0.05


def test_an_empty_mask_means_that_everything_may_change():
    handles, targets = pairs((32, 32, 40, 30))
    torch.testing.assert_close(
        spline_flow(handles, targets, 64, 64, mask=torch.zeros(1, 1, 64, 64)), spline_flow(handles, targets, 64, 64)
    )


def test_two_handles_in_one_place_go_half_way_each():
    handles, targets = pairs((32, 32, 36, 32), (32, 32, 32, 32))
    flow = spline_flow(handles, targets, 64, 64)
    torch.testing.assert_close(sample_flow(flow, handles[:, :1])[0, 0], torch.tensor([2.0, 0.0]), atol=0.2, rtol=0)


def test_the_picture_may_be_of_any_size():
    handles, targets = pairs((32, 32, 40, 30))
    small = spline_flow(handles, targets, 64, 64, resolution=64)
    large = spline_flow(2 * handles + 0.5, 2 * targets + 0.5, 128, 128, resolution=64)
    torch.testing.assert_close(large[..., ::2, ::2] / 2, small, atol=0.4, rtol=0)
    handle, target = torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[3.0, 1.0]]])
    assert spline_flow(handle, target, 3, 200).shape == (1, 2, 3, 200)


def test_a_sample_of_a_batch_is_as_by_itself():
    handles, targets = pairs((32, 32, 40, 30), (20, 20, 22, 20))
    alone = spline_flow(handles[:, :1], targets[:, :1], 64, 64, mask=square_mask())
    together = spline_flow(
        handles.expand(2, -1, -1),
        targets.expand(2, -1, -1),
        64,
        64,
        mask=square_mask().expand(2, -1, -1, -1),
        valid=torch.tensor([[True, False], [False, False]]),
    )
    torch.testing.assert_close(together[:1], alone)
    assert not together[1].any()


def test_a_mask_of_another_size_is_refused():
    handles, targets = pairs((32, 32, 40, 30))
    with pytest.raises(ValueError, match=r"`mask` must be of shape \(1, 1, 64, 64\)"):
        spline_flow(handles, targets, 64, 64, mask=torch.ones(1, 1, 32, 32))
