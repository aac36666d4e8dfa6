"""What diffusers' own test suites ask of every pipeline and model, said of ours; names in brackets are theirs.

Contracts that other files test are not repeated here. Where `DIFFUSERS_TESTS` names a folder that holds the `tests` of
a diffusers repository, its own suites run on our classes too.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from dynadrag_pipeline import DynaDragPipeline
from motion_predictor import MotionPredictorModel
from support.tiny_models import make_motion_predictor, make_scheduler, make_text_encoder, make_unet, make_vae

HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]
OPTIONAL = ["safety_checker", "feature_extractor", "image_encoder", "motion_predictor"]


@pytest.fixture
def edit(quick, picture):
    """Edit with the tiny pipeline, as a tensor."""

    def run(pipe: DynaDragPipeline, **changes: object) -> torch.Tensor:
        options = quick | {"output_type": "pt", "max_iterations": 2} | changes
        return pipe(picture, HANDLES, TARGETS, **options).images

    return run


class TestPipeline:
    def test_the_call_names_what_callers_of_diffusers_expect(self):  # [pipeline_call_signature]
        parameters = inspect.signature(DynaDragPipeline.__call__).parameters
        required = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
        assert required == ["self", "image", "handles", "targets"]
        common = {"prompt", "num_inference_steps", "generator", "output_type", "return_dict", "cross_attention_kwargs"}
        assert common | {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(parameters)

    def test_its_components_build_it_again(self, pipe, edit):  # [components_function]
        components = pipe.components
        assert set(components) == {*OPTIONAL, "vae", "text_encoder", "tokenizer", "unet", "scheduler"}
        again = DynaDragPipeline(**components)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(edit(again), edit(pipe))

    @pytest.mark.parametrize("with_predictor", [True, False])
    def test_optional_components_stay_what_they_were(self, pipe, tmp_path, with_predictor):
        # [save_load_optional_components]
        if with_predictor:
            pipe.register_modules(motion_predictor=make_motion_predictor())
        pipe.save_pretrained(tmp_path)
        loaded = DynaDragPipeline.from_pretrained(tmp_path)
        present = [name for name in OPTIONAL if getattr(loaded, name) is not None]
        assert present == (["motion_predictor"] if with_predictor else [])

    def test_a_dtype_goes_to_all_models(self, pipe, edit):  # [to_dtype], [float16_inference]
        pipe.register_modules(motion_predictor=make_motion_predictor())
        expected = edit(pipe)
        pipe.to(torch.bfloat16)
        models = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
        assert {model.dtype for model in models} == {torch.bfloat16}
        assert (edit(pipe) - expected).abs().mean() < 0.05

    def test_variants_are_written_and_found_in_every_folder(self, pipe, edit, tmp_path):
        # [serialization_with_variants], [loading_with_variants], [loading_with_incorrect_variants]
        pipe.register_modules(motion_predictor=make_motion_predictor())
        pipe.save_pretrained(tmp_path, variant="fp16")
        for name in ("unet", "vae", "text_encoder", "motion_predictor"):
            assert any(".fp16." in path.name for path in (tmp_path / name).iterdir()), name
        loaded = DynaDragPipeline.from_pretrained(tmp_path, variant="fp16")
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(edit(loaded), edit(pipe))
        with pytest.raises(ValueError, match="no such modeling files"):
            DynaDragPipeline.from_pretrained(tmp_path, variant="int1")

    def test_attention_slicing_does_not_change_the_edit(self, pipe, edit):  # [attention_slicing_forward_pass]
        expected = edit(pipe)
        pipe.enable_attention_slicing(slice_size=1)
        torch.testing.assert_close(edit(pipe), expected, atol=1e-3, rtol=0)
        pipe.disable_attention_slicing()

    @pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
    def test_any_attention_processor_stays_installed(self, pipe, edit, processor):
        expected = edit(pipe)
        pipe.unet.set_attn_processor(processor())
        torch.testing.assert_close(edit(pipe), expected, atol=1e-3, rtol=0)
        assert {type(each) for each in pipe.unet.attn_processors.values()} == {processor}

    def test_a_tiny_autoencoder_will_do(self, pipe, edit):  # [multi_vae]
        torch.manual_seed(0)
        channels = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
        blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
        tiny = AutoencoderTiny(**channels, **blocks, latent_channels=4).eval()
        other = DynaDragPipeline(**(pipe.components | {"vae": tiny}))
        other.set_progress_bar_config(disable=True)
        assert edit(other).shape == (1, 3, 80, 96)

    def test_a_prompt_can_be_encoded_alone(self, pipe):  # [encode_prompt_works_in_isolation]
        text_only = DynaDragPipeline(
            **(dict.fromkeys(pipe.components) | {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder})
        )
        with torch.no_grad():
            embeds = text_only.encode_prompt("a cat")
            assert embeds.shape == (1, 77, 16)
            assert torch.equal(embeds, pipe.encode_prompt("a cat"))
            pipe.unet.to(torch.bfloat16)
            assert torch.equal(pipe.encode_prompt("a cat"), embeds.bfloat16())

    @pytest.mark.parametrize("several", [False, True])
    def test_callback_objects_are_accepted(self, pipe, edit, several):  # [callback_inputs]
        class Zero(PipelineCallback):
            @property
            def tensor_inputs(self):
                return ["latents"]

            def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
                if step_index == pipeline.num_timesteps - 1:
                    callback_kwargs["latents"] = torch.zeros_like(callback_kwargs["latents"])
                return callback_kwargs

        zero = Zero(cutoff_step_ratio=1.0)
        callback = MultiPipelineCallbacks([zero]) if several else zero
        assert not edit(pipe, output_type="latent", callback_on_step_end=callback).any()

    def test_what_the_caller_passes_is_left_as_it_is(self, pipe, quick, picture):
        given = {"image": picture.clone(), "handles": np.array(HANDLES), "targets": [list(each) for each in TARGETS]}
        mask, kwargs = torch.ones(80, 96), {"scale": 0.5}
        pipe(**given, mask=mask, cross_attention_kwargs=kwargs, **quick)
        assert torch.equal(given["image"], picture)
        assert given["handles"].tolist() == [list(each) for each in HANDLES]
        assert given["targets"] == [list(each) for each in TARGETS]
        assert mask.all()
        assert kwargs == {"scale": 0.5}

    def test_progress_bars_can_be_switched_off_and_counted(self, pipe, edit, capfd):  # [progress_bar]
        edit(pipe)
        assert "it" not in capfd.readouterr().err
        pipe.set_progress_bar_config(disable=False)
        edit(pipe, identity_lora_steps=3)  # other steps than before: a new fit
        shown = capfd.readouterr().err
        for name, total in (("Identity LoRA", 3), ("DDIM inversion", 4), ("Reference denoising", 4), ("Dragging", 2)):
            assert name in shown
            assert f"{total}/{total}" in shown

    def test_stable_diffusion_can_take_its_components_over(self, pipe):  # [from_pipe]
        pipe.register_modules(motion_predictor=make_motion_predictor())
        generating = StableDiffusionPipeline.from_pipe(pipe, dtype=torch.float32)
        assert generating.unet is pipe.unet
        assert DynaDragPipeline.from_pipe(generating, dtype=torch.float32).vae is pipe.vae

    def test_every_component_is_typed_and_has_a_place_in_offloading(self):
        types = DynaDragPipeline._get_signature_types()
        assert types["motion_predictor"] == (MotionPredictorModel, type(None))
        order = DynaDragPipeline.model_cpu_offload_seq.split("->")
        assert set(order) == {"text_encoder", "image_encoder", "motion_predictor", "unet", "vae"}


class TestModel:
    @pytest.fixture
    def sample(self):
        return torch.rand(2, 6, 16, 24, generator=torch.Generator().manual_seed(1))

    def test_the_same_input_gives_the_same_output(self, sample):  # [determinism]
        model = make_motion_predictor()
        assert torch.equal(model(sample).flow, model(sample).flow)

    def test_a_config_builds_the_same_architecture(self):  # [from_config]
        model = make_motion_predictor()
        again = MotionPredictorModel.from_config(model.config)
        assert {name: value.shape for name, value in again.state_dict().items()} == {
            name: value.shape for name, value in model.state_dict().items()
        }

    def test_weights_in_several_files_load(self, sample, tmp_path):  # [sharded_checkpoints]
        model = make_motion_predictor()
        model.save_pretrained(tmp_path, max_shard_size="10KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert torch.equal(MotionPredictorModel.from_pretrained(tmp_path)(sample).flow, model(sample).flow)

    def test_a_variant_loads_and_another_does_not(self, sample, tmp_path):  # [from_save_pretrained_variant]
        model = make_motion_predictor()
        model.save_pretrained(tmp_path, variant="fp16")
        assert torch.equal(
            MotionPredictorModel.from_pretrained(tmp_path, variant="fp16")(sample).flow, model(sample).flow
        )
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            MotionPredictorModel.from_pretrained(tmp_path)

    def test_what_was_loaded_does_not_train_until_told(self, tmp_path):
        make_motion_predictor().save_pretrained(tmp_path)
        assert not MotionPredictorModel.from_pretrained(tmp_path).training

    def test_parts_that_a_device_map_must_not_split_exist(self):  # [model_parallelism]
        names = {type(module).__name__ for module in make_motion_predictor().modules()}
        assert set(MotionPredictorModel._no_split_modules) <= names
        assert set(MotionPredictorModel._repeated_blocks) <= names

    def test_it_trains(self, sample):  # [training], [ema_training]
        model = make_motion_predictor().train()
        model(sample).flow.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


UPSTREAM = os.environ.get("DIFFUSERS_TESTS")

if UPSTREAM:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = ModuleType("diffusers_tests")  # not `tests`, which these are
    package.__path__ = [str(Path(UPSTREAM, "tests"))]
    sys.modules[package.__name__] = package
    from diffusers_tests.models.testing_utils import BaseModelTesterConfig, ModelTesterMixin, TrainingTesterMixin
    from diffusers_tests.pipelines.testing_utils import BasePipelineTesterConfig, LoraTesterMixin, PipelineTesterMixin

    class PipelineConfig(BasePipelineTesterConfig):
        """Our pipeline in the terms of diffusers' suites."""

        pipeline_class = DynaDragPipeline
        required_input_params_in_call_signature = frozenset(["image", "handles", "targets"])
        batch_input_params = frozenset(["image"])
        optional_input_params = frozenset(["num_inference_steps", "generator", "output_type", "return_dict"])
        output_shape = (3, 64, 64)

        @pytest.fixture(scope="class", autouse=True)  # before their own, which builds a pipeline once a class
        def tokenizer_of_the_class(self, request, tokenizer):
            request.cls.tokenizer = tokenizer

        def get_dummy_components(self):
            return {
                "vae": make_vae(),
                "text_encoder": make_text_encoder(),
                "tokenizer": copy.deepcopy(self.tokenizer),
                "unet": make_unet(),
                "scheduler": make_scheduler(),
                "motion_predictor": make_motion_predictor(),
                **dict.fromkeys(["safety_checker", "feature_extractor", "image_encoder"]),
            }

        def get_dummy_inputs(self, *args, **kwargs):
            image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
            return {
                "image": image,
                "handles": [(40, 30)],
                "targets": [(50, 40)],
                "num_inference_steps": 3,
                "max_iterations": 2,
                "supervision_steps": 1,
                "identity_lora_steps": 0,
                "generator": torch.Generator().manual_seed(0),
                "output_type": "pt",
            }

    class TestUpstreamPipeline(PipelineConfig, PipelineTesterMixin):
        """diffusers' suite for pipelines."""

        test_encode_prompt_works_in_isolation = None  # looks for the class in diffusers; said of ours above

    class TestUpstreamLora(PipelineConfig, LoraTesterMixin):
        """diffusers' suite for pipelines that load LoRAs, but for fused ones: these are refused."""

        test_lora_fuse_unfuse = None
        test_lora_scale_kwargs_match_fusion = None
        test_simple_inference_with_text_lora_denoiser_fused_multi = None

    class ModelConfig(BaseModelTesterConfig):
        """Our motion predictor in the terms of diffusers' suites."""

        model_class = MotionPredictorModel
        pretrained_model_name_or_path = None
        main_input_name = "sample"
        output_shape = (2, 16, 16)

        def get_init_dict(self):
            skipped = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")
            return {key: value for key, value in make_motion_predictor().config.items() if key not in skipped}

        def get_dummy_inputs(self):
            return {"sample": torch.rand(1, 6, 16, 16, generator=torch.Generator().manual_seed(5))}

    class TestUpstreamModel(ModelConfig, ModelTesterMixin, TrainingTesterMixin):
        """diffusers' suites for models."""

else:

    @pytest.mark.skip(reason="DIFFUSERS_TESTS names no folder with the tests of a diffusers repository")
    def test_upstream_suites() -> None: ...
