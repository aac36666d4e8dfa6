"""The identity LoRA: what it learns, and that nothing but it comes and goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from dynadrag_pipeline import identity_fit
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.fit_key import picture_fingerprint, tensor_digests
from dynadrag_pipeline.identity_lora import (
    IdentityLora,
    LoraSettings,
    attached_identity_lora,
    fit_identity_lora,
    scaled_adapters,
    tuner_layers,
)
from support.tiny_models import make_scheduler, make_unet

LATENTS = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def load_users_lora(unet: UNet2DConditionModel) -> None:
    """An adapter that the user made and weighs 0.7, on some of the projections only."""
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k"]), "mine")
    unet.set_adapters(["mine"], [0.7])


def disable_users_lora(unet: UNet2DConditionModel) -> None:
    load_users_lora(unet)
    unet.disable_adapters()


def half_precision(unet: UNet2DConditionModel) -> None:
    load_users_lora(unet)
    for parameter in unet.parameters():
        parameter.data = parameter.data.bfloat16()


def freeze(unet: UNet2DConditionModel) -> None:
    unet.requires_grad_(False)


def train(unet: UNet2DConditionModel) -> None:
    """Modes and flags that differ from module to module."""
    unet.mid_block.train()
    unet.conv_in.requires_grad_(False)


STATES = {
    "no LoRA": lambda unet: None,
    "frozen": freeze,
    "partly in training": train,
    "user's LoRA": load_users_lora,
    "user's LoRA, disabled": disable_users_lora,
    "user's LoRA, bfloat16": half_precision,
}


@pytest.fixture(params=STATES)
def used_unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    """A UNet in one of the states that a user may hand it over in."""
    unet = make_unet()
    STATES[request.param](unet)
    return unet


def snapshot(unet: UNet2DConditionModel) -> dict[str, Any]:
    return {
        "weights": {name: (value.dtype, value.clone()) for name, value in unet.state_dict().items()},
        "modules": [(name, id(module), module.training) for name, module in unet.named_modules()],
        "grad flags": [(name, parameter.requires_grad) for name, parameter in unet.named_parameters()],
        "adapters": {
            name: (list(layer.active_adapters), layer.disable_adapters, dict(layer.scaling), dict(layer.r))
            for name, layer in tuner_layers(unet).items()
        },
        "configs": sorted(getattr(unet, "peft_config", {})),
        "has adapters": bool(unet._hf_peft_config_loaded),
    }


def assert_unchanged(unet: UNet2DConditionModel, before: dict[str, Any]) -> None:
    after = snapshot(unet)
    weights, weights_before = after.pop("weights"), before["weights"]
    assert after == {key: value for key, value in before.items() if key != "weights"}
    assert list(weights) == list(weights_before)
    for name, (dtype, value) in weights.items():
        assert dtype == weights_before[name][0], name
        assert torch.equal(value, weights_before[name][1]), name


@contextmanager
def silent(total: int) -> Iterator[Any]:
    class Progress:
        count = 0

        def update(self) -> None:
            self.count += 1

    progress = Progress()
    yield progress
    assert progress.count == total


def fit(unet: UNet2DConditionModel, steps: int = 3, seed: int = 0, rank: int = 4, **changes: Any) -> IdentityLora:
    arguments = {
        "scheduler_config": make_scheduler().config,
        "sample_latents": lambda generator: LATENTS.to(unet.dtype),
        "settings": LoraSettings(steps, rank, changes.pop("learning_rate", 2e-4)),
        "progress_bar": silent,
    }
    denoiser = UNetDenoiser(unet, Condition(PROMPT.to(unet.dtype)))
    return fit_identity_lora(denoiser, **(arguments | {"seed": seed} | changes))


def random_lora(unet: UNet2DConditionModel, rank: int = 4, alpha: float = 4, seed: int = 9) -> IdentityLora:
    """A LoRA that has an effect: a fitted one of few steps is near zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: value.shape for key, value in fit(unet, steps=0, rank=rank).state_dict.items()}
    weights = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return IdentityLora(weights, rank, alpha, picture="abc")


@torch.no_grad()
def output(unet: UNet2DConditionModel) -> torch.Tensor:
    return unet(LATENTS.to(unet.dtype), 501, PROMPT.to(unet.dtype)).sample


@torch.no_grad()
def denoising_loss(unet: UNet2DConditionModel, prediction_type: str = "epsilon") -> float:
    """Over a fixed set of noises and timesteps, written out from the schedule."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()).cumprod(0)
    timesteps = torch.arange(5, 1000, 60)
    noise = torch.randn(len(timesteps), 4, 16, 16, generator=torch.Generator().manual_seed(11))
    signal_rate, noise_rate = (alphas[timesteps] ** 0.5)[:, None, None, None], ((1 - alphas[timesteps]) ** 0.5)
    noise_rate = noise_rate[:, None, None, None]
    predicted = unet(
        signal_rate * LATENTS + noise_rate * noise, timesteps, PROMPT.expand(len(timesteps), -1, -1)
    ).sample
    wanted = noise if prediction_type == "epsilon" else signal_rate * noise - noise_rate * LATENTS
    return (predicted - wanted).square().mean().item()


def merged(unet: UNet2DConditionModel, state_dict: dict[str, torch.Tensor], scale: float) -> UNet2DConditionModel:
    """Add scale * B A to the weights of a UNet without adapters."""
    with torch.no_grad():
        for key in [key for key in state_dict if key.endswith(".lora_A.weight")]:
            module = unet.get_submodule(key.removesuffix(".lora_A.weight"))
            module.weight += scale * state_dict[key.replace("lora_A", "lora_B")] @ state_dict[key]
    return unet


# --- fitting ---


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_fitting_lowers_the_denoising_loss_on_the_picture(unet, prediction_type):
    config = make_scheduler(prediction_type=prediction_type).config
    before = denoising_loss(unet, prediction_type)
    lora = fit(unet, steps=25, learning_rate=1e-2, scheduler_config=config)
    with attached_identity_lora(unet, lora):
        assert denoising_loss(unet, prediction_type) < 0.95 * before


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_zero_for_who_knows_the_picture(prediction_type):
    """From x_t and the picture x follow eps = (x_t - sqrt(a) x) / sqrt(1-a) and v = sqrt(a) eps - sqrt(1-a) x."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()).cumprod(0)
    asked = []

    class Knowing:
        def __call__(self, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            asked.append(int(timestep))
            signal_rate, noise_rate = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
            eps = (noisy - signal_rate * LATENTS) / noise_rate
            return eps if prediction_type == "epsilon" else signal_rate * eps - noise_rate * LATENTS

    schedule = DDPMScheduler.from_config(make_scheduler(prediction_type=prediction_type).config)
    generator = torch.Generator().manual_seed(0)
    samples = [identity_fit.draw_sample(lambda _: LATENTS, schedule, generator) for _ in range(400)]
    losses = [
        identity_fit.denoising_loss(Knowing(), schedule, each.latents, each.noise, each.timestep) for each in samples
    ]
    assert max(losses) < 1e-6
    assert min(asked) < 50, "all timesteps are asked for, from the first ones"
    assert max(asked) > 950, "to the last ones"
    assert sum(asked) / 400 == pytest.approx(499.5, abs=60)


def test_every_attention_projection_has_matrices_of_the_rank(unet):
    """Four of self- and four of cross-attention per transformer; no others."""
    attentions = [name for name, _ in unet.named_modules() if name.endswith(("attn1", "attn2"))]
    layers = [f"{name}.{projection}" for name in attentions for projection in PROJECTIONS]
    lora = fit(unet, rank=3)
    assert len(attentions) == 8
    assert set(lora.state_dict) == {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    assert lora.rank == lora.alpha == 3
    for key, value in lora.state_dict.items():
        assert value.shape[0 if "lora_A" in key else 1] == 3
        assert value.dtype == torch.float32


def test_an_unfitted_lora_is_gaussian_times_zero(unet):
    plain = output(unet)
    lora = fit(unet, steps=0)
    for key, value in lora.state_dict.items():
        assert value.any() == ("lora_A" in key), key
    with attached_identity_lora(unet, lora):
        torch.testing.assert_close(output(unet), plain, rtol=0, atol=0)


def test_the_first_step_is_adams(unet):
    """Adam's first step has the size of the learning rate in every element whose gradient is not zero."""
    lora = fit(unet, steps=1, learning_rate=1e-3)
    for key, value in lora.state_dict.items():
        if "lora_B" in key:
            moved = value.abs()
            assert moved.max() == pytest.approx(1e-3, rel=1e-3)


def test_latents_are_drawn_anew_in_each_step_from_the_seeded_generator(unet):
    drawn: list[torch.Tensor] = []

    def sample_latents(generator: torch.Generator) -> torch.Tensor:
        drawn.append(torch.randn(LATENTS.shape, generator=generator))
        return drawn[-1]

    fit(unet, steps=3, sample_latents=sample_latents)
    fit(unet, steps=3, sample_latents=sample_latents)
    assert len(drawn) == 6
    assert not torch.equal(drawn[0], drawn[1])
    assert all(torch.equal(first, second) for first, second in zip(drawn[:3], drawn[3:], strict=True))


def test_same_seed_same_lora_and_the_global_generator_is_left_alone(unet):
    state = torch.get_rng_state()
    first, again, other = fit(unet, seed=1), fit(unet, seed=1), fit(unet, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    for key, value in first.state_dict.items():
        assert torch.equal(value, again.state_dict[key])
    assert any(not torch.equal(value, other.state_dict[key]) for key, value in first.state_dict.items())


# --- nothing is left behind ---


def test_unet_is_as_before_after_fitting(used_unet):
    before = snapshot(used_unet)
    fit(used_unet)
    assert_unchanged(used_unet, before)


def test_unet_is_as_before_after_a_fit_that_failed(used_unet):
    before = snapshot(used_unet)

    def fail(generator: torch.Generator) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(used_unet, sample_latents=fail)
    assert_unchanged(used_unet, before)


@pytest.mark.filterwarnings("error:Adapter")
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_unet_is_as_before_after_the_context(used_unet, error):
    before = snapshot(used_unet)
    lora = random_lora(make_unet())

    def use() -> None:
        with attached_identity_lora(used_unet, lora):
            assert not any(parameter.requires_grad for parameter in used_unet.parameters())
            if error is not None:
                raise error

    with pytest.raises(error) if error else nullcontext():
        use()
    assert_unchanged(used_unet, before)


def test_without_a_lora_nothing_is_attached(used_unet):
    before = snapshot(used_unet)
    with attached_identity_lora(used_unet, None):
        assert_unchanged(used_unet, before)


def test_a_lora_of_another_architecture_is_refused_and_leaves_nothing(unet):
    before = snapshot(unet)
    lora = random_lora(make_unet())
    key = next(iter(lora.state_dict))
    wrong = IdentityLora(lora.state_dict | {key: lora.state_dict[key][:, :-1]}, lora.rank, lora.alpha)
    with pytest.raises(ValueError, match="another architecture"), attached_identity_lora(unet, wrong):
        pass
    assert_unchanged(unet, before)


# --- beside the user's LoRAs ---


def test_attached_lora_adds_its_product_to_the_weights(unet):
    lora = random_lora(unet, rank=4, alpha=2)
    with attached_identity_lora(unet, lora):
        attached = output(unet)
    expected = output(merged(make_unet(), lora.state_dict, 2 / 4))
    torch.testing.assert_close(attached, expected, rtol=1e-4, atol=1e-4)
    assert (attached - output(unet)).abs().max() > 1e-2


@pytest.mark.parametrize("disabled", [False, True])
def test_users_lora_counts_as_it_did(unet, disabled):
    load_users_lora(unet)
    users = {key: value.clone() for key, value in get_peft_model_state_dict(unet, adapter_name="mine").items()}
    if disabled:
        unet.disable_adapters()
    lora = random_lora(make_unet())
    with attached_identity_lora(unet, lora):
        both = output(unet)
    expected = merged(make_unet(), lora.state_dict, 1)
    if not disabled:
        merged(expected, users, 0.7 * 4 / 2)
    torch.testing.assert_close(both, output(expected), rtol=1e-4, atol=1e-4)


def test_users_lora_is_not_trained_along(unet):
    """It is on while ours is fitted, so ours differs with it, but it stays as it is."""
    alone = fit(unet)
    load_users_lora(unet)
    beside = fit(unet)
    key = next(key for key in alone.state_dict if "lora_B" in key)
    assert not torch.equal(alone.state_dict[key], beside.state_dict[key])
    assert set(alone.state_dict) == set(beside.state_dict)


def test_the_users_scale_leaves_ours_alone(unet):
    load_users_lora(unet)
    users = {key: value.clone() for key, value in get_peft_model_state_dict(unet, adapter_name="mine").items()}
    before = snapshot(unet)
    lora = random_lora(make_unet())
    with scaled_adapters(unet, 0.5), attached_identity_lora(unet, lora):
        scaled = output(unet)
    expected = merged(merged(make_unet(), lora.state_dict, 1), users, 0.5 * 0.7 * 4 / 2)
    torch.testing.assert_close(scaled, output(expected), rtol=1e-4, atol=1e-4)
    assert_unchanged(unet, before)


# --- what a fit is known by ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (128, 128), (3, 5, 64, 3)])
def test_a_digest_is_of_the_values_wherever_they_lie(dtype, shape):
    values = (100 * torch.rand(shape, generator=torch.Generator().manual_seed(4))).to(dtype)
    (digest,) = tensor_digests([values])
    apart = torch.stack([values, values])[1]
    turned = values.mT.contiguous().mT if values.ndim > 1 else values
    shifted = torch.cat([values.flatten()[:1], values.flatten()])[1:].view(shape)
    assert tensor_digests([apart, turned, shifted, values.clone()]) == [digest] * 4


@pytest.mark.parametrize("numel", [2, 63, 64, 1000, 40_000])
def test_a_digest_tells_one_bit_a_sign_and_an_exchange(numel):
    values = torch.randn(numel, generator=torch.Generator().manual_seed(4))
    seen = {tensor_digests([values])[0]}
    places = sorted({0, 1, numel // 2, numel - 2, numel - 1})
    for place in places:
        for change in (1, -(2**31)):  # the last bit of the mantissa, and the sign
            changed = values.clone()
            changed.view(torch.int32)[place] ^= change
            seen.add(tensor_digests([changed])[0])
    pairs = [(one, other) for one in places for other in places if one < other]
    for pair in pairs:
        changed = values.clone()
        changed[list(pair)] = values[list(reversed(pair))]
        seen.add(tensor_digests([changed])[0])
    assert len(seen) == 1 + 2 * len(places) + len(pairs)


# --- files ---


def test_saved_and_loaded_lora_is_the_same(unet, tmp_path):
    lora = random_lora(unet, rank=3, alpha=6)
    file = lora.save(tmp_path / "new" / "folder")
    loaded = IdentityLora.load(tmp_path / "new" / "folder")
    assert [each.name for each in file.parent.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert (loaded.rank, loaded.alpha, loaded.picture) == (3, 6, "abc")
    assert set(loaded.state_dict) == set(lora.state_dict)
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in lora.state_dict.items())


def test_saved_lora_loads_as_any_other_of_diffusers(pipe, tmp_path):
    lora = random_lora(pipe.unet, rank=4, alpha=2)
    with attached_identity_lora(pipe.unet, lora):
        attached = output(pipe.unet)
    plain = output(pipe.unet)
    lora.save(tmp_path)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(output(pipe.unet), attached, rtol=0, atol=1e-5)
    assert (attached - plain).abs().max() > 1e-2


def test_a_folder_without_a_lora_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no `pytorch_lora_weights\.safetensors`"):
        IdentityLora.load(tmp_path)


def test_a_file_without_lora_matrices_of_a_unet_is_named(unet, tmp_path):
    lora = random_lora(unet)
    IdentityLora({"conv.weight": torch.zeros(2)}, 4, 4).save(tmp_path / "no matrices")
    mixed = lora.state_dict | {"x.lora_A.weight": torch.zeros(9, 2)}
    IdentityLora(mixed, 4, 4).save(tmp_path / "mixed ranks")
    for folder in ("no matrices", "mixed ranks"):
        with pytest.raises(ValueError, match="is not an identity LoRA"):
            IdentityLora.load(tmp_path / folder)


def test_a_damaged_file_is_named(unet, tmp_path):
    file = random_lora(unet).save(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        IdentityLora.load(tmp_path)


def test_fingerprint_tells_pictures_and_sizes_apart():
    picture = torch.randint(256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 255
    changed = picture.clone()
    changed[0, 0, 0, 0] += 1 / 255 if picture[0, 0, 0, 0] < 0.5 else -1 / 255
    own = picture_fingerprint(picture, (64, 64))
    assert own == picture_fingerprint(picture.clone().requires_grad_(), (64, 64))
    assert own == picture_fingerprint(picture + 1e-4, (64, 64)), "not by what 8 bits can't tell"
    assert own != picture_fingerprint(changed, (64, 64))
    assert own != picture_fingerprint(picture, (64, 72))
    assert own != picture_fingerprint(picture.reshape(1, 3, 32, 128), (64, 64))


def test_an_attached_lora_is_no_adapter(unet):
    """It is in the weights, where it costs no time."""
    with attached_identity_lora(unet, random_lora(make_unet())):
        assert not tuner_layers(unet)
