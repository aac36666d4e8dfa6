"""Where a Chromium is that nobody watches, for the pictures of the app and for its tests in a browser."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",  # which root may not have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""What it is started with: as little as it needs, and nothing that asks anybody for anything."""
REMEDY = "apt-get install chromium, or Google Chrome"


def find_chromium() -> str | None:
    """The path of the first browser that is installed, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)
