"""What makes edits faster or smaller changes nothing in the picture, and works through the whole call."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderTiny
from torch._dynamo.utils import counters

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.components import kernels_channels_last
from support.tiny_models import make_motion_predictor, make_vae

HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]


@pytest.fixture
def predicting(pipe: DynaDragPipeline) -> DynaDragPipeline:
    """A pipeline whose pictures between matter: a motion predictor looks at them."""
    pipe.register_modules(motion_predictor=make_motion_predictor(), text_encoder=copy.deepcopy(pipe.text_encoder))
    return pipe


def edit(pipe: DynaDragPipeline, picture: torch.Tensor, quick: dict[str, object], **changes: object) -> torch.Tensor:
    return pipe(picture, HANDLES, TARGETS, output_type="pt", **(quick | changes)).images


def offload_layer_by_layer(pipe: DynaDragPipeline) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU as the accelerator."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    pipe._offload_device = torch.device("cpu")


MEASURES: dict[str, Callable[[DynaDragPipeline], object]] = {
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offload": offload_layer_by_layer,
    "gradient checkpointing": lambda pipe: pipe.unet.enable_gradient_checkpointing(),
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "VAE slicing": lambda pipe: pipe.vae.enable_slicing(),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_the_picture_is_the_same(predicting, picture, quick, measure):
    expected = edit(predicting, picture, quick)
    predicting.identity_loras.fitted.clear()
    MEASURES[measure](predicting)
    torch.testing.assert_close(edit(predicting, picture, quick), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(edit(predicting, picture, quick), expected, rtol=0, atol=1e-3)


def test_sequential_offload_leaves_nothing_on_the_device(predicting, picture, quick):
    offload_layer_by_layer(predicting)
    edit(predicting, picture, quick)
    assert all(parameter.is_meta for parameter in predicting.unet.parameters())
    assert not getattr(predicting.unet, "peft_config", {})


def test_gradient_checkpointing_runs_the_blocks_again_in_backward(predicting, picture, quick):
    passes = {"blocks": 0}
    predicting.unet.up_blocks[0].resnets[0].register_forward_pre_hook(
        lambda *_: passes.update(blocks=passes["blocks"] + 1)
    )
    edit(predicting, picture, quick)
    plain = passes["blocks"]
    predicting.identity_loras.fitted.clear()
    predicting.unet.enable_gradient_checkpointing()
    passes["blocks"] = 0
    edit(predicting, picture, quick)
    gradients = 2 + 3 * 2  # of the LoRA's steps, and of supervision
    assert passes["blocks"] == plain + gradients


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_kernels_lie_in_channels_last_during_an_edit_alone(unet, error):
    kernels = [parameter for parameter in unet.parameters() if parameter.ndim == 4]
    values = [kernel.clone() for kernel in kernels]

    def use() -> None:
        with kernels_channels_last(unet):
            assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
            if error is not None:
                raise error

    with pytest.raises(error) if error else nullcontext():
        use()
    assert all(kernel.is_contiguous() for kernel in kernels)
    assert all(torch.equal(kernel, value) for kernel, value in zip(kernels, values, strict=True))


def test_a_layout_that_the_user_chose_stays(unet):
    unet.to(memory_format=torch.channels_last)
    with kernels_channels_last(unet):
        pass
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


# --- previews ---


@pytest.mark.parametrize("preview_steps", [1, 2, 99])
def test_previews_change_what_the_predictor_sees_alone(predicting, picture, quick, preview_steps):
    output = predicting(picture, HANDLES, TARGETS, output_type="pt", **quick, preview_steps=preview_steps)
    full = predicting(picture, HANDLES, TARGETS, output_type="pt", **quick)
    assert torch.equal(output.trajectories[1], full.trajectories[1]), "the first step is predicted from the original"
    assert output.images.shape == full.images.shape
    if preview_steps == 99:
        torch.testing.assert_close(output.images, full.images, rtol=0, atol=1e-3)


def test_a_small_decoder_decodes_the_previews_and_not_the_result(predicting, picture, quick):
    torch.manual_seed(0)
    small = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    decoded = {"small": 0, "own": 0}
    small.decoder.register_forward_hook(lambda *_: decoded.update(small=decoded["small"] + 1))
    predicting.vae.decoder.register_forward_hook(lambda *_: decoded.update(own=decoded["own"] + 1))
    edit(predicting, picture, quick, preview_steps=1, preview_vae=small)
    assert decoded == {"small": 2, "own": 1}


def test_a_decoder_without_previews_or_for_other_latents_is_refused(predicting, picture, quick):
    with pytest.raises(ValueError, match="pass `preview_steps` too"):
        edit(predicting, picture, quick, preview_vae=make_vae())
    with pytest.raises(ValueError, match="4 channels and factor 8: 4 channels and factor 4 are needed"):
        edit(predicting, picture, quick, preview_steps=1, preview_vae=AutoencoderTiny())
    with pytest.raises(ValueError, match="must be an AutoencoderTiny or AutoencoderKL, got str"):
        edit(predicting, picture, quick, preview_steps=1, preview_vae="taesd")


@pytest.mark.parametrize(("name", "value"), [("preview_steps", 0), ("preview_steps", 1.5), ("kv_placement", "disk")])
def test_values_out_of_range_are_named(predicting, picture, quick, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        edit(predicting, picture, quick, **{name: value})


def test_a_callback_that_changes_a_preview_is_shown_the_result_it_asked_for(predicting, picture, quick):
    def blacken(pipe, iteration, timestep, tensors):
        pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = predicting(
        picture,
        HANDLES,
        TARGETS,
        output_type="latent",
        callback_on_step_end=blacken,
        preview_steps=1,
        **quick,
    )
    assert not result.images.any()


def test_straight_steps_take_the_passes_of_supervision_and_one_picture(pipe, picture, quick):
    passes = []
    pipe.unet.register_forward_hook(lambda *_: passes.append(None))
    few = edit(pipe, picture, quick)
    steps, iterations, supervision, lora, content = 4, 3, 2, 2, 2
    assert len(passes) == lora + 2 * steps + iterations * supervision + steps + 1 + content
    passes.clear()
    seen = edit(pipe, picture, quick, return_intermediates=True, locate_content=False)
    assert len(passes) == 2 * steps + iterations * (supervision + steps) + 1
    assert torch.equal(few, seen)


# --- torch.compile ---


@pytest.fixture
def compiling() -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()


def test_compiled_blocks_are_compiled_once_for_all_iterations(pipe, picture, quick, compiling):
    """With all hooks and processors: the graphs of two iterations serve six, and other edits too."""
    straight = quick | {"return_intermediates": True}
    expected = edit(pipe, picture, straight)
    pipe.identity_loras.fitted.clear()
    pipe.unet.compile_repeated_blocks(backend="aot_eager")
    torch.testing.assert_close(edit(pipe, picture, straight), expected, rtol=0, atol=1e-2)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert not counters["graph_break"]
    edit(pipe, picture, straight, max_iterations=6)
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_compiled_predictor_is_compiled_once(predicting, compiling):
    image, expected = torch.rand(1, 3, 64, 76, generator=torch.Generator().manual_seed(0)), []
    points = [(torch.tensor([[30.0, 20.0 + k]]), torch.tensor([[40.0, 20.0]])) for k in range(3)]
    expected = [predicting.motion_predictor.predict_flow(image, *each) for each in points]
    predicting.motion_predictor.compile(backend="aot_eager")
    for each, flow in zip(points, expected, strict=True):
        torch.testing.assert_close(predicting.motion_predictor.predict_flow(image, *each), flow, rtol=1e-3, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
