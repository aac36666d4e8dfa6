"""KV replacement against plain denoising, and against original and edit denoised side by side in one batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig

from dynadrag_pipeline import kv_replacement
from dynadrag_pipeline.ddim_inversion import ddim_denoise, make_ddim_schedulers
from dynadrag_pipeline.kv_replacement import KVBank, KVPlacement, default_kv_start_layer, self_attention_layers
from support.tiny_models import make_scheduler, make_unet

PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))
FIRST = 751  # of four timesteps
LAYERS = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor",
    "mid_block.attentions.0.transformer_blocks.0.attn1.processor",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.processor",
]


def randn(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def with_lora(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


SETUPS: dict[str, Callable[[UNet2DConditionModel], None]] = {
    "SDPA": lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
    "plain attention": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "sliced attention": lambda unet: unet.set_attn_processor(SlicedAttnProcessor(1)),
    "with a LoRA": with_lora,
}


@pytest.fixture(params=SETUPS)
def any_unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    unet = make_unet()
    SETUPS[request.param](unet)
    return unet


@torch.no_grad()
def denoise(unet: UNet2DConditionModel, noise: torch.Tensor, bank: KVBank | None = None) -> torch.Tensor:
    sampler, _ = make_ddim_schedulers(make_scheduler().config, 4)

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if bank is not None:
            bank.timestep = int(timestep)
        return unet(latents, timestep, PROMPT.expand(len(latents), -1, -1)).sample

    return ddim_denoise(predict, sampler, noise, sampler.timesteps)


def record(unet: UNet2DConditionModel, noise: torch.Tensor, start_layer: int = 0) -> KVBank:
    bank = KVBank(start_layer)
    with bank.recording(unet):
        denoise(unet, noise, bank)
    return bank


def replay(unet: UNet2DConditionModel, noise: torch.Tensor, bank: KVBank) -> torch.Tensor:
    with bank.replaying(unet):
        return denoise(unet, noise, bank)


class FirstOfTheBatchGivesKeysAndValues:
    """Mutual self-attention: every element of the batch looks at the first one."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        first = hidden_states[:1].expand_as(hidden_states)
        key, value = attn.head_to_batch_dim(attn.to_k(first)), attn.head_to_batch_dim(attn.to_v(first))
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


@pytest.mark.parametrize("start_layer", [0, 2, 4])
def test_agrees_with_original_and_edit_denoised_as_one_batch(any_unet, start_layer):
    original, edit = randn(0), randn(1)
    replayed = replay(any_unet, edit, record(any_unet, original, start_layer))

    processors = any_unet.attn_processors
    processors.update(dict.fromkeys(LAYERS[start_layer:], FirstOfTheBatchGivesKeysAndValues()))
    any_unet.set_attn_processor(processors)
    expected = denoise(any_unet, torch.cat([original, edit]))[1:]

    torch.testing.assert_close(replayed, expected, rtol=0, atol=1e-5)


def test_the_originals_keys_and_values_make_a_difference(any_unet):
    edit = randn(1)
    replayed = replay(any_unet, edit, record(any_unet, randn(0)))
    assert (replayed - denoise(any_unet, edit)).abs().max() > 1e-3


def test_replaying_the_bank_of_the_same_latent_is_plain_denoising(any_unet):
    noise = randn(0)
    torch.testing.assert_close(
        replay(any_unet, noise, record(any_unet, noise)), denoise(any_unet, noise), rtol=0, atol=1e-6
    )


def test_recording_changes_nothing(any_unet):
    bank = KVBank(0)
    plain = denoise(any_unet, randn(0))
    with bank.recording(any_unet):
        assert torch.equal(denoise(any_unet, randn(0), bank), plain)


def test_each_timestep_has_its_own_keys_and_values(unet):
    """Keys and values of the first step used in all of them give another picture."""
    bank = record(unet, randn(0))
    right = replay(unet, randn(1), bank)
    bank.timestep = FIRST
    first = {layer: bank.load(layer) for layer in LAYERS}
    bank.load = first.__getitem__
    assert (replay(unet, randn(1), bank) - right).abs().max() > 1e-4


def test_layers_before_the_start_layer_are_untouched(unet):
    bank = record(unet, randn(0), start_layer=2)
    before = unet.attn_processors
    seen = []
    unet.down_blocks[0].register_forward_hook(lambda *call: seen.append(call[-1][0]))
    unet.mid_block.register_forward_hook(lambda *call: seen.append(call[-1]))
    unet.up_blocks[1].register_forward_hook(lambda *call: seen.append(call[-1]))

    bank.timestep = 1
    with torch.no_grad():
        unet(randn(1), 1, PROMPT)
        with bank.recording(unet):
            recording = unet.attn_processors
        with bank.replaying(unet):
            replaying = unet.attn_processors
            denoised_by = bank.timestep = FIRST
            seen.clear()
            unet(randn(1), denoised_by, PROMPT)
        unet(randn(1), denoised_by, PROMPT)

    for installed in (recording, replaying):
        replaced = {name for name in before if installed[name] is not before[name]}
        assert replaced == set(LAYERS[2:])
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(seen[1], seen[4])
    assert not torch.equal(seen[2], seen[5])


def test_order_is_that_of_execution(unet):
    """Down, middle, up, as counted in a real pass."""
    executed = []
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.register_forward_hook(lambda *_, name=name: executed.append(f"{name}.processor"))
    with torch.no_grad():
        unet(randn(0), 1, PROMPT)
    assert self_attention_layers(unet) == executed == LAYERS


def test_default_start_layer_is_the_tenth_of_stable_diffusions_sixteen():
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    layers = self_attention_layers(unet)
    assert len(layers) == 16
    assert default_kv_start_layer(unet) == 10
    assert layers[10] == "up_blocks.2.attentions.0.transformer_blocks.0.attn1.processor"


def test_default_start_layer_of_other_layouts(unet):
    assert default_kv_start_layer(unet) == 2
    without_attention_above = UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    assert default_kv_start_layer(without_attention_above) == 1


@pytest.mark.parametrize("mode", ["recording", "replaying"])
def test_processors_are_put_back(any_unet, mode):
    before = any_unet.attn_processors
    with getattr(KVBank(0), mode)(any_unet):
        assert any_unet.attn_processors != before
    assert any_unet.attn_processors == before


@pytest.mark.parametrize("mode", ["recording", "replaying"])
def test_processors_are_put_back_after_an_exception(any_unet, mode):
    before = any_unet.attn_processors
    with pytest.raises(KeyboardInterrupt), getattr(KVBank(0), mode)(any_unet):
        raise KeyboardInterrupt
    assert any_unet.attn_processors == before


def test_processors_are_put_back_when_nothing_was_recorded(unet):
    before = unet.attn_processors
    with pytest.raises(KeyError):
        replay(unet, randn(0), KVBank(0))
    assert unet.attn_processors == before


def test_bank_holds_the_inputs_of_its_layers_without_their_graph(unet):
    """Per step 16x16 tokens x 16 channels at the top, 8x8 x 32 in the middle, four bytes each."""
    top, middle = 16 * 16 * 16 * 4, 8 * 8 * 32 * 4
    assert record(unet, randn(0), 0).nbytes == 4 * (3 * top + middle)
    assert record(unet, randn(0), 3).nbytes == 4 * top
    bank = KVBank(0)
    bank.timestep = 1
    with bank.recording(unet):
        unet(randn(0).requires_grad_(), 1, PROMPT)
    bank.timestep = 1
    assert not any(bank.load(layer).requires_grad for layer in LAYERS)


# --- where the bank lives ---


@pytest.mark.parametrize("placement", ["device", "host", "auto"])
def test_wherever_the_bank_lives_the_edit_is_the_same(unet, placement):
    def edited(placement: KVPlacement) -> torch.Tensor:
        bank = KVBank(0, placement, timesteps=4)
        with bank.recording(unet):
            denoise(unet, randn(0), bank)
        return replay(unet, randn(1), bank)

    assert torch.equal(edited(placement), edited("device"))


@pytest.mark.parametrize(("free_share", "expected"), [(2.01, "device"), (1.99, "host")])
def test_auto_leaves_half_of_the_free_memory_to_others(unet, monkeypatch, free_share, expected):
    needed = record(unet, randn(0)).nbytes
    monkeypatch.setattr(kv_replacement, "free_memory", lambda device: free_share * needed)
    bank = KVBank(0, "auto", timesteps=4)
    with bank.recording(unet):
        denoise(unet, randn(0), bank)
    assert bank.placement == expected


def test_without_an_accelerator_there_is_nowhere_else_to_go():
    assert kv_replacement.free_memory(torch.device("cpu")) == float("inf")


def test_the_host_keeps_copies_and_the_device_gets_them_when_their_timestep_comes(unet, monkeypatch):
    """On a machine without an accelerator, the meta device shows what travels."""
    to_host = []
    monkeypatch.setattr(kv_replacement, "_to_host", lambda inputs: to_host.append(inputs) or inputs.to("meta"))
    bank = KVBank(0, "host")
    with bank.recording(unet):
        denoise(unet, randn(0), bank)
    assert len(to_host) == 4 * len(LAYERS)
    assert all(inputs.is_meta for kept in bank._kept.values() for inputs in kept.values())
    assert bank._device == torch.device("cpu")


def test_users_cross_attention_kwargs_still_reach_wrapped_processors(unet):
    received = []

    class Listening(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, word=None):
            received.append(word)
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

    unet.set_attn_processor(Listening())
    bank = KVBank(0)
    bank.timestep = 1
    with torch.no_grad(), bank.recording(unet):
        unet(randn(0), 1, PROMPT, cross_attention_kwargs={"word": "heard"})
    assert len(received) == 8
    assert set(received) == {"heard"}
