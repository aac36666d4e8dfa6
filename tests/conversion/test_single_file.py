"""Stable Diffusion in one file: every model must compute what it did before its weights were renamed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from conversion import single_file
from conversion.single_file import load_single_file, text_config, unet_config, vae_config
from support import ldm_layout

Weights = dict[str, torch.Tensor]

SECOND = {"attention_head_dim": (1, 1, 1), "use_linear_projection": True, "block_out_channels": (64, 64, 64)}


@pytest.fixture(scope="module")
def models() -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Tiny models in the structure of 1.x."""
    return ldm_layout.tiny_unet(), ldm_layout.tiny_vae(), ldm_layout.tiny_text_encoder()


@pytest.fixture(scope="module")
def models_2() -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Tiny models in the structure of 2.x."""
    text_encoder = ldm_layout.tiny_text_encoder(hidden_act="gelu")
    return ldm_layout.tiny_unet(**SECOND), ldm_layout.tiny_vae(), text_encoder


@pytest.fixture(scope="module")
def weights(models) -> Weights:
    """A whole 1.x; tests that change it make a dictionary of their own."""
    return ldm_layout.stable_diffusion_1(*models)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    """It in safetensors, for tests that read it alone."""
    return saved(tmp_path_factory.mktemp("file"), weights)


def saved(folder: Path, weights: Weights, name: str = "model.safetensors", **metadata: str) -> Path:
    weights = {key: value.clone().contiguous() for key, value in weights.items()}
    if name.endswith(".safetensors"):
        save_file(weights, folder / name, metadata)
    else:
        torch.save({"epoch": 1, "global_step": 875000, "state_dict": weights}, folder / name)
    return folder / name


@torch.no_grad()
def outputs(unet, vae, text_encoder) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    latents, prompt = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, 64, generator=generator)
    picture = torch.rand(1, 3, 64, 64, generator=generator)
    ids = torch.randint(0, 514, (1, 77), generator=generator)
    return (
        unet(latents, 301, prompt).sample,
        vae.encode(picture).latent_dist.parameters,
        vae.decode(latents).sample,
        text_encoder(ids).last_hidden_state,
    )


expected_outputs = functools.cache(outputs)  # of the models that several tests share


def assert_computes_the_same(loaded, *models) -> None:
    found = outputs(loaded.unet, loaded.vae, loaded.text_encoder)
    for each, expected in zip(found, expected_outputs(*models), strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_1_x_computes_the_same(tmp_path, words, models, weights, name):
    loaded = load_single_file(saved(tmp_path, weights, name), tokenizer=words)
    assert_computes_the_same(loaded, *models)
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert (loaded.unet.config.sample_size, loaded.vae.config.scaling_factor) == (64, 0.18215)
    assert not any(model.training for model in (loaded.unet, loaded.vae, loaded.text_encoder))
    assert loaded.tokenizer("a cat").input_ids == CLIPTokenizer.from_pretrained(words / "tokenizer")("a cat").input_ids


@pytest.mark.parametrize(("prediction", "size"), [("epsilon", 64), ("v_prediction", 96)])
def test_2_x_computes_the_same(tmp_path, words, models_2, prediction, size):
    path = saved(tmp_path, ldm_layout.stable_diffusion_2(*models_2))
    loaded = load_single_file(path, tokenizer=words, prediction_type=prediction)
    assert_computes_the_same(loaded, *models_2)
    assert loaded.scheduler.config.prediction_type == prediction
    assert loaded.unet.config.sample_size == size


def test_which_kind_2_x_is_has_to_be_said_by_the_file_or_the_user(tmp_path, words, models_2):
    weights = ldm_layout.stable_diffusion_2(*models_2)
    with pytest.raises(
        ValueError, match=r"`prediction_type` must be 'epsilon' for Stable Diffusion 2.x of 512 .*, got None"
    ):
        load_single_file(saved(tmp_path, weights), tokenizer=words)
    told = saved(tmp_path, weights, **{"modelspec.prediction_type": "v"})
    assert load_single_file(told, tokenizer=words).scheduler.config.prediction_type == "v_prediction"
    marked = saved(tmp_path, weights | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})
    scheduler = load_single_file(marked, tokenizer=words).scheduler
    assert (scheduler.config.prediction_type, scheduler.config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert load_single_file(marked, tokenizer=words, prediction_type="epsilon").unet.config.sample_size == 64
    with pytest.raises(ValueError, match="`prediction_type` must be one of 'epsilon', 'v_prediction', got 'sample'"):
        load_single_file(marked, tokenizer=words, prediction_type="sample")


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float16, None, torch.float16),
        (torch.float32, None, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, None, torch.float32),
    ],
)
def test_the_precision_is_the_files_unless_another_is_asked_for(tmp_path, words, weights, stored, asked, expected):
    weights = {name: value.to(stored) if value.is_floating_point() else value for name, value in weights.items()}
    loaded = load_single_file(saved(tmp_path, weights), tokenizer=words, dtype=asked)
    assert {model.dtype for model in (loaded.unet, loaded.vae, loaded.text_encoder)} == {expected}
    assert {p.dtype for p in loaded.unet.parameters()} == {expected}


def test_weights_that_overflow_the_precision_asked_for_are_named(tmp_path, words, weights):
    path = saved(tmp_path, weights | {"model.diffusion_model.out.2.bias": torch.full((4,), 1e5)})
    assert load_single_file(path, tokenizer=words).unet.dtype == torch.float32
    with pytest.raises(ValueError, match=r"the weight `conv_out.bias` is not finite in float16"):
        load_single_file(path, tokenizer=words, dtype=torch.float16)


def test_averaged_weights_are_taken_on_request(tmp_path, words, models, weights, file):
    averaged = ldm_layout.tiny_unet()
    with torch.no_grad():
        for parameter in averaged.parameters():
            parameter.mul_(0.9)
    both = dict(weights)
    for name, value in ldm_layout.unet_weights(averaged):
        both["model_ema." + f"diffusion_model.{name}".replace(".", "")] = value
    path = saved(tmp_path, both)
    assert_computes_the_same(load_single_file(path, tokenizer=words), *models)
    assert_computes_the_same(load_single_file(path, tokenizer=words, ema=True), averaged, *models[1:])
    with pytest.raises(ValueError, match=r"`ema` must be left out for .*it has no averages for"):
        load_single_file(file, tokenizer=words, ema=True)


def test_text_encoders_without_the_level_text_model_are_read(tmp_path, words, models, weights):
    weights = {name.replace("transformer.text_model.", "transformer."): value for name, value in weights.items()}
    assert_computes_the_same(load_single_file(saved(tmp_path, weights), tokenizer=words), *models)


def test_an_autoencoder_under_the_other_prefix_is_read(tmp_path, words, models, weights):
    weights = {name.replace("first_stage_model.", "vae."): value for name, value in weights.items()}
    assert_computes_the_same(load_single_file(saved(tmp_path, weights), tokenizer=words), *models)


def on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A model of full width without memory for its weights."""
    with torch.device("meta"):
        return build()


def test_the_published_configuration_of_1_5_is_told_by_its_shapes():
    unet = on_meta(
        lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    )  # diffusers' defaults are 1.x's blocks and channels
    weights = {f"model.diffusion_model.{name}": value for name, value in ldm_layout.unet_weights(unet)}
    assert unet_config(weights, sample_size=64) == {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "use_linear_projection": False,
        "upcast_attention": False,
    }
    assert sum(value.numel() for value in weights.values()) == 859_520_964


def test_the_published_configuration_of_2_1_is_told_by_its_shapes():
    config = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "cross_attention_dim": 1024}
    unet = on_meta(lambda: UNet2DConditionModel(sample_size=96, **config))
    weights = {f"model.diffusion_model.{name}": value for name, value in ldm_layout.unet_weights(unet)}
    told = unet_config(weights, sample_size=96)
    assert told["attention_head_dim"] == [5, 10, 20, 20]
    assert (told["cross_attention_dim"], told["use_linear_projection"]) == (1024, True)


def test_the_published_configurations_of_autoencoder_and_text_encoders_are_told_by_their_shapes():
    vae = on_meta(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
    )
    told = vae_config({f"first_stage_model.{name}": value for name, value in ldm_layout.vae_weights(vae)})
    assert told["block_out_channels"] == [128, 256, 512, 512]
    assert (told["layers_per_block"], told["latent_channels"], told["in_channels"]) == (2, 4, 3)

    clip = on_meta(
        lambda: CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    )
    weights = {f"cond_stage_model.transformer.{name}": value for name, value in ldm_layout.clip_weights(clip)}
    told = text_config(weights, generation=1)
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    assert [told[name] for name in shape] == [49408, 768, 3072, 12, 12]
    assert [told["bos_token_id"], told["eos_token_id"], told["pad_token_id"]] == [49406, 49407, 49407]

    config = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
    clip = on_meta(lambda: CLIPTextModel(CLIPTextConfig(**config)))
    weights = {f"cond_stage_model.model.{name}": value for name, value in ldm_layout.open_clip_weights(clip)}
    told = text_config(weights, generation=2)
    assert [told[name] for name in shape] == [49408, 1024, 4096, 23, 16]


# The tokenizer.


def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer as the clients of the Hub do where there is none, and record what was asked for."""
    asked = []
    from_pretrained = CLIPTokenizer.from_pretrained

    def answer(name: str, **options: str) -> CLIPTokenizer:
        asked.append(name)
        if name == single_file.TOKENIZER_ON_HUB:
            return CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
        return from_pretrained(name, **options)

    def download(name: str, file: str) -> None:
        asked.append(f"{name}/{file}")
        raise OSError("We couldn't connect to the Hub.\nCheck your connection.")

    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", answer)
    monkeypatch.setattr(single_file, "hf_hub_download", download)
    return asked


def test_without_a_tokenizer_and_a_hub_the_remedy_is_said_before_the_models_are_built(file, monkeypatch):
    asked = no_hub(monkeypatch)
    monkeypatch.setattr(single_file, "_load_unet", lambda *_: pytest.fail("built the UNet first"))
    with pytest.raises(
        ValueError,
        match=r"`tokenizer` must be the folder .*got None: a single file has no vocabulary.*couldn't connect",
    ):
        load_single_file(file)
    assert asked == ["openai/clip-vit-large-patch14/vocab.json"]


def test_without_a_tokenizer_clips_is_taken_from_the_hub(tmp_path, file, models_2, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda name, **o: asked.append((name, o)) or tokenizer)
    monkeypatch.setattr(single_file, "hf_hub_download", lambda *file: None)
    load_single_file(file)
    load_single_file(saved(tmp_path, ldm_layout.stable_diffusion_2(*models_2)), prediction_type="epsilon")
    hub = "openai/clip-vit-large-patch14"
    assert asked == [(hub, {}), (hub, {"pad_token": "!"})]  # 2.x fills prompts up with token 0


@pytest.mark.parametrize("folder", [".", "tokenizer"])
def test_a_folder_of_a_tokenizer_or_of_a_pipeline_is_accepted(file, words, folder, monkeypatch):
    asked = no_hub(monkeypatch)
    assert load_single_file(file, tokenizer=words / folder).tokenizer.model_max_length == 77
    assert asked == [str(words / "tokenizer")]


def test_a_tokenizer_that_is_none_or_another_models_is_refused(tmp_path, models, file, words):
    with pytest.raises(ValueError, match="`tokenizer` must be the folder of a CLIP tokenizer, got 'nowhere'"):
        load_single_file(file, tokenizer="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`tokenizer` must be of 514 tokens, .*, got one of 2"):
        load_single_file(file, tokenizer=tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"`tokenizer` must be the folder .*, got '\S*empty': a single file"):
        load_single_file(file, tokenizer=tmp_path / "empty")
    small = ldm_layout.tiny_text_encoder(vocab_size=100, bos_token_id=98, eos_token_id=99, pad_token_id=99)
    path = saved(tmp_path, ldm_layout.stable_diffusion_1(*models[:2], small))
    with pytest.raises(ValueError, match=r"`tokenizer` must be of 100 tokens, .*, got one of 514"):
        load_single_file(path, tokenizer=words)


# What is refused.


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("conditioner.embedders.0.transformer.text_model.x", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.x", "Flux"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA, not a model: see `convert_identity_lora`"),
        ("down_blocks.0.attn1.processor.to_q_lora.down.weight", "a LoRA, not a model: see `convert_identity_lora`"),
        ("down_blocks.0.resnets.0.conv1.weight", "a part of a diffusers model"),
        ("model.diffusion_model.label_emb.0.0.weight", "a UNet that wants more conditions than a prompt"),
        ("string_to_param.x", "a textual inversion"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_other_models_are_refused_by_name(tmp_path, weights, extra, message, alone):
    beside = {} if alone else dict.fromkeys(weights, torch.ones(2))
    with pytest.raises(ValueError, match=rf"model.safetensors` must be Stable Diffusion 1.x or 2.x, got {message}"):
        load_single_file(saved(tmp_path, {**beside, extra: torch.ones(2)}))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (9, "an inpainting UNet"),
        (8, "an InstructPix2Pix UNet"),
        (7, "for upscaling"),
        (5, "for depth maps"),
        (6, "kind"),
    ],
)
def test_unets_that_are_given_more_than_latents_are_refused(tmp_path, models, channels, message):
    weights = ldm_layout.stable_diffusion_1(ldm_layout.tiny_unet(in_channels=channels), *models[1:])
    with pytest.raises(ValueError, match=rf"must have a UNet of 4 input channels, .*, got .*{message} of {channels}"):
        load_single_file(saved(tmp_path, weights))


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("model.diffusion_model.", "got no UNet under"),
        ("first_stage_model.", r"got no autoencoder \(VAE\) under"),
        ("cond_stage_model.", "got no text encoder under"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, weights, stem, message):
    weights = {name: value for name, value in weights.items() if not name.startswith(stem)}
    with pytest.raises(ValueError, match=message):
        load_single_file(saved(tmp_path, weights))


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{UNET}input_blocks.4.1.proj_in.weight"), r"UNet .*attentions.0.proj_in.weight is missing"),
        (lambda w: w.pop(f"{UNET}out.2.weight"), r"lacks weights .*out.2.weight"),
        (lambda w: w.update({f"{UNET}time_embed.0.weight": torch.ones(3, 3)}), r"is \[3, 3\], not \[128, 32\]"),
        (lambda w: w.update({f"{UNET}motion.weight": torch.ones(3)}), r"1 weights of the UNet too many, .*motion"),
        (lambda w: w.pop("first_stage_model.decoder.up.1.block.0.norm1.bias"), r"autoencoder .*norm1.bias is missing"),
        (lambda w: w.pop("first_stage_model.encoder.conv_in.weight"), r"lacks weights .*encoder.conv_in.weight"),
        (
            lambda w: w.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
            "text encoder .*final_layer_norm.bias is missing",
        ),
        (
            lambda w: w.update({"cond_stage_model.transformer.text_model.extra": torch.ones(3)}),
            r"text encoder .*extra is \[3\], of which there is none",
        ),
        (lambda w: w[f"{UNET}out.0.bias"].fill_(torch.nan), r"`conv_norm_out.bias` is not finite in float32"),
    ],
)
def test_weights_that_are_missing_too_many_or_other_are_named(tmp_path, words, weights, change, message):
    weights = dict(weights)
    weights[f"{UNET}out.0.bias"] = weights[f"{UNET}out.0.bias"].clone()
    change(weights)
    with pytest.raises(ValueError, match=rf"model.safetensors`.*{message}"):
        load_single_file(saved(tmp_path, weights), tokenizer=words)
