"""Cross-attention that has the prompt's keys and values at hand, against cross-attention that computes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from dynadrag_pipeline.prompt_projections import prompt_projected_once
from support.tiny_models import make_unet

LATENTS = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))


def count_projections(unet: UNet2DConditionModel) -> list[str]:
    """Names of the cross-attention's key and value projections, as they are computed."""
    computed: list[str] = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda *_, name=name: computed.append(name))
    return computed


def with_lora(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


@pytest.mark.parametrize("prepare", [lambda unet: None, with_lora], ids=["plain", "with a LoRA"])
@torch.no_grad()
def test_passes_are_the_same_to_the_bit(prepare: Callable[[UNet2DConditionModel], None]):
    unet = make_unet()
    prepare(unet)
    expected = [unet(LATENTS, timestep, PROMPT).sample for timestep in (981, 501)]
    with prompt_projected_once(unet, PROMPT):
        passes = [unet(LATENTS, timestep, PROMPT).sample for timestep in (981, 501)]
    assert all(torch.equal(first, second) for first, second in zip(passes, expected, strict=True))


@torch.no_grad()
def test_the_prompt_is_projected_once(unet):
    computed = count_projections(unet)
    with prompt_projected_once(unet, PROMPT):
        assert len(computed) == len(set(computed)) == 8, "keys and values of four layers"
        for timestep in (981, 501, 1):
            unet(LATENTS, timestep, PROMPT)
    assert len(computed) == 8


@torch.no_grad()
def test_a_unet_in_the_hosts_memory_is_fetched_before_the_prompt_is_projected(unet):
    computed = count_projections(unet)

    class Fetching(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
            computed.append("fetched")
            return args, kwargs

    add_hook_to_module(unet, Fetching())
    with prompt_projected_once(unet, PROMPT):
        assert (computed[0], len(computed)) == ("fetched", 9)


def test_the_gradient_to_the_latent_is_the_same(unet):
    unet.requires_grad_(False)

    def gradient() -> torch.Tensor:
        latents = LATENTS.clone().requires_grad_()
        return torch.autograd.grad(unet(latents, 501, PROMPT).sample.square().sum(), latents)[0]

    expected = gradient()
    with prompt_projected_once(unet, PROMPT):
        assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_unet_is_as_before(unet, error):
    before = [(name, id(module)) for name, module in unet.named_modules()]

    def use() -> None:
        with prompt_projected_once(unet, PROMPT):
            assert [(name, id(module)) for name, module in unet.named_modules()] != before
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert [(name, id(module)) for name, module in unet.named_modules()] == before


@torch.no_grad()
def test_a_prompt_that_changes_on_its_way_is_projected_each_time(unet):
    """As for image prompts, which are joined to it inside the UNet."""
    unet.encoder_hid_proj = torch.nn.Identity()
    computed = count_projections(unet)
    with prompt_projected_once(unet, PROMPT):
        assert computed == []
