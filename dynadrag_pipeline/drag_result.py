"""What a drag loop came to, carried from the grid of the edit back to that of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from motion_predictor.points import scale_points

from .drag_engine import DragStep, Reference
from .drag_instruction import DragInstruction
from .pipeline_output import DragIteration


@dataclass
class DragResult:
    """The end of a drag loop and its record, without the picture.

    Attributes:
        latents (`torch.Tensor` of shape `(1, channels, h, w)`):
            z_0 of the last good iteration, or of the unedited picture.
        image (`torch.Tensor` of shape `(1, 3, height, width)`, *optional*):
            what they were decoded to, in [0, 1], at the size of the edit; `None` for the unedited picture.
        trajectory (`torch.Tensor` of shape `(iterations + 1, points, 2)`): the handles, in pixels of the input.
        iterations (`list[DragIteration]`): one record per iteration, in pixels of the input.
    """

    latents: torch.Tensor
    image: torch.Tensor | None
    trajectory: torch.Tensor
    iterations: list[DragIteration]

    @staticmethod
    def gather(steps: Iterable[DragStep], on_step: Callable[[DragStep, int], None] | None = None) -> list[DragStep]:
        """All steps of [`DragEngine.drag`], shown to `on_step` with their number as they come.

        Latents and picture stay with the last two only, the later of which may turn out not to be good.
        """
        gathered: list[DragStep] = []
        for step in steps:
            if on_step is not None:
                on_step(step, len(gathered))
            if len(gathered) > 1:
                gathered[-2].latents = gathered[-2].image = None
            gathered.append(step)
        return gathered

    @classmethod
    def of(
        cls, steps: Sequence[DragStep], reference: Reference, instruction: DragInstruction, size: tuple[int, int]
    ) -> DragResult:
        """Collect the steps of [`DragEngine.drag`].

        Args:
            steps (`Sequence[DragStep]`): all that the engine yielded, from [`DragResult.gather`].
            reference (`Reference`): what stays if there are none.
            instruction (`DragInstruction`): in pixels of the input.
            size (`tuple[int, int]`): (height, width) of the edit.
        """
        good = [step for step in steps if step.is_good]
        image = good[-1].image if good else None
        latents = good[-1].latents if good else None
        return cls(
            latents=reference.latents if latents is None else latents,
            image=image,
            trajectory=_trajectory(good, instruction, size),
            iterations=[_in_input_pixels(step.record, size, instruction.size) for step in good],
        )


def _trajectory(steps: Sequence[DragStep], instruction: DragInstruction, size: tuple[int, int]) -> torch.Tensor:
    """`(iterations + 1, points, 2)`, in pixels of the input."""
    positions = [step.record.handles + step.record.step for step in steps]
    moved = [scale_points(position.cpu(), size, instruction.size) for position in positions]
    return torch.stack([instruction.handles, *moved])


def _in_input_pixels(record: DragIteration, size: tuple[int, int], input_size: tuple[int, int]) -> DragIteration:
    """Carry a record from pixels of the edit to pixels of the input, and to the CPU."""
    ratio = torch.tensor([input_size[1] / size[1], input_size[0] / size[0]])
    record.handles = scale_points(record.handles.cpu(), size, input_size)
    record.predicted_step = record.predicted_step.cpu() * ratio
    record.step = record.step.cpu() * ratio
    record.valid, record.similarities = record.valid.cpu(), record.similarities.cpu()
    return record
