"""A dataset that is built in several goes: settings are kept to, finished sources are known, leftovers go away."""

from __future__ import annotations

from pathlib import Path

import pytest

from motion_predictor.data.dataset_folder import DatasetFolder


def test_a_folder_is_gone_on_with_under_the_same_settings(tmp_path: Path):
    settings = {"size": 128, "sources": ("a", "b")}
    DatasetFolder.open(tmp_path / "new" / "dataset", settings).mark_finished("clip", {"records": 3})
    again = DatasetFolder.open(tmp_path / "new" / "dataset", settings)
    assert again.is_finished("clip")
    assert not again.is_finished("drive")
    assert again.outcomes() == {"clip": {"records": 3}}


@pytest.mark.parametrize("settings", [{"size": 64, "seed": 0}, {"size": 128}, {"size": 128, "seed": 0, "rate": 5}])
def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path: Path, settings: dict[str, int]):
    DatasetFolder.open(tmp_path, {"size": 128, "seed": 0})
    before = (tmp_path / "dataset.json").read_bytes()
    different = next(
        name for name in ("size", "seed", "rate") if settings.get(name) != {"size": 128, "seed": 0}.get(name)
    )
    with pytest.raises(ValueError, match=f"`{different}` must be .*another folder"):
        DatasetFolder.open(tmp_path, settings)
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_what_a_killed_build_left_is_removed_and_nothing_else(tmp_path: Path):
    folder = DatasetFolder.open(tmp_path, {})
    for path in (folder.shard("train", "clip"), folder.mark("clip"), folder.shard("val", "drive")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"whole")
        path.with_name(f".{path.name}.4711.partial").write_bytes(b"ha")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".notes.partial").write_bytes(b"not the dataset's")
    DatasetFolder.open(tmp_path, {})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["dataset.json", "mine/.notes.partial", "train/clip.tar", "val/drive.tar", "videos/clip.json"]


@pytest.mark.parametrize("name", ["", "a.b", "../clip", "a/b", " clip"])
def test_names_that_shards_cannot_have_are_refused(tmp_path: Path, name: str):
    folder = DatasetFolder(tmp_path)
    with pytest.raises(ValueError, match="`name` must be"):
        folder.shard("train", name)
    with pytest.raises(ValueError, match="`name` must be"):
        folder.mark_finished(name, {})
