"""Rollouts of a motion predictor: the whole path of handles in steps of Eq. 4, without a diffusion model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import grid_sample

from ..data.samples import MotionSample
from ..points import guard_step, move_handles, sample_flow, straight_step
from .predictor import FlowPredictor, Predictor
from .regions import pixel_grid

ROLLOUT_STEPS = 25  # iterations of an edit, at most (Sec. 4.2)


@torch.no_grad()
def roll_out(predict_flow: FlowPredictor, batch: MotionSample, *, guard: str, warped: bool) -> torch.Tensor:
    """Move handles by what is predicted at them, `h <- h + flow(h)`, for the 25 iterations of an edit.

    An edit would show the predictor a new picture in each iteration. Here it is either the first one all the time, or
    the first one as the predicted flows have moved it: `I_{k+1}(x) = I_k(x - f_k(x))`. That stands in for the edited
    picture, and costs no diffusion. The guard acts on the handles, not on the picture. No handle stops at its target.

    Args:
        predict_flow (`FlowPredictor`): such as `MotionPredictorModel.predict_flow`.
        batch (`MotionSample`): samples with a leading dimension.
        guard (`str`): one of `choices.MOTION_GUARDS`.
        warped (`bool`): whether the picture moves.

    Returns:
        `torch.Tensor` of shape `(batch, 26, points, 2)`: float32, where the handles are before the first and after
        each step, in pixels.
    """
    path = [handles for handles, _ in _steps(predict_flow, batch, guard, warped)]
    return torch.stack([batch.handles, *path], dim=1)


@torch.no_grad()
def roll_out_map(predict_flow: FlowPredictor, batch: MotionSample) -> tuple[torch.Tensor, torch.Tensor]:
    """Move everything by what is predicted, for the 25 iterations of an edit: handles, and the content of each pixel.

    The flows are put together: the content of a pixel goes on by the flow at the place where it has come to. The
    picture is warped, and there is no guard: what the predictor itself does.

    Args:
        predict_flow (`FlowPredictor`): such as `MotionPredictorModel.predict_flow`.
        batch (`MotionSample`): samples with a leading dimension.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: where the handles are, as of [`roll_out`]; and how far the content of each
        pixel has gone, `[B, 2, H, W]`, both in pixels.
    """
    height, width = batch.image.shape[2:]
    start = pixel_grid(height, width, batch.image.device).view(1, -1, 2).expand(len(batch.image), -1, -1)
    places, path = start, [batch.handles]
    for handles, flow in _steps(predict_flow, batch, guard="none", warped=True):
        places = places + sample_flow(flow, places)
        path.append(handles)
    motion = (places - start).view(-1, height, width, 2).permute(0, 3, 1, 2)
    return torch.stack(path, dim=1), motion


def _steps(
    predict_flow: FlowPredictor, batch: MotionSample, guard: str, warped: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Where the handles are after each step, and the flow that was predicted for it."""
    predictor = Predictor.of(predict_flow)
    size = (batch.image.shape[2], batch.image.shape[3])
    handles, image = batch.handles, batch.image
    flow_so_far = torch.zeros_like(batch.image[:, :2])
    for iteration in range(ROLLOUT_STEPS):
        flow = predictor(image, handles, batch.targets, batch.valid, batch.mask)
        straight = straight_step(handles, batch.targets, ROLLOUT_STEPS - iteration)
        step = guard_step(sample_flow(flow, handles), handles, batch.targets, straight, guard)
        handles = move_handles(handles, step, size)
        yield handles, flow
        if warped:
            flow_so_far = flow + warp(flow_so_far, flow)
            # From the first picture, not from the last: a picture that is sampled 25 times over is a blur.
            image = warp(batch.image, flow_so_far).clamp(0, 1)


def warp(values: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Move a picture by a flow that ends on its pixels, `out(x) = values(x - flow(x))`; its edges are prolonged.

    Args:
        values (`torch.Tensor` of shape `(batch, channels, height, width)`): a picture, or maps.
        flow (`torch.Tensor` of shape `(batch, 2, height, width)`): in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: the same, moved.

    Example:
        >>> row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> warp(row, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4))
        tensor([[[[1., 1., 2., 3.]]]])
    """
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) - flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] - flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return grid_sample(values, grid, padding_mode="border", align_corners=False)
