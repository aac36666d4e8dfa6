"""What the network sees: T_k of Sec. 3.2.1 (DynaDrag, arXiv 2601.00542), and what an option adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .conditioning import rasterize_points
from .linear_motion import fit_rigid, linear_flow

PAPERS_CHANNELS = 6  # RGB, delta map and heatmap
SHORTEST_UNIT = 1 / 128  # of the short side: shorter displacements are taken for so long
UNIT_OF_LOGARITHM = 0.1  # of the short side


def input_channels(takes_mask: bool, flow_unit: str, takes_rigid: bool = False) -> int:
    """How many channels the network sees.

    Args:
        takes_mask (`bool`): whether the mask is one of them.
        flow_unit (`str`): `"displacement"` brings one that says how long the unit is.
        takes_rigid (`bool`, *optional*, defaults to `False`): whether it sees the rigid motion of the handles, in two.

    Returns:
        `int`: 6 to 10.

    Example:
        >>> input_channels(takes_mask=False, flow_unit="pixel")
        6
    """
    return PAPERS_CHANNELS + 2 * takes_rigid + takes_mask + (flow_unit == "displacement")


def network_input(
    config: Mapping[str, Any],
    image: torch.Tensor,
    handles: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The channels that the network sees, and among them the heatmap. Training and inference draw them here alone.

    Args:
        config (`Mapping[str, Any]`): of a [`MotionPredictorModel`], which says how points are drawn.
        image (`torch.Tensor` of shape `(batch, 3, height, width)`): RGB in [0, 1].
        handles (`torch.Tensor` of shape `(batch, points, 2)`): in pixels of `image`, inside it.
        targets (`torch.Tensor` of shape `(batch, points, 2)`): in pixels of `image`.
        valid (`torch.Tensor` of shape `(batch, points)`, *optional*): bool, False for padding.
        mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): 1 where the picture may change; None
            and an empty one: everywhere. A network that takes no mask is not shown it.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the channels `(batch, channels, height, width)` and the heatmap
        `(batch, 1, height, width)`.
    """
    height, width = image.shape[-2:]
    mask = _what_may_change(mask) if config["takes_mask"] and mask is not None else None
    delta_map, heatmap = rasterize_points(
        handles,
        targets,
        height,
        width,
        radius=config["heatmap_radius"],
        delta_paint=config["delta_paint"],
        delta_convention=config["delta_convention"],
        delta_scale=config["delta_scale"],
        valid=valid,
        mask=mask,
    )
    delta_map, heatmap = delta_map.to(image.device), heatmap.to(image.device)
    unit = heatmap.new_ones(len(image), 1, 1, 1)
    if config["flow_unit"] == "displacement":
        unit = _displacement_unit(handles, targets, valid, min(height, width)).to(image.device)
    channels = [image, delta_map / unit, heatmap]
    if config["takes_rigid"]:
        rigid = linear_flow(fit_rigid, handles, targets, height, width, mask=mask, valid=valid)
        channels.append(rigid.to(image.device) / unit)
    if config["takes_mask"]:
        channels.append(torch.ones_like(heatmap) if mask is None else mask.to(heatmap))
    if config["flow_unit"] == "displacement":
        channels.append((unit / (UNIT_OF_LOGARITHM * min(height, width))).log().expand_as(heatmap))
    return torch.cat(channels, dim=1), heatmap


def _what_may_change(mask: torch.Tensor) -> torch.Tensor:
    """Masks `(batch, 1, height, width)`; an empty one means that everything may change."""
    return torch.where((mask > 0.5).any(dim=(1, 2, 3), keepdim=True), mask, torch.ones_like(mask))


def unit_of_flow(config: Mapping[str, Any], sample: torch.Tensor) -> torch.Tensor:
    """How long the unit of a network's deltas and flow is, read from its input.

    Args:
        config (`Mapping[str, Any]`): of a [`MotionPredictorModel`].
        sample (`torch.Tensor` of shape `(batch, channels, height, width)`): as [`network_input`] puts it together.

    Returns:
        `torch.Tensor` of shape `(batch, 1, 1, 1)`: in pixels; 1 for a network that answers in pixels.
    """
    if config["flow_unit"] == "pixel":
        return sample.new_ones(len(sample), 1, 1, 1)
    return sample[:, -1:, :1, :1].exp() * (UNIT_OF_LOGARITHM * min(sample.shape[-2:]))


def _displacement_unit(
    handles: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None, side: int
) -> torch.Tensor:
    """Root mean square of the displacements, `(batch, 1, 1, 1)`, in pixels."""
    squared = (targets.float() - handles.float()).square().sum(dim=-1)
    counted = torch.ones_like(squared) if valid is None else valid.to(squared)
    mean = (squared * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return mean.sqrt().clamp(min=SHORTEST_UNIT * side)[:, None, None, None]
