"""Predict-and-move: the loop of Fig. 2(a) as an iterator over the rooms beside this module.

The engine knows models and schedulers, and no pipeline. Call it under `torch.no_grad()`; it switches gradients on
where motion supervision needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging

from motion_predictor import MotionPredictorModel
from motion_predictor.choices import MOTION_GUARDS, MotionGuard
from motion_predictor.common.checks import check_choice, check_number, check_whole_number
from motion_predictor.points import (
    guard_step,
    is_wrong_way,
    move_handles,
    sample_flow,
    scale_points,
    straight_step,
)

from .ddim_inversion import PredictNoise, ddim_denoise, ddim_invert, ddim_preview, preview_timesteps
from .drag_instruction import DragInstruction
from .kv_replacement import KVBank, KVPlacement
from .motion_supervision import ChannelReduction, mask_loss, motion_supervision_loss, sample_patches
from .pipeline_output import DragIteration, StopReason
from .point_selection import SELECTION_STRATEGIES, PointSelector, SelectionStrategy, handle_target_similarity
from .prompt_projections import prompt_projected_once
from .unet_features import resize_to_supervision_grid, unet_with_features

logger = logging.get_logger(__name__)

SourcePatches = Literal["iteration", "step", "original"]
OptimizerScope = Literal["edit", "iteration"]

STOP_DISTANCE_AT_512 = 4.0
STALL_STEP_AT_512 = 0.1
STALL_ITERATIONS = 3


@dataclass(frozen=True)
class DragSettings:
    """The numbers of the method, under the names and with the meanings of [`DynaDragPipeline.__call__`].

    Defaults are the paper's where it gives one (Sec. 4.2). The engine takes `stop_distance` in pixels of the edit.

    Raises:
        ValueError: if one is out of range, naming it, its value and what is accepted.
    """

    inversion_strength: float = 1.0
    max_iterations: int = 25
    supervision_steps: int = 5
    supervision_lr: float = 0.01
    supervision_damping: float = 0.0
    supervision_reach: float | None = None
    supervision_radius: int = 1
    mask_weight: float = 0.1
    feature_block: int = -1
    channel_reduction: ChannelReduction = "mean"
    source_patches: SourcePatches = "iteration"
    optimizer_scope: OptimizerScope = "edit"
    dynamic_selection: SelectionStrategy | None = "all"
    similarity_threshold: float = 0.6
    hold_unselected: bool = False
    settle_iterations: int = 0
    kv_start_layer: int = 0
    kv_placement: KVPlacement = "auto"
    preview_steps: int | None = None
    stop_distance: float | None = None
    motion_guard: MotionGuard = "project"
    return_intermediates: bool = False

    def __post_init__(self) -> None:
        check_number("inversion_strength", self.inversion_strength, above=0, most=1)
        check_whole_number("max_iterations", self.max_iterations, least=1)
        check_whole_number("supervision_steps", self.supervision_steps, least=1)
        check_number("supervision_lr", self.supervision_lr, above=0, most=math.inf)
        check_number("supervision_damping", self.supervision_damping, least=0, most=math.inf)
        if self.supervision_reach is not None:
            check_number("supervision_reach", self.supervision_reach, above=0, most=math.inf)
        check_whole_number("supervision_radius", self.supervision_radius, least=0)
        check_number("mask_weight", self.mask_weight, least=0, most=math.inf)
        check_choice("channel_reduction", self.channel_reduction, get_args(ChannelReduction))
        check_choice("source_patches", self.source_patches, get_args(SourcePatches))
        check_choice("optimizer_scope", self.optimizer_scope, get_args(OptimizerScope))
        check_choice("dynamic_selection", self.dynamic_selection, SELECTION_STRATEGIES)
        check_number("similarity_threshold", self.similarity_threshold, least=-1, most=1)
        check_whole_number("settle_iterations", self.settle_iterations, least=0)
        check_choice("motion_guard", self.motion_guard, MOTION_GUARDS)
        check_choice("kv_placement", self.kv_placement, get_args(KVPlacement))
        if self.preview_steps is not None:
            check_whole_number("preview_steps", self.preview_steps, least=1)
        if self.stop_distance is not None:
            check_number("stop_distance", self.stop_distance, least=0, most=math.inf)

    @property
    def most_iterations(self) -> int:
        """Iterations of the longest edit."""
        return self.max_iterations + self.settle_iterations

    def for_edit_at(self, size: tuple[int, int], input_size: tuple[int, int]) -> DragSettings:
        """These settings with the stop distance carried from pixels of the input to pixels of the edit."""
        if self.stop_distance is None:
            return self
        return replace(self, stop_distance=self.stop_distance * min(size) / min(input_size))


@dataclass
class Reference:
    """The denoising of the unedited z_t^0, computed once per edit.

    Attributes:
        latents (`torch.Tensor`): z_0^0, what the unedited latent is denoised to.
        previous (`torch.Tensor`): z_{t-1}^0 for the second term of Eq. 2.
        kv_bank (`KVBank`): inputs of its self-attention keys and values at every timestep.
    """

    latents: torch.Tensor
    previous: torch.Tensor
    kv_bank: KVBank


@dataclass
class DragStep:
    """One iteration as the engine yields it. Before asking for the next, the consumer may set what is said so below.

    Attributes:
        noise (`torch.Tensor`): z_t^{k+1}, the optimised latent.
        latents (`torch.Tensor`, *optional*):
            z_0^{k+1}, what I_{k+1} is decoded from; may be replaced. `None` where nobody looks at it.
        record (`DragIteration`): points in pixels of the edit, not yet of the input.
        is_preview (`bool`):
            whether `latents` are less than the full denoising; the last step's are made full in the end. May be set
            to `False`, to keep them as they are.
        is_last (`bool`): may be set to end the edit with this iteration.
        is_good (`bool`): whether all that was decoded is finite, known once the engine has gone on.
        image (`torch.Tensor` of shape `(1, 3, height, width)`, *optional*):
            I_{k+1}, there once the engine has gone on.
    """

    noise: torch.Tensor
    latents: torch.Tensor | None
    record: DragIteration
    is_preview: bool = False
    is_last: bool = False
    is_good: bool = False
    image: torch.Tensor | None = None


@dataclass
class DragEngine:
    """One edit of one picture.

    Attributes:
        unet (`UNet2DConditionModel`): the denoiser, frozen, with the identity LoRA on.
        sampler, inverse (`DDIMScheduler`, `DDIMInverseScheduler`): a pair from `make_ddim_schedulers`.
        prompt_embeds (`torch.Tensor` of shape `(1, tokens, width)`): the text condition; no unconditional branch.
        decode (`Callable`): z_0 `(1, c, h, w)` -> picture `(1, 3, height, width)` in [0, 1].
        decode_preview (`Callable`, *optional*): the same for pictures that only motion prediction sees.
        is_watched (`bool`):
            whether somebody looks at the pictures between. If not, and without a motion predictor, there are none:
            the latents of the last iteration alone are denoised.
        motion_predictor (`MotionPredictorModel`, *optional*): `None` moves handles in straight steps.
        settings (`DragSettings`): the numbers.
        cross_attention_kwargs (`dict`, *optional*): passed to every UNet pass.
        generator (`torch.Generator`, *optional*): a CPU generator for the strategy `"random"`.
        progress_bar (`Callable`): `(total, description) -> context manager with update()`.
        stop_reason (`str`): why [`DragEngine.drag`] ended, once it has.
    """

    unet: UNet2DConditionModel
    sampler: DDIMScheduler
    inverse: DDIMInverseScheduler
    prompt_embeds: torch.Tensor
    decode: Callable[[torch.Tensor], torch.Tensor]
    progress_bar: Callable[[int, str], Any]
    decode_preview: Callable[[torch.Tensor], torch.Tensor] | None = None
    motion_predictor: MotionPredictorModel | None = None
    is_watched: bool = True
    settings: DragSettings = field(default_factory=DragSettings)
    cross_attention_kwargs: dict[str, Any] | None = None
    generator: torch.Generator | None = None
    stop_reason: StopReason = field(default="max_iterations", init=False)

    @property
    def timesteps(self) -> torch.Tensor:
        """The sampler's timesteps that the edit uses, descending from t; fewer for `inversion_strength` < 1."""
        total = len(self.sampler.timesteps)
        return self.sampler.timesteps[total - max(1, round(self.settings.inversion_strength * total)) :]

    def invert(self, latents: torch.Tensor) -> torch.Tensor:
        """DDIM inversion of the picture's latent: z_0 -> z_t^0, both `(1, channels, h, w)`."""
        timesteps = self.timesteps.flip(0)
        with self._prompt_projected(), self.progress_bar(len(timesteps), "DDIM inversion") as progress:
            return ddim_invert(self._counted(self._predict_noise, progress), self.inverse, latents, timesteps)

    def denoise_reference(self, noise: torch.Tensor) -> Reference:
        """Denoise the unedited latent once, z_t^0 -> z_0^0, and keep what KV replacement and the mask need of it."""
        bank = KVBank(self.settings.kv_start_layer, self.settings.kv_placement, len(self.timesteps))
        first, rest = self.timesteps[:1], self.timesteps[1:]
        with (
            bank.recording(self.unet),
            self._prompt_projected(),
            self.progress_bar(len(self.timesteps), "Reference denoising") as progress,
        ):
            predict_noise = self._counted(self._banked(bank), progress)
            previous = ddim_denoise(predict_noise, self.sampler, noise, first)
            latents = ddim_denoise(predict_noise, self.sampler, previous, rest)
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                "The picture was inverted and denoised to values that are not finite, before any edit: try float32 or "
                "bfloat16."
            )
        return Reference(latents, previous, bank)

    def drag(
        self,
        noise: torch.Tensor,
        reference: Reference,
        image: torch.Tensor,
        instruction: DragInstruction,
        iterate: Callable[[DragEdit], None] | None = None,
    ) -> Iterator[DragStep]:
        """Repeat prediction, selection, supervision and denoising until the handles arrive (Sec. 3.4).

        Args:
            noise (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^0 from [`DragEngine.invert`].
            reference (`Reference`): from [`DragEngine.denoise_reference`].
            image (`torch.Tensor` of shape `(1, 3, height, width)`): I_0 in [0, 1].
            instruction (`DragInstruction`): points and mask on the grid of `image`.
            iterate (`Callable`, *optional*): what makes an iteration of an edit; [`DragEdit.iterate`] by default.

        Yields:
            [`DragStep`] after each iteration. When the iterator ends, `stop_reason` says why.
        """
        edit = DragEdit(self, noise, reference, image, instruction)
        last: list[DragStep] = []
        for step in self._iterations(edit, iterate or DragEdit.iterate):
            last = [*last[-1:], step]
            yield step
        good = [step for step in last if step.is_good]
        if good:
            edit.close_record()
            if good[-1].is_preview:
                self._complete(good[-1], reference)

    def _iterations(self, edit: DragEdit, iterate: Callable[[DragEdit], None]) -> Iterator[DragStep]:
        """The steps of [`DragEngine.drag`], the last of which may still be a preview."""
        with self.progress_bar(self.settings.most_iterations, "Dragging") as progress:
            while edit.remaining > 0 and not edit.is_finished:
                try:
                    with self._prompt_projected():
                        edit.close_record()
                        iterate(edit)
                except FloatingPointError as error:
                    self._diverge(str(error))
                    return
                step = edit.step()
                yield step
                if step.latents is not None:
                    image = self._decode(step.latents, step.is_preview)
                    if not torch.isfinite(image).all():
                        self._diverge("The edited latent was decoded to values that are not finite.")
                        return
                    step.image = image
                step.is_good = True
                edit.advance(step.image)
                if self.settings.return_intermediates:
                    step.record.image = None if step.image is None else step.image[0].cpu()
                    step.record.flow = None if edit.flow is None else edit.flow[0].cpu()
                progress.set_postfix_str(f"{edit.distances.mean():.1f} px to go", refresh=False)
                progress.update()
                if step.is_last:
                    self.stop_reason = "interrupted"
                    return
                if edit.is_stalled and not edit.is_finished:
                    self.stop_reason = "stalled"
                    return
        self.stop_reason = "reached" if edit.is_finished else "max_iterations"

    def _decode(self, latents: torch.Tensor, is_preview: bool) -> torch.Tensor:
        decode = self.decode if self.decode_preview is None or not is_preview else self.decode_preview
        return decode(latents)

    def _complete(self, step: DragStep, reference: Reference) -> None:
        """Denoise and decode the last good step in full."""
        try:
            with self._prompt_projected():
                latents = self.denoise(step.noise, reference)
            image = self.decode(latents)
            if not torch.isfinite(image).all():
                raise FloatingPointError("The edited latent was decoded to values that are not finite.")
        except FloatingPointError as error:
            self._diverge(str(error))
        else:
            step.latents, step.image, step.is_preview = latents, image, False

    def _prompt_projected(self) -> AbstractContextManager[None]:
        return prompt_projected_once(self.unet, self.prompt_embeds)

    def _diverge(self, what: str) -> None:
        logger.warning(f"{what} The edit stops with the last good iteration.")
        self.stop_reason = "diverged"

    def features(self, latents: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One UNet pass at t: the model output, and F(z_t) on the supervision grid of a picture of `image_size`."""
        output, features = unet_with_features(
            self.unet,
            latents.to(self.unet.dtype),
            self.timesteps[0],
            self.prompt_embeds,
            self.settings.feature_block,
            self.cross_attention_kwargs,
        )
        return output.float(), resize_to_supervision_grid(features, supervision_grid(image_size))

    def denoise(self, noise: torch.Tensor, reference: Reference, steps: int | None = None) -> torch.Tensor:
        """Denoise an edited z_t with the original's keys and values (Sec. 3.3): z_0, or a FloatingPointError.

        `steps` is the number of steps of a preview; without it, all are taken.
        """
        predict_noise = self._banked(reference.kv_bank)
        with reference.kv_bank.replaying(self.unet):
            if steps is None:
                latents = ddim_denoise(predict_noise, self.sampler, noise, self.timesteps)
            else:
                timesteps = preview_timesteps(self.timesteps, steps)
                latents = ddim_preview(predict_noise, self.sampler, noise, timesteps)
        if not torch.isfinite(latents).all():
            raise FloatingPointError("The edited latent was denoised to values that are not finite.")
        return latents

    def _predict_noise(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """A plain UNet pass, in the UNet's precision, returned in float32."""
        return self.unet(
            latents.to(self.unet.dtype),
            timestep,
            self.prompt_embeds,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0].float()

    def _banked(self, bank: KVBank) -> PredictNoise:
        """A UNet pass that tells the bank its timestep first."""

        def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            bank.timestep = int(timestep)
            return self._predict_noise(latents, timestep)

        return predict_noise

    @staticmethod
    def _counted(predict_noise: PredictNoise, progress: Any) -> PredictNoise:
        """A UNet pass that moves a progress bar on."""

        def counted(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            output = predict_noise(latents, timestep)
            progress.update()
            return output

        return counted


def supervision_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the grid that points are compared on: half the picture's, as in DragDiffusion."""
    return max(1, image_size[0] // 2), max(1, image_size[1] // 2)


class DragEdit:
    """What changes from iteration to iteration: latent, optimizer, picture, handles. Points in pixels of the edit.

    An iteration is made by four methods in the order of [`DragEdit.iterate`], each of which leaves behind what the
    next ones need. Another way to do one of their parts has to leave the same.

    Attributes:
        handles, targets (`torch.Tensor` of shape `(points, 2)`): h^k, and where they are to go.
        image (`torch.Tensor` of shape `(1, 3, height, width)`):
            I_k in [0, 1]; the original as long as there are no pictures between.
        latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^k, float32, what is optimised.
        k (`int`): the number of this iteration, from 0.
        remaining (`int`): iterations that there may still be, this one among them; in settling, those of it.
        is_settling (`bool`): whether all handles have arrived, and wait for their content at their targets.
        valid (`torch.Tensor` of shape `(points,)`, bool): handles to supervise. Left by [`DragEdit.select_points`].
        similarities (`torch.Tensor` of shape `(points,)`): what they were selected by. Left by the same.
        predicted_step (`torch.Tensor` of shape `(points, 2)`):
            where the handles should go next, before the guard. Left by [`DragEdit.predict_motion`].
        flow (`torch.Tensor` of shape `(1, 2, height, width)`, *optional*): what it was read from. Left by the same.
        moved (`torch.Tensor` of shape `(points, 2)`): h^{k+1}. Left by [`DragEdit.supervise_motion`].
        loss (`float`): Eq. 2 at z_t^k. Left by the same, as are `latents`.
        denoised (`torch.Tensor` of shape `(1, channels, h, w)`, *optional*):
            z_0^{k+1}. Left by [`DragEdit.denoise`]; `None` if nobody would see it.
        is_preview (`bool`): whether that is less than the full denoising. Left by the same.
    """

    valid: torch.Tensor
    similarities: torch.Tensor
    predicted_step: torch.Tensor
    flow: torch.Tensor | None = None
    moved: torch.Tensor
    loss: float
    denoised: torch.Tensor | None
    is_preview: bool

    def __init__(
        self,
        engine: DragEngine,
        noise: torch.Tensor,
        reference: Reference,
        image: torch.Tensor,
        instruction: DragInstruction,
    ) -> None:
        settings = engine.settings
        self.engine = engine
        self.reference = reference
        self.size = instruction.size
        self.grid = supervision_grid(instruction.size)
        self.scale = min(instruction.size) / 512
        self.handles = instruction.handles.to(noise.device)
        self.targets = instruction.targets.to(noise.device)
        self.mask = _latent_mask(instruction, noise)
        self.reach = _latent_reach(instruction, noise, settings.supervision_reach)
        self.image = image
        self.latents = noise.detach().float().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.latents], lr=settings.supervision_lr)
        self.scaler = torch.amp.GradScaler(noise.device.type, enabled=engine.unet.dtype == torch.float16)
        self.selector = PointSelector(settings.dynamic_selection, settings.similarity_threshold, engine.generator)
        self.k = 0
        self.remaining = settings.max_iterations
        self.is_settling = False
        self.still_iterations = 0
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._pending: tuple[DragIteration, torch.Tensor, torch.Tensor] | None = None
        self.original_patches = self._patches_at(self.handles)

    @property
    def distances(self) -> torch.Tensor:
        """`[points]`: how far each handle is from its target."""
        return (self.targets - self.handles).norm(dim=-1)

    @property
    def arrived(self) -> torch.Tensor:
        """`[points]` bool: within the stop distance, 4 px on a short side of 512 px unless told otherwise."""
        return self._have_arrived(self.handles)

    def _have_arrived(self, handles: torch.Tensor) -> torch.Tensor:
        given = self.engine.settings.stop_distance
        stop_distance = STOP_DISTANCE_AT_512 * self.scale if given is None else given
        return (self.targets - handles).norm(dim=-1) <= stop_distance

    def _all_arrive(self, handles: torch.Tensor) -> bool:
        """Whether `handles` have all arrived, but for those that are abandoned."""
        return bool((self._have_arrived(handles) | self.abandoned).all())

    @property
    def abandoned(self) -> torch.Tensor:
        """`[points]` bool: handles that the strategy "first" gave up, in the maps, the motion and the stop rule."""
        given_up = self.selector.abandoned
        return torch.zeros_like(self.arrived) if given_up is None else given_up

    @property
    def is_finished(self) -> bool:
        """Whether every handle has arrived that was not given up, and has settled if that is wanted."""
        return self._all_arrive(self.handles) and not (self.is_settling and self.remaining > 0)

    @property
    def is_stalled(self) -> bool:
        """Whether no live handle has moved noticeably for some iterations. Straight steps are small, and arrive."""
        moves = self.engine.motion_predictor is not None and not self.is_settling
        return moves and self.still_iterations >= STALL_ITERATIONS

    def look(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The model output and F(z_t^k) on the supervision grid, with their graph.

        One UNet pass serves all who ask between two changes of the latent: the record of the iteration before, the
        selection, and the first Adam step.
        """
        if self._seen is None:
            with torch.enable_grad():
                self._seen = self.engine.features(self.latents, self.size)
        return self._seen

    def iterate(self) -> None:
        """One iteration of predict-and-move.

        Selection needs nothing of the prediction, and comes first because handles that are abandoned must not be in
        its maps.

        Raises:
            FloatingPointError: if a loss or a latent is not finite.
        """
        self.select_points()
        self.predict_motion()
        self.supervise_motion()
        self.denoise()

    def select_points(self) -> None:
        """Find the valid handles and their similarities (Sec. 3.2.2); all that are left are valid in settling."""
        handles, targets = (scale_points(points, self.size, self.grid) for points in (self.handles, self.targets))
        self.similarities = handle_target_similarity(self.look()[1].detach(), handles, targets)
        self.valid = ~self.abandoned if self.is_settling else self.selector(self.similarities, self.arrived)

    def predict_motion(self) -> None:
        """Find the next step of each handle, from the flow of the motion predictor if there is one (Sec. 3.2.1)."""
        live = ~self.abandoned
        self.predicted_step, self.flow = torch.zeros_like(self.handles), None
        if self.engine.motion_predictor is None or self.is_settling:
            self.predicted_step[live] = self.straight_step()[live]
        else:
            self.flow = self.engine.motion_predictor.predict_flow(self.image, self.handles[live], self.targets[live])
            self.predicted_step[live] = sample_flow(self.flow, self.handles[live][None])[0]

    def straight_step(self) -> torch.Tensor:
        """`[points, 2]`: equal steps over what remains of way and iterations."""
        return straight_step(self.handles, self.targets, self.remaining)

    def supervise_motion(self) -> None:
        """Move the handles by the guarded prediction, and take the Adam steps of Eq. 3 on z_t^k.

        Raises:
            FloatingPointError: if a loss or the latent is not finite.
        """
        settings = self.engine.settings
        self.moved = self._next_handles()
        if settings.optimizer_scope == "iteration":
            self.optimizer = torch.optim.Adam([self.latents], lr=settings.supervision_lr)
        sources, destinations = (
            scale_points(points[self.valid], self.size, self.grid) for points in (self.handles, self.moved)
        )
        if settings.source_patches == "original":
            patches = self.original_patches[self.valid]
        else:
            patches = self._patches_at(self.handles[self.valid])
        losses = []
        for _ in range(settings.supervision_steps):
            output, features = self.look()
            if settings.source_patches == "step":
                patches = sample_patches(features.detach(), sources, settings.supervision_radius)
            with torch.enable_grad():
                loss = self._loss(output, features, patches, destinations)
                self.latents.grad = self.gradient(self.scaler.scale(loss))
            losses.append(loss.detach())
            self.step_latents()
            self._seen = None
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(f"Motion supervision met losses of {values}.")
        self.loss = values[0]
        self._supervised = patches, destinations

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """The gradient of a loss to the latent, and to nothing else: the weights' would take memory and time."""
        return torch.autograd.grad(loss, self.latents)[0]

    def step_latents(self) -> None:
        """One Adam step on z_t^k by the gradient that is there (Eq. 3), damped and kept near if that is wanted.

        Adam moves each value of the latent by about the learning rate, however small its gradient: far from all
        handles, where a gradient is little more than rounding and noise, too. A part of the first gradient's largest
        value, added to the denominator, leaves such places at rest; a reach leaves all at rest that is far from the
        handles' ways, whatever its gradient.
        """
        damping = self.engine.settings.supervision_damping
        self.scaler.unscale_(self.optimizer)
        if damping > 0 and not self.optimizer.state:
            assert self.latents.grad is not None
            largest = self.latents.grad.abs().max().item()
            if math.isfinite(largest):
                group = self.optimizer.param_groups[0]
                group["eps"] = max(group["eps"], damping * largest)
        before = self.latents.detach().clone()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.reach is not None:
            with torch.no_grad():
                self.latents.copy_(before.lerp(self.latents, self.reach))

    def denoise(self) -> None:
        """Find z_0^{k+1} of the optimised latent: a preview of it, if that is wanted and more iterations follow.

        Raises:
            FloatingPointError: if it is not finite.
        """
        engine = self.engine
        settles = self._settles_next()
        ends = not settles and (self.remaining == 1 or self._all_arrive(self.moved))
        is_seen = engine.is_watched or (engine.motion_predictor is not None and not settles)
        self.is_preview = not ends and (engine.settings.preview_steps is not None or not is_seen)
        steps = engine.settings.preview_steps if self.is_preview else None
        if is_seen or ends:
            self.denoised = engine.denoise(self.latents.detach(), self.reference, steps)
        elif torch.isfinite(self.latents).all():
            self.denoised = None
        else:
            raise FloatingPointError("Motion supervision led to a latent that is not finite.")

    def step(self) -> DragStep:
        """What the iteration came to, with its record.

        The loss after its last Adam step is known when someone looks at the latent again: see
        [`DragEdit.close_record`].
        """
        record = DragIteration(
            handles=self.handles,
            predicted_step=self.predicted_step,
            step=self.moved - self.handles,
            valid=self.valid,
            similarities=self.similarities,
            loss_before=self.loss,
            loss_after=math.nan,
            wrong_way_count=int(is_wrong_way(self.predicted_step, self.handles, self.targets).sum()),
        )
        self._pending = record, *self._supervised
        return DragStep(self.latents.detach().clone(), self.denoised, record, self.is_preview)

    def close_record(self) -> None:
        """Write the loss at z_t^{k+1} into the record of the iteration that led there."""
        if self._pending is not None:
            record, patches, destinations = self._pending
            record.loss_after = self._loss(*self.look(), patches, destinations).item()
            self._pending = None

    def advance(self, image: torch.Tensor | None) -> None:
        """I_{k+1}, if it was decoded, and h^{k+1} take the place of I_k and h^k (Sec. 3.4); the next iteration begins.

        It is the first one of settling if all handles have arrived with this one, and that is wanted.
        """
        begins_to_settle = not self.is_settling and self._settles_next()
        live = ~(self.arrived | self.abandoned)
        moved_noticeably = (self.moved - self.handles).norm(dim=-1) >= STALL_STEP_AT_512 * self.scale
        self.still_iterations = 0 if moved_noticeably[live].any() else self.still_iterations + 1
        self.handles = self.moved
        self.image = self.image if image is None else image
        self.k += 1
        self.remaining -= 1
        if begins_to_settle:
            self.is_settling, self.remaining = True, self.engine.settings.settle_iterations

    def _settles_next(self) -> bool:
        """Whether the iteration after this one is one of settling."""
        if self.is_settling:
            return self.remaining > 1
        return self.engine.settings.settle_iterations > 0 and self._all_arrive(self.moved)

    def _patches_at(self, points: torch.Tensor) -> torch.Tensor:
        """`[points, channels, 2 r + 1, 2 r + 1]` of F(z_t^k) round points of the edit."""
        cells = scale_points(points, self.size, self.grid)
        return sample_patches(self.look()[1].detach(), cells, self.engine.settings.supervision_radius)

    def _next_handles(self) -> torch.Tensor:
        """h^{k+1}: handles moved by the guarded prediction (Eq. 4), inside the picture. In settling, the targets."""
        settings = self.engine.settings
        if self.is_settling:
            return torch.where(self.abandoned[:, None], self.handles, self.targets)
        step = guard_step(self.predicted_step, self.handles, self.targets, self.straight_step(), settings.motion_guard)
        moving = self.valid if settings.hold_unselected else ~self.abandoned
        return torch.where(moving[:, None], move_handles(self.handles, step, self.size), self.handles)

    def _loss(
        self, output: torch.Tensor, features: torch.Tensor, patches: torch.Tensor, destinations: torch.Tensor
    ) -> torch.Tensor:
        """Eq. 2 at the latent that `output` and `features` were computed from."""
        settings, engine = self.engine.settings, self.engine
        loss = motion_supervision_loss(
            features, patches, destinations, settings.supervision_radius, settings.channel_reduction
        )
        if self.mask is None or settings.mask_weight == 0:
            return loss
        previous = engine.sampler.step(output, engine.timesteps[0], self.latents).prev_sample
        return loss + settings.mask_weight * mask_loss(previous, self.reference.previous, self.mask)


def _latent_mask(instruction: DragInstruction, latents: torch.Tensor) -> torch.Tensor | None:
    """M on the grid of the latent, by nearest neighbour."""
    mask = instruction.scaled_to((latents.shape[-2], latents.shape[-1])).mask
    return None if mask is None else mask.to(latents.device)


def _latent_reach(instruction: DragInstruction, latents: torch.Tensor, reach: float | None) -> torch.Tensor | None:
    """`[h, w]`: the share of its steps that a value of the latent takes, by its distance to the nearest handle's way.

    `exp(-(distance / reach)^4)`: all of them along the ways, from handle to target, and next to none at 1.5 times the
    reach, which is a share of the short side.
    """
    if reach is None:
        return None
    height, width = latents.shape[-2:]
    scaled = instruction.scaled_to((height, width))
    start, way = scaled.handles[:, None], (scaled.targets - scaled.handles)[:, None]  # [points, 1, 2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    from_start = torch.stack([x, y], dim=-1).flatten(0, 1) - start  # [points, cells, 2]
    along = ((from_start * way).sum(dim=-1) / way.square().sum(dim=-1).clamp(min=1e-12)).clamp(0, 1)
    distance = (from_start - along[..., None] * way).norm(dim=-1).amin(dim=0).unflatten(0, (height, width))
    return torch.exp(-((distance / (reach * min(height, width))) ** 4)).to(latents)
