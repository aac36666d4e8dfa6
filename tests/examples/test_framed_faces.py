"""Faces framed anew for training: each time differently, in any light, and held-out people nowhere."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from framed_faces import FramedFaces, in_other_light, place_in_still, source_of
from PIL import Image
from skimage import data

from motion_predictor.data.head_fields import CHIN, FOREHEAD
from motion_predictor.data.portraits import PortraitSource
from motion_predictor.data.still_framing import Framing
from motion_predictor.data.tilted_window import surrounded
from support.synthetic_face import make_landmarks, make_picture


@pytest.fixture
def source(tmp_path) -> PortraitSource:
    names = ["ada.jpg", "ada_again.jpg", "grace.jpg"]
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in names:
            encoded = io.BytesIO()
            Image.fromarray(make_picture(128)).save(encoded, "JPEG")
            archive.writestr(name, encoded.getvalue())
    np.savez(tmp_path / "faces_landmarks.npz", files=names, landmarks=np.stack([make_landmarks()] * 3))
    (tmp_path / "faces_people.json").write_text(json.dumps([{"file": name, "person": name[:3]} for name in names]))
    (tmp_path / "held_out.txt").write_text("ada\n")
    return source_of(tmp_path / "faces.zip", tmp_path / "held_out.txt")


@pytest.fixture
def faces(source) -> FramedFaces:
    return FramedFaces.load([source], seed=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_pictures_of_a_person_who_is_held_out_are_left_out(faces, source):
    assert len(faces.stills) == 1
    with source.open() as pictures:
        grace = pictures.open_square("grace.jpg").resize((320, 320), Image.Resampling.LANCZOS)
    assert torch.equal(faces.stills[0, :, 160:480, 160:480].permute(1, 2, 0), torch.from_numpy(np.array(grace)))


def test_sources_of_held_out_people_alone_are_refused(source, tmp_path):
    (tmp_path / "held_out.txt").write_text("ada\ngra\n")
    with pytest.raises(ValueError, match="may be trained on, got none"):
        FramedFaces.load([source], seed=0)


def test_a_face_is_framed_differently_each_time_and_the_same_for_the_same_seed(faces, source):
    frames = faces.draw(8, generator())
    assert frames.shape == (8, 3, 128, 128)
    assert -1 <= frames.min() < -0.5
    assert 0.5 < frames.max() <= 1
    assert len({frame.numpy().tobytes() for frame in frames}) == 8
    assert torch.equal(FramedFaces.load([source], seed=0).draw(8, generator()), frames)
    assert not torch.equal(faces.draw(8, generator(1)), frames)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_may_be_small(faces, count):
    assert faces.draw(count, generator()).shape == (count, 3, 128, 128)


def test_heights_of_faces_are_those_of_their_kind(faces):
    marks = torch.from_numpy(make_landmarks()[[CHIN, FOREHEAD], :2])
    still = float((marks[0] - marks[1]).norm())
    for framings, low, high in ((faces.small, 0.2, 0.4), (faces.large, 0.4, 0.75)):
        # A frame's side is that of the unit square, of which a framing shows 1 / scale stills.
        seen = framings[0, :, :, 0].norm(dim=-1)
        heights = still / (2 * seen)
        assert heights.min() >= low - 1e-3
        assert heights.max() <= high + 1e-3
        assert heights.std() > 0.02


@pytest.mark.parametrize(("scale", "tilt"), [(0.9, 0.3), (1.4, -0.2)])
def test_frames_are_what_the_framing_shows(scale, tilt):
    still = Image.fromarray(data.astronaut()).crop((90, 0, 410, 320))
    framing = Framing((0.55, 0.42), scale, tilt)
    canvas = surrounded(torch.from_numpy(np.array(still)).permute(2, 0, 1)[None].float(), 160).round().byte()
    place = torch.from_numpy(place_in_still(framing)).float()[None, None]
    drawn = FramedFaces(canvas, place, place).draw(40, generator(3)).permute(0, 2, 3, 1).numpy()
    shown = framing.show(still, 128) / 127.5 - 1
    least = min(np.abs(frame - shown).mean() for frame in drawn)  # one that is neither mirrored nor in other light
    assert least < 0.02
    assert min(np.abs(frame - shown[:, ::-1]).mean() for frame in drawn) < 0.02


def test_half_of_the_frames_are_lit_differently_and_none_changes_its_tint():
    colour = torch.tensor([0.25, 0.35, 0.45])
    frames = colour[:, None, None].expand(200, 3, 8, 8)
    lit = in_other_light(frames, generator())[:, :, 0, 0]
    changed = lit[(lit - colour).abs().amax(dim=1) > 1e-4]
    assert 70 < len(changed) < 130
    # Brightness keeps ratios, and contrast differences in proportion: the order of the channels stays.
    assert (changed.diff(dim=1) > 0).all()
