"""Faces framed anew for training: each time differently, in any light, and held-out people nowhere."""

import io
import json
import zipfile

import numpy as np
import pytest
from framed_faces import framed, in_other_light
from PIL import Image

from motion_predictor.data.portraits import PortraitSource
from support.synthetic_face import make_landmarks, make_picture


@pytest.fixture
def source(tmp_path) -> PortraitSource:
    names = ["ada.jpg", "ada_again.jpg", "grace.jpg"]
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in names:
            encoded = io.BytesIO()
            Image.fromarray(make_picture(128)).save(encoded, "JPEG")
            archive.writestr(name, encoded.getvalue())
    np.savez(tmp_path / "faces.npz", files=names, landmarks=np.stack([make_landmarks()] * 3))
    (tmp_path / "people.json").write_text(json.dumps([{"file": name, "person": name[:3]} for name in names]))
    (tmp_path / "held_out.txt").write_text("ada\n")
    return PortraitSource(
        tmp_path / "faces.zip",
        tmp_path / "faces.npz",
        people=tmp_path / "people.json",
        held_out_list=tmp_path / "held_out.txt",
    )


def test_all_pictures_of_a_person_who_is_held_out_are_left_out(source):
    assert [name for name, _ in framed(source, per_portrait=3, seed=0)] == ["grace_0", "grace_1", "grace_2"]


def test_a_face_is_framed_differently_each_time_and_the_same_for_the_same_seed(source):
    frames = [frame for _, frame in framed(source, per_portrait=4, seed=0)]
    again = [frame for _, frame in framed(source, per_portrait=4, seed=0)]
    assert all((first == second).all() for first, second in zip(frames, again, strict=True))
    assert all(frame.shape == (128, 128, 3) for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == 4


def test_half_of_the_frames_are_lit_differently_and_none_changes_its_tint():
    random, frame = np.random.default_rng(0), np.full((8, 8, 3), (60, 90, 120), dtype=np.uint8)
    lit = [in_other_light(frame, random)[0, 0].astype(float) for _ in range(200)]
    changed = [colour for colour in lit if not (colour == frame[0, 0]).all()]
    assert 70 < len(changed) < 130
    # Brightness keeps ratios, and contrast differences in proportion: the order of the channels stays.
    assert all(colour[0] < colour[1] < colour[2] for colour in changed)
