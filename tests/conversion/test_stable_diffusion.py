"""Pipelines put together from a base and a motion predictor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

import conversion.stable_diffusion
from conversion.stable_diffusion import check_signed_in, convert_pipeline, ddim_scheduler, push_to_hub
from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.ddim_inversion import ddim_denoise, ddim_invert, make_ddim_schedulers
from support import ldm_layout
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet, make_vae

EDIT = {
    "handles": [(40, 40)],
    "targets": [(50, 40)],
    "num_inference_steps": 2,
    "max_iterations": 1,
    "supervision_steps": 1,
    "identity_lora_steps": 0,
}


@pytest.fixture(scope="session")
def stable_diffusion(text_encoder, tokenizer) -> StableDiffusionPipeline:
    """Tiny, with the scheduler that Stable Diffusion's repositories have."""
    scheduler = PNDMScheduler.from_config(make_scheduler().config, skip_prk_steps=True)
    return StableDiffusionPipeline(
        make_vae(), text_encoder, tokenizer, make_unet(), scheduler, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def saved_base(stable_diffusion: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("stable-diffusion") / "base"
    stable_diffusion.save_pretrained(folder)
    return folder


@pytest.fixture
def base(saved_base: Path, tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    return shutil.copytree(saved_base, tmp_path / "base")


def load(out: Path, dtype: torch.dtype = torch.float32) -> DynaDragPipeline:
    pipe = DynaDragPipeline.from_pretrained(out, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(pipe: DynaDragPipeline, base: object, dtype: torch.dtype = torch.float32) -> None:
    for part in ("unet", "vae", "text_encoder"):
        found, expected = weights(getattr(pipe, part)), weights(getattr(base, part))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.to(dtype), rtol=0, atol=0)


def as_saved(scheduler: object) -> dict[str, object]:
    """A scheduler's config as it is in its file."""
    return json.loads(scheduler.to_json_string())


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Bases in diffusers' layout.


def test_a_folder_and_a_predictor_make_a_pipeline_that_edits(base, predictor, tmp_path, stable_diffusion, picture):
    notes = convert_pipeline(base, tmp_path / "out", motion_predictor=predictor)
    pipe = load(tmp_path / "out")
    assert_same_weights(pipe, stable_diffusion)
    assert torch.equal(
        weights(pipe.motion_predictor)["encoder.blocks.0.conv.weight"],
        weights(make_motion_predictor())["encoder.blocks.0.conv.weight"],
    )
    result = pipe(picture, **EDIT)
    assert result.motion_source == "predicted"
    assert any("StableDiffusionPipeline of diffusers" in note for note in notes)
    assert any("as the motion predictor says" in note for note in notes)


def test_the_edit_is_that_of_the_components_taken_by_hand(base, tmp_path, stable_diffusion, picture):
    convert_pipeline(base, tmp_path / "out")
    by_hand = DynaDragPipeline(**stable_diffusion.components)
    by_hand.set_progress_bar_config(disable=True)
    expected = by_hand(picture, output_type="pt", **EDIT).images
    result = load(tmp_path / "out")(picture, output_type="pt", **EDIT)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=0)
    assert result.motion_source == "straight"


def test_a_predictor_may_be_the_one_in_a_pipelines_folder(base, predictor, tmp_path):
    convert_pipeline(base, tmp_path / "first", motion_predictor=predictor)
    convert_pipeline(base, tmp_path / "second", motion_predictor=tmp_path / "first")
    assert load(tmp_path / "second").motion_predictor is not None


def test_a_base_with_a_predictor_keeps_it_unless_another_is_given(base, predictor, tmp_path):
    convert_pipeline(base, tmp_path / "first", motion_predictor=predictor)
    convert_pipeline(tmp_path / "first", tmp_path / "second")
    kept = weights(load(tmp_path / "second").motion_predictor)
    assert all(torch.equal(value, kept[name]) for name, value in weights(make_motion_predictor()).items())
    other = make_motion_predictor(seed=5)
    other.save_pretrained(tmp_path / "other")
    convert_pipeline(tmp_path / "first", tmp_path / "third", motion_predictor=tmp_path / "other")
    kept = weights(load(tmp_path / "third").motion_predictor)
    assert all(torch.equal(value, kept[name]) for name, value in weights(other).items())


def test_weights_in_shards_are_read(stable_diffusion, tmp_path):
    stable_diffusion.save_pretrained(tmp_path / "base", max_shard_size="50KB")
    assert (tmp_path / "base/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    convert_pipeline(tmp_path / "base", tmp_path / "out")
    assert_same_weights(load(tmp_path / "out"), stable_diffusion)


def half(stable_diffusion: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A copy in half precision: `.half()` would change the one that all tests share."""
    text_encoder = type(stable_diffusion.text_encoder)(stable_diffusion.text_encoder.config)
    text_encoder.load_state_dict(stable_diffusion.text_encoder.state_dict())
    models = {"unet": make_unet().half(), "vae": make_vae().half(), "text_encoder": text_encoder.half().eval()}
    return StableDiffusionPipeline(**(stable_diffusion.components | models), requires_safety_checker=False)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_variant_is_read_and_saved_without_its_name(stable_diffusion, tmp_path, dtype):
    half(stable_diffusion).save_pretrained(tmp_path / "base", variant="fp16")
    notes = convert_pipeline(tmp_path / "base", tmp_path / "out", variant="fp16", dtype=dtype)
    stored = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype or torch.float16}
    assert_same_weights(load(tmp_path / "out"), half(stable_diffusion))
    assert any(f"saved in {'float32' if dtype else 'float16'}" in note for note in notes)


def test_a_variant_that_is_not_there_is_named(base, tmp_path):
    with pytest.raises((OSError, ValueError), match="fp16"):
        convert_pipeline(base, tmp_path / "out", variant="fp16")


def test_half_precision_on_request(base, tmp_path, stable_diffusion):
    convert_pipeline(base, tmp_path / "out", dtype=torch.float16)
    sizes = [path.stat().st_size for path in (base, tmp_path / "out") for path in path.rglob("unet/*.safetensors")]
    assert sizes[1] < 0.6 * sizes[0]
    assert_same_weights(load(tmp_path / "out", dtype=torch.float16), stable_diffusion, torch.float16)


def test_overflow_of_half_precision_is_named(base, tmp_path):
    file = base / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_out.bias": torch.full((4,), 1e5)}, file)
    with pytest.raises(ValueError, match=r"base/unet`: the weight `conv_out.bias` is not finite in float16"):
        convert_pipeline(base, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


def test_the_safety_checker_is_neither_read_nor_copied(base, tmp_path):
    index = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    edit_json(base / "model_index.json", **index, feature_extractor=["transformers", "CLIPImageProcessor"])
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    convert_pipeline(base, tmp_path / "out")
    assert not (tmp_path / "out" / "safety_checker").exists()
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert load(tmp_path / "out").safety_checker is None


def test_a_tiny_autoencoder_is_kept(base, tmp_path):
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    shutil.rmtree(base / "vae")
    tiny.save_pretrained(base / "vae")
    edit_json(base / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    convert_pipeline(base, tmp_path / "out")
    assert isinstance(load(tmp_path / "out").vae, AutoencoderTiny)


def test_pickles_in_a_folder_run_no_code(base, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it-ran",)

    torch.save(load_file(base / "unet/diffusion_pytorch_model.safetensors"), base / "unet/diffusion_pytorch_model.bin")
    (base / "unet/diffusion_pytorch_model.safetensors").unlink()
    convert_pipeline(base, tmp_path / "out")  # tensors alone are read
    torch.save({"conv_in.weight": RunsCode()}, base / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"base/unet` can't be loaded as a UNet2DConditionModel"):
        convert_pipeline(base, tmp_path / "other")
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "other").exists()


def test_the_card_names_the_repository_and_the_licence_of_the_base(base, tmp_path):
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\nbase_model: some/base\n---\n# Base\n")
    convert_pipeline(base, tmp_path / "out", repository="me/drag")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: creativeml-openrail-m" in card
    assert "base_model: some/base" in card
    assert 'from_pretrained("me/drag")' in card
    convert_pipeline(base, tmp_path / "other")
    assert 'from_pretrained("other")' in (tmp_path / "other" / "README.md").read_text()


# Single files.


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = ldm_layout.tiny_unet(), ldm_layout.tiny_vae(), ldm_layout.tiny_text_encoder()
    contents = {name: value.clone().contiguous() for name, value in ldm_layout.stable_diffusion_1(*models).items()}
    path: Path = tmp_path_factory.mktemp("single-file") / "model.safetensors"
    save_file(contents, path)
    return path


def test_a_single_file_makes_a_pipeline_that_edits(tmp_path, single_file, words, predictor, picture):
    notes = convert_pipeline(single_file, tmp_path / "out", motion_predictor=predictor, tokenizer=words)
    pipe = load(tmp_path / "out")
    expected = dict(ldm_layout.tiny_unet().state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in weights(pipe.unet).items())
    result = pipe(picture, **EDIT, processing_resolution=64)
    assert result.images[0].size == (96, 80)
    assert any("Stable Diffusion 1.x of 512 pixels" in note for note in notes)


def test_a_single_file_as_half_precision(tmp_path, single_file, words):
    convert_pipeline(single_file, tmp_path / "out", tokenizer=words, dtype=torch.float16)
    stored = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def test_options_of_one_kind_of_base_are_refused_with_the_other(base, tmp_path, single_file, words):
    with pytest.raises(ValueError, match=r"`variant` must be left out where `base` is one file, got 'fp16'"):
        convert_pipeline(single_file, tmp_path / "out", variant="fp16")
    for name, value in {"tokenizer": words, "prediction_type": "epsilon", "ema": True}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be left out unless `base` is one file, got "):
            convert_pipeline(base, tmp_path / "out", **{name: value})


# Schedulers.


def test_stable_diffusions_own_schedule_is_kept(base, tmp_path):
    notes = convert_pipeline(base, tmp_path / "out")
    scheduler = load(tmp_path / "out").scheduler
    assert isinstance(scheduler, DDIMScheduler)
    for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset", "num_train_timesteps"):
        assert scheduler.config[name] == make_scheduler().config[name]
    assert any("PNDMScheduler is saved as a DDIMScheduler" in note for note in notes)
    assert not any("could not be inverted" in note for note in notes)


def test_nothing_is_said_of_a_scheduler_that_is_right():
    scheduler, notes = ddim_scheduler(as_saved(make_scheduler()))
    assert as_saved(scheduler) == as_saved(make_scheduler())
    assert notes == []


def test_settings_that_can_not_be_inverted_are_changed_and_named():
    config = as_saved(EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="linspace"))
    scheduler, notes = ddim_scheduler({**config, "clip_sample": True, "beta_end": 0.02})
    assert scheduler.config.beta_end == 0.02
    assert (scheduler.config.clip_sample, scheduler.config.timestep_spacing) == (False, "leading")
    (changes,) = [note for note in notes if "settings were changed" in note]
    assert "`clip_sample` False for True" in changes
    assert "`timestep_spacing` leading for linspace" in changes
    assert "set_alpha_to_one" not in changes


def test_v_prediction_with_zero_terminal_snr_is_kept_and_said():
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler, notes = ddim_scheduler(as_saved(make_scheduler(**config)))
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    assert any("predicts v" in note for note in notes)
    assert any("zero terminal SNR" in note for note in notes)


def test_v_prediction_with_zero_terminal_snr_is_inverted_better_the_more_steps():
    """That it is kept, because edits can follow it: a perfect model of Gaussian data, whose error must halve."""
    config = ddim_scheduler(make_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).config)[
        0
    ].config
    start = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (50, 100, 200):
        sampler, inverse = make_ddim_schedulers(config, steps)
        assert sampler.alphas_cumprod[-1] == 0

        def velocity(x, t, sampler=sampler):
            alpha, variance = sampler.alphas_cumprod[t].double(), 0.25
            total = alpha * variance + 1 - alpha
            noise, clean = (1 - alpha).sqrt() * x / total, alpha.sqrt() * variance * x / total
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

        noisy = ddim_invert(velocity, inverse, start, inverse.timesteps)
        errors.append((ddim_denoise(velocity, sampler, noisy, sampler.timesteps) - start).norm().item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            as_saved(FlowMatchEulerDiscreteScheduler()),
            "must have a noise schedule of betas, got FlowMatchEulerDiscreteScheduler without",
        ),
        (
            as_saved(make_scheduler(prediction_type="sample")),
            "must predict 'epsilon' or 'v_prediction', got 'sample'",
        ),
        (as_saved(make_scheduler(thresholding=True)), "must be without `thresholding`"),
        (
            make_scheduler(rescale_betas_zero_snr=True).config,
            "must predict 'v_prediction' with `rescale_betas_zero_snr`, got 'epsilon'",
        ),
    ],
)
def test_schedules_that_ddim_can_not_follow_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ddim_scheduler(config)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "a StableDiffusionXLPipeline",
        ),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, "a FluxPipeline"),
        ({"_class_name": "StableDiffusion3Pipeline", "unet": None}, "a StableDiffusion3Pipeline whose `unet` is None"),
        (
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "a StableDiffusionPipeline whose `text_encoder` is T5EncoderModel, not CLIPText",
        ),
        (
            {"vae": ["diffusers", "AutoencoderKLQwenImage"]},
            "a StableDiffusionPipeline whose `vae` is AutoencoderKLQwenImage",
        ),
        ({"_class_name": ["pipeline", "Mine"], "tokenizer": [None, None]}, "a Mine whose `tokenizer` is None"),
    ],
)
def test_other_pipelines_are_refused_before_weights_are_read(base, tmp_path, changes, message):
    edit_json(base / "model_index.json", **changes)
    spoil_weights(base)
    with pytest.raises(ValueError, match=f"`base` must be Stable Diffusion 1.x or 2.x, got '.*base', {message}"):
        convert_pipeline(base, tmp_path / "out")


@pytest.mark.parametrize(("channels", "message"), [(9, "an inpainting UNet"), (7, "a UNet for upscaling")])
def test_unets_that_are_given_more_than_latents_are_refused_before_weights_are_read(base, tmp_path, channels, message):
    edit_json(base / "unet" / "config.json", in_channels=channels)
    (base / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    with pytest.raises(
        ValueError, match=rf"base` must have a UNet of 4 input channels, .*got {message} of {channels}"
    ):
        convert_pipeline(base, tmp_path / "out")


def test_a_base_of_more_latent_channels_is_accepted_with_the_unet_for_them(base, tmp_path):
    for name, model, changes in (
        ("unet", make_unet(), {"in_channels": 8, "out_channels": 8}),
        ("vae", make_vae(), {"latent_channels": 8}),
    ):
        settings = {key: value for key, value in model.config.items() if not key.startswith("_")}
        type(model)(**settings | changes).save_pretrained(base / name)
    convert_pipeline(base, tmp_path / "out")
    assert load(tmp_path / "out").unet.config.in_channels == 8


def spoil_weights(base: Path) -> None:
    """Whoever reads them fails."""
    for file in base.rglob("*.safetensors"):
        file.write_bytes(b"not read")


def test_a_scheduler_that_can_not_be_followed_is_refused_before_weights_are_read(base, tmp_path):
    edit_json(base / "scheduler" / "scheduler_config.json", prediction_type="sample")
    spoil_weights(base)
    with pytest.raises(ValueError, match="must predict 'epsilon' or 'v_prediction', got 'sample'"):
        convert_pipeline(base, tmp_path / "out")


def test_a_folder_that_is_there_is_refused_before_weights_are_read(base, tmp_path):
    spoil_weights(base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unet").mkdir()
    with pytest.raises(ValueError, match="already there"):
        convert_pipeline(base, tmp_path / "out")


def test_components_that_do_not_fit_are_refused(base, tmp_path):
    edit_json(base / "unet" / "config.json", class_embed_type="projection", projection_class_embeddings_input_dim=8)
    with pytest.raises(ValueError, match="lacks 4 weights, such as class_embedding"):
        convert_pipeline(base, tmp_path / "out")


def test_weights_that_are_missing_are_named_and_not_made_up(base, tmp_path):
    file = base / "unet/diffusion_pytorch_model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not name.startswith("conv_out.")}
    save_file(kept, file)
    with pytest.raises(ValueError, match=r"base/unet` lacks 2 weights, such as conv_out.bias, conv_out.weight"):
        convert_pipeline(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_text_encoder_with_gaps_is_refused(base, tmp_path):
    file = base / "text_encoder/model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not name.endswith("final_layer_norm.weight")}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"base/text_encoder` lacks 1 weights, such as \S*final_layer_norm.weight"):
        convert_pipeline(base, tmp_path / "out")


def test_a_tokenizer_without_a_vocabulary_is_refused(base, tmp_path):
    shutil.rmtree(base / "tokenizer")
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        convert_pipeline(base, tmp_path / "out")


@pytest.mark.parametrize("content", [b"cut short", None])
def test_damaged_or_missing_weights_of_a_folder_are_named(base, tmp_path, content):
    file = base / "unet/diffusion_pytorch_model.safetensors"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"base/unet` can't be loaded as a UNet2DConditionModel"):
        convert_pipeline(base, tmp_path / "out")


def test_weights_of_another_shape_are_named(base, tmp_path):
    edit_json(base / "vae" / "config.json", block_out_channels=[8, 8, 16])
    with pytest.raises(ValueError, match=r"base/vae` can't be loaded as a AutoencoderKL: .*shape"):
        convert_pipeline(base, tmp_path / "out")


def test_bases_that_are_not_there_or_no_models_are_named(tmp_path):
    for base in (tmp_path / "nothing.safetensors", "./nothing/", "~/no/thing", "nothing.ckpt"):
        with pytest.raises(
            FileNotFoundError, match=r"`base` must be a file, .*, got '.*thing\S*', which is not there"
        ):
            convert_pipeline(base, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"must be a folder in diffusers' layout, .*empty', a folder without model_index.json"
    ):
        convert_pipeline(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be a path or the id of a repository on the Hub, got .*: download it"):
        convert_pipeline("https://example.org/model.safetensors", tmp_path / "out")


@pytest.mark.parametrize("source", ["./nowhere/at/all", "simvp.pth"])
def test_a_motion_predictor_that_can_only_be_a_path_is_not_looked_for_on_the_hub(base, tmp_path, source):
    with pytest.raises(
        ValueError,
        match=r"`motion_predictor` must be the folder .*, got '.*there is none.*dynadrag convert motion-predictor",
    ):
        convert_pipeline(base, tmp_path / "out", motion_predictor=source)


def test_a_motion_predictor_that_is_none_is_named_before_the_base_is_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.stable_diffusion, "_of_diffusers", lambda *_: pytest.fail("read the base first"))
    with pytest.raises(ValueError, match=r"base` can't be loaded as a MotionPredictorModel"):
        convert_pipeline(base, tmp_path / "out", motion_predictor=base)


def test_an_older_folder_is_kept_without_force(base, tmp_path):
    convert_pipeline(base, tmp_path / "out")
    before = (tmp_path / "out" / "model_index.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="already there"):
        convert_pipeline(base, tmp_path / "out", dtype=torch.float16)
    assert (tmp_path / "out" / "model_index.json").stat().st_mtime_ns == before
    convert_pipeline(base, tmp_path / "out", dtype=torch.float16, force=True)
    stored = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_while_saving_leaves_nothing(base, tmp_path, monkeypatch, error):
    def fail(self, folder):
        Path(folder, "unet").mkdir()
        raise error

    monkeypatch.setattr(DynaDragPipeline, "save_pretrained", fail)
    with pytest.raises(error):
        convert_pipeline(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_precision_that_can_not_be_edited_in_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"`dtype` must be one of torch\.float32, .*, got torch\.float64"):
        convert_pipeline(base, tmp_path / "out", dtype=torch.float64)


# The Hub.


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    asked = []

    def answer(base, *_):
        asked.append(base)
        raise ValueError("asked")

    monkeypatch.setattr(conversion.stable_diffusion, "_of_diffusers", answer)
    monkeypatch.chdir(tmp_path)
    for base in ("owner/name-1.5", "name"):
        with pytest.raises(ValueError, match="asked"):
            convert_pipeline(base, tmp_path / "out")
    assert asked == ["owner/name-1.5", "name"]
    (tmp_path / "owner" / "name-1.5").mkdir(parents=True)
    with pytest.raises(ValueError, match="asked"):
        convert_pipeline("owner/name-1.5", tmp_path / "out")
    assert asked[2] == Path("owner/name-1.5")


def test_a_folder_is_uploaded_as_it_is(tmp_path, monkeypatch):
    calls = []

    class Hub:
        endpoint = "https://hub"

        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, folder_path))

    monkeypatch.setattr(conversion.stable_diffusion, "HfApi", Hub)
    assert push_to_hub(tmp_path, "me/drag", private=True) == "https://hub/me/drag"
    assert calls == [
        ("me/drag", {"repo_type": "model", "private": True, "exist_ok": True}),
        ("me/drag", tmp_path),
    ]


def test_what_the_hub_answers_is_said_with_the_remedy(tmp_path, monkeypatch):
    class Hub:
        def whoami(self):
            raise RuntimeError("Connection refused.\nby the peer")

        create_repo = whoami

    monkeypatch.setattr(conversion.stable_diffusion, "HfApi", Hub)
    with pytest.raises(OSError, match=r"The Hub: Connection refused\. Sign in by `hf auth login`"):
        check_signed_in()

    def refuse(self, *_, **__):
        raise RuntimeError("403 Forbidden")

    Hub.create_repo = refuse
    with pytest.raises(
        OSError, match=r"The Hub: 403 Forbidden\. The folder is complete; upload it by `hf upload me/drag"
    ):
        push_to_hub(tmp_path, "me/drag")
