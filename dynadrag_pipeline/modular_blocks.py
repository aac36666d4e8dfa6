"""The editor as blocks of Modular Diffusers: the same engine as the pipeline's, in parts that can be exchanged.

Each block says what it takes and leaves; what they leave for each other is in the pipeline's state. The keys and
values of the reference denoising are not: they are large, live in the drag loop alone, and end with it.
"""

from __future__ import annotations

import json
from copy import copy, deepcopy
from enum import Enum
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.utils import logging
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from motion_predictor.common.atomic_file import atomic_file
from motion_predictor.common.checks import check_choice
from motion_predictor.common.options import options_of
from motion_predictor.common.travelling import TravellingMixin

from .components import (
    check_call,
    check_components,
    check_prompt,
    check_prompt_embeds,
    draw_seed,
    preview_decoder,
)
from .content import ContentLocations, warn_if_left_behind
from .dense_flow import DenseFlow
from .drag_edit import DragEdit
from .drag_instruction import DragInstruction
from .drag_result import DragResult
from .encoding import decode_latents
from .hub import INSTALLED_PREDICTOR, is_predictor, is_remote
from .identity_lora import IdentityLora
from .motion.choice import choose_motion
from .motion.names import MOTION_NAMES
from .picture import resize_picture, to_picture_tensor
from .pipeline_output import OUTPUT_TYPES, StopReason
from .session import DragSession
from .settings import RECOMMENDED, DragSettings, SettingsInForce, check_recommended, settings_in_force
from .source_restoration import restore_source

logger = logging.get_logger(__name__)

UNET = ComponentSpec("unet", UNet2DConditionModel)
VAE = ComponentSpec("vae", AutoencoderKL)
SCHEDULER = ComponentSpec("scheduler", DDIMScheduler)
TEXT_ENCODER = ComponentSpec("text_encoder", CLIPTextModel)
TOKENIZER = ComponentSpec("tokenizer", CLIPTokenizer)
MOTION_PREDICTOR = ComponentSpec(
    "motion_predictor", description="a MotionPredictorModel; without it, steps are straight"
)
IMAGE_PROCESSOR = ComponentSpec(
    "image_processor", VaeImageProcessor, config=FrozenDict({}), default_creation_method="from_config"
)

RECOMMENDED_SETTINGS = ConfigSpec(RECOMMENDED, None, "options that suit the checkpoint, used where none are given")


class Left(Enum):
    """The default of an option as an input of a block: nothing was said of it. `None` says something."""

    TO_THE_CHECKPOINT = "as the checkpoint recommends"


OPTIONS = tuple(
    InputParam(
        each.name,
        each.type,
        default=Left.TO_THE_CHECKPOINT,
        description=f"{each.sentence}; by default what the checkpoint recommends, or else {each.default_shown()}",
    )
    for each in options_of(DragSettings).values()
)
"""The options of an edit, as everywhere: see [`DragSettings`]."""

PROMPT = InputParam("prompt", str, default="", description="a description of the picture")
GIVEN_EMBEDS = InputParam(
    "prompt_embeds", torch.Tensor, description="an embedding `(1, tokens, width)` in the place of a prompt"
)
ATTENTION_KWARGS = InputParam(
    "cross_attention_kwargs", dict, description="for the attention processors; `scale` weighs the user's own LoRAs"
)
OUTPUT_TYPE = InputParam("output_type", str, default="pil", description="'pil', 'np', 'pt' or 'latent'")
PREVIEW_VAE = InputParam(
    "preview_vae", Any, description="decodes the previews: a small autoencoder for the same latents"
)


def passed_on(name: str, type_hint: Any, description: str) -> tuple[InputParam, OutputParam]:
    """A value that one block leaves in the state, and others need."""
    return InputParam(name, type_hint, required=True, description=description), OutputParam(
        name, type_hint, description
    )


PICTURE = passed_on("picture", torch.Tensor, "the input, `(1, 3, height, width)` in [0, 1]")
INSTRUCTION = passed_on("instruction", DragInstruction, "points and mask, in pixels of the input")
IN_FORCE = passed_on("in_force", SettingsInForce, "every option, and where its value comes from")
SEED = passed_on("seed", int, "of everything random in the edit")
EDIT_PICTURE = passed_on("edit_picture", torch.Tensor, "the picture at the size of the edit, `(1, 3, height, width)`")
IMAGE_LATENTS = passed_on("image_latents", torch.Tensor, "z_0 of the picture, `(1, channels, h, w)`")
PROMPT_EMBEDS = passed_on("prompt_embeds", torch.Tensor, "the text condition, `(1, tokens, width)`")
NOISE = passed_on("noise", torch.Tensor, "z_t of the picture, `(1, channels, h, w)`")
LATENTS = passed_on("latents", torch.Tensor, "z_0 of the edited picture, `(1, channels, h, w)`")
RECONSTRUCTION = passed_on(
    "reconstruction_latents", torch.Tensor, "z_0 of the picture, inverted and denoised without an edit, the same"
)
FLOW = OutputParam("flow", DenseFlow, "what the latent was carried by; None without `carry`")
RESULT = passed_on("drag_result", DragResult, "what the drag came to")
SHOWN = (
    InputParam("shown", torch.Tensor, description="the picture with the source's own pixels, if they were taken back"),
    OutputParam("shown", torch.Tensor, description="the picture with the source's own pixels, or None"),
)
FITTED = OutputParam("identity_lora", IdentityLora, "the picture's LoRA; None if none was wanted")
GIVEN_LORA = InputParam(
    "identity_lora", IdentityLora, description="used instead of a new one, if it is this picture's"
)


class DragBlock(ModularPipelineBlocks):
    """A leaf block with a description, inputs, outputs and components as class attributes, and progress bars."""

    about: str = ""
    takes: tuple[InputParam, ...] = ()
    leaves: tuple[OutputParam, ...] = ()
    needs: tuple[ComponentSpec, ...] = ()
    reads: tuple[ConfigSpec, ...] = ()

    @property
    def description(self) -> str:
        return self.about

    @property
    def inputs(self) -> list[InputParam]:
        return [copy(each) for each in self.takes]  # loops of blocks write into them

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return list(self.leaves)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return list(self.needs)

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return list(self.reads)


class PrepareStep(DragBlock):
    """Checks everything before any model runs."""

    about = "Check components and arguments, and bring picture, points and mask into one form."
    takes = (
        InputParam(
            "image", Any, required=True, description="a PIL image, an array or a tensor of at least 64x64 pixels"
        ),
        InputParam("handles", Any, required=True, description="points to move, (x, y) in pixels of the picture"),
        InputParam("targets", Any, required=True, description="where to move them"),
        InputParam("mask", Any, description="white (1) where the picture may change; without it everything may"),
        PROMPT,
        GIVEN_EMBEDS,
        InputParam(
            "motion", Any, description=f"{', '.join(map(repr, MOTION_NAMES))}, a path for each pair, or a MotionSource"
        ),
        InputParam("settings", Any, description="options in one place: DragSettings, a dict or the name of a preset"),
        InputParam(
            "preset",
            str,
            description="'paper' is the paper to the letter, 'fast' trades quality for time; 'carry' bends the latent",
        ),
        PREVIEW_VAE,
        ATTENTION_KWARGS,
        InputParam("generator", torch.Generator, description="the seed is drawn from it; without it, it is 0"),
        OUTPUT_TYPE,
        *OPTIONS,
    )
    leaves = (PICTURE[1], INSTRUCTION[1], IN_FORCE[1], SEED[1])
    needs = (VAE, TEXT_ENCODER, TOKENIZER, UNET, SCHEDULER, MOTION_PREDICTOR)
    reads = (RECOMMENDED_SETTINGS,)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        # From the state itself: a block's view of it has defaults in the place of every None, which is a choice here.
        options = {each.name: state.get(each.name, Left.TO_THE_CHECKPOINT) for each in OPTIONS}
        said = {name: value for name, value in options.items() if value is not Left.TO_THE_CHECKPOINT}
        recommended = check_recommended(components.config.get(RECOMMENDED))
        given.in_force = settings_in_force(said, given.settings, given.preset, recommended)
        check_components(components, given.in_force.settings)
        check_choice("output_type", given.output_type, OUTPUT_TYPES)
        check_call(components, given.in_force.settings, given.cross_attention_kwargs)
        check_prompt_embeds(given.prompt_embeds, given.prompt, components)
        preview_decoder(components.vae, given.preview_vae, given.in_force.settings.preview_steps)
        given.picture, given.prompt = to_picture_tensor(given.image), check_prompt(given.prompt)
        size = (given.picture.shape[-2], given.picture.shape[-1])
        given.instruction = DragInstruction.from_user(given.handles, given.targets, given.mask, size)
        choose_motion(given.motion, getattr(components, "motion_predictor", None)).check(given.instruction)
        given.seed = draw_seed(given.generator)
        self.set_block_state(state, given)
        return components, state


class SessionBlock:
    """Mixed into blocks that run the models of an edit: progress bars, and the session that this edit is."""

    def progress(self, total: int, description: str) -> Any:
        """A progress bar with a name."""
        return tqdm(total=total, desc=description, **getattr(self, "_progress_bar_config", {}))

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Pass arguments of `tqdm` on to the bars."""
        self._progress_bar_config = kwargs

    def session(self, components: Any, given: Any) -> DragSession:
        """The session of this edit, as far as the blocks before have come."""
        session = DragSession(
            models=components,
            in_force=given.in_force,
            picture=given.picture,
            progress_bar=self.progress,
            prompt=getattr(given, "prompt", ""),
            seed=given.seed,
            cross_attention_kwargs=given.cross_attention_kwargs,
            lora=getattr(given, "identity_lora", None),
        )
        for part in ("edit_picture", "image_latents", "prompt_embeds", "noise"):
            if hasattr(given, part):
                setattr(session, part, getattr(given, part))
        return session


SESSION_INPUTS = (IN_FORCE[0], PICTURE[0], SEED[0], ATTENTION_KWARGS)


class EncodeStep(SessionBlock, DragBlock):
    """Models: the VAE's encoder and the text encoder."""

    about = "Resize the picture to the size of the edit, and encode it and the prompt."
    takes = (*SESSION_INPUTS, PROMPT, GIVEN_EMBEDS)
    leaves = (EDIT_PICTURE[1], IMAGE_LATENTS[1], PROMPT_EMBEDS[1])
    needs = (VAE, TEXT_ENCODER, TOKENIZER, UNET)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        session = self.session(components, given)
        session.given_embeds = given.prompt_embeds
        session.encode()
        given.edit_picture, given.image_latents = session.edit_picture, session.image_latents
        given.prompt_embeds = session.prompt_embeds
        self.set_block_state(state, given)
        return components, state


EDIT_INPUTS = (*SESSION_INPUTS, EDIT_PICTURE[0], PROMPT_EMBEDS[0], GIVEN_LORA)


class FitIdentityStep(SessionBlock, DragBlock):
    """Models: the VAE's encoder, and the UNet with gradients."""

    about = "Fit a LoRA to the picture, unless one is there that was fitted to it."
    takes = EDIT_INPUTS
    leaves = (FITTED,)
    needs = (VAE, TEXT_ENCODER, UNET, SCHEDULER)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        session = self.session(components, given)
        if session.settings.identity_lora_steps == 0:
            given.identity_lora = None
        elif given.identity_lora is None or given.identity_lora.picture not in (None, session.fingerprint):
            given.identity_lora = session.fit_identity_lora()
        self.set_block_state(state, given)
        return components, state


class InvertStep(SessionBlock, DragBlock):
    """Model: the UNet."""

    about = "Invert the picture's latent to noise (DDIM inversion)."
    takes = (*EDIT_INPUTS, IMAGE_LATENTS[0])
    leaves = (NOISE[1],)
    needs = (VAE, TEXT_ENCODER, UNET, SCHEDULER)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        session = self.session(components, given)
        session.invert()
        given.noise = session.noise
        self.set_block_state(state, given)
        return components, state


class IterationBlock(DragBlock):
    """A part of one iteration: works on `block_state.edit`, a [`DragEdit`], which says what it has to leave there."""

    needs_picture: bool = False
    """Whether this part looks at `edit.image`, so that pictures between must be made."""

    def __call__(self, components: Any, block_state: Any, k: int) -> tuple[Any, Any]:
        self.work_on(block_state.edit)
        return components, block_state

    def work_on(self, edit: DragEdit) -> None:
        """Do this part of iteration `k` for the edit."""
        raise NotImplementedError


class SelectPointsStep(IterationBlock):
    """Leaves `valid` and `similarities`."""

    about = "Choose the handles to drag (Sec. 3.2.2)."

    def work_on(self, edit: DragEdit) -> None:
        edit.select_points()


class ProposeMotionStep(IterationBlock):
    """Leaves `motion` and `next_handles`. The source of motion says whether it looks at pictures."""

    about = "Ask the source of motion where each handle goes next (Sec. 3.2.1, Eq. 4)."
    needs = (MOTION_PREDICTOR,)

    def work_on(self, edit: DragEdit) -> None:
        edit.propose_motion()


class CarryLatentStep(IterationBlock):
    """Changes `latents`, and where the next look is taken; nothing without `carry`."""

    about = "Bend the latent along the motion, if `carry` asks for it."

    def work_on(self, edit: DragEdit) -> None:
        edit.carry_latent()


class SuperviseMotionStep(IterationBlock):
    """Leaves `loss`, and changes `latents`."""

    about = "Pull the features of the latent to where the handles go (Eq. 2 and 3)."

    def work_on(self, edit: DragEdit) -> None:
        edit.supervise_motion()


class LocateHandlesStep(IterationBlock):
    """Leaves `next_handles`."""

    about = "Ask the source of motion where the handles are now."

    def work_on(self, edit: DragEdit) -> None:
        edit.locate_handles()


class DenoiseStep(IterationBlock):
    """Leaves `denoised` and `is_preview`."""

    about = "Denoise the latent with the original's keys and values (Sec. 3.3)."

    def work_on(self, edit: DragEdit) -> None:
        edit.denoise()


class DragLoopStep(SessionBlock, LoopSequentialPipelineBlocks):
    """Models: the UNet with gradients, the VAE's decoder, the motion predictor."""

    model_name = "dynadrag"
    block_classes = [
        SelectPointsStep,
        ProposeMotionStep,
        CarryLatentStep,
        SuperviseMotionStep,
        LocateHandlesStep,
        DenoiseStep,
    ]
    block_names = ["select", "predict", "carry", "supervise", "locate", "denoise"]

    @property
    def description(self) -> str:
        return "Denoise the picture once for its keys and values, then predict and move until the handles arrive."

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        return [VAE, TEXT_ENCODER, UNET, SCHEDULER]

    @property
    def loop_inputs(self) -> list[InputParam]:
        motion = InputParam("motion", Any, description="where handles go, as `prepare` has checked it")
        return [copy(each) for each in (*EDIT_INPUTS, INSTRUCTION[0], NOISE[0], PREVIEW_VAE, motion)]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return [
            LATENTS[1],
            RECONSTRUCTION[1],
            FLOW,
            OutputParam("trajectory", torch.Tensor, "`(iterations + 1, points, 2)`, in pixels of the input"),
            OutputParam("iterations", list, "a DragIteration each"),
            OutputParam("stop_reason", StopReason, "why the loop ended"),
            OutputParam("motion_source", str, "name of what said where handles go"),
            RESULT[1],
        ]

    @property
    def outputs(self) -> list[OutputParam]:
        return self.intermediate_outputs

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        session = self.session(components, given)
        preview_steps = session.settings.preview_steps
        session.decode_preview = preview_decoder(components.vae, given.preview_vae, preview_steps)

        def iterate(edit: DragEdit) -> None:
            given.edit = edit
            for block in self.sub_blocks.values():
                block(components, given, k=edit.k)

        is_watched = any(getattr(block, "needs_picture", True) for block in self.sub_blocks.values())
        with session.working(), session.carrying_lora():
            session.denoise_reference()
            for _ in session.drag(given.instruction, motion=given.motion, is_watched=is_watched, iterate=iterate):
                pass
        result = given.drag_result = session.history[-1]
        given.latents, given.reconstruction_latents = result.state.latents, session.reference.latents
        given.flow = result.state.flow
        given.trajectory, given.iterations = result.trajectory, result.iterations
        given.stop_reason, given.motion_source = result.stop_reason, result.motion_source
        self.set_block_state(state, given)
        return components, state


class DecodeStep(SessionBlock, DragBlock):
    """Models: the VAE's decoder, and the UNet if the source's own pixels are taken back."""

    about = "Decode the edited latent, at the size of the input."
    takes = (
        LATENTS[0],
        RECONSTRUCTION[0],
        *EDIT_INPUTS,
        IMAGE_LATENTS[0],
        NOISE[0],
        RESULT[0],
        OUTPUT_TYPE,
        InputParam("flow", DenseFlow, description=FLOW.description),
    )
    leaves = (OutputParam("images", description="the edited picture, in a list or a batch of one"), SHOWN[1])
    needs = (VAE, TEXT_ENCODER, UNET, SCHEDULER, IMAGE_PROCESSOR)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        given.shown, session = None, self.session(components, given)
        if given.output_type == "latent":
            given.images = given.latents
        else:
            with session.working():
                picture = decode_latents(components.vae, given.latents)
                if given.in_force.settings.restore_source:
                    reconstruction = decode_latents(components.vae, given.reconstruction_latents)
                    moves = session.known_moves(given.drag_result)
                    picture = given.shown = restore_source(
                        given.picture, picture, reconstruction, flow=given.flow, moves=moves
                    )
            picture = resize_picture(picture, (given.picture.shape[-2], given.picture.shape[-1]))
            given.images = components.image_processor.postprocess(picture, given.output_type, do_denormalize=[False])
        self.set_block_state(state, given)
        return components, state


class LocateContentStep(SessionBlock, DragBlock):
    """Models: the UNet, and the VAE's encoder if the source's own pixels were taken back."""

    about = "Look for what was at each handle in the edited picture, and say how far from its target it is."
    takes = (*EDIT_INPUTS, IMAGE_LATENTS[0], NOISE[0], SHOWN[0], RESULT[0])
    leaves = (OutputParam("content", ContentLocations, "where what was at each handle is now; None if not wanted"),)
    needs = (VAE, TEXT_ENCODER, UNET, SCHEDULER)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        given = self.get_block_state(state)
        session = self.session(components, given)
        given.content = None
        if session.settings.locate_content:
            given.content = session.content(given.drag_result, given.shown)
            warn_if_left_behind(given.content, given.drag_result.stop_reason)
        self.set_block_state(state, given)
        return components, state


class DynaDragModularPipeline(ModularPipeline):
    """A modular pipeline of [`DynaDragBlocks`] that reads and writes what [`DynaDragPipeline`] does.

    It is saved as a plain `ModularPipeline`, with the code of the blocks.
    """

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save components, index and blocks; the index says that the components are in this folder, or repository."""
        kwargs.setdefault("overwrite_modular_index", True)
        super().save_pretrained(str(save_directory), *args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Save and upload; the index says that the components are in this repository."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save index and blocks."""
        self.blocks.save_pretrained(save_directory)
        super().save_config(save_directory, *args, **kwargs)

    def to_json_file(self, json_file_path: Any) -> None:
        """Write the index in words that diffusers alone understands."""
        index = json.loads(self.to_json_string())
        index["_class_name"] = ModularPipeline.__name__
        entry = index.get("motion_predictor")
        if entry is not None and entry[2]["type_hint"][1] == INSTALLED_PREDICTOR[1]:
            index["motion_predictor"] = [None, None, entry[2] | {"type_hint": [None, None]}]
        with atomic_file(json_file_path) as file:
            file.write(f"{json.dumps(index, indent=2, sort_keys=True)}\n".encode())

    @classmethod
    def _load_pipeline_config(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Read a modular index, or else one of a pipeline; with the installed predictor where this package is."""
        modular, plain = super()._load_pipeline_config(*args, **kwargs)
        hint = [None, None] if is_remote(cls) else list(INSTALLED_PREDICTOR)
        if modular is not None and "motion_predictor" in modular:
            entry = modular["motion_predictor"]
            if entry[2]["type_hint"] == [None, None]:
                modular["motion_predictor"] = [*entry[:2], entry[2] | {"type_hint": hint}]
        if plain is not None:
            if plain.get("motion_predictor") == [None, None]:
                del plain["motion_predictor"]
            elif is_predictor(plain):
                plain["motion_predictor"] = hint
        return modular, plain


class DynaDragBlocks(TravellingMixin, SequentialPipelineBlocks):
    """Drag-style image editing by motion prediction ([DynaDrag](https://arxiv.org/abs/2601.00542)), in blocks.

    The blocks are `prepare`, `encode`, `fit_identity`, `invert`, `drag`, `decode` and `content`; `drag` is a loop over
    `select`, `predict`, `carry`, `supervise`, `locate` and `denoise`. From the same inputs and seed they make the
    picture that [`DynaDragPipeline`] makes, one picture a call.

    Example:

    ```py
    >>> from dynadrag_pipeline.modular_blocks import DynaDragBlocks

    >>> blocks = DynaDragBlocks()
    >>> list(blocks.sub_blocks)
    ['prepare', 'encode', 'fit_identity', 'invert', 'drag', 'decode', 'content']
    >>> list(blocks.sub_blocks["drag"].sub_blocks)
    ['select', 'predict', 'carry', 'supervise', 'locate', 'denoise']
    >>> pipe = blocks.init_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5")  # doctest: +SKIP
    >>> pipe.load_components()  # doctest: +SKIP
    >>> images = pipe(image=photo, handles=[(210, 180)], targets=[(250, 180)], output="images")  # doctest: +SKIP

    ```
    """

    _travels_as = "modular_blocks"
    model_name = "dynadrag"
    block_classes = [PrepareStep, EncodeStep, FitIdentityStep, InvertStep, DragLoopStep, DecodeStep, LocateContentStep]
    block_names = ["prepare", "encode", "fit_identity", "invert", "drag", "decode", "content"]

    @property
    def description(self) -> str:
        return "Drag-style image editing by motion prediction (DynaDrag)."

    def init_pipeline(
        self, pretrained_model_name_or_path: Any = None, components_manager: Any = None, collection: str | None = None
    ) -> DynaDragModularPipeline:
        """Make a pipeline of these blocks.

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*):
                folder or Hub id of a Stable Diffusion 1.x or 2.x, of a [`DynaDragPipeline`], or of a saved
                [`DynaDragModularPipeline`]: where `load_components()` will find the components.
            components_manager, collection: as for every modular pipeline.
        """
        source = pretrained_model_name_or_path
        return DynaDragModularPipeline(
            blocks=deepcopy(self),
            pretrained_model_name_or_path=None if source is None else str(source),
            components_manager=components_manager,
            collection=collection,
        )

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save what the blocks are, and their code. Blocks that were exchanged are not saved: a warning says so."""
        given, known = _block_types(self), _block_types(type(self)())
        changed = sorted(name for name in given.keys() | known.keys() if given.get(name) is not known.get(name))
        if changed:
            logger.warning(f"Changed blocks are not saved, the usual ones are: {', '.join(changed)}.")
        super().save_config(save_directory, *args, **kwargs)


def _block_types(blocks: ModularPipelineBlocks, prefix: str = "") -> dict[str, type]:
    """The classes of blocks within blocks, by the path to them, such as `"drag.predict"`."""
    types: dict[str, type] = {}
    for name, block in blocks.sub_blocks.items():
        types |= {f"{prefix}{name}": type(block), **_block_types(block, f"{prefix}{name}.")}
    return types
