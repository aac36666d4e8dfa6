"""Several processes build what one builds, byte by byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from motion_predictor.data.build_dataset import build_dataset
from motion_predictor.data.build_settings import BuildSettings

SETTINGS = BuildSettings(short_side=32, records_per_video=1, max_track_frames=15, candidates=8, region="whole")
SCRIPT = f"""
import sys
from motion_predictor.data.build_dataset import BuildSettings, build_dataset

if __name__ == "__main__":
    print("summary" if build_dataset([sys.argv[1]], sys.argv[2], {SETTINGS!r}) else "helped")
"""


def test_two_processes_share_the_videos(tmp_path: Path, moving_picture: Callable, write_video: Callable):
    videos, alone, together = (tmp_path / name for name in ("videos", "alone", "together"))
    for seed in range(5):
        write_video(videos / f"clip-{seed}.mkv", moving_picture(17, (1, -1), 32, 40, seed=seed))
    (videos / "broken.mp4").write_bytes(b"broken")
    build_dataset([videos], alone, SETTINGS, show_progress=False)

    (tmp_path / "build.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "build.py"), str(videos), str(together)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("summary"), done.stdout.count("helped")) == (1, 1)
    assert done.stdout.count("cannot be opened: 1") == 1
    for path in (path for path in alone.rglob("*") if path.is_file() and path.name != ".lock"):
        assert (together / path.relative_to(alone)).read_bytes() == path.read_bytes(), path
    assert len(list(together.rglob("*"))) == len(list(alone.rglob("*")))
