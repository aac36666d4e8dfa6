"""The app's page in a headless browser, and a pipeline whose edits take a second."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from headless_chromium import ARGUMENTS, REMEDY, find_chromium

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline

QUICK = {
    "num_inference_steps": 4,
    "inversion_strength": 0.5,
    "max_iterations": 2,
    "supervision_steps": 2,
    "supervision_lr": 0.6,
    "supervision_damping": 0.03,
    "supervision_radius": 4,
    "supervision_reach": 0.25,
    "settle_iterations": 0,
    "identity_lora_steps": 1,
    "processing_resolution": 64,
    "preview_steps": 1,
    "restore_source": True,
}
MODEL = argparse.Namespace(model=None, motion_predictor=None, device="cpu", dtype="float32")


def quick_pipeline() -> DynaDragPipeline:
    """The embedded checkpoint with recommendations for the hasty."""
    pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(recommended_settings=QUICK)
    return pipe


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, or a skip that says how to get one."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = find_chromium()
    if path is None:
        pytest.skip(f"needs a browser: {REMEDY}")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


def wait_until(holds: Callable[[], bool], pause: Callable[[], object] = lambda: time.sleep(0.1)) -> None:
    """Ask again and again, and fail after a minute.

    Args:
        holds (`Callable`): what is waited for.
        pause (`Callable`, *optional*): between two questions; a page goes on only while its own tab waits.
    """
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        pause()


def edits_running() -> int:
    """How many edits are being made, or wait to be, by apps of this process."""
    return sum(thread.name == "edit" for thread in threading.enumerate())


WHEN_STILL = """where => new Promise(done => { // what arrives in a reply moves the page for some frames
    let before = "", frames = 0;
    const look = () => {
        const now = JSON.stringify(where());
        frames = now === before ? frames + 1 : 0;
        before = now;
        frames < 3 ? requestAnimationFrame(look) : done(where());
    };
    look();
})"""


class AppPage:
    """A tab with the app.

    Attributes:
        tab (`playwright.sync_api.Page`): the tab.
        errors (`list[str]`): what the page's scripts complained of.
        strangers (`list[str]`): addresses elsewhere that the page asked for.
    """

    def __init__(self, chromium: Any, address: str, **context: Any) -> None:
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.tab = chromium.new_page(**{"viewport": {"width": 1280, "height": 800}, **context})
        self.tab.set_default_timeout(60_000)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self._note(request.url, address))
        self.tab.goto(address)
        self.tab.wait_for_function("window.dragStage")
        self.tab.wait_for_selector("#command")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.strangers.append(url)

    def pause(self) -> None:
        """Let the page go on for a moment."""
        self.tab.wait_for_timeout(50)

    def state(self, name: str) -> Any:
        """A part of what the picture's component knows."""
        return self.tab.evaluate(f"window.dragStage.state.{name}")

    def told(self) -> Any:
        """What the component tells the server."""
        return self.tab.evaluate("window.dragStage.told()")

    def open(self, path: Any) -> None:
        """Load a picture by the button, and wait until it is shown."""
        before = self.state("picture")
        self.tab.set_input_files("#side input[type=file] >> nth=0", path)
        self.tab.wait_for_function(
            f"dragStage.state.picture && dragStage.state.picture !== {before!r}".replace("None", "null")
        )

    def click(self, *points: tuple[float, float]) -> None:
        """Click on pixels of the picture, in their middle."""
        for point in points:
            self.tab.mouse.click(*self.on_screen(point))

    def on_screen(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a pixel of the picture is in the window, once it stays there: what arrives with a picture moves it."""
        x, y = self._when_still(f"""() => {{
                const box = document.querySelector("#stage canvas").getBoundingClientRect();
                const [x, y] = window.dragStage.onScreen({list(point)});
                return [box.x + x, box.y + y];
            }}""")
        return x, y

    def _when_still(self, where: str) -> Any:
        """What a function of the page answers once it is the same in four frames."""
        return self.tab.evaluate(f"({WHEN_STILL})({where})")

    def status(self) -> str:
        """The line that says what goes on."""
        return str(self.tab.inner_text("#status"))

    def wait_for_status(self, text: str) -> None:
        """Until the line that says what goes on has a text in it."""
        self.tab.wait_for_function(f"document.querySelector('#status').innerText.includes({text!r})")

    def set_options(self, **options: float) -> None:
        """Fill in fields of the drawer, which is opened and closed."""
        self.tab.click("#all-options")
        for name, value in options.items():
            self.tab.fill(f"#option-{name} input, #option-{name} textarea", str(value))
        self.tab.keyboard.press("Tab")
        self.tab.click(".sidebar .toggle-button")

    def run(self) -> None:
        """Make an edit, and wait for its result."""
        before = self.tab.evaluate("dragStage.state.result && dragStage.state.result.src")
        self._when_still("() => document.querySelector('#run').getBoundingClientRect()")
        self.tab.click("#run")
        try:
            self.tab.wait_for_function(
                """before => dragStage.state.result && dragStage.state.result.src !== before
                && document.querySelector('#cancel').disabled""",
                arg=before,
            )
        except Exception as error:
            raise AssertionError(f"no result came; the page says: {self.status()}") from error

    def picture(self, what: str) -> Any:
        """The pixels of a picture of the component, `(height, width, 3)`."""
        import numpy as np

        size = self.tab.evaluate(f"[dragStage.state.{what}.naturalHeight, dragStage.state.{what}.naturalWidth]")
        values = self.tab.evaluate(
            f"""() => {{ const image = dragStage.state.{what}, board = document.createElement("canvas");
            board.width = image.naturalWidth; board.height = image.naturalHeight;
            const ink = board.getContext("2d"); ink.drawImage(image, 0, 0);
            return Array.from(ink.getImageData(0, 0, board.width, board.height).data); }}"""
        )
        return np.array(values, dtype=np.uint8).reshape(*size, 4)[..., :3]
