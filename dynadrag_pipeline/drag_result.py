"""What a drag came to, carried from the grid of the edit back to that of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from motion_predictor.points import scale_points

from .content import carried_moves, origins_of
from .drag_instruction import DragInstruction
from .drag_state import DragState, DragStep
from .pipeline_output import DragIteration, StopReason


@dataclass
class DragResult:
    """The end of a drag and its record.

    Attributes:
        state ([`DragState`]): latents and picture of the last good iteration, or of what the drag began with.
        trajectory (`torch.Tensor` of shape `(iterations + 1, points, 2)`): the handles, in pixels of the input.
        targets (`torch.Tensor` of shape `(points, 2)`): in pixels of the input.
        iterations (`list[DragIteration]`): one record per iteration, in pixels of the input.
        stop_reason (`str`): why it ended.
        motion_source (`str`): name of what said where handles go.
        start_latents (`torch.Tensor` of shape `(1, channels, h, w)`, *optional*):
            z_0 of what the drag went on from; `None` if that was the original.
        origins (`torch.Tensor` of shape `(points, 2)`, *optional*):
            where in the unedited picture what is at the handles was, in pixels of the input; by default there.
        earlier_moves (`torch.Tensor` of shape `(moves, 2, 2)`, *optional*):
            of what the drag went on from, as far as the latent was carried on; see [`DragState`].
    """

    state: DragState
    trajectory: torch.Tensor
    targets: torch.Tensor
    iterations: list[DragIteration]
    stop_reason: StopReason
    motion_source: str
    start_latents: torch.Tensor | None = None
    origins: torch.Tensor | None = None
    earlier_moves: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        steps: Sequence[DragStep],
        start: DragState,
        instruction: DragInstruction,
        size: tuple[int, int],
        stop_reason: StopReason,
        motion_source: str,
    ) -> DragResult:
        """Collect the steps of a drag.

        Args:
            steps (`Sequence[DragStep]`): all of them.
            start ([`DragState`]): what stays if none is good.
            instruction ([`DragInstruction`]): in pixels of the input.
            size (`tuple[int, int]`): (height, width) of the edit.
            stop_reason, motion_source: as above.
        """
        good = [step for step in steps if step.is_good]
        while good and good[-1].state is None:  # nothing is left of it that could be returned
            good.pop()
        state = (good[-1].state if good else None) or start
        return cls(
            state=state,
            trajectory=_trajectory(good, instruction, size),
            targets=instruction.targets,
            iterations=[_in_input_pixels(step.record, size, instruction.size) for step in good],
            stop_reason=stop_reason,
            motion_source=motion_source,
            start_latents=None if start.handles is None else start.latents,
            origins=origins_of(instruction.handles, instruction.size, start.moves, start.flow),
            earlier_moves=carried_moves(start.moves, start.flow, state.flow, instruction.size),
        )


def _trajectory(steps: Sequence[DragStep], instruction: DragInstruction, size: tuple[int, int]) -> torch.Tensor:
    """`(iterations + 1, points, 2)`, in pixels of the input."""
    positions = [step.record.handles + step.record.step for step in steps]
    moved = [scale_points(position.cpu(), size, instruction.size) for position in positions]
    return torch.stack([instruction.handles, *moved])


def _in_input_pixels(record: DragIteration, size: tuple[int, int], input_size: tuple[int, int]) -> DragIteration:
    """A record carried from pixels of the edit to pixels of the input, and to the CPU."""
    ratio = torch.tensor([input_size[1] / size[1], input_size[0] / size[0]])
    return replace(
        record,
        handles=scale_points(record.handles.cpu(), size, input_size),
        predicted_step=record.predicted_step.cpu() * ratio,
        step=record.step.cpu() * ratio,
        valid=record.valid.cpu(),
        similarities=record.similarities.cpu(),
        deviation=None if record.deviation is None else record.deviation.cpu() * ratio.mean(),
        carried=None if record.carried is None else record.carried.cpu() * ratio,
    )
