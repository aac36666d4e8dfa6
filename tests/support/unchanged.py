"""Everything about a pipeline's models that an edit must leave as it is, in one comparable value."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper


def snapshot(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Modules and parameters by identity, their values, layout, modes, flags, hooks, adapters; of all models."""
    models = {name: each for name, each in pipe.components.items() if isinstance(each, torch.nn.Module)}
    return {name: model_snapshot(model) for name, model in models.items()} | {"scheduler": dict(pipe.scheduler.config)}


def model_snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """The same of one model."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    adapted = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    return {
        "modules": [(name, id(each), type(each), each.training) for name, each in model.named_modules()],
        "attributes": {name: sorted(vars(each)) for name, each in model.named_modules()},
        "parameters": {
            name: (id(each), each.dtype, each.device, each.stride(), each.requires_grad)
            for name, each in parameters.items()
        },
        "buffers": {name: (id(each), each.dtype, each.device, each.stride()) for name, each in buffers.items()},
        "values": {name: content(each) for name, each in (parameters | buffers).items()},
        "hooks": [
            (*each._forward_pre_hooks, *each._forward_hooks, *each._backward_hooks, "forward" in vars(each))
            for each in model.modules()
        ],
        "processors": getattr(model, "attn_processors", None),
        "adapters": {
            name: (list(each.active_adapters), each.disable_adapters, dict(getattr(each, "scaling", {})))
            for name, each in adapted.items()
        },
        "tables of adapters": {
            name: {table: sorted(map(str, kept)) for table, kept in vars(each).items() if isinstance(kept, dict)}
            for name, each in adapted.items()
        },
        "adapter configs": dict(getattr(model, "peft_config", {})),
        "has adapters": getattr(model, "_hf_peft_config_loaded", None),
    }


def content(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's values; nothing of one whose values are elsewhere."""
    return b"" if tensor.is_meta else tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
