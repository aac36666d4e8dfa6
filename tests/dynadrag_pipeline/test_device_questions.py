"""How often a loop waits for its device: not once for each pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynadrag_pipeline.ddim_inversion import make_ddim_schedulers
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.drag_engine import DragEngine
from dynadrag_pipeline.drag_instruction import DragInstruction
from dynadrag_pipeline.drag_state import DragState
from dynadrag_pipeline.graphed_denoiser import CapturedPasses, GraphedDenoiser
from dynadrag_pipeline.motion.straight import StraightMotion
from dynadrag_pipeline.settings import DragSettings
from support.device_questions import DeviceQuestions
from support.standin_graph import StandInCapture
from support.tiny_models import make_scheduler

PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["eager", "graphed"])
def engine_of(request, unet) -> Any:
    unet.requires_grad_(False)

    def make(steps: int, **settings: Any) -> DragEngine:
        sampler, inverse = make_ddim_schedulers(make_scheduler().config, steps)
        eager = UNetDenoiser(unet, Condition(PROMPT))
        graphed = GraphedDenoiser(eager, CapturedPasses(unet, StandInCapture()))
        denoiser = eager if request.param == "eager" else graphed
        return DragEngine(denoiser, sampler, inverse, None, no_progress, DragSettings(**settings))

    return make


class NoProgress:
    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        pass


def no_progress(total: int, description: str) -> NoProgress:
    return NoProgress()


def on_device(engine: DragEngine, *more: torch.Tensor) -> list[torch.Tensor]:
    unet = getattr(engine.denoiser, "eager", engine.denoiser).unet
    return [*unet.parameters(), PROMPT, *more]


@torch.no_grad()
@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_inverting_asks_nothing_and_denoising_once_in_the_end(engine_of, steps, placement):
    engine = engine_of(steps, kv_placement=placement)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with DeviceQuestions(on_device(engine, latents)) as questions:
        noise = engine.invert(latents)
        assert not questions.asked
        reference = engine.denoise_reference(noise)
        assert questions.asked.total() == 1, "whether it is finite"
        engine.denoise(noise, reference)
        assert questions.asked.total() == 2
        engine.denoise(noise, reference, steps=2)
        assert questions.asked.total() == 3


@torch.no_grad()
def test_adam_steps_ask_nothing_one_by_one(engine_of):
    def asked(steps: int) -> int:
        engine = engine_of(3, supervision_steps=steps)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        reference = engine.denoise_reference(latents)
        instruction = DragInstruction.from_user([(20, 20)], [(40, 40)], None, (64, 64))
        start = DragState(latents, reference.latents, torch.zeros(1, 3, 64, 64))
        edit = DragEdit(engine, reference, start, instruction, StraightMotion())
        edit.select_points()
        edit.propose_motion()
        with DeviceQuestions(on_device(engine, edit.latents, edit.points.handles, edit.valid)) as questions:
            edit.supervise_motion()
        return questions.asked.total()

    assert asked(2) == asked(7)


def test_a_question_is_noticed():
    value = torch.ones(3)
    with DeviceQuestions([value]) as questions:
        float(torch.ones(()))
        assert not questions.asked
        float((2 * value).sum())
        bool(torch.isfinite(value).all())
        value[value > 0]
    assert questions.asked.total() >= 3
