"""Predict-and-move: the loop of Fig. 2(a), as an iterator over the iterations of a [`DragEdit`]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffusers.utils import logging

from .drag_edit import DragEdit
from .drag_state import DragStep
from .pipeline_output import StopReason

logger = logging.get_logger(__name__)


class DragLoop:
    """Repeats the iterations of an edit until its handles arrive (Sec. 3.4). Run it under `torch.no_grad()`.

    Args:
        edit ([`DragEdit`]): the drag.
        iterate (`Callable`, *optional*): what makes an iteration of it; [`DragEdit.iterate`] by default.

    Attributes:
        stop_reason (`str`): why the iterator ended, once it has.
    """

    def __init__(self, edit: DragEdit, iterate: Callable[[DragEdit], None] | None = None) -> None:
        self.edit = edit
        self.iterate = iterate or DragEdit.iterate
        self.stop_reason: StopReason = "max_iterations"

    def __iter__(self) -> Iterator[DragStep]:
        """[`DragStep`] after each iteration; the last one is denoised in full, however the edit ends."""
        last: list[DragStep] = []
        for step in self._steps():
            last = [*last[-1:], step]
            yield step
        good = [step for step in last if step.is_good]  # the very last may have turned out not to be
        if good:
            self.edit.close_record()
        for step in reversed(good):
            if not step.is_preview or self._completed(step) or step.image is not None:  # a preview is better than none
                break
            step.is_good = False

    def _steps(self) -> Iterator[DragStep]:
        """The iterations, the last of which may still be a preview."""
        edit, engine, rule = self.edit, self.edit.engine, self.edit.rule
        with engine.progress_bar(engine.settings.most_iterations, "Dragging") as progress:
            while rule.remaining > 0 and not rule.is_finished(edit.points):
                try:
                    with engine.denoiser.prompt_projected():
                        edit.close_record()
                        self.iterate(edit)
                    step = edit.step()
                    yield step
                    if step.latents is not None:
                        step.image = engine.decode_finite(step.latents, step.is_preview)
                except FloatingPointError as error:
                    self._diverge(error)
                    return
                self._take(step)
                progress.set_postfix_str(f"{edit.points.mean_distance:.1f} px to go", refresh=False)
                progress.update()
                if step.is_last:
                    self.stop_reason = "interrupted"
                    return
                if rule.is_stalled and not rule.is_finished(edit.points):
                    self.stop_reason = "stalled"
                    return
        self.stop_reason = "reached" if rule.is_finished(edit.points) else "max_iterations"

    def _take(self, step: DragStep) -> None:
        """The edit goes on from a step that turned out good."""
        step.is_good = True
        self.edit.advance(step.image)
        if self.edit.engine.settings.return_intermediates:
            step.record.image = None if step.image is None else step.image[0].cpu()
            flow = self.edit.motion.flow
            step.record.flow = None if flow is None else flow[0].cpu()

    def _completed(self, step: DragStep) -> bool:
        """Denoise and decode a step in full; say whether that came to something."""
        engine = self.edit.engine
        try:
            with engine.denoiser.prompt_projected():
                latents = engine.denoise(step.noise, self.edit.reference)
            step.latents, step.image, step.is_preview = latents, engine.decode_finite(latents), False
        except FloatingPointError as error:
            self._diverge(error)
            return False
        return True

    def _diverge(self, error: FloatingPointError) -> None:
        logger.warning(f"{error} The edit stops with the last good iteration.")
        self.stop_reason = "diverged"
