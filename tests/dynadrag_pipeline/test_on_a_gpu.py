"""What only a GPU can tell: captured passes, repeats to the bit, what a loop waits for. `pytest -m gpu` runs these."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.components import kernels_channels_last
from dynadrag_pipeline.ddim_inversion import ddim_denoise, make_ddim_schedulers
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.graph_capture import CudaCapture, put
from dynadrag_pipeline.graphed_denoiser import GraphedDenoiser, captured_passes
from dynadrag_pipeline.kv_replacement import KVBank
from dynadrag_pipeline.repeatable import repeatable_attention, repeatable_convolutions
from support.tiny_models import make_motion_predictor, make_scheduler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here; `pytest -m gpu` where there is"),
]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic products ask for

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]
CUDA = torch.device("cuda")
PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def on_gpu(pipe: DynaDragPipeline) -> DynaDragPipeline:
    pipe.register_modules(motion_predictor=make_motion_predictor(), text_encoder=copy.deepcopy(pipe.text_encoder))
    return pipe.to(CUDA)


def edit(pipe: DynaDragPipeline, picture: torch.Tensor, quick: dict[str, Any], **changes: Any) -> torch.Tensor:
    pipe.identity_loras.fitted.clear()
    options = quick | {"mask": torch.ones(80, 96), "output_type": "pt"} | changes
    return pipe(picture, HANDLES, TARGETS, **options).images.cpu()


def latents_of(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(CUDA)


@pytest.fixture
def denoisers(unet: UNet2DConditionModel) -> Iterator[tuple[UNetDenoiser, GraphedDenoiser]]:
    unet.to(CUDA).requires_grad_(False)
    with repeatable_convolutions(CUDA), repeatable_attention(unet, CUDA), captured_passes(unet, CUDA) as captured:
        assert captured is not None
        eager = UNetDenoiser(unet, Condition(PROMPT.to(CUDA)))
        yield eager, GraphedDenoiser(eager, captured)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changes", [{}, {"preview_steps": 2}, {"kv_placement": "host"}, {"restore_source": True}])
def test_two_calls_give_the_same_bits(on_gpu, picture, quick, dtype, changes):
    on_gpu.to(dtype)
    first = edit(on_gpu, picture, quick, **changes)
    assert torch.equal(edit(on_gpu, picture, quick, **changes), first)


def test_replayed_edits_are_those_that_python_launches(on_gpu, picture, quick):
    by_python = edit(on_gpu, picture, quick, cuda_graphs=False)
    torch.testing.assert_close(edit(on_gpu, picture, quick), by_python, rtol=0, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"restore_source": True}, {"motion": [[(50, 30)], None]}])
def test_deterministic_algorithms_are_enough_for_an_edit(on_gpu, picture, quick, changes):
    torch.use_deterministic_algorithms(True)
    try:
        edit(on_gpu, picture, quick, **changes)
    finally:
        torch.use_deterministic_algorithms(False)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_replayed_loop_waits_for_nothing(denoisers, placement):
    _, graphed = denoisers
    sampler, _ = make_ddim_schedulers(make_scheduler().config, 6)
    bank = KVBank(0, placement)
    with graphed.recording(bank):
        expected = ddim_denoise(graphed, sampler, latents_of(0), sampler.timesteps)
    with graphed.prompt_projected(), graphed.replaying(bank):
        ddim_denoise(graphed, sampler, latents_of(1), sampler.timesteps)  # captures
        latents = latents_of(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            replayed = ddim_denoise(graphed, sampler, latents, sampler.timesteps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(replayed, expected, rtol=1e-3, atol=1e-3)


def test_gradients_outlive_other_passes(denoisers):
    eager, graphed = denoisers
    at, timestep = latents_of(0).requires_grad_(), torch.tensor(81)
    (expected,) = torch.autograd.grad(eager.features(at, timestep)[1].square().sum(), at)
    features = graphed.features(at, timestep)[1]
    with torch.no_grad():
        for seed in range(1, 4):
            graphed(latents_of(seed), torch.tensor(1))
    (gradient,) = torch.autograd.grad(features.square().sum(), at)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


class Asking(torch.nn.Module):
    """What can't be captured."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) if float(hidden.detach().sum()) < torch.inf else hidden


def test_a_network_that_asks_its_device_is_run_by_python(on_gpu, picture, quick):
    on_gpu.unet.conv_out = Asking(on_gpu.unet.conv_out)
    by_python = edit(on_gpu, picture, quick, cuda_graphs=False)
    stream = torch.cuda.current_stream()
    torch.testing.assert_close(edit(on_gpu, picture, quick), by_python, rtol=0, atol=1e-3)
    assert torch.cuda.current_stream() == stream
    on_gpu.unet.conv_out = on_gpu.unet.conv_out.inner
    torch.testing.assert_close(edit(on_gpu, picture, quick), by_python, rtol=0, atol=1e-3)


def test_graphs_give_their_memory_back(on_gpu, picture, quick):
    edit(on_gpu, picture, quick)
    torch.cuda.empty_cache()
    allocated = torch.cuda.memory_allocated()
    for _ in range(3):
        edit(on_gpu, picture, quick)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= allocated + 2**20


def test_an_interrupt_in_a_capture_is_an_interrupt():
    capture, calls = CudaCapture(CUDA), []

    def interrupted() -> tuple[torch.Tensor, ...]:
        calls.append(None)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return (torch.zeros(1, device=CUDA),)

    capture.warm_up(interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(interrupted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replayed_fit_comes_to_the_weights_of_an_eager_one(on_gpu, picture, quick, dtype):
    on_gpu.to(dtype)
    loras = []
    for cuda_graphs in (False, "auto"):
        edit(on_gpu, picture, quick | {"identity_lora_steps": 5}, cuda_graphs=cuda_graphs)
        loras.append(on_gpu.identity_loras.current.state_dict)
    for name, value in loras[0].items():
        torch.testing.assert_close(loras[1][name], value, rtol=1e-2, atol=1e-5)


def test_sixteen_bit_kernels_lie_in_channels_last_and_come_back(unet):
    unet.to(CUDA, torch.float16)
    values = unet.conv_in.weight.clone()
    with kernels_channels_last(unet):
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert unet.conv_in.weight.is_contiguous()
    assert torch.equal(unet.conv_in.weight, values)


def test_putting_a_value_from_the_host_waits_for_nothing():
    buffer = torch.zeros(3, device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        put(buffer, torch.ones(3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert buffer.tolist() == [1, 1, 1]


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("lora_steps", [0, 2])  # a fit leaves the UNet on the device
def test_offloaded_models_are_run_by_python_and_repeat(pipe, picture, quick, offload, lora_steps):
    pipe.register_modules(motion_predictor=make_motion_predictor())
    getattr(pipe, offload)(device=CUDA)
    first = edit(pipe, picture, quick, identity_lora_steps=lora_steps)
    assert torch.equal(edit(pipe, picture, quick, identity_lora_steps=lora_steps), first)
