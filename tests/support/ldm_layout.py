"""Stable Diffusion in one file, written from diffusers' models: the names of its authors' code, the other way round.

Written from those names, not from the conversion, so that tests compare two readings of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

Weights = dict[str, torch.Tensor]


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """Three levels in Stable Diffusion's order, GroupNorm of 32 groups and 8 heads, or 64 channels a head."""
    torch.manual_seed(0)
    config = {
        "sample_size": 64,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**(config | changes)).eval()


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    ).eval()


def tiny_text_encoder(**changes: object) -> CLIPTextModel:
    torch.manual_seed(2)
    config = {
        "vocab_size": 514,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    return CLIPTextModel(CLIPTextConfig(**(config | changes))).eval()


def stable_diffusion_1(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> Weights:
    """The weights of a 1.x checkpoint, with the buffers that such files have."""
    weights = {f"model.diffusion_model.{name}": value for name, value in unet_weights(unet)}
    weights |= {f"first_stage_model.{name}": value for name, value in vae_weights(vae)}
    weights |= {f"cond_stage_model.transformer.{name}": value for name, value in clip_weights(text_encoder)}
    positions = torch.arange(text_encoder.config.max_position_embeddings)[None]
    weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    return {**weights, "betas": torch.linspace(0.00085, 0.012, 1000), "logvar": torch.zeros(1000)}


def stable_diffusion_2(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> Weights:
    """The weights of a 2.x checkpoint: OpenCLIP's text encoder has one layer more, which nothing uses."""
    weights = {f"model.diffusion_model.{name}": value for name, value in unet_weights(unet)}
    weights |= {f"first_stage_model.{name}": value for name, value in vae_weights(vae)}
    return weights | {f"cond_stage_model.model.{name}": value for name, value in open_clip_weights(text_encoder)}


def unet_weights(unet: UNet2DConditionModel) -> Iterator[tuple[str, torch.Tensor]]:
    """openaimodel.UNetModel: blocks in one row, a convolution between levels; a level up ends with an upsampler."""
    layers = unet.config.layers_per_block
    has_attention = [name.startswith("CrossAttn") for name in unet.config.up_block_types]
    for name, value in unet.state_dict().items():
        head, _, rest = name.partition(".")
        if head in ("down_blocks", "up_blocks"):
            level, kind, index, rest = rest.split(".", 3)
            if head == "down_blocks":
                entry = 1 + int(level) * (layers + 1) + int(index)
                entry, place = (entry + layers, 0) if kind == "downsamplers" else (entry, int(kind == "attentions"))
                stem = f"input_blocks.{entry}.{place}"
            else:
                entry = int(level) * (layers + 1) + (layers if kind == "upsamplers" else int(index))
                place = {"resnets": 0, "attentions": 1, "upsamplers": 1 + has_attention[int(level)]}[kind]
                stem = f"output_blocks.{entry}.{place}"
            if kind == "downsamplers":
                rest = rest.replace("conv.", "op.")
            yield f"{stem}.{_resnet(rest) if kind == 'resnets' else rest}", value
        elif head == "mid_block":
            kind, index, rest = rest.split(".", 2)
            place = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[kind + index]
            yield f"middle_block.{place}.{_resnet(rest) if kind == 'resnets' else rest}", value
        else:
            outer = {
                "conv_in": "input_blocks.0.0",
                "conv_norm_out": "out.0",
                "conv_out": "out.2",
                "time_embedding.linear_1": "time_embed.0",
                "time_embedding.linear_2": "time_embed.2",
            }
            stem, _, last = name.rpartition(".")
            yield f"{outer[stem]}.{last}", value


def _resnet(rest: str) -> str:
    part, _, last = rest.rpartition(".")
    names = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return f"{names[part]}.{last}"


def vae_weights(vae: AutoencoderKL) -> Iterator[tuple[str, torch.Tensor]]:
    """autoencoder.AutoencoderKL: the decoder counts levels from the picture; attention is of 1x1 convolutions."""
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, value in vae.state_dict().items():
        half, _, rest = name.partition(".")
        rest = rest.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if rest.startswith("mid_block.attentions.0."):
            part, _, last = rest.removeprefix("mid_block.attentions.0.").rpartition(".")
            yield f"{half}.mid.attn_1.{attention[part]}.{last}", value[..., None, None] if value.ndim == 2 else value
        elif rest.startswith("mid_block.resnets."):
            index, _, rest = rest.removeprefix("mid_block.resnets.").partition(".")
            yield f"{half}.mid.block_{int(index) + 1}.{rest}", value
        elif rest.startswith(("down_blocks.", "up_blocks.")):
            way, level, kind, index, rest = rest.split(".", 4)
            way = way.removesuffix("_blocks")
            level = int(level) if way == "down" else levels - 1 - int(level)
            part = {"resnets": f"block.{index}", "downsamplers": "downsample", "upsamplers": "upsample"}[kind]
            yield f"{half}.{way}.{level}.{part}.{rest}", value
        else:
            yield f"{half}.{rest}", value


def clip_weights(text_encoder: CLIPTextModel) -> Iterator[tuple[str, torch.Tensor]]:
    """transformers' own names of 2022, in which all lies under `text_model`."""
    for name, value in text_encoder.state_dict().items():
        yield f"text_model.{name.removeprefix('text_model.')}", value


def open_clip_weights(text_encoder: CLIPTextModel) -> Iterator[tuple[str, torch.Tensor]]:
    """open_clip's: queries, keys and values in one matrix; a last layer and a projection that 2.x does not use."""
    weights = {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}
    yield "token_embedding.weight", weights["embeddings.token_embedding.weight"]
    yield "positional_embedding", weights["embeddings.position_embedding.weight"]
    yield "ln_final.weight", weights["final_layer_norm.weight"]
    yield "ln_final.bias", weights["final_layer_norm.bias"]
    width, layers = text_encoder.config.hidden_size, text_encoder.config.num_hidden_layers
    yield "text_projection", torch.rand(width, width)
    yield "logit_scale", torch.tensor(4.6)
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in range(layers + 1):
        unused = layer == layers
        source, stem = f"encoder.layers.{0 if unused else layer}.", f"transformer.resblocks.{layer}."
        for last in ("weight", "bias"):
            parts = [weights[f"{source}self_attn.{part}_proj.{last}"] for part in "qkv"]
            values = {f"attn.in_proj_{last}": torch.cat(parts)}
            values[f"attn.out_proj.{last}"] = weights[f"{source}self_attn.out_proj.{last}"]
            values |= {f"{new}.{last}": weights[f"{source}{old}.{last}"] for old, new in names.items()}
            for name, value in values.items():
                yield stem + name, torch.full_like(value, 7.0) if unused else value
