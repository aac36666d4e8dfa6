"""What ComfyUI offers to nodes that run in it, if they do: a progress bar, and whether the user has cancelled."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from tqdm import tqdm


def raise_if_cancelled() -> None:
    """Raise ComfyUI's own exception, which ends the run quietly, if the user has cancelled it."""
    management = _comfys("comfy.model_management")
    if management is not None:
        management.throw_exception_if_processing_interrupted()


@contextmanager
def shown_in_comfy(pipe: Any) -> Iterator[None]:
    """Context in which the progress bars of a pipeline are the node's too, and each of their steps may be the last.

    Args:
        pipe (`DiffusionPipeline`): whose `progress_bar` is as before afterwards, however the work ends.
    """
    vars(pipe)["progress_bar"] = partial(_Bar, **getattr(pipe, "_progress_bar_config", {}))
    try:
        yield
    finally:
        del vars(pipe)["progress_bar"]


class _Bar(tqdm):
    """A bar of a phase of an edit, on the console and on the node."""

    def __init__(self, *args: Any, total: int, **kwargs: Any) -> None:
        raise_if_cancelled()
        super().__init__(*args, total=total, **kwargs)
        utils = _comfys("comfy.utils")
        self._on_node = None if utils is None else utils.ProgressBar(total)

    def update(self, n: float | None = 1) -> bool | None:
        """Some steps more."""
        raise_if_cancelled()
        if self._on_node is not None:
            self._on_node.update(n)
        return super().update(n)


def _comfys(name: str) -> ModuleType | None:
    """A module of ComfyUI's; None outside of it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
