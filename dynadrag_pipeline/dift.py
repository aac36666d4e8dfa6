"""DIFT: which place of one picture shows what a point of another shows, by the features of a diffusion model.

Diffusion features (Tang et al., 2023, arXiv 2306.03881): noise is added to both pictures, the network predicts it, and
what one of its up-blocks computes on the way tells what each place shows. Likeness is the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import nn

from .dense_flow import sampled_in_borders
from .unet_features import block_output

LARGEST_STRIP = 2**25  # feature values that are compared at once


@torch.no_grad()
def dift_features(
    unet: nn.Module,
    scheduler: DDIMScheduler | Any,
    latents: torch.Tensor,
    timestep: int,
    block: int,
    noises: int = 8,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Features of clean latents (or of pictures, for a UNet that works on those), the mean over several noises.

    All pictures get the same noises, which are drawn on the CPU from a generator of their own.

    Args:
        unet (`torch.nn.Module`): any UNet of diffusers with `up_blocks`.
        scheduler (`DDIMScheduler`): any scheduler with `add_noise`, with the noise schedule of the UNet.
        latents (`torch.Tensor` of shape `(batch, channels, h, w)`): z_0.
        timestep (`int`): t, how much noise is added; the paper takes 261 of 1000 for correspondences of parts.
        block (`int`): index into `unet.up_blocks`; the paper takes 1.
        noises (`int`, *optional*, defaults to 8): one UNet pass each, of all pictures together.
        seed (`int`, *optional*, defaults to 0): of the noises.
        conditions (`Mapping`, *optional*):
            keywords of the UNet, such as `encoder_hidden_states` `(1 or batch, tokens, width)`.

    Returns:
        `torch.Tensor` of shape `(batch, block channels, h', w')`: float32.

    Example:
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> dift_features(unet, DDIMScheduler(), torch.rand(1, 3, 8, 8), timestep=261, block=1, noises=1).shape
        torch.Size([1, 32, 8, 8])
    """
    count, dtype, up_blocks = len(latents), next(unet.parameters()).dtype, cast(nn.ModuleList, unet.up_blocks)
    said = {name: _for_each(value, count) for name, value in (conditions or {}).items()}
    generator = torch.Generator("cpu").manual_seed(seed)
    at = torch.tensor([timestep])
    total: torch.Tensor | None = None
    for _ in range(noises):
        noise = torch.randn(1, *latents.shape[1:], generator=generator).to(latents.device).expand_as(latents)
        noisy = scheduler.add_noise(latents.float(), noise, at)
        with block_output(up_blocks[block]) as outputs:
            unet(noisy.to(dtype), at.to(latents.device), **said)
        features = outputs[0].float()
        total = features if total is None else total + features
    assert total is not None, "`noises` is at least 1"
    return total / noises


@dataclass(frozen=True)
class Correspondences:
    """Where in a picture what was at each point is found.

    Attributes:
        places (`torch.Tensor` of shape `(points, 2)`): (x, y) in pixels.
        similarities (`torch.Tensor` of shape `(points,)`): cosine of the features there and at the point, in [-1, 1].
    """

    places: torch.Tensor
    similarities: torch.Tensor


def find_points(
    source: torch.Tensor,
    features: torch.Tensor,
    points: torch.Tensor,
    size: tuple[int, int],
    windows: torch.Tensor | None = None,
    spacing: float = 1.0,
    patch_radius: int = 0,
    patch_step: int = 1,
) -> Correspondences:
    """Look in the features of one picture for those at points of another: the arg max of the cosine.

    Both maps are sampled bilinearly, as if they were resized to the pictures, and repeat their edge beyond it. Places
    are whole steps away from the point that is looked for.

    Args:
        source (`torch.Tensor` of shape `(1, channels, h, w)`): features of the picture that has the points.
        features (`torch.Tensor`, same shape): features of the picture to search.
        points (`torch.Tensor` of shape `(points, 2)`): (x, y) in pixels of the pictures.
        size (`tuple[int, int]`): (height, width) of the pictures.
        windows (`torch.Tensor` of shape `(points, height, width)`, bool, *optional*):
            the pixels that come into question for each point; by default all.
        spacing (`float`, *optional*, defaults to 1.0): of the places that are looked at, in pixels.
        patch_radius (`int`, *optional*, defaults to 0):
            likeness is the mean of the cosines over a square of (2 radius + 1)^2 places; 0 compares the point alone.
        patch_step (`int`, *optional*, defaults to 1): between neighbours in that square, in steps of `spacing`.

    Returns:
        [`Correspondences`]. Where a window is empty, the answer is the point, with a similarity of -inf.

    Example:
        >>> source = torch.eye(3)[None, :, None, :]  # three places, each like itself alone
        >>> find_points(source, source.flip(-1), torch.tensor([[0.0, 0.0]]), (1, 3)).places
        tensor([[2., 0.]])
    """
    step, reach = max(1, patch_step), patch_radius * patch_step
    place = torch.zeros(1)  # a lattice of the point alone
    places, similarities = [], []
    for index, point in enumerate(points):
        window = torch.ones(size, dtype=torch.bool) if windows is None else windows[index].cpu()
        best, similarity = point, points.new_tensor(-torch.inf)
        columns, rows = (_steps_inside(window.any(dim=axis), float(point[axis]), spacing) for axis in (0, 1))
        wanted = _lattice(source, point, place, place, spacing, reach, size)[..., ::step, ::step]
        width = len(columns) + 2 * reach
        strip = max(1, LARGEST_STRIP // (features.shape[1] * max(1, width)) - 2 * reach)
        for part in rows.split(strip) if len(rows) else ():
            seen = _lattice(features, point, columns, part, spacing, reach, size)
            likeness = F.conv2d(seen, wanted, dilation=step)[0, 0] / (2 * patch_radius + 1) ** 2
            y, x = torch.meshgrid(part, columns, indexing="ij")
            looked_at = point + spacing * torch.stack([x, y], dim=-1).to(point)
            column, row = looked_at.round().long().cpu().unbind(dim=-1)
            likeness = likeness.masked_fill(~window[row, column].to(likeness.device), -torch.inf).flatten()
            highest = likeness.argmax()
            if likeness[highest] > similarity:
                best, similarity = looked_at.flatten(0, 1)[highest], likeness[highest]
        places.append(best)
        similarities.append(similarity)
    return Correspondences(torch.stack(places), torch.stack(similarities))


def _steps_inside(inside: torch.Tensor, origin: float, spacing: float) -> torch.Tensor:
    """Whole numbers of steps from an origin that lead to pixels between the first and the last that are inside."""
    pixels = inside.nonzero().flatten()
    if not len(pixels):
        return torch.zeros(0)
    first, last = int(pixels[0]), int(pixels[-1])
    return torch.arange(math.ceil((first - origin) / spacing), math.floor((last - origin) / spacing) + 1).float()


def _lattice(
    features: torch.Tensor,
    point: torch.Tensor,
    columns: torch.Tensor,
    rows: torch.Tensor,
    spacing: float,
    reach: int,
    size: tuple[int, int],
) -> torch.Tensor:
    """`(1, channels, rows + 2 reach, columns + 2 reach)`: a map some steps from a point, as vectors of length one."""
    more = torch.arange(1, reach + 1)
    x, y = (
        point[axis] + spacing * torch.cat([steps[:1] - more.flip(0), steps, steps[-1:] + more]).to(point)
        for axis, steps in ((0, columns), (1, rows))
    )
    grid_y, grid_x = torch.meshgrid((2 * y + 1) / size[0] - 1, (2 * x + 1) / size[1] - 1, indexing="ij")
    places = torch.stack([grid_x, grid_y], dim=-1)[None].to(features)
    return F.normalize(sampled_in_borders(features, places, "bilinear"), dim=1)


def _for_each(value: Any, count: int) -> Any:
    """A condition of one picture, for each of several."""
    if isinstance(value, Mapping):
        return {name: _for_each(entry, count) for name, entry in value.items()}
    return value.expand(count, *value.shape[1:]) if isinstance(value, torch.Tensor) and len(value) == 1 else value
