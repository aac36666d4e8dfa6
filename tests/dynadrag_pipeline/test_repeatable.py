"""Gradients that are the same each time: those of torch on the CPU, without what adds in any order on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from dynadrag_pipeline import DynaDragPipeline, repeatable
from dynadrag_pipeline.repeatable import (
    attention_by_products,
    repeatable_attention,
    repeatable_convolutions,
    resized_by_products,
    sample_bilinear,
    sampled_by_products,
)
from support.tiny_models import make_motion_predictor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ADD_IN_ANY_ORDER = (
    "attention_backward",
    "attention_for_cpu_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "linear1d_backward",
    "bilinear2d_backward",
    "bicubic2d_backward",
    "trilinear3d_backward",
    "_aa_backward",
    "avg_pool2d_backward",
    "avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool",
    "max_unpool",
    "max_pool2d_with_indices_backward",
    "reflection_pad",
    "replication_pad",
    "nll_loss",
    "ctc_loss",
    "embedding_bag",
    "embedding_dense_backward",
    "index_add",
    "index_copy",
    "index_reduce",
    "scatter_add",
    "scatter_reduce",
    "aten.put",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "cumsum",
)
"""Parts of the names of operators that torch calls nondeterministic on CUDA (`torch.use_deterministic_algorithms`)."""


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("size", [(24, 34), (12, 17), (5, 60), (1, 1)])
def test_resizing_by_products_is_interpolation(size):
    maps = noise(1, 5, 12, 17).requires_grad_()
    resized = resized_by_products(maps, size)
    torch.testing.assert_close(resized, F.interpolate(maps, size=size, mode="bilinear", align_corners=False))
    assert torch.autograd.gradcheck(lambda at: resized_by_products(at, (3, 5)), noise(1, 2, 4, 3).requires_grad_())


def test_sampling_by_products_is_grid_sampling_inside_and_outside_the_map():
    maps, x, y = noise(1, 5, 12, 17).requires_grad_(), 9 + 8 * noise(3, 4, seed=1), 6 + 6 * noise(3, 2, seed=2)
    assert (x < 0).any()
    assert (y > 11).any()
    by_torch, by_products = sample_bilinear(maps, x, y), sampled_by_products(maps, x, y)
    assert by_products.shape == (3, 5, 2, 4)
    torch.testing.assert_close(by_products, by_torch)
    weights = noise(3, 5, 2, 4, seed=3)
    gradients = [torch.autograd.grad((each * weights).sum(), maps)[0] for each in (by_torch, by_products)]
    torch.testing.assert_close(*gradients)


def test_no_points_have_no_samples():
    assert sampled_by_products(noise(1, 5, 4, 4), torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 5, 3, 3)


@pytest.mark.parametrize("at_once", [1, 100, 2**24])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_gradients_of_attention_are_torch_s_however_many_heads_go_at_once(monkeypatch, at_once, scale):
    monkeypatch.setattr(repeatable, "SCORES_AT_ONCE", at_once)
    given = [noise(2, 3, tokens, 8, seed=tokens).requires_grad_() for tokens in (10, 7, 7)]
    output, expected = (
        attend(*given, scale=scale) for attend in (attention_by_products, F.scaled_dot_product_attention)
    )
    assert torch.equal(output, expected)
    weights = noise(2, 3, 10, 8, seed=9)
    gradients, wanted = (torch.autograd.grad(each, given, weights, retain_graph=True) for each in (output, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want)


def test_attention_has_gradients_to_its_query_alone():
    query, key = noise(1, 2, 6, 8).requires_grad_(), noise(1, 2, 6, 8, seed=1)
    gradients = (
        torch.autograd.grad(attend(query, key, key).square().sum(), query)[0]
        for attend in (attention_by_products, F.scaled_dot_product_attention)
    )
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(6, 6).tril().bool()}])
def test_other_attention_is_left_to_torch(options):
    given = [noise(1, 2, 6, 8, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.equal(attention_by_products(*given, **options), F.scaled_dot_product_attention(*given, **options))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_unet_s_gradient_is_the_same_by_products(unet: UNet2DConditionModel, monkeypatch, checkpointed):
    if checkpointed:
        unet.enable_gradient_checkpointing()
    prompt = noise(1, 7, 16, dtype=torch.float32)

    def gradient(device: torch.device) -> torch.Tensor:
        at = noise(1, 4, 16, 16, seed=1, dtype=torch.float32).requires_grad_()
        with repeatable_attention(unet, device):
            return torch.autograd.grad(unet(at, 81, prompt).sample.square().sum(), at)[0]

    before, taken = unet.attn_processors, []
    expected = gradient(CPU)
    monkeypatch.setattr(repeatable, "_attention_gradients", counted(repeatable._attention_gradients, taken))
    torch.testing.assert_close(gradient(CUDA), expected, rtol=1e-4, atol=1e-5)
    assert len(taken) == 8, "self- and cross-attention of four transformers"
    assert unet.attn_processors == before


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return function(*args, **kwargs)

    return call


def test_cudnn_is_put_back_by_the_last_edit_that_ends(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    first, second = repeatable_convolutions(CUDA), repeatable_convolutions(CUDA)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    second.__exit__(None, None, None)
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    with pytest.raises(KeyError), repeatable_convolutions(CUDA):
        raise KeyError
    with repeatable_convolutions(CPU):
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


# --- whole edits ---


class Operators(TorchDispatchMode):
    """Context that collects the names of all operators, forth and back."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func.overloadpacket), kwargs or {}
        if "index_put" in name and (args[3:4] == (True,) or kwargs.get("accumulate")):
            name = "index_add by index_put"
        if "cumsum" not in name or args[0].is_floating_point():
            self.names.add(name)
        return func(*args, **kwargs)

    @property
    def in_any_order(self) -> set[str]:
        return {name for name in self.names if any(part in name for part in ADD_IN_ANY_ORDER)}


@contextmanager
def strictly() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def edit(pipe: DynaDragPipeline, picture: torch.Tensor, quick: dict[str, Any], **changes: Any) -> torch.Tensor:
    options = quick | {"mask": torch.ones(80, 96), "return_intermediates": True} | changes
    return pipe(picture, [(40, 30), (20, 50)], [(60, 50), (10, 40)], output_type="pt", **options).images


@pytest.mark.parametrize("changes", [{}, {"preview_steps": 2}, {"source_patches": "step"}, {"motion": "straight"}])
def test_an_edit_as_on_a_gpu_calls_nothing_that_adds_in_any_order(pipe, picture, quick, monkeypatch, changes):
    pipe.register_modules(motion_predictor=make_motion_predictor())
    with Operators() as as_it_is:
        expected = edit(pipe, picture, quick, **changes)
    assert as_it_is.in_any_order, "what is looked for is found on the CPU"
    pipe.identity_loras.fitted.clear()
    monkeypatch.setattr(repeatable, "adds_in_any_order", lambda device: True)
    with Operators() as by_products, strictly():
        picture_by_products = edit(pipe, picture, quick, **changes)
    assert not by_products.in_any_order
    torch.testing.assert_close(picture_by_products, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"restore_source": True}, {"motion": [[(50, 30)], None]}, {"kv_placement": "host"}]
)
def test_deterministic_algorithms_are_enough_for_an_edit(pipe, picture, quick, changes):
    with strictly():
        first = edit(pipe, picture, quick, **changes)
        pipe.identity_loras.fitted.clear()
        assert torch.equal(edit(pipe, picture, quick, **changes), first)
