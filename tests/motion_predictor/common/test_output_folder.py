"""Folders that appear whole or not at all."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import motion_predictor.common.output_folder
from motion_predictor.common.output_folder import output_folder

NAMES = {"config.json", "weights"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path, text: str = "new", force: bool = False) -> None:
    with output_folder(out, NAMES, force) as folder:
        (folder / "config.json").write_text(text)


def test_the_folder_appears_when_the_block_ends(tmp_path):
    with output_folder(tmp_path / "deep" / "model", NAMES) as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "deep" / "model").exists()
        assert folder.name == "model"
        assert folder.parent.parent == tmp_path / "deep"
    assert names(tmp_path / "deep") == ["model"]
    assert (tmp_path / "deep" / "model").stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [True, False])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error, older):
    if older:
        write(tmp_path / "model", "old")

    def fail() -> None:
        with output_folder(tmp_path / "model", NAMES, force=True) as folder:
            (folder / "config.json").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["model"] if older else [])
    if older:
        assert (tmp_path / "model" / "config.json").read_text() == "old"


def test_a_folder_is_replaced_by_force_only(tmp_path):
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "weights").mkdir()
    with pytest.raises(ValueError, match="already there: pass `force`"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    write(tmp_path / "model", force=True)
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["config.json"]


def test_an_empty_folder_is_filled_without_force(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path / "model")
    assert names(tmp_path / "model") == ["config.json"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis.tex, which no earlier conversion wrote"):
        write(tmp_path / "model", force=True)
    assert names(tmp_path / "model") == ["config.json", "thesis.tex"]


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ValueError, match="must be a new folder, got a file"):
        write(tmp_path / "model", force=True)


def test_an_older_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write(tmp_path / "model", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.parent.suffix == ".partial":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "model", force=True)
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_examples_in_docstrings():
    assert doctest.testmod(motion_predictor.common.output_folder).failed == 0
