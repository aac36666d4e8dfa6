"""Work of a GPU that Python launches once, and that is then replayed: captured on buffers that stay where they are.

Between two launches a GPU waits for Python; a pass of Stable Diffusion 1.5 at 512 pixels takes 40 ms on an H100 when
Python launches its thousands of kernels, and a quarter of that when it replays them. Whoever has a function captured
keeps what it reads and writes in place, fills its inputs by [`put`], and copies what is to outlive the next replay.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)

Captured = Callable[[], Sequence[torch.Tensor]]
"""What is captured: it reads tensors that stay where they are, draws nothing, and asks no tensor for its value."""

_CAPTURING = threading.Lock()
"""Only one capture may be under way in a process, and nothing else on its stream."""

_FAILED: list[torch.cuda.CUDAGraph] = []


class Graph(Protocol):
    """A function that was captured.

    Attributes:
        outputs (`Sequence[torch.Tensor]`): what it answers with, without a graph; of no meaning before a replay, and
            overwritten by each.
    """

    outputs: Sequence[torch.Tensor]

    def replay(self) -> None:
        """Do what the function did, with what is in its inputs now."""

    def reset(self) -> None:
        """Let go of it, and of its memory."""


class Capture(Protocol):
    """What makes graphs. They share their memory, so that no two of them may run at once."""

    def warm_up(self, function: Captured) -> None:
        """Run a function as it will be captured: libraries make their handles, and choose their kernels."""

    def __call__(self, function: Captured) -> Graph:
        """Capture a function that was warmed up; on a GPU it is not run by that.

        Raises:
            RuntimeError: if it does what can't be captured, or memory is short.
        """


def capture_on(device: torch.device) -> Capture | None:
    """What captures on a device; nothing where Python is not what it waits for."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaGraph:
    """A [`Graph`] of CUDA, replayed on the current stream of its device."""

    def __init__(self, device: torch.device, graph: torch.cuda.CUDAGraph, outputs: Sequence[torch.Tensor]) -> None:
        self.device = device
        self.graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()

    def reset(self) -> None:
        torch.cuda.synchronize(self.device)  # it may still be running
        self.graph.reset()
        self.outputs = ()


class CudaCapture:
    """A [`Capture`] by CUDA's own graphs, with one pool of memory for all of them.

    Args:
        device (`torch.device`): a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.stream = _capturing_stream(device)

    def warm_up(self, function: Captured) -> None:
        with _CAPTURING, torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream), _without_cached_casts():
                function()
            current.wait_stream(self.stream)

    def __call__(self, function: Captured) -> Graph:
        graph, outputs, why = torch.cuda.CUDAGraph(), tuple[torch.Tensor, ...](), None
        try:
            # What other threads do meanwhile is theirs. Where a capture fails, only the outer stream comes back.
            with (
                _CAPTURING,
                torch.cuda.device(self.device),
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
                _without_cached_casts(),
            ):
                try:
                    outputs = tuple(function())
                except BaseException as error:
                    why = error
                    raise
        except RuntimeError as error:
            if error is not why:  # the capture could not be ended either, which says nothing of the reason
                self._give_up(graph)
            raise (why or error) from None
        return CudaGraph(self.device, graph, outputs)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Clear up behind a capture that could not be ended: the allocator would go on as if it were under way.

        It may go on asking the graph, too, which therefore stays.
        """
        _FAILED.append(graph)
        with suppress(AttributeError, RuntimeError):  # by another name in older versions, or ended after all
            torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)


@functools.cache
def _capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures on a device: libraries keep workspaces for each stream that they meet."""
    return torch.cuda.Stream(device)


def _without_cached_casts() -> AbstractContextManager[Any]:
    """Context in which autocast is as it is, but keeps no cast weights, which would lie in a graph's memory."""
    return torch.autocast(
        "cuda",
        enabled=torch.is_autocast_enabled("cuda"),
        dtype=torch.get_autocast_dtype("cuda"),
        cache_enabled=False,
    )


def put(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a captured input, without waiting for the device."""
    if value is buffer:
        return
    if buffer.is_cuda and not value.is_cuda and not value.is_pinned():
        value = value.pin_memory()  # from where a GPU copies in its own time
    with torch.no_grad():
        buffer.copy_(value, non_blocking=True)


@functools.cache
def say_once(reason: str) -> None:
    """Say why passes are not captured, the first time in a process."""
    logger.info(f"CUDA graphs are not used: {reason}.")
