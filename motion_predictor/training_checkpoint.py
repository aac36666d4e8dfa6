"""Checkpoints of a training run: tensors in safetensors and plain values in JSON, so that none can run code.

A checkpoint holds all that a step changes. Samples are numbered and the network draws nothing, so no state of random
numbers belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .common.checks import got
from .common.checksum import sha256_of
from .common.json_file import read_json, write_json

TENSORS_FILE = "state.safetensors"
VALUES_FILE = "state.json"
REMEDY = "remove the folder to go on from an earlier checkpoint, or from the beginning"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What the steps of a run change.

    Attributes:
        network (`torch.nn.Module`): that is trained.
        optimizer (`torch.optim.Optimizer`): of all its parameters, in their order.
        ema (`EMAModel`): the average of its parameters.
        scaler (`torch.amp.GradScaler` or `None`): of the loss, in half precision.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    scaler: Any

    def save(self, folder: Path) -> None:
        """Write a checkpoint.

        Args:
            folder (`Path`): of the checkpoint; made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, folder / TENSORS_FILE)
        values = {
            "sha256": sha256_of(folder / TENSORS_FILE),
            "averaged_steps": self.ema.optimization_step,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        write_json(folder / VALUES_FILE, values)

    def load(self, folder: Path) -> None:
        """Go back to a checkpoint; memory layouts stay, so that steps round as they would have.

        Args:
            folder (`Path`): of the checkpoint.

        Raises:
            ValueError: if it is damaged, or one of another network; names the file.
        """
        tensors, values = _read(folder)
        try:
            self._load_tensors(tensors)
            self.ema.optimization_step = int(values["averaged_steps"])
            if self.scaler is not None:
                self.scaler.load_state_dict(values["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`{folder}` must be a checkpoint of this network, got another ({got(str(error))}): {REMEDY}."
            ) from error

    def _tensors(self) -> dict[str, torch.Tensor]:
        names = [name for name, _ in self.network.named_parameters()]
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in zip(names, self.ema.shadow_params, strict=True)}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{names[index]}.{key}": tensor for key, tensor in state.items()}
        return tensors

    @torch.no_grad()
    def _load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.network.named_parameters())
        states = {
            index: {
                key: torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
                for key, tensor in _below(f"optimizer.{name}.", tensors).items()
            }
            for index, (name, parameter) in enumerate(parameters.items())
        }
        self.network.load_state_dict(_below("network.", tensors))
        for name, average in zip(parameters, self.ema.shadow_params, strict=True):
            average.copy_(tensors[f"ema.{name}"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    for name in (TENSORS_FILE, VALUES_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"`{folder}` must be a checkpoint with `{name}`, got none: {REMEDY}.")
    values = read_json(folder / VALUES_FILE, REMEDY)
    path = folder / TENSORS_FILE
    if sha256_of(path) != values.get("sha256"):
        raise ValueError(f"`{path}` must be as it was written, got other bytes: {REMEDY}.")
    try:
        return load_file(path), values
    except SafetensorError as error:
        raise ValueError(f"`{path}` must be a file of safetensors, got a damaged one ({error}): {REMEDY}.") from error


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
