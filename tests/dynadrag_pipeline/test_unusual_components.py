"""Components that are not a plain Stable Diffusion's: they work, or are refused by name before any work."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKL,
    ConsistencyDecoderVAE,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

from dynadrag_pipeline import DynaDragPipeline, session
from dynadrag_pipeline.identity_lora import ADAPTER_NAME, tuner_layers
from support.tiny_models import make_scheduler, make_text_encoder, make_unet, make_vae
from support.unchanged import snapshot

HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]


@pytest.fixture
def make_pipe(tokenizer) -> Callable[[], DynaDragPipeline]:
    """Pipelines of the same weights, each with components of its own."""

    def make() -> DynaDragPipeline:
        pipe = DynaDragPipeline(make_vae(), make_text_encoder(), tokenizer, make_unet(), make_scheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def edit(picture) -> Callable[..., torch.Tensor]:
    """A short edit, as a tensor."""

    def run(pipe: DynaDragPipeline, **changes: Any) -> torch.Tensor:
        options = {"num_inference_steps": 3, "max_iterations": 2, "supervision_steps": 1, "identity_lora_steps": 2}
        return pipe(picture, HANDLES, TARGETS, output_type="pt", **(options | changes)).images

    return run


@pytest.fixture
def refused(pipe, picture, monkeypatch) -> Callable[..., None]:
    """Ask the tiny pipeline for an edit, which has to be refused with a message before any model runs."""

    def ask(message: str, **options: Any) -> None:
        for model in ("unet", "text_encoder"):
            monkeypatch.setattr(getattr(pipe, model), "forward", lambda *a, **k: pytest.fail("work was begun"))
        before = snapshot(pipe)
        with pytest.raises(ValueError, match=message):
            pipe(picture, HANDLES, TARGETS, **options)
        assert snapshot(pipe) == before

    return ask


def rebuilt_unet(**changes: Any) -> UNet2DConditionModel:
    config = {key: value for key, value in make_unet().config.items() if not key.startswith("_")}
    return UNet2DConditionModel(**(config | changes))


class TestANetworkOfAnotherKind:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"time_cond_proj_dim": 8}, "`unet` must predict noise for itself.*distilled"),
            ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 16}, "projection of 'text_proj' before it"),
            ({"num_class_embeds": 4}, "`unet` wants more conditions than a prompt"),
            ({"class_embed_type": "timestep"}, "`unet` wants more conditions than a prompt"),
            ({"dual_cross_attention": True}, "`unet` wants more conditions than a prompt"),
            ({"only_cross_attention": True}, "`unet` must have self-attention, got one with `only_cross_attention`"),
            ({"only_cross_attention": [True, False]}, "`unet` must have self-attention"),
            ({"cross_attention_dim": [16, 24]}, "`text_encoder` has width 16, but `unet` attends to width"),
        ],
    )
    def test_of_a_unet_is_refused(self, pipe, refused, changes, message):
        pipe.unet = rebuilt_unet(**changes)
        refused(message)

    def test_of_an_autoencoder_that_decodes_by_chance_is_refused(self, pipe, refused):
        with torch.device("meta"):
            pipe.vae = ConsistencyDecoderVAE()
        refused("`vae` must be an AutoencoderKL or AutoencoderTiny, got ConsistencyDecoderVAE")

    @pytest.mark.parametrize("shift", [{"shift_factor": 0.1}, {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}])
    def test_of_an_autoencoder_whose_latents_are_shifted_is_refused(self, pipe, refused, shift):
        config = {key: value for key, value in make_vae().config.items() if not key.startswith("_")}
        pipe.vae = AutoencoderKL(**(config | shift))
        refused(f"`vae` must scale its latents alone, .* got one with a {next(iter(shift))}")

    @pytest.mark.parametrize(
        ("scheduler", "message"),
        [
            (make_scheduler(rescale_betas_zero_snr=True), "`scheduler` must be without `rescale_betas_zero_snr`"),
            (make_scheduler(prediction_type="sample"), "must predict epsilon or v_prediction, got 'sample'"),
            (
                DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
                "must predict epsilon or v_prediction, got 'flow_prediction'",
            ),
        ],
    )
    def test_of_a_scheduler_is_refused(self, pipe, refused, scheduler, message):
        pipe.scheduler = scheduler
        refused(message)

    def test_of_noise_schedule_that_ddim_does_not_know_is_refused(self, pipe, refused):
        pipe.scheduler = make_scheduler()
        pipe.scheduler.register_to_config(beta_schedule="laplace")
        refused("`scheduler` must have a noise schedule that DDIM can take over, got one with: laplace")

    def test_a_schedule_that_ends_in_pure_noise_works_where_v_is_predicted(self, make_pipe, edit):
        pipe = make_pipe()
        pipe.scheduler = make_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        assert edit(pipe, num_inference_steps=999, inversion_strength=0.004).isfinite().all()
        assert edit(pipe).isfinite().all()


class TestWeightsThatAreStoredInAnotherWay:
    @pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
    def test_to_be_cast_layer_by_layer_are_refused(self, pipe, refused, storage):
        pipe.unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        refused(r"`unet` must keep .* got the hook 'layerwise_casting' .*enable_model_cpu_offload\(\)")

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_or_offloaded_in_groups_are_refused(self, pipe, refused, kind):
        cpu = torch.device("cpu")
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)
        refused("`unet` must keep .* got the hook 'group_offloading'")

    def test_in_groups_are_welcome_in_the_other_models(self, make_pipe, edit):
        pipe = make_pipe()
        cpu = torch.device("cpu")
        pipe.enable_group_offload(onload_device=cpu, offload_type="leaf_level", exclude_modules="unet")
        assert torch.equal(edit(pipe), edit(make_pipe()))

    @pytest.mark.parametrize("stand_in", ["whole numbers", "8-bit floats", "a parameter of its own", "a tensor"])
    def test_to_be_quantised_are_refused(self, pipe, refused, stand_in):
        """As by bitsandbytes (whole numbers, a parameter of its own), GGUF, torchao and quanto (a tensor's class)."""
        layer = pipe.unet.mid_block.attentions[0].proj_in
        value = layer.weight.detach()

        class Quantised(torch.Tensor):
            pass

        class QuantisedParameter(torch.nn.Parameter):
            pass

        if stand_in == "a tensor":
            weight = value.as_subclass(Quantised)
            weight._is_param = True
        elif stand_in == "a parameter of its own":
            weight = QuantisedParameter(value)
        else:
            dtype = torch.int8 if stand_in == "whole numbers" else torch.float8_e4m3fn
            weight = torch.nn.Parameter(value.to(dtype), requires_grad=False)
        layer._parameters["weight"] = weight
        refused(r"`unet` must have weights in float32, .* at mid_block.attentions.0.proj_in.weight: load it without")

    @pytest.mark.parametrize("device_map", ["cpu", "balanced"])
    def test_by_a_device_map_edit_alike(self, make_pipe, edit, tmp_path, device_map):
        pipe = make_pipe()
        pipe.save_pretrained(tmp_path)
        mapped = DynaDragPipeline.from_pretrained(tmp_path, device_map=device_map)
        mapped.set_progress_bar_config(disable=True)
        assert torch.equal(edit(mapped), edit(pipe))


class TestAnImagePrompt:
    def test_is_refused_with_the_remedy(self, pipe, refused):
        projection = ImageProjection(image_embed_dim=8, cross_attention_dim=16, num_image_text_embeds=4)
        pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        refused(r"`unet` carries an IP-Adapter.*unload_ip_adapter\(\)")

    def test_is_refused_by_its_attention_too(self, pipe, refused):
        processors: dict[str, Any] = dict(pipe.unet.attn_processors)
        name = next(name for name in processors if name.endswith("attn2.processor"))
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        processors[name] = IPAdapterAttnProcessor2_0(hidden_size=width, cross_attention_dim=16)
        pipe.unet.set_attn_processor(processors)
        refused(r"`unet` carries an IP-Adapter.*unload_ip_adapter\(\)")


class TestWhatControlsAnotherPipeline:
    @pytest.fixture
    def controlled(self, make_pipe) -> StableDiffusionControlNetPipeline:
        pipe = make_pipe()
        parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_channels=3)
        return StableDiffusionControlNetPipeline(
            **parts, controlnet=controlnet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    def test_is_named_when_its_models_are_taken_over(self, controlled, caplog):
        with caplog.at_level(logging.WARNING):
            DynaDragPipeline.from_pipe(controlled)
        assert "takes nothing over of `controlnet` of the StableDiffusionControlNetPipeline" in caplog.text

    def test_is_named_when_its_folder_is_loaded(self, controlled, caplog, tmp_path):
        controlled.save_pretrained(tmp_path)
        with caplog.at_level(logging.WARNING):
            pipe = DynaDragPipeline.from_pretrained(tmp_path)
        assert "takes nothing over of `controlnet` of the StableDiffusionControlNetPipeline" in caplog.text
        assert not hasattr(pipe, "controlnet")

    def test_is_not_spoken_of_where_there_is_nothing(self, pipe, caplog, tmp_path):
        pipe.save_pretrained(tmp_path)
        with caplog.at_level(logging.WARNING):
            DynaDragPipeline.from_pipe(pipe)
            DynaDragPipeline.from_pretrained(tmp_path)
        assert "takes nothing over" not in caplog.text


class TestAFolderOfAnotherPipeline:
    """Only the index and the UNet's config are there: reading weights would be an OSError."""

    PLAIN = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }

    def write(self, folder: Path, name: str, changes: dict[str, Any], **unet: Any) -> None:
        entries = {key: value for key, value in (self.PLAIN | changes).items() if value is not None}
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name} | entries))
        (folder / "unet").mkdir()
        config = {key: value for key, value in make_unet().config.items() if not key.startswith("_")}
        (folder / "unet" / "config.json").write_text(json.dumps(config | unet))

    @pytest.mark.parametrize(
        ("name", "changes", "what"),
        [
            (
                "StableDiffusionXLPipeline",
                {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
                "with a text_encoder_2",
            ),
            (
                "StableDiffusion3Pipeline",
                {"unet": None, "transformer": ["diffusers", "SD3Transformer2DModel"]},
                "with a transformer",
            ),
            ("FluxPipeline", {"unet": None, "transformer": ["diffusers", "FluxTransformer2DModel"]}, "transformer"),
            ("AnimateDiffPipeline", {"unet": ["diffusers", "UNetMotionModel"]}, "with a UNetMotionModel"),
            ("DDPMPipeline", {"vae": None, "text_encoder": None}, "without a vae"),
        ],
    )
    def test_is_refused_by_its_index(self, tmp_path, name, changes, what):
        self.write(tmp_path, name, changes)
        with pytest.raises(ValueError, match=rf"must be a Stable Diffusion 1.x or 2.x, got .*, a {name} .*{what}"):
            DynaDragPipeline.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("name", "unet", "message"),
        [
            (
                "StableDiffusionInpaintPipeline",
                {"in_channels": 9},
                "`unet` has 9 input and 4 output channels.*inpaint",
            ),
            ("LatentConsistencyModelPipeline", {"time_cond_proj_dim": 256}, "`unet` must predict noise for itself"),
        ],
    )
    def test_is_refused_by_its_unets_config(self, tmp_path, name, unet, message):
        self.write(tmp_path, name, {}, **unet)
        with pytest.raises(ValueError, match=message):
            DynaDragPipeline.from_pretrained(tmp_path)

    def test_is_left_to_diffusers_to_complain_of_if_it_is_empty(self, tmp_path):
        with pytest.raises(OSError, match=r"model_index\.json"):
            DynaDragPipeline.from_pretrained(tmp_path)


# --- adapters of peft ---

ATTENTION, ELSEWHERE = ["to_q", "to_k", "to_out.0"], ["ff.net.2", "conv1"]
KINDS: dict[str, Callable[[list[str]], Any]] = {
    "LoRA": lambda where: LoraConfig(r=2, target_modules=where, init_lora_weights=False),
    "LoRA with dropout and patterns": lambda where: LoraConfig(
        r=2,
        target_modules=where,
        init_lora_weights=False,
        lora_dropout=0.5,
        use_rslora=True,
        rank_pattern={"to_k": 3, "conv1": 5},
        alpha_pattern={"to_q": 7, "ff.net.2": 3},
    ),
    "DoRA": lambda where: LoraConfig(r=2, target_modules=where, init_lora_weights=False, use_dora=True),
    "LoHa": lambda where: peft.LoHaConfig(r=2, target_modules=where, init_weights=False),
    "LoKr": lambda where: peft.LoKrConfig(r=2, target_modules=where, init_weights=False),
    "OFT": lambda where: peft.OFTConfig(r=0, oft_block_size=4, target_modules=where, init_weights=False),
    "BOFT": lambda where: peft.BOFTConfig(boft_block_size=4, target_modules=where, init_weights=False),
    "IA3": lambda where: peft.IA3Config(target_modules=where, feedforward_modules=[], init_ia3_weights=False),
    "AdaLoRA": lambda where: peft.AdaLoraConfig(
        init_r=2, target_modules=where, init_lora_weights=False, total_step=10
    ),
}
LORAS = [name for name in KINDS if name.startswith(("LoRA", "DoRA"))]
NOT_ON_CONVOLUTIONS = ("IA3", "AdaLoRA", "OFT")  # peft merges OFT there to something else
OTHERS = [name for name in KINDS if name not in LORAS]


def add(unet: UNet2DConditionModel, kind: str, where: list[str], name: str = "theirs") -> None:
    """An adapter that can be seen, in training mode as peft leaves it."""
    torch.manual_seed(3)
    if kind in NOT_ON_CONVOLUTIONS:
        where = [each for each in where if each != "conv1"]
    inject_adapter_in_model(KINDS[kind](where), unet, name)
    unet._hf_peft_config_loaded = True
    for parameter_name, parameter in unet.named_parameters():
        if "lora_magnitude_vector" in parameter_name or "ia3_l" in parameter_name:
            parameter.data = 0.5 + parameter.data.sigmoid()
    unet.train()


def merge(unet: UNet2DConditionModel) -> None:
    """Let the adapters become part of the weights, by their own arithmetic, and go."""
    unet.eval()
    for name, layer in tuner_layers(unet).items():
        layer.merge()
        unet.set_submodule(name, layer.get_base_layer())
    del unet.peft_config
    unet._hf_peft_config_loaded = False


class TestAdapters:
    @pytest.mark.parametrize(
        ("kind", "where", "steps"),
        [
            *((kind, ELSEWHERE, 2) for kind in KINDS),
            *((kind, ATTENTION + ELSEWHERE, 2) for kind in LORAS),
            *((kind, ATTENTION, 0) for kind in KINDS if kind != "AdaLoRA"),  # which merges a little differently
        ],
        ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
    )
    def test_edit_as_the_weights_do_that_they_can_be_merged_to(self, make_pipe, edit, kind, where, steps):
        """They are on while the identity LoRA is fitted and while it is in use; and stay what they were."""
        pipe, plain, reference = make_pipe(), make_pipe(), make_pipe()
        add(pipe.unet, kind, where)
        add(reference.unet, kind, where)
        merge(reference.unet)
        before = snapshot(pipe)
        images = edit(pipe, identity_lora_steps=steps)
        assert snapshot(pipe) == before
        torch.testing.assert_close(images, edit(reference, identity_lora_steps=steps), rtol=0, atol=2e-3)
        assert (images - edit(plain, identity_lora_steps=steps)).abs().max() > 0.02

    @pytest.mark.parametrize("kind", OTHERS)
    def test_of_other_kinds_on_the_attention_are_refused_with_the_remedy(self, pipe, refused, kind):
        add(pipe.unet, kind, ATTENTION)
        refused(
            r"`unet` must have no adapters but LoRAs on its attention, got peft\.tuners\..*`identity_lora_steps=0`"
        )

    def test_that_are_several_count_as_they_are_switched(self, make_pipe, edit):
        pipe, reference = make_pipe(), make_pipe()
        for name, kind, where in (
            ("one", "LoRA", ATTENTION),
            ("two", "DoRA", ATTENTION),
            ("three", "LoRA", ELSEWHERE),
        ):
            add(pipe.unet, kind, where, name)
        pipe.unet.set_adapters(["one", "three"], [0.5, 0.25])
        before = snapshot(pipe)
        images = edit(pipe)
        assert snapshot(pipe) == before
        for name, where, weight in (("one", ATTENTION, 0.5), ("three", ELSEWHERE, 0.25)):
            add(reference.unet, "LoRA", where, name)
            for layer in tuner_layers(reference.unet).values():
                layer.scale_layer(weight)
            merge(reference.unet)
        torch.testing.assert_close(images, edit(reference), rtol=0, atol=2e-3)

    @pytest.mark.parametrize("where", [ATTENTION, ELSEWHERE], ids="+".join)
    def test_that_are_switched_off_stay_off(self, make_pipe, edit, where):
        pipe = make_pipe()
        add(pipe.unet, "LoRA", where)
        pipe.unet.disable_adapters()
        before = snapshot(pipe)
        torch.testing.assert_close(edit(pipe), edit(make_pipe()), rtol=0, atol=1e-4)
        assert snapshot(pipe) == before

    def test_of_other_kinds_are_weighed_by_the_scale_too(self, make_pipe, edit):
        pipe = make_pipe()
        add(pipe.unet, "LoHa", ELSEWHERE)
        before = snapshot(pipe)
        off = edit(pipe, cross_attention_kwargs={"scale": 0.0})
        torch.testing.assert_close(off, edit(make_pipe()), rtol=0, atol=1e-4)
        assert snapshot(pipe) == before

    def test_that_have_no_scale_are_refused_one(self, pipe, refused):
        add(pipe.unet, "IA3", ELSEWHERE)
        refused(r"`cross_attention_kwargs\['scale'\]` must be 1 beside .*ia3", cross_attention_kwargs={"scale": 0.5})

    def test_by_the_identity_loras_name_are_refused(self, pipe, refused):
        add(pipe.unet, "LoRA", ATTENTION, ADAPTER_NAME)
        refused(f"`unet` must have no adapter called '{ADAPTER_NAME}'")


# --- a fit that is used again ---


def lora_file(folder: Path, seed: int) -> Path:
    """A LoRA as `load_lora_weights` reads it, of random values."""
    unet = make_unet()
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "ff.net.2"]), "mine")
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name="mine"))
    file = folder / str(seed)
    DynaDragPipeline.save_lora_weights(file, unet_lora_layers=weights)
    return file


def exchange_loras(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unload_lora_weights()
    pipe.load_lora_weights(lora_file(folder, 2), adapter_name="mine")


def exchange_text_encoder(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.text_encoder = make_text_encoder(seed=1)


def enable_freeu(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def predict_v(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.scheduler = make_scheduler(prediction_type="v_prediction")


def exchange_vae(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.vae = make_vae(seed=1)


def widen_posterior(pipe: DynaDragPipeline, folder: Path) -> None:
    """The second half of the encoder's channels is the posterior's spread, which its mean says nothing of."""
    pipe.vae.quant_conv.bias.data[4:] += 1


def change_one_bit(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.mid_block.resnets[0].conv1.weight.data.view(torch.int32)[3, 2, 1, 0] ^= 1


def swap_two_values(pipe: DynaDragPipeline, folder: Path) -> None:
    kernel = pipe.unet.mid_block.resnets[0].conv1.weight.data
    kernel[3, 2, 1, 0], kernel[5, 1, 2, 2] = kernel[5, 1, 2, 2].item(), kernel[3, 2, 1, 0].item()


def in_bfloat16(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.to(dtype=torch.bfloat16)


class Doubled(AttnProcessor):
    """A processor with a number of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.factor * super().__call__(attn, hidden_states, *args, **kwargs)


def other_processor(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.set_attn_processor(Doubled(2.0))


def other_number_in_the_processor(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.set_attn_processor(Doubled(3.0))


def other_heads(pipe: DynaDragPipeline, folder: Path) -> None:
    """The same weights, read by another architecture."""
    unet = rebuilt_unet(attention_head_dim=4)
    unet.load_state_dict(pipe.unet.state_dict())
    pipe.unet = unet.eval()


def hook(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda module, inputs, output: 1.1 * output)


def nothing(pipe: DynaDragPipeline, folder: Path) -> None: ...


def load_lora(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.load_lora_weights(lora_file(folder, 1), adapter_name="mine")


def load_lora_offloaded(pipe: DynaDragPipeline, folder: Path) -> None:
    load_lora(pipe, folder)
    offload(pipe, folder)


def offload(pipe: DynaDragPipeline, folder: Path) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU as the accelerator."""
    cpu_offload(pipe.unet, torch.device("cpu"), offload_buffers=True)
    pipe._offload_device = torch.device("cpu")


def change_one_offloaded_value(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.mid_block.resnets[0].conv1._hf_hook.weights_map["weight"].data[3, 2, 1, 0] += 0.1


def write_number(pipe: DynaDragPipeline, folder: Path) -> None:
    pipe.unet.set_attn_processor(Doubled(2.0))


class TestAFitThatIsUsedAgain:
    @pytest.fixture
    def fits(self, monkeypatch) -> list[object]:
        """Grows with each fit, which still happens."""
        fits: list[object] = []
        fit = session.fit_identity_lora
        monkeypatch.setattr(session, "fit_identity_lora", lambda *a, **k: fits.append(a) or fit(*a, **k))
        return fits

    @pytest.mark.parametrize(
        ("first", "then"),
        [
            (load_lora, exchange_loras),
            (nothing, load_lora),
            (nothing, exchange_text_encoder),
            (nothing, enable_freeu),
            (nothing, predict_v),
            (nothing, exchange_vae),
            (nothing, widen_posterior),
            (nothing, change_one_bit),
            (nothing, swap_two_values),
            (nothing, in_bfloat16),
            (nothing, other_processor),
            (write_number, other_number_in_the_processor),
            (nothing, other_heads),
            (nothing, hook),
            (offload, change_one_offloaded_value),
        ],
    )
    def test_was_made_for_these_models(self, make_pipe, edit, fits, tmp_path, first, then):
        """Whatever changed since the first edit: the second is that of a pipeline that has never edited."""
        pipe, fresh = make_pipe(), make_pipe()
        first(pipe, tmp_path)
        edit(pipe, prompt="a cat")
        then(pipe, tmp_path)
        first(fresh, tmp_path)
        then(fresh, tmp_path)
        assert torch.equal(edit(pipe, prompt="a cat"), edit(fresh, prompt="a cat"))
        assert len(fits) == 3

    def test_was_made_for_this_scale_of_the_users_lora(self, make_pipe, edit, fits, tmp_path):
        pipe, fresh = make_pipe(), make_pipe()
        for each in (pipe, fresh):
            load_lora(each, tmp_path)
        edit(pipe)
        half = {"cross_attention_kwargs": {"scale": 0.5}}
        assert torch.equal(edit(pipe, **half), edit(fresh, **half))
        assert len(fits) == 3

    @pytest.mark.parametrize("first", [nothing, load_lora, enable_freeu, in_bfloat16, write_number, offload, hook])
    def test_is_not_made_again_where_nothing_changed(self, make_pipe, edit, fits, tmp_path, first):
        pipe = make_pipe()
        first(pipe, tmp_path)
        assert torch.equal(edit(pipe), edit(pipe))
        assert len(fits) == 1

    def test_is_found_again_where_a_change_was_taken_back(self, make_pipe, edit, fits, tmp_path):
        pipe = make_pipe()
        before = edit(pipe)
        load_lora(pipe, tmp_path)
        edit(pipe)
        pipe.unload_lora_weights()
        assert torch.equal(edit(pipe), before)
        assert len(fits) == 2


# --- what diffusers' pipelines can be switched to ---


class TestSwitchesOfStableDiffusion:
    def test_freeu_changes_the_edit_until_it_is_switched_off(self, pipe, edit):
        plain = edit(pipe)
        enable_freeu(pipe, Path())
        assert (edit(pipe) - plain).abs().max() > 0.02
        pipe.disable_freeu()
        assert torch.equal(edit(pipe), plain)

    def test_fused_projections_are_refused_until_they_are_taken_apart(self, pipe, edit):
        plain = edit(pipe)
        pipe.fuse_qkv_projections()
        with pytest.raises(ValueError, match=r"fused QKV projections.*unfuse_qkv_projections\(\)"):
            edit(pipe)
        pipe.unfuse_qkv_projections(vae=False)
        torch.testing.assert_close(edit(pipe), plain, rtol=0, atol=1e-4)

    def test_a_vae_may_work_in_slices_and_tiles(self, pipe, edit):
        plain = edit(pipe)
        pipe.vae.enable_slicing()
        torch.testing.assert_close(edit(pipe), plain, rtol=0, atol=1e-5)
        pipe.vae.enable_tiling()
        assert edit(pipe).shape == plain.shape

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_the_mode_of_the_models_does_not_matter(self, make_pipe, edit, mode):
        pipe = make_pipe()
        for model in (pipe.unet, pipe.vae, pipe.text_encoder):
            getattr(model, mode)()
        assert torch.equal(edit(pipe), edit(make_pipe()))
