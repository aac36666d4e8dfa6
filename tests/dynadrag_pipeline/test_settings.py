"""Options that are said once, and which of several sayings is in force."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import dynadrag_pipeline
from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline, settings
from dynadrag_pipeline.settings import (
    PRESETS,
    DragSettings,
    check_recommended,
    recommended_settings,
    settings_in_force,
)
from motion_predictor.common import options
from motion_predictor.common.options import SAME, options_of
from support.tiny_models import make_scheduler, make_unet, make_vae

ROOT = Path(__file__).parents[2]
HANDLES, TARGETS = [(40, 30)], [(60, 50)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inversion_strength", 0),
        ("inversion_strength", 1.01),
        ("max_iterations", 0),
        ("max_iterations", 10**400),
        ("supervision_steps", 0),
        ("supervision_lr", 0),
        ("supervision_lr", 1e300),
        ("supervision_damping", -0.1),
        ("supervision_reach", 0),
        ("settle_iterations", -1),
        ("supervision_radius", -1),
        ("supervision_radius", 10**9),
        ("mask_weight", -0.1),
        ("channel_reduction", "max"),
        ("source_patches", "edit"),
        ("optimizer_scope", "step"),
        ("dynamic_selection", "some"),
        ("similarity_threshold", 1.5),
        ("motion_guard", None),
        ("stop_distance", -1),
        ("identity_lora_steps", -1),
        ("identity_lora_rank", 0),
        ("identity_lora_lr", float("nan")),
        ("hold_unselected", 1),
        ("restore_source", "yes"),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got "):
        DragSettings(**{name: value})


def test_a_keyword_goes_before_settings_these_before_the_preset_and_that_before_the_checkpoint():
    recommended = {"max_iterations": 1, "supervision_steps": 1, "supervision_lr": 0.1, "preview_steps": 1}
    given = {"max_iterations": 4}
    in_force = settings_in_force(given, {"max_iterations": 3, "supervision_steps": 3}, "fast", recommended)
    values, origins = in_force.settings, in_force.origins
    assert (values.max_iterations, origins["max_iterations"]) == (4, "given")
    assert (values.supervision_steps, origins["supervision_steps"]) == (3, "given")
    assert (values.preview_steps, origins["preview_steps"]) == (PRESETS["fast"]["preview_steps"], "preset")
    assert (values.supervision_lr, origins["supervision_lr"]) == (0.1, "checkpoint")
    assert (values.mask_weight, origins["mask_weight"]) == (0.1, "paper")
    assert (values.supervision_damping, origins["supervision_damping"]) == (0.0, "default")


def test_the_preset_of_the_paper_is_the_paper_whatever_the_checkpoint_says():
    recommended = dict.fromkeys(("preview_steps", "dynamic_selection")) | {"supervision_lr": 9.0}
    in_force = settings_in_force({}, preset="paper", recommended=recommended)
    assert in_force == settings_in_force({}, "paper"), "it may be said as settings, too"
    for name, each in options_of(DragSettings).items():
        expected = each.default if each.paper is SAME else each.paper
        assert getattr(in_force.settings, name) == expected
        assert in_force.origins[name] == "paper"
    assert in_force.settings.motion_guard == "none"


def test_settings_as_an_object_are_complete():
    in_force = settings_in_force({}, DragSettings(max_iterations=3), None, {"supervision_lr": 0.5})
    assert in_force.settings == DragSettings(max_iterations=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"given": {"iterations": 3}}, "`iterations` is no option: it must be one of max_iterations,"),
        ({"given": {}, "settings": {"max_iterations": 0}}, "`max_iterations` must be"),
        ({"given": {}, "settings": "best"}, "`settings` must be one of 'paper', 'fast', 'carry', got 'best'"),
        ({"given": {}, "settings": 5}, "`settings` must be DragSettings, a mapping or the name of a preset, got 5"),
        ({"given": {}, "preset": "best"}, "`preset` must be one of"),
    ],
)
def test_what_is_no_setting_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings_in_force(**arguments)


def test_a_checkpoint_of_another_version_may_recommend_what_this_one_does_not_know():
    assert check_recommended({"max_iterations": 9, "not_yet": 1}) == {"max_iterations": 9}
    with pytest.raises(ValueError, match="`max_iterations` must be"):
        check_recommended({"max_iterations": 0})
    with pytest.raises(ValueError, match="`recommended_settings` must be a mapping"):
        check_recommended([1])


# --- with the checkpoint ---


@pytest.fixture
def recommending(pipe: DynaDragPipeline, quick: dict) -> DynaDragPipeline:
    """A pipeline that brings its quick settings along."""
    other = DynaDragPipeline(**pipe.components, recommended_settings={**quick, "supervision_reach": 0.5})
    other.set_progress_bar_config(disable=True)
    return other


def test_a_saved_pipeline_brings_its_settings_along(recommending, picture, tmp_path):
    recommending.save_pretrained(tmp_path)
    assert recommended_settings(tmp_path)["supervision_reach"] == 0.5
    loaded = DynaDragPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    output = loaded(picture, HANDLES, TARGETS)
    assert len(output.iterations) == 3
    assert output.settings.origins["supervision_reach"] == "checkpoint"
    assert loaded(picture, HANDLES, TARGETS, supervision_reach=None).settings.settings.supervision_reach is None


def test_the_embedded_checkpoint_brings_along_what_had_to_be_passed_before():
    with pytest.warns(FutureWarning, match="is not needed any more"):
        before = dynadrag_pipeline.EMBEDDED_SETTINGS
    assert before == recommended_settings(EMBEDDED_CHECKPOINT)
    assert before["source_patches"] == "original"


def test_settings_go_through_other_pipelines_and_back(recommending):
    generating = StableDiffusionPipeline.from_pipe(recommending)
    for pipe in (DynaDragPipeline.from_pipe(recommending), DynaDragPipeline.from_pipe(generating)):
        assert pipe.settings_in_force().settings == recommending.settings_in_force().settings


def test_a_pipeline_that_recommends_nonsense_is_refused_when_it_is_made(text_encoder, tokenizer):
    parts = (make_vae(), text_encoder, tokenizer, make_unet(), make_scheduler())
    with pytest.raises(ValueError, match="`max_iterations` must be"):
        DynaDragPipeline(*parts, recommended_settings={"max_iterations": 0})


def test_a_damaged_index_is_named(tmp_path):
    assert recommended_settings(tmp_path) == {}
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index.json` must be a JSON file"):
        recommended_settings(tmp_path)


def test_every_setting_of_an_edit_is_in_its_record_with_its_origin(pipe, picture, quick):
    output = pipe(picture, HANDLES, TARGETS, **quick)
    record = output.settings.record()
    assert set(record) == set(options_of(DragSettings))
    assert record["max_iterations"] == {"value": 3, "from": "given"}
    assert record["mask_weight"] == {"value": 0.1, "from": "paper"}
    assert output.provenance["seed"] == 0
    assert output.provenance["versions"]["torch"] == torch.__version__


# --- every face ---

MADE_UP = """\
    made_up: int | None = option(
        None,
        WholeNumber(or_none=True, least=3),
        "a word that nobody has used, in furlongs",
        group=DRAG_LOOP,
        source="Sec. 99",
        default_text="as it comes",
    )

    def __post_init__(self) -> None:
        check_fields(self)
"""

FACES = """\
import contextlib, inspect, io, json, sys
from dynadrag_pipeline import DynaDragPipeline, modular_blocks
from dynadrag_pipeline.cli import build_parser, main
from dynadrag_pipeline.settings import DragSettings, settings_in_force
from motion_predictor.common.options import given_options, options_table
from motion_predictor.common.remote_code import self_contained

printed = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
    main(["edit", "--help"])
command = ["edit", "p.png", "--handle", "1,1", "--target", "2,2", "--made-up"]
inputs = {each.name: each for each in modular_blocks.DynaDragBlocks().inputs}
faces = {
    "signature": str(inspect.signature(DynaDragPipeline.__call__).parameters["made_up"]),
    "session": str(inspect.signature(DynaDragPipeline.open_session).parameters["made_up"]),
    "docstring": DynaDragPipeline.__call__.__doc__,
    "block": inputs["made_up"].description,
    "help": printed.getvalue(),
    "command line": [
        given_options(build_parser().parse_args([*command, text]), DragSettings)["made_up"] for text in ("7", "none")
    ],
    "record": settings_in_force({"made_up": 7}).record()["made_up"],
    "table": options_table(DragSettings),
    "remote code": self_contained("dynadrag_pipeline.pipeline_dynadrag"),
}
json.dump(faces, sys.stdout)
"""


def test_an_option_that_is_added_to_the_settings_is_found_at_every_face(tmp_path):
    """One field more in a copy of the package, and nothing else."""
    for package in ("dynadrag_pipeline", "motion_predictor", "conversion"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__", "*.jpg")
        )
    file = tmp_path / "dynadrag_pipeline" / "settings.py"
    before = "    def __post_init__(self) -> None:\n        check_fields(self)\n"
    assert file.read_text().count(before) == 1
    file.write_text(file.read_text().replace(before, MADE_UP))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", FACES], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    faces = json.loads(done.stdout)
    assert faces["signature"] == faces["session"] == "made_up: int | None = None"
    for face in ("docstring", "block", "help", "table", "remote code"):
        assert "a word that nobody has used, in furlongs" in " ".join(faces[face].split()), face
    for face in ("docstring", "block", "help", "table"):
        assert "(Sec. 99)" in faces[face], face
        assert "as it comes" in faces[face], face
    assert "--made-up" in faces["help"]
    assert faces["command line"] == [7, None]
    assert faces["record"] == {"value": 7, "from": "given"}


def test_every_option_is_in_the_signature_with_its_type_and_default():
    parameters = inspect.signature(DynaDragPipeline.__call__).parameters
    hints = typing.get_type_hints(DragSettings)
    for name, each in options_of(DragSettings).items():
        assert parameters[name].default == each.default, name
        assert parameters[name].annotation == hints[name], name
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_the_paper_gives_says_where():
    for name, each in options_of(DragSettings).items():
        assert each.help
        assert each.group, name
        assert not each.help.endswith("."), name


def test_a_keyword_that_nobody_knows_is_an_error(pipe, picture):
    with pytest.raises(TypeError, match="iterations"):
        pipe(picture, HANDLES, TARGETS, iterations=3)


@pytest.mark.parametrize("module", [settings, options])
def test_the_examples_in_the_docstrings_run(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_two_presets_are_refused_and_unknown_ones_named_beside_any_settings():
    assert settings_in_force({}, "fast", "fast") == settings_in_force({}, "fast")
    with pytest.raises(ValueError, match="`preset` must be left out where `settings` names one"):
        settings_in_force({}, "fast", "paper")
    with pytest.raises(ValueError, match="`preset` must be"):
        settings_in_force({}, "fast", "nonsense")


def test_the_settings_of_a_result_are_settings():
    in_force = settings_in_force({"max_iterations": 3}, preset="fast")
    assert settings_in_force({}, in_force).settings == in_force.settings
