"""SimVP checkpoints, of its authors' code and of OpenSTL's, to [`MotionPredictorModel`].

The motion predictor is the network of SimVP (CVPR 2022) for one frame, so a SimVP of one frame whose input and output
have the predictor's channels is carried over exactly: it computes the same. Any other is a warm start, of which some
layers begin anew; it has to be asked for, since it predicts nothing useful before it is trained. These are:

- a SimVP of T frames: the translator's first and last layer see T times the channels;
- one with other channels, such as RGB: the encoder's first layer and the readout depend on them;
- OpenSTL's SimVP with its translator IncepU, which is SimVP's. Its encoder and decoder have SiLU where SimVP has
  LeakyReLU; of the decoder, the layers that double the size (PixelShuffle there, transposed convolutions here) begin
  anew, and the last, which sees the sum of two maps there and both of them here, gets its weights twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from motion_predictor import MotionPredictorModel
from motion_predictor.common.checks import check_choice
from motion_predictor.common.output_folder import check_output_folder, output_folder

from .checkpoint_file import Checkpoint, check_finite, read_checkpoint

IN_CHANNELS, OUT_CHANNELS = 6, 2
CONDITIONING = ("sample_size", "heatmap_radius", "delta_paint", "delta_convention", "delta_scale", "flow_scale")
RESULT_NAMES = {
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "modeling_motion_predictor.py",
    "conversion.json",
    "README.md",
}

ANCHOR = "enc.enc.0.conv.conv.weight"
RENAMES = (
    (r"^enc\.enc\.(\d+)\.conv\.", r"encoder.blocks.\1."),
    (r"^dec\.dec\.(\d+)\.conv\.", r"decoder.blocks.\1."),
    (r"^dec\.readout\.", "decoder.readout."),
    (r"^hid\.enc\.(\d+)\.conv1\.", r"translator.down_blocks.\1.bottleneck."),
    (r"^hid\.dec\.(\d+)\.conv1\.", r"translator.up_blocks.\1.bottleneck."),
    (r"^hid\.enc\.(\d+)\.layers\.", r"translator.down_blocks.\1.branches."),
    (r"^hid\.dec\.(\d+)\.layers\.", r"translator.up_blocks.\1.branches."),
)
# OpenSTL's other translators, each by a part of its names. gSTA and VAN have the same names, and are told by shapes.
OTHER_TRANSLATORS = {
    "spatial_gating_unit.fc.": "TAU",
    "spatial_gating_unit.": "gSTA",
    ".gnconv.": "HorNet",
    ".conv_pw.": "ConvMixer",
    ".conv_dw.": "ConvNeXt",
    ".mlp_tokens.": "MLP-Mixer",
    ".attn.gate.": "MogaNet",
    "relative_position_bias_table": "Swin",
    ".pos_embed.": "UniFormer",
    ".attn.qkv.": "ViT",
    ".layer_scale_1": "PoolFormer",
}


@dataclass(frozen=True)
class SimVPShape:
    """What the shapes of a SimVP's weights say of it, in the letters of its paper.

    Attributes:
        layout (`str`): `"SimVP"` or `"OpenSTL"`.
        frames (`int`): T.
        channels (`tuple[int, int]`): of a frame at the input and at the output.
        spatial (`int`): hid_S, channels of encoder and decoder.
        translator (`int`): hid_T, channels of the translator.
        spatial_blocks (`int`): N_S, layers of the encoder, and of the decoder.
        translator_blocks (`int`): N_T, blocks of the translator on the way down, and on the way up.
        kernels (`tuple[int, ...]`): sizes of the translator's kernels.
        groups (`int`): of its convolutions; 1 also where the channels could not be divided by those asked for.
    """

    layout: str
    frames: int
    channels: tuple[int, int]
    spatial: int
    translator: int
    spatial_blocks: int
    translator_blocks: int
    kernels: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class SimVPConversion:
    """A converted SimVP.

    Attributes:
        model ([`MotionPredictorModel`]): float32, in evaluation mode.
        shape ([`SimVPShape`]): of the checkpoint.
        reinitialised (`list[str]`): weights of the model that the checkpoint has none for.
    """

    model: MotionPredictorModel
    shape: SimVPShape
    reinitialised: list[str]

    @property
    def exact(self) -> bool:
        """Whether the model computes what the checkpoint's network did."""
        return not self.reinitialised and self.shape.layout == "SimVP"


def convert_motion_predictor(
    checkpoint: str | Path, out: str | Path, *, warm_start: bool = False, force: bool = False, **conditioning: Any
) -> SimVPConversion:
    """Convert a SimVP checkpoint to a folder for `MotionPredictorModel.from_pretrained`.

    Beside the model, `conversion.json` says what it was made from, and which of its weights begin anew.

    Args:
        checkpoint (`str` or `Path`): see [`load_simvp`].
        out (`str` or `Path`): the new folder.
        warm_start (`bool`, defaults to `False`): accept a model that has to be trained on.
        force (`bool`, defaults to `False`): replace the folder of an earlier conversion.
        conditioning (`Any`): see [`load_simvp`].

    Returns:
        [`SimVPConversion`]: what was saved.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see [`load_simvp`] and [`output_folder`]; then nothing is written.

    Example:
        >>> convert_motion_predictor("checkpoint.pth", "predictor", sample_size=256).exact  # doctest: +SKIP
        True
    """
    check_output_folder(out, RESULT_NAMES, force)
    converted = load_simvp(checkpoint, warm_start=warm_start, **conditioning)
    with open(Path(checkpoint).expanduser(), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {
        "source": {"file": Path(checkpoint).name, "sha256": digest, **asdict(converted.shape)},
        "exact": converted.exact,
        "reinitialised": converted.reinitialised,
    }
    with output_folder(out, RESULT_NAMES, force) as folder:
        converted.model.save_pretrained(folder)
        (folder / "conversion.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return converted


def load_simvp(checkpoint: str | Path, *, warm_start: bool = False, **conditioning: Any) -> SimVPConversion:
    """Read a SimVP checkpoint into a [`MotionPredictorModel`] whose configuration is inferred from its shapes.

    Args:
        checkpoint (`str` or `Path`): a file of weights, also inside a `state_dict` (Lightning) or with a prefix such
            as `model.` or `module.` (DDP).
        warm_start (`bool`, defaults to `False`): accept a model that has to be trained on.
        conditioning (`Any`): how the network was trained to be asked, which no shape tells: `sample_size`,
            `heatmap_radius`, `delta_paint`, `delta_convention`, `delta_scale`, `flow_scale`, as of
            [`MotionPredictorModel`].

    Returns:
        [`SimVPConversion`]: the model, and what of it begins anew.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no SimVP, one that this network has no place for, or a warm start that was not asked for.
    """
    for name in conditioning:
        check_choice("conditioning", name, CONDITIONING)
    read = read_checkpoint(checkpoint)
    weights = _network(read)
    shape = infer_shape(weights, read.path)
    model = _build(shape, read.path, conditioning)
    fitting, reinitialised = _fitting(weights, shape, model, read.path)
    if not warm_start and (reinitialised or shape.layout != "SimVP"):
        raise ValueError(_warm_start_only(shape, reinitialised, read.path))
    model.load_state_dict(fitting, strict=False)
    check_finite(model.state_dict(), read.path)
    return SimVPConversion(model.eval(), shape, reinitialised)


def infer_shape(weights: dict[str, torch.Tensor], path: Path) -> SimVPShape:
    """Read the configuration of a SimVP off its shapes.

    Args:
        weights (`dict[str, torch.Tensor]`): under the names that SimVP's own code gives them.
        path (`Path`): where they come from, for the messages.

    Returns:
        [`SimVPShape`]: the configuration.

    Raises:
        ValueError: if they are not those of a whole SimVP with the translator IncepU.
    """
    _check_translator(weights, path)
    spatial_blocks, translator_blocks = _count(weights, "enc.enc"), _count(weights, "hid.enc")
    try:
        first, last = weights[ANCHOR], weights[f"dec.dec.{spatial_blocks - 1}.conv.conv.weight"]
        bottleneck, branch = weights["hid.enc.0.conv1.weight"], weights["hid.enc.0.layers.0.conv.weight"]
        readout = weights["dec.readout.weight"]
        branches = range(_count(weights, "hid.enc.0.layers"))
        kernels = tuple(weights[f"hid.enc.0.layers.{index}.conv.weight"].shape[-1] for index in branches)
    except KeyError as error:
        raise ValueError(f"`{path}` is not a whole SimVP: it has no weight {error}.") from error
    if first.shape[-1] != 3:
        raise ValueError(
            f"`{path}` must have an encoder of 3x3 kernels, as SimVP's are, got {first.shape[-1]}x{first.shape[-1]}."
        )
    spatial, frames = first.shape[0], bottleneck.shape[1] // first.shape[0]
    shape = SimVPShape(
        layout="SimVP" if last.shape[1] == 2 * spatial else "OpenSTL",
        frames=frames,
        channels=(first.shape[1], readout.shape[0]),
        spatial=spatial,
        translator=branch.shape[0],
        spatial_blocks=spatial_blocks,
        translator_blocks=translator_blocks,
        kernels=kernels,
        groups=bottleneck.shape[0] // branch.shape[1],
    )
    if bottleneck.shape[1] != frames * spatial or bottleneck.shape[0] != shape.translator // 2:
        raise ValueError(f"`{path}` has weights that don't fit together as SimVP's do: {shape}.")
    return shape


def _network(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights of the one SimVP in a checkpoint, without the prefix that they share."""
    prefixes = [name.removesuffix(ANCHOR) for name in checkpoint.tensors if name.endswith(ANCHOR)]
    if len(prefixes) > 1:
        named = ", ".join(map(repr, prefixes[:4]))
        raise ValueError(f"`{checkpoint.path}` must hold one network, got {len(prefixes)}, under {named}.")
    if not prefixes:
        raise ValueError(
            f"`{checkpoint.path}` must be a SimVP, got weights without `{ANCHOR}`, such as "
            f"{', '.join(list(checkpoint.tensors)[:4])}."
        )
    prefix = prefixes[0]
    return {name.removeprefix(prefix): v for name, v in checkpoint.tensors.items() if name.startswith(prefix)}


def _check_translator(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse a translator that is not SimVP's, by its name."""
    blocks = [name for name in weights if name.startswith("hid.enc.0.block.")]
    for mark, name in OTHER_TRANSLATORS.items():
        found = [key for key in blocks if mark in key]
        if not found:
            continue
        attention = weights.get("hid.enc.0.block.attn.spatial_gating_unit.conv1.weight")
        if name == "gSTA" and attention is not None and attention.shape[0] == attention.shape[1]:
            name = "VAN"
        raise ValueError(
            f"`{path}` must be a SimVP with the translator IncepU, that of SimVP (CVPR 2022), got OpenSTL's with the "
            f"translator {name}: that is another network."
        )
    if blocks or "hid.enc.0.conv1.weight" not in weights:
        raise ValueError(f"`{path}` must have SimVP's translator of Inception blocks (IncepU), got another one.")


def _count(weights: dict[str, torch.Tensor], stem: str) -> int:
    """How many numbered layers there are under a name."""
    return len({name[len(stem) + 1 :].split(".")[0] for name in weights if name.startswith(f"{stem}.")})


def _build(shape: SimVPShape, path: Path, conditioning: dict[str, Any]) -> MotionPredictorModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # layers that begin anew are the same each time
        try:
            return MotionPredictorModel(
                in_channels=IN_CHANNELS,
                out_channels=OUT_CHANNELS,
                hidden_channels_spatial=shape.spatial,
                hidden_channels_translator=shape.translator,
                num_spatial_blocks=shape.spatial_blocks,
                num_translator_blocks=shape.translator_blocks,
                inception_kernels=shape.kernels,
                inception_groups=shape.groups,
                **conditioning,
            )
        except ValueError as error:
            raise ValueError(f"`{path}` gives no motion predictor: {error}") from error


def _fitting(
    weights: dict[str, torch.Tensor], shape: SimVPShape, model: MotionPredictorModel, path: Path
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights under the names of our model, and its names that have none.

    A layer is taken whole or not at all: the bias of one whose matrix begins anew would be another layer's.
    """
    renamed = {_renamed(name): value for name, value in weights.items()}
    if shape.layout == "OpenSTL":
        last = f"decoder.blocks.{shape.spatial_blocks - 1}.conv.weight"
        renamed[last] = renamed[last].repeat(1, 2, 1, 1)  # W (a + b) = (W W) (a, b)
    wanted = model.state_dict()
    unfit = {name.rpartition(".")[0] for name, v in wanted.items() if _shape(renamed, name) != v.shape}
    fitting = {name: renamed[name] for name in wanted if name.rpartition(".")[0] not in unfit}
    reinitialised = [name for name in wanted if name not in fitting]

    may_differ = _layers_that_may_differ(shape)
    unexpected = [name for name in reinitialised if not name.startswith(may_differ)]
    unused = [n for n in renamed if n not in wanted and not n.startswith(may_differ)]
    if unexpected or unused:
        named = ", ".join([*unexpected[:4], *unused[:4]])
        raise ValueError(f"`{path}` does not have the layers of a SimVP: {named} are missing, too many, or other.")
    return fitting, reinitialised


def _layers_that_may_differ(shape: SimVPShape) -> tuple[str, ...]:
    """Those whose shapes depend on frames and channels, or on the layout."""
    layers = []
    if shape.channels[0] != IN_CHANNELS:
        layers.append("encoder.blocks.0.conv.")
    if shape.channels[1] != OUT_CHANNELS:
        layers.append("decoder.readout.")
    if shape.frames > 1:
        layers.append("translator.down_blocks.0.bottleneck.")
        layers.append(f"translator.up_blocks.{shape.translator_blocks - 1}.branches.")
    if shape.layout == "OpenSTL":
        enlarging = [i for i in range(shape.spatial_blocks) if (shape.spatial_blocks - 1 - i) % 2]
        layers += [f"decoder.blocks.{index}.conv." for index in enlarging]
    return tuple(layers)


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _shape(weights: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _warm_start_only(shape: SimVPShape, reinitialised: list[str], path: Path) -> str:
    differences = []
    if shape.layout == "OpenSTL":
        differences.append("OpenSTL's encoder and decoder (SiLU, PixelShuffle, a sum)")
    if shape.frames != 1:
        differences.append(f"{shape.frames} frames, not 1")
    if shape.channels != (IN_CHANNELS, OUT_CHANNELS):
        differences.append("{} to {} channels, not {} to {}".format(*shape.channels, IN_CHANNELS, OUT_CHANNELS))
    return (
        f"`{path}` has {'; '.join(differences)}. It can begin a training, but not edit: pass `warm_start` to accept "
        f"that {len(reinitialised)} weights begin anew{_such_as(reinitialised)}."
    )


def _such_as(names: list[str]) -> str:
    return f", such as {', '.join(names[:4])}" if names else ""
