"""LoRA files in the names that programs give their weights."""

from __future__ import annotations

import torch
from torch import nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]


def attention(unet: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in unet.named_modules()
        if ".attn" in name and name.endswith(PROJECTIONS) and isinstance(module, nn.Linear)
    }


def random_matrices(unet: nn.Module, rank: int = 4) -> Matrices:
    """A and B for each projection, large enough to be seen in the output."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (
            0.3 * torch.randn(rank, module.in_features, generator=generator),
            0.3 * torch.randn(module.out_features, rank, generator=generator),
        )
        for name, module in attention(unet).items()
    }


def processors(name: str) -> str:
    """DragDiffusion's and FreeDrag's, of diffusers 0.17: attention processors own the matrices."""
    block, _, projection = name.rpartition(".to_")
    return f"{block}.processor.to_{projection.removesuffix('.0')}_lora"


def in_layout(layout: str, matrices: Matrices, alpha: float | None = None) -> dict[str, torch.Tensor]:
    """The file's weights, under the names that each program gives them."""
    weights = {}
    for name, (down, up) in matrices.items():
        kohya = "lora_unet_" + name.replace(".", "_")
        first, second, third = {
            "DragDiffusion": (f"unet.{processors(name)}.down.weight", f"unet.{processors(name)}.up.weight", None),
            "save_attn_procs": (f"{processors(name)}.down.weight", f"{processors(name)}.up.weight", None),
            "diffusers": (f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight", f"unet.{name}.alpha"),
            "peft": (f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight", None),
            "PeftModel": (f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight", None),
            "named adapter": (f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight", None),
            "kohya": (f"{kohya}.lora_down.weight", f"{kohya}.lora_up.weight", f"{kohya}.alpha"),
        }[layout]
        weights[first], weights[second] = down.clone(), up.clone()
        if alpha is not None:
            assert third is not None
            weights[third] = torch.tensor(alpha)
    return weights


LAYOUTS = ("DragDiffusion", "save_attn_procs", "diffusers", "peft", "PeftModel", "named adapter", "kohya")
