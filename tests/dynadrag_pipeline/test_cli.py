from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

import dynadrag_pipeline
from dynadrag_pipeline import cli
from dynadrag_pipeline.cli import main
from dynadrag_pipeline.commands import edit as edit_command
from dynadrag_pipeline.commands.edit_model import suitable_dtype
from dynadrag_pipeline.drag_instruction import DragInstruction, load_instruction
from dynadrag_pipeline.identity_lora import IdentityLora
from dynadrag_pipeline.settings import DragSettings
from motion_predictor import MotionPredictorModel
from motion_predictor.common.options import options_of
from support.fake_pipeline import EDIT, EDITED_COLOUR, edit, names, the_error
from support.tiny_models import make_motion_predictor

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def test_edit_writes_picture_sheet_and_record(pipeline, portrait, out, capsys):
    assert edit(portrait, out, *EDIT, "--handle", "50,10", "--target", "50,26") == 0
    assert names(out) == ["portrait-edited.png", "portrait-sheet.png", "result.json"]
    with Image.open(out / "portrait-edited.png") as picture:
        assert (picture.size, picture.getpixel((5, 5))) == ((96, 80), EDITED_COLOUR)
    with Image.open(out / "portrait-sheet.png") as sheet:
        tile = (round(96 * 256 / 80), 256)
        assert sheet.size == (2 * tile[0] + 3 * 16, 2 * (tile[1] + 32) + 16)

    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert record["handles"] == [[20, 30], [50, 10]]
    assert record["targets"] == [[40, 30], [50, 26]]
    assert record["trajectories"] == [[[20, 30], [50, 10]], [[25, 30], [50, 14]], [[30, 30], [50, 18]]]
    assert record["mean_remaining_distance"] == 9
    assert (record["stop_reason"], record["motion_source"]) == ("stalled", "predicted")
    assert record["size"] == {"width": 96, "height": 80}
    assert record["versions"] == {"torch": "2"}
    assert record["iterations"][1] == {
        "handles": [[25, 30], [50, 14]],
        "predicted_step": [[5, 0], [0, 4]],
        "step": [[5, 0], [0, 4]],
        "valid": [True, True],
        "similarities": [1, 1],
        "loss_before": 0.25,
        "loss_after": 0.125,
        "wrong_way_count": 1,
        "gradient_retries": 0,
        "invented": 0,
        "unfolded": 0,
        "added": 0,
    }
    assert len(record["iterations"]) == 2
    assert 0 <= record["seconds"] < 60
    printed = capsys.readouterr().out
    for name in names(out):
        assert str(out / name) in printed
    assert "2 iterations by the motion predictor, ended: stalled; mean remaining distance 9.0 px" in printed


def test_help_shows_the_defaults_that_are_in_force(capsys, tmp_path):
    """Those of the embedded model, of a model in a folder, and of a preset."""
    (tmp_path / "model_index.json").write_text('{"recommended_settings": {"supervision_radius": 77}}')

    def help_of(*options: str) -> str:
        with pytest.raises(SystemExit):
            main(["edit", "--help", *options])
        return " ".join(capsys.readouterr().out.split())

    radius = "on a grid of half the picture's size (Sec. 4.2) (default: {})"
    assert radius.format(8) in help_of()
    assert radius.format(77) in help_of("--model", str(tmp_path))
    assert radius.format(1) in help_of("--model", str(tmp_path), "--preset", "paper")


def test_options_may_come_from_a_file_such_as_the_record_of_an_edit(pipeline, portrait, out, tmp_path):
    assert edit(portrait, out, *EDIT, "--supervision-radius", "5", "--dynamic-selection", "none") == 0
    again = tmp_path / "again"
    assert edit(portrait, again, *EDIT, "--settings", str(out / "result.json"), "--supervision-radius", "6") == 0
    settings = json.loads((again / "result.json").read_text())["settings"]
    assert settings["supervision_radius"]["value"] == 6
    assert settings["dynamic_selection"]["value"] is None


def test_what_is_not_given_is_left_to_the_pipeline(pipeline, portrait, out):
    assert edit(portrait, out, *EDIT) == 0
    (call,) = pipeline.calls
    assert set(call) == {"image", "handles", "targets", "prompt", "generator", "return_intermediates"}
    assert call["handles"] == [(20, 30)]
    assert call["targets"] == [(40, 30)]
    assert call["prompt"] == ""
    assert call["generator"].initial_seed() == 0
    assert call["return_intermediates"] is True
    assert pipeline.loaded == [(str(dynadrag_pipeline.EMBEDDED_CHECKPOINT), torch.float32)]
    assert pipeline.moved_to == ["cpu"]
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert set(record["settings"]) == set(options_of(DragSettings))
    assert record["settings"]["max_iterations"] == {"value": 25, "from": "paper"}
    assert record["settings"]["return_intermediates"] == {"value": True, "from": "given"}
    assert record["model"] == "embedded"


@pytest.mark.parametrize(("device", "saving"), [("cpu", []), ("cuda", ["offload from cuda"])])
def test_low_memory_recomputes_activations_and_keeps_models_off_the_gpu(
    pipeline, portrait, out, monkeypatch, device, saving
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    points = ("--handle", "10,20", "--target", "30,20")
    assert edit(portrait, out, *points, "--low-memory", "--device", device) == 0
    assert pipeline.saving == ["checkpointing", *saving]
    assert pipeline.moved_to == ([] if saving else ["cpu"])


@pytest.mark.parametrize(
    ("flag", "text", "keyword", "value"),
    [
        ("--max-iterations", "7", "max_iterations", 7),
        ("--steps", "20", "num_inference_steps", 20),
        ("--inversion-strength", "0.7", "inversion_strength", 0.7),
        ("--supervision-lr", "0.02", "supervision_lr", 0.02),
        ("--supervision-damping", "0.05", "supervision_damping", 0.05),
        ("--supervision-reach", "0.2", "supervision_reach", 0.2),
        ("--settle-iterations", "3", "settle_iterations", 3),
        ("--supervision-steps", "3", "supervision_steps", 3),
        ("--preview-steps", "4", "preview_steps", 4),
        ("--kv-placement", "host", "kv_placement", "host"),
        ("--dynamic-selection", "first", "dynamic_selection", "first"),
        ("--dynamic-selection", "none", "dynamic_selection", None),
        ("--motion-guard", "none", "motion_guard", "none"),
        ("--kv-start-layer", "0", "kv_start_layer", 0),
        ("--identity-lora-steps", "0", "identity_lora_steps", 0),
        ("--identity-lora-rank", "4", "identity_lora_rank", 4),
        ("--identity-lora-lr", "1e-3", "identity_lora_lr", 0.001),
        ("--processing-resolution", "384", "processing_resolution", 384),
        ("--stop-distance", "1.5", "stop_distance", 1.5),
        ("--prompt", "a portrait", "prompt", "a portrait"),
        ("--num-inference-steps", "20", "num_inference_steps", 20),
        ("--channel-reduction", "sum", "channel_reduction", "sum"),
        ("--source-patches", "original", "source_patches", "original"),
        ("--optimizer-scope", "iteration", "optimizer_scope", "iteration"),
        ("--supervision-reach", "none", "supervision_reach", None),
        ("--preview-steps", "none", "preview_steps", None),
        ("--stop-distance", "none", "stop_distance", None),
        ("--kv-start-layer", "none", "kv_start_layer", None),
        ("--processing-resolution", "none", "processing_resolution", None),
        ("--motion", "straight", "motion", "straight"),
        ("--path", "20,10;40,10", "motion", [[(20.0, 10.0), (40.0, 10.0)]]),
        ("--path", "straight", "motion", [None]),
        ("--preset", "paper", "preset", "paper"),
        ("--cross-attention-kwargs", '{"scale": 0.5}', "cross_attention_kwargs", {"scale": 0.5}),
    ],
)
def test_options_reach_the_pipeline_by_its_own_names(pipeline, portrait, out, flag, text, keyword, value):
    assert edit(portrait, out, *EDIT, flag, text) == 0
    given = pipeline.calls[0][keyword]
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("flag", "value"), [("--restore-source", True), ("--no-restore-source", False), ("--hold-unselected", True)]
)
def test_what_is_true_or_not_is_said_by_the_flag_alone(pipeline, portrait, out, flag, value):
    assert edit(portrait, out, *EDIT, flag) == 0
    assert pipeline.calls[0][flag.removeprefix("--").removeprefix("no-").replace("-", "_")] is value


@pytest.mark.parametrize(
    ("said", "device", "taken"),
    [
        ("auto", "cuda", "float16"),
        ("auto", "cpu", "float32"),
        ("auto", "mps", "float32"),
        ("float32", "cuda", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_a_gpu_computes_in_half_precision_unless_another_is_asked_for(said, device, taken):
    assert suitable_dtype(said, device) == taken


def test_seed_model_and_dtype(pipeline, portrait, out, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    options = ["--seed", "11", "--model", str(model), "--dtype", "bfloat16"]
    assert edit(portrait, out, *EDIT, *options) == 0
    assert pipeline.loaded == [(str(model), torch.bfloat16)]
    assert pipeline.calls[0]["generator"].initial_seed() == 11
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["model"], record["dtype"]) == (11, str(model), "bfloat16")


def test_progress_bars_are_shown_unless_quiet(pipeline, portrait, out, monkeypatch):
    silenced = []
    for library in (diffusers_logging, transformers_logging):
        monkeypatch.setattr(library, "disable_progress_bar", lambda name=library.__name__: silenced.append(name))
    assert edit(portrait, out, *EDIT) == 0
    assert {"disable": True} not in pipeline.progress
    assert not silenced
    assert edit(portrait, out, *EDIT, "--quiet", "--force") == 0
    assert pipeline.progress[-1] == {"disable": True}
    assert len(silenced) == 2


def test_hub_id_is_not_taken_for_a_folder(pipeline, portrait, out):
    assert edit(portrait, out, *EDIT, "--model", "owner/name") == 0
    assert pipeline.loaded[0][0] == "owner/name"


def test_picture_is_passed_as_opened_with_its_mask(pipeline, tmp_path, out):
    path, mask = tmp_path / "lying.jpg", tmp_path / "mask.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 80)).save(path, exif=exif)
    Image.new("L", (80, 96), 255).save(mask)
    assert edit(path, out, *EDIT, "--mask", str(mask)) == 0
    assert pipeline.calls[0]["image"].size == (96, 80)
    assert pipeline.calls[0]["image"].getexif()[0x0112] == 6
    assert pipeline.calls[0]["mask"].size == (80, 96)


def test_instruction_file_and_prompt(pipeline, portrait, out, tmp_path):
    file = tmp_path / "turn.json"
    file.write_text(json.dumps({"points": [[20, 30], [40, 30], [5, 6], [7, 8]], "prompt": "a face"}))
    assert edit(portrait, out, "--instruction", str(file)) == 0
    assert edit(portrait, out, "--instruction", str(file), "--prompt", "a clown", "--force") == 0
    assert pipeline.calls[0]["handles"] == [[20, 30], [5, 6]]
    assert pipeline.calls[0]["targets"] == [[40, 30], [7, 8]]
    assert [call["prompt"] for call in pipeline.calls] == ["a face", "a clown"]


@pytest.mark.parametrize(
    ("options", "motion"),
    [
        ([], [[[25, 30]]]),
        (["--path", "30,40"], [[(30, 40)]]),
        (["--path", "straight"], [None]),
        (["--motion", "straight"], "straight"),
    ],
)
def test_options_go_before_the_paths_of_an_instruction_file(pipeline, portrait, out, tmp_path, options, motion):
    (tmp_path / "turn.json").write_text(json.dumps({"points": [[20, 30], [40, 30]], "paths": [[[25, 30]]]}))
    assert edit(portrait, out, "--instruction", str(tmp_path / "turn.json"), *options) == 0
    assert pipeline.calls[-1]["motion"] == motion


def test_gif_on_request(pipeline, portrait, out):
    assert edit(portrait, out, *EDIT, "--gif") == 0
    with Image.open(out / "portrait.gif") as gif:
        assert gif.n_frames == 4  # the portrait, two iterations, and what came of it


def test_identity_lora_is_loaded_before_and_saved_after(pipeline, portrait, out, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    IdentityLora({"layer.lora_A.weight": torch.zeros(1, 4)}, rank=1, alpha=1).save(old)
    options = ["--load-identity-lora", str(old), "--save-identity-lora", str(new)]
    assert edit(portrait, out, *EDIT, *options) == 0
    assert pipeline.identity_lora == [("load", old), ("save", new)]


@pytest.mark.parametrize("text", ["12,", "12", "a,b", "1,2,3", "", "-3,5", "3,-5", "nan,1", "1,inf", "-.5,2"])
@pytest.mark.parametrize("flag", ["--handle", "--target"])
def test_malformed_points(pipeline, portrait, out, capsys, flag, text):
    with pytest.raises(SystemExit) as leave:
        edit(portrait, out, *EDIT, flag, text)
    assert leave.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: a point " in message
    assert f"'{text}'" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "0 --handle and 0 --target"),
        (["--handle", "1,2"], "1 --handle and 0 --target"),
        ([*EDIT, "--target", "3,4"], "1 --handle and 2 --target"),
        ([*EDIT, "--instruction", "turn.json"], "one or the other"),
        (["--instruction", "not-there.json"], "not-there.json"),
        ([*EDIT, "--mask", "no-mask.png"], "no-mask.png"),
        ([*EDIT, "--model", "./no-model"], "no folder `./no-model`"),
        ([*EDIT, "--load-identity-lora", "no-lora"], "no folder `no-lora`"),
        ([*EDIT, "--device", "cuda"], "cuda is not available"),
        ([*EDIT, "--identity-lora-steps", "0", "--save-identity-lora", "lora"], "without an identity LoRA"),
        ([*EDIT, "--identity-lora-steps", "0", "--load-identity-lora", "lora"], "without an identity LoRA"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(pipeline, portrait, out, capsys, options, said):
    assert edit(portrait, out, *options) == 2
    assert said in the_error(capsys)
    assert not pipeline.loaded
    assert not names(out)


def test_unreadable_pictures(pipeline, portrait, out, tmp_path, capsys):
    text, half = tmp_path / "text.png", tmp_path / "half.jpg"
    text.write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(half)
    half.write_bytes(half.read_bytes()[:2000])
    for path in (tmp_path / "missing.png", tmp_path, text, half):
        assert edit(path, out, *EDIT) == 2
        assert str(path) in the_error(capsys)
    assert not pipeline.loaded


def test_malformed_instruction(pipeline, portrait, out, tmp_path, capsys):
    file = tmp_path / "turn.json"
    file.write_text('{"points": [[1, 2]]}')
    assert edit(portrait, out, "--instruction", str(file)) == 2
    assert "even number" in the_error(capsys)


def test_errors_of_the_pipeline_are_one_line(pipeline, portrait, out, capsys):
    pipeline.call_error = ValueError("`handles` must lie inside the picture,\n got (200, 3).")
    assert edit(portrait, out, *EDIT) == 2
    assert "`handles` must lie inside the picture, got (200, 3)." in the_error(capsys)
    assert not names(out)


def test_out_of_memory_says_what_helps(pipeline, portrait, out, capsys):
    pipeline.call_error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert edit(portrait, out, *EDIT) == 2
    assert "--dtype float16" in the_error(capsys)


def test_a_model_that_does_not_load_is_one_line(pipeline, portrait, out, capsys):
    pipeline.load_error = OSError("owner/name is not a model\nand more lines")
    assert edit(portrait, out, *EDIT, "--model", "owner/name") == 2
    assert "cannot load `owner/name`: owner/name is not a model and more lines" in the_error(capsys)


def test_a_bug_is_not_dressed_up_as_bad_input(pipeline, portrait, out):
    pipeline.call_error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        edit(portrait, out, *EDIT)


@pytest.mark.parametrize("name", ["portrait-edited.png", "portrait-sheet.png", "result.json"])
def test_results_are_kept_without_force(pipeline, portrait, out, capsys, name):
    out.mkdir()
    (out / name).write_bytes(b"mine")
    assert edit(portrait, out, *EDIT) == 2
    message = the_error(capsys)
    assert str(out / name) in message
    assert "--force" in message
    assert not pipeline.loaded
    assert (out / name).read_bytes() == b"mine"
    assert edit(portrait, out, *EDIT, "--force") == 0
    assert (out / name).read_bytes() != b"mine"


def test_a_saved_identity_lora_is_kept_without_force(pipeline, portrait, out, tmp_path, capsys):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "weights").write_bytes(b"mine")
    assert edit(portrait, out, *EDIT, "--save-identity-lora", str(lora)) == 2
    assert str(lora) in the_error(capsys)
    assert not pipeline.loaded


def test_out_must_be_a_folder(pipeline, portrait, out, capsys):
    out.write_text("a file")
    assert edit(portrait, out, *EDIT) == 2
    assert str(out) in the_error(capsys)
    assert not pipeline.loaded


def test_interrupted_during_the_edit(pipeline, portrait, out, capsys):
    pipeline.call_error = KeyboardInterrupt()
    assert edit(portrait, out, *EDIT) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not names(out)


def test_interrupted_while_writing_says_what_is_there(pipeline, portrait, out, capsys, monkeypatch):
    save = Image.Image.save

    def save_until_the_sheet(picture, file, **options):
        if picture.width > 96:
            file.write(b"half")
            raise KeyboardInterrupt
        save(picture, file, **options)

    monkeypatch.setattr(Image.Image, "save", save_until_the_sheet)
    assert edit(portrait, out, *EDIT) == 130
    assert names(out) == ["portrait-edited.png"]
    said = capsys.readouterr().err
    assert str(out / "portrait-edited.png") in said
    assert "sheet" not in said


def test_record_is_json_even_where_the_edit_diverged(pipeline, portrait, out):
    pipeline.loss = float("nan")
    assert edit(portrait, out, *EDIT) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((out / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert record["iterations"][0]["loss_before"] is None


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["edit", "--help"])
    assert leave.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for each in options_of(DragSettings).values():
        assert each.flag in text
        assert " ".join(each.sentence.split()) in text.replace("- ", "-"), each.name
    assert text.count("dynadrag edit p") == 2


def test_examples_of_the_help_are_valid():
    examples = edit_command.EDIT_EXAMPLES.replace("\\\n", " ").splitlines()
    commands = [line.split()[1:] for line in examples if line.strip().startswith("dynadrag ")]
    assert len(commands) == 2
    for command in commands:
        assert cli.build_parser().parse_args(command).image.stem in ("portrait", "photo")


def test_version(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["--version"])
    assert leave.value.code == 0
    assert capsys.readouterr().out == f"dynadrag {dynadrag_pipeline.__version__}\n"


def test_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "dynadrag_pipeline", "edit", str(tmp_path / "missing.png"), *EDIT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DEMO.parents[1], timeout=120)
    assert done.returncode == 2
    assert "missing.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_instructions_lie_on_the_demo_portraits():
    files = sorted(DEMO.glob("*.json"))
    assert len(files) == 5
    for file in files:
        instruction = load_instruction(file)
        points = DragInstruction.from_user(instruction["handles"], instruction["targets"], None, (256, 256))
        distance = (points.targets - points.handles).norm(dim=-1) / 256
        assert distance.max() > 0.04
        assert ((distance > 0.02) & (distance < 0.12)).all()


def test_demo_portraits(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("demo_portraits", DEMO / "demo_portraits.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    for name, path in demo.write_portraits(tmp_path / "demo").items():
        with Image.open(path) as picture:
            assert (path.name, picture.size, picture.mode) == (f"{name}.png", (256, 256), "RGB")
            assert np.asarray(picture).std() > 40


def test_a_motion_predictor_takes_the_place_of_the_models_own(pipeline, portrait, out, tmp_path):
    make_motion_predictor().save_pretrained(tmp_path / "predictor")
    assert edit(portrait, out, *EDIT, "--motion-predictor", str(tmp_path / "predictor")) == 0
    assert isinstance(pipeline.parts["motion_predictor"], MotionPredictorModel)
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert record["motion_predictor"] == str(tmp_path / "predictor")
