"""Records come back from shards as they went in, and shards read by webdataset itself."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from motion_predictor.data.dataset_folder import DatasetFolder
from motion_predictor.data.motion_record import MotionRecord, decode_record, encode_record
from motion_predictor.data.shards import MotionShards, split_of, write_shard


def make_record(key: str = "clip_000003", height: int = 16, width: int = 24, seed: int = 0) -> MotionRecord:
    random = np.random.default_rng(seed)
    smooth = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    tracks = random.normal(0, 9, (5, 7, 2)).astype(np.float32)
    tracks[2, 4:] = np.nan
    horizon_flows = random.normal(0, 3, (6, height // 4, width // 4, 2)).astype(np.float32)
    horizon_flows[1, 0, 0] = np.nan
    return MotionRecord(
        key=key,
        frame=smooth,
        flow=random.normal(0, 1, (height, width, 2)).astype(np.float32),
        horizon_flows=horizon_flows,
        points=random.uniform(0, height - 1, (5, 2)).astype(np.float32),
        tracks=tracks,
        background=random.normal(0, 1, (7, 2)).astype(np.float32),
        info={"video": "clip", "start": 3},
        end_frames=np.array([15, 25]),
        end_flows=random.normal(0, 9, (2, height // 4, width // 4, 2)).astype(np.float32),
    )


def test_a_record_comes_back_within_half_a_64th_of_a_pixel():
    record = make_record()
    decoded = decode_record(encode_record(record))
    for name in ("flow", "horizon_flows", "tracks", "end_flows"):
        np.testing.assert_allclose(getattr(decoded, name), getattr(record, name), atol=0.5 / 64)
    np.testing.assert_array_equal(decoded.points, record.points)
    np.testing.assert_array_equal(decoded.background, record.background)
    np.testing.assert_array_equal(decoded.end_frames, record.end_frames)
    assert np.abs(decoded.frame.astype(int) - record.frame).max() <= 8  # JPEG
    assert (decoded.key, decoded.info) == (record.key, record.info)


def test_a_record_of_an_earlier_version_has_no_flows_to_end_frames():
    stored = encode_record(make_record())
    motion = dict(np.load(io.BytesIO(stored["motion.npz"])))
    del motion["end_frames"], motion["end_flows"]
    earlier = io.BytesIO()
    np.savez(earlier, **motion)
    decoded = decode_record({**stored, "motion.npz": earlier.getvalue()})
    assert len(decoded.end_frames) == len(decoded.end_flows) == 0


def test_motion_beyond_the_range_is_kept_at_its_end_and_not_taken_for_lost():
    record = make_record()
    record.tracks[0, 0] = (-9999, 9999)
    decoded = decode_record(encode_record(record))
    np.testing.assert_allclose(decoded.tracks[0, 0], (-511.98, 511.98), atol=0.01)


@pytest.mark.parametrize("name", ["flow", "horizon_flows", "points", "background", "end_flows"])
def test_a_record_whose_parts_do_not_fit_names_the_part(name: str):
    parts = vars(make_record())
    with pytest.raises(ValueError, match=f"`{name}`.*clip_000003"):
        MotionRecord(**{**parts, name: parts[name][..., :1]})


def test_a_frame_that_does_not_divide_into_cells_is_refused():
    parts = vars(make_record())
    with pytest.raises(ValueError, match="multiples of 4"):
        MotionRecord(**{**parts, "frame": parts["frame"][:15]})


def test_shards_are_read_by_number_and_by_webdataset_alike(tmp_path: Path):
    import webdataset

    records = [make_record(f"clip_{index:06d}", seed=index) for index in range(3)]
    assert write_shard(tmp_path / "train" / "clip.tar", records) == 3
    write_shard(tmp_path / "train" / "drive.tar", [make_record("drive_000000", seed=9)])
    shards = MotionShards(tmp_path, "train")
    assert [shards[index].key for index in range(len(shards))] == [*(record.key for record in records), "drive_000000"]

    url = str(tmp_path / "train" / "clip.tar")
    by_webdataset = [decode_record(sample) for sample in webdataset.WebDataset(url, shardshuffle=False)]
    for index, record in enumerate(by_webdataset):
        assert record.key == shards[index].key
        np.testing.assert_array_equal(record.tracks, shards[index].tracks)


def test_the_same_records_make_the_same_bytes(tmp_path: Path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [make_record()])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path):
    def records():
        yield make_record()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path / "train" / "clip.tar", records())
    assert list((tmp_path / "train").iterdir()) == []


def test_an_empty_split_says_how_to_build_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="dynadrag build-dataset"):
        MotionShards(tmp_path, "val")


def test_the_split_depends_on_the_name_alone_and_keeps_to_its_share():
    videos = [f"video-{index}" for index in range(2000)]
    splits = [split_of(video, val_share=0.05, seed=0) for video in videos]
    assert splits == [split_of(video, val_share=0.05, seed=0) for video in videos]
    assert 60 <= splits.count("val") <= 140  # 100 expected, standard deviation 9.7
    assert splits != [split_of(video, val_share=0.05, seed=1) for video in videos]


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"`val_share` must be .* got 1\.5"):
        split_of("clip", val_share=1.5, seed=0)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of two records, without a mark."""
    path = tmp_path / "train" / "clip.tar"
    write_shard(path, [make_record(f"clip_{index:06d}", seed=index) for index in range(2)])
    return path


def without_a_member(content: bytes) -> bytes:
    kept = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as whole, tarfile.open(fileobj=kept, mode="w") as part:
        for member in whole:
            if member.name != "clip_000001.motion.npz":
                part.addfile(member, whole.extractfile(member))
    return kept.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:700],
        lambda content: content[:100],
        lambda content: bytes(len(content)),
        lambda content: np.random.default_rng(0).bytes(3000),
        without_a_member,
    ],
)
def test_a_damaged_shard_is_named_when_it_is_opened(shard: Path, damage: Callable):
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=rf"`{re.escape(str(shard))}` must .* got .*: delete it and start its build"):
        MotionShards(shard.parents[1], "train")


@pytest.mark.parametrize("name", ["frame.jpg", "motion.npz", "info.json"])
def test_a_record_that_cannot_be_decoded_is_named_with_its_shard(shard: Path, name: str):
    (member,) = (file for file in MotionShards(shard.parents[1], "train").places[1].members if file[0] == name)
    content = bytearray(shard.read_bytes())
    content[member[1] : member[1] + member[2]] = bytes(member[2])
    shard.write_bytes(content)
    shards = MotionShards(shard.parents[1], "train")
    assert shards[0].key == "clip_000000"
    with pytest.raises(ValueError, match=rf"`{re.escape(str(shard))}` must hold whole records.*`clip_000001`"):
        shards[1]


def test_a_bit_that_flipped_is_noticed_by_the_checksum_of_the_mark(shard: Path):
    DatasetFolder(shard.parents[1]).mark_finished("clip", {"status": "done", "split": "train", "records": 2})
    assert MotionShards(shard.parents[1], "train")[1].key == "clip_000001"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # behind the records
    shard.write_bytes(content)
    shards = MotionShards(shard.parents[1], "train")
    for index in (0, 1, 0):
        with pytest.raises(ValueError, match=rf"`{re.escape(str(shard))}` must be as it was written"):
            shards[index]


def test_a_shard_that_is_gone_is_noticed_by_its_mark(shard: Path):
    DatasetFolder(shard.parents[1]).mark_finished("clip", {"status": "done", "split": "train", "records": 2})
    write_shard(shard.parent / "drive.tar", [make_record("drive_000000")])
    shard.unlink()
    with pytest.raises(ValueError, match=rf"`{re.escape(str(shard))}` must hold 2 records, got no such file"):
        MotionShards(shard.parents[1], "train")
