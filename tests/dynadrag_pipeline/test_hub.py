"""Pipelines and predictors in folders and on the Hub: with this package and without, and with what they take along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from dynadrag_pipeline.hub import INSTALLED_PREDICTOR
from motion_predictor import MotionPredictorModel
from support.fake_hub import FakeHub, environment, serving
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet, make_vae

ROOT = Path(__file__).parents[2]
CODE = {"pipeline.py", "motion_predictor/modeling_motion_predictor.py"}


@dataclass
class Case:
    """What a process of `hub_process.py` left behind."""

    pictures: dict[str, torch.Tensor]
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def whole(text_encoder, tokenizer) -> DynaDragPipeline:
    """A tiny pipeline with its motion predictor."""
    unet, predictor = make_unet(), make_motion_predictor()
    pipe = DynaDragPipeline(make_vae(), text_encoder, tokenizer, unet, make_scheduler(), motion_predictor=predictor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def expected(whole, picture) -> torch.Tensor:
    """The edit of `hub_process.py`, by the pipeline that was saved."""
    return whole(
        picture,
        handles=[(40, 30), (20, 50)],
        targets=[(60, 50), (10, 40)],
        num_inference_steps=4,
        max_iterations=2,
        supervision_steps=2,
        identity_lora_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, picture) -> Path:
    folder: Path = tmp_path_factory.mktemp("hub")
    save_file({"picture": picture}, folder / "picture.safetensors")
    return folder


@pytest.fixture(scope="module")
def hub(workplace, whole) -> Iterator[FakeHub]:
    """A Hub with a DynaDrag pipeline, one as diffusers alone would have saved it, and a Stable Diffusion."""
    root = workplace / "repositories"
    whole.save_pretrained(root / "org" / "dynadrag")
    save_as_diffusers_does(whole, root / "org" / "plain")
    parts = {name: whole.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None).save_pretrained(
        root / "org" / "stable-diffusion"
    )
    whole.save_pretrained(root / "org" / "gaps")
    change_weights(root / "org" / "gaps" / "vae", remove="encoder.conv_in.")
    card = root / "me" / "with-card" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("---\nlicense: mit\n---\n\nWritten by hand.\n")
    with serving(root) as running:
        yield running


@pytest.fixture(scope="module")
def installed(hub, workplace) -> Case:
    """A user who has this package."""
    return run_case("installed", hub, workplace)


@pytest.fixture(scope="module")
def not_installed(installed, hub, workplace) -> Case:
    """A user who has diffusers, transformers, peft and accelerate alone."""
    return run_case("not_installed", hub, workplace)


def run_case(case: str, hub: FakeHub, workplace: Path) -> Case:
    variables = environment(hub.url, workplace / "home" / case)
    variables["PYTHONPATH"] = str(ROOT) if case == "installed" else ""
    script = ROOT / "tests" / "support" / "hub_process.py"
    subprocess.run(
        [sys.executable, str(script), case, str(workplace)], cwd=workplace, env=variables, check=True, timeout=300
    )
    facts = json.loads((workplace / f"{case}.json").read_text())
    return Case(load_file(workplace / f"{case}.safetensors"), facts)


def save_as_diffusers_does(pipe: DynaDragPipeline, folder: Path) -> None:
    """Without code, and with an index that names modules of the installed package."""
    pipe.save_pretrained(folder)
    for name in CODE:
        (folder / name).unlink()
    index = read_index(folder) | {"_class_name": "DynaDragPipeline", "motion_predictor": INSTALLED_PREDICTOR}
    (folder / "model_index.json").write_text(json.dumps(index))


def read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestWithThePackage:
    @pytest.mark.parametrize(
        "way",
        [
            "from the Hub",
            "from an index of diffusers' own",
            "from the cache",
            "pushed",
            "pushed as a variant",
            "from parts",
            "from a pipe",
        ],
    )
    def test_every_way_to_the_same_weights_gives_the_same_picture(self, installed, expected, way):
        assert torch.equal(installed.pictures[way], expected)
        assert installed.facts[f"{way} by"] == "predicted"

    def test_no_code_of_a_repository_is_run(self, installed):
        assert installed.facts["remote code"] == []
        assert installed.facts["installed classes"]

    def test_a_predictor_may_be_passed_or_left_out(self, installed):
        assert installed.facts["left out"]
        assert installed.facts["passed is kept"]

    def test_each_component_may_have_a_dtype_of_its_own(self, installed):
        assert installed.facts["dtypes"] == ["torch.bfloat16", "torch.float16", "torch.float32"]

    def test_nothing_is_warned_of(self, installed):
        assert installed.facts["warnings of loading and pushing"] == []


class TestWithoutThePackage:
    @pytest.mark.parametrize("way", ["from the Hub", "saved again", "pushed again", "from parts", "parts, saved"])
    def test_the_code_that_came_along_edits_bit_for_bit_alike(self, not_installed, expected, way):
        assert not_installed.facts["really not installed"]
        assert torch.equal(not_installed.pictures[way], expected)
        assert not_installed.facts[f"{way} by"] == "predicted"

    def test_trust_is_asked_for(self, not_installed):
        assert "trust_remote_code=True" in not_installed.facts["without trust"]

    def test_a_predictor_that_was_loaded_alone_can_be_saved_again(self, not_installed):
        assert not_installed.facts["predictor saved again"] == "MotionPredictorModel"

    def test_only_the_trust_that_was_given_is_warned_of(self, not_installed):
        other = [text for text in not_installed.facts["warnings"] if "trust_remote_code` is enabled" not in text]
        assert other == []


class TestInBlocks:
    @pytest.mark.parametrize("way", ["in blocks", "in pushed blocks"])
    def test_with_the_package_the_picture_is_the_same(self, installed, expected, way):
        assert torch.equal(installed.pictures[way], expected)

    @pytest.mark.parametrize("way", ["in blocks", "in saved blocks"])
    def test_without_the_package_too(self, not_installed, expected, way):
        assert torch.equal(not_installed.pictures[way], expected)

    def test_blocks_are_pushed_with_code_index_and_card(self, installed, hub):
        names = {"README.md", "modular_blocks.py", "modular_config.json", "modular_model_index.json"}
        assert names | {"motion_predictor/modeling_motion_predictor.py"} <= set(dict(hub.commits)["me/modular"])


class TestWhatIsPushed:
    def test_a_pipeline_goes_with_its_code_and_a_card(self, installed, hub):
        pushed = dict(hub.commits)["me/pipeline"]
        assert {"README.md", "model_index.json", *CODE} <= set(pushed)
        card = ModelCard.load(hub.root / "me" / "pipeline" / "README.md")
        assert card.data.library_name == "diffusers"
        assert "dynadrag" in card.data.tags
        assert 'from_pretrained("me/pipeline"' in card.text

    def test_a_predictor_goes_with_its_code_and_a_card(self, installed, hub):
        pushed = dict(hub.commits)["me/predictor"]
        assert set(pushed) == {
            "README.md",
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "modeling_motion_predictor.py",
        }
        card = ModelCard.load(hub.root / "me" / "predictor" / "README.md")
        assert 'MotionPredictorModel.from_pretrained("me/predictor")' in card.text

    def test_saving_and_pushing_at_once_is_the_same(self, installed, hub):
        assert set(dict(hub.commits)["me/saved-and-pushed"]) == set(dict(hub.commits)["me/pipeline"])
        card = ModelCard.load(hub.root / "me" / "saved-and-pushed" / "README.md")
        assert 'from_pretrained("me/saved-and-pushed"' in card.text

    def test_a_card_that_is_there_stays(self, installed, hub):
        text = (hub.root / "me" / "with-card" / "README.md").read_text()
        assert "Written by hand." in text
        assert "from_pretrained" not in text


class TestAFolder:
    def test_holds_code_and_an_index_that_names_it(self, whole, tmp_path):
        whole.save_pretrained(tmp_path)
        assert {"README.md", *CODE} <= files(tmp_path)
        index = read_index(tmp_path)
        assert index["_class_name"] == ["pipeline", "DynaDragPipeline"]
        assert index["motion_predictor"] == ["modeling_motion_predictor", "MotionPredictorModel"]
        assert index["unet"] == ["diffusers", "UNet2DConditionModel"]

    def test_without_a_predictor_names_none(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert read_index(tmp_path)["motion_predictor"] == [None, None]
        assert not (tmp_path / "motion_predictor").exists()
        assert DynaDragPipeline.from_pretrained(tmp_path).motion_predictor is None

    def test_does_not_say_where_the_pipeline_was_loaded_from(self, tmp_path):
        DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT).save_pretrained(tmp_path)
        assert "_name_or_path" not in read_index(tmp_path)

    def test_is_loaded_by_the_class_that_is_asked(self, whole, tmp_path):
        class Mine(DynaDragPipeline):
            pass

        whole.save_pretrained(tmp_path)
        mine = Mine.from_pretrained(tmp_path)
        assert type(mine) is Mine
        assert type(mine.motion_predictor) is MotionPredictorModel
        mine.save_pretrained(tmp_path / "again")
        assert read_index(tmp_path / "again")["_class_name"] == ["pipeline", "DynaDragPipeline"]

    def test_leaves_a_predictor_of_another_class_to_diffusers(self, pipe, tmp_path):
        class OtherPredictor(MotionPredictorModel):
            pass

        pipe.register_modules(motion_predictor=OtherPredictor(**dict(make_motion_predictor().config)))
        pipe.save_pretrained(tmp_path)
        assert read_index(tmp_path)["motion_predictor"] == [__name__, "OtherPredictor"]

    def test_keeps_a_card_that_is_there(self, whole, tmp_path):
        (tmp_path / "README.md").write_text("Mine.\n")
        whole.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == "Mine.\n"

    def test_is_refused_by_the_base_class_without_trust(self, whole, tmp_path):
        whole.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(tmp_path)


def change_weights(folder: Path, remove: str | None = None, add: str | None = None, variant: str = "") -> None:
    """Take weights that begin with `remove` out of a network's file, or put another into it."""
    (file,) = folder.glob(f"*model{variant}.safetensors")
    weights = {name: value for name, value in load_file(file).items() if not remove or not name.startswith(remove)}
    if add:
        weights[add] = torch.ones(3)
    save_file(weights, file, {"format": "pt"})


class TestWeights:
    """A network with gaps would be random where they are, and the edit only look bad."""

    @pytest.fixture
    def folder(self, whole, tmp_path) -> Path:
        whole.save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("network", "weight"),
        [
            ("text_encoder", "embeddings."),
            ("vae", "encoder.conv_in."),
            ("unet", "conv_out."),
            ("motion_predictor", "encoder.blocks.0.conv."),
        ],
    )
    def test_that_are_missing_are_refused_by_name(self, folder, network, weight):
        change_weights(folder / network, remove=weight)
        with pytest.raises(
            ValueError, match=rf"^`{network}` must be all .*{network}`, which lacks 2, such as {weight}"
        ):
            DynaDragPipeline.from_pretrained(folder)

    @pytest.mark.parametrize("network", ["text_encoder", "vae", "unet", "motion_predictor"])
    def test_of_something_else_are_refused_by_name(self, folder, network):
        change_weights(folder / network, add="alien.weight")
        with pytest.raises(
            ValueError, match=rf"^`{network}` must be all .* which has others, 1, such as alien.weight"
        ):
            DynaDragPipeline.from_pretrained(folder)

    def test_under_names_that_are_not_read_are_missing_and_too_many(self, folder):
        change_weights(folder / "unet", remove="conv_in.", add="conv_first.weight")
        with pytest.raises(
            ValueError, match=r"lacks 2, .*conv_in.bias, conv_in.weight and has others, 1, .*conv_first"
        ):
            DynaDragPipeline.from_pretrained(folder)

    def test_of_a_network_that_is_passed_are_not_asked_for(self, whole, folder):
        change_weights(folder / "unet", remove="conv_out.")
        assert DynaDragPipeline.from_pretrained(folder, unet=whole.unet).unet is whole.unet

    def test_of_a_variant_are_those_that_are_looked_at(self, whole, folder):
        whole.unet.save_pretrained(folder / "unet", variant="fp16")
        change_weights(folder / "unet", remove="conv_out.", variant=".fp16")
        assert DynaDragPipeline.from_pretrained(folder).unet is not None
        with pytest.raises(ValueError, match=r"`unet` must be all .*lacks 2"):
            DynaDragPipeline.from_pretrained(folder, variant="fp16")

    def test_are_looked_for_in_all_shards(self, whole, folder):
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        whole.unet.save_pretrained(folder / "unet", max_shard_size="50KB")
        assert DynaDragPipeline.from_pretrained(folder, dtype=torch.float16).unet.dtype == torch.float16
        file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index = json.loads(file.read_text())
        shard = file.with_name(index["weight_map"].pop("conv_in.bias"))
        file.write_text(json.dumps(index))
        save_file({name: value for name, value in load_file(shard).items() if name != "conv_in.bias"}, shard)
        with pytest.raises(ValueError, match=r"`unet` must be all .*lacks 1, such as conv_in.bias"):
            DynaDragPipeline.from_pretrained(folder)

    def test_in_the_layout_of_older_versions_are_all_there(self, whole, folder):
        """As in Stable Diffusion's own repositories: a level more, a buffer more, other names in the autoencoder."""
        file = folder / "text_encoder" / "model.safetensors"
        older = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
        older["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(older, file, {"format": "pt"})
        file = folder / "vae" / "diffusion_pytorch_model.safetensors"
        renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        older = {}
        for name, value in load_file(file).items():
            new = next(
                (name.replace(f".{now}.", f".{then}.") for now, then in renames.items() if f".{now}." in name), name
            )
            older[new] = value
        assert any(".proj_attn." in name for name in older)
        torch.save(older, file.with_suffix(".bin"))
        file.unlink()
        pipe = DynaDragPipeline.from_pretrained(folder)
        for network in ("text_encoder", "vae"):
            expected = getattr(whole, network).state_dict()
            assert all(torch.equal(value, expected[n]) for n, value in getattr(pipe, network).state_dict().items())

    def test_on_the_hub_are_looked_at_too(self, installed):
        assert "`vae` must be all weights of a AutoencoderKL" in installed.facts["with gaps"]
        assert "lacks 2, such as encoder.conv_in.bias" in installed.facts["with gaps"]


class TestACard:
    def test_holds_what_is_passed(self, whole):
        card = whole.model_card("me/x", license="mit", base_model="org/sd", figures={"handles that arrived": "92 %"})
        assert (card.data.license, card.data.base_model) == ("mit", "org/sd")
        assert "| handles that arrived | 92 % |" in card.text
        assert "Licence of the weights: mit." in card.text

    def test_takes_over_the_licence_of_the_folder_that_was_loaded(self):
        card = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT).model_card("me/x")
        assert card.data.license == "apache-2.0"

    def test_names_the_repository_that_was_loaded_as_the_base(self, pipe):
        pipe.register_to_config(_name_or_path="org/stable-diffusion")
        assert pipe.model_card("me/x").data.base_model == "org/stable-diffusion"
        assert pipe.model_card("me/x", base_model="org/other").data.base_model == "org/other"

    def test_lists_the_networks_with_their_sizes(self, whole):
        count = sum(parameter.numel() for parameter in whole.unet.parameters()) / 1e6
        assert f"| `unet` | `UNet2DConditionModel` | {count:.2f} M |" in whole.model_card("me/x").text

    def test_of_a_predictor_says_its_size(self):
        card = make_motion_predictor().model_card("me/predictor", license="mit", figures={"error": "0.1 px"})
        assert "short side of 64 px" in card.text
        assert card.data.license == "mit"
        assert "| error | 0.1 px |" in card.text
