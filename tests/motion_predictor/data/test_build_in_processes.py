"""Several processes build what one builds, byte by byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import sys
from motion_predictor.data.build_dataset import BuildSettings, build_dataset

if __name__ == "__main__":
    settings = BuildSettings(short_side=32, records_per_video=1, max_track_frames=15, candidates=8, region="whole")
    print("summary" if build_dataset([sys.argv[1]], sys.argv[2], settings) else "helped")
"""


def run(launcher: list[str], script: Path, out: Path) -> str:
    command = [sys.executable, *launcher, str(script), str(script.parent / "videos"), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_share_the_videos(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    for seed in range(5):
        write_video(tmp_path / "videos" / f"clip-{seed}.mkv", moving_picture(17, (1, -1), 32, 40, seed=seed))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"broken")
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    run([], script, alone)
    said = run(launcher, script, together)
    assert (said.count("summary"), said.count("helped")) == (1, 1)
    assert said.count("cannot be opened: 1") == 1
    for path in (path for path in alone.rglob("*") if path.is_file() and path.name != ".lock"):
        assert (together / path.relative_to(alone)).read_bytes() == path.read_bytes(), path
    assert len(list(together.rglob("*"))) == len(list(alone.rglob("*")))
