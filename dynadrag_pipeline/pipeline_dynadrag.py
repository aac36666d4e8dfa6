"""`DynaDragPipeline`: drag-style editing by predict-and-move, as a diffusers pipeline."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.image_processing_base import ImageProcessingMixin

from motion_predictor import MotionPredictorModel
from motion_predictor.common.checks import check_choice, check_switch, got, naming
from motion_predictor.common.options import options_of
from motion_predictor.points import Points

from .components import (
    check_call,
    check_components,
    check_generator,
    check_prompt,
    check_prompt_embeds,
    draw_seed,
    preview_decoder,
    vae_scale_factor,
)
from .content import ContentLocations, warn_if_left_behind
from .drag_instruction import DragInstruction, Mask
from .drag_result import DragResult
from .drag_state import DragStep
from .encoding import decode_latents, encode_picture
from .hub import HubMixin
from .identity_lora import IdentityLora, IdentityLoras
from .motion.choice import choose_motion
from .motion.path import Paths
from .motion.source import MotionSource
from .picture import Picture, to_picture_tensor
from .pipeline_output import OUTPUT_TYPES, DynaDragPipelineOutput
from .preview import DragPreview, preview_drag
from .provenance import provenance_of
from .session import DragSession, embed_prompt
from .session_file import load_session, save_session
from .settings import DragSettings, SettingsInForce, check_recommended, settings_in_force, takes
from .step_callback import Callback, changed_tensors, check_callback, names_of_tensors

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DragCall(DragSettings):
    """Everything that [`DynaDragPipeline.__call__`] takes, and documents: what is to be edited, and the settings."""

    image: Picture | Sequence[Picture]
    handles: Points | Sequence[Points]
    targets: Points | Sequence[Points]
    mask: Mask | Sequence[Mask | None] | None = None
    prompt: str | Sequence[str] = ""
    motion: MotionSource | str | Paths | None = None
    settings: DragSettings | SettingsInForce | dict[str, Any] | str | None = None
    preset: str | None = None
    preview_vae: AutoencoderTiny | AutoencoderKL | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    output_type: str = "pil"
    return_dict: bool = True
    cross_attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None


@dataclass(frozen=True)
class SessionCall(DragSettings):
    """Everything that [`DynaDragPipeline.open_session`] takes."""

    image: Picture
    prompt: str = ""
    settings: DragSettings | SettingsInForce | dict[str, Any] | str | None = None
    preset: str | None = None
    preview_vae: AutoencoderTiny | AutoencoderKL | None = None
    generator: torch.Generator | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    prompt_embeds: torch.Tensor | None = None


@dataclass
class _Request:
    """One picture of a call, checked: everything that its edit needs to begin."""

    picture: torch.Tensor
    instruction: DragInstruction
    prompt: str
    generator: torch.Generator | None


class DynaDragPipeline(
    HubMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    StableDiffusionLoraLoaderMixin,
    TextualInversionLoaderMixin,
):
    r"""Drag-style image editing by motion prediction ([DynaDrag](https://arxiv.org/abs/2601.00542)).

    Works with any Stable Diffusion 1.x or 2.x checkpoint. Don't call it under `torch.inference_mode()`: motion
    supervision needs gradients, which that mode forbids for good. An edit changes the UNet while it runs, and puts it
    back: a second edit with the same UNet is refused meanwhile, so give each thread a pipeline with a UNet of its own.

    Args:
        vae (`AutoencoderKL` or `AutoencoderTiny`): between pictures and latents.
        text_encoder (`CLIPTextModel`): for the prompt, which is empty by default.
        tokenizer (`CLIPTokenizer`): goes with `text_encoder`.
        unet (`UNet2DConditionModel`): the denoiser, whose features are dragged.
        scheduler (`SchedulerMixin`):
            its config gives the noise schedule and the prediction type; sampling and inversion are always DDIM.
        safety_checker, feature_extractor, image_encoder, requires_safety_checker:
            accepted so that Stable Diffusion repositories load without fetching what is not needed; not used.
        motion_predictor ([`MotionPredictorModel`], *optional*):
            predicts the next movement of the handles; without it they move in straight, equal steps.
        recommended_settings (`dict`, *optional*):
            settings that suit these weights, used where a call gives none; they are saved with the pipeline.
    """

    _travels_as = "pipeline"
    model_cpu_offload_seq = "text_encoder->image_encoder->motion_predictor->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder", "motion_predictor"]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: torch.nn.Module | None = None,
        feature_extractor: ImageProcessingMixin | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        motion_predictor: MotionPredictorModel | None = None,
        requires_safety_checker: bool = False,
        recommended_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            motion_predictor=motion_predictor,
        )
        self.register_to_config(
            requires_safety_checker=requires_safety_checker,
            recommended_settings=check_recommended(recommended_settings),
        )
        self.vae_scale_factor = vae_scale_factor(getattr(self, "vae", None))
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.identity_loras = IdentityLoras()
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def num_timesteps(self) -> int:
        """Iterations of the drag loop that the call may take: what the callback's step index counts up to."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked for the end (`pipe._interrupt = True`); the edit so far is returned."""
        return self._interrupt

    @takes(DragCall)
    @torch.no_grad()
    def __call__(self, given: dict[str, Any]) -> DynaDragPipelineOutput | tuple[Any, ...]:
        r"""Move the content under each handle point to its target point.

        Points are (x, y) in pixels of the input picture, x to the right, y down; whole numbers are pixel centres. A
        handle that is put on its own target is a pin: it holds its content where it is.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a list of them):
                at least 64 pixels on each side; arrays `(height, width, channels)`, tensors `(channels, height,
                width)`, floats in [0, 1] or whole numbers. A list is edited picture by picture.
            handles, targets (array-like of shape `(points, 2)`, or a list of them for a list of pictures):
                what to move, and where to. One instruction for a list of pictures holds for all of them.
            mask (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                white (1) where the picture may change; without it, everything may.
            prompt (`str`, defaults to `""`): a description of the picture; the paper's is empty (Sec. 4.2).
            prompt_embeds (`torch.Tensor` of shape `(1, tokens, width)`, or a list of them, *optional*):
                an embedding in the place of a prompt, of the text encoder's width; with it, the pipeline may be
                without a text encoder.
            motion ([`MotionSource`], `str`, or a path for each pair, *optional*):
                where handles go next: `"predicted"` by the pipeline's motion predictor, `"straight"` in equal steps,
                as other frameworks do, `"track"` ([`TrackedMotion`]) and `"search"` ([`LineSearchMotion`]), or along
                paths, of which each is a list of (x, y) that its handle passes on its way, or `None`; or an object
                with the methods of [`MotionSource`]. By default the motion predictor, if there is one.
            settings ([`DragSettings`], `dict` or `str`, *optional*):
                options in one place; a keyword goes before them. A [`DragSettings`] is complete, a `dict` need not be,
                a `str` is the name of a preset.
            preset (`str`, *optional*):
                options by name, in the place of those that the checkpoint recommends: `"paper"` is the paper to the
                letter, `"fast"` trades quality for time, `"carry"` goes beyond the paper. What none of these says is
                as the checkpoint recommends, or else as below.
            preview_vae (`AutoencoderTiny` or `AutoencoderKL`, *optional*):
                decodes the previews: a small autoencoder for the latents of `vae`, on the same device.
            generator (`torch.Generator` or a list of them, *optional*):
                seeds the identity LoRA and the strategy `"random"`. Without it the seed is 0, so calls repeat.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): `False` returns the output's fields as a tuple.
            cross_attention_kwargs (`dict`, *optional*):
                passed on to the attention processors, of which one has to take each; `scale` weighs the user's own
                LoRAs.
            callback_on_step_end (`Callable`, *optional*):
                called as `callback(pipe, iteration, timestep, tensors)` after each iteration's denoising; may return
                changed tensors, and ends the edit by `pipe._interrupt = True` (of a list of pictures, those so far
                are returned). `latents` is what will be decoded. An answer that can't be used is left out, with a
                warning, and ends the edit as an interrupt does.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                names of the tensors that the callback gets: `latents`, `prompt_embeds`.
            {options}

        Returns:
            [`DynaDragPipelineOutput`], or its fields as a tuple.

        Raises:
            ValueError: before any work, if an argument or a component does not fit; the message says which.
            RuntimeError: if the UNet is in use by another edit.
            FloatingPointError:
                if fitting the LoRA, or inverting and denoising the picture, came to what is not finite. What is not
                finite later ends an edit as `"diverged"`.

        Examples:
            ```py
            >>> from PIL import Image
            >>> from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline

            >>> pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
            >>> portrait = Image.open("portrait.png")
            >>> result = pipe(portrait, handles=[(64, 70)], targets=[(76, 70)])
            >>> result.images[0].save("dragged.png")
            >>> result.stop_reason
            'reached'
            ```
        """
        call = DragCall(**given)
        in_force = self.settings_in_force(given, call.settings, call.preset)
        self.check_inputs(call, in_force.settings)
        source = choose_motion(call.motion, self.motion_predictor)
        requests, is_batch = self.prepare_requests(
            call.image, call.handles, call.targets, call.mask, call.prompt, call.generator
        )
        embeds = _one_each(
            "prompt_embeds", call.prompt_embeds, len(requests), isinstance(call.prompt_embeds, (list, tuple))
        )
        for request, given_embeds in zip(requests, embeds, strict=True):
            source.check(request.instruction)
            check_prompt_embeds(given_embeds, request.prompt, self)
        decode_preview = preview_decoder(self.vae, call.preview_vae, in_force.settings.preview_steps)
        seeds = [draw_seed(request.generator) for request in requests]
        self._interrupt = False
        self._num_timesteps = in_force.settings.most_iterations

        edits = []
        for request, seed, given_embeds in zip(requests, seeds, embeds, strict=True):
            session = self._session(
                call, in_force, request.picture, request.prompt, given_embeds, seed, decode_preview
            )
            edits.append(self.edit(session, request.instruction, source, call))
            if self.interrupt:
                break
        self.maybe_free_model_hooks()

        provenance = provenance_of(str(self.name_or_path or ""), seeds[: len(edits)] if is_batch else seeds[0])
        output = self._collect(edits, call.output_type, is_batch, in_force, provenance)
        return output if call.return_dict else output.to_tuple()

    def edit(
        self, session: DragSession, instruction: DragInstruction, source: MotionSource, call: DragCall
    ) -> tuple[DragResult, torch.Tensor, ContentLocations | None]:
        """Open a session, drag, and close it: the result, its picture or z_0, and its content. Part of the call."""
        with session.working():
            self._open(session)
            steps = session.drag(instruction, motion=source, is_watched=call.callback_on_step_end is not None)
            with session.carrying_lora(), closing(cast(Any, steps)):
                for index, step in enumerate(steps):
                    self._on_step_end(session, step, index, call)
            result = session.history[-1]
            is_latent = call.output_type == "latent"
            edited = result.state.latents if is_latent else session.image(result)
            if not session.settings.locate_content:
                return result, edited, None
            is_restored = session.settings.restore_source and not is_latent
            content = session.content(result, edited if is_restored else None)
        warn_if_left_behind(content, result.stop_reason)
        return result, edited, content

    @takes(SessionCall)
    def open_session(self, given: dict[str, Any]) -> DragSession:
        r"""Open a picture for any number of drags: LoRA, inversion and reference are computed once, here.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): as for a call.
            prompt, prompt_embeds, settings, preset, preview_vae, generator, cross_attention_kwargs: as for a call.
            {options}

        Returns:
            [`DragSession`]: whose `drag` iterates over the steps of a drag.

        Raises:
            ValueError: before any work, if an argument or a component does not fit; the message says which.
            RuntimeError: if the UNet is in use by another edit.
            FloatingPointError: if the LoRA, or the picture inverted and denoised, came to what is not finite.

        Example:

        ```py
        >>> session = pipe.open_session(portrait)  # doctest: +SKIP
        >>> steps = list(session.drag([(127, 160)], [(151, 160)]))  # doctest: +SKIP
        >>> steps = list(session.drag([(124, 227)], [(144, 227)], continue_from=session.state))  # doctest: +SKIP
        >>> picture = session.image(session.history[-1])  # doctest: +SKIP
        ```
        """
        call = SessionCall(**given)
        in_force = self.settings_in_force(given, call.settings, call.preset)
        decode_preview = preview_decoder(self.vae, call.preview_vae, in_force.settings.preview_steps)
        picture, prompt, seed = to_picture_tensor(call.image), check_prompt(call.prompt), draw_seed(call.generator)
        session = self._session(call, in_force, picture, prompt, call.prompt_embeds, seed, decode_preview)
        return self._open(session)

    def preview(
        self,
        image: Picture,
        handles: Points,
        targets: Points,
        mask: Mask | None = None,
        motion: MotionSource | str | Paths | None = None,
    ) -> DragPreview:
        r"""Show at once where a drag would lead: the picture itself, bent along the motion. It is not the edit.

        Everything goes as the source of motion says: by the whole map of a motion predictor that was taught the whole
        way, else smoothly through handles and pins. Neither UNet nor autoencoder is used, and the motion predictor
        works wherever it is, so this may be called while an edit runs.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): as for a call, one picture.
            handles, targets (array-like of shape `(points, 2)`):
                as for a call: a handle on its own target is a pin.
            mask (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                as for a call; nothing outside it changes, to the bit.
            motion ([`MotionSource`], `str`, or a path for each pair, *optional*):
                as for a call. Those that look at the UNet's features, `"track"` and `"search"`, are shown as straight.

        Returns:
            [`DragPreview`]: the bent picture, the path of each handle, the flow, and what came into view.

        Raises:
            ValueError: before any work, if an argument does not fit; the message says which.
            FloatingPointError: if the source of motion answers with what is not finite.

        Example:

        ```py
        >>> preview = pipe.preview(portrait, handles=[(127, 160)], targets=[(151, 160)])  # doctest: +SKIP
        >>> preview.image.save("preview.png")  # doctest: +SKIP
        >>> preview.paths[0]  # from (127, 160) to (151, 160), in pixels of the portrait  # doctest: +SKIP
        ```
        """
        source = choose_motion(motion, getattr(self, "motion_predictor", None))
        picture = to_picture_tensor(image)
        instruction = DragInstruction.from_user(handles, targets, mask, (picture.shape[-2], picture.shape[-1]))
        source.check(instruction)
        return preview_drag(picture, instruction, source, self.settings_in_force().settings)

    def save_session(self, session: DragSession, folder: str | Path) -> None:
        """Save an open session with its history; see [`save_session`].

        Raises:
            RuntimeError: while a drag is under way: end or close its iterator first.
        """
        save_session(session, folder)

    def load_session(self, folder: str | Path) -> DragSession:
        """Open a session that was saved, without fitting and inverting again; see [`load_session`].

        Raises:
            ValueError: if the folder holds no session, a damaged one, or one of other models.
            RuntimeError: if the UNet is in use by another edit.
            FloatingPointError: if the reference is denoised to what is not finite.
        """
        session = load_session(folder, self, self._described_progress_bar)
        self.identity_loras.current = session.lora
        return session

    def settings_in_force(
        self,
        given: dict[str, Any] | None = None,
        settings: DragSettings | SettingsInForce | dict[str, Any] | str | None = None,
        preset: str | None = None,
    ) -> SettingsInForce:
        """The settings that a call would use, and where each of them comes from; see [`settings_in_force`].

        Args:
            given (`dict`, *optional*): keywords of the call; what is not an option is left out.
            settings, preset: as for a call.
        """
        options = {name: value for name, value in (given or {}).items() if name in options_of(DragSettings)}
        recommended = check_recommended(self.config.get("recommended_settings"))
        return settings_in_force(options, settings, preset, recommended)

    def check_components(self, settings: DragSettings | None = None) -> None:
        """Raise a ValueError if a component is missing, or the components can't be used together for dragging."""
        check_components(self, settings)
        check_prompt_embeds(None, "", self)

    def check_inputs(self, call: DragCall, settings: DragSettings) -> None:
        """Raise a ValueError for the first argument that does not fit (the settings have checked their own)."""
        check_components(self, settings)
        check_choice("output_type", call.output_type, OUTPUT_TYPES)
        check_switch("return_dict", call.return_dict)
        check_call(self, settings, call.cross_attention_kwargs)
        callback, names = call.callback_on_step_end, call.callback_on_step_end_tensor_inputs
        check_callback(callback)
        self._check_tensor_inputs("callback_on_step_end_tensor_inputs", names)
        with naming("callback_on_step_end.tensor_inputs", callback):
            self._check_tensor_inputs("callback_on_step_end.tensor_inputs", names_of_tensors(callback, names))

    def _check_tensor_inputs(self, name: str, tensor_inputs: Any) -> None:
        """Raise a ValueError unless they are names of tensors that callbacks may see."""
        with naming(name, tensor_inputs):
            accepted = tensor_inputs is None or isinstance(tensor_inputs, (list, tuple, set, frozenset))
            if not accepted or any(each not in self._callback_tensor_inputs for each in tensor_inputs or ()):
                raise ValueError(
                    f"`{name}` must be among {self._callback_tensor_inputs}, in a list, got {got(tensor_inputs)}."
                )

    def prepare_requests(
        self,
        image: Picture | Sequence[Picture],
        handles: Points | Sequence[Points],
        targets: Points | Sequence[Points],
        mask: Mask | Sequence[Mask | None] | None,
        prompt: str | Sequence[str],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> tuple[list[_Request], bool]:
        """Check pictures, instructions, prompts and generators; say whether the caller gave a batch.

        Raises:
            ValueError: if one of them does not fit its picture, or their numbers differ.
        """
        if image is None:
            raise ValueError("`image` is missing: pass a PIL image, a numpy array, a tensor, or a list of them.")
        with naming("image", image):
            is_batch = isinstance(image, (list, tuple)) or (
                isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4 and len(image) != 1
            )
            pictures = [to_picture_tensor(picture) for picture in cast(Any, image if is_batch else [image])]
        if not pictures:
            raise ValueError("`image` is an empty list: pass at least one picture.")
        count = len(pictures)
        instructions = zip(
            pictures,
            _one_each("handles", handles, count, is_batch and _is_nested(handles)),
            _one_each("targets", targets, count, is_batch and _is_nested(targets)),
            _one_each("mask", mask, count, isinstance(mask, (list, tuple))),
            strict=True,
        )
        checked = [
            DragInstruction.from_user(starts, ends, region, (picture.shape[-2], picture.shape[-1]))
            for picture, starts, ends, region in instructions
        ]
        prompts = _one_each("prompt", prompt, count, isinstance(prompt, (list, tuple)))
        texts = [check_prompt(text) for text in prompts]
        generators = _one_each("generator", generator, count, isinstance(generator, (list, tuple)))
        for source in generators:
            check_generator(source)
        return [_Request(*each) for each in zip(pictures, checked, texts, generators, strict=True)], is_batch

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Embed a prompt: `(1, tokens, width)` on the execution device, in the UNet's precision if there is one."""
        return embed_prompt(self, prompt)

    def encode_image(self, picture: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Generator], torch.Tensor]]:
        """Encode a picture `(1, 3, height, width)` in [0, 1]; see [`encode_picture`]."""
        return encode_picture(self.vae, picture)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode z_0 `(1, channels, h, w)` to a picture `(1, 3, height, width)` in [0, 1], float32."""
        return decode_latents(self.vae, latents)

    def save_identity_lora(self, directory: str | Path) -> None:
        """Save the identity LoRA of the last edited picture as `pytorch_lora_weights.safetensors` in `directory`.

        The file is an ordinary LoRA, so `load_lora_weights` of diffusers' pipelines reads it too.

        Raises:
            ValueError: if no picture was edited yet, or the last one with `identity_lora_steps=0`.
        """
        if self.identity_loras.current is None:
            raise ValueError("There is no identity LoRA to save: edit a picture with `identity_lora_steps` > 0 first.")
        self.identity_loras.current.save(directory)

    def load_identity_lora(self, directory: str | Path) -> None:
        """Use a saved identity LoRA for the picture that it was fitted to, instead of fitting it anew.

        A file that does not say which picture it belongs to is used for every picture. For other pictures, and other
        processing resolutions, one is fitted as usual, with a warning.

        Raises:
            ValueError: if `directory` holds no identity LoRA.
        """
        self.identity_loras.loaded = IdentityLora.load(directory)

    def _session(
        self,
        call: DragCall | SessionCall,
        in_force: SettingsInForce,
        picture: torch.Tensor,
        prompt: str,
        given_embeds: torch.Tensor | None,
        seed: int,
        decode_preview: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> DragSession:
        """A session of this pipeline for one picture of a call, not opened yet."""
        return DragSession(
            models=self,
            in_force=in_force,
            picture=picture,
            progress_bar=self._described_progress_bar,
            prompt=prompt,
            given_embeds=given_embeds,
            seed=seed,
            cross_attention_kwargs=call.cross_attention_kwargs,
            decode_preview=decode_preview,
        )

    def _open(self, session: DragSession) -> DragSession:
        """Open a session, whose LoRA is then the pipeline's last; none, if it does without."""
        session.open(self._find_lora)
        self.identity_loras.current = session.lora
        return session

    def _find_lora(self, session: DragSession) -> IdentityLora:
        """The identity LoRA of a picture: loaded, fitted before, or fitted now."""
        return self.identity_loras.find(session.fingerprint, lambda: session.fit_key, session.fit_identity_lora)

    def _described_progress_bar(self, total: int, description: str) -> Any:
        bar = self.progress_bar(total=total)
        bar.set_description(description)
        return bar

    def _on_step_end(self, session: DragSession, step: DragStep, index: int, call: DragCall) -> None:
        """Show the callback its tensors, and take what it changed."""
        callback, names = call.callback_on_step_end, call.callback_on_step_end_tensor_inputs
        if callback is not None:
            engine = session.drag_engine
            condition = engine.denoiser.condition
            tensors = {"latents": cast(torch.Tensor, step.latents), "prompt_embeds": condition.prompt_embeds}
            shown = {name: tensors[name] for name in names_of_tensors(callback, names)}
            answer = callback(self, index, engine.timesteps[0], shown)
            try:
                changed = changed_tensors(answer, tensors)
            except ValueError as error:
                logger.warning(f"{error} It is left out, and the edit ends here, with iteration {index}.")
                changed, self._interrupt = {}, True
            if "latents" in changed:
                step.latents, step.is_preview = changed["latents"], False
            condition.prompt_embeds = changed.get("prompt_embeds", condition.prompt_embeds)
        step.is_last = self.interrupt

    def _collect(
        self,
        edits: list[tuple[DragResult, torch.Tensor, ContentLocations | None]],
        output_type: str,
        is_batch: bool,
        in_force: SettingsInForce,
        provenance: dict[str, Any],
    ) -> DynaDragPipelineOutput:
        """Put the edits of a call into one output, in the type that was asked for."""
        results, tensors, contents = zip(*edits, strict=True)
        images: Any
        if output_type != "pil" and len({tensor.shape for tensor in tensors}) == 1:
            images = self._postprocess(torch.cat(tensors), output_type)
        else:
            images = [self._postprocess(tensor, output_type)[0] for tensor in tensors]
        output = DynaDragPipelineOutput(
            images,
            [result.trajectory for result in results],
            [result.iterations for result in results],
            [result.stop_reason for result in results],
            [result.motion_source for result in results],
            in_force,
            provenance,
            list(contents),
        )
        if not is_batch:
            for name in ("trajectories", "iterations", "stop_reason", "motion_source", "content"):
                output[name] = output[name][0]
        return output

    def _postprocess(self, tensor: torch.Tensor, output_type: str) -> Any:
        return self.image_processor.postprocess(tensor, output_type, do_denormalize=[False] * len(tensor))


def _one_each(name: str, values: Any, count: int, is_list: bool) -> list[Any]:
    """A list with one entry per picture; one value that is not a list holds for all."""
    if not is_list:
        return [values] * count
    with naming(name, values):
        if len(values) != count:
            raise ValueError(f"`{name}` must have one entry for each of the {count} pictures, got {len(values)}.")
        return list(values)


def _is_nested(points: Any) -> bool:
    """Whether `points` is a list of instructions rather than one: its entries are lists of pairs."""
    try:
        return len(points) > 0 and np.ndim(points[0]) != 1
    except Exception:  # ragged, no sequence or worse: let the instruction's own check say so
        return False
