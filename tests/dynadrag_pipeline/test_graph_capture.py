"""What a failed capture leaves behind, and how buffers are filled: with stand-ins for CUDA's own objects."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dynadrag_pipeline import graph_capture
from dynadrag_pipeline.graph_capture import CudaCapture, capture_on, put


class Capturing:
    """Stands in for `torch.cuda.graph`, whose end fails where the capture was broken."""

    is_broken = False

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if self.is_broken:
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def capture(monkeypatch) -> CudaCapture:
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    monkeypatch.setattr(graph_capture, "_without_cached_casts", nullcontext)
    monkeypatch.setattr(graph_capture, "_FAILED", [])
    capture = object.__new__(CudaCapture)
    capture.device = capture.stream = capture.pool = None
    return capture


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("it asks its device"), KeyboardInterrupt()])
def test_the_reason_of_a_failure_is_what_is_raised(capture, monkeypatch, error, is_broken):
    def fail() -> tuple[torch.Tensor, ...]:
        raise error

    monkeypatch.setattr(Capturing, "is_broken", is_broken)
    with pytest.raises(type(error)) as raised:
        capture(fail)
    assert raised.value is error
    assert len(graph_capture._FAILED) == is_broken, "a graph that could not be ended is kept for the allocator"
    assert graph_capture._CAPTURING.acquire(blocking=False), "the next capture may begin"
    graph_capture._CAPTURING.release()


def test_a_capture_that_can_t_be_ended_says_so(capture, monkeypatch):
    monkeypatch.setattr(Capturing, "is_broken", True)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture(lambda: [torch.ones(1)])


def test_outputs_are_those_of_the_function(capture):
    outputs = [torch.ones(1), torch.zeros(2)]
    assert capture(lambda: outputs).outputs == tuple(outputs)


def test_nothing_is_captured_without_cuda():
    assert capture_on(torch.device("cpu")) is None


def test_a_buffer_is_filled_in_place_and_in_its_own_precision():
    buffer = torch.zeros(2, dtype=torch.float16).requires_grad_()
    address = buffer.data_ptr()
    put(buffer, torch.tensor([1.5, 2.0], dtype=torch.float32))
    put(buffer, buffer)
    assert buffer.tolist() == [1.5, 2.0]
    assert buffer.data_ptr() == address
    assert buffer.is_leaf
