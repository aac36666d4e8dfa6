"""Maps that know the handles only, against motions that they have to find again."""

from __future__ import annotations

import math

import pytest
import torch

from motion_predictor.data.samples import MAX_HANDLES, MotionSample
from motion_predictor.evaluation.references import fit_affine, fit_rigid, reference_maps

HANDLES = torch.tensor([[20.0, 10.0], [40.0, 30.0], [12.0, 44.0], [50.0, 12.0]])
SHIFT = torch.tensor([3.0, -2.0])
TURN = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
GROWTH = 1.2 * TURN
SHEAR = torch.tensor([[1.1, 0.3], [-0.2, 0.9]])


def assert_found(fit, motion: torch.Tensor, handles: torch.Tensor) -> None:
    matrix, shift = fit(handles, handles @ motion.T + SHIFT)
    torch.testing.assert_close(matrix, motion, atol=1e-4, rtol=0)
    torch.testing.assert_close(shift, SHIFT, atol=5e-3, rtol=0)


def test_a_turn_is_found_from_two_handles_or_more():
    for count in (2, 3, 4):
        assert_found(fit_rigid, TURN, HANDLES[:count])


def test_growth_is_found_from_two_handles_and_is_not_rigid():
    assert_found(fit_affine, GROWTH, HANDLES[:2])
    matrix, _ = fit_rigid(HANDLES, HANDLES @ GROWTH.T)
    torch.testing.assert_close(matrix, TURN, atol=1e-5, rtol=0)


def test_a_shear_is_found_from_three_handles_that_span_the_plane():
    for count in (3, 4):
        assert_found(fit_affine, SHEAR, HANDLES[:count])


@pytest.mark.parametrize("fit", [fit_rigid, fit_affine])
def test_one_handle_or_several_in_one_place_shift(fit):
    assert_found(fit, torch.eye(2), HANDLES[:1])
    assert_found(fit, torch.eye(2), HANDLES[:1].expand(3, 2))


def test_handles_nearly_on_a_line_say_nothing_of_what_is_beside_it():
    """One of three handles is a pixel off the line, and its target two more: no reason to stretch all threefold."""
    handles = torch.tensor([[0.0, 0.0], [20.0, 1.0], [40.0, 0.0]])
    matrix, _ = fit_affine(handles, handles + torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    assert (matrix - torch.eye(2)).abs().max() < 0.1


def make_batch(handles: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> MotionSample:
    count, size = len(handles), mask.shape[-2:]
    padded = torch.zeros(1, MAX_HANDLES, 2)
    here, there = padded.clone(), padded.clone()
    here[0, :count], there[0, :count] = handles, targets
    return MotionSample(
        image=torch.zeros(1, 3, *size),
        handles=here,
        targets=there,
        valid=(torch.arange(MAX_HANDLES) < count)[None],
        steps=padded,
        label=torch.zeros(1, 2, *size),
        frames=torch.tensor([20]),
        total=torch.zeros(1, 2, *size),
        mask=mask[None, None].float(),
    )


def test_motions_are_those_of_the_handles_inside_the_mask_and_none_outside():
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[8:40, 8:56] = True
    maps = reference_maps(make_batch(HANDLES, HANDLES @ SHEAR.T + SHIFT, mask))
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    places = torch.stack([x, y], dim=-1)
    expected = (places @ SHEAR.T + SHIFT - places).permute(2, 0, 1)
    torch.testing.assert_close(maps["affine"][0], torch.where(mask, expected, 0.0), atol=1e-2, rtol=0)
    assert not maps["rigid"][0][:, ~mask].any()
    spline = maps["spline"][0].norm(dim=0)
    assert spline[~mask].mean() < 0.1 * spline[mask].mean()
    x0, y0 = HANDLES[1].long().tolist()
    torch.testing.assert_close(maps["spline"][0, :, y0, x0], expected[:, y0, x0], atol=0.3, rtol=0)
