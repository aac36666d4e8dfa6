"""Evaluation pairs: a faithful record, and true motion."""

import argparse
import doctest
import json
import re
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data, transform

from dynadrag_pipeline import load_instruction
from dynadrag_pipeline.cli import main
from dynadrag_pipeline.commands.build_pairs import _groups, names_of
from dynadrag_pipeline.evaluation import build_pairs, methods
from dynadrag_pipeline.evaluation.build_pairs import (
    OPTIONS_FILE,
    begin_or_go_on,
    build,
    cut_pair,
    dense_motion,
    portrait_pairs,
    video_pair,
    video_pairs,
)
from dynadrag_pipeline.evaluation.pairs import EvaluationPair, load_pairs
from motion_predictor.data.dataset_folder import only_writer
from motion_predictor.data.portraits import PortraitSource
from motion_predictor.data.shards import split_of
from motion_predictor.data.video import VideoFile, VideoHeader, find_videos
from support.synthetic_face import make_landmarks, make_picture

SIZE = 128


@pytest.fixture(scope="module")
def film() -> list[np.ndarray]:
    """A face that moves by (1, 0.5) pixels a frame, for 16 frames, over a picture that moves with it."""
    picture = data.astronaut()[0:300, 76:376]
    frames = []
    for number in range(17):
        shift = transform.AffineTransform(translation=(60 - 2 * number, 40 - number))
        warped = transform.warp(picture, shift, output_shape=(2 * SIZE, 2 * SIZE), mode="edge")
        frames.append(np.uint8(255 * transform.resize(warped, (SIZE, SIZE), anti_aliasing=True)))
    return frames


def write_film(path: Path, frames: list[np.ndarray]) -> VideoFile:
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for picture in [*(av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames), None]:
            container.mux(stream.encode(picture))
    return VideoFile(path.stem, path, path.name)


def write_faces(folder: Path, *names: str) -> PortraitSource:
    """Pictures of one face, all of which are held out."""
    (folder / "faces").mkdir()
    for name in names:
        Image.fromarray(make_picture()).save(folder / "faces" / name)
    np.savez(folder / "marks.npz", files=names, landmarks=np.stack([make_landmarks()] * len(names)))
    return PortraitSource(folder / "faces", folder / "marks.npz", hold_out=True)


def test_motion_over_many_frames_is_that_of_the_content(film):
    flow = dense_motion(film)
    middle = flow[30:90, 30:90]
    assert np.isfinite(middle).mean() > 0.8
    assert np.nanmedian(middle, axis=(0, 1)) == pytest.approx([16, 8], abs=1)


def test_a_pair_of_a_film_asks_for_what_happens_in_it(film):
    pair = cut_pair("000_film", film, np.random.default_rng(0))
    assert 1 <= len(pair.handles) <= 7
    assert np.median(pair.targets - pair.handles, axis=0) == pytest.approx([16, 8], abs=1)
    assert pair.mask[tuple(pair.handles.astype(int).T[::-1])].all()
    assert (pair.source == film[0]).all()
    assert (pair.target == film[-1]).all()


def test_no_point_of_a_film_is_asked_to_leave_the_picture(film, monkeypatch):
    """Tracks are followed for half a pixel more than an instruction may ask for."""
    flow = np.zeros((SIZE, SIZE, 2), dtype=np.float32)
    flow[: SIZE - 10, :, 1], flow[SIZE - 10 :, :, 1] = 8, 10.4
    monkeypatch.setattr("dynadrag_pipeline.evaluation.build_pairs.dense_motion", lambda frames: flow)
    for seed in range(20):
        pair = cut_pair("000_film", film, np.random.default_rng(seed))
        assert pair.targets.max() <= SIZE - 1


def test_a_film_in_which_nothing_moves_gives_no_pair(film):
    assert cut_pair("000_film", film[:1] * 17, np.random.default_rng(0)) is None


def test_another_scene_has_no_motion_from_the_first(film):
    cut = [*film[:8], np.uint8(255 * transform.resize(data.chelsea(), (SIZE, SIZE)))]
    assert np.isnan(dense_motion(cut)).all()


def test_a_film_that_cannot_be_read_is_left_out_by_name_and_the_others_give_their_pairs(film, tmp_path, capsys):
    write_film(tmp_path / "films" / "sound.mkv", film)
    (tmp_path / "films" / "broken.mkv").write_bytes(b"no film")
    films, out = tmp_path / "films", tmp_path / "out"
    assert main(["build-pairs", "--videos", str(films), "--video-pairs", "3", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "3 pairs in" in said.out
    assert said.err.count("broken.mkv` is left out: cannot be opened") == 1, "though its turn comes more than once"
    assert all(pair.name.endswith("_sound") for pair in load_pairs(out / "videos"))


def test_a_face_that_cannot_be_used_is_left_out_by_name_and_no_face_at_all_is_an_error(tmp_path, capsys):
    source = write_faces(tmp_path, "whole.png", "broken.png")
    (tmp_path / "faces" / "broken.png").write_bytes(b"no picture")
    build(portrait_pairs(source, tmp_path / "out", seed=0, side=64), tmp_path / "out", 2)
    assert {pair.name[3:] for pair in load_pairs(tmp_path / "out")} == {"_whole"}
    assert "_broken` is left out: `broken.png` in" in capsys.readouterr().err
    (tmp_path / "faces" / "whole.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="must be a picture, got another file"):
        next(portrait_pairs(source, tmp_path / "none", seed=0, side=64))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["--size", "64"], r"`size` must be 96, which `.*out/portraits` was begun with, got 64"),
        (["--seed", "1"], "`seed` must be 0"),
        (["--largest-turn", "20"], "`largest_turn` must be None"),
        (["--held-out", "one"], r"`faces` must be '2 files \(.*\)', .* got '1 files"),
    ],
)
def test_a_set_goes_on_with_the_options_that_it_was_begun_with_and_no_others(tmp_path, capsys, other, message):
    write_faces(tmp_path, "a.png", "b.png")
    (tmp_path / "one").write_text("a.png\n")
    other = [str(tmp_path / "one") if word == "one" else word for word in other]
    faces, marks, out = (str(tmp_path / name) for name in ("faces", "marks.npz", "out"))
    command = ["build-pairs", "--faces", faces, "--landmarks", marks, "--size", "96", "--out", out]
    assert main([*command, "--portrait-pairs", "1"]) == 0
    assert main([*command, "--portrait-pairs", "2", *other]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert main([*command, "--portrait-pairs", "2"]) == 0
    assert [pair.source.shape[0] for pair in load_pairs(tmp_path / "out" / "portraits")] == [96, 96]


def test_other_films_are_refused_as_well(film, tmp_path):
    videos = [write_film(tmp_path / f"{name}.mkv", film) for name in "ab"]
    build(video_pairs([videos[:1]], tmp_path / "out", 0, SIZE), tmp_path / "out", 1)
    for others in ([videos], [videos[:1], videos[1:]]):
        with pytest.raises(ValueError, match=r"`videos` must be '1 files \(.*\)', .*, got '2 files"):
            next(video_pairs(others, tmp_path / "out", 0, SIZE))


def test_a_set_without_a_record_of_its_options_is_taken_as_it_is(film, tmp_path):
    videos = [write_film(tmp_path / "a.mkv", film)]
    build(video_pairs([videos], tmp_path / "out", 0, SIZE), tmp_path / "out", 1)
    (tmp_path / "out" / OPTIONS_FILE).unlink()
    assert next(video_pairs([videos], tmp_path / "out", 0, SIZE // 2)).source.shape[0] == SIZE
    assert not (tmp_path / "out" / OPTIONS_FILE).exists()


def test_a_set_in_which_nothing_was_made_yet_may_begin_anew(tmp_path):
    for size in (128, 96):
        begin_or_go_on(tmp_path / "out", {"size": size})
    assert json.loads((tmp_path / "out" / OPTIONS_FILE).read_text()) == {"size": 96}


def test_a_film_that_ends_before_its_header_says_gives_the_pair_of_its_readable_part(film, tmp_path, monkeypatch):
    video = write_film(tmp_path / "short.mkv", film)
    whole = video_pair(video, "000_short", np.random.default_rng(0), SIZE)
    monkeypatch.setattr(build_pairs, "read_header", lambda path: VideoHeader(200, 25.0, ""))
    short = video_pair(video, "000_short", np.random.default_rng(0), SIZE)
    assert (short.target == whole.target).all()
    assert short.handles.tolist() == whole.handles.tolist()


def test_of_a_long_film_only_the_squares_that_are_looked_at_are_kept(tmp_path, monkeypatch):
    decoded: list[weakref.ref] = []
    seen: list[np.ndarray] = []

    def read_frames(*_):
        for _ in range(2000):
            frame = np.zeros((48, 32, 3), dtype=np.uint8)
            decoded.append(weakref.ref(frame))
            yield frame

    def nothing_moves(name, frames, random):
        seen.extend(frames)
        assert sum(reference() is not None for reference in decoded) <= 1, "the last one, at most"

    monkeypatch.setattr(build_pairs, "read_header", lambda path: VideoHeader(2000, 25.0, ""))
    monkeypatch.setattr(build_pairs, "read_frames", read_frames)
    monkeypatch.setattr(build_pairs, "cut_pair", nothing_moves)
    assert video_pair(VideoFile("a", tmp_path / "a.mkv", "a.mkv"), "000_a", np.random.default_rng(0), 32) is None
    assert {frame.shape for frame in seen} == {(32, 32, 3)}


def test_a_saved_pair_is_read_as_it_was_and_its_instruction_by_the_command_line(film, tmp_path):
    pair = cut_pair("000_film", film, np.random.default_rng(0))
    build(iter([pair]), tmp_path / "films", 1)
    (read,) = load_pairs(tmp_path / "films")
    for name in ("source", "target", "mask"):
        assert (getattr(read, name) == getattr(pair, name)).all()
    assert read.handles == pytest.approx(pair.handles, abs=1e-3)
    assert read.flow == pytest.approx(pair.flow, abs=0.02, nan_ok=True)
    instruction = load_instruction(tmp_path / "films" / "000_film" / "instruction.json")
    assert np.array(instruction["targets"]) == pytest.approx(pair.targets, abs=1e-3)
    assert (tmp_path / "films.png").exists()


def test_pairs_come_in_the_order_of_their_names_and_no_more_than_asked_for(film, tmp_path):
    pair = cut_pair("000_film", film, np.random.default_rng(0))
    fields = {name: getattr(pair, name) for name in ("source", "target", "mask", "handles", "targets", "flow")}
    for number in (1000, 999, 2, 0):
        EvaluationPair(f"{number:03d}", **fields).save(tmp_path)
    assert [read.name for read in load_pairs(tmp_path)] == ["000", "002", "999", "1000"]
    assert [read.name for read in load_pairs(tmp_path, limit=1)] == ["000"]


def test_two_builds_into_one_folder_are_refused(tmp_path, capsys):
    write_faces(tmp_path, "a.png")
    faces, marks, out = (str(tmp_path / name) for name in ("faces", "marks.npz", "out"))
    command = ["build-pairs", "--faces", faces, "--landmarks", marks, "--portrait-pairs", "1", "--out", out]
    (tmp_path / "held.txt").write_text("a.png\n")
    with only_writer(out):
        assert main([*command, "--held-out", str(tmp_path / "held.txt")]) == 2
    assert "which another build is writing to: wait until it has ended" in capsys.readouterr().err
    assert main([*command, "--held-out", str(tmp_path / "held.txt")]) == 0


def test_a_folder_without_pairs_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="build-pairs"):
        load_pairs(tmp_path)


def test_a_pair_without_a_flow_is_read_and_pictures_of_two_sizes_are_refused(film, tmp_path):
    cut_pair("000_film", film, np.random.default_rng(0)).save(tmp_path)
    (tmp_path / "000_film" / "flow.npz").unlink()
    assert np.isnan(load_pairs(tmp_path)[0].flow).all()
    Image.new("RGB", (SIZE, SIZE - 1)).save(tmp_path / "000_film" / "target.png")
    with pytest.raises(ValueError, match="of one size, got a target"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --faces with --landmarks"),
        (["--faces", "faces.zip"], "--faces and --landmarks go together"),
        (["--faces", "f.zip", "--landmarks", "f.npz", "--names", "n.json"], "--names chooses among --videos"),
        (["--faces", "f.zip", "--landmarks", "f.npz", "--val-share", "0.1"], "--val-share chooses among --videos"),
    ],
)
def test_what_the_command_can_not_do_is_said_at_once(options, message, tmp_path, capsys):
    assert main(["build-pairs", "--out", str(tmp_path / "pairs"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--faces": "text"}, "`--faces` must be a folder or a zip archive of pictures, got `{folder}/text`"),
        ({"--faces": "empty"}, "`--faces` must hold pictures that are held out, got none of them in {folder}/empty"),
        ({"--landmarks": "none.npz"}, "`--landmarks` must be a file, got `{folder}/none.npz`"),
        ({"--landmarks": "others.npz"}, "`--landmarks` ({folder}/others.npz) must name some of the 1 pictures of"),
        ({"--held-out": "none.txt"}, "`--held-out` must be a file, got `{folder}/none.txt`"),
        ({"--videos": "empty"}, "`videos` must be folders with videos"),
        ({"--videos": "text"}, "`--videos` must show something that moves"),
        ({"--size": "130"}, "`size` must be a multiple of 4, got 130"),
        ({"--out": "text"}, "`--out` must be a folder, got `{folder}/text`"),
        (
            {"--out": "text/pairs"},
            "got `{folder}/text/pairs`, but `{folder}/text` is a file",
        ),
    ],
)
def test_a_mistake_is_named_with_its_option_and_nothing_is_made(changed, message, tmp_path, capsys):
    write_faces(tmp_path, "a.png")
    np.savez(tmp_path / "others.npz", files=["b.png"], landmarks=make_landmarks()[None])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    given = {"--faces": "faces", "--landmarks": "marks.npz", "--out": "out"}
    if changed.get("--videos") == "text":
        given = {"--out": "out"}
    words = {flag: value if flag == "--size" else str(tmp_path / value) for flag, value in (given | changed).items()}
    assert main(["build-pairs", *(word for pair in words.items() for word in pair)]) == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/*.png"))


def test_a_side_that_films_can_not_be_cut_to_is_refused_too(film, tmp_path, capsys):
    video = write_film(tmp_path / "a.mkv", film).path
    assert main(["build-pairs", "--videos", str(video), "--size", "130", "--out", str(tmp_path / "out")]) == 2
    assert "`size` must be a multiple of 4, got 130" in capsys.readouterr().err


def test_an_interrupted_set_is_named_and_goes_on(tmp_path, monkeypatch, capsys):
    write_faces(tmp_path, "a.png", "b.png")
    faces, marks, out = (str(tmp_path / name) for name in ("faces", "marks.npz", "out"))
    command = ["build-pairs", "--faces", faces, "--landmarks", marks, "--portrait-pairs", "2", "--out", out]

    save = EvaluationPair.save

    def save_the_first(pair, folder):
        if pair.name.startswith("001"):
            raise KeyboardInterrupt
        save(pair, folder)

    with monkeypatch.context() as during:
        during.setattr(EvaluationPair, "save", save_the_first)
        assert main(command) == 130
    assert f"interrupted; kept: {out}/portraits" in capsys.readouterr().err
    assert main(command) == 0
    assert [pair.name[:3] for pair in load_pairs(tmp_path / "out" / "portraits")] == ["000", "001"]


def test_videos_that_are_held_out_are_those_of_a_dataset_of_the_same_files(tmp_path):
    for name in [f"{folder}/{number}.mp4" for folder in ("ff", "ted") for number in range(20)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    videos = [tmp_path / "ff", tmp_path / "ted"]

    def chosen(**options) -> list[set[str]]:
        given = argparse.Namespace(videos=videos, names=None, val_share=None)
        return [{video.path.stem for video in group} for group in _groups(argparse.Namespace(**vars(given) | options))]

    held_out = {video.path for video in find_videos(videos) if split_of(video.name, 0.3, seed=0) == "val"}
    assert 0 < len(held_out) < 40
    assert chosen() == [{str(number) for number in range(20)}] * 2
    assert chosen(val_share=0.3) == [{path.stem for path in held_out if path.parent == folder} for folder in videos]
    (tmp_path / "names.json").write_text('["3", "7"]')
    assert chosen(names=tmp_path / "names.json") == [{"3", "7"}] * 2
    with pytest.raises(ValueError, match="must leave some of the videos"):
        chosen(val_share=1e-9)


def test_names_are_read_from_lists_and_from_split_files(tmp_path):
    (tmp_path / "split.json").write_text('[["953", "974"], ["012", "026"]]')
    (tmp_path / "list.json").write_text('["953"]')
    (tmp_path / "wrong.json").write_text("[1]")
    assert names_of(tmp_path / "split.json") == {"953", "974", "012", "026"}
    assert names_of(tmp_path / "list.json") == {"953"}
    with pytest.raises(ValueError, match="must be a list of names"):
        names_of(tmp_path / "wrong.json")


@pytest.mark.parametrize("module", [build_pairs, methods])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
