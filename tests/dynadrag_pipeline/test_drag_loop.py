"""The drag loop on a tiny random UNet, with pictures and predictors whose every value is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from dynadrag_pipeline.ddim_inversion import make_ddim_schedulers
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.drag_engine import DragEngine, Reference
from dynadrag_pipeline.drag_instruction import DragInstruction
from dynadrag_pipeline.drag_loop import DragLoop
from dynadrag_pipeline.drag_state import DragState, DragStep
from dynadrag_pipeline.kv_replacement import self_attention_layers
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.source import MotionSource
from dynadrag_pipeline.motion.straight import StraightMotion
from dynadrag_pipeline.settings import DragSettings
from dynadrag_pipeline.unet_features import supervision_grid
from support.tiny_models import make_scheduler, make_unet

SIZE = (32, 32)
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
PROMPT = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))
IMAGE = torch.zeros(1, 3, *SIZE)


class ConstantFlow:
    """A motion predictor that says the same everywhere, and remembers what it was asked."""

    def __init__(self, u: float, v: float) -> None:
        self.flow = torch.tensor([u, v])[None, :, None, None].expand(1, 2, *SIZE)
        self.asked: list[SimpleNamespace] = []

    def predict_flow(self, image: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.asked.append(SimpleNamespace(image=image, handles=handles, targets=targets))
        return self.flow


@contextmanager
def silent(total: int, description: str) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(update=lambda: None, set_postfix_str=lambda *_, **__: None)


def decode(latents: torch.Tensor) -> torch.Tensor:
    """The latent's mean as a plain picture."""
    return latents.mean().expand(1, 3, *SIZE)


@pytest.fixture(scope="module")
def frozen_unet() -> UNet2DConditionModel:
    return make_unet().requires_grad_(False)


@dataclass
class Rig(DragEngine):
    """An engine, with who says where handles go and who looks, and why the last drag ended."""

    source: MotionSource = field(default_factory=StraightMotion)
    is_watched: bool = True
    generator: torch.Generator | None = None
    stop_reason: str = ""


def make_engine(unet: UNet2DConditionModel, steps: int = 2, predictor: Any = None, **settings: Any) -> Rig:
    sampler, inverse = make_ddim_schedulers(make_scheduler().config, steps)
    quick = {"supervision_steps": 1, "max_iterations": 3}
    return Rig(
        denoiser=UNetDenoiser(unet, Condition(PROMPT), settings.get("feature_block", -1)),
        sampler=sampler,
        inverse=inverse,
        decode=decode,
        progress_bar=silent,
        settings=DragSettings(**(quick | settings)),
        kv_start_layer=settings.get("kv_start_layer", 0),
        source=StraightMotion() if predictor is None else PredictedMotion(predictor),
    )


def instruct(
    handles: list[tuple[float, float]], targets: list[tuple[float, float]], mask: torch.Tensor | None = None
) -> DragInstruction:
    return DragInstruction(torch.tensor(handles).float(), torch.tensor(targets).float(), SIZE, mask)


FAR = instruct([(4, 16)], [(28, 16)])
# On the supervision grid, of half the size, from cell (4, 8) to cell (12, 8).
SIXTEEN_TO_THE_RIGHT = instruct([(8.5, 16.5)], [(24.5, 16.5)])
THREE = instruct([(4, 4), (10, 16), (25, 28)], [(28, 5), (20, 16), (6, 25)])


@torch.no_grad()
def drag(
    engine: Rig, instruction: DragInstruction, on_step: Callable[[DragStep], None] | None = None
) -> list[DragStep]:
    noise = engine.invert(LATENTS)
    reference = engine.denoise_reference(noise)
    start = DragState(noise, reference.latents, IMAGE)
    edit = DragEdit(
        engine,
        reference,
        start,
        instruction,
        engine.source,
        generator=engine.generator,
        is_watched=engine.is_watched,
    )
    loop, steps = DragLoop(edit), []
    for step in loop:
        if on_step is not None:
            on_step(step)
        steps.append(step)
    engine.stop_reason = loop.stop_reason
    return steps


def moved(steps: list[DragStep]) -> torch.Tensor:
    """Where the handles end, `[points, 2]`."""
    return steps[-1].record.handles + steps[-1].record.step


# --- prediction and Eq. 4 ---


def test_fractions_of_a_pixel_add_up(frozen_unet):
    """25 x (0.4, -0.2) px are (10, -5) px: rounded in each iteration they would be none."""
    engine = make_engine(frozen_unet, predictor=ConstantFlow(0.4, -0.2), max_iterations=25, motion_guard="none")
    steps = drag(engine, instruct([(4, 16)], [(28, 4)]))
    assert len(steps) == 25
    assert engine.stop_reason == "max_iterations"
    torch.testing.assert_close(moved(steps), torch.tensor([[14.0, 11.0]]), rtol=0, atol=1e-4)


def test_each_iteration_starts_where_the_last_one_ended(frozen_unet):
    predictor = ConstantFlow(2.0, 0.0)
    steps = drag(make_engine(frozen_unet, predictor=predictor), FAR)
    for index, (step, asked) in enumerate(zip(steps, predictor.asked, strict=True)):
        assert step.record.handles.tolist() == asked.handles.tolist() == [[4 + 2 * index, 16]]
        assert asked.targets.tolist() == [[28, 16]]


def test_the_predictor_sees_the_picture_of_the_iteration_before(frozen_unet):
    predictor = ConstantFlow(2.0, 0.0)
    steps = drag(make_engine(frozen_unet, predictor=predictor), FAR)
    for asked, expected in zip(
        predictor.asked, [IMAGE, decode(steps[0].latents), decode(steps[1].latents)], strict=True
    ):
        assert torch.equal(asked.image, expected)


@pytest.mark.parametrize(
    ("guard", "flow", "expected"),
    [
        ("none", (9.0, 3.0), (19.0, 19.0)),
        ("clamp", (9.0, 3.0), (14.0, 16.0)),  # lands on the target
        ("project", (9.0, 3.0), (14.0, 16.0)),
        ("none", (-3.0, 1.0), (7.0, 17.0)),
        ("clamp", (-3.0, 1.0), (7.0, 17.0)),
        ("project", (-3.0, 1.0), (10.0, 17.0)),  # sideways is all that is left
        ("project", (-3.0, 0.0), (12.0, 16.0)),  # nothing is left: straight on, half of the way in the first of two
    ],
)
def test_guards(frozen_unet, guard, flow, expected):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(*flow), motion_guard=guard, max_iterations=2)
    record = drag(engine, instruct([(10, 16)], [(14, 16)]))[0].record
    assert (record.handles + record.step)[0].tolist() == pytest.approx(list(expected), abs=1e-5)
    assert record.predicted_step[0].tolist() == list(flow), "the record keeps the prediction as it was"
    assert record.wrong_way_count == (flow[0] < 0), "counted whatever the guard"


def test_handles_stay_on_the_picture(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(20.0, -20.0), motion_guard="none", max_iterations=2)
    assert moved(drag(engine, FAR)).tolist() == [[31, 0]]


def test_without_a_predictor_steps_are_straight_and_equal(frozen_unet):
    steps = drag(make_engine(frozen_unet, max_iterations=4), THREE)
    for step in steps:
        torch.testing.assert_close(step.record.step, (THREE.targets - THREE.handles) / 4)
    torch.testing.assert_close(moved(steps), THREE.targets)


def test_predictions_that_are_not_finite_end_the_edit_with_what_there_is(frozen_unet, caplog):
    predictor = ConstantFlow(4.0, 0.0)
    engine = make_engine(frozen_unet, predictor=predictor, max_iterations=6)

    def spoil(step: DragStep) -> None:
        if len(predictor.asked) == 2:
            predictor.flow = predictor.flow * float("nan")

    with caplog.at_level(logging.WARNING):
        steps = drag(engine, FAR, spoil)
    assert engine.stop_reason == "diverged"
    assert [step.is_good for step in steps] == [True, True]
    assert moved(steps).tolist() == [[12, 16]]
    assert "not finite" in caplog.text


# --- stopping ---


def test_stops_within_four_pixels_of_five_hundred_and_twelve(frozen_unet):
    """At 32 px that is a quarter of a pixel: 2 px a step from 10 to 14.2 leave 0.2 px after two of them."""
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), max_iterations=9, motion_guard="none")
    assert len(drag(engine, instruct([(10, 16)], [(14.2, 16)]))) == 2
    assert engine.stop_reason == "reached"


def test_the_stop_distance_is_the_callers(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), max_iterations=9, stop_distance=6)
    assert len(drag(engine, instruct([(10, 16)], [(20, 16)]))) == 2
    assert engine.stop_reason == "reached"


def test_nothing_to_do_is_done_without_an_iteration(frozen_unet):
    engine = make_engine(frozen_unet)
    assert drag(engine, instruct([(10, 16)], [(10.2, 16)])) == []
    assert engine.stop_reason == "reached"


def test_arriving_in_the_last_iteration_is_arriving(frozen_unet):
    engine = make_engine(frozen_unet, max_iterations=2)
    assert len(drag(engine, FAR)) == 2
    assert engine.stop_reason == "reached"


def test_handles_that_have_arrived_settle_on_their_targets(frozen_unet):
    """2 px a step from 10 to 14.2 arrive with the second, 0.2 px short; the predictor is not asked any more."""
    engine = make_engine(
        frozen_unet, predictor=ConstantFlow(2.0, 0.0), max_iterations=2, motion_guard="none", settle_iterations=4
    )
    steps = drag(engine, instruct([(10, 16)], [(14.2, 16)]))
    ends = torch.stack([step.record.handles + step.record.step for step in steps])
    torch.testing.assert_close(ends[:, 0, 0], torch.tensor([12.0, 14.0] + 4 * [14.2]))
    assert [step.is_preview for step in steps] == 6 * [False]
    assert sum(step.record.wrong_way_count for step in steps) == 0
    assert engine.stop_reason == "reached"


def test_content_of_handles_that_were_set_aside_is_dragged_in_settling(frozen_unet):
    engine = make_engine(frozen_unet, similarity_threshold=-1.0, settle_iterations=2)
    valid = [step.record.valid.sum().item() for step in drag(engine, THREE)]
    assert valid == [1, 1, 1, 3, 3]


def test_handles_that_were_given_up_do_not_settle(frozen_unet):
    engine = make_engine(frozen_unet, similarity_threshold=-1.0, dynamic_selection="first", settle_iterations=2)
    steps = drag(engine, THREE)
    assert [step.record.valid.sum().item() for step in steps] == 5 * [1]
    given_up = ~steps[0].record.valid
    torch.testing.assert_close(moved(steps)[given_up], THREE.handles[given_up])


@pytest.mark.parametrize("source_patches", ["original", "iteration", "step"])
def test_settling_lowers_the_loss_of_content_that_lags_behind(frozen_unet, source_patches):
    """Whatever the drag compares with: at its target, a patch of the iteration would be compared with itself."""
    settings = {
        "source_patches": source_patches,
        "supervision_radius": 0,
        "supervision_lr": 0.02,
        "supervision_steps": 5,
    }
    steps = drag(make_engine(frozen_unet, max_iterations=1, settle_iterations=4, **settings), SIXTEEN_TO_THE_RIGHT)
    losses = [step.record.loss_before for step in steps]
    assert losses == sorted(losses, reverse=True)
    assert 0 < steps[-1].record.loss_after < losses[0] / 2


def test_there_is_no_settling_without_arriving_nor_without_a_way(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), settle_iterations=5)
    assert len(drag(engine, FAR)) == 3
    assert engine.stop_reason == "max_iterations"
    assert drag(engine, instruct([(10, 16)], [(10.2, 16)])) == []
    assert engine.stop_reason == "reached"


def test_stalls_after_three_iterations_without_noticeable_motion(frozen_unet):
    """Noticeable is 0.1 px at 512: here 0.00625 px."""
    engine = make_engine(frozen_unet, predictor=ConstantFlow(0.006, 0.0), max_iterations=9)
    assert len(drag(engine, FAR)) == 3
    assert engine.stop_reason == "stalled"


def test_straight_steps_are_small_not_stalled(frozen_unet):
    """0.03 px that are to be shared by 9 iterations; a predictor that went so slowly would have stalled."""
    engine = make_engine(frozen_unet, max_iterations=9, stop_distance=0)
    assert len(drag(engine, instruct([(10, 16)], [(10.03, 16)]))) == 9
    assert engine.stop_reason != "stalled"


def test_slow_is_not_stalled(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(0.007, 0.0), max_iterations=5)
    assert len(drag(engine, FAR)) == 5
    assert engine.stop_reason == "max_iterations"


def test_a_handle_that_wanders_at_its_target_does_not_keep_a_stalled_edit_alive(frozen_unet):
    """The left one can't get on, the right one has arrived and moves on by 0.01 px an iteration."""
    predictor = ConstantFlow(0.01, 0.0)
    predictor.flow = predictor.flow.clone()
    predictor.flow[..., :16] = 0
    engine = make_engine(frozen_unet, predictor=predictor, max_iterations=9, motion_guard="none")
    assert len(drag(engine, instruct([(4, 16), (24, 8)], [(12, 16), (24, 8)]))) == 3
    assert engine.stop_reason == "stalled"


def test_the_consumer_may_end_the_edit(frozen_unet):
    engine = make_engine(frozen_unet, max_iterations=9)

    def end_with_the_second(step: DragStep) -> None:
        step.is_last = step.record.handles[0, 0] > 4

    steps = drag(engine, FAR, end_with_the_second)
    assert len(steps) == 2
    assert engine.stop_reason == "interrupted"
    assert steps[-1].image is not None, "what the edit ends with is decoded"


def test_the_consumers_latents_are_what_is_decoded(frozen_unet):
    predictor = ConstantFlow(1.0, 0.0)

    def replace(step: DragStep) -> None:
        step.latents = torch.full_like(step.latents, 0.25)

    steps = drag(make_engine(frozen_unet, predictor=predictor), FAR, replace)
    assert all(torch.equal(step.image, torch.full_like(IMAGE, 0.25)) for step in steps)
    assert torch.equal(predictor.asked[1].image, torch.full_like(IMAGE, 0.25))


def poison_after(unet: UNet2DConditionModel, passes: int) -> list[int]:
    """Make every UNet pass after the first `passes` return NaN; count all passes in the list."""
    count: list[int] = []

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        count.append(1)
        return (output[0] * float("nan"),) if len(count) > passes else output

    unet.register_forward_hook(hook)
    return count


@pytest.mark.parametrize(("into_second_iteration", "noticed_after"), [(0, 1), (1, 3), (2, 3)])
def test_values_that_are_not_finite_end_the_edit_with_the_last_good_iteration(
    into_second_iteration, noticed_after, caplog
):
    """In the second iteration's pass of supervision, and in both of its denoising."""
    unet = make_unet().requires_grad_(False)
    engine = make_engine(unet, steps=2, max_iterations=9, mask_weight=1.0)
    instruction = instruct([(4, 16)], [(28, 16)], torch.cat([torch.zeros(16, 32), torch.ones(16, 32)]))
    good = drag(engine, instruction)
    before = 2 + 2 + 3
    passes = poison_after(unet, before + into_second_iteration)
    with caplog.at_level(logging.WARNING):
        steps = drag(engine, instruction)
    assert len(steps) == 1
    assert len(passes) == before + noticed_after
    assert engine.stop_reason == "diverged"
    assert torch.equal(steps[0].latents, good[0].latents)
    assert "The edit stops with the last good iteration" in caplog.text


def test_a_picture_that_is_not_finite_ends_the_edit_with_the_last_good_iteration(frozen_unet, caplog):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(1.0, 0.0), max_iterations=9)
    pictures = iter([decode(LATENTS), decode(LATENTS) * float("nan")])
    engine.decode = lambda latents: next(pictures)
    with caplog.at_level(logging.WARNING):
        first, second = drag(engine, FAR)
    assert first.image is not None
    assert second.image is None
    assert engine.stop_reason == "diverged"
    assert "The edit stops with the last good iteration" in caplog.text


@torch.no_grad()
def test_an_original_that_is_not_finite_is_an_error_before_any_edit():
    unet = make_unet().requires_grad_(False)
    poison_after(unet, 3)
    engine = make_engine(unet)
    noise = engine.invert(LATENTS)
    before = unet.attn_processors
    with pytest.raises(FloatingPointError, match="before any edit"):
        engine.denoise_reference(noise)
    assert unet.attn_processors == before


# --- supervision ---


def test_the_loss_falls_over_the_supervision_steps(frozen_unet):
    steps = drag(make_engine(frozen_unet, supervision_steps=10), THREE)
    for step in steps:
        assert 0 < step.record.loss_after < step.record.loss_before


class Optimised:
    """The latent after each iteration's supervision, read from what is denoised."""

    def __init__(self, engine: DragEngine) -> None:
        self.latents: list[torch.Tensor] = []
        denoise = engine.denoise

        def remember(noise: torch.Tensor, reference: Reference, steps: int | None) -> torch.Tensor:
            self.latents.append(noise.clone())
            return denoise(noise, reference, steps)

        engine.denoise = remember


def optimised(unet: UNet2DConditionModel, instruction: DragInstruction = THREE, **settings: Any) -> list[torch.Tensor]:
    """z_t^0, and the latent after the supervision of each iteration."""
    engine = make_engine(unet, **settings)
    watched = Optimised(engine)
    drag(engine, instruction)
    with torch.no_grad():
        return [engine.invert(LATENTS), *watched.latents]


def test_the_first_step_is_adams(frozen_unet):
    """It has the size of the learning rate in every element whose gradient is not tiny."""
    noise, first = optimised(frozen_unet, max_iterations=1, supervision_lr=0.02)
    change = (first - noise).abs()
    assert change.max() <= 0.02 * 1.001
    assert (change > 0.0199).float().mean() > 0.9


def test_damping_weighs_the_first_step_by_the_size_of_the_gradient(frozen_unet):
    """By g / (|g| + d max|g|): nearly all of the learning rate at large values, next to nothing at small ones."""
    noise, full = optimised(frozen_unet, max_iterations=1, supervision_lr=0.02)
    noise, damped = optimised(frozen_unet, max_iterations=1, supervision_lr=0.02, supervision_damping=0.25)
    change = (damped - noise).abs()
    assert change.max() == pytest.approx(0.02 / 1.25, rel=1e-3)
    assert torch.equal((damped - noise).sign(), (full - noise).sign())
    ratio = change / (0.02 - change)  # |g| / (d max|g|)
    _, weaker = optimised(frozen_unet, max_iterations=1, supervision_lr=0.02, supervision_damping=0.5)
    assert torch.allclose((weaker - noise).abs(), 0.02 * ratio / (ratio + 2), atol=1e-5)


def test_out_of_reach_of_the_handles_ways_the_latent_stays(frozen_unet):
    """And on them it takes its steps in full."""
    way = instruct([(5.5, 5.5)], [(25.5, 5.5)])  # along row 1 of the 8 x 8 latent, from cell 1 to cell 6
    noise, free = optimised(frozen_unet, way, max_iterations=1)
    _, near = optimised(frozen_unet, way, max_iterations=1, supervision_reach=0.1)
    assert torch.equal(near[..., 4:, :], noise[..., 4:, :])
    assert not torch.equal(free[..., 4:, :], noise[..., 4:, :])
    assert torch.equal(near[..., 1, 1:7], free[..., 1, 1:7])


def test_the_latent_is_carried_on(frozen_unet):
    """Three iterations move it further than one, each from where the last one ended."""
    noise, *latents = optimised(frozen_unet, max_iterations=3, supervision_lr=0.02)
    for before, after in zip([noise, *latents], latents, strict=False):
        assert 0.001 < (after - before).abs().max() < 0.1


def test_a_new_optimizer_per_iteration_starts_with_adams_first_step(frozen_unet):
    """With one for the whole edit, moments are mixed, and only some elements take a step of full size."""
    full_size = {}
    for scope in ("edit", "iteration"):
        _, first, second = optimised(frozen_unet, max_iterations=2, optimizer_scope=scope)
        full_size[scope] = ((second - first).abs() > 0.00995).float().mean()
    assert full_size["iteration"] > 0.9
    assert full_size["edit"] < 0.7


@pytest.mark.parametrize("source_patches", ["iteration", "step"])
def test_source_patches_are_those_of_the_iterations_start_or_of_each_step(frozen_unet, source_patches):
    """Of two steps, the last compares with the features at the start, or with those after the first step."""
    settings = {"source_patches": source_patches, "supervision_radius": 0, "max_iterations": 1, "supervision_lr": 0.1}
    start, after_first = optimised(frozen_unet, SIXTEEN_TO_THE_RIGHT, **settings)
    _, after_second = optimised(frozen_unet, SIXTEEN_TO_THE_RIGHT, supervision_steps=2, **settings)
    engine = make_engine(frozen_unet, supervision_steps=2, **settings)
    with torch.no_grad():
        source = engine.features(start if source_patches == "iteration" else after_first, SIZE)[1][0, :, 8, 4]
        destination = engine.features(after_second, SIZE)[1][0, :, 8, 12]
    loss_after = drag(engine, SIXTEEN_TO_THE_RIGHT)[0].record.loss_after
    assert loss_after == pytest.approx((destination - source).abs().mean().item(), rel=1e-4)


def test_original_source_patches_stay_those_of_the_unedited_latent_at_the_first_handles(frozen_unet):
    """In the second of two iterations the handle has come half of the way, and is not where the patch is from."""
    settings = {"source_patches": "original", "supervision_radius": 0, "max_iterations": 2, "supervision_lr": 0.1}
    start, after_first, _ = optimised(frozen_unet, SIXTEEN_TO_THE_RIGHT, **settings)
    engine = make_engine(frozen_unet, **settings)
    with torch.no_grad():
        source = engine.features(start, SIZE)[1][0, :, 8, 4]
        destination = engine.features(after_first, SIZE)[1][0, :, 8, 12]
    loss_before = drag(engine, SIXTEEN_TO_THE_RIGHT)[1].record.loss_before
    assert loss_before == pytest.approx((destination - source).abs().mean().item(), rel=1e-4)


def test_summing_channels_weighs_the_first_term_by_their_number(frozen_unet):
    """The last up-block has 16 channels."""
    losses = {
        reduction: drag(make_engine(frozen_unet, max_iterations=1, channel_reduction=reduction), THREE)[0].record
        for reduction in ("mean", "sum")
    }
    assert losses["sum"].loss_before == pytest.approx(16 * losses["mean"].loss_before, rel=1e-4)


def test_the_feature_block_is_the_callers(frozen_unet):
    first, last = (
        drag(make_engine(frozen_unet, max_iterations=1, feature_block=block), THREE)[0].record.loss_before
        for block in (0, -1)
    )
    assert first != pytest.approx(last, rel=1e-3)


def test_the_loss_before_is_equation_two_at_the_start(frozen_unet):
    """Written out: the L1 distance of features at the handle's and the destination's patch, with radius 0."""
    engine = make_engine(frozen_unet, max_iterations=1, supervision_radius=0)
    steps = drag(engine, SIXTEEN_TO_THE_RIGHT)
    with torch.no_grad():
        features = engine.features(engine.invert(LATENTS), SIZE)[1]
    expected = (features[0, :, 8, 12] - features[0, :, 8, 4]).abs().mean()
    assert steps[0].record.loss_before == pytest.approx(expected.item(), rel=1e-4)


# --- mask ---


def test_a_mask_of_ones_is_no_mask(frozen_unet):
    masked = instruct(THREE.handles.tolist(), THREE.targets.tolist(), torch.ones(SIZE))
    for with_mask, without in zip(
        drag(make_engine(frozen_unet), masked), drag(make_engine(frozen_unet), THREE), strict=True
    ):
        assert torch.equal(with_mask.latents, without.latents)
        assert with_mask.record.loss_after == without.record.loss_after


def test_a_mask_without_weight_is_no_mask(frozen_unet):
    masked = instruct(THREE.handles.tolist(), THREE.targets.tolist(), torch.zeros(SIZE).fill_diagonal_(1))
    unweighted = drag(make_engine(frozen_unet, mask_weight=0.0), masked)
    assert torch.equal(unweighted[-1].latents, drag(make_engine(frozen_unet), THREE)[-1].latents)


def test_the_mask_holds_what_is_outside(frozen_unet):
    """The heavier its term, the less the latent changes outside, one DDIM step from z_t."""
    mask = torch.zeros(SIZE)
    mask[:, 16:] = 1
    masked = instruct([(20, 16)], [(28, 16)], mask)
    outside = []
    for weight in (0.0, 10.0):
        noise, *_, last = optimised(frozen_unet, masked, mask_weight=weight, supervision_steps=5, max_iterations=4)
        outside.append((last - noise)[..., :4].abs().mean())
    assert outside[1] < 0.7 * outside[0]


def test_the_mask_term_is_weighed(frozen_unet):
    """The first step ignores it (it is zero there), so that afterwards the same latent is judged at each weight."""
    masked = instruct(THREE.handles.tolist(), THREE.targets.tolist(), torch.zeros(SIZE).fill_diagonal_(1))
    none, one, three = (
        drag(make_engine(frozen_unet, mask_weight=weight, max_iterations=1), masked)[0].record.loss_after
        for weight in (0.0, 1.0, 3.0)
    )
    assert one > none
    assert three - none == pytest.approx(3 * (one - none), rel=1e-3)


def test_the_mask_term_starts_at_zero(frozen_unet):
    """z_t^0 is the reference itself, so its loss is the first term's alone, whatever the mask's weight."""
    masked = instruct(THREE.handles.tolist(), THREE.targets.tolist(), torch.zeros(SIZE).fill_diagonal_(1))
    heavy = drag(make_engine(frozen_unet, mask_weight=100.0, max_iterations=1), masked)[0].record
    plain = drag(make_engine(frozen_unet, max_iterations=1), THREE)[0].record
    assert heavy.loss_before == pytest.approx(plain.loss_before, rel=1e-3)
    assert heavy.loss_after > plain.loss_after


# --- selection ---


def set_similarities(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    monkeypatch.setattr(
        "dynadrag_pipeline.drag_edit.handle_target_similarity", lambda *_: torch.tensor(values, dtype=torch.float32)
    )


def test_unselected_handles_are_not_supervised_but_move_by_equation_four(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.1, 0.9)
    steps = drag(make_engine(frozen_unet, max_iterations=2), THREE)
    assert steps[0].record.valid.tolist() == [False, True, False]
    torch.testing.assert_close(moved(steps), THREE.targets)

    alone = instruct([(10, 16)], [(20, 16)])
    set_similarities(monkeypatch, 0.1)
    assert torch.equal(drag(make_engine(frozen_unet, max_iterations=2), alone)[0].latents, steps[0].latents)


def test_unselected_handles_may_be_held(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.1, 0.9)
    engine = make_engine(frozen_unet, max_iterations=2, hold_unselected=True)
    first, second = drag(engine, THREE)
    assert first.record.step.tolist() == [[0, 0], [5, 0], [0, 0]]
    assert second.record.handles.tolist() == [[4, 4], [15, 16], [25, 28]]
    assert engine.stop_reason == "max_iterations"


def test_first_abandons_the_others_in_maps_motion_and_stop_rule(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.1, 0.9)
    predictor = ConstantFlow(5.0, 0.0)
    engine = make_engine(frozen_unet, predictor=predictor, max_iterations=9, dynamic_selection="first")
    steps = drag(engine, THREE)
    assert engine.stop_reason == "reached", "once the only live handle has arrived"
    assert len(steps) == 2
    assert moved(steps).tolist() == [[4, 4], [20, 16], [25, 28]]
    assert [asked.handles.tolist() for asked in predictor.asked] == [[[10, 16]], [[15, 16]]]
    assert all(step.record.predicted_step.tolist() == [[0, 0], [5, 0], [0, 0]] for step in steps)


def test_abandoned_handles_do_not_keep_a_stalled_edit_alive(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.1, 0.9)
    engine = make_engine(
        frozen_unet,
        predictor=ConstantFlow(0.001, 0.0),
        max_iterations=9,
        dynamic_selection="first",
        motion_guard="none",
    )
    assert len(drag(engine, THREE)) == 3
    assert engine.stop_reason == "stalled"


def test_none_supervises_every_handle_that_has_not_arrived(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.9)
    engine = make_engine(frozen_unet, dynamic_selection=None, max_iterations=1)
    record = drag(engine, instruct([(4, 4), (9, 9)], [(28, 5), (9.1, 9)]))[0].record
    assert record.valid.tolist() == [True, False]


def test_random_draws_from_the_engines_generator(frozen_unet, monkeypatch):
    set_similarities(monkeypatch, 0.9, 0.1, 0.9)

    def draws(seed: int) -> list[list[bool]]:
        engine = make_engine(frozen_unet, dynamic_selection="random", max_iterations=12)
        engine.generator = torch.Generator().manual_seed(seed)
        return [step.record.valid.tolist() for step in drag(engine, THREE)]

    assert draws(0) == draws(0) != draws(1)
    assert all(sum(valid) == 1 for valid in draws(0))


# --- previews, and pictures that nobody sees ---


def timesteps_of_passes(unet: UNet2DConditionModel) -> list[int]:
    seen: list[int] = []
    unet.register_forward_pre_hook(lambda module, inputs: seen.append(int(inputs[1])))
    return seen


def test_previews_take_fewer_passes_and_the_last_picture_all():
    unet = make_unet().requires_grad_(False)
    predictor = ConstantFlow(2.0, 0.0)
    engine = make_engine(unet, steps=10, predictor=predictor, preview_steps=2)
    passes = timesteps_of_passes(unet)
    steps = drag(engine, FAR)
    all_of_them = list(range(901, 0, -100))
    assert passes[20:] == [901, 901, 401, 901, 901, 401, 901, *all_of_them, 901]
    assert [step.is_preview for step in steps] == [True, True, False]
    assert len(predictor.asked) == 3


def test_the_result_is_that_of_full_pictures_where_the_predictor_does_not_look():
    """It answers with the same flow whatever it sees, so nothing else may differ."""
    unet = make_unet().requires_grad_(False)
    full, preview = (
        drag(make_engine(unet, steps=4, predictor=ConstantFlow(2.0, 0.0), preview_steps=count), FAR)
        for count in (None, 1)
    )
    assert not torch.equal(full[0].latents, preview[0].latents)
    assert torch.equal(full[-1].latents, preview[-1].latents)
    assert torch.equal(full[-1].image, preview[-1].image)


def test_previews_are_decoded_by_their_own_decoder(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), preview_steps=1)
    engine.decode_preview = lambda latents: torch.full_like(IMAGE, 0.5)
    steps = drag(engine, FAR)
    assert all(torch.equal(step.image, torch.full_like(IMAGE, 0.5)) for step in steps[:-1])
    assert torch.equal(steps[-1].image, decode(steps[-1].latents))


@pytest.mark.parametrize("ending", ["interrupted", "stalled", "diverged"])
def test_however_an_edit_ends_its_last_picture_is_full(frozen_unet, ending):
    flow = ConstantFlow(0.001 if ending == "stalled" else 2.0, 0.0)
    engine = make_engine(frozen_unet, steps=4, predictor=flow, max_iterations=9, preview_steps=1)
    with torch.no_grad():
        reference = engine.denoise_reference(engine.invert(LATENTS))
    if ending == "diverged":
        pictures = iter([decode(LATENTS), decode(LATENTS) * float("nan")])
        engine.decode_preview = lambda latents: next(pictures)

    def interrupt(step: DragStep) -> None:
        step.is_last = ending == "interrupted"

    steps = drag(engine, FAR, interrupt)
    assert engine.stop_reason == ending
    last = [step for step in steps if step.is_good][-1]
    assert not last.is_preview
    with torch.no_grad():
        torch.testing.assert_close(last.latents, engine.denoise(last.noise, reference), rtol=0, atol=1e-6)
    assert torch.equal(last.image, decode(last.latents))


def test_latents_that_the_consumer_put_in_stay_as_they_are(frozen_unet):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), preview_steps=1)

    def replace(step: DragStep) -> None:
        step.latents, step.is_preview, step.is_last = torch.full_like(step.latents, 0.25), False, True

    assert torch.equal(drag(engine, FAR, replace)[-1].latents, torch.full_like(LATENTS, 0.25))


def test_settling_needs_no_pictures_but_the_last():
    """An iteration to arrive and two to settle: a pass each for their Adam steps, then the picture in full."""
    unet = make_unet().requires_grad_(False)
    engine = make_engine(
        unet, steps=4, predictor=ConstantFlow(24.0, 0.0), max_iterations=9, preview_steps=2, settle_iterations=2
    )
    engine.is_watched = False
    passes = timesteps_of_passes(unet)
    steps = drag(engine, FAR)
    assert passes[8:] == [751, 751, 751, 751, 501, 251, 1, 751]
    assert [step.image is None for step in steps] == [True, True, False]


def test_straight_steps_that_nobody_watches_need_no_pictures_between():
    unet = make_unet().requires_grad_(False)
    passes = timesteps_of_passes(unet)
    unwatched = make_engine(unet, steps=4)
    unwatched.is_watched = False
    steps = drag(unwatched, FAR)
    assert passes[8:] == [751, 751, 751, 751, 501, 251, 1, 751]
    watched = drag(make_engine(unet, steps=4), FAR)
    assert torch.equal(steps[-1].latents, watched[-1].latents)
    assert torch.equal(steps[-1].image, watched[-1].image)
    for step, same in zip(steps, watched, strict=True):
        assert step.record.loss_after == same.record.loss_after
    assert [step.image is None for step in steps] == [True, True, False]


def test_a_predictor_is_shown_pictures_whoever_watches(frozen_unet):
    predictor = ConstantFlow(2.0, 0.0)
    engine = make_engine(frozen_unet, predictor=predictor)
    engine.is_watched = False
    steps = drag(engine, FAR)
    assert torch.equal(predictor.asked[1].image, decode(steps[0].latents))


def test_a_last_picture_that_is_not_finite_leaves_the_preview(frozen_unet, caplog):
    engine = make_engine(frozen_unet, predictor=ConstantFlow(2.0, 0.0), max_iterations=9, preview_steps=1)
    engine.decode_preview = decode
    engine.decode = lambda latents: decode(latents) * float("nan")

    def interrupt(step: DragStep) -> None:
        step.is_last = True

    with caplog.at_level(logging.WARNING):
        (step,) = drag(engine, FAR, interrupt)
    assert engine.stop_reason == "diverged"
    assert step.is_good
    assert torch.equal(step.image, decode(step.latents))


# --- UNet passes and state ---


@pytest.mark.parametrize(("steps", "iterations", "supervision"), [(2, 3, 1), (4, 2, 3)])
def test_unet_passes_of_an_edit(steps, iterations, supervision):
    """N of inversion, N of the reference once an edit, S + N an iteration, and one for the last record."""
    unet = make_unet().requires_grad_(False)
    passes = []
    unet.register_forward_pre_hook(lambda *_: passes.append(len(unet.attn_processors)))
    engine = make_engine(unet, steps=steps, max_iterations=iterations, supervision_steps=supervision)
    with torch.no_grad():
        noise = engine.invert(LATENTS)
        assert len(passes) == steps
        engine.denoise_reference(noise)
        assert len(passes) == 2 * steps
    passes.clear()
    assert len(drag(engine, FAR)) == iterations
    assert len(passes) == steps + steps + iterations * (supervision + steps) + 1


def test_part_of_the_way_takes_part_of_the_passes(frozen_unet):
    engine = make_engine(frozen_unet, steps=10, inversion_strength=0.7)
    assert engine.timesteps.tolist() == list(range(601, 0, -100))
    assert make_engine(frozen_unet, steps=10, inversion_strength=0.01).timesteps.tolist() == [1]


@torch.no_grad()
def test_denoising_the_unedited_latent_gives_the_reference(frozen_unet):
    engine = make_engine(frozen_unet, steps=4)
    noise = engine.invert(LATENTS)
    reference = engine.denoise_reference(noise)
    torch.testing.assert_close(engine.denoise(noise, reference), reference.latents, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_references_second_latent_is_one_ddim_step_on(frozen_unet):
    """z_{t-1} = sqrt(a') (z - sqrt(1-a) eps) / sqrt(a) + sqrt(1-a') eps, from t = 501 to 1 in two steps."""
    engine = make_engine(frozen_unet)
    noise = engine.invert(LATENTS)
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()).cumprod(0)
    eps = frozen_unet(noise, 501, PROMPT).sample
    clean = (noise - (1 - alphas[501]).sqrt() * eps) / alphas[501].sqrt()
    expected = alphas[1].sqrt() * clean + (1 - alphas[1]).sqrt() * eps
    torch.testing.assert_close(engine.denoise_reference(noise).previous, expected, rtol=1e-4, atol=1e-4)


def test_keys_and_values_of_the_original_are_used_from_the_start_layer_on(frozen_unet):
    layers = len(self_attention_layers(frozen_unet))
    everywhere, nowhere = (drag(make_engine(frozen_unet, kv_start_layer=start), THREE) for start in (0, layers))
    assert torch.equal(everywhere[0].record.step, nowhere[0].record.step)
    assert everywhere[0].record.loss_after == nowhere[0].record.loss_after, "supervision sees the edit's own"
    assert not torch.equal(everywhere[0].latents, nowhere[0].latents)


@pytest.mark.parametrize("during", ["reference", "supervision", "denoising"])
def test_processors_and_hooks_are_as_before_when_the_unet_fails(during):
    unet = make_unet().requires_grad_(False)
    engine = make_engine(unet, steps=2)
    before = unet.attn_processors
    count = []

    def fail(*_: Any) -> None:
        count.append(1)
        if len(count) == {"reference": 4, "supervision": 6, "denoising": 8}[during]:
            raise KeyboardInterrupt

    unet.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        drag(engine, FAR)
    assert unet.attn_processors == before
    assert not any(module._forward_hooks for module in unet.modules())


def test_weights_get_no_gradient_and_edits_repeat(frozen_unet):
    first, again = (drag(make_engine(frozen_unet), THREE)[-1].latents for _ in range(2))
    assert torch.equal(first, again)
    assert all(parameter.grad is None for parameter in frozen_unet.parameters())


def test_intermediates_are_kept_on_request(frozen_unet):
    for keep in (False, True):
        predictor = ConstantFlow(2.0, 1.0)
        steps = drag(make_engine(frozen_unet, predictor=predictor, return_intermediates=keep), FAR)
        for step in steps:
            if keep:
                assert torch.equal(step.record.image, step.image[0])
                assert torch.equal(step.record.flow, predictor.flow[0])
            else:
                assert step.record.image is None
                assert step.record.flow is None


def test_the_supervision_grid_has_half_the_pictures_size():
    assert supervision_grid((512, 768)) == (256, 384)
    assert supervision_grid((65, 1)) == (32, 1)
