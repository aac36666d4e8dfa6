"""Steps of an identity LoRA that are replayed are those that Python runs: with a stand-in for what a GPU captures."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.graph_capture import say_once
from dynadrag_pipeline.identity_lora import IdentityLora, LoraSettings, fit_identity_lora
from support.standin_graph import StandInCapture
from support.tiny_models import make_scheduler, make_unet
from support.unchanged import model_snapshot

PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))


@contextmanager
def silent(total: int) -> Any:
    class Progress:
        def update(self) -> None:
            pass

    yield Progress()


def fit(unet: UNet2DConditionModel, capture: StandInCapture | None = None, **scheduler: Any) -> IdentityLora:
    """Five steps on samples that differ, as those of a posterior do."""
    return fit_identity_lora(
        UNetDenoiser(unet, Condition(PROMPT.to(unet.dtype))),
        make_scheduler(**scheduler).config,
        lambda generator: torch.randn(1, 4, 16, 16, generator=generator),
        LoraSettings(steps=5, rank=4, learning_rate=1e-2),
        progress_bar=silent,
        capture=capture,
    )


def assert_same(one: IdentityLora, other: IdentityLora) -> None:
    assert one.state_dict.keys() == other.state_dict.keys()
    for name, value in one.state_dict.items():
        assert torch.equal(value, other.state_dict[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_replayed_fit_comes_to_the_same_weights(dtype, prediction_type):
    unet, capture = make_unet().to(dtype=dtype), StandInCapture()
    expected = fit(unet, prediction_type=prediction_type)
    before = model_snapshot(unet)
    assert_same(fit(unet, capture, prediction_type=prediction_type), expected)
    gradients, update = capture.graphs
    assert (gradients.replays, update.replays) == (5, 5)
    assert not capture.alive
    assert model_snapshot(unet) == before


def test_a_gradient_that_overflows_is_taken_again(monkeypatch):
    unet = make_unet().to(dtype=torch.float16)
    monkeypatch.setattr("dynadrag_pipeline.loss_scale.FIRST_SCALE", 2.0**30)
    expected, capture = fit(unet), StandInCapture()
    assert_same(fit(unet, capture), expected)
    gradients, update = capture.graphs
    assert gradients.replays > 5, "at lower and lower scales"
    assert update.replays == 5


def test_a_fit_beside_the_users_lora_is_the_same(unet):
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k"]), "mine")
    assert_same(fit(unet, StandInCapture()), fit(unet))


@pytest.mark.parametrize("fails_at", [0, 1])
def test_where_a_step_can_t_be_captured_python_takes_all_of_them(unet, monkeypatch, fails_at):
    said: list[str] = []
    say_once.cache_clear()
    monkeypatch.setattr("dynadrag_pipeline.graph_capture.logger.info", said.append)
    assert_same(fit(unet, StandInCapture(fails_at)), fit(unet))
    assert len(said) == 1
    assert "capturing a step of the identity LoRA failed" in said[0]


def test_steps_that_only_python_can_take_are_not_captured(unet):
    capture = StandInCapture()
    unet.enable_gradient_checkpointing()
    fit(unet, capture)
    unet.disable_gradient_checkpointing()
    unet.conv_out.register_forward_hook(lambda *_: None)
    fit(unet, capture)
    assert not capture.graphs


def test_a_pipeline_fits_by_replays_where_it_may(pipe, picture, quick, monkeypatch):
    captures: list[StandInCapture] = []

    def capture_on(device: torch.device) -> StandInCapture:
        captures.append(StandInCapture())
        return captures[-1]

    monkeypatch.setattr("dynadrag_pipeline.session.capture_on", capture_on)
    expected = pipe(picture, [(40, 30)], [(60, 50)], output_type="pt", **quick, cuda_graphs=False)
    lora = pipe.identity_loras.current
    assert not captures
    pipe.identity_loras.fitted.clear()
    graphed = pipe(picture, [(40, 30)], [(60, 50)], output_type="pt", **quick)
    assert_same(pipe.identity_loras.current, lora)
    assert torch.equal(graphed.images, expected.images)
    assert [graph.replays for graph in captures[0].graphs] == [quick["identity_lora_steps"]] * 2
