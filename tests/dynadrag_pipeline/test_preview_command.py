"""`dynadrag preview`: the points of an edit, and a picture that is not the edit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dynadrag_pipeline import EMBEDDED_MOTION_PREDICTOR, DynaDragPipeline, MotionPredictorModel
from dynadrag_pipeline.cli import main
from support.fake_pipeline import EDIT, the_error


@pytest.fixture
def portrait(tmp_path):
    path = tmp_path / "portrait.png"
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((96, 80), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def shown(tmp_path):
    return tmp_path / "look.png"


@pytest.mark.parametrize("motion", [None, "straight"])
def test_it_writes_what_the_pipeline_shows(portrait, shown, capsys, motion):
    options = [] if motion is None else ["--motion", motion]
    assert main(["preview", str(portrait), *EDIT, *options, "--out", str(shown)]) == 0
    predictor = MotionPredictorModel.from_pretrained(EMBEDDED_MOTION_PREDICTOR)
    pipe = DynaDragPipeline(None, None, None, None, None, motion_predictor=predictor)
    with Image.open(portrait) as picture, Image.open(shown) as written:
        expected = pipe.preview(picture, [(20, 30)], [(40, 30)], motion=motion).image
        assert np.array_equal(np.asarray(written), np.asarray(expected))
    said = capsys.readouterr().out
    assert str(shown) in said
    assert "not the edit" in said


def test_a_file_that_is_there_is_kept_unless_it_is_said_otherwise(portrait, shown, capsys):
    command = ["preview", str(portrait), *EDIT, "--motion", "straight", "--out", str(shown)]
    shown.write_bytes(b"mine")
    assert main(command) == 2
    assert "--force" in the_error(capsys)
    assert shown.read_bytes() == b"mine"
    assert main([*command, "--force"]) == 0
    assert shown.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--handle", "20,30"], "--target"),
        ([*EDIT, "--path", "30,40", "--motion", "straight"], "--path"),
        (["--handle", "20,30", "--target", "400,30"], "`targets` must lie inside the picture"),
        ([*EDIT, "--motion-predictor", "nowhere/at/all"], "--motion-predictor"),
    ],
)
def test_mistakes_are_told_as_those_of_an_edit(portrait, shown, capsys, options, error):
    assert main(["preview", str(portrait), *options, "--out", str(shown)]) == 2
    assert error in the_error(capsys)
    assert not shown.exists()


def test_another_format_is_refused(portrait, capsys):
    with pytest.raises(SystemExit):
        main(["preview", str(portrait), *EDIT, "--out", "look.jpg"])
    assert "ends in .png" in capsys.readouterr().err
