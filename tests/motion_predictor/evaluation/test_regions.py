"""Where maps are judged, against shapes that are drawn by hand."""

from __future__ import annotations

import torch

from motion_predictor.evaluation.regions import distance_to_handles, moving_region


def test_what_moves_a_fifth_of_the_longest_or_less_is_not_judged():
    motion = torch.zeros(2, 2, 128, 128)
    motion[0, 0, :, :64], motion[0, 0, :, 64:96] = -10.0, 1.9
    motion[1, 1, :32], motion[1, 1, 32:64] = 0.5, 0.11  # of another picture, with a longest of its own
    region = moving_region(motion)
    assert region[0].any(dim=0).tolist() == [True] * 64 + [False] * 64
    assert region[1].any(dim=1).tolist() == [True] * 64 + [False] * 64
    assert not moving_region(torch.zeros(1, 2, 16, 16)).any()


def test_motion_that_is_known_here_and_there_by_chance_is_neither_judged_nor_the_longest():
    motion = torch.full((1, 2, 128, 128), torch.nan)
    motion[:, :, 64:] = 3.0
    motion[:, :, 20:24, 40:44] = 50.0
    region = moving_region(motion)[0]
    assert not region[:64].any()
    assert region[80:].all()
    assert region[-1, -1]
    assert region[-1, 0]


def test_distances_are_those_of_the_nearest_handle_in_pixels_of_128():
    handles = torch.tensor([[[10.0, 20.0], [40.0, 20.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    distance = distance_to_handles(handles, valid, 64, 96)[0]
    assert distance[20, 10] == 0
    assert distance[20, 28] == 2 * 12
    assert distance[24, 7] == 2 * 5
    assert distance[0, 0] == 2 * (10**2 + 20**2) ** 0.5
