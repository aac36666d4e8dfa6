"""Where a picture comes from: what it takes to make it again, beside the settings."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

RECORDED_PACKAGES = ("dynadrag", "torch", "diffusers", "transformers", "peft", "accelerate")


def provenance_of(model: str, seed: int | list[int]) -> dict[str, Any]:
    """Versions, model and seed of an edit.

    Args:
        model (`str`): folder or name of the checkpoint; empty if its parts were put together in memory.
        seed (`int` or a list of them): of everything random, drawn from the caller's generator.

    Example:
        >>> provenance_of("stable-diffusion-v1-5/stable-diffusion-v1-5", seed=0)["seed"]
        0
    """
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in RECORDED_PACKAGES}},
        "model": model,
        "seed": seed,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree, or from the code of a repository
        return "not installed"
