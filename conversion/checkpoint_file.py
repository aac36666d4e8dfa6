"""Weights that other programs wrote, read without running any code that may be in their files."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from motion_predictor.common.checks import got

NESTS = ("state_dict", "model_state_dict", "model")
"""Entries that programs for training put the weights in, beside the state of the run."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the weights it stands for by `git lfs pull`",
    b"<": "a web page: download the file itself",
    b"GGUF": "the quantised format GGUF: use the safetensors file of the same model",
    b"PK": "a broken or empty zip archive: download it again",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path (`Path`): the file.
        tensors (`dict[str, torch.Tensor]`): the weights by name, on the CPU; read from the disk as they are used.
        metadata (`dict[str, str]`): the header's remarks; only safetensors files have some.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights: safetensors, or what `torch.save` wrote, of which tensors and plain containers only.

    What a file is, is told by its content. Weights in an entry `state_dict` (Lightning), `model_state_dict` or
    `model` are taken out of it; what is not a tensor is left out.

    Args:
        path (`str` or `Path`): of the file.

    Returns:
        [`Checkpoint`]: its tensors and remarks.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not weights, is damaged, says it is safetensors and isn't, or needs more than tensors.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, f"{folder}/last.ckpt")
        ...     read_checkpoint(f"{folder}/last.ckpt").tensors
        {'weight': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"`{path}` must be a file of weights, got a folder.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    with open(path, "rb") as file:
        start = file.read(32)
    if not start:
        raise ValueError(f"`{path}` is empty: download it again.")
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not _is_torch(start)):
        return _read_safetensors(path, start)
    if not _is_torch(start):
        raise ValueError(_no_weights(path, start))
    if _is_program(path):
        raise ValueError(f"`{path}` must hold weights alone, got a program of TorchScript.")
    if path.suffix == ".safetensors":
        raise ValueError(
            f"`{path}` is called safetensors, but is a file of torch.save: rename it to .ckpt to have its tensors "
            "read, and nothing else of it."
        )
    return Checkpoint(path, _only_tensors(_load_torch(path, start), path))


def check_finite(tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights with a NaN or an infinity, such as float16 makes of 1e5.

    Args:
        tensors (`dict[str, torch.Tensor]`): the weights by name.
        path (`str` or `Path`): where they come from, for the message.

    Raises:
        ValueError: if there is one; the message names the first.

    Example:
        >>> check_finite({"weight": torch.tensor([1e5]).half()}, "model.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: `model.ckpt`: the weight `weight` is not finite in float16.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"`{path}`: the weight `{name}` is not finite in {str(tensor.dtype).split('.')[1]}.")


def _is_torch(start: bytes) -> bool:
    return start.startswith((_ZIP, _PICKLE))


def _is_program(path: Path) -> bool:
    """Whether a file is a module with its code, which torch before 2.6 would load."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # not a zip archive, or a damaged one: torch says so


def _no_weights(path: Path, start: bytes) -> str:
    found = [what for mark, what in _NOT_WEIGHTS.items() if start.lstrip().startswith(mark)]
    what = found[0] if found else f"one that begins with {got(start)}"
    return f"`{path}` must be a file of safetensors or of torch.save, got {what}."


def _read_safetensors(path: Path, start: bytes) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return Checkpoint(path, tensors, opened.metadata() or {})
    except SafetensorError as error:
        if start[8:9] != b"{":
            raise ValueError(_no_weights(path, start)) from error
        raise ValueError(f"`{path}` is damaged or cut short ({error}): download it again.") from error


def _load_torch(path: Path, start: bytes) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP))
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"`{path}` holds more than tensors{f' ({foreign[1]})' if foreign else ''}, which could run code when it "
            "is read, so it is not. Use a safetensors file of the same weights; or, if you trust who made it, save "
            "its tensors alone in the program that wrote it: "
            '`torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW_FILE)`.'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"`{path}` is damaged or cut short, or not of torch.save ({reason}).") from error


def _only_tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, dict):
        nested = [content[name] for name in NESTS if isinstance(content.get(name), dict)]
        if not nested:
            break
        content = nested[0]
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a dictionary of tensors, got a {type(content).__name__}.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"`{path}` must hold tensors, got the entries {sorted(map(str, content))[:8]} alone.")
    return tensors
