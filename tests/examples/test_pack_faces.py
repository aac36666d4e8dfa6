"""Faces that are cut from other people's photographs: what can't be read is left out, and said."""

import os
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pack_faces import pack
from PIL import Image

LANDMARKS = np.stack([np.linspace(0.3, 0.7, 478), np.linspace(0.2, 0.6, 478), np.zeros(478)], axis=1)


class StubbedMesh:
    """MediaPipe's face mesh, which here finds the same face in each picture that is upright."""

    def __init__(self, **options: bool):
        pass

    def __enter__(self) -> "StubbedMesh":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def process(self, picture: np.ndarray) -> types.SimpleNamespace:
        face = types.SimpleNamespace(landmark=[types.SimpleNamespace(x=x, y=y, z=z) for x, y, z in LANDMARKS])
        is_upright = picture.shape[0] > picture.shape[1]
        return types.SimpleNamespace(multi_face_landmarks=[face] if is_upright else None)


@pytest.fixture
def mediapipe(monkeypatch: pytest.MonkeyPatch) -> None:
    face_mesh = types.SimpleNamespace(FaceMesh=StubbedMesh)
    stub = types.SimpleNamespace(solutions=types.SimpleNamespace(face_mesh=face_mesh))
    monkeypatch.setitem(sys.modules, "mediapipe", stub)


@pytest.mark.usefixtures("mediapipe")
def test_faces_are_cut_from_photographs_and_other_files_are_left_out(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 150), "red").save(tmp_path / "on_its_side.jpg", exif=turned)
    Image.new("CMYK", (150, 200)).save(tmp_path / "upright.jpg")
    Image.new("RGB", (200, 150)).save(tmp_path / "wide.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        kept, left_out = pack(sorted(tmp_path.glob("*.*g")), 32, archive)
        assert sorted(archive.namelist()) == sorted(kept) == ["on_its_side.jpg", "upright.jpg"]
    reasons = {Path(file).name: reason for file, reason in left_out.items()}
    assert reasons.keys() == {"damaged.png", "pipe.jpg", "program.jpg", "wide.png"}
    assert reasons["wide.png"] == "no face was found"
    assert "must be the path of a regular file" in reasons["pipe.jpg"]
    assert "must be a picture file" in reasons["program.jpg"]
