"""Edits by replayed passes are those by eager ones, to the bit: with a stand-in for what a GPU captures."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.graph_capture import say_once
from dynadrag_pipeline.graphed_denoiser import MOST_PASSES, CapturedPasses, GraphedDenoiser
from dynadrag_pipeline.kv_replacement import KVBank
from support.standin_graph import StandInCapture
from support.tiny_models import make_motion_predictor
from support.unchanged import snapshot

HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]
PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def predicting(pipe: DynaDragPipeline) -> DynaDragPipeline:
    pipe.register_modules(motion_predictor=make_motion_predictor(), text_encoder=copy.deepcopy(pipe.text_encoder))
    return pipe


class Captures:
    """Every capture of a test, one for each time in which weights stay in place."""

    def __init__(self) -> None:
        self.made: list[StandInCapture] = []
        self.fails_at: int | None = None

    def on(self, device: torch.device) -> StandInCapture:
        self.made.append(StandInCapture(self.fails_at))
        return self.made[-1]

    @property
    def graphs(self) -> list[Any]:
        return [graph for capture in self.made for graph in capture.graphs]


@pytest.fixture
def captures(monkeypatch) -> Captures:
    captures = Captures()
    monkeypatch.setattr("dynadrag_pipeline.graphed_denoiser.capture_on", captures.on)
    say_once.cache_clear()
    return captures


def edit(pipe: DynaDragPipeline, picture: torch.Tensor, options: dict[str, Any], **changes: Any) -> Any:
    given = {"handles": HANDLES, "targets": TARGETS, "output_type": "pt"} | options | changes
    return pipe(picture, **given)


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no pictures between": {"motion": "straight"},
    "previews": {"preview_steps": 2},
    "a prompt": {"prompt": "a portrait"},
    "a mask": {"mask": torch.ones(80, 96).index_fill(0, torch.arange(30), 0)},
    "K/V on the host": {"kv_placement": "host"},
    "K/V of all layers": {"kv_start_layer": 0},
    "K/V of no layer": {"kv_start_layer": 3},
    "a pin": {"targets": [HANDLES[0], TARGETS[1]]},
    "settling": {"settle_iterations": 2, "stop_distance": 9.0},
    "another block's features": {"feature_block": 0},
    "patches anew in each step": {"source_patches": "step"},
    "original patches": {"source_patches": "original"},
    "an Adam for each iteration": {"optimizer_scope": "iteration"},
    "less inversion": {"inversion_strength": 0.5},
    "no identity LoRA": {"identity_lora_steps": 0},
    "carried at once": {"carry": "once", "settle_iterations": 1, "stop_distance": 0.0},
    "carried in each iteration": {"carry": "iteration"},
    "intermediates": {"return_intermediates": True},
    "in bfloat16": {"dtype": torch.bfloat16},
    "in float16": {"dtype": torch.float16},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_edit_by_replays_is_the_eager_one_to_the_bit(predicting, picture, quick, captures, variant):
    options = quick | VARIANTS[variant]
    predicting.to(options.pop("dtype", torch.float32))
    eager = edit(predicting, picture, options, cuda_graphs=False)
    assert not captures.graphs
    graphed = edit(predicting, picture, options)
    assert sum(graph.replays for graph in captures.graphs) > 10
    assert torch.equal(graphed.images, eager.images)
    for one, other in zip(graphed.iterations, eager.iterations, strict=True):
        assert (one.loss_before, one.loss_after) == (other.loss_before, other.loss_after)
        assert torch.equal(one.similarities, other.similarities)


def test_each_way_of_passing_is_captured_once_and_let_go(predicting, picture, quick, captures):
    before = snapshot(predicting)
    edit(predicting, picture, quick)
    opened, dragged = captures.made
    inversion, reference = opened.graphs
    assert (inversion.replays, reference.replays) == (4, 4)
    forth, back, denoising = dragged.graphs
    assert (forth.replays, back.replays) == (3 * 2 + 1, 3 * 2), "a look at each latent, a gradient for each step"
    assert denoising.replays == 3 * 4
    assert not opened.alive + dragged.alive
    assert snapshot(predicting) == before


def test_pictures_of_two_shapes_have_passes_of_their_own(predicting, picture, quick, captures):
    pictures = [picture, picture.transpose(-2, -1).contiguous()]
    options = {"handles": [(40, 30)], "targets": [(60, 50)], "output_type": "pt"} | quick
    expected = predicting(pictures, **options, cuda_graphs=False).images
    assert all(map(torch.equal, predicting(pictures, **options).images, expected))


def test_drags_in_a_session_are_eager_ones(predicting, picture, quick, captures):
    def dragged(**options: Any) -> list[torch.Tensor]:
        session = predicting.open_session(picture, **quick, **options)
        list(session.drag(HANDLES, TARGETS))
        list(session.drag([(30, 30)], [(50, 30)], continue_from=session.state, preview_steps=2))
        assert captures.made[-1].alive == []
        return [session.image(result) for result in session.history]

    assert all(map(torch.equal, dragged(), dragged(cuda_graphs=False)))
    assert captures.graphs


def test_the_users_lora_counts_as_it_is_switched(predicting, picture, quick, captures):
    torch.manual_seed(1)
    for name in ("first", "second"):
        predicting.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]), name)

    def switched(**options: Any) -> torch.Tensor:
        def switch(pipe: DynaDragPipeline, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe.unet.set_adapter("second" if index == 0 else "first")
            return {}

        predicting.unet.set_adapter("first")
        return edit(predicting, picture, quick, callback_on_step_end=switch, **options).images

    expected = switched(cuda_graphs=False)
    assert torch.equal(switched(), expected)
    predicting.unet.set_adapter("first")
    assert not torch.equal(edit(predicting, picture, quick).images, expected)


def changes_the_prompt(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1)}


def lengthens_the_prompt(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": torch.cat([tensors["prompt_embeds"]] * 2, dim=1)}


def replaces_a_module(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe.unet.conv_out = copy.deepcopy(pipe.unet.conv_out)
    pipe.unet.conv_out.weight.data.mul_(1.5)
    return {}


def changes_weights_in_place(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe.unet.conv_out.weight.data.mul_(1.5)
    return {}


def puts_weights_elsewhere(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe.unet.conv_out.weight.data = pipe.unet.conv_out.weight.data * 1.5
    return {}


def switches_free_u(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return {}


def adds_a_hook(pipe: DynaDragPipeline, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe.unet.conv_out.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return {}


CHANGES = [
    changes_the_prompt,
    lengthens_the_prompt,
    replaces_a_module,
    changes_weights_in_place,
    puts_weights_elsewhere,
    switches_free_u,
    adds_a_hook,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_iterations_counts_from_then_on(predicting, picture, quick, captures, change):
    def changed(is_changed: bool, **options: Any) -> torch.Tensor:
        pipe = DynaDragPipeline(**{**predicting.components, "unet": copy.deepcopy(predicting.unet)})
        pipe.set_progress_bar_config(disable=True)

        def callback(pipe: DynaDragPipeline, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return change(pipe, tensors) if is_changed and index == 0 else {}

        names = ["latents", "prompt_embeds"]
        return edit(
            pipe,
            picture,
            quick | {"identity_lora_steps": 0},
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
            **options,
        ).images

    expected = changed(True, cuda_graphs=False)
    assert torch.equal(changed(True), expected)
    assert not torch.equal(changed(False), expected)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_where_a_capture_fails_the_edit_is_eager_and_says_so_once(
    predicting, picture, quick, captures, monkeypatch, fails_at
):
    said: list[str] = []
    monkeypatch.setattr("dynadrag_pipeline.graph_capture.logger.info", said.append)
    expected = edit(predicting, picture, quick, cuda_graphs=False)
    captures.fails_at = fails_at
    assert torch.equal(edit(predicting, picture, quick).images, expected.images)
    assert len(said) == 1
    assert "not permitted when stream is capturing" in said[0]
    assert not [graph for graph in captures.graphs if not graph.is_reset]


def offload(pipe: DynaDragPipeline) -> None:
    cpu_offload(pipe.unet, torch.device("cpu"))


def hook(pipe: DynaDragPipeline) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda *_: None)


def compile_blocks(pipe: DynaDragPipeline) -> None:
    for block in pipe.unet.up_blocks:
        block._compiled_call_impl = block._call_impl


@pytest.mark.parametrize(
    ("measure", "reason"), [(offload, "offloaded"), (hook, "hooks"), (compile_blocks, "compiled")]
)
def test_passes_that_only_python_can_run_are_eager(predicting, picture, quick, captures, monkeypatch, measure, reason):
    said: list[str] = []
    monkeypatch.setattr("dynadrag_pipeline.graph_capture.logger.info", said.append)
    measure(predicting)
    edit(predicting, picture, quick)
    assert not captures.graphs
    assert len(said) == 1
    assert reason in said[0]


def test_gradient_checkpointing_leaves_gradients_to_python(predicting, picture, quick, captures):
    predicting.unet.enable_gradient_checkpointing()
    expected = edit(predicting, picture, quick, cuda_graphs=False)
    assert torch.equal(edit(predicting, picture, quick).images, expected.images)
    assert len(captures.graphs) == 3, "inversion, reference and denoising"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_graphs_are_let_go_where_an_edit_ends_by_an_error(predicting, picture, quick, captures, error):
    def fail(*_: Any) -> dict[str, Any]:
        raise error

    before = snapshot(predicting)
    with pytest.raises(error):
        edit(predicting, picture, quick, callback_on_step_end=fail)
    assert captures.graphs
    assert all(graph.is_reset for graph in captures.graphs)
    assert snapshot(predicting) == before


# --- the denoiser by itself ---


@pytest.fixture
def capture() -> StandInCapture:
    return StandInCapture()


@pytest.fixture
def graphed(unet, capture) -> GraphedDenoiser:
    unet.requires_grad_(False)
    return GraphedDenoiser(UNetDenoiser(unet, Condition(PROMPT)), CapturedPasses(unet, capture))


def latents_of(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_no_more_passes_are_kept_than_the_cap(graphed, capture):
    sizes = range(8, 8 + 2 * (MOST_PASSES + 3), 2)
    for size in sizes:
        expected = graphed.eager(latents_of(size), torch.tensor(81))
        assert torch.equal(graphed(latents_of(size), torch.tensor(81)), expected)
    assert len(capture.alive) == MOST_PASSES
    graphed(latents_of(sizes[-1]), torch.tensor(1))
    assert len(capture.graphs) == len(sizes), "the last ones are still there"


@torch.no_grad()
def test_a_network_in_another_precision_is_captured_anew(graphed, capture):
    single = graphed(latents_of(8), torch.tensor(81))
    graphed.eager.unet.to(dtype=torch.bfloat16)
    graphed.condition = Condition(PROMPT.bfloat16())
    half = graphed(latents_of(8), torch.tensor(81))
    assert torch.equal(half, graphed.eager(latents_of(8), torch.tensor(81)))
    assert not torch.equal(half, single)
    assert len(capture.graphs) == 2
    assert len(capture.alive) == 1


@torch.no_grad()
def test_an_answer_outlives_the_next_replay(graphed):
    first = graphed(latents_of(8), torch.tensor(81))
    kept = first.clone()
    graphed(latents_of(8, seed=1), torch.tensor(1))
    assert torch.equal(first, kept)


def test_features_and_gradients_outlive_other_passes(graphed):
    at, timestep = latents_of(8).requires_grad_(), torch.tensor(81)
    output, features = graphed.eager.features(at, timestep)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    (expected,) = torch.autograd.grad((features * weights).sum() + output.square().sum(), [at])
    output, features = graphed.features(at, timestep)
    with torch.no_grad():
        graphed(latents_of(8, seed=1), torch.tensor(1))
    loss = (features * weights).sum() + output.square().sum()
    gradients = [torch.autograd.grad(loss, [at], retain_graph=True)[0] for _ in range(2)]
    graphed.features(latents_of(8, seed=2).requires_grad_(), timestep)
    assert all(torch.equal(each, expected) for each in gradients)
    with pytest.raises(RuntimeError, match="take its gradient before the next pass"):
        torch.autograd.grad(loss, [at], retain_graph=True)
    loss = graphed.features(at, timestep)[1].sum()
    graphed.captured.clear()
    with pytest.raises(RuntimeError, match="take its gradient before the next pass"):
        torch.autograd.grad(loss, [at])


def test_passes_with_gradients_to_something_else_are_eager(graphed, capture):
    at = latents_of(8).requires_grad_()
    (gradient,) = torch.autograd.grad(graphed(at, torch.tensor(81)).sum(), [at])
    assert gradient.any()
    assert not capture.graphs


@torch.no_grad()
@pytest.mark.parametrize("placement", ["device", "host"])
def test_what_is_recorded_outlives_the_next_timestep(graphed, placement):
    banks = [KVBank(0, placement) for _ in range(2)]
    for denoiser, bank in zip((graphed.eager, graphed), banks, strict=True):
        with denoiser.recording(bank):
            for timestep in (81, 41, 1):
                denoiser(latents_of(8, seed=timestep), torch.tensor(timestep))
    for timestep in (81, 41, 1):
        eager, replayed = (bank.at(timestep) for bank in banks)
        assert list(eager) == list(replayed)
        assert all(torch.equal(eager[layer], replayed[layer]) for layer in eager)


@torch.no_grad()
def test_places_that_the_bank_leaves_out_are_left_out(graphed, unet):
    eager, bank = UNetDenoiser(unet, Condition(PROMPT)), KVBank(0)
    latents, others, timestep = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor(7)
    with eager.recording(bank):
        eager(others, timestep)
    with graphed.replaying(bank):
        everywhere = graphed(latents, timestep)
        with bank.silent_at(torch.ones(1, 1, 8, 8)):
            nowhere = graphed(latents, timestep)
        assert torch.equal(graphed(latents, timestep), everywhere)
    plain = eager(latents, timestep)
    torch.testing.assert_close(nowhere, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(everywhere, plain, atol=1e-3)


@torch.no_grad()
def test_a_denoising_that_leaves_places_out_is_eager_in_one_context_and_says_so(graphed, capture, unet, caplog):
    say_once.cache_clear()
    eager, bank, timestep = UNetDenoiser(unet, Condition(PROMPT)), KVBank(0), torch.tensor(7)
    with eager.recording(bank):
        eager(latents_of(8), timestep)
    installed, processors = [], unet.attn_processors
    with caplog.at_level(logging.INFO, "dynadrag_pipeline"), bank.silent_at(torch.ones(1, 1, 8, 8)):
        with eager.replaying(bank):
            expected = eager(latents_of(8, seed=1), timestep)
        for _ in range(2):
            with graphed.replaying(bank):
                for _ in range(2):
                    installed.append(next(iter(unet.attn_processors.values())))
                    assert torch.equal(graphed(latents_of(8, seed=1), timestep), expected)
    assert installed[0] is installed[1] is not installed[2]
    assert installed[0] not in processors.values()
    assert not capture.graphs
    assert caplog.text.count("keys and values are the edit's own") == 1
    graphed(latents_of(8), timestep)
    assert capture.graphs, "afterwards passes are captured as before"


@torch.no_grad()
def test_a_failed_capture_in_the_middle_of_a_replaying_context_goes_on_with_the_bank(unet):
    eager, bank = UNetDenoiser(unet, Condition(PROMPT)), KVBank(0)
    with eager.recording(bank):
        eager(latents_of(8), torch.tensor(81))
    with eager.replaying(bank):
        expected = eager(latents_of(8, seed=1), torch.tensor(81))
    graphed = GraphedDenoiser(eager, CapturedPasses(unet, StandInCapture(fails_at=0)))
    with graphed.replaying(bank):
        assert torch.equal(graphed(latents_of(8, seed=1), torch.tensor(81)), expected)
    assert not torch.equal(eager(latents_of(8, seed=1), torch.tensor(81)), expected)


def test_attention_arguments_are_part_of_what_a_pass_is(graphed, capture):
    with torch.no_grad():
        for scale in (1.0, 0.5, 0.5):
            graphed.condition = Condition(PROMPT, {"scale": scale})
            graphed(latents_of(8), torch.tensor(81))
    assert len(capture.graphs) == 2


def test_graphs_are_there_or_not(pipe):
    assert pipe.settings_in_force({"cuda_graphs": False}).settings.cuda_graphs is False
    with pytest.raises(ValueError, match="`cuda_graphs` must be 'auto' or False, got True"):
        pipe.settings_in_force({"cuda_graphs": True})
