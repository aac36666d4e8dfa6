"""Settings are checked and explain themselves, and cost no import of torch."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from motion_predictor.common.options import options_of
from motion_predictor.data.build_settings import BuildSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("short_side", 16),
        ("short_side", 10_000_000),
        ("records_per_video", 0),
        ("min_track_frames", 0),
        ("max_track_frames", 14),
        ("candidates", 0),
        ("candidates", 2.0),
        ("max_frames", 15),
        ("min_motion", -0.1),
        ("min_motion", float("nan")),
        ("region_threshold", -1.0),
        ("val_share", 1.5),
        ("flow", "farneback"),
        ("flow", ["dis"]),
        ("region", "hands"),
        ("region_labels", "nose"),
        ("reverse", 1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*, got {re.escape(repr(value))}\."):
        BuildSettings(**{name: value})


def test_the_limits_of_tracks_depend_on_one_another():
    assert BuildSettings(min_track_frames=20, max_track_frames=20, max_frames=21).max_frames == 21
    with pytest.raises(ValueError, match="`max_frames` must be a whole number of at least 21"):
        BuildSettings(min_track_frames=20, max_frames=20)


def test_every_setting_is_an_option_that_explains_itself():
    options = options_of(BuildSettings)
    assert list(options) == list(BuildSettings.__dataclass_fields__)
    assert all(len(option.help) > 10 for option in options.values())


def test_the_settings_of_a_build_load_without_torch():
    check = "import sys, motion_predictor.data.build_dataset; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
