"""Take the pictures of the app that README and docs show: points, running, result.

Needs the packages of `dynadrag[dev]` and a Chromium: apt-get install chromium.

python docs/app_screenshots.py
python docs/app_screenshots.py --out shots --dark --width 800
"""

from __future__ import annotations

import argparse
from pathlib import Path

from headless_chromium import ARGUMENTS, REMEDY, find_chromium
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline
from dynadrag_pipeline.app.server import running_app

MODEL = argparse.Namespace(model=None, motion_predictor=None, device="cpu", dtype="float32")
MINUTES = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the app that README and docs show.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder for them")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels (default: 1280)")
    parser.add_argument("--height", type=int, default=800, help="of the window, in pixels (default: 800)")
    parser.add_argument("--dark", action="store_true", help="in the dark")
    args = parser.parse_args()
    browser = find_chromium()
    if browser is None:
        parser.error(f"there is no Chromium: {REMEDY}")
    pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    with running_app(pipe, MODEL) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        scheme = "dark" if args.dark else "light"
        page = chromium.new_page(viewport={"width": args.width, "height": args.height}, color_scheme=scheme)
        page.goto(address)
        take(page, args.out)
        chromium.close()


def take(page: Page, folder: Path) -> None:
    """Drag the astronaut's head, and take a picture in each state."""
    folder.mkdir(parents=True, exist_ok=True)
    page.set_default_timeout(5 * MINUTES)
    page.click("#sample-astronaut")
    page.wait_for_function("window.dragStage && dragStage.state.preview")
    page.click("[data-tool=pin]")
    box = page.locator("#stage canvas").bounding_box()
    assert box is not None
    x, y = page.evaluate("dragStage.onScreen([212, 40])")
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.click("[data-tool=drag]")
    page.wait_for_function("dragStage.state.preview && dragStage.state.preview.revision === dragStage.state.revision")
    shoot(page, folder / "app_points.jpg")
    page.click("#run")
    page.wait_for_function("document.querySelector('#status').innerText.includes('iteration 1')")
    shoot(page, folder / "app_running.jpg", settle=0)
    page.wait_for_function("dragStage.state.result")
    page.wait_for_selector("#gallery img")
    shoot(page, folder / "app_result.jpg")


def shoot(page: Page, path: Path, settle: int = 1000) -> None:
    page.wait_for_timeout(settle)  # milliseconds for fonts, and for what fades in
    shot = path.with_suffix(".png")
    page.screenshot(path=shot)
    with Image.open(shot) as picture:
        picture.convert("RGB").save(path, quality=88, optimize=True)
    shot.unlink()
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
