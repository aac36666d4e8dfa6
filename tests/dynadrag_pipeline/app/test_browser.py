"""The app as a person uses it: in a real browser, with a mouse and a keyboard."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs gradio: pip install 'dynadrag[app]'")

from dynadrag_pipeline.app.limits import MOST_PAIRS
from dynadrag_pipeline.app.samples import sample_picture
from dynadrag_pipeline.app.server import running_app
from dynadrag_pipeline.app.visitors import Visitors
from support.app_pages import MODEL, AppPage, browser, edits_running, quick_pipeline, wait_until

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the app makes its folder."""
    folder: Path = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def address(chromium: Any, temporary: Path) -> Iterator[str]:
    with running_app(quick_pipeline(), MODEL) as address:
        yield address


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[AppPage]:
    page = AppPage(chromium, address)
    yield page
    page.tab.close()
    assert page.errors == []
    assert page.strangers == []


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, 96 x 96 pixels."""
    path: Path = tmp_path_factory.mktemp("pictures") / "face.png"
    sample_picture("astronaut").resize((96, 96)).save(path)
    return path


def test_an_edit_from_the_picture_to_the_result_and_back(page: AppPage, face: Path) -> None:
    """Two pairs, a mask, a preview, an edit that changes what it may and nothing else, undo, redo, go on."""
    page.open(face)
    page.click((48, 60), (56, 60), (47, 85))
    assert page.state("pending") == [47, 85]
    page.click((53, 85))
    assert page.told()["points"] == [[[48, 60], [56, 60]], [[47, 85], [53, 85]]]
    page.tab.wait_for_function(
        "dragStage.state.preview && dragStage.state.preview.revision === dragStage.state.revision"
    )
    assert page.tab.inner_text("#stage .badge") == "preview: not the edit"
    assert len(page.state("preview").get("paths")) == 2

    page.tab.click("[data-tool=box]")
    drag(page, (26, 34), (71, 90))
    page.run()
    before, after = page.picture("image").astype(int), page.picture("result").astype(int)
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[34:91, 26:72] = True
    change = np.abs(after - before).max(axis=-1)
    assert change[inside].max() > 20
    assert change[~inside].mean() < 0.2 * change[inside].mean()
    assert page.tab.locator("#stage .stage").get_attribute("data-view") == "compare"
    said = page.tab.inner_text("#words")
    assert "pair 1" in said
    assert "asked" in said
    assert "dynadrag edit face.png --handle=48,60" in page.tab.input_value("#command textarea, #command input")
    titles = page.tab.locator("#files a").all_inner_texts()
    assert titles[:4] == ["picture", "sheet", "GIF", "film"]
    assert set(titles[4:]) == {"record", "points", "mask", "command", "original"}
    assert overflow(page) == [0, 0, 0]

    page.tab.click("#undo-edit")
    page.tab.wait_for_function("dragStage.state.result === null")
    assert page.told()["points"][0] == [[48, 60], [56, 60]]
    page.tab.click("#redo-edit")
    page.tab.wait_for_function("dragStage.state.result !== null")
    page.tab.click("#go-on")
    page.wait_for_status("goes on from here")
    assert [target for _, target in page.told()["points"]] == [[56, 60], [53, 85]]
    page.run()
    assert "what was kept of the picture" in page.tab.inner_text("#words")


@pytest.mark.parametrize(
    ("window", "sizes"),
    [((1280, 800), [(128, 128), (640, 480), (4000, 3000)]), ((800, 700), [(128, 128), (300, 1200)])],
)
def test_a_click_hits_the_pixel_under_it(
    chromium: Any, address: str, tmp_path: Path, window: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    """Whatever the size of the picture and of the window, zoomed or not."""
    page = AppPage(chromium, address, viewport={"width": window[0], "height": window[1]})
    page.tab.uncheck("#preview input")
    for width, height in sizes:
        path = tmp_path / f"{width}x{height}.png"
        Image.new("RGB", (width, height), (200, 180, 160)).save(path)
        page.open(path)
        wanted = (width // 3, height // 4)
        page.click(wanted)
        found = page.state("pending")
        off = 1 / page.state("zoom")  # pixels of the picture in one of the screen
        assert max(abs(found[0] - wanted[0]), abs(found[1] - wanted[1])) <= (0 if off <= 1 else off)
        page.tab.keyboard.press("z")

        def zoom_in(page: AppPage = page, wanted: tuple[int, int] = wanted) -> None:
            page.tab.mouse.move(*page.on_screen(wanted))
            page.tab.mouse.wheel(0, -960)
            page.pause()

        wait_until(lambda: page.state("zoom") >= 8, zoom_in)
        page.click(wanted, (wanted[0] + 3, wanted[1] + 1))
        assert page.told()["points"] == [[list(wanted), [wanted[0] + 3, wanted[1] + 1]]]
    page.tab.close()


def test_points_are_moved_pinned_typed_and_taken_back(page: AppPage, face: Path) -> None:
    page.open(face)
    page.click((30, 30), (40, 30))
    drag(page, (40, 30), (44, 36))
    assert page.told()["points"] == [[[30, 30], [44, 36]]]
    page.tab.keyboard.press("p")
    page.click((60, 60))
    assert page.told()["points"][1] == [[60, 60], [60, 60]]
    page.tab.keyboard.press("ArrowRight")
    assert page.told()["points"][1] == [[61, 60], [61, 60]]
    page.tab.locator("#points-table input").nth(2).fill("50")
    page.tab.keyboard.press("Enter")
    assert page.told()["points"][0] == [[30, 30], [50, 36]]
    page.tab.locator("#points-table input").nth(2).fill("")
    page.tab.keyboard.press("Enter")
    assert page.told()["points"][0] == [[30, 30], [50, 36]]
    assert page.tab.locator("#points-table input").nth(2).input_value() == "50"
    page.tab.locator("#stage .view").focus()
    page.tab.keyboard.press("z")
    assert page.told()["points"][0] == [[30, 30], [44, 36]]
    drag(page, (61, 60), (62, 64))
    assert page.told()["points"][1] == [[62, 64], [62, 64]]
    page.tab.keyboard.press("p")
    drag(page, (62, 64), (70, 64))
    assert page.told()["points"][1] == [[62, 64], [70, 64]]
    page.tab.click("#undo-pair")
    page.tab.wait_for_function("dragStage.state.pairs.length === 1")
    page.tab.click("#clear-points")
    page.tab.wait_for_function("dragStage.state.pairs.length === 0")


def test_arrow_keys_move_what_was_placed_last(page: AppPage, face: Path) -> None:
    """A point by the mouse, a handle whose target is to come, a pin that became an arrow, a point from elsewhere."""
    view = page.tab.locator("#stage .view")
    assert view.get_attribute("role") == "group"
    page.open(face)
    page.click((30, 30))
    page.tab.keyboard.press("ArrowUp")
    page.click((40, 30))
    page.tab.keyboard.press("ArrowDown")
    assert page.told()["points"] == [[[30, 29], [40, 31]]]
    page.tab.keyboard.press("p")
    page.click((60, 60))
    page.tab.locator("#points-table input").nth(6).fill("70")
    page.tab.keyboard.press("Enter")
    view.focus()
    page.tab.keyboard.press("ArrowRight")
    assert page.told()["points"][1] == [[60, 60], [71, 60]]
    before = page.state("picture")
    page.tab.click("#sample-hopper")
    page.tab.wait_for_function("before => dragStage.state.picture !== before", arg=before)
    *_, (handle, target) = page.told()["points"]
    view.focus()
    page.tab.keyboard.press("ArrowLeft")
    assert page.told()["points"][-1] == [handle, [target[0] - 1, target[1]]]


def test_a_picture_is_pasted_and_dropped_anywhere(page: AppPage, face: Path) -> None:
    """As a browser tells of it: by an event with a file."""
    for kind, where in (("paste", "body"), ("drop", "#stage canvas"), ("drop", "#side")):
        before = page.state("picture")
        was_taken = page.tab.evaluate(
            """([kind, where, text]) => {
            const parcel = new DataTransfer(), bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
            parcel.items.add(new File([bytes], "face.png", { type: "image/png" }));
            const about = { bubbles: true, cancelable: true, clipboardData: parcel, dataTransfer: parcel };
            const event = kind === "paste" ? new ClipboardEvent(kind, about) : new DragEvent(kind, about);
            return !document.querySelector(where).dispatchEvent(event); }""",
            [kind, where, base64.b64encode(face.read_bytes()).decode()],
        )
        assert was_taken or kind == "paste"
        page.tab.wait_for_function("before => dragStage.state.picture !== before", arg=before)
        assert page.state("width") == 96


def test_what_is_exported_is_what_is_imported(page: AppPage, face: Path, tmp_path: Path) -> None:
    page.open(face)
    page.click((30, 30), (40, 31), (50, 50), (50, 60))
    page.tab.click("[data-tool=brush]")
    drag(page, (20, 20), (60, 60))
    page.tab.click("[data-act=invert]")
    before = page.told()
    downloads: list[Any] = []
    page.tab.on("download", lambda download: downloads.append(download))
    page.tab.click("#export")
    wait_until(lambda: len(downloads) >= 2, page.pause)
    for each in downloads:
        each.save_as(tmp_path / each.suggested_filename)
    points = json.loads((tmp_path / "points.json").read_text())
    assert points["points"] == [[30, 30], [40, 31], [50, 50], [50, 60]]
    page.tab.click("#clear-points")
    page.tab.click("[data-act=unmask]")
    page.tab.wait_for_function("!dragStage.state.pairs.length && !dragStage.state.mask")
    page.tab.set_input_files("#side input[type=file] >> nth=1", [tmp_path / "points.json", tmp_path / "mask.png"])
    page.tab.wait_for_function("dragStage.state.pairs.length === 2 && dragStage.state.mask")
    assert page.told()["points"] == before["points"]
    page.tab.click("#export")
    wait_until(lambda: len(downloads) >= 4, page.pause)
    (again,) = (each for each in downloads[2:] if each.suggested_filename == "mask.png")
    again.save_as(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "mask.png").read_bytes()


def test_what_was_imported_or_picked_before_is_imported_and_picked_again(
    page: AppPage, face: Path, tmp_path: Path
) -> None:
    points = [[[30, 30], [40, 31]]]
    (tmp_path / "points.json").write_text(json.dumps({"points": points[0]}))
    page.open(face)
    for _ in range(2):
        with page.tab.expect_file_chooser() as chooser:
            page.tab.click("#import")
        chooser.value.set_files(tmp_path / "points.json")
        page.tab.wait_for_function("dragStage.state.pairs.length === 1")
        assert page.told()["points"] == points
        page.tab.click("#clear-points")
        page.tab.wait_for_function("dragStage.state.pairs.length === 0")
    page.click((48, 60), (56, 60))
    page.run()
    for _ in range(2):
        page.tab.click("#gallery .thumbnail-item")
        page.tab.wait_for_function("dragStage.state.pairs.length === 1")
        page.tab.click("#clear-points")
        page.tab.wait_for_function("dragStage.state.pairs.length === 0")


def test_what_the_server_puts_in_place_of_points_and_mask_is_a_step_like_others(
    page: AppPage, face: Path, tmp_path: Path
) -> None:
    (tmp_path / "points.json").write_text('{"points": [[30, 30], [40, 31]]}')
    page.open(face)
    page.click((48, 60), (56, 60))
    page.tab.click("[data-tool=box]")
    drag(page, (26, 34), (71, 90))
    placed = page.told()
    Image.new("L", (96, 96), 255).save(tmp_path / "mask.png")
    page.tab.set_input_files("#side input[type=file] >> nth=1", [tmp_path / "points.json", tmp_path / "mask.png"])
    page.tab.wait_for_function("!dragStage.state.mask")
    assert page.told()["points"] == [[[30, 30], [40, 31]]]
    page.tab.locator("#stage .view").focus()
    page.tab.keyboard.press("z")
    page.tab.wait_for_function("dragStage.state.mask")
    assert {**page.told(), "revision": 0} == {**placed, "revision": 0}


def test_strokes_that_are_taken_back_quickly_are_all_gone(page: AppPage, face: Path) -> None:
    """The masks between load at their own speed; the first one here comes last."""
    page.open(face)
    page.tab.click("[data-tool=box]")
    for left in (10, 40, 70):
        drag(page, (left, 10), (left + 10, 20))
    shown = page.tab.evaluate(
        """async () => {
        const native = window.Image, waiting = [];
        window.Image = function () {
            const image = new native();
            Object.defineProperty(image, "src", { set(url) { waiting.push(() => image.setAttribute("src", url)); } });
            return image;
        };
        dragStage.acts.undo();
        dragStage.acts.undo();
        window.Image = native;
        for (const load of waiting.reverse()) {
            load();
            await new Promise((resolve) => setTimeout(resolve, 200));
        }
        const row = dragStage.state.mask.getContext("2d").getImageData(0, 15, 96, 1).data;
        return [15, 45, 75].map((x) => row[4 * x + 3]); }"""
    )
    assert shown == [255, 0, 0]


def test_cancel_ends_an_edit_with_what_there_is(page: AppPage, face: Path) -> None:
    page.open(face)
    page.click((39, 32), (60, 32))
    page.set_options(max_iterations=200, stop_distance=0, settle_iterations=200)
    page.tab.click("#run")
    page.wait_for_status("iteration 2")
    page.tab.locator("#stage .view").focus()
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_function("document.querySelector('#words').innerText.includes('cancelled')")
    page.tab.wait_for_function("dragStage.state.result !== null")


def test_what_is_over_is_taken_off_the_picture(page: AppPage, face: Path) -> None:
    """A preview that is switched off, and an edit that is cancelled before it has a picture."""
    page.open(face)
    page.click((30, 30), (40, 30))
    page.tab.wait_for_function("dragStage.state.preview")
    page.tab.uncheck("#preview input")
    page.tab.wait_for_function("!dragStage.state.preview")
    page.set_options(identity_lora_steps=1000)  # which takes as long as cancelling needs
    page.tab.click("#run")
    page.tab.wait_for_function("dragStage.state.live")
    page.tab.click("#cancel")
    page.tab.wait_for_function("!dragStage.state.live && document.querySelector('#cancel').disabled")
    page.click((60, 60))
    assert page.state("pending") == [60, 60]


def test_a_picture_that_comes_late_is_not_shown_over_the_one_after_it(page: AppPage, face: Path) -> None:
    late: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if late:
            route.continue_()
        else:
            late.append(route)

    page.tab.route("**/picture.png", hold_the_first)
    page.tab.click("#sample-hopper")
    wait_until(lambda: bool(late), page.pause)
    page.open(face)
    late[0].fulfill(path=face)
    page.tab.wait_for_timeout(200)
    assert page.state("width") == 96
    assert page.told()["points"] == []


def test_what_is_wrong_with_points_is_said_on_the_picture_while_they_are_there(page: AppPage, face: Path) -> None:
    page.open(face)
    said = page.status()
    page.tab.click("[data-tool=pin]")
    page.click(*((10 + 8 * (number % 9), 10 + 12 * (number // 9)) for number in range(MOST_PAIRS + 1)))
    page.tab.wait_for_function(f"document.querySelector('#stage .badge').innerText.includes('at most {MOST_PAIRS}')")
    assert page.status() == said
    page.tab.click("#undo-point")
    page.tab.wait_for_function("document.querySelector('#stage .badge').innerText === 'preview: not the edit'")


def test_a_reload_asks_first_when_there_is_something_to_lose(page: AppPage, face: Path) -> None:
    asked: list[str] = []
    page.tab.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.open(face)
    page.tab.reload()
    assert asked == []
    page.tab.wait_for_function("window.dragStage")
    page.open(face)
    page.click((30, 30), (40, 30))
    page.tab.reload()
    assert asked == ["beforeunload"]


def test_who_is_asked_and_stays_can_go_on(page: AppPage, face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    left = those_who(monkeypatch, "leave")
    page.tab.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.open(face)
    page.click((48, 60), (56, 60))
    page.tab.evaluate("setTimeout(() => location.reload())")
    wait_until(lambda: bool(asked), page.pause)
    page.run()
    assert asked == ["beforeunload"]
    assert left == []


def test_a_tab_that_lost_its_connection_is_kept_as_long_as_it_says_that_it_is_open(
    chromium: Any, address: str, face: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynadrag_pipeline.app.visitors.SIGN_SECONDS", 5.0)
    left, looked_for = those_who(monkeypatch, "leave"), those_who(monkeypatch, "_forget_if_gone")
    page = AppPage(chromium, address)
    folder = folder_of(page, face, temporary)
    page.tab.evaluate("window.saying = setInterval(dragStage.sayHere, 200)")
    page.tab.evaluate("window.dispatchEvent(new Event('beforeunload'))")  # at which gradio's page hangs up
    wait_until(lambda: bool(left), page.pause)
    wait_until(lambda: bool(looked_for), page.pause)
    assert folder.exists()
    page.tab.evaluate("clearInterval(window.saying)")
    wait_until(lambda: not folder.exists(), page.pause)
    assert page.errors == []
    page.tab.close()


def test_a_bad_upload_is_refused_in_words_and_the_app_goes_on(page: AppPage, face: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    page.tab.set_input_files("#side input[type=file] >> nth=0", bad)
    page.tab.wait_for_selector(".toast-body")
    assert "must be" in page.tab.inner_text(".toast-body")
    assert "Traceback" not in page.tab.inner_text("body")
    page.open(face)
    assert page.state("width") == 96


def test_two_tabs_know_nothing_of_each_other_and_edit_in_turn(chromium: Any, address: str, face: Path) -> None:
    one, other = AppPage(chromium, address), AppPage(chromium, address)
    for page, points in ((one, [(39, 32), (44, 32)]), (other, [(50, 58), (50, 64)])):
        page.open(face)
        page.click(*points)
    one.tab.click("#run")
    other.tab.click("#run")
    for page in (one, other):
        page.tab.wait_for_function("dragStage.state.result !== null")
    assert one.told()["points"] == [[[39, 32], [44, 32]]]
    assert other.told()["points"] == [[[50, 58], [50, 64]]]
    assert (one.picture("result") != other.picture("result")).any()
    for page in (one, other):
        page.tab.close()


def test_a_tab_that_is_closed_in_the_middle_of_an_edit_is_forgotten(
    chromium: Any, address: str, face: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynadrag_pipeline.app.visitors.SIGN_SECONDS", 1.0)
    page = AppPage(chromium, address)
    folder = folder_of(page, face, temporary)
    page.click((48, 60), (56, 60))
    page.set_options(identity_lora_steps=1000)  # which takes as long as closing needs
    page.tab.click("#run")
    page.tab.wait_for_function("dragStage.state.live")
    assert edits_running() == 1
    page.tab.close()
    wait_until(lambda: not edits_running() and not folder.exists())
    other = AppPage(chromium, address)
    other.open(face)
    other.click((48, 60), (56, 60))
    other.run()
    other.tab.wait_for_function("dragStage.state.result !== null")
    other.tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_on_one_screen(chromium: Any, address: str, face: Path, scheme: str) -> None:
    page = AppPage(chromium, address, color_scheme=scheme)
    page.open(face)
    assert overflow(page) == [0, 0, 0]
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll("button, canvas, img")].filter((each) => each.offsetParent &&
        !(each.innerText || "").trim() && !each.getAttribute("aria-label") && !each.alt && !each.title)
        .map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    page.tab.close()


def those_who(monkeypatch: pytest.MonkeyPatch, method: str) -> list[str | None]:
    """The tabs for which a method of [`Visitors`] was called from now on."""
    keys: list[str | None] = []
    original = getattr(Visitors, method)

    def noted(self: Visitors, key: str | None, *given: Any) -> None:
        original(self, key, *given)
        keys.append(key)

    monkeypatch.setattr(Visitors, method, noted)
    return keys


def folder_of(page: AppPage, face: Path, temporary: Path) -> Path:
    """The folder of a visitor who opens a picture."""
    (visitors,) = temporary.glob("dynadrag-app-*/visitors")
    before = {*visitors.iterdir()} if visitors.exists() else set()
    page.open(face)
    (folder,) = {*visitors.iterdir()} - before
    return folder


def overflow(page: AppPage) -> list[int]:
    """By how many pixels page and groups are too large for the window."""
    sizes: list[int] = page.tab.evaluate(
        """() => { const all = document.documentElement, side = document.querySelector("#side");
        return [all.scrollHeight - all.clientHeight, all.scrollWidth - all.clientWidth,
                side.scrollHeight - side.clientHeight]; }"""
    )
    return sizes


def drag(page: AppPage, start: tuple[int, int], end: tuple[int, int]) -> None:
    page.tab.mouse.move(*page.on_screen(start))
    page.tab.mouse.down()
    page.tab.mouse.move(*page.on_screen(end), steps=4)
    page.tab.mouse.up()
