"""LoRAs of a picture that other drag editors fitted, to the identity LoRAs that `load_identity_lora` reads.

DragDiffusion and FreeDrag keep `pytorch_lora_weights.bin` or `.safetensors`, in the names of the diffusers of their
day; peft and kohya's scripts have names of their own. All say the same: a linear layer W becomes W x + s B A x, with
s = alpha / rank, and alpha equal to the rank where a file is silent.

An identity LoRA changes the attention of the UNet, all of it, with one rank and one alpha. A LoRA of parts of it, or
of several ranks and alphas, is made into one that computes the same: by zeros, and by factors in B. One that changes
more than the attention is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key

from dynadrag_pipeline.fit_key import picture_fingerprint
from dynadrag_pipeline.identity_lora import (
    FINGERPRINT_KEY,
    TARGET_MODULES,
    UNET_PREFIX,
    IdentityLora,
)
from dynadrag_pipeline.picture import edit_size, to_picture_tensor
from motion_predictor.common.checks import got
from motion_predictor.common.output_folder import check_output_folder, output_folder
from motion_predictor.common.picture_files import open_picture

from .checkpoint_file import Checkpoint, check_finite, read_checkpoint

FILE_NAMES = (
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
RESULT_NAMES = {"pytorch_lora_weights.safetensors"}
STABLE_DIFFUSION_1 = (512, 8)
"""Pixels of the short side that Stable Diffusion 1.x edits at, and the factor of its autoencoder."""

_MATRIX = re.compile(r"(?:base_model\.model\.)?(?:unet\.)?(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
_ALPHA = re.compile(r"(?:base_model\.model\.)?(?:unet\.)?(.+?)(?:\.lora_A\.weight|\.lora)?\.alpha")
_ATTENTION = re.compile(r"(.+\.transformer_blocks\.\d+)\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_TEXT_ENCODER = ("text_encoder", "lora_te")
# Adapters that are called LoRAs too, and are other formulas, each by a part of its names.
_OTHER_ADAPTERS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".lora_mid": "LoCon with a core",
    ".diff": "full differences",
}


@dataclass(frozen=True)
class _Layer:
    """Of one linear layer: B A alpha / rank is added to W."""

    down: torch.Tensor  # A, [rank, in]
    up: torch.Tensor  # B, [out, rank]
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]


def convert_identity_lora(
    lora: str | Path,
    out: str | Path,
    *,
    image: str | Path | None = None,
    base: str | Path | None = None,
    processing_resolution: int | None = None,
    force: bool = False,
) -> IdentityLora:
    """Convert a LoRA file to a folder for `DynaDragPipeline.load_identity_lora`.

    Args:
        lora (`str` or `Path`): see [`load_foreign_lora`].
        out (`str` or `Path`): the new folder.
        image (`str` or `Path`, *optional*): the picture that it was fitted to. The pipeline then uses it for this
            picture alone, and fits one for any other; without it, for every picture.
        base (`str` or `Path`, *optional*): see [`load_foreign_lora`].
        processing_resolution (`int`, *optional*): what will be passed to the pipeline's call by that name, if
            anything; the LoRA is bound to the picture at that size. Defaults to the base's own, or to 512.
        force (`bool`, defaults to `False`): replace the folder of an earlier conversion.

    Returns:
        [`IdentityLora`]: what was saved.

    Raises:
        OSError: if there is no such file, or no configuration at `base`.
        ValueError: see [`load_foreign_lora`], or if `image` is no picture; then nothing is written.

    Example:
        >>> import tempfile
        >>> block, weights = "up_blocks.3.attentions.0.transformer_blocks.0", {}
        >>> for layer in [f"attn{number}.{part}" for number in (1, 2) for part in TARGET_MODULES]:
        ...     weights[f"{block}.{layer}.lora_A.weight"] = torch.rand(4, 320)
        ...     weights[f"{block}.{layer}.lora_B.weight"] = torch.zeros(320, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/pytorch_lora_weights.bin")
        ...     convert_identity_lora(folder, f"{folder}/lora").rank
        4
    """
    check_output_folder(out, RESULT_NAMES, force)
    converted = load_foreign_lora(lora, base)
    if image is not None:
        converted = replace(converted, picture=_fingerprint(Path(image), base, processing_resolution))
    elif processing_resolution is not None:
        raise ValueError(
            f"`processing_resolution` must be left out without an `image`, got {got(processing_resolution)}: it says "
            "at which size the LoRA is bound to one."
        )
    with output_folder(out, RESULT_NAMES, force) as folder:
        converted.save(folder)
    return converted


def load_foreign_lora(lora: str | Path, base: str | Path | None = None) -> IdentityLora:
    """Read a LoRA of a UNet's attention, in any of the usual layouts.

    Args:
        lora (`str` or `Path`): a file, or a folder with `pytorch_lora_weights` or `adapter_model` in it.
        base (`str` or `Path`, *optional*): folder or Hub id of the diffusers model that it is for, of which only the
            configuration is read. With it the LoRA is checked to fit, and layers that it leaves alone are filled with
            zeros. Without it, it must have all layers of each attention that it has one of.

    Returns:
        [`IdentityLora`]: float32; bound to a picture only if our own file says so.

    Raises:
        OSError: if there is no such file, or no configuration at `base`.
        ValueError: if it is no LoRA, changes more than the attention, or does not fit.
    """
    read = read_checkpoint(_file(Path(lora).expanduser()))
    layers = _layers(read)
    if base is None:
        _check_whole(layers, read.path)
        shapes = {name: layer.shape for name, layer in layers.items()}
    else:
        shapes = _attention_of(base)
        _check_fit(layers, shapes, read.path, base)
    identity = _as_identity_lora(layers, shapes)
    check_finite(identity.state_dict, read.path)
    return replace(identity, picture=read.metadata.get(FINGERPRINT_KEY))


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in FILE_NAMES if (path / name).is_file()]
    if len(found) != 1:
        what = " and ".join(file.name for file in found) if found else "none"
        raise ValueError(f"`{path}` must hold one of {', '.join(FILE_NAMES)}, got {what}: pass the file itself.")
    return found[0]


def _layers(checkpoint: Checkpoint) -> dict[str, _Layer]:
    """The LoRA by module of the UNet, whatever the names in the file."""
    path, config = checkpoint.path, _adapter_config(checkpoint)
    _check_kind(checkpoint, config)
    matrices, alphas = _by_module(checkpoint)
    modules = sorted({module for module, _ in matrices})
    beside = [module for module in modules if not _ATTENTION.fullmatch(module)]
    if beside:
        raise ValueError(
            f"`{path}` must change the UNet's attention alone, got {len(beside)} other layers, such as "
            f"{', '.join(beside[:3])}. Load it by `load_lora_weights`, beside an identity LoRA."
        )
    layers = {}
    for module in modules:
        down, up = matrices.get((module, "A")), matrices.get((module, "B"))
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            shapes = [None if matrix is None else list(matrix.shape) for matrix in (down, up)]
            raise ValueError(
                f"`{path}` must have matrices of the shapes [r, in] and [out, r] for `{module}`, got {shapes}."
            )
        layers[module] = _Layer(down, up, alphas.get(module, _configured_alpha(config, module, down.shape[0])))
    return layers


def _check_kind(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Refuse what is no LoRA, and what changes more than the UNet, by its name."""
    path, names = checkpoint.path, list(checkpoint.tensors)
    kinds = [kind for mark, kind in _OTHER_ADAPTERS.items() if any(mark in name for name in names)]
    if kinds or config.get("use_dora"):
        raise ValueError(
            f"`{path}` must be a LoRA of two matrices for each layer, got an adapter of the kind "
            f"{(kinds or ['DoRA'])[0]}."
        )
    texts = [name for name in names if name.startswith(_TEXT_ENCODER)]
    if texts:
        raise ValueError(
            f"`{path}` must change the UNet's attention alone, got {len(texts)} weights of the text encoder, such as "
            f"{texts[0]}. Load it by `load_lora_weights`, beside an identity LoRA."
        )


def _by_module(checkpoint: Checkpoint) -> tuple[dict[tuple[str, str], torch.Tensor], dict[str, float]]:
    """Matrices by module of the UNet and letter, A or B; and the alphas that are in the file, by module."""
    tensors = checkpoint.tensors
    if all(name.startswith(_KOHYA) for name in tensors):
        try:
            weights, given = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors))
        except (KeyError, ValueError) as error:
            raise ValueError(f"`{checkpoint.path}` is no whole LoRA in kohya's names: {error}") from error
    else:
        given = {name: value for name, value in tensors.items() if name.endswith(".alpha")}
        weights = {name: value for name, value in tensors.items() if name not in given}

    weights = convert_unet_state_dict_to_peft(weights)
    matched = {name: _MATRIX.fullmatch(name) for name in weights}
    unread = [name for name, match in matched.items() if match is None]
    if unread or len({match[3] for match in matched.values() if match}) != 1:
        raise ValueError(
            f"`{checkpoint.path}` must be one LoRA of a UNet, in a layout that is known, got weights such as "
            f"{', '.join((unread or sorted(tensors))[:4])}."
        )
    matrices = {(match[1], match[2]): weights[name] for name, match in matched.items() if match}
    renamed = {_ALPHA.fullmatch(name): value for name, value in convert_unet_state_dict_to_peft(given).items()}
    alphas = {match[1]: float(value) for match, value in renamed.items() if match}
    without = [module for module in alphas if (module, "A") not in matrices]
    if without:
        raise ValueError(f"`{checkpoint.path}` has an alpha for `{without[0]}`, but no matrices.")
    return matrices, alphas


def _configured_alpha(config: dict[str, Any], module: str, rank: int) -> float:
    """peft's alpha of a module: equal to the rank unless something else is said."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config.get("lora_alpha", rank))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha  # there the scale is alpha / sqrt(rank)


def _adapter_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """peft's settings, of the file's header or of the file beside it."""
    beside = checkpoint.path.with_name("adapter_config.json")
    text = checkpoint.metadata.get(LORA_ADAPTER_METADATA_KEY, "{}")
    if checkpoint.path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{checkpoint.path}` has settings that are not JSON: {error}.") from error
    return {name.removeprefix(UNET_PREFIX): value for name, value in config.items()}


def _check_whole(layers: dict[str, _Layer], path: Path) -> None:
    """Without a base, a transformer block that is changed at all must have all of its eight projections."""
    blocks = {match[1] for match in map(_ATTENTION.fullmatch, layers) if match}
    projections = [f"{attention}.{target}" for attention in ("attn1", "attn2") for target in TARGET_MODULES]
    missing = sorted({f"{block}.{projection}" for block in blocks for projection in projections} - set(layers))
    if missing:
        raise ValueError(
            f"`{path}` leaves {len(missing)} attention layers alone, such as {', '.join(missing[:3])}: pass `base`, "
            "the model that it is for, to have them filled with zeros."
        )


def _check_fit(layers: dict[str, _Layer], shapes: dict[str, tuple[int, int]], path: Path, base: str | Path) -> None:
    for name, layer in layers.items():
        if shapes.get(name) != layer.shape:
            there = f"be {list(shapes[name])}" if name in shapes else "not be there"
            raise ValueError(
                f"`{path}` must fit the UNet of `{base}`: `{name}` must {there}, got {list(layer.shape)}."
            )


def _attention_of(base: str | Path) -> dict[str, tuple[int, int]]:
    """`(out, in)` of each attention projection of a diffusers model's UNet."""
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base, subfolder="unet"))
    return {
        name: (module.out_features, module.in_features)
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and _ATTENTION.fullmatch(name)
    }


def _as_identity_lora(layers: dict[str, _Layer], shapes: dict[str, tuple[int, int]]) -> IdentityLora:
    """One rank and one alpha for all: those of the layers if they agree, else the highest rank and a scale of 1."""
    kinds = {(layer.rank, layer.alpha) for layer in layers.values()}
    agree = len(kinds) == 1
    rank, alpha = max(kinds)
    state_dict = {}
    for name, (leaving, entering) in shapes.items():
        down, up = torch.zeros(rank, entering), torch.zeros(leaving, rank)
        if name in layers:
            layer = layers[name]
            down[: layer.rank] = layer.down
            up[:, : layer.rank] = layer.up.float() * (1 if agree else layer.alpha / layer.rank)
        state_dict[f"{name}.lora_A.weight"], state_dict[f"{name}.lora_B.weight"] = down, up
    return IdentityLora(state_dict, rank, alpha if agree else rank)


def _fingerprint(image: Path, base: str | Path | None, processing_resolution: int | None) -> str:
    try:
        opened = open_picture(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"`image` must be a readable picture, got {got(str(image))}: {error}") from error
    picture = to_picture_tensor(opened)
    short_side, factor = STABLE_DIFFUSION_1 if base is None else _edit_grid(base)
    if processing_resolution is not None:
        short_side = processing_resolution
    return picture_fingerprint(picture, edit_size((picture.shape[-2], picture.shape[-1]), short_side, factor))


def _edit_grid(base: str | Path) -> tuple[int, int]:
    """Pixels of the short side that a model edits at, and its autoencoder's factor."""
    factor = 2 ** (len(AutoencoderKL.load_config(base, subfolder="vae")["block_out_channels"]) - 1)
    native = UNet2DConditionModel.load_config(base, subfolder="unet").get("sample_size") or 0
    return factor * (min(native) if isinstance(native, (list, tuple)) else native), factor
