"""What goes wrong on the command line: said in a line or two, before the work if it can be known, and nothing lost."""

from __future__ import annotations

import contextlib
import errno
import importlib.abc
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline import __main__ as entry
from dynadrag_pipeline.cli import main
from dynadrag_pipeline.session import DragSession
from motion_predictor.common import atomic_file
from support.fake_pipeline import EDIT, EDITED_COLOUR, edit, names, the_error
from support.tiny_models import make_motion_predictor, make_scheduler, make_unet, make_vae

CLONE = Path(__file__).parents[2]
MANY_LETTERS = "x" * 5000


def run(*arguments: str | bytes, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(CLONE), "HF_HUB_OFFLINE": "1", **how.pop("env", {})}
    command = [sys.executable, "-m", "dynadrag_pipeline", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.run(command, text=True, env=environment, timeout=300, **streams)


# --- folders without a name ---


@pytest.mark.parametrize(
    "command",
    [
        ["edit", "picture.png"],
        ["evaluate", "pairs"],
        ["build-pairs", "--videos", "films"],
        ["build-dataset", "films"],
        ["build-portraits", "faces", "--landmarks", "faces.npz"],
        ["evaluate-motion-predictor", "--model", "model", "--data", "set"],
        ["convert", "pipeline", "--base", "model"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["", " "])
def test_a_folder_without_a_name_is_not_the_present_one(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*command, "--out", name])
    assert left.value.code == 2
    assert f"--out: a folder's name is wanted; got {name!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- files that are something else ---


@pytest.fixture(params=["pipe", "device", "folder", "nothing", "name of many letters"])
def no_file(request, tmp_path) -> Path:
    """A path that leads to no regular file; to open some of them would block for ever."""
    if request.param == "pipe":
        os.mkfifo(tmp_path / "pipe")
    places = {"device": Path("/dev/zero"), "folder": tmp_path, "name of many letters": tmp_path / MANY_LETTERS}
    return places.get(request.param, tmp_path / request.param)


@pytest.mark.parametrize("flag", ["image", "--mask", "--instruction", "--settings"])
def test_what_is_no_file_is_refused_by_the_option_s_name(pipeline, portrait, out, no_file, capsys, flag):
    options = [] if flag == "--instruction" else EDIT
    image, more = (no_file, []) if flag == "image" else (portrait, [flag, str(no_file)])
    assert edit(image, out, *options, *more) == 2
    assert f"error: {flag}: " in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("flag", ["--model", "--out", "--save-identity-lora", "--load-identity-lora"])
def test_names_of_many_letters_are_no_reason_for_a_traceback(pipeline, portrait, out, capsys, flag):
    pipeline.load_error = OSError("no such model")
    assert edit(portrait, out, *EDIT, flag, MANY_LETTERS) == 2
    assert len(the_error(capsys)) < 1100


def test_the_home_of_nobody_is_a_folder_that_is_not_there(pipeline, portrait, out, capsys):
    assert edit(portrait, out, *EDIT, "--model", "~nobody-of-this-name/model") == 2
    assert "no folder `~nobody-of-this-name/model`" in the_error(capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "JSON file"),
        (b'{"points": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON file"),
        (b'{"points": [["20", "30"], ["40", "30"]]}', "pairs of numbers"),
        (b'{"points": [[NaN, 1], [2, 3]]}', "no number of JSON"),
        (b'{"points": [[1e400, 1], [2, 3]]}', "must be finite"),
        (b'{"points": [[20, 30], [40, 30]], "prompt": "\\ud800"}', "`prompt` must be a string"),
        (b"[]", "JSON object"),
        (b"\xff\xfe", "in UTF-8"),
    ],
)
def test_instructions_that_are_none(pipeline, portrait, out, tmp_path, capsys, content, said):
    file = tmp_path / "turn.json"
    file.write_bytes(content)
    assert edit(portrait, out, "--instruction", str(file)) == 2
    assert said in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("flag", ["--instruction", "--settings"])
def test_a_file_of_100_megabytes_is_not_read(pipeline, portrait, out, tmp_path, capsys, flag):
    file = tmp_path / "large.json"
    with open(file, "wb") as opened:
        opened.truncate(100_000_000)
    assert edit(portrait, out, *([] if flag == "--instruction" else EDIT), flag, str(file)) == 2
    assert "at most 1,048,576 bytes" in the_error(capsys)


def test_a_mark_at_the_start_of_an_instruction_is_accepted(pipeline, portrait, out, tmp_path):
    file = tmp_path / "turn.json"
    file.write_bytes(b'\xef\xbb\xbf{"points": [[20, 30], [40, 30]]}')
    assert edit(portrait, out, "--instruction", str(file)) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "JSON file"),
        ("[" * 100_000, "JSON file"),
        ('{"settings": "paper"}', "an object of options"),
        ('{"settings": [1]}', "an object of options"),
        ('{"max_iterations": {"value": {"value": 3}}}', "`max_iterations` must be a whole number"),
        ('{"max_iterations": 1, "max_iterations": 2}', "more than one 'max_iterations'"),
        ('{"supervision_lr": Infinity}', "no number of JSON"),
        ('{"no_such_option": 1}', "`no_such_option` is no option"),
        ('{"image": "portrait.png"}', "`image` is no option"),
    ],
)
def test_settings_that_are_none(pipeline, portrait, out, tmp_path, capsys, content, said):
    file = tmp_path / "settings.json"
    file.write_text(content)
    assert edit(portrait, out, *EDIT, "--settings", str(file)) == 2
    assert said in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--seed", "1" * 20),
        ("--seed", "9" * 5000),
        ("--seed", "-1"),
        ("--supervision-lr", "1e300"),
        ("--supervision-lr", "1e999"),
        ("--identity-lora-lr", "1e300"),
        ("--mask-weight", "nan"),
        ("--identity-lora-rank", "1000000"),
        ("--supervision-radius", "1000000"),
        ("--processing-resolution", "1000000"),
        ("--max-iterations", "9" * 5000),
        ("--cross-attention-kwargs", "[" * 100_000),
    ],
)
def test_values_out_of_all_bounds_are_refused_by_the_option_s_name(pipeline, portrait, out, capsys, flag, value):
    with pytest.raises(SystemExit) as leave:
        edit(portrait, out, *EDIT, flag, value)
    assert leave.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {flag}: " in said
    assert len(said) < 1000


# --- models ---


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, tokenizer, text_encoder) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved") / "model"
    parts = (make_vae(), text_encoder, tokenizer, make_unet(), make_scheduler())
    DynaDragPipeline(*parts, motion_predictor=make_motion_predictor()).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved_model, tmp_path) -> Path:
    """A tiny model in a folder, to be damaged."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


@pytest.fixture
def no_edit(monkeypatch) -> None:
    """Fails a test in which an edit begins."""
    monkeypatch.setattr(DragSession, "encode", lambda session: pytest.fail("an edit began"))


CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "motion_predictor/config.json",
)
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "motion_predictor/diffusion_pytorch_model.safetensors",
)


def _cut(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "is not there": Path.unlink,
    "is empty": lambda file: file.write_bytes(b""),
    "ends in the middle": _cut,
    "is a list": lambda file: file.write_text("[]"),
    "is nested for ever": lambda file: file.write_text("[" * 100_000),
    "is not text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", CONFIGS + WEIGHTS)
@pytest.mark.usefixtures("no_edit")
def test_damaged_models_are_refused_in_a_line(model, portrait, out, capfd, file, damage):
    DAMAGES[damage](model / file)
    code = edit(portrait, out, *EDIT, "--model", str(model), "--quiet", "--steps", "2")
    said = capfd.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("dynadrag: error: ")
    assert len(said) < 2000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--feature-block", "7"], "`feature_block` must index one of the 2 up-blocks"),
        (["--kv-start-layer", "99"], "`kv_start_layer` must be in 0..4"),
        (["--steps", "1000"], "`num_inference_steps` must be under 1000"),
        (["--processing-resolution", "8"], "`processing_resolution` must be None, 0 or at least 64"),
        (["--cross-attention-kwargs", '{"x": 1}'], "`cross_attention_kwargs` must be among"),
        (["--cross-attention-kwargs", '{"scale": "x"}'], "must be a finite number"),
        (["--handle", "96,0", "--target", "1,1"], "`handles` must lie inside the picture"),
        (["--path", "200,10"], "`motion` must stay inside the picture"),
        (["--path", "straight", "--path", "straight"], "`motion` must have a path for each"),
        (["--prompt", "\udcff"], "`prompt` must be a string"),
        (["--preview-steps", "2", "--preview-vae", "./no-vae"], "--preview-vae: there is no folder"),
        (["--motion-predictor", "./no-predictor"], "--motion-predictor: there is no folder"),
    ],
)
def test_what_the_files_say_is_known_before_the_weights_are_loaded(
    pipeline, portrait, out, saved_model, capsys, options, said
):
    assert edit(portrait, out, *EDIT, "--model", str(saved_model), *options) == 2
    assert said in the_error(capsys)
    assert not pipeline.loaded


def test_a_mask_of_nothing_is_known_before_the_weights_are_loaded(pipeline, portrait, out, tmp_path, capsys):
    Image.new("L", (96, 80)).save(tmp_path / "black.png")
    assert edit(portrait, out, *EDIT, "--mask", str(tmp_path / "black.png")) == 2
    assert "`mask` must select something" in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_identity_lora_is_known_before_the_weights_are_loaded(
    pipeline, portrait, out, tmp_path, capsys, content
):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(content)
    assert edit(portrait, out, *EDIT, "--load-identity-lora", str(tmp_path)) == 2
    assert "--load-identity-lora: " in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB")])
def test_out_of_memory_says_what_helps(pipeline, portrait, out, capsys, error):
    pipeline.call_error = error
    assert edit(portrait, out, *EDIT) == 2
    assert "--processing-resolution" in the_error(capsys)


# --- interrupts ---


def test_an_interrupt_while_the_command_is_imported_ends_it_quietly(monkeypatch, capsys):
    class Interrupts(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "dynadrag_pipeline.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dynadrag_pipeline.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    assert entry.run() == 130
    assert "Traceback" not in capsys.readouterr().err


# --- where results go ---


def test_results_that_would_overwrite_what_they_are_made_of_are_refused(pipeline, tmp_path, capsys):
    picture, other = tmp_path / "moving.gif", tmp_path / "other-sheet.png"
    for path in (picture, other):
        Image.new("RGB", (96, 80)).save(path)
    before = picture.read_bytes()
    assert edit(picture, tmp_path, *EDIT, "--gif", "--force") == 2
    assert f"`{picture}` would be overwritten" in the_error(capsys)
    Image.new("RGB", (96, 80)).save(tmp_path / "other.png")
    Image.new("L", (96, 80), 255).save(other)
    assert edit(tmp_path / "other.png", tmp_path, *EDIT, "--mask", str(other), "--force") == 2
    assert f"`{other}` would be overwritten" in the_error(capsys)
    assert picture.read_bytes() == before
    assert not pipeline.loaded


@pytest.mark.parametrize("name", ["portrait-edited.png", "portrait-edited.png/lora", "result.json"])
def test_a_lora_where_a_result_is_to_be_is_refused(pipeline, portrait, out, capsys, name):
    assert edit(portrait, out, *EDIT, "--save-identity-lora", str(out / name)) == 2
    assert "is where a result is to be" in the_error(capsys)
    assert not pipeline.loaded


def test_a_lora_on_a_file_is_refused(pipeline, portrait, out, capsys):
    assert edit(portrait, out, *EDIT, "--save-identity-lora", str(portrait)) == 2
    assert "is a file" in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("name", ["portrait-edited.png", "portrait-sheet.png", "result.json"])
def test_a_result_whose_name_is_a_folder_s_is_refused(pipeline, portrait, out, capsys, name):
    (out / name).mkdir(parents=True)
    assert edit(portrait, out, *EDIT, "--force") == 2
    assert "got a folder" in the_error(capsys)
    assert not pipeline.loaded


@pytest.mark.parametrize("flag", ["--out", "--save-identity-lora"])
def test_a_place_that_can_not_be_written_to_is_refused(pipeline, portrait, out, tmp_path, monkeypatch, capsys, flag):
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)
    assert edit(portrait, out, *EDIT, flag, str(locked / "new")) == 2
    assert f"{flag}: no permission" in the_error(capsys)
    assert not pipeline.loaded


def test_a_disk_without_room_for_the_picture_is_refused(pipeline, portrait, out, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 100))
    assert edit(portrait, out, *EDIT) == 2
    assert "has 100 bytes left" in the_error(capsys)
    assert not pipeline.loaded


# --- nothing of a finished edit is lost ---


@pytest.fixture
def elsewhere(monkeypatch, tmp_path) -> Path:
    """Where the process's temporary folders are."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


RESULTS = ["portrait-edited.png", "portrait-sheet.png", "result.json"]


def check_all_saved(folder: Path) -> None:
    with Image.open(folder / "portrait-edited.png") as picture:
        assert picture.getpixel((5, 5)) == EDITED_COLOUR
    with Image.open(folder / "portrait-sheet.png") as sheet:
        sheet.load()
    assert json.loads((folder / "result.json").read_text())["stop_reason"] == "stalled"


def test_results_are_kept_where_out_has_vanished(pipeline, portrait, out, elsewhere, capsys):
    pipeline.during_call = lambda: shutil.rmtree(out)
    assert edit(portrait, out, *EDIT) == 1
    (folder,) = elsewhere.iterdir()
    assert names(folder) == RESULTS
    check_all_saved(folder)
    said = capsys.readouterr()
    assert str(folder) in said.out
    assert f"it is in `{folder}`" in said.err
    assert not out.exists()


def test_results_are_kept_where_out_has_become_a_file(pipeline, portrait, out, elsewhere):
    pipeline.during_call = lambda: (shutil.rmtree(out), out.write_text("mine"))
    assert edit(portrait, out, *EDIT) == 1
    check_all_saved(next(elsewhere.iterdir()))
    assert out.read_text() == "mine"


def test_what_does_not_fit_on_the_disk_is_kept_elsewhere_and_the_rest_in_its_place(
    pipeline, portrait, out, elsewhere, monkeypatch, capsys
):
    class Full:
        """A file on a disk that is full."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            self.file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __exit__(self, *_: object) -> None:
            self.file.close()

    written: list[Path] = []

    def opened(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115 - passed on
        written.append(path.parent)
        return Full(file) if written == [out, out] else file  # the sheet comes second

    monkeypatch.setattr(atomic_file, "open", opened, raising=False)
    assert edit(portrait, out, *EDIT) == 1
    (folder,) = elsewhere.iterdir()
    assert names(folder) == ["portrait-sheet.png"]
    assert names(out) == ["portrait-edited.png", "result.json"]
    said = capsys.readouterr()
    assert f"cannot write `{out / 'portrait-sheet.png'}` (No space left on device" in said.err.replace(
        "[Errno 28] ", ""
    )
    assert str(folder / "portrait-sheet.png") in said.out


def test_a_lora_that_can_not_be_saved_is_kept_elsewhere(pipeline, portrait, out, elsewhere, tmp_path, capsys):
    place = tmp_path / "lora"
    save = pipeline.save_identity_lora

    def fail_there(folder: Path) -> None:
        if folder == place:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        save(folder)

    pipeline.save_identity_lora = fail_there
    assert edit(portrait, out, *EDIT, "--save-identity-lora", str(place)) == 1
    (folder,) = elsewhere.iterdir()
    assert pipeline.identity_lora == [("save", folder / "lora")]
    check_all_saved(out)
    assert str(folder / "lora") in capsys.readouterr().out


def test_what_fits_nowhere_is_said_and_the_rest_is_kept(pipeline, portrait, out, elsewhere, capsys):
    """The system refuses files over a size: pictures, but not the record."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    pipeline.during_call = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        code = edit(portrait, out, *EDIT, "--gif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert names(out) == ["portrait-edited.png"]
    said = capsys.readouterr().err
    assert said.count("nor elsewhere") == 3
    assert "Traceback" not in said
    assert [name for place in (out, *elsewhere.iterdir()) for name in names(place) if "partial" in name] == []


@pytest.mark.parametrize("is_buffered", [True, False])
def test_results_are_kept_where_nothing_can_be_printed(pipeline, portrait, out, monkeypatch, capsys, is_buffered):
    with open("/dev/full", "wb", buffering=0) as full:
        stream = io.TextIOWrapper(io.BufferedWriter(full) if is_buffered else full, write_through=not is_buffered)
        monkeypatch.setattr(sys, "stdout", stream)
        assert edit(portrait, out, *EDIT) == 1
        with contextlib.suppress(OSError):
            stream.detach()
    check_all_saved(out)
    said = capsys.readouterr().err
    assert "the output could not be printed" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("asked", [["--version"], ["--help"], ["edit", "--help"]])
def test_help_that_can_not_be_printed_is_no_success(monkeypatch, capsys, asked):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        assert main(asked) == 1
    assert "the output could not be printed" in capsys.readouterr().err


def test_an_edit_goes_on_where_its_progress_can_not_be_written(pipeline, portrait, out, monkeypatch):
    def say_something() -> None:
        print("50 %", file=sys.stderr)
        sys.stderr.flush()

    pipeline.during_call = say_something
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        assert edit(portrait, out, *EDIT) == 0
    check_all_saved(out)


def test_without_any_stream_an_edit_is_made_all_the_same(pipeline, portrait, out, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert edit(portrait, out, *EDIT) == 0
    check_all_saved(out)


def test_names_that_are_no_unicode_are_kept_as_they_are(pipeline, tmp_path, out, capsys):
    picture = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (96, 80)).save(picture)
    assert edit(picture, out, *EDIT) == 0
    assert sorted(os.listdir(os.fsencode(out))) == [b"caf\xe9-edited.png", b"caf\xe9-sheet.png", b"result.json"]
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert record["files"]["picture"] == "caf\\xe9-edited.png"


def test_a_whole_edit_for_a_terminal_that_has_gone_and_could_not_show_the_name(saved_model, tmp_path):
    """The one run of the real thing: of a name that is no Unicode, for cp1252, into a pipe that nobody reads."""
    picture = os.fsencode(tmp_path) + b"/caf\xe9 \xe2\x98\x83.png"
    Image.new("RGB", (96, 80), (90, 60, 30)).save(os.fsdecode(picture))
    reading, writing = os.pipe()
    os.close(reading)
    quick = ["--steps", "2", "--max-iterations", "1", "--identity-lora-steps", "1", "--supervision-steps", "1"]
    out = tmp_path / "results"
    done = run(
        *("edit", picture, *EDIT, "--model", str(saved_model), "--out", str(out), *quick),
        stdout=writing,
        env={"PYTHONIOENCODING": "cp1252"},
    )
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert sorted(os.listdir(os.fsencode(out)))[0] == b"caf\xe9 \xe2\x98\x83-edited.png"
    assert len(names(out)) == 3
