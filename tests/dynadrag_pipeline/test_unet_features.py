from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.unet_features import resize_to_supervision_grid

TIMESTEP = torch.tensor(501)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompt_embeds() -> torch.Tensor:
    return torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))


def hooks_in(unet: UNet2DConditionModel) -> int:
    return sum(len(module._forward_hooks) for module in unet.modules())


@torch.no_grad()
def test_output_is_the_unets_own_and_follows_from_the_last_blocks_features(unet, latents, prompt_embeds):
    output, features = UNetDenoiser(unet, Condition(prompt_embeds)).features(latents, TIMESTEP)
    assert features.shape == (1, 16, 16, 16)
    assert torch.equal(output, unet(latents, TIMESTEP, prompt_embeds).sample)
    assert torch.equal(output, unet.conv_out(unet.conv_act(unet.conv_norm_out(features))))


@pytest.mark.parametrize("block", [0, -2, 1])
@torch.no_grad()
def test_features_are_what_the_chosen_block_gives_in_a_plain_pass(unet, latents, prompt_embeds, block):
    seen = []
    unet.up_blocks[block].register_forward_hook(lambda module, inputs, output: seen.append(output))
    unet(latents, TIMESTEP, prompt_embeds)
    _, features = UNetDenoiser(unet, Condition(prompt_embeds), block).features(latents, TIMESTEP)
    assert torch.equal(features, seen[0])
    assert features.shape[1] == {0: 32, -2: 32, 1: 16}[block]


def test_features_and_output_come_from_one_pass(unet, latents, prompt_embeds):
    passes = []
    unet.register_forward_pre_hook(lambda *_: passes.append(1))
    UNetDenoiser(unet, Condition(prompt_embeds)).features(latents, TIMESTEP)
    assert len(passes) == 1


@pytest.mark.parametrize("which", [0, 1], ids=["output", "features"])
def test_the_gradient_of_a_frozen_unet_reaches_the_latent(unet, latents, prompt_embeds, which):
    """In the direction of the gradient, the value changes as the gradient says (central difference)."""
    unet.requires_grad_(False).double()

    def value(at: torch.Tensor) -> torch.Tensor:
        return UNetDenoiser(unet, Condition(prompt_embeds.double())).features(at, TIMESTEP)[which].square().sum()

    latents = latents.double().requires_grad_()
    (gradient,) = torch.autograd.grad(value(latents), latents)
    direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        slope = (value(latents + 1e-5 * direction) - value(latents - 1e-5 * direction)) / 2e-5
    assert slope.abs() > 1e-3
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_no_hook_is_left_behind(unet, latents, prompt_embeds):
    UNetDenoiser(unet, Condition(prompt_embeds)).features(latents, TIMESTEP)
    assert hooks_in(unet) == 0


def test_no_hook_is_left_behind_when_the_unet_raises(unet, latents, prompt_embeds):
    with pytest.raises(RuntimeError):
        UNetDenoiser(unet, Condition(prompt_embeds[..., :3])).features(latents, TIMESTEP)
    assert hooks_in(unet) == 0


def test_cross_attention_kwargs_reach_the_processors(unet, latents, prompt_embeds):
    received = []

    class Listening:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, word=None):
            received.append(word)
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)

    unet.set_attn_processor({name: Listening(inner) for name, inner in unet.attn_processors.items()})
    UNetDenoiser(unet, Condition(prompt_embeds, {"word": "heard"})).features(latents, TIMESTEP)
    assert set(received) == {"heard"}


def test_the_supervision_grid_is_resized_without_moving_anything():
    """A ramp over the picture stays that ramp: cell i of n lies at (i + 1/2) / n, away from the replicated border."""
    ramp = ((torch.arange(8) + 0.5) / 8).expand(1, 1, 4, 8)
    resized = resize_to_supervision_grid(ramp.half(), (16, 32))
    assert resized.dtype == torch.float32
    assert resized.shape == (1, 1, 16, 32)
    expected = (torch.arange(32) + 0.5) / 32
    torch.testing.assert_close(resized[0, 0, 5, 2:-2], expected[2:-2])
