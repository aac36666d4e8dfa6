"""Settings are checked and explain themselves, and cost no import of torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from motion_predictor.data.build_settings import BuildSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("short_side", 16),
        ("records_per_video", 0),
        ("min_track_frames", 0),
        ("max_track_frames", 14),
        ("candidates", 0),
        ("max_frames", 15),
        ("min_motion", -0.1),
        ("region_threshold", -1.0),
        ("val_share", 1.5),
        ("flow", "farneback"),
        ("region", "hands"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any):
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}"):
        BuildSettings(**{name: value})


def test_every_setting_explains_itself():
    for name, entry in BuildSettings.__dataclass_fields__.items():
        assert len(entry.metadata["help"]) > 10, name


def test_the_settings_of_a_build_load_without_torch():
    check = "import sys, motion_predictor.data.build_dataset; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
