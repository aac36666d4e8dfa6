"""Videos are found and named, and their frames come as people see them, up to where a file is damaged."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from motion_predictor.data.shards import split_of
from motion_predictor.data.video import (
    UnusableVideo,
    find_videos,
    fingerprint,
    fitted_size,
    read_frames,
    read_header,
)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_folders_are_searched_for_videos_and_named_by_their_paths(tmp_path: Path):
    for name in ("b.MP4", "a/clip.mp4", "a/deep/clip.webm", "a/notes.txt", ".hidden/c.mp4", "a/.c.mp4"):
        touch(tmp_path / name)
    videos = find_videos([tmp_path])
    assert [video.name for video in videos] == ["a__clip", "a__deep__clip", "b"]
    assert [video.source for video in videos] == ["a/clip.mp4", "a/deep/clip.webm", "b.MP4"]


def test_files_may_have_any_suffix_and_are_named_from_the_folder_that_holds_all(tmp_path: Path):
    paths = [touch(tmp_path / name) for name in ("x/clip.mp4", "y/clip.mp4", "y/odd.bin")]
    assert [video.name for video in find_videos(paths)] == ["x__clip", "y__clip", "y__odd"]
    assert [video.name for video in find_videos(paths[:1])] == ["clip"]
    assert len(find_videos([tmp_path / "x", *paths])) == 3  # a file that is named twice is one video


def test_names_are_unique_and_fit_into_shards(tmp_path: Path):
    for name in ("clip.mp4", "clip.avi", "a/b.mp4", "a__b.mp4", "v1.2 (copy).mp4", "v1-2--copy-.mp4", "Ünï.mp4"):
        touch(tmp_path / name)
    names = [video.name for video in find_videos([tmp_path])]
    assert len(set(names)) == 7
    assert all("." not in name and "/" not in name and " " not in name for name in names)
    assert "Ünï" in names
    assert names == sorted(names) == [video.name for video in find_videos([tmp_path])]
    assert split_of(names[0], 0.5, seed=0) in ("train", "val")


def test_long_names_still_fit_into_file_names(tmp_path: Path):
    for folder in ("a", "b"):
        touch(tmp_path / folder / ("語" * 40) / ("画" * 80 + ".mp4"))
    names = [video.name for video in find_videos([tmp_path])]
    assert len(set(names)) == 2
    assert all("画" * 40 in name and len(name.encode()) < 200 for name in names)


def test_links_are_named_by_their_own_places(tmp_path: Path):
    far = touch(tmp_path / "store" / "0001.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "anna.mp4").symlink_to(far)
    (tmp_path / "shelf").symlink_to(tmp_path / "videos")
    assert [video.name for video in find_videos([tmp_path / "videos"])] == ["anna"]
    assert [video.name for video in find_videos([tmp_path / "shelf"])] == ["anna"]


def test_paths_without_videos_are_refused_by_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"`videos` must be .* got `.*nowhere`"):
        find_videos([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"`videos` must be .*no file ends in"):
        find_videos([tmp_path])


def test_a_fingerprint_tells_contents_and_not_places(tmp_path: Path):
    big = bytes(300_000)
    (tmp_path / "a").write_bytes(big)
    (tmp_path / "b").write_bytes(big)
    (tmp_path / "longer").write_bytes(big + b"\0")
    (tmp_path / "end").write_bytes(big[:-1] + b"\1")
    (tmp_path / "start").write_bytes(b"\1" + big[1:])
    digests = [fingerprint(tmp_path / name) for name in ("a", "b", "longer", "end", "start")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_sides_are_multiples_of_four_and_keep_their_ratio():
    for width, height, short_side in ((1920, 1080, 256), (176, 144, 128), (1080, 1920, 100), (16, 900, 32)):
        wide, high = fitted_size(width, height, short_side)
        assert wide % 4 == high % 4 == 0
        assert min(wide, high) == 4 * round(short_side / 4)
        assert wide / high == pytest.approx(width / height, rel=2.01 / min(wide, high))


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.webm", "libvpx-vp9", "yuv420p"),
        ("clip.mkv", "ffv1", "bgr0"),
        ("clip.gif", "gif", "rgb8"),
    ],
)
def test_frames_of_many_codecs_come_in_their_order(
    tmp_path: Path, moving_picture: Callable, write_video: Callable, name: str, codec: str, pixels: str
):
    frames = moving_picture(18, step=(3, 0))
    path = write_video(tmp_path / name, frames, codec, pixels)
    header = read_header(path)
    assert (header.frames, header.note) == (18, "")
    assert header.fps == pytest.approx(25, rel=0.01)
    read = list(read_frames(path, short_side=64))
    assert len(read) == 18
    for index, frame in enumerate(read):
        assert frame.shape == (64, 80, 3)
        assert frame.dtype == np.uint8
        errors = [np.abs(frame.astype(float) - other).mean() for other in frames]
        assert np.argmin(errors) == index


def test_a_lossless_video_of_the_wanted_size_comes_bit_by_bit(
    tmp_path: Path, moving_picture: Callable, write_video: Callable
):
    frames = moving_picture(3)
    path = write_video(tmp_path / "clip.mkv", frames)
    np.testing.assert_array_equal(list(read_frames(path, short_side=64)), frames)


def test_frames_are_resized_to_the_short_side(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    path = write_video(tmp_path / "clip.mkv", moving_picture(2))
    assert [frame.shape for frame in read_frames(path, short_side=32)] == [(32, 40, 3)] * 2
    assert [frame.shape for frame in read_frames(path, short_side=100)] == [(100, 124, 3)] * 2


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    path = write_video(tmp_path / "clip.mp4", moving_picture(2), "libx264", "yuv420p", aspect=Fraction(2))
    assert next(read_frames(path, short_side=64)).shape == (64, 160, 3)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_video_filmed_with_the_camera_turned_is_shown_upright(
    tmp_path: Path, moving_picture: Callable, write_video: Callable, quarter_turns: int
):
    frames = moving_picture(7)
    path = write_video(tmp_path / "clip.ts", frames, "libx264", "yuv420p", quarter_turns=quarter_turns)
    upright = next(read_frames(path, short_side=64))
    assert upright.shape == ((80, 64, 3) if quarter_turns % 2 else (64, 80, 3))
    errors = [np.abs(upright.astype(float) - turned).mean() if upright.shape == turned.shape else np.inf
              for turned in (np.rot90(frames[0], turns) for turns in range(4))]  # fmt: skip
    assert np.argmin(errors) == quarter_turns  # anticlockwise, as H.264 counts
    assert min(errors) < 10


def test_files_that_are_no_videos_say_what_they_are(tmp_path: Path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    for name in ("empty.mp4", "noise.mp4", "text.mp4", "folder.mp4", "missing.mp4"):
        with pytest.raises(UnusableVideo, match="cannot be opened"):
            read_header(tmp_path / name)
        with pytest.raises(UnusableVideo, match="cannot be opened"):
            next(read_frames(tmp_path / name, 64))


def test_sound_alone_is_no_video(tmp_path: Path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(UnusableVideo, match="no pictures") as caught:
        read_header(path)
    assert caught.value.reason == "no pictures"


@pytest.mark.parametrize(("name", "faststart"), [("clip.mkv", False), ("clip.mp4", True), ("clip.ts", False)])
def test_a_truncated_file_gives_the_frames_before_its_end(
    tmp_path: Path, moving_picture: Callable, write_video: Callable, name: str, faststart: bool
):
    frames = moving_picture(40, step=(3, 0))
    path = write_video(tmp_path / name, frames, "libx264", "yuv420p", faststart=faststart)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    read = list(read_frames(path, 64))
    assert 8 <= len(read) <= 36
    for frame, true in zip(read, frames, strict=False):
        assert np.abs(frame.astype(float) - true).mean() < 12
    if name != "clip.ts":  # which declares no length
        assert read_header(path).note.startswith("truncated")


def test_an_mp4_without_its_index_cannot_be_opened(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    path = write_video(tmp_path / "clip.mp4", moving_picture(40), "libx264", "yuv420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(UnusableVideo, match="cannot be opened"):
        read_header(path)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.ts"])
@pytest.mark.parametrize("damage", ["flipped", "zeroed"])
def test_reading_ends_where_a_file_is_damaged(
    tmp_path: Path, moving_picture: Callable, write_video: Callable, name: str, damage: str
):
    frames = moving_picture(60, step=(3, 0))
    path = write_video(tmp_path / name, frames, "libx264", "yuv420p")
    content = bytearray(path.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + len(content) // 20)
    content[middle] = bytes(len(content[middle])) if damage == "zeroed" else bytes(b ^ 0xFF for b in content[middle])
    path.write_bytes(content)
    read = list(read_frames(path, 64))
    assert 12 <= len(read) < 60
    for frame, true in zip(read[:-1], frames, strict=False):  # the last may be broken, never what comes after a gap
        assert np.abs(frame.astype(float) - true).mean() < 12


def test_frames_that_a_decoder_would_patch_up_mostly_end_the_video(tmp_path: Path, moving_picture: Callable):
    frames, path = moving_picture(40, (2, 0), 128, 160), tmp_path / "clip.mkv"
    ended = []
    for damaged in (15, 25, 15, 25, 15, 25, 15, 25):
        random = np.random.default_rng(len(ended) // 2)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 128, 160, "yuv420p"
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = 60, 0
            pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
            packets = [packet for picture in [*pictures, None] for packet in stream.encode(picture)]
            for index, packet in enumerate(packets):
                content, half = bytes(packet), packet.size // 2
                written = av.Packet(content[:-half] + random.bytes(half) if index == damaged else content)
                written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
                written.stream, written.is_keyframe = stream, packet.is_keyframe
                container.mux(written)
        assert read_header(path).frames == 40
        ended.append(len(list(read_frames(path, 128))) == damaged)
    assert sum(ended) >= 5  # some damage is as good as any picture


def test_reading_ends_where_frames_are_missing(tmp_path: Path, moving_picture: Callable):
    frames = moving_picture(20)
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuvj420p"
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = index if index < 12 else index + 10
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    assert len(list(read_frames(path, 64))) == 12


def write_at(path: Path, frames: list[np.ndarray], times: list[float], codec: str, rate: int = 25) -> Path:
    """Write frames that are shown at given times, in seconds; `rate` is what the file declares."""
    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time / clock), clock
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


FORMATS = [("clip.mkv", "libx264"), ("clip.mp4", "libx264"), ("clip.ts", "libx264"), ("clip.webm", "libvpx-vp9")]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
@pytest.mark.parametrize(
    ("start", "rate"), [(0, 1000), (3600, 25)], ids=["declares-its-clock-as-frame-rate", "starts-after-an-hour"]
)
def test_times_count_from_the_first_frame_and_not_what_a_file_declares(
    tmp_path: Path, moving_picture: Callable, name: str, codec: str, start: float, rate: int
):
    times = [start + index / 25 for index in range(40)]
    path = write_at(tmp_path / name, moving_picture(40), times, codec, rate)
    header = read_header(path)
    assert (header.frames, header.note) == (40, "")
    assert header.fps == pytest.approx(25)
    assert len(list(read_frames(path, 64))) == 40


@pytest.mark.parametrize(("name", "codec"), FORMATS)
@pytest.mark.parametrize(
    ("intervals", "fps"),
    [
        ([0.04] * 25 + [0.1] * 14, 25),
        ([0.1] * 25 + [0.04] * 14, 10),
        ([0.03, 0.05, 0.04] * 13, 25),
        ([0.033, 0.033, 0.034] * 13, 30),
    ],
    ids=["slower", "faster", "uneven", "rounded"],
)
def test_frames_may_come_at_uneven_times(
    tmp_path: Path, moving_picture: Callable, name: str, codec: str, intervals: list[float], fps: float
):
    times = [0.0, *np.cumsum(intervals)]
    path = write_at(tmp_path / name, moving_picture(40), times, codec)
    header = read_header(path)
    assert (header.frames, header.note) == (40, "")
    assert header.fps == pytest.approx(fps, rel=1e-3)
    assert len(list(read_frames(path, 64))) == 40


def test_a_truncated_file_that_starts_late_says_how_long_it_should_be(tmp_path: Path, moving_picture: Callable):
    path = write_at(tmp_path / "clip.mkv", moving_picture(40), [100 + i / 25 for i in range(40)], "libx264")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    header = read_header(path)
    assert 8 <= header.frames <= 36
    assert header.note.startswith("truncated: it ends after ")
    assert header.note.endswith(" of 1.6 s")
