"""Several processes build what one builds, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from motion_predictor.data.build_dataset import build_dataset
from motion_predictor.data.build_settings import BuildSettings
from support.processes import run_together

SETTINGS = BuildSettings(short_side=32, records_per_video=1, max_track_frames=15, candidates=8, region="whole")


def test_two_processes_share_the_videos(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    videos, alone, together = (tmp_path / name for name in ("videos", "alone", "together"))
    for seed in range(5):
        write_video(videos / f"clip-{seed}.mkv", moving_picture(17, (1, -1), 32, 40, seed=seed))
    (videos / "broken.mp4").write_bytes(b"broken")
    build_dataset([videos], alone, SETTINGS, show_progress=False)

    summary, nothing = run_together(build_dataset, [videos], together, SETTINGS)
    assert "cannot be opened: 1" in str(summary)
    assert nothing is None
    for path in (path for path in alone.rglob("*") if path.is_file() and path.name != ".lock"):
        assert (together / path.relative_to(alone)).read_bytes() == path.read_bytes(), path
    assert len(list(together.rglob("*"))) == len(list(alone.rglob("*")))
