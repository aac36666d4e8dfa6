"""The editor in blocks: the pipeline's pictures, parts that can be exchanged, and nothing large in the state."""

from __future__ import annotations

import copy
import doctest
import json
import logging
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline, StableDiffusionPipeline

from dynadrag_pipeline import DynaDragPipeline, modular_blocks
from dynadrag_pipeline.kv_replacement import KVBank
from dynadrag_pipeline.modular_blocks import DynaDragBlocks, DynaDragModularPipeline, IterationBlock
from dynadrag_pipeline.motion.source import guarded_motion
from dynadrag_pipeline.settings import DragSettings
from motion_predictor.common.options import options_of
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet, make_vae

DOCUMENT = Path(__file__).parents[2] / "docs" / "modular.md"
HANDLES, TARGETS = [(40, 30), (20, 50)], [(60, 50), (10, 40)]


@pytest.fixture(scope="module")
def whole(text_encoder, tokenizer) -> DynaDragPipeline:
    predictor = make_motion_predictor()
    pipe = DynaDragPipeline(
        make_vae(), text_encoder, tokenizer, make_unet(), make_scheduler(), motion_predictor=predictor
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    whole.save_pretrained(path)
    return path


def in_blocks(source: Any, blocks: DynaDragBlocks | None = None) -> DynaDragModularPipeline:
    pipe = (blocks or DynaDragBlocks()).init_pipeline(source)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walk(value: Any) -> list[Any]:
    """A value and all that it holds."""
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    elif is_dataclass(value):
        inner = [getattr(value, field.name) for field in fields(value)]
    else:
        inner = []
    return [value, *(deeper for each in inner for deeper in walk(each))]


class TestThePicture:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"mask": torch.ones(80, 96), "processing_resolution": 80},
            {"dynamic_selection": None, "motion_guard": "none", "stop_distance": 9.0},
            {"dynamic_selection": "random", "identity_lora_steps": 0, "kv_start_layer": 0, "inversion_strength": 0.5},
            {"prompt": "a cat", "feature_block": 0, "return_intermediates": True},
            {"supervision_damping": 0.05, "supervision_reach": 0.2, "restore_source": True},
        ],
    )
    def test_is_the_pipeline_s_to_the_bit(self, whole, folder, quick, picture, changes):
        options = quick | {"output_type": "pt"} | changes
        expected = whole(picture, HANDLES, TARGETS, generator=seeded(), **options)
        state = in_blocks(folder)(image=picture, handles=HANDLES, targets=TARGETS, generator=seeded(), **options)
        assert torch.equal(state.images, expected.images)
        assert torch.equal(state.trajectory, expected.trajectories)
        assert state.stop_reason == expected.stop_reason
        for ours, theirs in zip(state.iterations, expected.iterations, strict=True):
            assert (ours.loss_before, ours.loss_after) == (theirs.loss_before, theirs.loss_after)
            assert torch.equal(ours.valid, theirs.valid)
            assert (ours.flow is None) == (theirs.flow is None)

    @pytest.mark.parametrize("with_predictor", [True, False])
    def test_costs_the_passes_of_the_pipeline_s(self, whole, folder, quick, picture, with_predictor):
        """Without a predictor nobody looks at pictures between: they are not made here either."""
        motion = {} if with_predictor else {"motion": "straight"}
        counts = []
        for pipe in (in_blocks(folder), DynaDragPipeline(**whole.components)):
            pipe.set_progress_bar_config(disable=True)
            passes: list[None] = []
            hook = pipe.unet.register_forward_hook(lambda *_, passes=passes: passes.append(None))
            pipe(image=picture, handles=HANDLES, targets=TARGETS, **quick, **motion)
            hook.remove()
            counts.append(len(passes))
        lora, steps, iterations, supervision = 2, 4, 3, 2
        pictures = iterations if with_predictor else 1
        locating = 2
        expected = lora + 2 * steps + iterations * supervision + pictures * steps + 1 + locating
        assert counts == [expected, expected]

    def test_none_says_something_where_the_checkpoint_says_otherwise(self, whole, folder, quick, picture, tmp_path):
        whole.register_to_config(recommended_settings={"preview_steps": 1, "supervision_reach": 0.2})
        try:
            whole.save_pretrained(tmp_path)
        finally:
            whole.register_to_config(recommended_settings={})
        pipe = in_blocks(tmp_path)
        state = pipe(image=picture, handles=HANDLES, targets=TARGETS, supervision_reach=None, **quick)
        assert state.in_force.settings.preview_steps == 1
        assert state.in_force.settings.supervision_reach is None
        assert state.in_force.origins["preview_steps"] == "checkpoint"
        assert state.in_force.origins["supervision_reach"] == "given"

    def test_may_be_made_with_an_embedding_in_the_place_of_a_prompt(self, whole, folder, quick, picture):
        call = {
            "image": picture,
            "handles": HANDLES,
            "targets": TARGETS,
            "output_type": "pt",
            "output": "images",
            **quick,
        }
        expected = in_blocks(folder)(prompt="a cat", **call)
        embeds = whole.encode_prompt("a cat")
        assert torch.equal(in_blocks(folder)(prompt_embeds=embeds, **call), expected)
        with pytest.raises(ValueError, match="`prompt` must be empty beside `prompt_embeds`"):
            in_blocks(folder)(prompt="a cat", prompt_embeds=embeds, **call)

    @pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
    def test_comes_in_every_form(self, whole, folder, quick, picture, output_type):
        options = quick | {"output_type": output_type, "max_iterations": 1}
        expected = whole(picture, HANDLES, TARGETS, **options).images
        images = in_blocks(folder)(image=picture, handles=HANDLES, targets=TARGETS, output="images", **options)
        if output_type == "pil":
            assert images[0].tobytes() == expected[0].tobytes()
        else:
            assert (images == expected).all()

    def test_is_made_with_a_plain_stable_diffusion_by_straight_steps(self, whole, quick, picture, tmp_path):
        parts = {name: whole.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None).save_pretrained(tmp_path)
        pipe = in_blocks(tmp_path)
        assert pipe.motion_predictor is None
        state = pipe(image=picture, handles=HANDLES, targets=TARGETS, output_type="pt", **quick)
        expected = DynaDragPipeline(**parts)(picture, HANDLES, TARGETS, output_type="pt", **quick)
        assert torch.equal(state.images, expected.images)

    def test_takes_a_predictor_that_is_given(self, whole, quick, picture, tmp_path):
        parts = {name: whole.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        DynaDragPipeline(**parts).save_pretrained(tmp_path)
        pipe = in_blocks(tmp_path)
        assert pipe.motion_predictor is None
        pipe.update_components(motion_predictor=whole.motion_predictor)
        images = pipe(image=picture, handles=HANDLES, targets=TARGETS, output_type="pt", output="images", **quick)
        assert torch.equal(images, whole(picture, HANDLES, TARGETS, output_type="pt", **quick).images)


class TestTheState:
    def test_never_holds_the_keys_and_values(self, folder, quick, picture):
        state = in_blocks(folder)(image=picture, handles=HANDLES, targets=TARGETS, **quick)
        held = walk(state.values)
        assert not [value for value in held if isinstance(value, KVBank)]
        assert "edit" not in state.values
        assert not [value for value in held if isinstance(value, torch.Tensor) and value.requires_grad]

    def test_can_be_copied_and_gone_on_with(self, folder, quick, picture, monkeypatch):
        pipe = in_blocks(folder)
        first = pipe(image=picture, handles=HANDLES, targets=TARGETS, output_type="pt", **quick)
        copy.deepcopy(first)
        monkeypatch.setattr(
            "dynadrag_pipeline.session.fit_identity_lora", lambda *_, **__: pytest.fail("it was there")
        )
        again = pipe(state=first, output_type="pt")
        assert torch.equal(again.images, first.images)

    def test_another_picture_gets_a_lora_of_its_own(self, folder, quick, picture):
        pipe = in_blocks(folder)
        first = pipe(image=picture, handles=HANDLES, targets=TARGETS, **quick)
        other = pipe(state=first, image=picture.flip(-1))
        assert other.identity_lora.picture != first.identity_lora.picture


class TestComponents:
    def test_are_left_as_they_were(self, folder, quick, picture):
        pipe = in_blocks(folder)
        pipe.unet.train()
        before = (
            dict(pipe.unet.attn_processors),
            [module.training for module in pipe.unet.modules()],
            [parameter.requires_grad for parameter in pipe.unet.parameters()],
            list(pipe.unet.state_dict()),
        )
        pipe(image=picture, handles=HANDLES, targets=TARGETS, **quick)
        assert before == (
            dict(pipe.unet.attn_processors),
            [module.training for module in pipe.unet.modules()],
            [parameter.requires_grad for parameter in pipe.unet.parameters()],
            list(pipe.unet.state_dict()),
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_inference_steps": 0}, "`num_inference_steps`"),
            ({"motion_guard": "bounce"}, "`motion_guard` must be one of"),
            ({"handles": [(1, 2)]}, "1 handles and 2 targets"),
            ({"kv_start_layer": 5}, "`kv_start_layer` must be in 0..4"),
            ({"generator": 3}, "`generator` must be a torch.Generator"),
        ],
    )
    def test_bad_arguments_are_refused_before_any_work(self, folder, picture, monkeypatch, changes, message):
        pipe = in_blocks(folder)
        monkeypatch.setattr(pipe.vae, "encode", lambda *_: pytest.fail("work was begun"))
        with pytest.raises(ValueError, match=message):
            pipe(**({"image": picture, "handles": HANDLES, "targets": TARGETS} | changes))

    def test_a_missing_one_is_named(self, picture):
        with pytest.raises(ValueError, match="`vae` is missing"):
            DynaDragBlocks().init_pipeline()(image=picture, handles=HANDLES, targets=TARGETS)


class StayStep(IterationBlock):
    """Leaves a motion of nothing."""

    about = "Leave the handles where they are."

    def work_on(self, edit):
        edit.motion = guarded_motion(edit.view, torch.zeros_like(edit.points.handles))
        edit.next_handles = edit.motion.destinations


class TestBlocks:
    def test_another_source_of_motion_takes_the_place_of_one(self, folder, quick, picture):
        blocks = DynaDragBlocks()
        blocks.sub_blocks["drag"].sub_blocks["predict"] = StayStep()
        pipe = in_blocks(folder, blocks)
        assert "motion_predictor" not in [spec.name for spec in StayStep().expected_components]
        state = pipe(
            image=picture, handles=HANDLES, targets=TARGETS, motion_guard="none", **(quick | {"max_iterations": 2})
        )
        assert torch.equal(state.trajectory, torch.tensor(HANDLES).float().expand(3, 2, 2))

    def test_the_document_s_block_goes_half_of_the_way(self, folder, quick, picture):
        (source,) = re.findall(r"```python\n((?:(?!```).)*class HalfWayStep.*?)```", DOCUMENT.read_text(), re.DOTALL)
        names: dict[str, Any] = {}
        exec(source, names)
        options = quick | {"motion_guard": "none", "stop_distance": 0}
        state = in_blocks(folder, names["blocks"])(image=picture, handles=HANDLES, targets=TARGETS, **options)
        left = (state.trajectory - torch.tensor(TARGETS)).norm(dim=-1)
        torch.testing.assert_close(left[1:], left[:-1] / 2)

    def test_an_edit_that_diverges_ends_with_the_last_good_iteration(self, folder, quick, picture, caplog):
        class Overflow(IterationBlock):
            about = "Diverge in the second iteration."

            def work_on(self, edit):
                edit.denoise()
                if edit.k > 0:
                    raise FloatingPointError("Too much.")

        blocks = DynaDragBlocks()
        blocks.sub_blocks["drag"].sub_blocks["denoise"] = Overflow()
        with caplog.at_level(logging.WARNING):
            state = in_blocks(folder, blocks)(image=picture, handles=HANDLES, targets=TARGETS, **quick)
        assert state.stop_reason == "diverged"
        assert len(state.iterations) == 1

    def test_every_setting_is_an_input_with_its_default_and_a_word(self):
        inputs = {each.name: each for each in DynaDragBlocks().inputs}
        for name, each in options_of(DragSettings).items():
            assert each.sentence in inputs[name].description
            assert each.default_shown() in inputs[name].description

    def test_every_input_and_output_is_documented(self):
        blocks = DynaDragBlocks()
        undocumented = [each.name for each in (*blocks.inputs, *blocks.outputs) if not each.description]
        assert undocumented == []
        assert "one picture" not in blocks.doc
        assert {"image", "handles", "targets"} == set(blocks.required_inputs) & {"image", "handles", "targets", "mask"}

    def test_the_examples_in_the_docstrings_run(self):
        results = doctest.testmod(modular_blocks)
        assert results.attempted > 0
        assert results.failed == 0


class TestSaving:
    def test_an_index_names_nothing_that_only_this_package_knows(self, folder, tmp_path):
        in_blocks(folder).save_pretrained(tmp_path)
        index = json.loads((tmp_path / "modular_model_index.json").read_text())
        assert index["_class_name"] == "ModularPipeline"
        assert "dynadrag_pipeline" not in json.dumps(index)
        assert index["motion_predictor"][2]["type_hint"] == [None, None]
        assert (tmp_path / "modular_blocks.py").exists()

    def test_what_was_saved_loads_with_the_package_without_trust(self, whole, folder, quick, picture, tmp_path):
        in_blocks(folder).save_pretrained(tmp_path)
        pipe = in_blocks(tmp_path)
        assert type(pipe.motion_predictor) is type(whole.motion_predictor)
        assert isinstance(pipe, ModularPipeline)

    def test_exchanged_blocks_are_warned_of(self, tmp_path, caplog):
        blocks = DynaDragBlocks()
        blocks.sub_blocks["drag"].sub_blocks["predict"] = StayStep()
        with caplog.at_level(logging.WARNING):
            blocks.save_pretrained(tmp_path)
        assert "Changed blocks are not saved, the usual ones are: drag.predict." in caplog.text
