"""`dynadrag convert`: options, what is printed, and errors as one line."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import conversion.stable_diffusion
from conversion.command_line import (
    CONDITIONING,
    LORA_EXAMPLES,
    PIPELINE_EXAMPLES,
    PREDICTOR_EXAMPLES,
    add_convert_command,
)
from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.identity_lora import IdentityLora
from motion_predictor import MotionPredictorModel
from motion_predictor.common.command_errors import CommandError
from support.lora_layouts import in_layout, random_matrices
from support.simvp_network import SimVP
from support.tiny_models import make_unet


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="dynadrag")
    add_convert_command(main.add_subparsers(required=True))
    return main


def run(*arguments: object) -> list[Path]:
    """Run a command as `dynadrag` does, and return what it says it wrote."""
    args = parser().parse_args(["convert", *map(str, arguments)])
    written: list[Path] = []
    args.run(args, written)
    return written


def test_a_pipeline(base, predictor, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("pipeline", "--base", base, "--motion-predictor", predictor, "--out", out) == [out]
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {out}\n")
    assert "Handles will move as the motion predictor says." in printed
    assert DynaDragPipeline.from_pretrained(out).motion_predictor is not None


def test_the_options_of_a_pipeline(base, tmp_path):
    run("pipeline", "--base", base, "--out", tmp_path / "out", "--dtype", "float16")
    run("pipeline", "--base", base, "--out", tmp_path / "out", "--dtype", "bfloat16", "--force")
    stored = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_all_options_of_a_pipeline_reach_the_function(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(
        conversion.stable_diffusion, "convert_pipeline", lambda *a, **k: given.update(k, places=a) or []
    )
    options = "--variant fp16 --dtype float16 --tokenizer words --prediction-type v_prediction --ema --force"
    run("pipeline", "--base", "b", "--out", "o", "--motion-predictor", "p", *options.split())
    assert given == {
        "places": ("b", Path("o")),
        "motion_predictor": "p",
        "variant": "fp16",
        "dtype": torch.float16,
        "tokenizer": "words",
        "prediction_type": "v_prediction",
        "ema": True,
        "repository": None,
        "force": True,
    }


def test_a_pipeline_is_uploaded_after_it_is_written(base, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(conversion.stable_diffusion, "check_signed_in", lambda: calls.append("signed in"))
    monkeypatch.setattr(
        conversion.stable_diffusion,
        "push_to_hub",
        lambda *a: calls.append((*a, a[0].is_dir())) or "https://hub/me/drag",
    )
    out = tmp_path / "out"
    run("pipeline", "--base", base, "--out", out, "--push-to-hub", "me/drag", "--private")
    assert calls == ["signed in", (out, "me/drag", True, True)]
    assert 'from_pretrained("me/drag")' in (out / "README.md").read_text()
    assert capsys.readouterr().out.endswith("uploaded to https://hub/me/drag\n")
    with pytest.raises(CommandError, match=r"--private is for the repository of --push-to-hub"):
        run("pipeline", "--base", base, "--out", tmp_path / "other", "--private")


def test_who_is_not_signed_in_is_told_before_the_work(base, tmp_path, monkeypatch):
    def refuse():
        raise OSError("Sign in by `hf auth login`.")

    monkeypatch.setattr(conversion.stable_diffusion, "check_signed_in", refuse)
    with pytest.raises(CommandError, match="Sign in"):
        run("pipeline", "--base", base, "--out", tmp_path / "out", "--push-to-hub", "me/drag")
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_folder(base, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("The Hub: 403.")

    monkeypatch.setattr(conversion.stable_diffusion, "check_signed_in", lambda: None)
    monkeypatch.setattr(conversion.stable_diffusion, "push_to_hub", fail)
    with pytest.raises(CommandError, match="403"):
        run("pipeline", "--base", base, "--out", tmp_path / "out", "--push-to-hub", "me/drag")
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_a_motion_predictor(tmp_path, capsys):
    torch.save(SimVP(n_t=2).state_dict(), tmp_path / "simvp.pth")
    options = ["--sample-size", 0, "--heatmap-radius", 2.5, "--delta-paint", "disc", "--flow-scale", 8]
    out = tmp_path / "out"
    assert run("motion-predictor", tmp_path / "simvp.pth", "--out", out, *options) == [out]
    assert "SimVP of T 1, 6 to 2 channels, N_S 4, N_T 2, hid_S 8, hid_T 16, groups 2." in capsys.readouterr().out
    config = MotionPredictorModel.from_pretrained(out).config
    assert (config.sample_size, config.heatmap_radius, config.delta_paint, config.flow_scale) == (None, 2.5, "disc", 8)


def test_a_warm_start_lists_what_begins_anew(tmp_path, capsys):
    torch.save(SimVP(n_t=2, channels=(3, 3)).state_dict(), tmp_path / "simvp.pth")
    with pytest.raises(CommandError, match=r"pass --warm-start to accept"):
        run("motion-predictor", tmp_path / "simvp.pth", "--out", tmp_path / "out")
    run("motion-predictor", tmp_path / "simvp.pth", "--out", tmp_path / "out", "--warm-start")
    printed = capsys.readouterr().out
    assert "A warm start: it has to be trained on" in printed
    assert re.findall(r"begins anew: (\S+)", printed) == [
        "encoder.blocks.0.conv.weight",
        "encoder.blocks.0.conv.bias",
        "decoder.readout.weight",
        "decoder.readout.bias",
    ]


def test_an_identity_lora(base, tmp_path, capsys):
    torch.save(in_layout("DragDiffusion", random_matrices(make_unet())), tmp_path / "lora.bin")
    Image.new("RGB", (96, 80), "teal").save(tmp_path / "picture.png")
    bound, free = tmp_path / "bound", tmp_path / "free"
    options = ["--image", tmp_path / "picture.png", "--base", base, "--processing-resolution", 72]
    assert run("identity-lora", tmp_path / "lora.bin", "--out", bound, *options) == [bound]
    run("identity-lora", tmp_path / "lora.bin", "--out", free)
    printed = capsys.readouterr().out
    assert "Rank 4, alpha 4; used for its picture alone." in printed
    assert "Rank 4, alpha 4; used for every picture." in printed
    assert IdentityLora.load(bound).picture is not None
    assert IdentityLora.load(free).picture is None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "pipeline --base nothing.ckpt --out out",
            r"^--base must be a file, a folder or a Hub id, got 'nothing.ckpt', which is not there\.$",
        ),
        (
            "pipeline --base here --out out",
            r"^--base must be a folder in diffusers' layout, .*got 'here', a folder without model_index.json",
        ),
        ("pipeline --base here --out full", "already there: pass --force to replace it"),
        ("motion-predictor nothing.pth --out out", r"^There is no file `nothing.pth`\.$"),
        ("identity-lora here --out out", "^`here` must hold one of pytorch_lora_weights.safetensors, .*, got none"),
        ("identity-lora x.bin --out out", r"^`x.bin` must be .*, got a web page"),
    ],
)
def test_errors_are_one_line_and_name_options(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("full").mkdir()
    Path("full", "unet").touch()
    Path("x.bin").write_bytes(b"<html>")
    with pytest.raises(CommandError, match=message) as caught:
        run(*command.split())
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_bugs_are_not_dressed_up_as_bad_input(monkeypatch):
    def bug(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(conversion.stable_diffusion, "convert_pipeline", bug)
    with pytest.raises(TypeError, match="a bug"):
        run("pipeline", "--base", "b", "--out", "o")


def test_the_defaults_that_the_help_states_are_the_predictors():
    config = MotionPredictorModel().config
    assert {name: str(config[name]).removesuffix(".0") for name in CONDITIONING} == {
        name: default for name, (_, _, _, default) in CONDITIONING.items()
    }


@pytest.mark.parametrize("kind", ["pipeline", "motion-predictor", "identity-lora"])
def test_help_teaches(kind, capsys):
    with pytest.raises(SystemExit) as left:
        parser().parse_args(["convert", kind, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert max(map(len, printed.splitlines())) <= 119


@pytest.mark.parametrize("examples", [PIPELINE_EXAMPLES, PREDICTOR_EXAMPLES, LORA_EXAMPLES])
def test_examples_of_the_help_are_valid(examples):
    commands = re.findall(r"dynadrag (convert .*(?:\\\n.*)*)", examples.replace("\\\n", " "))
    assert len(commands) >= 2
    for command in commands:
        assert parser().parse_args(shlex.split(command)).run


def test_help_does_not_wait_for_torch():
    code = (
        "import argparse, sys, conversion.command_line as c; p = argparse.ArgumentParser(); "
        "c.add_convert_command(p.add_subparsers()); "
        "p.parse_args(['convert', 'pipeline', '--base', 'b', '--out', 'o']); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
