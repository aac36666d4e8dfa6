"""The models of an edit: whether they can be used together for dragging, and how they are left as they were."""

from __future__ import annotations

import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.embeddings import MultiIPAdapterImageProjection

from motion_predictor.common.checks import check_number, got, naming

from .ddim_inversion import make_ddim_schedulers
from .encoding import decode_latents
from .identity_lora import check_fit_beside, scaled_adapters, tuner_layers
from .kv_replacement import self_attention_layers
from .picture import MIN_SIDE, edit_size
from .settings import DragSettings

GIVEN_TO_ATTENTION = {"self", "attn", "hidden_states", "encoder_hidden_states", "attention_mask", "temb"}
"""What attention passes to its processors itself."""

_CLAIMS = threading.Lock()
_CLAIMED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def check_components(components: Any, settings: DragSettings | None = None) -> None:
    """Raise a ValueError if a component is missing, or the components can't be used together for dragging.

    Args:
        components (`DiffusionPipeline` or `ModularPipeline`): has them as attributes.
        settings ([`DragSettings`], *optional*): of the edit, which have to fit the UNet.
    """
    settings = settings or DragSettings()
    for name in ("vae", "unet", "scheduler"):
        if getattr(components, name, None) is None:
            raise ValueError(
                f"`{name}` is missing: load or pass this component; only the motion predictor may be None."
            )
    _check_vae(components.vae)
    _check_unet(components.unet)
    text_encoder = getattr(components, "text_encoder", None)
    _check_widths(components.unet, components.vae, text_encoder)
    _check_tokens(getattr(components, "tokenizer", None), text_encoder)
    check_layers(components.unet, settings.feature_block, settings.kv_start_layer)
    _check_weights(components.unet)
    if settings.identity_lora_steps:
        check_fit_beside(components.unet)
    _check_scheduler(components.scheduler)
    predictor = getattr(components, "motion_predictor", None)
    if predictor is not None and not callable(getattr(predictor, "predict_flow", None)):
        raise ValueError(f"`motion_predictor` must be a MotionPredictorModel or None, got {type(predictor).__name__}.")


def check_call(
    components: Any, settings: DragSettings, cross_attention_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Raise a ValueError for what of a call does not fit its components."""
    if torch.is_inference_mode_enabled():
        raise ValueError("Motion supervision needs gradients: call the pipeline outside of `torch.inference_mode()`.")
    steps = components.scheduler.config.num_train_timesteps
    if settings.num_inference_steps >= steps:
        raise ValueError(f"`num_inference_steps` must be under {steps}, got {settings.num_inference_steps}.")
    _check_processing_resolution(settings.processing_resolution, components.unet)
    with naming("cross_attention_kwargs", cross_attention_kwargs):
        _check_attention_kwargs(components.unet, cross_attention_kwargs)


def check_prompt(prompt: Any) -> str:
    """The prompt as a plain string, or a ValueError if it is none, or has letters that are not Unicode."""
    with naming("prompt", prompt):
        if not isinstance(prompt, str) or not _is_unicode(prompt):
            raise ValueError(f"`prompt` must be a string, got {got(prompt)}.")
        return str(prompt)


def check_layers(unet: UNet2DConditionModel, feature_block: int, kv_start_layer: int | None) -> None:
    """Raise a ValueError unless a UNet has the block and the layer."""
    blocks = len(unet.up_blocks)
    if not -blocks <= feature_block < blocks:
        raise ValueError(f"`feature_block` must index one of the {blocks} up-blocks of `unet`, got {feature_block!r}.")
    layers = len(self_attention_layers(unet))
    if not layers:
        raise ValueError("`unet` has no self-attention, so there are no keys and values to replace.")
    if kv_start_layer is not None and kv_start_layer > layers:
        raise ValueError(f"`kv_start_layer` must be in 0..{layers} for this `unet`, got {kv_start_layer!r}.")


@contextmanager
def frozen_components(
    components: Any, cross_attention_kwargs: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any] | None]:
    """Freeze and set to evaluation what an edit runs, and put everything back, whatever happens.

    The factor `scale` is taken out of `cross_attention_kwargs`, for it is the user's LoRAs' alone; the rest is
    yielded.
    """
    with claimed(components.unet):
        unet = components.unet
        modules = [module for module in components.components.values() if isinstance(module, torch.nn.Module)]
        training = {module: module.training for root in modules for module in root.modules()}
        requires_grad = {parameter: parameter.requires_grad for parameter in unet.parameters()}
        kwargs = dict(cross_attention_kwargs or {})
        scale = kwargs.pop("scale", 1.0)
        try:
            for module in modules:
                module.eval()
            unet.requires_grad_(False)
            with (
                kernels_channels_last(unet),
                scaled_adapters(unet, scale),
                scaled_adapters(components.text_encoder, scale) if components.text_encoder else nullcontext(),
            ):
                yield kwargs or None
        finally:
            for module, mode in training.items():
                module.training = mode
            for parameter, flag in requires_grad.items():
                parameter.requires_grad_(flag)


@contextmanager
def claimed(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which a UNet is one edit's alone: an edit changes its weights and processors, and puts them back.

    Raises:
        RuntimeError: if another edit is using it, in this thread or in another.
    """
    with _CLAIMS:
        if unet in _CLAIMED:
            raise RuntimeError(
                "`unet` is being edited with already: wait for the other edit, finish or close its iterator, or give "
                "each thread a UNet of its own."
            )
        _CLAIMED.add(unet)
    try:
        yield
    finally:
        with _CLAIMS:
            _CLAIMED.discard(unet)


@contextmanager
def kernels_channels_last(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which the kernels of a UNet lie as convolutions like them best: on the CPU, and in 16 bits on a GPU.

    An edit on a CPU takes some 6 % less time for it, and a replayed pass on a GPU a quarter less
    (docs/notebook/performance.md). Afterwards their strides are those of before, so that the UNet computes what it
    did, to the bit. Elsewhere nothing is done.
    """
    adapted = {each for layer in tuner_layers(unet).values() for each in layer.parameters()}
    strides = {
        parameter: parameter.stride()
        for parameter in unet.parameters()
        if parameter.ndim == 4
        and (parameter.device.type == "cpu" or (parameter.device.type == "cuda" and parameter.dtype.itemsize == 2))
        and parameter.is_contiguous()
        and parameter not in adapted  # some adapters view kernels as matrices
    }
    try:
        for kernel in strides:
            kernel.data = kernel.data.to(memory_format=torch.channels_last)
        yield
    finally:
        for kernel, stride in strides.items():
            as_before = torch.empty_strided(kernel.shape, stride, dtype=kernel.dtype, device=kernel.device)
            kernel.data = as_before.copy_(kernel.data)


def check_generator(generator: Any) -> None:
    """Raise a ValueError unless it is a generator, or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {got(generator)}.")


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed for everything random in one edit, so that a reused identity LoRA does not shift later draws."""
    if generator is None:
        return 0
    check_generator(generator)
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


def preview_decoder(
    vae: Any, preview_vae: Any, preview_steps: int | None
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What decodes previews, if another than the VAE does.

    Args:
        vae (`AutoencoderKL` or `AutoencoderTiny`): the pipeline's.
        preview_vae (`AutoencoderTiny` or `AutoencoderKL`, *optional*): for the same latents.
        preview_steps (`int`, *optional*): of the denoising of previews; without it, there are none.

    Raises:
        ValueError: if `preview_vae` can't decode them.
    """
    if preview_vae is None:
        return None
    if preview_steps is None:
        raise ValueError("`preview_vae` decodes previews, and there are none: pass `preview_steps` too.")
    if not isinstance(preview_vae, (AutoencoderTiny, AutoencoderKL)):
        raise ValueError(
            f"`preview_vae` must be an AutoencoderTiny or AutoencoderKL, got {type(preview_vae).__name__}."
        )
    wanted, given = ((each.config.latent_channels, vae_scale_factor(each)) for each in (vae, preview_vae))
    if given != wanted:
        raise ValueError(
            f"`preview_vae` is for latents of {given[0]} channels and factor {given[1]}: {wanted[0]} channels and "
            f"factor {wanted[1]} are needed, as `vae` has them."
        )
    return partial(decode_latents, preview_vae)


def vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny | None) -> int:
    """How many pixels of a picture one cell of a latent covers, along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8


def native_edit_size(
    components: Any, picture: torch.Tensor, processing_resolution: int | None = None
) -> tuple[int, int]:
    """(height, width) to edit a picture at: by default, with the short side that the UNet was trained at."""
    factor = vae_scale_factor(components.vae)
    sample_size = components.unet.config.sample_size
    native = (min(sample_size) if isinstance(sample_size, (list, tuple)) else sample_size or 0) * factor
    short_side = native if processing_resolution is None else processing_resolution
    return edit_size((picture.shape[-2], picture.shape[-1]), short_side, factor)


def check_unet_config(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for the config of a UNet that is not Stable Diffusion 1.x's or 2.x's; no weights are needed.

    Each of these is something that such a UNet is given beside latent, timestep and prompt, or does in another way.
    """
    conditions = ("addition_embed_type", "class_embed_type", "num_class_embeds", "dual_cross_attention")
    if any(config.get(name) for name in conditions):
        raise ValueError(
            "`unet` wants more conditions than a prompt, as Stable Diffusion XL's does; use a 1.x or 2.x UNet."
        )
    hidden = config.get("encoder_hid_dim_type")
    if hidden is not None and hidden != "ip_image_proj":
        raise ValueError(f"`unet` must take a prompt as it is, got one with a projection of {hidden!r} before it.")
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "`unet` must predict noise for itself, got one that was distilled to be told a guidance scale, as latent "
            "consistency models are: use the model that it was distilled from."
        )
    if np.any(config.get("only_cross_attention", False)):
        raise ValueError("`unet` must have self-attention, got one with `only_cross_attention`.")
    inputs, outputs = (config.get(name, 4) for name in ("in_channels", "out_channels"))
    if inputs != outputs:
        raise ValueError(
            f"`unet` has {inputs} input and {outputs} output channels: they must be "
            "equal (inpainting UNets with 9 channels can't be dragged)."
        )


def check_prompt_embeds(prompt_embeds: Any, prompt: Any, components: Any) -> None:
    """Raise a ValueError unless there is an embedding in the place of a prompt, or else what embeds a prompt."""
    if prompt_embeds is None:
        for name in ("text_encoder", "tokenizer"):
            if getattr(components, name, None) is None:
                raise ValueError(f"`{name}` is missing: load or pass this component, or pass `prompt_embeds`.")
        return
    if prompt:
        raise ValueError(f"`prompt` must be empty beside `prompt_embeds`, got {got(prompt)}.")
    widths = components.unet.config.cross_attention_dim
    width = widths[0] if isinstance(widths, (list, tuple)) else widths
    if not isinstance(prompt_embeds, torch.Tensor) or not prompt_embeds.is_floating_point():
        raise ValueError(f"`prompt_embeds` must be a tensor of numbers, got {got(prompt_embeds)}.")
    shape = tuple(prompt_embeds.shape)
    if len(shape) != 3 or shape[0] != 1 or not shape[1] or shape[2] != width:
        raise ValueError(f"`prompt_embeds` must have the shape (1, tokens, {width}), got {shape}.")
    if not torch.isfinite(prompt_embeds).all():
        raise ValueError("`prompt_embeds` must be finite, got values that are not.")


def _check_vae(vae: Any) -> None:
    if not isinstance(getattr(vae, "_orig_mod", vae), (AutoencoderKL, AutoencoderTiny)):
        raise ValueError(
            f"`vae` must be an AutoencoderKL or AutoencoderTiny, got {type(vae).__name__}: others decode by chance, "
            "or want more than a latent. Take the one that the checkpoint came with."
        )
    shifts = [name for name in ("shift_factor", "latents_mean", "latents_std") if vae.config.get(name)]
    if shifts:
        raise ValueError(
            f"`vae` must scale its latents alone, as Stable Diffusion's does, got one with a {shifts[0]}."
        )


def _check_unet(unet: Any) -> None:
    if isinstance(unet, torch._dynamo.OptimizedModule) or getattr(unet, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "`unet` is compiled as a whole, which would miss the hook that reads its features: compile its blocks, "
            "by `unet.compile_repeated_blocks()`."
        )
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(f"`unet` must be a UNet2DConditionModel, got {type(unet).__name__}.")
    if isinstance(unet.encoder_hid_proj, MultiIPAdapterImageProjection) or any(
        "IPAdapter" in type(processor).__name__ for processor in unet.attn_processors.values()
    ):
        raise ValueError(
            "`unet` carries an IP-Adapter, which wants a picture as its prompt: call `unload_ip_adapter()` of the "
            "pipeline that loaded it."
        )
    check_unet_config(unet.config)
    for module in unet.modules():
        hooks = sorted(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))
        if hooks:
            raise ValueError(
                f"`unet` must keep its weights where gradients find them, got the hook {hooks[0]!r} on them: load it "
                "without, and save memory by `enable_model_cpu_offload()` or `enable_sequential_cpu_offload()`."
            )


def _check_widths(unet: UNet2DConditionModel, vae: Any, text_encoder: Any) -> None:
    config = unet.config
    latent_channels = vae.config.latent_channels
    if config.in_channels != latent_channels:
        raise ValueError(
            f"`unet` has {config.in_channels} input and {config.out_channels} output channels, the VAE's latents "
            f"{latent_channels}: they must be equal."
        )
    if text_encoder is None:
        return
    width, expected = text_encoder.config.hidden_size, config.cross_attention_dim
    if any(each != width for each in (expected if isinstance(expected, (list, tuple)) else [expected])):
        raise ValueError(f"`text_encoder` has width {width}, but `unet` attends to width {expected}.")


def _check_tokens(tokenizer: Any, text_encoder: Any) -> None:
    if tokenizer is None or text_encoder is None:  # prompt embeddings need neither
        return
    made, taken = tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", math.inf)
    if made > taken:
        raise ValueError(f"`tokenizer` makes up to {made:.0f} tokens of a prompt, but `text_encoder` takes {taken}.")


def _check_weights(unet: UNet2DConditionModel) -> None:
    if any("Fused" in type(processor).__name__ for processor in unet.attn_processors.values()):
        raise ValueError(
            "`unet` has fused QKV projections, which hide keys and values: call `unfuse_qkv_projections()`."
        )
    for name, weight in unet.named_parameters():
        if type(weight) is not torch.nn.Parameter or not weight.is_floating_point() or weight.dtype.itemsize == 1:
            raise ValueError(
                f"`unet` must have weights in float32, bfloat16 or float16, as gradients need them, got "
                f"quantised ones, a {type(weight).__name__} in {weight.dtype} at {name}: load it without quantisation."
            )
    if any(layer.merged for layer in tuner_layers(unet).values()):
        raise ValueError("`unet` has a fused LoRA, which would be changed by the edit: call `unfuse_lora()`.")


def _check_scheduler(scheduler: Any) -> None:
    config = scheduler.config
    if not isinstance(config.get("num_train_timesteps"), int) or config.get("beta_schedule") is None:
        raise ValueError(
            f"`scheduler` must have a noise schedule that DDIM can take over: use the one of a Stable Diffusion "
            f"checkpoint, not {type(scheduler).__name__}."
        )
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise ValueError(f"`scheduler` must predict epsilon or v_prediction, got {config.prediction_type!r}.")
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            "`scheduler` must be without `rescale_betas_zero_snr` where epsilon is predicted, which says nothing of a "
            "picture in pure noise: take the UNet's own noise schedule, or a UNet that predicts v."
        )
    if config.get("thresholding"):
        raise ValueError("`scheduler` uses thresholding, which can't be inverted: use one without.")
    try:
        make_ddim_schedulers(config, 1)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`scheduler` must have a noise schedule that DDIM can take over, got one with: {error}"
        ) from error


def _check_attention_kwargs(unet: UNet2DConditionModel, kwargs: Any) -> None:
    if kwargs is None:
        return
    if not isinstance(kwargs, dict):
        raise ValueError(f"`cross_attention_kwargs` must be a dict, got {type(kwargs).__name__}.")
    accepted = ["scale", *_arguments_of_attention(unet)]
    unknown = [key for key in kwargs if not isinstance(key, str) or key not in accepted]
    if unknown:
        raise ValueError(
            f"`cross_attention_kwargs` must be among what the attention of `unet` takes, {', '.join(accepted)}: got "
            f"{got(unknown[0])}."
        )
    if "scale" in kwargs:
        check_number("cross_attention_kwargs['scale']", kwargs["scale"])


def _arguments_of_attention(unet: UNet2DConditionModel) -> list[str]:
    """What the processors of a UNet's attention take beside what is attention's own, and boxes if it takes any."""
    calls = [inspect.signature(kind.__call__) for kind in {type(each) for each in unet.attn_processors.values()}]
    named = {
        each.name
        for call in calls
        for each in call.parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    boxes = ["gligen"] if getattr(unet, "position_net", None) is not None else []
    return [*sorted(named - GIVEN_TO_ATTENTION - {"scale"}), *boxes]


def _is_unicode(text: str) -> bool:
    """Whether a string has no half of a pair of code units, as file names and arguments in other encodings have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_processing_resolution(resolution: int | None, unet: UNet2DConditionModel) -> None:
    if resolution is None and unet.config.sample_size is None:
        raise ValueError("`unet` does not say its sample size: pass `processing_resolution`, in pixels (0: as it is).")
    if resolution is not None and 0 < resolution < MIN_SIDE:
        raise ValueError(f"`processing_resolution` must be None, 0 or at least {MIN_SIDE} pixels, got {resolution!r}.")
