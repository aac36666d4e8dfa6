"""A dataset that is built in several goes: settings are kept to, finished sources are known, leftovers go away."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import accelerate
import pytest

from motion_predictor.data.dataset_folder import DatasetFolder, build_processes


def test_a_folder_is_gone_on_with_under_the_same_settings(tmp_path: Path):
    settings = {"size": 128, "sources": ("a", "b")}
    outcome = {"status": "skipped", "reason": "still", "detail": "in all frames"}
    DatasetFolder.open(tmp_path / "new" / "dataset", settings).mark_finished("clip", outcome)
    again = DatasetFolder.open(tmp_path / "new" / "dataset", settings)
    assert again.is_finished("clip")
    assert not again.is_finished("drive")
    assert again.outcomes() == {"clip": outcome}


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


def test_a_mark_holds_the_checksum_of_its_shard(tmp_path: Path):
    folder = DatasetFolder.open(tmp_path, {})
    folder.shard("train", "clip").parent.mkdir()
    folder.shard("train", "clip").write_bytes(b"records")
    folder.mark_finished("clip", {"status": "done", "split": "train", "records": 2})
    assert folder.outcomes()["clip"]["sha256"] == hashlib.sha256(b"records").hexdigest()


@pytest.fixture
def finished(tmp_path: Path) -> DatasetFolder:
    folder = DatasetFolder.open(tmp_path, {})
    for name in ("clip", "drive"):
        folder.shard("train", name).parent.mkdir(exist_ok=True)
        folder.shard("train", name).write_bytes(b"records")
        folder.mark_finished(name, {"status": "done", "split": "train", "records": 2, "source": f"{name}.mp4"})
    folder.mark_finished("still", {"status": "skipped", "reason": "still", "detail": ""})
    return folder


@pytest.mark.parametrize("damage", [Path.unlink, lambda shard: shard.write_bytes(b"recordt")])
def test_a_source_whose_shard_is_gone_or_damaged_is_to_be_built_anew(
    finished: DatasetFolder, damage: Callable, caplog: pytest.LogCaptureFixture
):
    finished.take_back_damaged([])  # nothing is
    shard = finished.shard("train", "clip")
    damage(shard)
    with pytest.raises(
        ValueError, match=rf"`{re.escape(str(shard))}` must be as it was written.*'clip\.mp4'.*delete `"
    ):
        finished.take_back_damaged(["drive"])
    finished.take_back_damaged(["clip", "drive"])
    assert str(shard) in caplog.text
    assert not shard.exists()
    assert [name for name in ("clip", "drive", "still") if finished.is_finished(name)] == ["drive", "still"]


@pytest.mark.parametrize(
    "mark",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe\xff",
        b"[" * 100_000,
        b"{}",
        b'{"status": "done"}',
        b'{"status": "done", "split": "test", "records": 1}',
        b'{"status": "done", "split": "train", "records": "1"}',
        b'{"status": ["done"]}',
        b'{"status": "skipped"}',
    ],
)
def test_a_damaged_mark_is_named(finished: DatasetFolder, mark: bytes):
    finished.mark("clip").write_bytes(mark)
    with pytest.raises(ValueError, match=rf"`{re.escape(str(finished.mark('clip')))}` must .* got .*: delete it and"):
        finished.outcomes()


def test_damaged_settings_are_named(tmp_path: Path):
    DatasetFolder.open(tmp_path, {"size": 128})
    (tmp_path / "dataset.json").write_bytes(b'{"size":')
    with pytest.raises(ValueError, match=r"dataset\.json` must be a JSON object, got .*another folder"):
        DatasetFolder.open(tmp_path, {"size": 128})


def test_processes_wait_for_the_last_one_for_longer_than_any_share_takes(monkeypatch):
    said: dict[str, timedelta] = {}
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: said.update(options))
    build_processes()
    assert said["timeout"] > timedelta(days=2)
