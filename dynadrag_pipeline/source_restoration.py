"""Take the source's own pixels wherever an edited picture shows content of the source, moved or not.

Not of the paper: it compares decoded pictures, and a person compares with the photograph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from motion_predictor.points import distance_to_way, sample_flow

from .dense_flow import DenseFlow, boxed, resize_shift, shifted
from .picture import resize_picture

WORKING_SIDE = 128  # short side on which content is followed
LEVELS = (4, 2, 1)  # it is followed from coarse to fine, on these fractions of it
NODE_SPACING = 8  # pixels of a level between two nodes, at which it may shift
ROUNDS = 25  # of optimisation on each level
SMOOTHNESS = 0.03  # weight of the total variation of the shift, in pixels, against that of colour, in [0, 1]
COLOUR_STEP, SHIFT_STEP = 0.02, 0.01  # of colour and pixels: below, differences count by their square, as noise
TOLERANCE = 0.3  # difference of colour at which the source counts 1 / e
SPREAD_AT_512 = 12.0  # pixels, for a short side of 512: how far round a pixel differences are averaged
SAME_PLACE_AT_512 = 16.0  # so far apart, two answers to where content came from still agree
KEPT_AT_512 = 48.0  # round the way of content on whose origin they don't, the edit's own pixels are kept


def restore_source(
    source: torch.Tensor,
    edited: torch.Tensor,
    reconstruction: torch.Tensor,
    *,
    flow: DenseFlow | None = None,
    moves: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put the source's own pixels in place of those of an edit, wherever these show the same content.

    Autoencoder and inversion cost a picture detail, and motion supervision more of it. The unedited latent is denoised
    for its keys and values anyway, and decoded once. [`content_shift`] finds from where in that picture each piece of
    the edited picture came, and the source is asked for it. What the edit invented came from nowhere, and stays as it
    is; between, the source fades by `exp(-(unexplained / 0.3)^2)`, where what the shifted reconstruction leaves
    unexplained is the root of the mean square round a pixel.

    Colours say little of where content is on cloth, hair or sky: a shift of nought may explain an edit well that moved
    such content, and would undo it. So what is known to have moved is asked for: where the shift leads elsewhere than
    to where that content came from, the edit stays as it is, all along its way.

    Args:
        source (`torch.Tensor` of shape `(1, 3, height, width)`): the input in [0, 1], at its own size.
        edited (`torch.Tensor` of shape `(1, 3, h, w)`): the edited picture, at the size of the edit.
        reconstruction (`torch.Tensor`, same shape): the picture inverted and denoised without an edit.
        flow ([`DenseFlow`], *optional*):
            what the latent was carried by: the shift is sought from it on, and nothing is restored where nothing came.
        moves (`torch.Tensor` of shape `(moves, 2, 2)`, *optional*):
            from where to where content is known to have moved since the source, (x, y) in pixels of the input.

    Returns:
        `torch.Tensor` of shape `(1, 3, height, width)`, in [0, 1]: the source itself where nothing changed.

    Example:
        >>> source, reconstruction = torch.rand(1, 3, 256, 256), torch.full((1, 3, 128, 128), 0.5)
        >>> bool(torch.allclose(restore_source(source, reconstruction, reconstruction), source, atol=1e-5))
        True
    """
    size, edit_size = ((picture.shape[-2], picture.shape[-1]) for picture in (source, edited))
    shift = content_shift(edited, reconstruction, None if flow is None else flow.backward)
    explained = shifted(reconstruction, resize_shift(shift, edit_size))
    unexplained = _smoothed((edited - explained).square().mean(dim=1, keepdim=True)).sqrt()
    share = resize_picture(torch.exp(-((unexplained / TOLERANCE) ** 2)), size)
    if flow is not None:
        share = share * F.interpolate(flow.covered, size=size, mode="bilinear", align_corners=False)
    if moves is not None and len(moves):
        share = share * (1 - _kept(resize_shift(shift, size), moves.to(shift), size))
    moved = shifted(source.to(edited), resize_shift(shift, size))
    return torch.lerp(resize_picture(edited, size), moved, share).clamp(0, 1)


def _kept(shift: torch.Tensor, moves: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(height, width)` in [0, 1]: 1 along the ways `(moves, 2, 2)` that a shift knows nothing of."""
    scale = min(size) / 512
    origins = moves[:, 1] + sample_flow(shift, moves[None, :, 1])[0]
    kept = shift.new_zeros(size)
    for way in moves[(origins - moves[:, 0]).norm(dim=-1) > SAME_PLACE_AT_512 * scale]:
        kept = torch.maximum(kept, torch.exp(-((distance_to_way(way, size) / (KEPT_AT_512 * scale)) ** 4)))
    return kept


def content_shift(
    edited: torch.Tensor, reconstruction: torch.Tensor, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Where each piece of the edited picture was before the edit, minus where it is: smooth, and from coarse to fine.

    It is sought on the CPU, wherever the pictures are: they are small, a GPU would wait for Python in each of some
    thousand little steps, and its gradients would add up in another order each time.

    On each level, shifts at the nodes of a grid minimise a robust difference of the edited picture and the shifted
    reconstruction, and the total variation of the shift (an optical flow as of Brox et al., 2004, on a grid). A shift
    that little speaks for stays nought.

    Args:
        edited, reconstruction (`torch.Tensor` of shape `(1, 3, h, w)`): pictures in [0, 1].
        start (`torch.Tensor` of shape `(1, 2, h', w')`, *optional*): a shift to begin with, and to
            stay by where little speaks against it; by default none.

    Returns:
        `torch.Tensor` of shape `(1, 2, h', w')`: (x, y) in pixels of a picture of that size, whose short side is 128
        or that of the pictures, if it is shorter.
    """
    device, edited, reconstruction = edited.device, edited.cpu(), reconstruction.cpu()
    height, width = edited.shape[-2:]
    scale = min(1.0, WORKING_SIDE / min(height, width))
    shift = edited.new_zeros(1, 2, 1, 1) if start is None else start.to(edited)
    for level in LEVELS:
        size = (max(1, round(height * scale / level)), max(1, round(width * scale / level)))
        seen, before = (F.interpolate(picture, size=size, mode="area") for picture in (edited, reconstruction))
        expected = None if start is None else resize_shift(start.to(edited), size)
        shift = _refined(resize_shift(shift, size), seen, before, expected)
    return shift.to(device)


def _refined(
    shift: torch.Tensor, edited: torch.Tensor, reconstruction: torch.Tensor, expected: torch.Tensor | None = None
) -> torch.Tensor:
    """The shift of one level, `(1, 2, h, w)`, after optimisation from what the coarser level came to.

    What is smooth is its difference to what is `expected`, where a shift is.
    """
    size = (shift.shape[-2], shift.shape[-1])
    nodes = shift.new_zeros(1, 2, *(max(2, side // NODE_SPACING) for side in size)).requires_grad_()
    optimizer = torch.optim.LBFGS([nodes], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def refined() -> torch.Tensor:
        return shift + F.interpolate(nodes, size=size, mode="bicubic", align_corners=False)

    @torch.enable_grad()
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        candidate = refined()
        difference = edited - shifted(reconstruction, candidate)
        colour = (difference.square().mean(dim=1) + COLOUR_STEP**2).sqrt().mean()
        smooth = candidate if expected is None else candidate - expected
        variation = sum((smooth.diff(dim=axis).square().sum(dim=1) + SHIFT_STEP**2).sqrt().mean() for axis in (-2, -1))
        total = colour + SMOOTHNESS * variation
        total.backward()
        return total

    optimizer.step(loss)
    return refined().detach()


def _smoothed(maps: torch.Tensor) -> torch.Tensor:
    """Means over neighbourhoods."""
    spread = SPREAD_AT_512 * min(maps.shape[-2:]) / 512
    return boxed(maps, round((math.sqrt(6 * spread**2 + 1) - 1) / 2))
