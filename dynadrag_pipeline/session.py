"""A picture that is open for editing: what it costs once is done once, and any number of drags follow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from diffusers.utils import logging

from motion_predictor.common.checks import got
from motion_predictor.points import Points

from .components import check_call, check_components, check_prompt_embeds, frozen_components, native_edit_size
from .content import ContentLocations, content_features, locate_content, moves_after
from .denoiser import Condition, UNetDenoiser
from .drag_edit import DragEdit
from .drag_engine import DragEngine, Reference, make_engine
from .drag_instruction import DragInstruction, Mask
from .drag_loop import DragLoop
from .drag_result import DragResult
from .drag_state import DragState, DragStep
from .encoding import TOKENIZING, decode_latents, encode_picture, encode_prompt
from .fit_key import fit_key, picture_fingerprint
from .graph_capture import capture_on
from .graphed_denoiser import CapturedPasses, captured_passes
from .identity_lora import (
    IdentityLora,
    LoraSettings,
    attached_identity_lora,
    fit_identity_lora,
)
from .motion.choice import choose_motion
from .motion.path import Paths
from .motion.source import MotionSource
from .picture import resize_picture
from .repeatable import repeatable_attention, repeatable_convolutions
from .settings import DragSettings, SettingsInForce
from .source_restoration import restore_source

logger = logging.get_logger(__name__)

ONCE_PER_PICTURE = (
    "num_inference_steps",
    "inversion_strength",
    "kv_start_layer",
    "kv_placement",
    "identity_lora_steps",
    "identity_lora_rank",
    "identity_lora_lr",
    "processing_resolution",
    "restore_source",
    "locate_content",
)
"""Settings that a session is opened with, and that a drag in it can't change."""

FindLora = Callable[["DragSession"], IdentityLora | None]


@dataclass
class DragSession:
    """One picture, its identity LoRA, its inversion and its reference, and the drags that were made of it.

    Between two calls the models are as their owner left them. [`DynaDragPipeline.open_session`] opens one.

    Attributes:
        models (`DiffusionPipeline` or `ModularPipeline`): has the components.
        in_force ([`SettingsInForce`]): the settings, and where they come from.
        picture (`torch.Tensor` of shape `(1, 3, height, width)`): the input in [0, 1], at its own size.
        progress_bar (`Callable`): `(total, description) -> context manager with update()`.
        prompt (`str`): a description of the picture.
        given_embeds (`torch.Tensor` of shape `(1, tokens, width)`, *optional*): the text condition, without a prompt.
        seed (`int`): of the identity LoRA, and of the strategy `"random"`.
        cross_attention_kwargs (`dict`, *optional*): for the attention processors; `scale` weighs the user's LoRAs.
        decode_preview (`Callable`, *optional*): decodes previews, if another than the VAE does.
        edit_picture (`torch.Tensor` of shape `(1, 3, height, width)`): I_0, at the size of the edit.
        image_latents (`torch.Tensor` of shape `(1, channels, h, w)`): z_0 of it.
        prompt_embeds (`torch.Tensor` of shape `(1, tokens, width)`): the text condition.
        lora ([`IdentityLora`], *optional*): the picture's; `None` if none was wanted.
        noise (`torch.Tensor` of shape `(1, channels, h, w)`): z_t^0.
        reference ([`Reference`]): its denoising, with the bank of keys and values.
        drag_engine ([`DragEngine`]): of the drag at hand, whose consumer may change its denoiser's condition.
        history (`list[DragResult]`): the drags so far, the last one last.

    Example:

    ```py
    >>> session = pipe.open_session(portrait)  # doctest: +SKIP
    >>> for step in session.drag(handles=[(127, 160)], targets=[(151, 160)]):  # doctest: +SKIP
    ...     print(step.record.loss_before)
    >>> session.image(session.history[-1])  # the dragged picture, (1, 3, height, width)  # doctest: +SKIP
    ```
    """

    models: Any
    in_force: SettingsInForce
    picture: torch.Tensor
    progress_bar: Callable[[int, str], Any]
    prompt: str = ""
    given_embeds: torch.Tensor | None = None
    seed: int = 0
    cross_attention_kwargs: dict[str, Any] | None = None
    decode_preview: Callable[[torch.Tensor], torch.Tensor] | None = None
    edit_picture: torch.Tensor = field(init=False)
    image_latents: torch.Tensor = field(init=False)
    prompt_embeds: torch.Tensor = field(init=False)
    lora: IdentityLora | None = None
    noise: torch.Tensor = field(init=False)
    reference: Reference = field(init=False)
    drag_engine: DragEngine = field(init=False, repr=False)
    history: list[DragResult] = field(default_factory=list)
    _models: _Held = field(default_factory=lambda: _Held(), init=False, repr=False)
    _lora: _Held = field(default_factory=lambda: _Held(), init=False, repr=False)
    _attention_kwargs: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _sample_latents: Callable[[torch.Generator], torch.Tensor] | None = field(default=None, init=False, repr=False)
    _working: Any = field(default_factory=threading.RLock, init=False, repr=False)
    _reconstruction: torch.Tensor | None = field(default=None, init=False, repr=False)
    _source_features: torch.Tensor | None = field(default=None, init=False, repr=False)

    @torch.no_grad()
    def open(self, find_lora: FindLora | None = None) -> DragSession:
        """Do all that a picture costs once: encoding, identity LoRA, inversion, reference.

        Args:
            find_lora (`Callable`, *optional*): where the LoRA comes from; by default one is fitted.

        Raises:
            ValueError: before any work, if settings and components don't fit.
        """
        self.check()
        with self.working():
            self.encode()
            if self.settings.identity_lora_steps:
                self.lora = self.fit_identity_lora() if find_lora is None else find_lora(self)
            with self.carrying_lora():
                self.invert()
                self.denoise_reference()
        return self

    @property
    def settings(self) -> DragSettings:
        """The values of `in_force`."""
        return self.in_force.settings

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the edit."""
        return native_edit_size(self.models, self.picture, self.settings.processing_resolution)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.picture.shape[-2], self.picture.shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """What the picture's LoRA is filed under, among others."""
        return picture_fingerprint(self.picture, self.size)

    @property
    def fit_key(self) -> str:
        """SHA-256 of the content of all that a fit of the LoRA depends on, inside [`DragSession.working`]."""
        sample = self.draw_latents(torch.Generator().manual_seed(self.seed))
        return fit_key(
            self.models.unet,
            self.models.scheduler.config,
            torch.cat([self.image_latents, sample]),
            Condition(self.prompt_embeds, self._attention_kwargs),
            LoraSettings.of(self.settings),
            self.seed,
            self.fingerprint,
        )

    def check(self) -> None:
        """Raise a ValueError if settings and components don't fit."""
        check_components(self.models, self.settings)
        check_call(self.models, self.settings, self.cross_attention_kwargs)
        check_prompt_embeds(self.given_embeds, self.prompt, self.models)

    # --- what a picture costs once ---

    def encode(self) -> None:
        """Picture and prompt to what the denoiser works on. Models: the VAE's encoder, the text encoder."""
        with self._turn(), self.working():
            self.edit_picture = resize_picture(self.picture, self.size).to(self.models._execution_device)
            self.image_latents, self._sample_latents = encode_picture(self.models.vae, self.edit_picture)
            given, unet = self.given_embeds, self.models.unet
            embeds = embed_prompt(self.models, self.prompt) if given is None else given.detach()
            self.prompt_embeds = embeds.to(self.models._execution_device, unet.dtype)
        self._source_features = None

    def draw_latents(self, generator: torch.Generator) -> torch.Tensor:
        """A sample of the posterior of z_0, which the identity LoRA is fitted to. Model: the VAE's encoder, once."""
        if self._sample_latents is None:
            _, self._sample_latents = encode_picture(self.models.vae, self.edit_picture)
        return self._sample_latents(generator)

    def fit_identity_lora(self) -> IdentityLora:
        """Fit a LoRA to the picture. Models: the UNet with gradients, and the VAE's encoder for samples."""
        settings = self.settings
        with self._turn(), self.working():
            condition = Condition(self.prompt_embeds, self._attention_kwargs)
            return fit_identity_lora(
                UNetDenoiser(self.models.unet, condition),
                self.models.scheduler.config,
                self.draw_latents,
                LoraSettings.of(settings),
                seed=self.seed,
                picture=self.fingerprint,
                progress_bar=lambda total: self.progress_bar(total, "Identity LoRA"),
                capture=capture_on(self.models._execution_device) if settings.cuda_graphs else None,
            )

    def invert(self) -> None:
        """z_0 to z_t^0. Model: the UNet."""
        with self._turn(), self.working(), self.carrying_lora():
            self.noise = self.engine().invert(self.image_latents)

    def denoise_reference(self) -> None:
        """z_t^0 to z_0^0, keeping keys and values. Model: the UNet."""
        with self._turn(), self.working(), self.carrying_lora():
            self.reference = self.engine().denoise_reference(self.noise)
        self._reconstruction = None

    def engine(self, in_force: SettingsInForce | None = None) -> DragEngine:
        """The engine of this picture's edits, inside [`DragSession.working`]."""
        settings = (in_force or self.in_force).settings
        condition = Condition(self.prompt_embeds, self._attention_kwargs)
        captured = self._lora.value
        return make_engine(self.models, settings, condition, self.progress_bar, self.decode_preview, captured)

    # --- drags ---

    @property
    def original(self) -> DragState:
        """The state before any drag."""
        return DragState(self.noise, self.reference.latents, self.edit_picture, picture=self.fingerprint)

    @property
    def state(self) -> DragState:
        """The state after the last drag that was not undone."""
        return self.history[-1].state if self.history else self.original

    def undo(self) -> DragState:
        """Take the last drag back.

        Returns:
            [`DragState`]: what a drag may now go on from.

        Raises:
            ValueError: if there is nothing to undo.
        """
        if not self.history:
            raise ValueError("There is nothing to undo: no drag was made in this session.")
        self.history.pop()
        return self.state

    def drag(
        self,
        handles: Points | DragInstruction,
        targets: Points | None = None,
        mask: Mask | None = None,
        *,
        motion: MotionSource | str | Paths | None = None,
        continue_from: DragState | DragResult | None = None,
        is_watched: bool = False,
        iterate: Callable[[DragEdit], None] | None = None,
        **changes: Any,
    ) -> Iterator[DragStep]:
        """Drag content from handles to targets: everything is checked at once, the work is done by iterating.

        When the iterator ends, what it came to is the last entry of `history`.

        Args:
            handles (array-like of shape `(points, 2)`, or [`DragInstruction`]):
                (x, y) in pixels of the input, of the picture that the drag begins with.
            targets (array-like of shape `(points, 2)`): where the content goes; a handle on its target is a pin.
            mask (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): where the picture may change.
            motion: as in [`DynaDragPipeline.__call__`].
            continue_from ([`DragState`] or [`DragResult`], *optional*):
                what to go on from, such as `session.state`; by default the original.
            is_watched (`bool`, defaults to `False`): make pictures between for whoever looks at the steps.
            iterate (`Callable`, *optional*): what makes an iteration; [`DragEdit.iterate`] by default.
            changes: settings of this drag alone, but for those of [`ONCE_PER_PICTURE`].

        Yields:
            [`DragStep`] after each iteration.

        Raises:
            ValueError: if something does not fit, naming it.
        """
        fixed = [name for name in changes if name in ONCE_PER_PICTURE]
        if fixed:
            raise ValueError(
                f"`{fixed[0]}` must be given when a session is opened, got {got(changes[fixed[0]])} for a drag in it."
            )
        in_force = self.in_force.changed(changes)
        instruction = self._instruction(handles, targets, mask)
        source = choose_motion(motion, getattr(self.models, "motion_predictor", None))
        source.check(instruction)
        check_components(self.models, in_force.settings)
        check_call(self.models, in_force.settings, self.cross_attention_kwargs)
        if in_force.idle:
            names, carry = ", ".join(f"`{name}`" for name in in_force.idle), in_force.settings.carry
            logger.warning(f"{names} will do nothing beside `carry={carry!r}` as it is set.")
        start = self.original if continue_from is None else self._own_state("continue_from", continue_from)
        is_watched = is_watched or in_force.settings.return_intermediates
        return self._in_turns(self._steps(in_force, instruction, source, start, is_watched, iterate))

    def _instruction(
        self, handles: Points | DragInstruction, targets: Points | None, mask: Mask | None
    ) -> DragInstruction:
        """Points and mask of a drag, checked, in pixels of the input."""
        if not isinstance(handles, DragInstruction):
            if targets is None:
                raise ValueError("`targets` is missing: say where each of the handles goes.")
            return DragInstruction.from_user(handles, targets, mask, self.input_size)
        if targets is not None or mask is not None:
            raise ValueError("`targets` and `mask` must be left out beside an instruction, which has its own.")
        if handles.size != self.input_size:
            raise ValueError(f"`handles` must be for a picture of size {self.input_size}, got {handles.size}.")
        return handles

    def _own_state(self, name: str, of: DragState | DragResult) -> DragState:
        """A state that was reached in this session, or a ValueError."""
        state = of.state if isinstance(of, DragResult) else of
        if not isinstance(state, DragState):
            raise ValueError(f"`{name}` must be a state or a result of this session, got {got(state)}.")
        if state.picture != self.fingerprint or state.noise.shape != self.noise.shape:
            raise ValueError(f"`{name}` must be a state or a result of this session, got one of another picture.")
        return state

    def _in_turns(self, steps: Iterator[DragStep]) -> Iterator[DragStep]:
        """The steps, of which each is made while no other thread works in this session."""
        with closing(cast(Any, steps)):
            while True:
                with self._turn():
                    step = next(steps, None)
                if step is None:
                    return
                yield step

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Refuse to work in two threads at once: both would change the same UNet."""
        if not self._working.acquire(blocking=False):
            raise RuntimeError(
                "This session works in another thread: let it finish, or open a session of other models."
            )
        try:
            yield
        finally:
            self._working.release()

    @torch.no_grad()
    def _steps(
        self,
        in_force: SettingsInForce,
        instruction: DragInstruction,
        source: MotionSource,
        start: DragState,
        is_watched: bool,
        iterate: Callable[[DragEdit], None] | None,
    ) -> Iterator[DragStep]:
        if self.settings.restore_source:
            self.known_moves(start)  # before the UNet carries the LoRA
        with self.working(), self.carrying_lora():
            self.drag_engine = self.engine(in_force)
            edit = DragEdit(
                self.drag_engine,
                self.reference,
                start,
                instruction.scaled_to(self.size),
                source,
                input_size=self.input_size,
                generator=torch.Generator().manual_seed(self.seed),
                is_watched=is_watched,
            )
            loop = DragLoop(edit, iterate)
            steps: list[DragStep] = []
            with closing(cast(Any, iter(loop))) as iterations:
                for step in iterations:
                    if len(steps) > 1:  # latents and pictures stay with the last two only
                        steps[-2].latents = steps[-2].image = None
                    steps.append(step)
                    yield step
        result = DragResult.of(steps, start, instruction, self.size, loop.stop_reason, source.name)
        result.state.picture = self.fingerprint
        self.history.append(result)

    # --- pictures ---

    @property
    def reconstruction(self) -> torch.Tensor:
        """The unedited latent decoded, `(1, 3, height, width)` in [0, 1] at the size of the edit; once per picture."""
        if self._reconstruction is None:
            with self._turn(), torch.no_grad(), self.working():
                self._reconstruction = decode_latents(self.models.vae, self.reference.latents)
        return self._reconstruction

    def image(self, result: DragState | DragResult, restore: bool | None = None) -> torch.Tensor:
        """The picture of a drag, `(1, 3, height, width)` in [0, 1], at the input's size.

        Args:
            result ([`DragResult`] or [`DragState`]): from `history`, or `state`.
            restore (`bool`, *optional*): whether to take the source's own pixels back; by default as in the settings.
        """
        state = self._own_state("result", result)
        edited = self.reconstruction if state.handles is None else state.image
        if self.settings.restore_source if restore is None else restore:
            moves = self.known_moves(result)
            edited = restore_source(self.picture, edited, self.reconstruction, flow=state.flow, moves=moves)
        return resize_picture(edited, self.input_size)

    def known_moves(self, of: DragState | DragResult) -> torch.Tensor | None:
        """From where to where content is known to have moved since the unedited picture: see [`DragState`].

        It is looked for when it is first asked for, unless `locate_content` is off. Model: as of `content`.

        Args:
            of ([`DragResult`] or [`DragState`]): from `history`, or `state`.
        """
        state = self._own_state("of", of)
        made = of if isinstance(of, DragResult) else next((each for each in self.history if each.state is of), None)
        if state.moves is None and made is not None and self.settings.locate_content:
            content = self.content(made)
            origins = content.handles if made.origins is None else made.origins
            earlier = content.handles.new_zeros(0, 2, 2) if made.earlier_moves is None else made.earlier_moves
            state.moves = moves_after(content, self.input_size, origins, earlier)
        return state.moves

    @torch.no_grad()
    def content(self, result: DragResult, picture: torch.Tensor | None = None) -> ContentLocations:
        """Where what was at each handle is now. Model: the UNet, one pass, and one more for the source, once.

        Args:
            result ([`DragResult`]): from `history`.
            picture (`torch.Tensor` of shape `(1, 3, height, width)`, *optional*):
                what is shown of it, if that is another picture than its latents decode to.
        """
        state = self._own_state("result", result)
        with self._turn(), self.working():
            latents = state.latents
            if picture is not None:
                shown = resize_picture(picture, self.size).to(self.models._execution_device)
                latents, _ = encode_picture(self.models.vae, shown)
            if result.start_latents is not None:
                source = self._features_of(result.start_latents)
            else:
                if self._source_features is None:
                    self._source_features = self._features_of(self.image_latents)
                source = self._source_features
            ways = torch.cat([result.trajectory, result.targets[None]])
            return locate_content(source, self._features_of(latents), ways, self.size, self.input_size)

    def _features_of(self, latents: torch.Tensor) -> torch.Tensor:
        """What content is found again by, inside [`DragSession.working`]."""
        conditions = {"encoder_hidden_states": self.prompt_embeds, "cross_attention_kwargs": self._attention_kwargs}
        return content_features(self.models.unet, self.engine().sampler, latents, conditions)

    # --- the models, while they work for this session ---

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context in which the models are frozen for this session; may be entered again inside it."""
        with self._models.entered(self._frozen) as kwargs:
            self._attention_kwargs = kwargs
            yield

    @contextmanager
    def carrying_lora(self) -> Iterator[None]:
        """Context in which the UNet carries the identity LoRA; may be entered again inside it."""
        with self._lora.entered(self._dressed):
            yield

    @contextmanager
    def _frozen(self) -> Iterator[dict[str, Any] | None]:
        device = self.models._execution_device
        with repeatable_convolutions(device), frozen_components(self.models, self.cross_attention_kwargs) as kwargs:
            yield kwargs

    @contextmanager
    def _dressed(self) -> Iterator[CapturedPasses | None]:
        """The UNet with the LoRA on; its weights stay where they are, so that passes can be captured meanwhile."""
        unet, device = self.models.unet, self.models._execution_device
        with (
            attached_identity_lora(unet, self.lora),
            repeatable_attention(unet, device),
            captured_passes(unet, device) as captured,
        ):
            yield captured


class _Held:
    """A context that is entered by the first who asks for it, and left with the last."""

    def __init__(self) -> None:
        self.holders = 0
        self.context = ExitStack()
        self.value: Any = None

    @contextmanager
    def entered(self, make: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
        if not self.holders:
            self.value = self.context.enter_context(make())
        self.holders += 1
        try:
            yield self.value
        finally:
            self.holders -= 1
            if not self.holders:
                self.value = None
                self.context.close()


def embed_prompt(models: Any, prompt: str) -> torch.Tensor:
    """`(1, tokens, width)` of a prompt, with the words of textual inversions that a pipeline has loaded.

    In the precision of the UNet, if there is one.
    """
    convert = getattr(models, "maybe_convert_prompt", None)
    with TOKENIZING:
        text = prompt if convert is None else convert(prompt, models.tokenizer)
    return encode_prompt(models.tokenizer, models.text_encoder, text, models._execution_device, models.unet)
