"""Stable Diffusion 1.x and 2.x in one file, in the names of its authors' code, to the models of diffusers.

Such a file holds the weights of UNet, autoencoder and text encoder, and no settings. What its shapes tell is read off
them; the rest is the same in all of these models, or has to be said. So nothing is fetched, but for the vocabulary of
the tokenizer, which no such file has. The renaming of weights is diffusers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from huggingface_hub import hf_hub_download
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from motion_predictor.common.checks import check_choice, got

from .checkpoint_file import Checkpoint, check_finite, read_checkpoint
from .choices import DTYPE_NAMES, PREDICTION_TYPES

Weights = dict[str, torch.Tensor]

UNET = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
TOKENIZER_ON_HUB = "openai/clip-vit-large-patch14"
DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in DTYPE_NAMES)

# What else comes as one file, by a part of its names.
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "control_model.": "a ControlNet",
    "lora": "a LoRA, not a model: see `convert_identity_lora`, or `load_lora_weights` of the pipeline",
    "string_to_param": "a textual inversion, not a model: see `load_textual_inversion` of the pipeline",
    "emb_params": "a textual inversion, not a model: see `load_textual_inversion` of the pipeline",
    "down_blocks.": "a part of a diffusers model: pass the folder that it is a part of",
    f"{UNET}label_emb.": "a UNet that wants more conditions than a prompt (unCLIP, upscaling)",
}
UNET_INPUTS = {
    5: "a UNet for depth maps",
    7: "a UNet for upscaling",
    8: "an InstructPix2Pix UNet",
    9: "an inpainting UNet",
}


@dataclass(frozen=True)
class SingleFileModel:
    """The components of a diffusers pipeline that one file gave, with weights on the CPU.

    Attributes:
        unet (`UNet2DConditionModel`): the denoiser.
        vae (`AutoencoderKL`): between pictures and latents.
        text_encoder (`CLIPTextModel`): for the prompt.
        tokenizer (`CLIPTokenizer`): goes with `text_encoder`.
        scheduler (`DDIMScheduler`): with Stable Diffusion's noise schedule.
        notes (`list[str]`): what was taken for granted.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    notes: list[str]


def load_single_file(
    path: str | Path,
    *,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    ema: bool = False,
    dtype: torch.dtype | None = None,
) -> SingleFileModel:
    """Read a Stable Diffusion 1.x or 2.x checkpoint of one file.

    Args:
        path (`str` or `Path`): safetensors, or what `torch.save` wrote, of which tensors only.
        prediction_type (`str`, *optional*): `"epsilon"` or `"v_prediction"`. Without it, what the file says, or
            epsilon for 1.x; 2.x comes as both, and files of it mostly don't say which.
        tokenizer (`str` or `Path`, *optional*): folder of a CLIP tokenizer, or of a pipeline with one. Without it,
            that of CLIP is taken from the Hub or its cache.
        ema (`bool`, defaults to `False`): take the averaged weights of the UNet, of a file with both.
        dtype (`torch.dtype`, *optional*): float32, float16 or bfloat16; without it, that of the UNet's weights.

    Returns:
        [`SingleFileModel`]: the components.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another kind of model or lacks a part, if the prediction type or a tokenizer is needed, or
            if weights are not finite in `dtype`.
    """
    checkpoint = read_checkpoint(path)
    tensors = _with_text_model(checkpoint.tensors)
    _check_kind(tensors, checkpoint.path)
    generation = 2 if any(name.startswith(OPEN_CLIP) for name in tensors) else 1
    prediction, told_by = _prediction_type(checkpoint, generation, prediction_type)
    side = 768 if generation == 2 and prediction == "v_prediction" else 512
    unet_weights = _unet_weights(tensors, ema, checkpoint.path)
    try:
        text, vae = text_config(tensors, generation), vae_config(tensors)
        unet = unet_config(unet_weights, sample_size=side // 2 ** (len(vae["block_out_channels"]) - 1))
    except (KeyError, IndexError) as error:
        raise ValueError(f"`{checkpoint.path}` lacks weights of Stable Diffusion, such as {error}.") from error

    words = _tokenizer(tokenizer, text, generation)
    stored = next(iter(unet_weights.values())).dtype
    dtype = dtype or (stored if stored in DTYPES else torch.float32)
    return SingleFileModel(
        unet=_load_unet(unet, unet_weights, dtype, checkpoint.path),
        vae=_load_vae(vae, tensors, dtype, checkpoint.path),
        text_encoder=_load_text_encoder(text, tensors, dtype, checkpoint.path),
        tokenizer=words,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
            rescale_betas_zero_snr="ztsnr" in tensors,
        ),
        notes=[
            f"The file is Stable Diffusion {generation}.x of {side} pixels, by its shapes.",
            f"The UNet predicts {prediction}, {told_by}.",
        ],
    )


def unet_config(weights: Weights, sample_size: int) -> dict[str, Any]:
    """Settings of `UNet2DConditionModel`, by the shapes of the UNet's weights in the file's names.

    The number of heads leaves no trace in them: it is 8 in 1.x, and one for 64 channels in 2.x, whose projections
    round the attention are linear layers.

    Args:
        weights (`dict[str, torch.Tensor]`): of the UNet; only their shapes are looked at.
        sample_size (`int`): side of the latents that it was trained at.

    Returns:
        `dict[str, Any]`: for `UNet2DConditionModel.from_config`.

    Raises:
        KeyError, IndexError: if a weight is missing.
    """
    weights = {name.removeprefix(UNET): value for name, value in weights.items()}
    halvings = sorted(int(name.split(".")[1]) for name in weights if name.endswith(".0.op.weight"))
    layers = (halvings[0] if halvings else _count(weights, "input_blocks")) - 1
    firsts = [1, *(index + 1 for index in halvings)]
    channels = [weights[f"input_blocks.{index}.0.out_layers.3.weight"].shape[0] for index in firsts]
    attends = [f"input_blocks.{index}.1.transformer_blocks.0.attn2.to_k.weight" in weights for index in firsts]
    linear = weights["middle_block.1.proj_in.weight"].ndim == 2
    return {
        "sample_size": sample_size,
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "layers_per_block": layers,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "cross_attention_dim": weights["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": [width // 64 for width in channels] if linear else 8,
        "use_linear_projection": linear,
        "upcast_attention": linear,  # 2.1 overflows in float16 without; the others don't mind
    }


def vae_config(weights: Weights) -> dict[str, Any]:
    """Settings of `AutoencoderKL`, by the shapes of its weights in the file's names.

    Args:
        weights (`dict[str, torch.Tensor]`): of the file; only their shapes are looked at.

    Returns:
        `dict[str, Any]`: for `AutoencoderKL.from_config`.

    Raises:
        KeyError: if a weight is missing.
    """
    prefix = _vae_prefix(weights)
    levels = _count(weights, f"{prefix}encoder.down")
    channels = [weights[f"{prefix}encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": weights[f"{prefix}encoder.conv_in.weight"].shape[1],
        "out_channels": weights[f"{prefix}decoder.conv_out.weight"].shape[0],
        "latent_channels": weights[f"{prefix}encoder.conv_out.weight"].shape[0] // 2,
        "layers_per_block": _count(weights, f"{prefix}encoder.down.0.block"),
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def text_config(weights: Weights, generation: int) -> dict[str, Any]:
    """Settings of `CLIPTextModel`: CLIP's text encoder for 1.x; OpenCLIP's, without its last layer, for 2.x.

    Heads of 64 channels, and the last two entries of the vocabulary to begin and end a prompt, are all of theirs.

    Args:
        weights (`dict[str, torch.Tensor]`): of the file; only their shapes are looked at.
        generation (`int`): 1 or 2.

    Returns:
        `dict[str, Any]`: for `CLIPTextConfig`.

    Raises:
        KeyError: if a weight is missing.
    """
    if generation == 1:
        stem = f"{CLIP}text_model."
        tokens, positions = f"{stem}embeddings.token_embedding.weight", f"{stem}embeddings.position_embedding.weight"
        wide, layers = f"{stem}encoder.layers.0.mlp.fc1.weight", _count(weights, f"{stem}encoder.layers")
    else:
        tokens, positions = f"{OPEN_CLIP}token_embedding.weight", f"{OPEN_CLIP}positional_embedding"
        wide = f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"
        layers = _count(weights, f"{OPEN_CLIP}transformer.resblocks") - 1
    vocabulary, width = weights[tokens].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": weights[wide].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": weights[positions].shape[0],
        "hidden_act": "quick_gelu" if generation == 1 else "gelu",
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1 if generation == 1 else 0,
    }


def check_unet_inputs(in_channels: int, name: str | Path, latent_channels: int = 4) -> None:
    """Refuse UNets that are given more than noisy latents, by what they are for.

    Args:
        in_channels (`int`): of the UNet.
        name (`str` or `Path`): of the model, for the message.
        latent_channels (`int`, defaults to 4): of its autoencoder.

    Raises:
        ValueError: if these are not as many.

    Example:
        >>> check_unet_inputs(9, "model.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: `model.ckpt` must have a UNet of 4 input channels, for latents alone, got an inpainting UNet of 9.
    """
    if in_channels != latent_channels:
        what = UNET_INPUTS.get(in_channels, "a UNet of another kind")
        raise ValueError(
            f"`{name}` must have a UNet of {latent_channels} input channels, for latents alone, got {what} of "
            f"{in_channels}."
        )


def _with_text_model(tensors: Weights) -> Weights:
    """Files of some programs leave a level out of the text encoder's names."""
    parts = ("embeddings.", "encoder.", "final_layer_norm.")
    short = {name for name in tensors if name.startswith(tuple(CLIP + part for part in parts))}
    return {name.replace(CLIP, f"{CLIP}text_model.") if name in short else name: v for name, v in tensors.items()}


def _check_kind(tensors: Weights, path: Path) -> None:
    for mark, what in OTHERS.items():
        if any(mark in name for name in tensors):
            raise ValueError(f"`{path}` must be Stable Diffusion 1.x or 2.x, got {what}.")
    parts = {"UNet": (UNET,), "autoencoder (VAE)": VAES, "text encoder": (CLIP, OPEN_CLIP)}
    missing = [part for part, stems in parts.items() if not any(name.startswith(stems) for name in tensors)]
    if missing:
        raise ValueError(
            f"`{path}` must hold a whole Stable Diffusion, got no {' and no '.join(missing)} under its names. The "
            f"first weights are {', '.join(list(tensors)[:3])}."
        )
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is not None:
        check_unet_inputs(first.shape[1], path)


def _prediction_type(checkpoint: Checkpoint, generation: int, asked: str | None) -> tuple[str, str]:
    """What the UNet predicts, and how that is known."""
    if asked is not None:
        return check_choice("prediction_type", asked, PREDICTION_TYPES), "as was said"
    said = checkpoint.metadata.get("modelspec.prediction_type", "v" if "v_pred" in checkpoint.tensors else None)
    if said is not None:
        return ("v_prediction" if said.startswith("v") else "epsilon"), "as the file says"
    if generation == 1:
        return "epsilon", "as Stable Diffusion 1.x does"
    raise ValueError(
        "`prediction_type` must be 'epsilon' for Stable Diffusion 2.x of 512 pixels (2-base, 2.1-base), or "
        f"'v_prediction' for that of 768 (2.0, 2.1), got None: no shape in `{checkpoint.path}` tells them apart."
    )


def _unet_weights(tensors: Weights, ema: bool, path: Path) -> Weights:
    names = [name for name in tensors if name.startswith(UNET)]
    if not ema:
        return {name: tensors[name] for name in names}
    averaged = {name: "model_ema." + "".join(name.split(".")[1:]) for name in names}
    missing = [name for name, average in averaged.items() if average not in tensors]
    if missing:
        raise ValueError(f"`ema` must be left out for `{path}`: it has no averages for {len(missing)} weights.")
    return {name: tensors[average] for name, average in averaged.items()}


def _tokenizer(source: str | Path | None, text: dict[str, Any], generation: int) -> CLIPTokenizer:
    folder = None if source is None else Path(source).expanduser()
    if folder is not None and (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"
    if folder is not None and not folder.is_dir():
        raise ValueError(f"`tokenizer` must be the folder of a CLIP tokenizer, got {got(str(source))}.")
    try:
        if folder is not None:
            words = CLIPTokenizer.from_pretrained(str(folder))
        else:
            hf_hub_download(TOKENIZER_ON_HUB, "vocab.json")  # without a Hub, the next line makes one of two tokens
            padding = {"pad_token": "!"} if generation == 2 else {}
            words = CLIPTokenizer.from_pretrained(TOKENIZER_ON_HUB, **padding)
    except (OSError, ValueError, TypeError) as error:
        where = f", and `{TOKENIZER_ON_HUB}` is not to be had from the Hub here" if folder is None else ""
        raise ValueError(
            "`tokenizer` must be the folder of that name in a Stable Diffusion model in diffusers' layout, got "
            f"{got(source and str(source))}: a single file has no vocabulary{where} ({str(error).splitlines()[0]})."
        ) from error
    if len(words) != text["vocab_size"]:  # the library makes one of two tokens of an empty folder
        raise ValueError(
            f"`tokenizer` must be of {text['vocab_size']} tokens, as the file's text encoder is, got one of "
            f"{len(words)}."
        )
    words.model_max_length = min(words.model_max_length, text["max_position_embeddings"])
    return words


def _load_unet(settings: dict[str, Any], weights: Weights, dtype: torch.dtype, path: Path) -> UNet2DConditionModel:
    converted = convert_ldm_unet_checkpoint(weights, settings)
    used = {id(value) for value in converted.values()}
    unused = [name for name, value in weights.items() if id(value) not in used]
    if unused:
        raise ValueError(f"`{path}` has {len(unused)} weights of the UNet too many, such as {', '.join(unused[:3])}.")
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(settings)
    return _filled(unet, converted, dtype, "UNet", path)


def _load_vae(settings: dict[str, Any], tensors: Weights, dtype: torch.dtype, path: Path) -> AutoencoderKL:
    prefix = _vae_prefix(tensors)
    weights = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    with init_empty_weights():
        vae = AutoencoderKL.from_config(settings)
    return _filled(vae, convert_ldm_vae_checkpoint(weights, settings), dtype, "autoencoder", path)


def _load_text_encoder(settings: dict[str, Any], tensors: Weights, dtype: torch.dtype, path: Path) -> CLIPTextModel:
    with init_empty_weights():
        model = CLIPTextModel(CLIPTextConfig(**settings))
    if settings["hidden_act"] == "quick_gelu":
        converted = convert_ldm_clip_checkpoint(tensors)
    else:
        last = f"{OPEN_CLIP}transformer.resblocks.{settings['num_hidden_layers']}."
        converted = convert_open_clip_checkpoint(model, {n: v for n, v in tensors.items() if not n.startswith(last)})
    if not hasattr(model, "text_model"):  # transformers has left this level out since 5.6
        converted = {name.removeprefix("text_model."): value for name, value in converted.items()}
    converted = {name: value for name, value in converted.items() if not name.endswith("position_ids")}
    return _filled(model, converted, dtype, "text encoder", path)


def _filled(model: Any, weights: Weights, dtype: torch.dtype, part: str, path: Path) -> Any:
    """A model on the meta device, given weights that must be exactly its own; in evaluation mode."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    other = [name for name in weights if name not in wanted or weights[name].shape != wanted[name].shape]
    if missing or other:
        found = [f"{name} is missing" for name in missing[:3]]
        found += [f"{name} is {list(weights[name].shape)}, {_wanted_shape(wanted, name)}" for name in other[:3]]
        raise ValueError(
            f"`{path}`: its {part} is not Stable Diffusion's ({len(missing) + len(other)} weights differ): "
            f"{'; '.join(found)}."
        )
    weights = {name: value.to(dtype) for name, value in weights.items()}
    check_finite(weights, path)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _wanted_shape(wanted: Weights, name: str) -> str:
    return f"not {list(wanted[name].shape)}" if name in wanted else "of which there is none"


def _vae_prefix(weights: Weights) -> str:
    return next(prefix for prefix in VAES if any(name.startswith(prefix) for name in weights))


def _count(weights: Weights, stem: str) -> int:
    """How many numbered layers there are under a name."""
    return len({name[len(stem) + 1 :].split(".")[0] for name in weights if name.startswith(f"{stem}.")})
