"""The feature map F(z_t) of a UNet's block, and the grid that points are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .repeatable import resize_bilinear


@contextmanager
def block_output(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Context that yields a list, to which each pass through a block adds its output, with its graph.

    Example:
        >>> block = nn.Linear(2, 3)
        >>> with block_output(block) as outputs:
        ...     _ = block(torch.ones(1, 2))
        >>> outputs[0].shape
        torch.Size([1, 3])
    """
    outputs: list[torch.Tensor] = []
    hook = block.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield outputs
    finally:
        hook.remove()


def supervision_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the grid that points are compared on: half the picture's, as in DragDiffusion.

    Example:
        >>> supervision_grid((512, 384))
        (256, 192)
    """
    return max(1, image_size[0] // 2), max(1, image_size[1] // 2)


def resize_to_supervision_grid(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize F(z_t) bilinearly to the grid on which points are compared, in float32.

    The radius r_1 of Eq. 2 is one cell of that grid.

    Args:
        features (`torch.Tensor` of shape `(batch, channels, h, w)`): the block's output.
        size (`tuple[int, int]`): (height, width) of the grid, from [`supervision_grid`].

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    return resize_bilinear(features.float(), size)
