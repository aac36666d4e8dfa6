"""Rigid and affine motions that fit handles."""

from __future__ import annotations

import math

import torch

from motion_predictor.linear_motion import fit_affine, fit_rigid, fit_similarity, linear_flow


def turned(points: torch.Tensor, angle: float, about: tuple[float, float]) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return (points - torch.tensor(about)) @ torch.tensor([[c, s], [-s, c]]) + torch.tensor(about)


def test_a_turn_about_a_point_is_found_everywhere():
    handles = torch.tensor([[[10.0, 20.0], [40.0, 25.0], [30.0, 50.0]]])
    flow = linear_flow(fit_rigid, handles, turned(handles, 0.3, (32.0, 16.0)), 64, 64)
    pixel = torch.tensor([50.0, 8.0])
    torch.testing.assert_close(flow[0, :, 8, 50], turned(pixel, 0.3, (32.0, 16.0)) - pixel, atol=1e-4, rtol=0)


def test_an_affine_motion_is_found_from_three_handles():
    handles = torch.tensor([[10.0, 20.0], [40.0, 25.0], [30.0, 50.0]])
    matrix, shift = fit_affine(handles, handles @ torch.tensor([[1.2, 0.1], [-0.3, 0.9]]).T + torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(matrix, torch.tensor([[1.2, 0.1], [-0.3, 0.9]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(shift, torch.tensor([3.0, 4.0]), atol=1e-3, rtol=0)


def test_a_turn_that_grows_is_a_similarity_and_leaves_the_rigid_one_its_turn():
    handles = torch.tensor([[10.0, 20.0], [40.0, 25.0], [30.0, 50.0], [12.0, 41.0]])
    targets = 1.3 * turned(handles, 0.3, (0.0, 0.0)) + torch.tensor([2.0, -1.0])
    matrix, shift = fit_similarity(handles, targets)
    torch.testing.assert_close(handles @ matrix.T + shift, targets, atol=1e-4, rtol=0)
    torch.testing.assert_close(matrix / 1.3, fit_rigid(handles, targets)[0], atol=1e-5, rtol=0)


def test_static_points_and_padding_do_not_hold_the_motion_back():
    handles = torch.tensor([[[10.0, 20.0], [40.0, 25.0], [5.0, 5.0]]])
    targets = handles + torch.tensor([[[4.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    flow = linear_flow(fit_rigid, handles, targets, 64, 64, valid=torch.tensor([[True, True, False]]))
    torch.testing.assert_close(flow, torch.tensor([4.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 64, 64))


def test_nothing_moves_outside_the_mask_or_without_a_handle_that_moves():
    handles = torch.tensor([[[10.0, 20.0]], [[10.0, 20.0]]])
    targets = handles + torch.tensor([[[4.0, 2.0]], [[0.0, 0.0]]])
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., :32] = 1
    flow = linear_flow(fit_rigid, handles, targets, 64, 64, mask=mask)
    assert flow[0, :, :, :32].abs().amin() >= 2
    assert not flow[0, :, :, 32:].any()
    assert not flow[1].any()
