"""What a motion predictor is trained by: the error of its whole map (DynaDrag, arXiv 2601.00542, Eq. 1)."""

from __future__ import annotations

import torch

from .data.samples import MotionSample
from .modeling_motion_predictor import MotionPredictorOutput
from .training_config import LossSettings

SHORTEST_HANDLE_STEP = 0.1  # pixels: shorter steps of a handle do not make an error weigh more
SHORTEST_ERROR = 0.01  # pixels: the length of shorter errors is smoothed
CHARBONNIER = 0.1  # errors count squared below this, and by their length above
LEAST_MOVING = 0.2  # of the longest motion: what moves less is background


def motion_loss(
    output: MotionPredictorOutput, batch: MotionSample, heatmap: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Mean squared error of the flow where its label is known (Eq. 1), or what `settings` make of it.

    Args:
        output (`MotionPredictorOutput`): of the network, in pixels.
        batch (`MotionSample`): with labels `[B, 2, H, W]`, NaN where they are not known.
        heatmap (`torch.Tensor` of shape `(batch, 1, height, width)`): 1 on the discs of handles.
        settings (`LossSettings`): of the loss.

    Returns:
        `torch.Tensor`: a scalar, in squared pixels, pixels if the `error` is a length, without unit if `relative`.
    """
    way = _root_mean_square(batch)
    tenth = (way / 10).clamp(min=SHORTEST_HANDLE_STEP)
    answers = [(settings.step_weight, output.flow, output.deviation, batch.label, tenth)]
    if output.total_flow is not None:
        way = way.clamp(min=10 * SHORTEST_HANDLE_STEP)
        answers.append((settings.total_weight, output.total_flow, output.total_deviation, batch.total, way))
    loss = output.flow.new_zeros(())
    for share, flow, deviation, label, scale in answers:
        if share == 0:
            continue
        known = torch.isfinite(label).all(dim=1, keepdim=True)  # [B, 1, H, W]
        difference = (flow.float() - label).masked_fill(~known, 0.0)
        weight = (1 + settings.handle_weight * heatmap + settings.moving_weight * _moving(label)) * known
        loss = loss + share * _weighted_mean(_error(difference, scale, settings), weight)
        if deviation is not None:
            fit = settings.likelihood_weight * _weighted_mean(_surprise(difference, deviation, scale), weight)
            loss = loss + fit
    return loss


def _error(difference: torch.Tensor, scale: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """What a difference `[B, 2, H, W]` costs, `[B, 1, H, W]`; `scale` `[B]` is the displacement, in pixels."""
    scale = scale[:, None, None, None] if settings.relative else torch.ones((), device=difference.device)
    # Half the squared length is the mean over u and v, as of a plain mean squared error.
    error = difference.square().sum(dim=1, keepdim=True) / (2 * scale.square())
    if settings.error == "squared":
        return error
    return (error + (SHORTEST_ERROR / scale if settings.error == "length" else CHARBONNIER) ** 2).sqrt()


def _surprise(difference: torch.Tensor, deviation: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Negative logarithm of the likelihood of errors under a Laplace distribution in the plane, `[B, 1, H, W]`.

    Its gradient goes to the deviation alone: a network may not call itself unsure to be let off its errors.
    """
    length = torch.linalg.vector_norm(difference.detach(), dim=1, keepdim=True)
    relative = deviation.float() / scale[:, None, None, None]
    return length / deviation.float() + 2 * relative.log()


def _weighted_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of each sample `[B, 1, H, W]`, and the mean over samples."""
    per_sample = (weight * values).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1)
    return per_sample.mean()


def _moving(label: torch.Tensor) -> torch.Tensor:
    """Where a label `[B, 2, H, W]` is longer than a fifth of its longest, `[B, 1, H, W]`."""
    length = torch.linalg.vector_norm(torch.nan_to_num(label), dim=1, keepdim=True)
    longest = length.amax(dim=(2, 3), keepdim=True)
    return (length > LEAST_MOVING * longest) & (longest > 0)


def _root_mean_square(batch: MotionSample) -> torch.Tensor:
    """Of the displacements of handles, `[B]`, in pixels."""
    squared = (batch.targets - batch.handles).square().sum(dim=-1) * batch.valid  # [B, N]
    mean = squared.sum(dim=1) / batch.valid.sum(dim=1).clamp(min=1)
    return mean.sqrt()
