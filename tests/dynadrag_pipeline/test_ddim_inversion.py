"""Against DDIM's closed forms, with denoisers that are known exactly."""

from __future__ import annotations

import copy
import doctest
import itertools
import logging

import pytest
import torch
from diffusers import PNDMScheduler

from dynadrag_pipeline import ddim_inversion
from dynadrag_pipeline.ddim_inversion import (
    PredictNoise,
    ddim_denoise,
    ddim_invert,
    ddim_preview,
    make_ddim_schedulers,
    preview_timesteps,
)
from support.tiny_models import make_scheduler

# Stable Diffusion's schedule written out: abar_t = prod (1 - beta), sqrt(beta) linear.
ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)
SPREAD = 0.5


def randn(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def there_and_back(predict_noise: PredictNoise, latents: torch.Tensor, steps: int, **config: object) -> torch.Tensor:
    sampler, inverse = make_ddim_schedulers(make_scheduler(**config).config, steps)
    noise = ddim_invert(predict_noise, inverse, latents, inverse.timesteps)
    return ddim_denoise(predict_noise, sampler, noise, sampler.timesteps)


def gaussian_prediction(prediction_type: str) -> PredictNoise:
    """The perfect denoiser of N(0, SPREAD^2) data: eps = sqrt(1-a) x / (a s^2 + 1 - a), and v from it."""

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha = ALPHAS[int(timestep)]
        variance = alpha * SPREAD**2 + 1 - alpha
        eps, clean = (1 - alpha).sqrt() * latents / variance, alpha.sqrt() * SPREAD**2 * latents / variance
        return eps if prediction_type == "epsilon" else alpha.sqrt() * eps - (1 - alpha).sqrt() * clean

    return predict


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_constant_noise_prediction_is_undone_exactly(steps, dtype, tolerance):
    latents, eps = randn(0, dtype), randn(1, dtype)
    back = there_and_back(lambda *_: eps, latents, steps)
    torch.testing.assert_close(back, latents, rtol=0, atol=tolerance)


def test_a_constant_noise_prediction_leads_to_the_noise_of_the_forward_process():
    """x_t = sqrt(a_t) (x - sqrt(1-a_0) eps) / sqrt(a_0) + sqrt(1-a_t) eps, from the alpha at the clean end, a_0."""
    latents, eps = randn(0), randn(1)
    _, inverse = make_ddim_schedulers(make_scheduler().config, 50)
    noise = ddim_invert(lambda *_: eps, inverse, latents, inverse.timesteps)
    clean = (latents - (1 - ALPHAS[0]).sqrt() * eps) / ALPHAS[0].sqrt()
    expected = ALPHAS[981].sqrt() * clean + (1 - ALPHAS[981]).sqrt() * eps
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)  # diffusers keeps its alphas in float32


def test_v_prediction_of_a_constant_noise_is_undone_exactly():
    """The v of constant noise is (eps - sqrt(1-a) x) / sqrt(a), with the alpha that x is at in either direction."""
    latents, eps = randn(0), randn(1)
    sampler, inverse = make_ddim_schedulers(make_scheduler(prediction_type="v_prediction").config, 50)
    alphas = sampler.alphas_cumprod

    def predict_at(offset: int) -> PredictNoise:
        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            alpha = alphas[max(0, int(timestep) - offset)]
            return (eps - (1 - alpha) ** 0.5 * latents) / alpha**0.5

        return predict

    noise = ddim_invert(predict_at(20), inverse, latents, inverse.timesteps)
    back = ddim_denoise(predict_at(0), sampler, noise, sampler.timesteps)
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-4)
    assert (noise - latents).abs().mean() > 0.1


def test_replaying_the_noise_recorded_in_the_inversion_undoes_it_exactly():
    latents = randn(0)
    sampler, inverse = make_ddim_schedulers(make_scheduler().config, 50)
    recorded = {}

    def predict_and_record(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        recorded[int(timestep)] = torch.sin(3 * latents) + timestep / 1000
        return recorded[int(timestep)]

    noise = ddim_invert(predict_and_record, inverse, latents, inverse.timesteps)
    back = ddim_denoise(lambda _, timestep: recorded[int(timestep)], sampler, noise, sampler.timesteps)
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_error_of_a_perfect_denoiser_halves_as_the_steps_double(prediction_type):
    latents, predict = randn(0), gaussian_prediction(prediction_type)
    errors = []
    for steps in (25, 50, 100, 200):
        back = there_and_back(predict, latents, steps, prediction_type=prediction_type)
        errors.append((back - latents).norm() / latents.norm())
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.3
    assert errors[-1] < 0.02


def test_inversion_of_gaussian_data_approaches_the_exact_flow():
    """The ODE keeps x_t / sqrt(a_t s^2 + 1 - a_t) constant."""
    latents, errors = randn(0), []
    for steps in (100, 200, 400):
        _, inverse = make_ddim_schedulers(make_scheduler().config, steps)
        noise = ddim_invert(gaussian_prediction("epsilon"), inverse, latents, inverse.timesteps)
        start, end = ALPHAS[0], ALPHAS[int(inverse.timesteps[-1])]
        exact = latents * ((end * SPREAD**2 + 1 - end) / (start * SPREAD**2 + 1 - start)).sqrt()
        errors.append((noise - exact).norm() / exact.norm())
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.3
    assert errors[-1] < 0.002


@pytest.mark.parametrize("steps", [1, 20, 30, 50, 999])
def test_both_directions_visit_the_same_timesteps(steps):
    sampler, inverse = make_ddim_schedulers(make_scheduler().config, steps)
    assert torch.equal(inverse.timesteps, sampler.timesteps.flip(0))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_fifty_steps_are_stable_diffusions(spacing):
    sampler, _ = make_ddim_schedulers(make_scheduler(timestep_spacing=spacing).config, 50)
    assert sampler.timesteps.tolist() == list(range(981, 0, -20))


def test_part_of_the_way_is_undone_too():
    latents, eps = randn(0), randn(1)
    sampler, inverse = make_ddim_schedulers(make_scheduler().config, 50)
    noise = ddim_invert(lambda *_: eps, inverse, latents, inverse.timesteps[:20])
    back = ddim_denoise(lambda *_: eps, sampler, noise, sampler.timesteps[-20:])
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True).config,
        make_scheduler(clip_sample=True).config,
        make_scheduler(set_alpha_to_one=True).config,
    ],
    ids=["PNDM without clip_sample", "clipping", "alpha to one"],
)
def test_whatever_would_break_the_round_trip_is_not_inherited(config):
    latents, eps = 10 * randn(0), randn(1)  # clipping to [-1, 1] would show
    sampler, inverse = make_ddim_schedulers(config, 50)
    noise = ddim_invert(lambda *_: eps, inverse, latents, inverse.timesteps)
    back = ddim_denoise(lambda *_: eps, sampler, noise, sampler.timesteps)
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-9)
    assert sampler.final_alpha_cumprod == inverse.initial_alpha_cumprod == sampler.alphas_cumprod[0] < 1


def test_the_noise_schedule_is_inherited():
    config = make_scheduler(beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction").config
    sampler, inverse = make_ddim_schedulers(config, 50)
    expected = (1 - torch.linspace(0.00085, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    for scheduler in (sampler, inverse):
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-4, atol=0)
        assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("config", [PNDMScheduler(skip_prk_steps=True).config, make_scheduler().config])
def test_nobody_is_warned_of_what_other_schedulers_have(config, caplog):
    diffusers_log = logging.getLogger("diffusers.configuration_utils")
    diffusers_log.addHandler(caplog.handler)
    try:
        make_ddim_schedulers(config, 50)
    finally:
        diffusers_log.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_the_pipelines_own_scheduler_is_untouched():
    own = make_scheduler()
    own.set_timesteps(7)
    before = copy.deepcopy(own.__dict__)
    sampler, inverse = make_ddim_schedulers(own.config, 50)
    ddim_denoise(lambda latents, _: latents, sampler, randn(0), sampler.timesteps)
    assert own.num_inference_steps == 7
    assert torch.equal(own.timesteps, before["timesteps"])
    assert dict(own.config) == dict(before["_internal_dict"])
    assert sampler is not own
    assert inverse is not own


# --- previews ---


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_preview_with_all_timesteps_is_the_denoising(prediction_type):
    sampler, _ = make_ddim_schedulers(make_scheduler(prediction_type=prediction_type).config, 20)
    predict, noise = gaussian_prediction(prediction_type), randn(0)
    full = ddim_denoise(predict, sampler, noise, sampler.timesteps)
    preview = ddim_preview(predict, sampler, noise, preview_timesteps(sampler.timesteps, 20))
    torch.testing.assert_close(preview, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_previews_of_a_constant_noise_prediction_are_exact(count):
    """However long the steps are: the ODE's solution is the forward process backwards."""
    latents, eps = randn(0), randn(1)
    sampler, inverse = make_ddim_schedulers(make_scheduler().config, 50)
    noise = ddim_invert(lambda *_: eps, inverse, latents, inverse.timesteps)
    back = ddim_preview(lambda *_: eps, sampler, noise, preview_timesteps(sampler.timesteps, count))
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-6)


def test_previews_come_nearer_with_more_steps():
    sampler, _ = make_ddim_schedulers(make_scheduler().config, 50)
    predict, noise = gaussian_prediction("epsilon"), randn(0)
    full = ddim_denoise(predict, sampler, noise, sampler.timesteps)
    errors = [
        (ddim_preview(predict, sampler, noise, preview_timesteps(sampler.timesteps, count)) - full).norm()
        for count in (1, 2, 5, 10, 25)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [90]), (3, [90, 60, 30]), (4, [90, 70, 40, 20]), (10, None), (99, None)]
)
def test_preview_timesteps_are_some_of_all_from_the_first_on(count, expected):
    timesteps = torch.arange(90, -1, -10)
    assert preview_timesteps(timesteps, count).tolist() == (timesteps.tolist() if expected is None else expected)


def test_examples_in_docstrings():
    results = doctest.testmod(ddim_inversion)
    assert results.attempted > 0
    assert results.failed == 0
