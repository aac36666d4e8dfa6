"""The nodes for ComfyUI, against its contract, in a runner that keeps it."""

from __future__ import annotations

import doctest
import json
import os
import sys
import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dynadrag_pipeline import DynaDragPipeline
from support.comfy_contract import CORE, LoadImage, SaveImage, check_node, fingerprints, load_pack, run, validate
from support.unchanged import snapshot

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
PACK = load_pack(FOLDER)
OURS: dict[str, type[Any]] = PACK.NODE_CLASS_MAPPINGS
NODES = CORE | OURS
POINTS = sys.modules[f"{PACK.__name__}.points"]
QUICK = json.dumps({"num_inference_steps": 4, "supervision_steps": 2, "identity_lora_steps": 2})
HEIGHT, WIDTH = 64, 80


@pytest.fixture
def portrait(monkeypatch, picture) -> torch.Tensor:
    """What `LoadImage` answers: a picture of ComfyUI's kind, and the empty mask that it gives without transparency."""
    image = picture[:, :HEIGHT, :WIDTH].movedim(0, -1)[None].clone()
    monkeypatch.setattr(LoadImage, "image", image)
    monkeypatch.setattr(LoadImage, "mask", torch.zeros(1, 64, 64))
    monkeypatch.setattr(SaveImage, "saved", [])
    return image


@pytest.fixture
def tiny(monkeypatch, pipe) -> DynaDragPipeline:
    """The loader gives a pipeline of random weights."""
    monkeypatch.setattr(OURS["DynaDragLoader"], "load", lambda self, **_: (pipe,))
    return pipe


@pytest.fixture
def workflow() -> dict[str, dict[str, Any]]:
    """The example, with points that are on a small picture and options for a quick edit."""
    prompt = json.loads((FOLDER / "example_workflow.json").read_text())
    for place in ("3", "5"):
        prompt[place]["inputs"]["points"] = '{"points": [[30, 30], [40, 30]]}'
    prompt["5"]["inputs"] |= {"settings": QUICK, "iterations": 2}
    return prompt


class Comfy:
    """What ComfyUI offers to a running node. The user cancels when it has been asked so many times."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.asked, self.cancel_after, self.bars = 0, cancel_after, []

    class Cancelled(Exception):
        pass

    def throw_exception_if_processing_interrupted(self) -> None:
        self.asked += 1
        if self.asked == self.cancel_after:
            raise self.Cancelled

    def ProgressBar(self, total: int) -> Any:
        bar = _Bar(total)
        self.bars.append(bar)
        return bar


class _Bar:
    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def update(self, steps: int) -> None:
        self.done += steps


@pytest.fixture
def comfy(monkeypatch) -> Callable[..., Comfy]:
    def running(cancel_after: int | None = None) -> Comfy:
        offered = Comfy(cancel_after)
        modules = {name: ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management")}
        modules["comfy.utils"].ProgressBar = offered.ProgressBar  # type: ignore[attr-defined]
        management: Any = modules["comfy.model_management"]
        management.throw_exception_if_processing_interrupted = offered.throw_exception_if_processing_interrupted
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return offered

    return running


# --- the contract ---


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_node_keeps_the_contract(name):
    check_node(OURS[name])


def test_every_node_has_a_name_to_be_shown():
    assert PACK.NODE_DISPLAY_NAME_MAPPINGS.keys() == OURS.keys()
    assert not OURS.keys() & CORE.keys()


def test_the_example_is_a_workflow_that_comfyui_accepts():
    assert validate(json.loads((FOLDER / "example_workflow.json").read_text()), NODES) == []


@pytest.mark.parametrize(
    ("place", "changes", "error"),
    [
        ("5", {"points": "here"}, "5: `points` must be"),
        ("3", {"points": '{"points": [[1, 2]]}'}, "3: `points` must be an even number"),
        ("5", {"settings": "[]"}, "5: `settings` must be a JSON object"),
        ("5", {"preset": "slow"}, "5: preset is not in its list"),
        ("5", {"iterations": -1}, "5: iterations has a value that it does not take"),
        ("5", {"image": ["1", 0]}, "5: image is linked to another type"),
    ],
)
def test_a_mistake_is_told_before_anything_is_run(place, changes, error):
    prompt = json.loads((FOLDER / "example_workflow.json").read_text())
    prompt[place]["inputs"] |= changes
    assert [each for each in validate(prompt, NODES) if each.startswith(error)]


def test_points_of_a_link_are_not_checked_beforehand():
    assert OURS["DynaDragEdit"].VALIDATE_INPUTS() is True


def test_the_registrys_file_says_what_is_known_and_nothing_that_is_not():
    described = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert {"name", "version", "license", "dependencies"} <= described["project"].keys()
    assert described["tool"]["comfy"] == {"DisplayName": "DynaDrag"}
    assert "" not in [
        value for table in (described["project"], described["tool"]["comfy"]) for value in table.values()
    ]


def test_a_folder_that_was_written_anew_is_loaded_anew(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text("{}")
    loader, given = OURS["DynaDragLoader"], {"motion_predictor": "embedded", "device": "auto", "dtype": "auto"}
    before = loader.IS_CHANGED(model=str(tmp_path), **given)
    assert before == loader.IS_CHANGED(model=str(tmp_path), **given)
    os.utime(index, (1, 1))
    assert before != loader.IS_CHANGED(model=str(tmp_path), **given)


def test_a_loader_whose_inputs_are_linked_is_not_run_each_time(workflow):
    workflow["1"] = {"class_type": "DynaDragLoader", "inputs": {"model": ["9", 0], "motion_predictor": ["9", 0]}}
    assert fingerprints(workflow, NODES)["1"] == fingerprints(workflow, NODES)["1"]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"`device` must be one that is here, .*cpu; got cuda"):
        OURS["DynaDragLoader"]().load("embedded", "embedded", "cuda", "auto")


# --- running it ---


def test_the_example_runs_with_random_weights(portrait, tiny, workflow):
    answers = run(workflow, NODES)
    preview, edited = SaveImage.saved
    assert preview.shape == edited.shape == portrait.shape
    assert not torch.equal(edited, portrait)
    report = json.loads(answers["5"][1])
    assert len(report) == 1
    assert report[0]["iterations"] == 2
    assert report[0]["motion_source"] == "straight"
    assert json.loads(answers["3"][2])[0][0] == {"x": 30, "y": 30}
    assert json.loads(answers["3"][2])[0][-1] == {"x": 40, "y": 30}


def test_an_edit_in_a_node_is_the_pipelines_own(portrait, tiny, workflow):
    by_node = run(workflow, NODES)["5"][0]
    output = tiny(
        portrait[0].movedim(-1, 0),
        [(30, 30)],
        [(40, 30)],
        settings=json.loads(QUICK),
        max_iterations=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(by_node[0], output.images[0].movedim(0, -1), atol=1e-5, rtol=0)


@pytest.mark.embedded
def test_the_example_runs_with_the_embedded_checkpoint(portrait, workflow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    workflow["5"]["inputs"] |= {"settings": '{"num_inference_steps": 10, "identity_lora_steps": 2}', "iterations": 1}
    answers = run(workflow, NODES)
    assert json.loads(answers["5"][1])[0]["motion_source"] == "predicted"
    preview, edited = SaveImage.saved
    assert preview.shape == edited.shape == portrait.shape
    assert not torch.equal(edited, portrait)


def test_a_batch_is_edited_picture_by_picture(portrait, tiny, workflow, monkeypatch):
    alone = run(deepcopy(workflow), NODES)["5"][0]
    monkeypatch.setattr(LoadImage, "image", torch.cat([portrait, portrait.flip(2)]))
    answers = run(workflow, NODES)
    assert answers["5"][0].shape == (2, HEIGHT, WIDTH, 3)
    assert answers["3"][1].shape == (2, HEIGHT, WIDTH)
    assert len(json.loads(answers["5"][1])) == 2
    torch.testing.assert_close(answers["5"][0][:1], alone, atol=1e-5, rtol=0)


def test_nothing_outside_a_mask_changes_in_the_preview(portrait, tiny, workflow, monkeypatch):
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 16:48, 16:64] = 1
    monkeypatch.setattr(LoadImage, "mask", mask)
    workflow["3"]["inputs"]["draw_paths"] = False
    shown, disoccluded, _ = run(workflow, NODES)["3"]
    outside = mask == 0
    assert (shown - portrait).abs()[outside].max() < 0.51 / 255  # as a picture of bytes
    assert (shown - portrait).abs()[mask == 1].max() > 0.02
    assert not disoccluded[outside].any()


def test_masks_that_are_too_many_are_refused(portrait, tiny, workflow, monkeypatch):
    monkeypatch.setattr(LoadImage, "mask", torch.ones(3, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="`mask` must be one, or one for each of the 1 pictures, got 3"):
        run(workflow, NODES)


def test_splines_that_bend_are_followed(portrait, tiny, workflow):
    bent = [{"x": 30, "y": 30}, {"x": 35, "y": 45}, {"x": 40, "y": 30}]
    workflow["5"]["inputs"]["points"] = str(bent)  # with single quotes
    assert json.loads(run(workflow, NODES)["5"][1])[0]["motion_source"] == "path"


def test_progress_is_shown_and_the_pipelines_own_bar_comes_back(portrait, tiny, workflow, comfy):
    offered = comfy()
    run(workflow, NODES)
    assert [bar.total for bar in offered.bars] == [2, 4, 4, 2]  # LoRA, inversion, reference, dragging
    assert [bar.done for bar in offered.bars] == [2, 4, 4, 2]
    assert "progress_bar" not in vars(tiny)


@pytest.mark.parametrize("asked", [3, 8, 14, 16], ids=["LoRA", "inversion", "dragging", "iteration"])
def test_a_cancelled_edit_leaves_nothing_broken(asked, portrait, tiny, workflow, comfy):
    expected = run(workflow, NODES)["5"][0]
    tiny.identity_loras.__init__()  # type: ignore[misc]
    before = snapshot(tiny)
    offered = comfy(cancel_after=asked)
    with pytest.raises(Comfy.Cancelled):
        run(workflow, NODES)
    assert offered.asked == asked
    assert snapshot(tiny) == before
    assert "progress_bar" not in vars(tiny)
    torch.testing.assert_close(run(workflow, NODES)["5"][0], expected)


# --- points ---


def test_examples_of_points():
    assert doctest.testmod(POINTS).failed == 0


@pytest.mark.parametrize(
    "points",
    [
        '{"points": [[20, 30], [40, 30], [50, 50], [50, 50]]}',
        '{"handles": [[20, 30], [50, 50]], "targets": [[40, 30], [50, 50]]}',
        "[[20, 30], [40, 30], [50, 50], [50, 50]]",
        '[[{"x": 20, "y": 30}, {"x": 40, "y": 30}], [{"x": 50, "y": 50}]]',
        '[{"x": 20, "y": 30}, {"x": 40, "y": 30}]\n[{"x": 50, "y": 50}, {"x": 50, "y": 50}]',
        "[{'x': 20, 'y': 30}, {'x': 30, 'y': 30.5}, {'x': 40, 'y': 30}], [{'x': 50, 'y': 50}]",
        ['[{"x": 20, "y": 30}, {"x": 40, "y": 30}]', '[{"x": 50, "y": 50}]'],
        json.dumps(['[{"x": 20, "y": 30}, {"x": 40, "y": 30}]', '[{"x": 50, "y": 50}]']),
    ],
)
def test_all_layouts_say_the_same(points):
    drags = POINTS.read_points(points)
    assert (drags.handles, drags.targets) == ([[20, 30], [50, 50]], [[40, 30], [50, 50]])
    assert drags.drawn is None


def test_paths_and_prompt_of_an_instruction_are_kept():
    drags = POINTS.read_points('{"points": [[20, 30], [40, 30]], "paths": [[[30, 40]]], "prompt": "a face"}')
    assert drags.drawn == [[[30, 40]]]
    assert drags.prompt == "a face"


def test_a_spline_over_the_edge_of_its_canvas_ends_on_the_last_pixel():
    drags = POINTS.read_points('[{"x": -0.4, "y": 30}, {"x": 80, "y": 64}]', (HEIGHT, WIDTH))
    assert (drags.handles, drags.targets) == ([[0, 30]], [[79, 63]])
    far = POINTS.read_points('[{"x": 10, "y": 30}, {"x": 200, "y": 64}]', (HEIGHT, WIDTH))
    assert far.targets == [[200, 63]]


@pytest.mark.parametrize(
    "points",
    [
        "",
        "here",
        "7",
        "[]",
        "{}",
        "null",
        '["a"]',
        "[[]]",
        "[[1, 2]]",
        "[[1, 2], [3]]",
        '[{"x": 1}]',
        '[{"x": 1, "y": "2"}]',
        '[{"x": 1, "y": NaN}]',
        '[{"x": 1, "y": 1}, {"x": 9, "y": 9}, {"x": 1, "y": 1}]',
        '{"points": [[1, 2], [3, 4]], "paths": [null, null]}',
        '{"points": [[1, 2], [3, 4]], "prompt": 7}',
        '{"handles": [[1, 2]], "targets": [[1, 2], [3, 4]]}',
        "[" * 100_000,
        " " * 2**21,
    ],
)
def test_other_points_are_refused_by_name(points):
    with pytest.raises(ValueError, match="`points`"):
        POINTS.read_points(points)
