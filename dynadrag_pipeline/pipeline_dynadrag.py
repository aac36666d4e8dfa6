"""`DynaDragPipeline`: drag-style editing by predict-and-move, as a diffusers pipeline."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging, replace_example_docstring
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.image_processing_base import ImageProcessingMixin

from motion_predictor import MotionPredictorModel
from motion_predictor.choices import MotionGuard
from motion_predictor.common.checks import check_choice
from motion_predictor.points import Points

from .components import check_call, check_components, draw_seed, frozen_components, native_edit_size, vae_scale_factor
from .ddim_inversion import make_ddim_schedulers
from .drag_engine import DragEngine, DragSettings, DragStep, OptimizerScope, SourcePatches
from .drag_instruction import DragInstruction, Mask
from .drag_result import DragResult
from .encoding import decode_latents, encode_picture, encode_prompt
from .hub import HubMixin
from .identity_lora import (
    IdentityLora,
    LoraSettings,
    attached_identity_lora,
    fit_identity_lora,
    picture_fingerprint,
    tuner_layers,
)
from .kv_replacement import KVPlacement, default_kv_start_layer
from .motion_supervision import ChannelReduction
from .picture import Picture, resize_picture, to_picture_tensor
from .pipeline_output import DynaDragPipelineOutput, MotionSource, StopReason
from .point_selection import SelectionStrategy
from .source_restoration import restore_source

logger = logging.get_logger(__name__)

KEPT_IDENTITY_LORAS = 8

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from dynadrag_pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_SETTINGS, DynaDragPipeline

        >>> pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
        >>> portrait = Image.open("portrait.png")
        >>> result = pipe(portrait, handles=[(64, 70)], targets=[(76, 70)], **EMBEDDED_SETTINGS)
        >>> result.images[0].save("dragged.png")
        >>> result.stop_reason
        'reached'
        ```
"""


@dataclass
class _Request:
    """One picture of a call, checked: everything that its edit needs to begin."""

    picture: torch.Tensor
    instruction: DragInstruction
    prompt: str
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A new CPU generator for the draws of the drag loop."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class _CallOptions:
    """What holds for all pictures of a call."""

    drag: DragSettings
    lora: LoraSettings
    num_inference_steps: int
    processing_resolution: int | None
    restore_source: bool
    decode_preview: Callable[[torch.Tensor], torch.Tensor] | None
    callback: Callable[..., dict[str, Any]] | None
    callback_inputs: Sequence[str]


@dataclass
class _Edited:
    """One edited picture, at the input's size, with its record."""

    result: DragResult
    image: torch.Tensor
    stop_reason: StopReason


class DynaDragPipeline(HubMixin, DiffusionPipeline, StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin):
    r"""Drag-style image editing by motion prediction ([DynaDrag](https://arxiv.org/abs/2601.00542)).

    Works with any Stable Diffusion 1.x or 2.x checkpoint. Don't call it under `torch.inference_mode()`: motion
    supervision needs gradients, which that mode forbids for good.

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
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.vae_scale_factor = vae_scale_factor(getattr(self, "vae", None))
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._fitted_loras: OrderedDict[tuple[Any, ...], IdentityLora] = OrderedDict()
        self._loaded_lora: IdentityLora | None = None
        self._current_lora: IdentityLora | None = None
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

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        handles: Points | Sequence[Points],
        targets: Points | Sequence[Points],
        mask: Mask | Sequence[Mask | None] | None = None,
        prompt: str | Sequence[str] = "",
        num_inference_steps: int = 50,
        inversion_strength: float = 1.0,
        max_iterations: int = 25,
        supervision_steps: int = 5,
        supervision_lr: float = 0.01,
        supervision_damping: float = 0.0,
        supervision_reach: float | None = None,
        supervision_radius: int = 1,
        mask_weight: float = 0.1,
        feature_block: int = -1,
        channel_reduction: ChannelReduction = "mean",
        source_patches: SourcePatches = "iteration",
        optimizer_scope: OptimizerScope = "edit",
        dynamic_selection: SelectionStrategy | None = "all",
        similarity_threshold: float = 0.6,
        hold_unselected: bool = False,
        settle_iterations: int = 0,
        kv_start_layer: int | None = None,
        kv_placement: KVPlacement = "auto",
        preview_steps: int | None = None,
        preview_vae: AutoencoderTiny | AutoencoderKL | None = None,
        stop_distance: float | None = None,
        motion_guard: MotionGuard = "project",
        identity_lora_steps: int = 200,
        identity_lora_rank: int = 16,
        identity_lora_lr: float = 2e-4,
        processing_resolution: int | None = None,
        restore_source: bool = False,
        return_intermediates: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DynaDragPipelineOutput | tuple[Any, ...]:
        r"""Move the content under each handle point to its target point.

        Points are (x, y) in pixels of the input picture, x to the right, y down; whole numbers are pixel centres.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a list of them):
                at least 64 pixels on each side; arrays `(height, width, channels)`, tensors `(channels, height,
                width)`, floats in [0, 1] or whole numbers. A list is edited picture by picture.
            handles, targets (array-like of shape `(points, 2)`, or a list of them for a list of pictures):
                what to move, and where to. One instruction for a list of pictures holds for all of them.
            mask (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                white (1) where the picture may change; without it, or if it is all black, everything may.
            prompt (`str`, defaults to `""`): a description of the picture; the paper's is empty (Sec. 4.2).
            num_inference_steps (`int`, defaults to 50): DDIM steps of a full denoising (Sec. 4.2).
            inversion_strength (`float`, defaults to 1.0):
                share of these steps to invert before the latent is edited, in (0, 1]. 1.0 edits "the 50-th step
                latent code" (Sec. 4.2); DragDiffusion takes 0.7.
            max_iterations (`int`, defaults to 25): most predict-and-move iterations (Sec. 4.2).
            supervision_steps (`int`, defaults to 5): Adam steps on the latent in each iteration (Eq. 3).
            supervision_lr (`float`, defaults to 0.01): their learning rate (Sec. 4.2).
            supervision_damping (`float`, defaults to 0.0):
                keeps Adam from moving what has next to no gradient: added to its denominator, as a share of the
                largest value of the first gradient. 0.0 is plain Adam; 0.05 spares what is far from all handles.
            supervision_reach (`float`, *optional*):
                how far from the handles' ways the latent may change, as a share of the short side: 0.2 keeps what is
                further off than three tenths of it. By default it may change everywhere.
            supervision_radius (`int`, defaults to 1): r_1 of Eq. 2, in cells of half the picture's size.
            mask_weight (`float`, defaults to 0.1): lambda of Eq. 2; larger keeps the masked region closer.
            feature_block (`int`, defaults to -1):
                index of the UNet's up-block whose output is F (Sec. 3.1: the last; DragDiffusion: the one before).
            channel_reduction (`str`, defaults to `"mean"`):
                `"mean"` or `"sum"` over feature channels in Eq. 2. The equation sums; DragDiffusion, whose learning
                rate and lambda the paper keeps, takes the mean.
            source_patches (`str`, defaults to `"iteration"`):
                `"iteration"` takes the patches at h^k from z_t^k once (Eq. 2); `"step"` anew in each Adam step, as
                DragDiffusion does; `"original"` the patches at h^0 from the unedited z_t^0, as GoodDrag does: what
                an iteration did not move far enough is still asked for in the next.
            optimizer_scope (`str`, defaults to `"edit"`):
                `"edit"` keeps one Adam state for all iterations, `"iteration"` begins a new one in each.
            dynamic_selection (`str` or `None`, defaults to `"all"`):
                which handles are supervised (Sec. 3.2.2, 4.5): `"all"` judges them in every iteration (ADS),
                `"first"` once and for all (FDS), `"random"` draws as many as `"all"` would take (RS), `None` all.
            similarity_threshold (`float`, defaults to 0.6): cosine from which on a handle is set aside (Sec. 3.2.2).
            hold_unselected (`bool`, defaults to `False`):
                whether handles that are set aside also stay where they are. Eq. 4 moves all of them.
            settle_iterations (`int`, defaults to 0):
                iterations after all handles have arrived, in which all of them, set aside before or not, are
                supervised at their targets: content that lags behind its handle catches up. 0 is the paper.
            kv_start_layer (`int`, *optional*):
                first self-attention layer whose keys and values are the original's (Sec. 3.3), in the order of
                execution; 0 replaces in all, the number of layers in none. Defaults to the first one of the last two
                up-blocks: layer 10 of 16 in Stable Diffusion 1.x, as in DragDiffusion.
            kv_placement (`str`, defaults to `"auto"`):
                where they wait: on the `"device"`, in the memory of the `"host"`, from where each is copied when its
                timestep comes, or on the device if they fill no more than half of what is free there.
            preview_steps (`int`, *optional*):
                DDIM steps for the pictures that are made only to predict the next motion from: fewer are faster, and
                the result is always denoised in full. By default these are, too, as in the paper.
            preview_vae (`AutoencoderTiny` or `AutoencoderKL`, *optional*):
                decodes the previews: a small autoencoder for the latents of `vae`, on the same device.
            stop_distance (`float`, *optional*):
                pixels of the input within which a handle has arrived. Defaults to 4 px on a short side of 512 px.
            motion_guard (`str`, defaults to `"project"`):
                `"none"` follows predictions as they are (the paper); `"clamp"` lands on the target where a step would
                pass it; `"project"` also removes the backward part of wrong-way steps (Sec. 11).
            identity_lora_steps (`int`, defaults to 200): optimisation steps of the identity LoRA; 0 goes without.
            identity_lora_rank (`int`, defaults to 16): its rank.
            identity_lora_lr (`float`, defaults to 2e-4): its learning rate. All three: Sec. 4.2.
            processing_resolution (`int`, *optional*):
                short side, in pixels, at which the picture is edited; the result is resized to the input's size.
                Defaults to what the UNet was trained at; 0 keeps the picture's own size.
            restore_source (`bool`, defaults to `False`):
                whether what the edited picture shows of the source, where it was or moved, is shown by the source's
                own pixels, which resizing, autoencoder, inversion and supervision blur. What the edit invented stays.
                For pictures; latents are returned as they are.
            return_intermediates (`bool`, defaults to `False`): keep picture and flow of every iteration.
            generator (`torch.Generator` or a list of them, *optional*):
                seeds the identity LoRA and the strategy `"random"`. Without it the seed is 0, so calls repeat.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): `False` returns the output's fields as a tuple.
            cross_attention_kwargs (`dict`, *optional*):
                passed on to the attention processors; `scale` weighs the user's own LoRAs.
            callback_on_step_end (`Callable`, *optional*):
                called as `callback(pipe, iteration, timestep, tensors)` after each iteration's denoising; may return
                changed tensors, and ends the edit by `pipe._interrupt = True` (of a list of pictures, those so far
                are returned). `latents` is what will be decoded.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                names of the tensors that the callback gets: `latents`, `prompt_embeds`.

        Returns:
            [`DynaDragPipelineOutput`], or its fields as a tuple.

        Raises:
            ValueError: before any work, if an argument or a component does not fit; the message says which.

        Examples:
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_components(feature_block, kv_start_layer)
        settings = DragSettings(
            inversion_strength=inversion_strength,
            max_iterations=max_iterations,
            supervision_steps=supervision_steps,
            supervision_lr=supervision_lr,
            supervision_damping=supervision_damping,
            supervision_reach=supervision_reach,
            supervision_radius=supervision_radius,
            mask_weight=mask_weight,
            feature_block=feature_block,
            channel_reduction=channel_reduction,
            source_patches=source_patches,
            optimizer_scope=optimizer_scope,
            dynamic_selection=dynamic_selection,
            similarity_threshold=similarity_threshold,
            hold_unselected=hold_unselected,
            settle_iterations=settle_iterations,
            kv_start_layer=default_kv_start_layer(self.unet) if kv_start_layer is None else kv_start_layer,
            kv_placement=kv_placement,
            preview_steps=preview_steps,
            stop_distance=stop_distance,
            motion_guard=motion_guard,
            return_intermediates=return_intermediates,
        )
        options = _CallOptions(
            drag=settings,
            lora=LoraSettings(identity_lora_steps, identity_lora_rank, identity_lora_lr),
            num_inference_steps=num_inference_steps,
            processing_resolution=processing_resolution,
            restore_source=restore_source,
            decode_preview=self.prepare_preview(preview_vae, preview_steps),
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs or (),
        )
        self.check_inputs(options, output_type, cross_attention_kwargs)
        requests, is_batch = self.prepare_requests(image, handles, targets, mask, prompt, generator)
        self._interrupt = False
        self._num_timesteps = settings.most_iterations

        with frozen_components(self, cross_attention_kwargs) as attention_kwargs:
            edits = []
            for request in requests:
                edits.append(self.edit(request, options, attention_kwargs))
                if self.interrupt:
                    break
        self.maybe_free_model_hooks()

        output = self._collect(edits, output_type, is_batch)
        return output if return_dict else output.to_tuple()

    def edit(
        self, request: _Request, options: _CallOptions, attention_kwargs: dict[str, Any] | None = None
    ) -> _Edited:
        """Edit one checked picture: Fig. 2(a), a room a line. Part of [`DynaDragPipeline.__call__`]."""
        size = native_edit_size(self, request.picture, options.processing_resolution)
        picture = resize_picture(request.picture, size).to(self._execution_device)
        instruction = request.instruction.scaled_to(size)

        latents, sample_latents = self.encode_image(picture)
        prompt_embeds = self.encode_prompt(request.prompt)
        lora = self.prepare_identity_lora(sample_latents, prompt_embeds, options.lora, request, size)
        with attached_identity_lora(self.unet, lora):
            sampler, inverse = make_ddim_schedulers(self.scheduler.config, options.num_inference_steps)
            engine = DragEngine(
                unet=self.unet,
                sampler=sampler,
                inverse=inverse,
                prompt_embeds=prompt_embeds,
                decode=self.decode_latents,
                decode_preview=options.decode_preview,
                progress_bar=self._described_progress_bar,
                motion_predictor=self.motion_predictor,
                is_watched=options.callback is not None or options.drag.return_intermediates,
                settings=options.drag.for_edit_at(size, request.instruction.size),
                cross_attention_kwargs=attention_kwargs,
                generator=request.generator,
            )
            noise = engine.invert(latents)
            reference = engine.denoise_reference(noise)
            steps = DragResult.gather(
                engine.drag(noise, reference, picture, instruction),
                lambda step, index: self._on_step_end(engine, step, index, options),
            )

        result = DragResult.of(steps, reference, request.instruction, size)
        image = self.decode_latents(result.latents) if result.image is None else result.image
        if options.restore_source:
            image = restore_source(request.picture, image, self.decode_latents(reference.latents))
        return _Edited(result, resize_picture(image, request.instruction.size), engine.stop_reason)

    def check_components(self, feature_block: int, kv_start_layer: int | None) -> None:
        """Raise a ValueError if a component is missing, or the components can't be used together for dragging."""
        check_components(self, feature_block, kv_start_layer)

    def prepare_preview(
        self, preview_vae: AutoencoderTiny | AutoencoderKL | None, preview_steps: int | None
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What decodes previews, if another than the VAE does; a ValueError if it can't."""
        if preview_vae is None:
            return None
        if preview_steps is None:
            raise ValueError("`preview_vae` decodes previews, and there are none: pass `preview_steps` too.")
        if not isinstance(preview_vae, (AutoencoderTiny, AutoencoderKL)):
            kind = type(preview_vae).__name__
            raise ValueError(f"`preview_vae` must be an AutoencoderTiny or AutoencoderKL, got {kind}.")
        wanted = (self.vae.config.latent_channels, self.vae_scale_factor)
        given = (preview_vae.config.latent_channels, vae_scale_factor(preview_vae))
        if given != wanted:
            raise ValueError(
                f"`preview_vae` is for latents of {given[0]} channels and factor {given[1]}: {wanted[0]} channels and "
                f"factor {wanted[1]} are needed, as `vae` has them."
            )
        return lambda latents: decode_latents(preview_vae, latents)

    def check_inputs(
        self, options: _CallOptions, output_type: str, cross_attention_kwargs: dict[str, Any] | None
    ) -> None:
        """Raise a ValueError for the first option that is out of range (the settings have checked their own)."""
        check_choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        check_call(self, options.num_inference_steps, options.processing_resolution, cross_attention_kwargs)
        unknown = set(options.callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
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
        for text in prompts:
            if not isinstance(text, str):
                raise ValueError(f"`prompt` must be a string, got {text!r}.")
        generators = _one_each("generator", generator, count, isinstance(generator, (list, tuple)))
        requests = [
            _Request(*each, seed=draw_seed(source))
            for each, source in zip(zip(pictures, checked, prompts, strict=True), generators, strict=True)
        ]
        return requests, is_batch

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Embed a prompt: `(1, tokens, width)` in the UNet's precision, on the execution device."""
        prompt = self.maybe_convert_prompt(prompt, self.tokenizer)
        return encode_prompt(self.tokenizer, self.text_encoder, prompt, self._execution_device).to(self.unet.dtype)

    def encode_image(self, picture: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Generator], torch.Tensor]]:
        """Encode a picture `(1, 3, height, width)` in [0, 1]; see [`encode_picture`]."""
        return encode_picture(self.vae, picture)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode z_0 `(1, channels, h, w)` to a picture `(1, 3, height, width)` in [0, 1], float32."""
        return decode_latents(self.vae, latents)

    def prepare_identity_lora(
        self,
        sample_latents: Callable[[torch.Generator], torch.Tensor],
        prompt_embeds: torch.Tensor,
        settings: LoraSettings,
        request: _Request,
        size: tuple[int, int],
    ) -> IdentityLora | None:
        """The identity LoRA of a picture: the loaded one if it is this picture's, one fitted before, or a new fit."""
        self._current_lora = None
        if settings.steps == 0:
            return None
        fingerprint = picture_fingerprint(request.picture, size)
        if self._loaded_lora is not None and self._loaded_lora.picture in (None, fingerprint):
            self._current_lora = self._loaded_lora
            return self._current_lora
        if self._loaded_lora is not None:
            logger.warning("The loaded identity LoRA is for another picture, or another size of it: it is not used.")
        key = (fingerprint, settings, request.prompt, request.seed, id(self.unet), *_adapter_state(self.unet))
        if key not in self._fitted_loras:
            self._fitted_loras[key] = fit_identity_lora(
                self.unet,
                self.scheduler.config,
                sample_latents,
                prompt_embeds,
                settings,
                seed=request.seed,
                picture=fingerprint,
                progress_bar=lambda total: self._described_progress_bar(total, "Identity LoRA"),
            )
        self._fitted_loras.move_to_end(key)
        while len(self._fitted_loras) > KEPT_IDENTITY_LORAS:
            self._fitted_loras.popitem(last=False)
        self._current_lora = self._fitted_loras[key]
        return self._current_lora

    def save_identity_lora(self, directory: str | Path) -> None:
        """Save the identity LoRA of the last edited picture as `pytorch_lora_weights.safetensors` in `directory`.

        The file is an ordinary LoRA, so `load_lora_weights` of diffusers' pipelines reads it too.

        Raises:
            ValueError: if no picture was edited yet, or the last one with `identity_lora_steps=0`.
        """
        if self._current_lora is None:
            raise ValueError("There is no identity LoRA to save: edit a picture with `identity_lora_steps` > 0 first.")
        self._current_lora.save(directory)

    def load_identity_lora(self, directory: str | Path) -> None:
        """Use a saved identity LoRA for the picture that it was fitted to, instead of fitting it anew.

        A file that does not say which picture it belongs to is used for every picture. For other pictures, and other
        processing resolutions, one is fitted as usual, with a warning.

        Raises:
            ValueError: if `directory` holds no identity LoRA.
        """
        self._loaded_lora = IdentityLora.load(directory)

    def _described_progress_bar(self, total: int, description: str) -> Any:
        bar = self.progress_bar(total=total)
        bar.set_description(description)
        return bar

    def _on_step_end(self, engine: DragEngine, step: DragStep, index: int, options: _CallOptions) -> None:
        """Show the callback its tensors, and take what it changed."""
        if options.callback is not None:
            tensors = {"latents": step.latents, "prompt_embeds": engine.prompt_embeds}
            shown = {name: tensors[name] for name in options.callback_inputs}
            changed = options.callback(self, index, engine.timesteps[0], shown) or {}
            if changed.get("latents", step.latents) is not step.latents:
                step.latents, step.is_preview = changed["latents"], False
            engine.prompt_embeds = changed.get("prompt_embeds", engine.prompt_embeds)
        step.is_last = self.interrupt

    def _collect(self, edits: list[_Edited], output_type: str, is_batch: bool) -> DynaDragPipelineOutput:
        """Put the edits of a call into one output, in the type that was asked for."""
        tensors = [edited.result.latents if output_type == "latent" else edited.image for edited in edits]
        if output_type == "pil":
            images = [self._postprocess(tensor, "pil")[0] for tensor in tensors]
        elif len({tensor.shape for tensor in tensors}) == 1:
            images = self._postprocess(torch.cat(tensors), output_type)
        else:
            images = [self._postprocess(tensor, output_type)[0] for tensor in tensors]
        source: MotionSource = "straight" if self.motion_predictor is None else "motion_predictor"
        output = DynaDragPipelineOutput(
            images,
            [edited.result.trajectory for edited in edits],
            [edited.result.iterations for edited in edits],
            [edited.stop_reason for edited in edits],
            [source for _ in edits],
        )
        if not is_batch:
            for name in ("trajectories", "iterations", "stop_reason", "motion_source"):
                output[name] = output[name][0]
        return output

    def _postprocess(self, tensor: torch.Tensor, output_type: str) -> Any:
        return self.image_processor.postprocess(tensor, output_type, do_denormalize=[False] * len(tensor))


def _one_each(name: str, values: Any, count: int, is_list: bool) -> list[Any]:
    """A list with one entry per picture; one value that is not a list holds for all."""
    if not is_list:
        return [values] * count
    if len(values) != count:
        raise ValueError(f"`{name}` must have one entry for each of the {count} pictures, got {len(values)}.")
    return list(values)


def _is_nested(points: Any) -> bool:
    """Whether `points` is a list of instructions rather than one: its entries are lists of pairs."""
    try:
        return len(points) > 0 and np.ndim(points[0]) != 1
    except (TypeError, ValueError):  # ragged or not even a sequence: let the instruction's own check say so
        return False


def _adapter_state(unet: UNet2DConditionModel) -> list[Any]:
    """What the user's own adapters are set to: an identity LoRA is fitted beside them, and only fits there."""
    return [
        (name, tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.scaling.items()))
        for name, layer in tuner_layers(unet).items()
    ]
