"""The pipeline's contract with its callers, on tiny random components."""

import logging

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline, drag_edit, drag_engine, session
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet
from support.unchanged import snapshot

HANDLES = [(40, 30), (20, 50)]
TARGETS = [(60, 50), (10, 40)]


# --- what comes out ---


def test_a_picture_of_any_size_comes_back_at_its_size_with_its_record(pipe, quick, picture):
    output = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick)
    assert output.images.shape == (1, 3, 80, 96)
    assert output.images.min() >= 0
    assert output.images.max() <= 1
    assert output.trajectories.shape == (4, 2, 2)
    assert output.trajectories.dtype == torch.float32
    assert torch.equal(output.trajectories[0], torch.tensor(HANDLES, dtype=torch.float32))
    assert len(output.iterations) == 3
    assert output.stop_reason == "reached"
    assert output.motion_source == "straight"


def test_straight_steps_share_the_way_equally_in_pixels_of_the_input(pipe, quick, picture):
    output = pipe(picture, HANDLES, TARGETS, **quick)
    way = torch.tensor(TARGETS) - torch.tensor(HANDLES)
    for iteration in output.iterations:
        assert torch.allclose(iteration.step, way / 3, atol=1e-4)
        assert torch.allclose(iteration.predicted_step, way / 3, atol=1e-4)
    assert torch.allclose(output.trajectories[-1], torch.tensor(TARGETS, dtype=torch.float32), atol=1e-3)


def test_records_follow_one_another(pipe, quick, picture):
    output = pipe(picture, HANDLES, TARGETS, dynamic_selection=None, **quick)
    for index, iteration in enumerate(output.iterations):
        assert torch.allclose(iteration.handles, output.trajectories[index], atol=1e-4)
        assert torch.allclose(iteration.handles + iteration.step, output.trajectories[index + 1], atol=1e-4)
        assert iteration.valid.tolist() == [True, True]
        assert iteration.loss_after < iteration.loss_before
        assert iteration.image is None


def test_the_stop_distance_is_in_pixels_of_the_input(pipe, quick, picture):
    options = quick | {"max_iterations": 10, "processing_resolution": 160}
    output = pipe(picture, [(20.0, 40.0)], [(60.0, 40.0)], stop_distance=10.5, **options)
    assert output.stop_reason == "reached"
    left = (output.trajectories[:, 0] - torch.tensor([60.0, 40.0])).norm(dim=-1)
    assert left[-1] <= 10.5 < left[-2]


def test_small_straight_steps_are_no_stall(pipe, quick, picture):
    output = pipe(picture, [(20.0, 40.0)], [(20.1, 40.0)], stop_distance=0, **(quick | {"max_iterations": 6}))
    assert output.stop_reason in ("reached", "max_iterations")
    assert len(output.iterations) == 6


def test_a_picture_that_is_decoded_to_nothing_finite_is_not_returned(pipe, quick, picture, monkeypatch):
    decode, calls = drag_engine.decode_latents, []

    def overflowing(vae, latents):
        calls.append(None)
        return decode(vae, latents) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(drag_engine, "decode_latents", overflowing)
    output = pipe(picture, HANDLES, TARGETS, output_type="pt", return_intermediates=True, **quick)
    assert output.stop_reason == "diverged"
    assert len(output.iterations) == 1
    assert output.trajectories.shape == (2, 2, 2)
    assert output.images.isfinite().all()


def test_intermediates_are_kept_on_request(pipe, quick, picture):
    pipe.register_modules(motion_predictor=make_motion_predictor())
    output = pipe(picture, HANDLES, TARGETS, return_intermediates=True, output_type="pt", **quick)
    assert output.motion_source == "predicted"
    for iteration in output.iterations:
        assert iteration.image.shape == (3, 64, 76)
        assert iteration.flow.shape == (2, 64, 76)
    last = torch.nn.functional.interpolate(
        output.iterations[-1].image[None], size=(80, 96), mode="bicubic", antialias=True
    ).clamp(0, 1)
    assert torch.allclose(output.images, last)


def test_what_the_edit_left_alone_is_the_source_in_every_pixel_if_that_is_wanted(pipe, quick, picture):
    """Handles at their targets are no edit: latents of random components know little of the picture."""
    output, restored = (
        pipe(picture, HANDLES, HANDLES, output_type="pt", restore_source=wanted, **quick).images[0]
        for wanted in (False, True)
    )
    assert (output - picture).abs().max() > 0.2
    assert torch.allclose(restored, picture, atol=1e-5)


def test_the_output_type_changes_the_form_and_not_the_picture(pipe, quick, picture):
    tensor = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    array = pipe(picture, HANDLES, TARGETS, output_type="np", **quick).images
    (image,) = pipe(picture, HANDLES, TARGETS, output_type="pil", **quick).images
    latents = pipe(picture, HANDLES, TARGETS, output_type="latent", **quick).images
    assert array.shape == (1, 80, 96, 3)
    assert image.size == (96, 80)
    assert latents.shape == (1, 4, 16, 19)
    assert np.allclose(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(image) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


def test_a_tuple_has_the_fields_of_the_output(pipe, quick, picture):
    output = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick)
    fields = pipe(picture, HANDLES, TARGETS, output_type="pt", return_dict=False, **quick)
    assert torch.equal(fields[0], output.images)
    assert torch.equal(fields[1], output.trajectories)
    assert fields[3:5] == ("reached", "straight")


def test_a_list_of_pictures_is_edited_like_each_alone(pipe, quick, picture):
    other = picture.flip(-1)[:, :70]
    alone = [
        pipe(picture, HANDLES, TARGETS, output_type="pt", **quick),
        pipe(other, [(9, 9)], [(30, 9)], output_type="pt", **quick),
    ]
    both = pipe([picture, other], [HANDLES, [(9, 9)]], [TARGETS, [(30, 9)]], output_type="pt", **quick)
    assert both.stop_reason == ["reached", "reached"]
    for index in range(2):
        assert torch.equal(both.images[index], alone[index].images[0])
        assert torch.equal(both.trajectories[index], alone[index].trajectories)


def test_one_instruction_holds_for_a_batch(pipe, quick, picture):
    output = pipe(torch.stack([picture, picture]), HANDLES, TARGETS, output_type="pt", **quick)
    assert output.images.shape == (2, 3, 80, 96)
    assert torch.equal(output.images[0], output.images[1])


def test_pictures_of_any_kind_are_accepted(pipe, quick, picture):
    array = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    expected = pipe(array, HANDLES, TARGETS, output_type="pt", **quick).images
    for same in (Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1), array.astype(np.float32) / 255):
        assert torch.allclose(pipe(same, HANDLES, TARGETS, output_type="pt", **quick).images, expected, atol=1e-4)


# --- repeatability and the generator ---


def test_the_same_seed_gives_the_same_result_whatever_was_edited_before(pipe, quick, picture):
    def edit(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipe(picture, HANDLES, TARGETS, generator=generator, output_type="pt", **quick).images

    first, other, again = edit(3), edit(4), edit(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_calls_repeat_and_leave_the_global_random_state_alone(pipe, quick, picture):
    before = torch.get_rng_state()
    first = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    assert torch.equal(pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images, first)
    assert torch.equal(torch.get_rng_state(), before)


# --- prompts ---


def test_an_embedding_takes_the_place_of_its_prompt(pipe, quick, picture):
    def edit(**said):
        return pipe(picture, HANDLES, TARGETS, output_type="pt", **said, **quick).images

    expected = edit(prompt="a cat")
    assert torch.equal(edit(prompt_embeds=pipe.encode_prompt("a cat")), expected)
    assert torch.equal(edit(prompt_embeds=pipe.encode_prompt("a cat").double().requires_grad_()), expected)
    assert not torch.equal(edit(prompt_embeds=pipe.encode_prompt("a dog")), expected)


def test_with_an_embedding_no_text_encoder_is_needed(pipe, quick, picture, tmp_path):
    embeds = pipe.encode_prompt("a cat")
    expected = pipe(picture, HANDLES, TARGETS, prompt_embeds=embeds, output_type="pt", **quick).images
    bare = DynaDragPipeline(**(pipe.components | {"text_encoder": None, "tokenizer": None}))
    bare.set_progress_bar_config(disable=True)
    assert torch.equal(
        bare(picture, HANDLES, TARGETS, prompt_embeds=embeds, output_type="pt", **quick).images, expected
    )
    opened = bare.open_session(picture, prompt_embeds=embeds, **quick)
    bare.save_session(opened, tmp_path)
    assert torch.equal(bare.load_session(tmp_path).prompt_embeds, embeds)
    with pytest.raises(ValueError, match=r"`text_encoder` is missing: .* or pass `prompt_embeds`"):
        bare(picture, HANDLES, TARGETS, **quick)


def test_an_embedding_may_have_any_number_of_tokens(pipe, quick, picture):
    embeds = torch.cat([pipe.encode_prompt("a cat"), pipe.encode_prompt("on a mat")], dim=1)
    assert pipe(picture, HANDLES, TARGETS, prompt_embeds=embeds, **quick).stop_reason == "reached"


def test_pictures_of_a_list_may_have_an_embedding_each(pipe, quick, picture):
    def edit(image, **said):
        return pipe(image, HANDLES, TARGETS, output_type="pt", **said, **quick).images

    embeds = [pipe.encode_prompt("a cat"), pipe.encode_prompt("a dog")]
    both = edit([picture, picture], prompt_embeds=embeds)
    assert torch.equal(both[:1], edit(picture, prompt="a cat"))
    assert torch.equal(both[1:], edit(picture, prompt="a dog"))


def test_a_session_takes_an_embedding_too(pipe, quick, picture):
    said = pipe.open_session(picture, prompt="a cat", **quick)
    given = pipe.open_session(picture, prompt_embeds=pipe.encode_prompt("a cat"), **quick)
    assert torch.equal(given.prompt_embeds, said.prompt_embeds)
    assert torch.equal(given.noise, said.noise)
    with pytest.raises(ValueError, match="`prompt` must be empty beside `prompt_embeds`, got 'a cat'"):
        pipe.open_session(picture, prompt="a cat", prompt_embeds=torch.zeros(1, 77, 16), **quick)


# --- sizes ---


def test_the_short_side_is_edited_at_the_size_that_the_unet_was_trained_at(pipe, quick, picture):
    assert pipe(picture, HANDLES, TARGETS, output_type="latent", **quick).images.shape[-2:] == (16, 19)


def test_another_processing_resolution_or_the_picture_s_own_may_be_asked_for(pipe, quick, picture):
    def latent_size(resolution: int) -> tuple[int, ...]:
        options = quick | {"processing_resolution": resolution, "output_type": "latent"}
        return tuple(pipe(picture, HANDLES, TARGETS, **options).images.shape[-2:])

    assert latent_size(0) == (20, 24)
    assert latent_size(100) == (25, 30)


# --- callback ---


def test_what_the_callback_makes_of_the_last_latents_is_returned(pipe, quick, picture):
    def zero(pipe, index, timestep, tensors):
        if index == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    output = pipe(picture, HANDLES, TARGETS, output_type="latent", callback_on_step_end=zero, **quick)
    assert not output.images.any()


def test_an_interrupt_ends_a_list_of_pictures_with_those_so_far(pipe, quick, picture, monkeypatch):
    def stop(pipe, index, timestep, tensors):
        pipe._interrupt = True
        return tensors

    fits = count_fits(monkeypatch)
    others = [picture.flip(-1), picture.flip(-2)]
    output = pipe([picture, *others], HANDLES, TARGETS, callback_on_step_end=stop, **quick)
    assert output.stop_reason == ["interrupted"]
    assert len(output.images) == len(fits) == 1


def test_the_callback_sees_the_tensors_that_it_asks_for_once_an_iteration(pipe, quick, picture):
    seen = []

    def look(pipe, index, timestep, tensors):
        seen.append((index, int(timestep), sorted(tensors)))
        return {}

    names = ["latents", "prompt_embeds"]
    pipe(picture, HANDLES, TARGETS, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, **quick)
    assert seen == [(0, 751, names), (1, 751, names), (2, 751, names)]


def test_an_interrupt_returns_the_edit_so_far(pipe, quick, picture):
    def stop(pipe, index, timestep, tensors):
        pipe._interrupt = index == 1
        return tensors

    output = pipe(picture, HANDLES, TARGETS, callback_on_step_end=stop, output_type="pt", **quick)
    assert output.stop_reason == "interrupted"
    assert len(output.iterations) == 2
    assert output.trajectories.shape == (3, 2, 2)
    assert pipe(picture, HANDLES, TARGETS, **quick).stop_reason == "reached"


# --- the pipeline's own state ---


def add_dora_everywhere(unet: UNet2DConditionModel) -> None:
    """Two adapters on attention and elsewhere, of which one is on, in training mode."""
    torch.manual_seed(6)
    where = ["to_q", "to_v", "ff.net.2", "conv1"]
    for name in ("off", "on"):
        config = LoraConfig(
            r=2, init_lora_weights=False, target_modules=where, lora_dropout=0.2, use_dora=name == "on"
        )
        unet.add_adapter(config, name)
    unet.set_adapters("on", 0.5)


USERS = {"no adapter": lambda unet: None, "a LoRA": lambda unet: add_user_lora(unet), "a DoRA": add_dora_everywhere}
STAGES = {
    "encoding": "session.encode_picture",
    "injection": "identity_lora.inject_adapter_in_model",
    "the first matrices": "identity_lora._draw_matrices",
    "fitting": "identity_fit.denoising_loss",
    "attaching": "identity_lora.set_peft_model_state_dict",
    "inversion": "drag_engine.ddim_invert",
    "the reference": "drag_engine.ddim_denoise",
    "supervision": "drag_edit.motion_supervision_loss",
    "decoding": "drag_engine.decode_latents",
    "the callback": "",
}


@pytest.mark.parametrize(
    ("stage", "users"),
    [(stage, users) for stage in STAGES for users in USERS if stage != "attaching" or users == "a DoRA"],
)
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_nothing_is_left_behind_by_a_call_that_fails(pipe, quick, picture, monkeypatch, stage, users, error):
    USERS[users](pipe.unet)
    pipe.unet.train()
    before = snapshot(pipe)
    options = dict(quick)

    def fail(*args, **kwargs):
        raise error

    if STAGES[stage]:
        monkeypatch.setattr(f"dynadrag_pipeline.{STAGES[stage]}", fail)
    else:
        options["callback_on_step_end"] = fail
    with pytest.raises(type(error)):
        pipe(picture, HANDLES, TARGETS, **options)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("users", USERS)
def test_nothing_is_left_behind_by_a_call_that_succeeds(pipe, quick, picture, users):
    USERS[users](pipe.unet)
    pipe.unet.train()
    pipe.unet.conv_in.to(memory_format=torch.channels_last)
    before = snapshot(pipe)
    pipe(picture, HANDLES, TARGETS, **quick)
    assert snapshot(pipe) == before


# --- LoRAs ---


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record the fits of identity LoRAs, which still happen."""
    fits: list[object] = []
    fit = session.fit_identity_lora
    monkeypatch.setattr(session, "fit_identity_lora", lambda *a, **k: fits.append(a) or fit(*a, **k))
    return fits


def test_an_identity_lora_is_fitted_once_for_a_picture_and_its_settings(pipe, quick, picture, monkeypatch):
    fits = count_fits(monkeypatch)
    pipe(picture, HANDLES, TARGETS, **quick)
    pipe(picture, HANDLES, [(45, 35), (15, 45)], **quick)
    assert len(fits) == 1
    pipe(picture.flip(-1), HANDLES, TARGETS, **quick)
    pipe(picture, HANDLES, TARGETS, **(quick | {"identity_lora_steps": 3}))
    assert len(fits) == 3


def test_no_identity_lora_is_fitted_for_no_steps(pipe, quick, picture, monkeypatch):
    fits = count_fits(monkeypatch)
    pipe(picture, HANDLES, TARGETS, **(quick | {"identity_lora_steps": 0}))
    assert not fits
    with pytest.raises(ValueError, match="no identity LoRA to save"):
        pipe.save_identity_lora("anywhere")


def test_a_saved_identity_lora_spares_another_pipeline_the_fit(pipe, quick, picture, monkeypatch, tmp_path, caplog):
    expected = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    pipe.save_identity_lora(tmp_path)
    other = DynaDragPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    other.load_identity_lora(tmp_path)
    fits = count_fits(monkeypatch)
    assert torch.equal(other(picture, HANDLES, TARGETS, output_type="pt", **quick).images, expected)
    assert not fits
    assert "another picture" not in caplog.text
    other(picture.flip(-1), HANDLES, TARGETS, **quick)
    assert len(fits) == 1
    assert "another picture" in caplog.text


def add_user_lora(unet: UNet2DConditionModel) -> None:
    """A LoRA as a user would have loaded it: on the queries alone, and strong enough to be seen."""
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q"]), "theirs")
    unet.set_adapters("theirs", 0.7)


def test_the_user_s_own_lora_stays_active_and_is_untouched_after(pipe, quick, picture):
    plain = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    add_user_lora(pipe.unet)
    before = snapshot(pipe)
    styled = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    assert not torch.allclose(plain, styled, atol=1e-3)
    assert snapshot(pipe) == before


def test_the_scale_of_cross_attention_kwargs_weighs_the_user_s_lora_alone(pipe, quick, picture):
    plain = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    add_user_lora(pipe.unet)
    before = snapshot(pipe)
    off = pipe(picture, HANDLES, TARGETS, output_type="pt", cross_attention_kwargs={"scale": 0.0}, **quick).images
    assert torch.allclose(off, plain, atol=1e-5)
    assert snapshot(pipe) == before


# --- diffusers' habits ---


def test_a_saved_pipeline_loads_and_edits_alike(pipe, quick, picture, tmp_path):
    pipe.register_modules(motion_predictor=make_motion_predictor())
    expected = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    pipe.save_pretrained(tmp_path)
    loaded = DynaDragPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(picture, HANDLES, TARGETS, output_type="pt", **quick).images, expected)


def test_components_of_stable_diffusion_pipelines_can_be_taken_over(pipe, quick, picture):
    parts = {key: pipe.components[key] for key in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    diffusion = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    dragging = DynaDragPipeline.from_pipe(diffusion)
    dragging.set_progress_bar_config(disable=True)
    assert dragging(picture, HANDLES, TARGETS, **quick).stop_reason == "reached"
    assert dragging.unet is diffusion.unet


def test_the_scheduler_of_stable_diffusion_repositories_is_converted(pipe, quick, picture):
    expected = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images
    config = dict(make_scheduler().config) | {"skip_prk_steps": True}
    pipe.scheduler = PNDMScheduler.from_config(config)
    assert torch.allclose(pipe(picture, HANDLES, TARGETS, output_type="pt", **quick).images, expected, atol=1e-5)


def test_bfloat16_runs_and_stays_close_enough_to_be_the_same_edit(pipe, quick, picture):
    full = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick)
    half = pipe.to(dtype=torch.bfloat16)(picture, HANDLES, TARGETS, output_type="pt", **quick)
    assert torch.equal(full.trajectories, half.trajectories)
    assert half.images.isfinite().all()
    assert (full.images - half.images).abs().mean() < 0.05


def test_values_that_are_not_finite_end_the_edit_with_the_last_good_iteration(
    pipe, quick, picture, monkeypatch, caplog
):
    good = pipe(picture, HANDLES, TARGETS, output_type="pt", **(quick | {"max_iterations": 3})).iterations
    loss, calls = drag_edit.motion_supervision_loss, []

    def diverging(*args):
        calls.append(None)
        return loss(*args) * (float("nan") if len(calls) > 4 else 1)

    monkeypatch.setattr(drag_edit, "motion_supervision_loss", diverging)
    with caplog.at_level(logging.WARNING):
        output = pipe(picture, HANDLES, TARGETS, output_type="pt", **quick)
    assert output.stop_reason == "diverged"
    assert len(output.iterations) == 1
    assert output.iterations[0].loss_after == good[0].loss_after
    assert output.images.isfinite().all()


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "`image` is missing"),
        ({"image": "portrait.png"}, "`image` must be a PIL image"),
        ({"image": []}, "`image` is an empty list"),
        ({"image": torch.zeros(3, 63, 80)}, r"`image` must be at least 64 pixels on each side, got 80x63"),
        ({"image": torch.full((3, 80, 80), -1.0)}, r"`image` must have finite values in \[0, 1\]"),
        ({"image": torch.zeros(2, 80, 80)}, "`image` must have 1, 3 or 4 channels"),
        ({"handles": []}, "`handles` must be at least one"),
        ({"handles": [(1, 2)]}, "1 handles and 2 targets"),
        ({"handles": [(1, 2), (96, 3)]}, r"`handles` must lie inside the picture, x in \[0, 95\].*\(96, 3\)"),
        ({"targets": [(1, 2), (3, -1)]}, r"`targets` must lie inside the picture.*\(3, -1\)"),
        ({"targets": [(1, 2), (3, float("nan"))]}, "`targets` must be finite"),
        ({"targets": [(1, 2, 3), (3, 4, 5)]}, r"`targets` must be .* got shape \(2, 3\)"),
        ({"targets": "here"}, "`targets` must be a list of"),
        ({"mask": torch.zeros(3, 80, 96)}, "`mask` must have one channel"),
        ({"mask": "mask.png"}, "`mask` must be a PIL image"),
        ({"prompt": 3}, "`prompt` must be a string, got 3"),
        (
            {"prompt": "a cat", "prompt_embeds": torch.zeros(1, 77, 16)},
            "`prompt` must be empty beside `prompt_embeds`",
        ),
        ({"prompt_embeds": "a cat"}, "`prompt_embeds` must be a tensor of numbers, got 'a cat'"),
        (
            {"prompt_embeds": torch.zeros(1, 77, 16).long()},
            "`prompt_embeds` must be a tensor of numbers, got Tensor of",
        ),
        (
            {"prompt_embeds": torch.zeros(77, 16)},
            r"`prompt_embeds` must have the shape \(1, tokens, 16\), got \(77, 16\)",
        ),
        ({"prompt_embeds": torch.zeros(2, 77, 16)}, r"must have the shape \(1, tokens, 16\), got \(2, 77, 16\)"),
        ({"prompt_embeds": torch.zeros(1, 0, 16)}, r"must have the shape \(1, tokens, 16\)"),
        ({"prompt_embeds": torch.zeros(1, 77, 24)}, r"must have the shape \(1, tokens, 16\), got \(1, 77, 24\)"),
        ({"prompt_embeds": torch.full((1, 77, 16), float("nan"))}, "`prompt_embeds` must be finite"),
        (
            {"prompt_embeds": [torch.zeros(1, 77, 16)] * 2},
            "`prompt_embeds` must have one entry for each of the 1 pict",
        ),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number of at least 1 .*, got 0"),
        ({"num_inference_steps": 1000}, "`num_inference_steps` must be under 1000, got 1000"),
        ({"inversion_strength": 1.5}, "`inversion_strength` must be a finite number above 0 and at most 1, got 1.5"),
        ({"max_iterations": 2.5}, "`max_iterations` must be a whole number"),
        ({"supervision_steps": 0}, "`supervision_steps`"),
        ({"supervision_lr": -1.0}, "`supervision_lr`"),
        ({"supervision_damping": -1.0}, "`supervision_damping`"),
        ({"supervision_reach": 0.0}, "`supervision_reach`"),
        ({"supervision_radius": -1}, "`supervision_radius`"),
        ({"mask_weight": float("nan")}, "`mask_weight`"),
        ({"feature_block": 2}, "`feature_block` must index one of the 2 up-blocks of `unet`, got 2"),
        ({"channel_reduction": "max"}, "`channel_reduction` must be one of 'mean', 'sum', got 'max'"),
        ({"source_patches": "never"}, "`source_patches`"),
        ({"optimizer_scope": "step"}, "`optimizer_scope`"),
        (
            {"dynamic_selection": "best"},
            "`dynamic_selection` must be one of 'all', 'first', 'random', None, got 'best'",
        ),
        ({"similarity_threshold": 2}, "`similarity_threshold`"),
        ({"kv_start_layer": 5}, r"`kv_start_layer` must be in 0..4 for this `unet`, got 5"),
        ({"stop_distance": -1}, "`stop_distance`"),
        ({"motion_guard": "bounce"}, "`motion_guard` must be one of 'none', 'clamp', 'project', got 'bounce'"),
        ({"identity_lora_steps": -1}, "`identity_lora_steps`"),
        ({"identity_lora_rank": 0}, "`identity_lora_rank`"),
        ({"identity_lora_lr": 0}, "`identity_lora_lr`"),
        ({"processing_resolution": 8}, "`processing_resolution` must be None, 0 or at least 64 pixels, got 8"),
        ({"output_type": "jpeg"}, "`output_type` must be one of 'pil', 'np', 'pt', 'latent', got 'jpeg'"),
        ({"cross_attention_kwargs": 1}, "`cross_attention_kwargs` must be a dict, got int"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "`callback_on_step_end_tensor_inputs` must be among"),
        ({"image": np.zeros((80, 96, 3), dtype=np.int64)}, "must be uint8 or uint16.* got int64"),
        ({"kv_start_layer": True}, "`kv_start_layer` must be a whole number"),
        ({"cross_attention_kwargs": {"scale": "x"}}, "`cross_attention_kwargs.'scale'.` must be a finite number"),
        ({"generator": 0}, "`generator` must be a torch.Generator"),
        ({"generator": [torch.Generator()] * 2}, "`generator` must have one entry for each of the 1 pictures, got 2"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(pipe, picture, monkeypatch, changes, message):
    monkeypatch.setattr(pipe.vae, "encode", lambda *args: pytest.fail("work was begun"))
    arguments = {"image": picture, "handles": HANDLES, "targets": TARGETS} | changes
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


@pytest.mark.parametrize(
    ("component", "value", "message"),
    [
        ("unet", None, "`unet` is missing"),
        ("vae", None, "`vae` is missing"),
        ("tokenizer", None, "`tokenizer` is missing"),
        ("unet", torch.nn.Linear(1, 1), "`unet` must be a UNet2DConditionModel, got Linear"),
        ("motion_predictor", torch.nn.Linear(1, 1), "`motion_predictor` must be a MotionPredictorModel or None"),
        ("scheduler", make_scheduler(thresholding=True), "thresholding"),
        ("scheduler", make_scheduler(prediction_type="sample"), "must predict epsilon or v_prediction, got 'sample'"),
    ],
)
def test_components_that_do_not_fit_are_refused_by_name(pipe, picture, component, value, message):
    setattr(pipe, component, value)
    with pytest.raises(ValueError, match=message):
        pipe(picture, HANDLES, TARGETS)


def rebuilt_unet(**changes: int) -> UNet2DConditionModel:
    config = {key: value for key, value in make_unet().config.items() if not key.startswith("_")}
    return UNet2DConditionModel(**(config | changes))


def test_an_inpainting_unet_is_refused(pipe, picture):
    pipe.unet = rebuilt_unet(in_channels=9)
    with pytest.raises(ValueError, match="`unet` has 9 input and 4 output channels"):
        pipe(picture, HANDLES, TARGETS)


def test_a_text_encoder_of_another_width_is_refused(pipe, picture):
    pipe.unet = rebuilt_unet(cross_attention_dim=24)
    with pytest.raises(ValueError, match="`text_encoder` has width 16, but `unet` attends to width 24"):
        pipe(picture, HANDLES, TARGETS)


def test_fused_projections_are_refused_with_the_remedy(pipe, picture):
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"unfuse_qkv_projections\(\)"):
        pipe(picture, HANDLES, TARGETS)


def test_a_fused_lora_is_refused_with_the_remedy(pipe, picture):
    add_user_lora(pipe.unet)
    pipe.unet.fuse_lora()
    with pytest.raises(ValueError, match=r"unfuse_lora\(\)"):
        pipe(picture, HANDLES, TARGETS)


@pytest.mark.parametrize("compiled", ["by the function", "in place"])
def test_a_unet_that_is_compiled_as_a_whole_is_refused_with_the_remedy(pipe, picture, compiled):
    if compiled == "in place":
        pipe.unet.compile()
    else:
        pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(ValueError, match=r"compile_repeated_blocks\(\)"):
        pipe(picture, HANDLES, TARGETS)


def test_inference_mode_is_refused(pipe, picture):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        pipe(picture, HANDLES, TARGETS)
