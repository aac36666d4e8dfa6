"""Portraits become shards: splits by name, builds that go on where they were stopped, sources that can't be used."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from motion_predictor.data import build_portraits as module
from motion_predictor.data.build_portraits import build_portraits
from motion_predictor.data.dataset_folder import only_writer
from motion_predictor.data.portrait_motion import FoldedPicture
from motion_predictor.data.portrait_settings import PortraitSettings
from motion_predictor.data.portraits import PortraitSource, held_out_names
from motion_predictor.data.shards import MotionShards
from support.synthetic_body import make_pose
from support.synthetic_face import make_landmarks, make_picture

QUICK = PortraitSettings(size=32, records_per_motion=2, frames=60, candidates=20, val_share=0.5)
NAMES = [f"face{number}.png" for number in range(5)]


def png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    return data.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> PortraitSource:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("about.json", "{}")
        for number, name in enumerate(NAMES):
            archive.writestr(f"png/{name}", png(np.roll(make_picture(40), number, axis=1)))
        archive.writestr("png/no_landmarks.png", png(make_picture(40)))
    landmarks = np.stack([make_landmarks()] * len(NAMES)).astype(np.float16)
    np.savez(tmp_path / "faces.npz", files=np.array(NAMES), landmarks=landmarks)
    return PortraitSource(tmp_path / "faces.zip", tmp_path / "faces.npz")


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_portrait_with_landmarks_has_records_in_one_split(source: PortraitSource, tmp_path: Path):
    counts = build_portraits([source], tmp_path / "data", QUICK)
    marks = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "data" / "videos").iterdir()}
    assert sorted(marks) == [f"faces-face{number}" for number in range(5)]
    assert counts == {"portraits": 5, "records": sum(mark["records"] for mark in marks.values()), "skipped": 0}
    assert {mark["split"] for mark in marks.values()} == {"train", "val"}
    for split in ("train", "val"):
        shards = MotionShards(tmp_path / "data", split)
        assert len(shards) == sum(mark["records"] for mark in marks.values() if mark["split"] == split)
        for index in range(len(shards)):
            assert shards[index].frame.shape == (32, 32, 3)
            assert shards[index].tracks.shape == (20, 55, 2)


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    source: PortraitSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_portraits([source], tmp_path / "whole", QUICK)
    written = []

    def interrupted(path: Path, records: list) -> int:
        if len(written) == 2:
            path.with_name(f".{path.name}.4711.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        return write_shard(path, records)

    write_shard = module.write_shard
    monkeypatch.setattr(module, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_portraits([source], tmp_path / "data", QUICK)
    monkeypatch.setattr(module, "write_shard", write_shard)
    finished = {path: path.stat().st_mtime_ns for path in written}
    build_portraits([source], tmp_path / "data", QUICK)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in written} == finished


def test_a_shard_that_is_gone_is_built_anew(source: PortraitSource, tmp_path: Path):
    build_portraits([source], tmp_path / "data", QUICK)
    whole = contents(tmp_path / "data")
    next((tmp_path / "data" / "train").glob("*.tar")).unlink()
    build_portraits([source], tmp_path / "data", QUICK)
    assert contents(tmp_path / "data") == whole


def test_other_settings_are_refused(source: PortraitSource, tmp_path: Path):
    build_portraits([source], tmp_path / "data", QUICK)
    with pytest.raises(ValueError, match=r"`seed` must be 0, which .* was begun with, got 1"):
        build_portraits([source], tmp_path / "data", PortraitSettings(**{**vars(QUICK), "seed": 1}))


def test_two_builds_at_once_are_refused(source: PortraitSource, tmp_path: Path):
    with only_writer(tmp_path / "data"), pytest.raises(BlockingIOError, match="another build is writing"):
        build_portraits([source], tmp_path / "data", QUICK)


def test_a_folder_of_pictures_gives_the_records_of_the_archive(source: PortraitSource, tmp_path: Path):
    with zipfile.ZipFile(source.pictures) as archive:
        archive.extractall(tmp_path / "faces")
    build_portraits([source], tmp_path / "by-archive", QUICK)
    build_portraits([PortraitSource(tmp_path / "faces", source.landmarks)], tmp_path / "by-folder", QUICK)
    by_archive, by_folder = contents(tmp_path / "by-archive"), contents(tmp_path / "by-folder")
    del by_archive["dataset.json"], by_folder["dataset.json"]
    assert by_archive == by_folder


def test_held_out_faces_are_for_validation_alone(
    source: PortraitSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("motion_predictor.data.portraits.HELD_OUT_FACES", 2)
    held_out = PortraitSource(source.pictures, source.landmarks, hold_out=True)
    build_portraits([held_out], tmp_path / "data", PortraitSettings(**{**vars(QUICK), "val_share": 0.0}))
    expected = {f"faces-{Path(name).stem}" for name in held_out_names([*NAMES, "no_landmarks.png"], 2)}
    marks = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "data" / "videos").iterdir()}
    assert {name for name, mark in marks.items() if mark["split"] == "val"} == expected & set(marks)


def test_a_portrait_that_cannot_be_used_is_noted_and_the_others_are_built(tmp_path: Path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "faces" / "wide.png").write_bytes(png(make_picture(40)[:30]))
    (tmp_path / "faces" / "good.png").write_bytes(png(make_picture(40)))
    landmarks = np.stack([make_landmarks()] * 3)
    np.savez(tmp_path / "faces.npz", files=np.array(["broken.png", "good.png", "wide.png"]), landmarks=landmarks)
    counts = build_portraits([PortraitSource(tmp_path / "faces", tmp_path / "faces.npz")], tmp_path / "data", QUICK)
    assert (counts["portraits"], counts["skipped"]) == (1, 2)
    for name, reason in (("broken", "must be a picture"), ("wide", "must be square")):
        mark = json.loads((tmp_path / "data" / "videos" / f"faces-{name}.json").read_text())
        assert reason in mark["detail"]


def test_a_picture_that_is_damaged_in_its_archive_is_noted(source: PortraitSource, tmp_path: Path):
    with zipfile.ZipFile(source.pictures) as archive:
        place = archive.getinfo("png/face2.png").header_offset + 200
    content = bytearray(source.pictures.read_bytes())
    content[place] ^= 0xFF
    source.pictures.write_bytes(content)
    counts = build_portraits([source], tmp_path / "data", QUICK)
    assert (counts["portraits"], counts["skipped"]) == (4, 1)
    mark = json.loads((tmp_path / "data" / "videos" / "faces-face2.json").read_text())
    assert "`face2.png`" in mark["detail"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("faces.npz", lambda content: b""),
        ("faces.npz", lambda content: content[: len(content) // 2]),
        ("faces.npz", lambda content: content[:200] + bytes(50) + content[250:]),
        ("faces.zip", lambda content: b""),
        ("faces.zip", lambda content: content[: len(content) // 2]),
        ("faces.zip", lambda content: content[-100:]),
    ],
)
def test_damaged_sources_are_named(source: PortraitSource, tmp_path: Path, name: str, damage: Callable):
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"must be .* got {re.escape(str(path))}"):
        build_portraits([source], tmp_path / "data", QUICK)


def test_landmarks_that_do_not_fit_are_refused(source: PortraitSource, tmp_path: Path):
    np.savez(tmp_path / "points.npz", files=np.array(NAMES), landmarks=np.zeros((5, 68, 2)))
    with pytest.raises(ValueError, match=r"`landmarks` in .*points.npz must be of shape .* got \(5, 68, 2\)"):
        build_portraits([PortraitSource(source.pictures, tmp_path / "points.npz")], tmp_path / "data", QUICK)
    with pytest.raises(ValueError, match=r"`landmarks` must be an npz file .* got .*faces\.zip"):
        build_portraits([PortraitSource(source.pictures, source.pictures)], tmp_path / "data2", QUICK)
    (tmp_path / "points.txt").write_text("no landmarks")
    with pytest.raises(ValueError, match=r"`landmarks` must be an npz file .* got .*points\.txt\."):
        build_portraits([PortraitSource(source.pictures, tmp_path / "points.txt")], tmp_path / "data3", QUICK)


def test_processes_share_the_portraits_and_write_the_same_bytes(
    source: PortraitSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_portraits([source], tmp_path / "alone", QUICK)
    shares = []
    for index in (0, 1):
        process = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        monkeypatch.setattr(module, "build_processes", lambda process=process: process)
        build_portraits([source], tmp_path / "shared", QUICK)
        shares.append(len(list((tmp_path / "shared" / "videos").iterdir())))
    assert shares == [3, 5]
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_two_archives_of_one_name_are_refused(source: PortraitSource, tmp_path: Path):
    with pytest.raises(ValueError, match="must have a name for each portrait, got 'faces-face0' for `face0"):
        build_portraits([source, source], tmp_path / "data", QUICK)


def test_pictures_of_one_stem_are_two_portraits(tmp_path: Path):
    (tmp_path / "faces").mkdir()
    names = ["face.png", "face.webp", "Face.jpg", "other.png"]
    for name in names:
        Image.fromarray(make_picture(40)).save(tmp_path / "faces" / name)
    np.savez(tmp_path / "faces.npz", files=np.array(names), landmarks=np.stack([make_landmarks()] * len(names)))
    build_portraits([PortraitSource(tmp_path / "faces", tmp_path / "faces.npz")], tmp_path / "data", QUICK)
    marks = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "data" / "videos").iterdir()}
    assert sorted(mark["source"] for mark in marks.values()) == sorted(names)
    assert "faces-other" in marks
    assert len({name.casefold() for name in marks}) == len(names)


def marks_of(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "videos").iterdir()}


def test_all_pictures_of_a_person_are_on_one_side_of_the_split(source: PortraitSource, tmp_path: Path):
    people = [{"file": name, "person": "ada" if number < 3 else "grace"} for number, name in enumerate(NAMES)]
    (tmp_path / "people.json").write_text(json.dumps(people))
    (tmp_path / "held_out.txt").write_text("ada\n\n")
    held_out = replace(source, people=tmp_path / "people.json", held_out_list=tmp_path / "held_out.txt")
    build_portraits([held_out], tmp_path / "data", replace(QUICK, val_share=0.0))
    splits = [marks_of(tmp_path / "data")[f"faces-face{number}"]["split"] for number in range(5)]
    assert splits == ["val"] * 3 + ["train"] * 2
    # A picture that is held out takes all others of its person along.
    (tmp_path / "held_out.txt").write_text("face4.png")
    build_portraits([held_out], tmp_path / "other", replace(QUICK, val_share=0.0))
    splits = [marks_of(tmp_path / "other")[f"faces-face{number}"]["split"] for number in range(5)]
    assert splits == ["train"] * 3 + ["val"] * 2
    drawn = replace(source, people=tmp_path / "people.json")
    for seed in range(3):
        build_portraits([drawn], tmp_path / f"drawn{seed}", replace(QUICK, seed=seed))
        splits = [marks_of(tmp_path / f"drawn{seed}")[f"faces-face{number}"]["split"] for number in range(5)]
        assert len(set(splits[:3])) == len(set(splits[3:])) == 1


def test_people_that_cannot_be_read_are_refused(source: PortraitSource, tmp_path: Path):
    (tmp_path / "people.json").write_text('[{"name": "ada"}, {"person": "ada"}]')
    with pytest.raises(ValueError, match=r"`people` must be a JSON list of objects .* got .*people\.json \(KeyError"):
        build_portraits([replace(source, people=tmp_path / "people.json")], tmp_path / "data", QUICK)


def test_a_frame_that_rounding_folds_costs_its_record_only(
    source: PortraitSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_portraits([source], tmp_path / "whole", QUICK)
    calls = []

    def sometimes_folded(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise FoldedPicture("folds")
        return portrait_record(*args, **kwargs)

    portrait_record = module.portrait_record
    monkeypatch.setattr(module, "portrait_record", sometimes_folded)
    build_portraits([source], tmp_path / "data", QUICK)
    whole, data = marks_of(tmp_path / "whole"), marks_of(tmp_path / "data")
    lost = [whole[name]["records"] - data[name]["records"] for name in whole]
    assert sorted(lost) == [0, 0, 0, 0, 1]
    assert {mark["status"] for mark in data.values()} == {"done"}


def test_pictures_of_any_shape_move_without_landmarks(tmp_path: Path):
    (tmp_path / "animals").mkdir()
    Image.fromarray(make_picture(80)[:50]).save(tmp_path / "animals" / "wide.png")
    Image.fromarray(make_picture(80)[:, :50]).save(tmp_path / "animals" / "high.png")
    animals = PortraitSource(tmp_path / "animals")
    settings = replace(QUICK, motions_per_portrait=3, val_share=0.0)
    counts = build_portraits([animals], tmp_path / "data", settings)
    assert counts is not None
    assert (counts["portraits"], counts["skipped"]) == (2, 0)
    shards = MotionShards(tmp_path / "data", "train")
    assert len(shards) == counts["records"] > 6
    assert shards[0].frame.shape == (32, 32, 3)
    assert max(np.abs(shards[index].end_flows).max() for index in range(len(shards))) > 1
    build_portraits([animals], tmp_path / "again", settings)
    assert contents(tmp_path / "data") == contents(tmp_path / "again")
    build_portraits([animals], tmp_path / "cut", replace(settings, smallest_face=0.2))
    assert len(MotionShards(tmp_path / "cut", "train")) > 6


@pytest.mark.parametrize("known", [("landmarks", "pose"), ("pose",)])
def test_people_with_joints_move_with_or_without_a_face(source: PortraitSource, tmp_path: Path, known: tuple[str]):
    marks = {"landmarks": np.stack([make_landmarks()] * 5), "pose": np.stack([make_pose()] * 5)}
    marks["pose"][0] = np.nan  # unknown
    np.savez(tmp_path / "marks.npz", files=np.array(NAMES), **{name: marks[name] for name in known})
    people = PortraitSource(source.pictures, tmp_path / "marks.npz")
    settings = replace(QUICK, largest_turn=40, smallest_face=0.2)
    counts = build_portraits([people], tmp_path / "data", settings)
    assert counts is not None
    assert (counts["portraits"], counts["skipped"]) == (5, 0)
    assert counts["records"] >= 4  # of 10, where they move enough


def test_an_archive_of_marks_without_any_is_refused(source: PortraitSource, tmp_path: Path):
    np.savez(tmp_path / "marks.npz", files=np.array(NAMES), hands=np.zeros((5, 21, 3)))
    with pytest.raises(ValueError, match=r"`landmarks` must be an npz file with `landmarks` or `pose`, got"):
        build_portraits([PortraitSource(source.pictures, tmp_path / "marks.npz")], tmp_path / "data", QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 28),
        ("size", 33),
        ("size", 10_000_000),
        ("records_per_motion", 0),
        ("frames", 50),
        ("val_share", 1.5),
        ("horizon_frames", 60),
        ("largest_turn", 90),
        ("smallest_face", 0.8),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*, got {value}\."):
        PortraitSettings(**{name: value})
