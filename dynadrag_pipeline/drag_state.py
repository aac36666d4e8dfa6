"""What is known of an edit between two iterations: where the handles are, what has become of them, and the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .dense_flow import DenseFlow
from .drag_instruction import DragInstruction
from .pipeline_output import DragIteration

STOP_DISTANCE_AT_512 = 4.0
"""Pixels within which a handle has arrived, for a short side of 512 px. The paper gives no distance."""


@dataclass
class DragPoints:
    """Handles and targets in pixels of the edit, and which handles have arrived, are pins, or were given up.

    Attributes:
        handles (`torch.Tensor` of shape `(points, 2)`): h^k.
        targets (`torch.Tensor` of shape `(points, 2)`): where they are to go.
        stop_distance (`float`): pixels within which a handle has arrived.
        pinned (`torch.Tensor` of shape `(points,)`, bool): handles that were put on their targets, to hold content.
        abandoned (`torch.Tensor` of shape `(points,)`, bool):
            handles that the strategy `"first"` gave up: in the maps, the motion and the stop rule.
    """

    handles: torch.Tensor
    targets: torch.Tensor
    stop_distance: float
    pinned: torch.Tensor
    abandoned: torch.Tensor

    @classmethod
    def of(cls, instruction: DragInstruction, stop_distance: float | None, device: torch.device) -> DragPoints:
        """The points of an instruction on the grid of the edit, before the first iteration."""
        handles, targets = instruction.handles.to(device), instruction.targets.to(device)
        if stop_distance is None:
            stop_distance = STOP_DISTANCE_AT_512 * min(instruction.size) / 512
        pinned = (handles == targets).all(dim=-1)
        return cls(handles, targets, stop_distance, pinned, torch.zeros_like(pinned))

    @property
    def distances(self) -> torch.Tensor:
        """`(points,)`: how far each handle is from its target."""
        return (self.targets - self.handles).norm(dim=-1)

    @property
    def arrived(self) -> torch.Tensor:
        """`(points,)` bool: handles within the stop distance; pins are, always."""
        return self.would_arrive(self.handles)

    @property
    def moving(self) -> torch.Tensor:
        """`(points,)` bool: handles that a motion is sought for: neither pins nor given up."""
        return ~(self.pinned | self.abandoned)

    @property
    def mean_distance(self) -> float:
        """Pixels between handles and targets, pins apart; 0 if there are only pins."""
        distances = self.distances[~self.pinned]
        return float(distances.mean()) if len(distances) else 0.0

    def would_arrive(self, handles: torch.Tensor) -> torch.Tensor:
        """`(points,)` bool: which of `handles` `(points, 2)` are within the stop distance of their targets."""
        return (self.targets - handles).norm(dim=-1) <= self.stop_distance

    def all_would_arrive(self, handles: torch.Tensor) -> bool:
        """Whether all of `handles` `(points, 2)` are at their targets, but for those that were given up."""
        return bool((self.would_arrive(handles) | self.abandoned).all())


@dataclass
class DragState:
    """A snapshot that an edit can be gone on from.

    Attributes:
        noise (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^k, the optimised latent.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0^k, what it is denoised to.
        image (`torch.Tensor` of shape `(1, 3, height, width)`): I_k in [0, 1], at the size of the edit.
        handles (`torch.Tensor` of shape `(points, 2)`, *optional*): h^k in pixels of the edit; `None` before any.
        picture (`str`, *optional*): fingerprint of what was edited.
        flow ([`DenseFlow`], *optional*): what the latent was carried by since the unedited picture.
        moves (`torch.Tensor` of shape `(moves, 2, 2)`, *optional*):
            from where in the unedited picture to where in this one content is known to have moved, (x, y) in pixels of
            the input; `None` as long as nobody has looked.
    """

    noise: torch.Tensor
    latents: torch.Tensor
    image: torch.Tensor
    handles: torch.Tensor | None = None
    picture: str | None = None
    flow: DenseFlow | None = None
    moves: torch.Tensor | None = None


@dataclass
class DragStep:
    """One iteration as the loop yields it. Before asking for the next, the consumer may set what is said so below.

    Attributes:
        noise (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^{k+1}, the optimised latent.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`, *optional*):
            z_0^{k+1}, what I_{k+1} is decoded from; may be replaced. `None` where nobody looks at it.
        record ([`DragIteration`]): points in pixels of the edit, not yet of the input.
        is_preview (`bool`):
            whether `latents` are less than the full denoising; the last step's are made full in the end. May be set
            to `False`, to keep them as they are.
        is_last (`bool`): may be set to end the edit with this iteration.
        is_good (`bool`): whether all that was decoded is finite, known once the loop has gone on.
        image (`torch.Tensor` of shape `(1, 3, height, width)`, *optional*):
            I_{k+1}, there once the loop has gone on.
        flow ([`DenseFlow`], *optional*): what the latent was carried by since the unedited picture.
    """

    noise: torch.Tensor
    latents: torch.Tensor | None
    record: DragIteration
    is_preview: bool = False
    is_last: bool = False
    is_good: bool = False
    image: torch.Tensor | None = None
    flow: DenseFlow | None = None

    @property
    def state(self) -> DragState | None:
        """What an edit can be gone on from after this step, if its latents and its picture are there."""
        if self.latents is None or self.image is None:
            return None
        handles = self.record.handles + self.record.step
        return DragState(self.noise, self.latents, self.image, handles, flow=self.flow)
