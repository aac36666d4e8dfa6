"""Where the content went: what was at each handle is looked for in the edited picture.

Handles are numbers, and arrive wherever they are sent. Whether the content came along is another question, which a
person answers at a glance, and this room by the features of the UNet that made the edit ([`find_points`]).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.utils import logging

from motion_predictor.points import distance_to_way, sample_flow, scale_points

from .dense_flow import DenseFlow
from .dift import dift_features, find_points

logger = logging.get_logger(__name__)

CONTENT_TIMESTEP, CONTENT_BLOCK = 0, -2
"""What DIFT takes for places of one scene (HPatches): no noise, and the last up-block but one."""

# Shares of the short side:
SPACING = 1 / 128  # between the places that are looked at
PATCH_RADIUS, PATCH_STEP = 3, 2  # in such steps: 7 x 7 places round each, 2 steps apart
WINDOW_MARGIN = 16 / 128  # how far from the way of its handle content is looked for
ELSEWHERE = 8 / 128  # what is so far from a handle is another place
SAME_PLACE = 4 / 128  # what is found again within that is the same

LEAST_SHARE = 0.5
"""Of the way that was asked for, and of the points: if content made less, or less was found, a warning says so."""


@dataclass(frozen=True)
class ContentLocations:
    """Where what was at each handle is in the edited picture. All points and distances are in pixels of the input.

    Attributes:
        handles (`torch.Tensor` of shape `(points, 2)`): where it was, (x, y).
        places (`torch.Tensor` of shape `(points, 2)`): where it was found, (x, y).
        distances (`torch.Tensor` of shape `(points,)`): from there to the target.
        asked (`torch.Tensor` of shape `(points,)`): from the handle to the target; 0 for pins.
        similarities (`torch.Tensor` of shape `(points,)`):
            how like the place is to what was at the handle: mean cosine of features, at most 1.
        found (`torch.Tensor` of shape `(points,)`, bool):
            whether the answer is to be trusted: the place is more like what was at the handle than any other place of
            the unedited picture on the way, and what is there leads back to the handle.
    """

    handles: torch.Tensor
    places: torch.Tensor
    distances: torch.Tensor
    asked: torch.Tensor
    similarities: torch.Tensor
    found: torch.Tensor

    @property
    def share_of_way(self) -> float | None:
        """What part of the way the content made that was found, pins apart; `None` if none was."""
        known = self.found & (self.asked > 0)
        if not known.any():
            return None
        return 1 - float(self.distances[known].sum() / self.asked[known].sum())

    @property
    def summary(self) -> str:
        """One line for people; means are over the content that was found, pins apart.

        Example:
            >>> asked, found = torch.tensor([8.0, 8.0, 8.0]), torch.tensor([True, True, False])
            >>> places = torch.zeros(3, 2)
            >>> ContentLocations(places, places, torch.tensor([2.0, 3.0, 9.0]), asked, torch.ones(3), found).summary
            'content: 2.5 px from its targets, of 8.0 px asked; 1 of 3 not found'
        """
        moving = self.asked > 0
        known = self.found & moving
        count, lost = int(moving.sum()), int((moving & ~self.found).sum())
        if not count:
            return "content: nothing was to move"
        if lost == count:
            return f"content: not found, of {count} that {'was' if count == 1 else 'were'} to move"
        text = f"content: {self.distances[known].mean():.1f} px from its targets, of {self.asked[known].mean():.1f} px"
        return f"{text} asked" + (f"; {lost} of {count} not found" if lost else "")

    def record(self) -> dict[str, Any]:
        """The same as lists, for a JSON file."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}


def content_features(
    unet: torch.nn.Module, scheduler: Any, latents: torch.Tensor, conditions: dict[str, Any]
) -> torch.Tensor:
    """The features that content is found again by, `(1, channels, h, w)`: one pass, without the identity LoRA.

    Args:
        unet (`UNet2DConditionModel`): of the edit.
        scheduler (`DDIMScheduler`): with its noise schedule.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0 of a picture.
        conditions (`dict`): keywords of the UNet.
    """
    block = max(CONTENT_BLOCK, -len(unet.up_blocks))  # type: ignore[arg-type]
    return dift_features(unet, scheduler, latents, CONTENT_TIMESTEP, block, noises=1, conditions=conditions)


def locate_content(
    source: torch.Tensor,
    edited: torch.Tensor,
    ways: torch.Tensor,
    size: tuple[int, int],
    input_size: tuple[int, int] | None = None,
) -> ContentLocations:
    """Look for what was at each handle in a window round the way to its target.

    Args:
        source, edited (`torch.Tensor` of shape `(1, channels, h, w)`):
            [`content_features`] of the picture that the drag began with, and of what it came to.
        ways (`torch.Tensor` of shape `(places, points, 2)`):
            where handles were, from their beginning on, and their targets last; (x, y) in pixels of the input.
        size (`tuple[int, int]`): (height, width) of the edit.
        input_size (`tuple[int, int]`, *optional*): (height, width) of the input, if it is another.

    Returns:
        [`ContentLocations`].
    """
    input_size = input_size or size
    ways = ways.to(source.device, torch.float32)
    on_edit = scale_points(ways, input_size, size)
    handles, side = on_edit[0], min(size)
    distances = torch.stack([distance_to_way(way, size) for way in on_edit.unbind(dim=1)])
    windows = distances <= WINDOW_MARGIN * side
    from_handle = torch.stack([distance_to_way(handle[None], size) for handle in handles])
    look = partial(find_points, size=size, spacing=SPACING * side, patch_radius=PATCH_RADIUS, patch_step=PATCH_STEP)
    forth = look(source, edited, handles, windows=windows)
    back = look(edited, source, forth.places, windows=windows)
    elsewhere = look(source, source, handles, windows=windows & (from_handle > ELSEWHERE * side))
    leads_back = (back.places - handles).norm(dim=-1) <= SAME_PLACE * side
    per_pixel = handles.new_tensor([input_size[1] / size[1], input_size[0] / size[0]])
    places = ways[0] + per_pixel * (forth.places - handles)
    answers = (
        ways[0],
        places,
        (ways[-1] - places).norm(dim=-1),
        (ways[-1] - ways[0]).norm(dim=-1),
        forth.similarities,
        leads_back & (forth.similarities > elsewhere.similarities),
    )
    return ContentLocations(*(each.cpu() for each in answers))


def origins_of(
    points: torch.Tensor, size: tuple[int, int], moves: torch.Tensor | None, flow: DenseFlow | None
) -> torch.Tensor:
    """Where what is at points of an edited picture was in the unedited one.

    As content near by has moved, if that is known; else by what the latent was carried by; else where it is.

    Args:
        points (`torch.Tensor` of shape `(points, 2)`): (x, y) in pixels of the input.
        size (`tuple[int, int]`): (height, width) of the input.
        moves (`torch.Tensor` of shape `(moves, 2, 2)`, *optional*): of the edited picture's [`DragState`].
        flow ([`DenseFlow`], *optional*): of the same.

    Returns:
        `torch.Tensor` of shape `(points, 2)`.

    Example:
        >>> from_here_to_there = torch.tensor([[[10.0, 20.0], [30.0, 20.0]]])
        >>> origins_of(torch.tensor([[31.0, 20.0], [90.0, 20.0]]), (128, 128), from_here_to_there, flow=None)
        tensor([[11., 20.],
                [90., 20.]])
    """
    origins = points if flow is None else points + _read_at(flow.backward, points, size)
    if moves is None or not len(moves):
        return origins
    distance, nearest = torch.cdist(points, moves[:, 1]).min(dim=1)
    by_moves = points + moves[nearest, 0] - moves[nearest, 1]
    return torch.where((distance <= ELSEWHERE * min(size))[:, None], by_moves, origins)


def carried_moves(
    moves: torch.Tensor | None, before: DenseFlow | None, after: DenseFlow | None, size: tuple[int, int]
) -> torch.Tensor:
    """Moves `(moves, 2, 2)` in pixels of an input of (height, width), of which places went on with the latent.

    Args:
        moves (`torch.Tensor` of shape `(moves, 2, 2)`, *optional*): none, if nothing is known.
        before, after ([`DenseFlow`], *optional*): what the latent was carried by, before and after it was again.
        size (`tuple[int, int]`): (height, width) of the input.
    """
    if moves is None:
        return torch.zeros(0, 2, 2)
    origins, places = moves.unbind(dim=1)
    for flow, sign in ((after, 1), (before, -1)):
        places = places if flow is None else places + sign * _read_at(flow.forward, origins, size)
    return torch.stack([origins, places], dim=1)


def moves_after(
    content: ContentLocations, size: tuple[int, int], origins: torch.Tensor, earlier: torch.Tensor
) -> torch.Tensor:
    """From where to where content is known to have moved since the unedited picture, as far as it did.

    Args:
        content ([`ContentLocations`]): of the last drag.
        size (`tuple[int, int]`): (height, width) of the input.
        origins (`torch.Tensor` of shape `(points, 2)`): of its handles, see [`origins_of`].
        earlier (`torch.Tensor` of shape `(moves, 2, 2)`):
            of the drags before: those of content that the last drag moved on, or moved something over, are left out.

    Returns:
        `torch.Tensor` of shape `(moves, 2, 2)`: (x, y) in pixels of the input.
    """
    found = content.found
    own = torch.stack([origins, content.places], dim=1)[found & (origins != content.places).any(dim=-1)]
    known = torch.cat([content.handles[found], content.places[found]])
    is_known = (torch.cdist(earlier[:, 1], known) <= ELSEWHERE * min(size)).any(dim=1)
    return torch.cat([earlier[~is_known], own])


def _read_at(flow: torch.Tensor, points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A dense flow at points, `(points, 2)`, all in pixels of a picture of (height, width)."""
    grid = (flow.shape[-2], flow.shape[-1])
    read = sample_flow(flow.to(points), scale_points(points, size, grid)[None])[0]
    return read * points.new_tensor([size[1] / grid[1], size[0] / grid[0]])


def left_behind(content: ContentLocations, stop_reason: str) -> str | None:
    """What to say when handles are at their targets, and their content is not.

    Args:
        content ([`ContentLocations`]): of an edit.
        stop_reason (`str`): why it ended.

    Returns:
        `str`, *optional*: how far the content is, or that it was not found, and what may help; nothing, if most was
        found, and has made most of the way.

    Example:
        >>> asked, found = torch.full((4,), 8.0), torch.tensor([True, False, False, False])
        >>> places = torch.zeros(4, 2)
        >>> content = ContentLocations(places, places, torch.zeros(4), asked, torch.ones(4), found)
        >>> (left_behind(content, "reached") or "").split(" (")[0]
        'The handles have reached their targets, and most of their content was not found'
    """
    found = content.found[content.asked > 0]
    if stop_reason != "reached" or not len(found):
        return None
    share = content.share_of_way
    if share is None or found.float().mean() < LEAST_SHARE:
        missed = f"{'most of ' if found.any() else ''}their content was not found"
    elif share < LEAST_SHARE:
        missed = f"their content has made {max(share, 0):.0%} of the way"
    else:
        return None
    return (
        f"The handles have reached their targets, and {missed} ({content.summary}). More `supervision_steps` or a "
        "higher `supervision_lr` may help; with `carry='once'`, which takes no such steps on its way, so may "
        "`settle_iterations`."
    )


def warn_if_left_behind(content: ContentLocations, stop_reason: str) -> None:
    """Say it to whoever reads the log: see [`left_behind`]."""
    text = left_behind(content, stop_reason)
    if text is not None:
        logger.warning(text)
