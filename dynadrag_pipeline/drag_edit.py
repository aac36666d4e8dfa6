"""One drag in the making: what an iteration of predict-and-move does, part by part (Fig. 2(a))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from motion_predictor.points import sample_flow, scale_points

from .carry import LatentCarry
from .content_search import content_offsets
from .dense_flow import DenseFlow, folds, resize_shift, unfolded
from .drag_engine import DragEngine, Reference
from .drag_instruction import DragInstruction
from .drag_state import DragPoints, DragState, DragStep
from .latent_bend import NoisyLatent, invented_cells
from .latent_optimizer import LatentOptimizer, LeastLoss, latent_reach
from .motion.source import EditView, Motion, MotionSource, dense_flow_of, warn_if_not_asked
from .motion.straight import SettlingMotion, WholeWayMotion
from .motion_supervision import mask_loss, motion_supervision_loss, sample_patches
from .pipeline_output import DragIteration
from .point_selection import PointSelector, handle_target_similarity
from .stop_rule import StopRule
from .unet_features import supervision_grid

MOST_CELLS = 12
"""To each side of its target, content that settles is looked for among so many cells at most."""


@dataclass(frozen=True)
class Supervised:
    """What motion supervision compared in an iteration, for the loss after its last step.

    Attributes:
        patches (`torch.Tensor` of shape `(valid points, channels, 2 r_1 + 1, 2 r_1 + 1)`): the constant ones.
        destinations (`torch.Tensor` of shape `(valid points, 2)`): h^{k+1} in cells of the supervision grid.
    """

    patches: torch.Tensor
    destinations: torch.Tensor


@dataclass(frozen=True)
class Carried:
    """What carry did in an iteration.

    Attributes:
        at_handles (`torch.Tensor` of shape `(points, 2)`): how far it bent the latent at each handle.
        unfolded (`float`): share of the flow that was smoothed.
    """

    at_handles: torch.Tensor
    unfolded: float


class DragEdit:
    """What changes from iteration to iteration. All points are (x, y) in pixels of the edit.

    An iteration is made by six methods in the order of [`DragEdit.iterate`], each of which leaves behind what the
    next ones need. Another way to do one of their parts has to leave the same.

    Attributes:
        points ([`DragPoints`]): h^k, the targets, and what has become of each handle.
        image (`torch.Tensor` of shape `(1, 3, height, width)`):
            I_k in [0, 1]; the first as long as there are no pictures between.
        optimizer ([`LatentOptimizer`]): holds `latents`, z_t^k, and changes it.
        rule ([`StopRule`]): iterations that remain, and whether content is being waited for at the targets.
        valid (`torch.Tensor` of shape `(points,)`, bool): handles to supervise. Left by [`DragEdit.select_points`].
        similarities (`torch.Tensor` of shape `(points,)`): what they were selected by. Left by the same.
        motion ([`Motion`]): where the source of motion sends the handles. Left by [`DragEdit.propose_motion`].
        next_handles (`torch.Tensor` of shape `(points, 2)`):
            h^{k+1}. Left by the same, and by [`DragEdit.locate_handles`].
        carry ([`LatentCarry`], *optional*): what z_t^k is made of, if it goes along with the motion.
        loss (`float`): Eq. 2 at z_t^k. Left by [`DragEdit.supervise_motion`], as are the latents.
        denoised (`torch.Tensor` of shape `(1, channels, h, w)`, *optional*):
            z_0^{k+1}. Left by [`DragEdit.denoise`]; `None` if nobody would see it.
        is_preview (`bool`): whether that is less than the full denoising. Left by the same.
    """

    valid: torch.Tensor
    similarities: torch.Tensor
    motion: Motion
    next_handles: torch.Tensor
    loss: float
    denoised: torch.Tensor | None
    is_preview: bool

    def __init__(
        self,
        engine: DragEngine,
        reference: Reference,
        start: DragState,
        instruction: DragInstruction,
        source: MotionSource,
        *,
        input_size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        is_watched: bool = True,
    ) -> None:
        """
        Args:
            engine ([`DragEngine`]): the models and numbers.
            reference ([`Reference`]): the unedited picture's denoising.
            start ([`DragState`]): z_t^0 and I_0, or those of an edit to go on from.
            instruction ([`DragInstruction`]): points and mask on the grid of the edit.
            source ([`MotionSource`]): says where handles go.
            input_size (`tuple[int, int]`, *optional*): (height, width) of the user's picture, if it is another.
            generator (`torch.Generator`, *optional*): a CPU generator for the strategy `"random"`.
            is_watched (`bool`, defaults to `True`):
                whether somebody looks at the pictures between. If not, they are made for sources alone that need them.
        """
        settings, device = engine.settings, start.noise.device
        self.engine = engine
        self.reference = reference
        self.source = source
        self.size = instruction.size
        self.input_size = input_size or instruction.size
        self.is_watched = is_watched
        stop_distance = settings.stop_distance
        if stop_distance is not None:
            stop_distance = stop_distance * min(self.size) / min(self.input_size)
        self.points = DragPoints.of(instruction, stop_distance, device)
        self.image = start.image
        self.mask = _latent_mask(instruction, start.noise)
        self.picture_mask = None if instruction.mask is None else instruction.mask[None, None].to(device)
        paths = _paths_on(self.size, self.input_size, instruction, getattr(source, "paths", None))
        reach = latent_reach(paths, self.size, start.noise, settings.supervision_reach)
        self.optimizer = LatentOptimizer(start.noise, settings, reach, engine.denoiser.is_half)
        self.selector = PointSelector(settings.dynamic_selection, settings.similarity_threshold, generator)
        self.rule = StopRule(settings, min(self.size) / 512, can_stall=not source.always_arrives)
        self.k = 0
        self.carry = None if settings.carry == "none" else self._new_carry(start, generator)
        self._start_flow = start.flow
        self._silence_reference()
        self._carried: Carried | None = None
        self._look: tuple[torch.Tensor, torch.Tensor] | None = None
        self._open_record: tuple[DragIteration, Supervised] | None = None
        self.original_patches = self._patches_at(self.points.handles)
        self._previous = self._previous_of(start)
        warn_if_not_asked(source, settings.carry)
        source.start(self.view)

    @property
    def latents(self) -> torch.Tensor:
        """`(1, channels, h, w)`: z_t^k, float32, what is optimised."""
        return self.optimizer.latents

    @property
    def flow(self) -> DenseFlow | None:
        """What the latent was carried by since the unedited picture, by this drag or by those before."""
        return self._start_flow if self.carry is None else self.carry.flow

    @property
    def view(self) -> EditView:
        """What a source of motion may look at."""
        return EditView(
            handles=self.points.handles,
            targets=self.points.targets,
            moving=self.points.moving,
            size=self.size,
            input_size=self.input_size,
            image=self.image,
            k=self.k,
            remaining=self.rule.remaining,
            guard=self.engine.settings.motion_guard,
            features=lambda: self.look()[1].detach(),
            original_patches=self.original_patches,
            mask=self.picture_mask,
            largest_deviation=self.engine.settings.largest_deviation,
        )

    @property
    def goes_all_the_way(self) -> bool:
        """Whether this iteration carries everything to its target, and leaves supervision to the next ones."""
        return self.engine.settings.carry == "once" and not self.rule.is_settling

    def look(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The model output and F(z_t^k) on the supervision grid, with their graph.

        One UNet pass serves all who ask between two changes of the latent: the record of the iteration before, the
        selection, the source of motion, and the first Adam step.
        """
        if self._look is None:
            with torch.enable_grad():
                self._look = self.engine.features(self.latents, self.size)
        return self._look

    def look_again(self) -> None:
        """The next look takes a pass of its own: the latent has changed."""
        self._look = None

    def iterate(self) -> None:
        """One iteration of predict-and-move.

        Selection needs nothing of the prediction, and comes first because handles that are abandoned must not be in
        its maps. Handles are located before the denoising, which asks whether they have arrived.

        Raises:
            FloatingPointError: if a loss or a latent is not finite.
        """
        self.select_points()
        self.propose_motion()
        self.carry_latent()
        self.supervise_motion()
        self.locate_handles()
        self.denoise()

    def select_points(self) -> None:
        """Find the valid handles and their similarities (Sec. 3.2.2). Pins are valid, always; in settling, all are."""
        handles, targets = (self._in_cells(points) for points in (self.points.handles, self.points.targets))
        self.similarities = handle_target_similarity(self.look()[1].detach(), handles, targets)
        if self.rule.is_settling:
            self.valid = ~self.points.abandoned
            return
        self.valid = self.selector(self.similarities, self.points.arrived) | self.points.pinned
        if self.selector.abandoned is not None:
            self.points.abandoned = self.selector.abandoned

    def propose_motion(self) -> None:
        """Ask the source where the handles go (Sec. 3.2.1, Eq. 4): h^{k+1}. In settling, they stand on the targets.

        Raises:
            FloatingPointError: if the source answers with what is not finite.
        """
        source = SettlingMotion() if self.rule.is_settling else self.source
        source = WholeWayMotion() if self.goes_all_the_way else source
        self.motion = source.propose(self.view)
        held = self.engine.settings.hold_unselected and not self.rule.is_settling
        moving = self.valid if held else self.points.moving
        destinations = (
            self.motion.destinations if self.rule.is_settling else self._on_picture(self.motion.destinations)
        )
        self.next_handles = torch.where(moving[:, None], destinations, self.points.handles)

    def carry_latent(self) -> None:
        """Bend z_t^k along the dense flow of the motion, if that is wanted: beyond the paper. In settling, it stays.

        Raises:
            FloatingPointError: if the flow is not finite.
        """
        self._carried = None
        if self.carry is None or self.rule.is_settling:
            return
        said = dense_flow_of(self.source, self.view, self.next_handles)
        flow = DenseFlow.of(unfolded(said))
        self.optimizer.put(self.carry.move(flow, self.latents))
        self._silence_reference()
        self.look_again()
        at_handles = sample_flow(resize_shift(flow.forward, self.size), self.points.handles[None])[0]
        self._carried = Carried(at_handles, folds(said).float().mean().item())

    def supervise_motion(self) -> None:
        """Take the Adam steps of Eq. 3 on z_t^k, towards the handles' patches at h^{k+1} (Eq. 2).

        None, where the latent was carried all the way: what is left is for the iterations of settling. There, steps
        only finish what carry did: the latent of the least loss is kept, which may be the one that they began with.

        Raises:
            FloatingPointError: if a loss or the latent is not finite.
        """
        settings = self.engine.settings
        self.optimizer.begin_iteration()
        supervised = Supervised(self._source_patches(), self._in_cells(self.next_handles[self.valid]))
        losses = []
        before = self.latents.detach().clone()
        best = LeastLoss() if self.carry is not None and self.rule.is_settling else None
        if self.goes_all_the_way:
            losses.append(self._loss(*self.look(), supervised).detach())
        for _ in range(0 if self.goes_all_the_way else settings.supervision_steps):
            output, features = self.look()
            if settings.source_patches == "step":
                supervised = Supervised(self._source_patches(), supervised.destinations)
            with torch.enable_grad():
                loss = self._loss(output, features, supervised)
            if best is not None:
                best.offer(loss, self.latents)
            self.optimizer.step(loss)
            losses.append(loss.detach())
            self.look_again()
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(f"Motion supervision met losses of {values}.")
        self.loss, self._supervised = values[0], supervised
        if best is not None:
            best.offer(self._loss(*self.look(), supervised), self.latents)
            if not torch.equal(best.latents, self.latents):
                self.optimizer.put(best.latents)
                self.look_again()
        self._added = (self.latents.detach() - before).square().mean().sqrt().item()

    def locate_handles(self) -> None:
        """Ask the source where the handles are now: where they were sent, unless it looks. In settling, they stay.

        What was carried settles no longer than its content needs.
        """
        if self.rule.is_settling and self.carry is not None and self._content_is_there():
            self.rule.end()
        if not self.rule.is_settling and not self.goes_all_the_way:
            located = self._on_picture(self.source.locate(self.view, self.next_handles))
            self.next_handles = torch.where(self.points.moving[:, None], located, self.next_handles)

    def denoise(self) -> None:
        """Find z_0^{k+1} of the optimised latent: a preview of it, if that is wanted and more iterations follow.

        Raises:
            FloatingPointError: if it is not finite.
        """
        engine, arrive = self.engine, self.points.all_would_arrive(self.next_handles)
        settles, ends = self.rule.settles_after(arrive), self.rule.ends_after(arrive)
        is_seen = self.is_watched or (self.source.needs_picture and not settles)
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
            handles=self.points.handles,
            predicted_step=self.motion.predicted_step,
            step=self.next_handles - self.points.handles,
            valid=self.valid,
            similarities=self.similarities,
            loss_before=self.loss,
            loss_after=math.nan,
            wrong_way_count=int(self.motion.wrong_way.sum()),
            gradient_retries=self.optimizer.loss_scale.retries,
            deviation=self.motion.deviation,
            carried=None if self._carried is None else self._carried.at_handles,
            invented=0.0 if self.reference.silent is None else self.reference.silent.mean().item(),
            unfolded=0.0 if self._carried is None else self._carried.unfolded,
            added=self._added,
        )
        self._open_record = record, self._supervised
        return DragStep(self.latents.detach().clone(), self.denoised, record, self.is_preview, flow=self.flow)

    def close_record(self) -> None:
        """Write the loss at z_t^{k+1} into the record of the iteration that led there."""
        if self._open_record is not None:
            record, supervised = self._open_record
            record.loss_after = self._loss(*self.look(), supervised).item()
            self._open_record = None

    def advance(self, image: torch.Tensor | None) -> None:
        """I_{k+1}, if it was decoded, and h^{k+1} take the place of I_k and h^k (Sec. 3.4): the next iteration."""
        self.rule.advance(self.points, self.next_handles)
        self.points.handles = self.next_handles
        self.image = self.image if image is None else image
        self.k += 1

    def _new_carry(self, start: DragState, generator: torch.Generator | None) -> LatentCarry:
        noise = start.noise if self.reference.noise is None else self.reference.noise
        original = NoisyLatent.of(noise, self.reference.latents, self.engine.alpha_bar, generator)
        flow = start.flow or DenseFlow.still(self.size, noise)
        return LatentCarry(original, start.noise, flow, self.mask)

    def _silence_reference(self) -> None:
        """Leave it to the edit what is where nothing of the unedited picture was carried to."""
        size = (self.latents.shape[-2], self.latents.shape[-1])
        silent = None if self.flow is None else invented_cells(self.flow, size)
        self.reference = replace(self.reference, silent=silent)

    def _content_is_there(self) -> bool:
        """Whether what was at each handle is found at its target, among what is near it, by the features.

        A pass that the next look takes anyway.
        """
        valid, features = self.valid, self.look()[1].detach()
        cells = min(features.shape[-2:]) / min(self.size) * self.points.stop_distance
        reach = min(max(math.ceil(2 * cells), 1), MOST_CELLS)
        offsets = content_offsets(
            features, self.original_patches[valid], self._in_cells(self.next_handles[valid]), reach
        )
        return bool((offsets.norm(dim=-1) <= cells).all())

    def _on_picture(self, points: torch.Tensor) -> torch.Tensor:
        """Points of a source of motion, moved onto the picture where they leave it."""
        if not torch.isfinite(points[self.points.moving]).all():
            raise FloatingPointError(f"The source of motion `{self.source.name}` answered with what is not finite.")
        return torch.stack([points[:, axis].clamp(0, self.size[1 - axis] - 1) for axis in (0, 1)], dim=-1)

    def _in_cells(self, points: torch.Tensor) -> torch.Tensor:
        """Points of the edit on the supervision grid."""
        return scale_points(points, self.size, supervision_grid(self.size))

    def _patches_at(self, points: torch.Tensor) -> torch.Tensor:
        """`(points, channels, 2 r_1 + 1, 2 r_1 + 1)` of F(z_t^k) round points of the edit."""
        radius = self.engine.settings.supervision_radius
        return sample_patches(self.look()[1].detach(), self._in_cells(points), radius)

    def _source_patches(self) -> torch.Tensor:
        """The constant patches of Eq. 2 for the valid handles, from the source of motion if it has some.

        What is to stand still, a pin or content that settles, is compared with what was there when the edit began: its
        patch at z_t^k, where it is to be, is the one that it already has.
        """
        valid = self.valid
        original = self.original_patches[valid]
        if self.motion.templates is not None:
            current = self.motion.templates[valid]
        elif self.engine.settings.source_patches == "original" or self.rule.is_settling or self.carry is not None:
            return original
        else:
            current = self._patches_at(self.points.handles[valid])
        return torch.where(self.points.pinned[valid][:, None, None, None], original, current)

    def _loss(self, output: torch.Tensor, features: torch.Tensor, supervised: Supervised) -> torch.Tensor:
        """Eq. 2 at the latent that `output` and `features` were computed from."""
        settings = self.engine.settings
        loss = motion_supervision_loss(
            features,
            supervised.patches,
            supervised.destinations,
            settings.supervision_radius,
            settings.channel_reduction,
        )
        if self.mask is None or settings.mask_weight == 0:
            return loss
        previous = self.engine.step_back(output, self.latents)
        return loss + settings.mask_weight * mask_loss(previous, self._previous, self.mask)

    def _previous_of(self, start: DragState) -> torch.Tensor:
        """z_{t-1} of what the drag begins with: what Eq. 2 compares with outside the mask."""
        if self.mask is None or start.handles is None:
            return self.reference.previous
        return self.engine.step_back(self.look()[0].detach(), self.latents.detach())


def _paths_on(
    size: tuple[int, int],
    input_size: tuple[int, int],
    instruction: DragInstruction,
    paths: Sequence[torch.Tensor] | None,
) -> list[torch.Tensor]:
    """`(corners, 2)` for each handle: from it over what it is to pass, if that is known, to its target."""
    between = [torch.zeros(0, 2)] * len(instruction.handles) if paths is None else paths
    return [
        torch.cat([handle[None], scale_points(path, input_size, size), target[None]])
        for handle, path, target in zip(instruction.handles, between, instruction.targets, strict=True)
    ]


def _latent_mask(instruction: DragInstruction, latents: torch.Tensor) -> torch.Tensor | None:
    """M on the grid of the latent."""
    mask = instruction.scaled_to((latents.shape[-2], latents.shape[-1])).mask
    return None if mask is None else mask.to(latents.device)
