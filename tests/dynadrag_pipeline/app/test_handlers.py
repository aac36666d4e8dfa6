"""What clicks do, without a browser: the page's functions, called as the page calls them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.utils import delete_none
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.app import samples, visitors
from dynadrag_pipeline.app.api import Api
from dynadrag_pipeline.app.edits import Order, Watcher
from dynadrag_pipeline.app.handlers import Handlers, links, words
from dynadrag_pipeline.app.limits import IDLE_SECONDS, SIGN_SECONDS
from dynadrag_pipeline.app.options_drawer import OPTIONS, given_by
from dynadrag_pipeline.app.parts import Parts
from dynadrag_pipeline.app.stage import NOTHING, Drawn, mask_of, mask_url
from dynadrag_pipeline.app.visitors import Visitors
from dynadrag_pipeline.app.workshop import Workshop
from dynadrag_pipeline.cli import build_parser
from dynadrag_pipeline.settings import DragSettings
from motion_predictor.common.options import given_options, options_of
from support.app_pages import MODEL

ME, YOU = SimpleNamespace(session_hash="me"), SimpleNamespace(session_hash="you")
NAMES = (
    "stage",
    "status",
    "run",
    "cancel",
    "prompt",
    "words",
    "gallery",
    "files",
    "command",
    "use",
    "go_on",
    "undo",
    "redo",
)
UNSAID = [""] * len(OPTIONS)


@pytest.fixture
def handlers(pipe: DynaDragPipeline, quick: dict[str, Any], tmp_path: Path) -> Handlers:
    pipe.register_to_config(recommended_settings=quick)
    return Handlers(Workshop(pipe), Visitors(tmp_path / "visitors"), MODEL, Parts(**{name: name for name in NAMES}))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo of <b>me.png"
    Image.linear_gradient("L").resize((96, 80)).convert("RGB").save(path)
    return path


def drawn(handlers: Handlers, points: list[Any], who: Any = ME, mask: str | None = None) -> dict[str, Any]:
    """What the picture tells when points are on it."""
    scene = handlers.visitors.of(who.session_hash).scene
    assert scene is not None
    return {"picture": scene.parent.name, "points": points, "mask": mask, "revision": 3}


def run(handlers: Handlers, points: list[Any], who: Any = ME, seed: int = 0, candidates: int = 1) -> list[Any]:
    return list(handlers.run(who, drawn(handlers, points, who), "", seed, candidates, "", *UNSAID))


def test_a_rotated_photograph_with_transparency_is_shown_upright(handlers: Handlers, tmp_path: Path) -> None:
    turned = Image.new("RGB", (120, 80), (250, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    scene = handlers.load(str(tmp_path / "turned.jpg"), ME)["stage"]["scene"]
    assert (scene["width"], scene["height"]) == (80, 120)
    clear = Image.new("LA", (80, 80), (0, 0))
    clear.save(tmp_path / "clear.png")
    handlers.load(str(tmp_path / "clear.png"), ME)
    base = handlers.visitors.of("me").base
    assert base is not None
    assert base.shown.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_is_none_is_a_toast_in_words(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("nothing")
    with pytest.raises(gr.Error) as refused:
        handlers.load(str(tmp_path / "bad.png"), ME)
    assert str(refused.value.message).startswith("`path` must be a picture file")
    assert str(refused.value.message).endswith("got 'bad.png'.")
    assert refused.value.print_exception is False


def test_messages_do_not_say_where_the_server_keeps_files(handlers: Handlers, photo: Path, tmp_path: Path) -> None:
    handlers.load(str(photo), ME)
    folder = tmp_path / "dynadrag-app-x" / "0f3a"
    folder.mkdir(parents=True)
    for name, content in (("bad.json", "[1"), ("odd.json", '{"points": [[1, 2]]}'), ("bad.png", "nothing")):
        (folder / name).write_text(content)
        with pytest.raises(gr.Error, match=name) as refused:
            handlers.bring([str(folder / name)], ME)
        assert "dynadrag-app-" not in str(refused.value.message)
    with pytest.raises(gr.Error, match=r"No such file or directory: 'gone\.png'"):
        handlers.load(str(folder / "gone.png"), ME)


def test_an_edit_fills_the_page_and_edits_are_undone_and_redone(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    updates = run(handlers, [[[30, 40], [40, 40]], [[70, 20], [70, 20]]])
    assert updates[0] == {"run": gr.update(interactive=False), "cancel": gr.update(interactive=True)}
    lives = [each["stage"]["live"] for each in updates if "live" in each.get("stage", {}) and each["stage"]["live"]]
    assert len([live for live in lives if live["url"]]) == 3
    assert "pair 1: " in updates[-2]["words"]
    assert "pin 2: " in updates[-2]["words"]
    assert len(updates[-2]["gallery"]) == 1
    assert updates[-1] == {"run": gr.update(interactive=True), "cancel": gr.update(interactive=False)}

    run(handlers, [[[30, 40], [36, 40]]], seed=7)
    undone = handlers.step(-1, ME)
    assert undone["stage"]["scene"]["points"] == [[[30, 40], [40, 40]], [[70, 20], [70, 20]]]
    assert undone["stage"]["scene"]["result"]
    assert undone["redo"]["interactive"]
    empty = handlers.step(-1, ME)
    assert empty["stage"]["scene"]["result"] is None
    assert "undone" in empty["status"]
    with pytest.raises(gr.Error, match=r"nothing to undo"):
        handlers.step(-1, ME)
    handlers.step(1, ME)
    again = handlers.step(1, ME)
    assert again["stage"]["scene"]["points"] == [[[30, 40], [36, 40]]]
    assert "--seed 7" in again["command"]
    assert [caption.rpartition(", ")[2] for _, caption in again["gallery"]] == ["seed 7", "seed 0"]
    picked = handlers.pick(SimpleNamespace(index=1), ME)
    assert "--seed 0" in picked["command"]


def test_a_result_is_the_next_picture_or_goes_on(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    run(handlers, [[[30, 40], [40, 40]]])
    gone_on = handlers.go_on(ME)["stage"]["scene"]
    ((end, target),) = gone_on["points"]
    assert target == [40, 40]
    assert 30 <= end[0] <= 40
    updates = run(handlers, gone_on["points"])
    assert "goes on from an edit before" in updates[-2]["command"]
    used = handlers.use(ME)["stage"]["scene"]
    assert used["points"] == []
    visitor = handlers.visitors.of("me")
    assert visitor.base is not None
    assert visitor.base.start is None
    assert visitor.base.name.endswith("-edited")


def test_an_edit_is_picked_from_among_others_that_are_alike(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    for _ in range(2):
        run(handlers, [[[30, 40], [40, 40]]])
    visitor = handlers.visitors.of("me")
    for index in (0, 1):
        handlers.pick(SimpleNamespace(index=index), ME)
        assert visitor.shown is visitor.newest_first[index]


def test_what_can_be_undone_to_keeps_its_files_and_nothing_else_does(
    handlers: Handlers, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "MOST_EDITS", 2)
    handlers.load(str(photo), ME)
    points = [[[30, 40], [40, 40]]]
    for _ in range(2):
        run(handlers, points)
    handlers.step(-1, ME)
    run(handlers, points)  # for which the first one leaves the gallery
    visitor = handlers.visitors.of("me")
    url = handlers.step(-1, ME)["stage"]["scene"]["result"]
    assert Path(url.removeprefix("gradio_api/file=")).is_file()
    handlers.load(str(photo), ME)
    assert len(list(visitor.folder.glob("*/edit"))) == len(visitor.gallery) == 2


def test_files_are_called_what_they_are_whatever_the_picture_is_called(handlers: Handlers, tmp_path: Path) -> None:
    """A picture that was edited before, and one that has the name of a mask."""
    whole = mask_url(Image.linear_gradient("L").resize((96, 80)))
    picture = Image.linear_gradient("L").resize((96, 80)).convert("RGB")
    for name in ("face-edited.png", "mask.png"):
        picture.save(tmp_path / name)
        handlers.load(str(tmp_path / name), ME)
        value = drawn(handlers, [[[30, 40], [40, 40]]], mask=whole)
        list(handlers.run(ME, value, "", 0, 1, "", *UNSAID))
        last = handlers.visitors.of("me").last
        assert last is not None
        assert Image.open(last.files["original"]).tobytes() == picture.tobytes()
        assert Image.open(last.files["mask"]).tobytes() == last.edit.order.mask.tobytes()
        assert len({*last.files.values()}) == 9
        assert re.findall(">(\\w+)</a>", links(last.files)) == [*last.files]
    for _ in range(2):
        handlers.use(ME)
        run(handlers, [[[30, 40], [40, 40]]])
    assert handlers.visitors.of("me").base.name == "mask-picture-edited"


def test_pictures_between_are_in_files_and_not_in_memory(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    said = run(handlers, [[[30, 40], [40, 40]]])[-2]
    last = handlers.visitors.of("me").last
    assert last is not None
    assert Image.open(last.files["GIF"]).n_frames > 2
    steps = [*last.edit.result.iterations, *last.edit.output.iterations]
    assert {(step.image, step.flow) for step in steps} == {(None, None)}
    assert handlers.pick(SimpleNamespace(index=0), ME)["words"] == said["words"]


@pytest.mark.parametrize("way", ["use", "go_on"])
def test_a_result_that_was_taken_as_the_picture_is_there_again_by_undo(
    handlers: Handlers, photo: Path, way: str
) -> None:
    handlers.load(str(photo), ME)
    points = [[[30, 40], [40, 40]]]
    done = run(handlers, points)[-2]
    taken = getattr(handlers, way)(ME)
    assert taken["stage"]["scene"]["result"] is None
    assert taken["files"] == ""
    assert not taken["use"]["interactive"]
    assert taken["undo"]["interactive"]
    undone = handlers.step(-1, ME)
    assert undone["stage"]["scene"]["points"] == points
    assert undone["stage"]["scene"]["result"] == done["stage"]["scene"]["result"]
    assert [undone[name] for name in ("words", "files", "command")] == [
        done[name] for name in ("words", "files", "command")
    ]
    assert handlers.step(-1, ME)["stage"]["scene"]["result"] is None
    with pytest.raises(gr.Error, match="nothing to undo"):
        handlers.step(-1, ME)


def test_candidates_differ_by_their_seed(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    run(handlers, [[[30, 40], [40, 40]]], seed=3, candidates=2)
    assert [made.edit.order.seed for made in handlers.visitors.of("me").gallery] == [3, 4]
    with pytest.raises(gr.Error, match="`candidates` must be a whole number of at least 1 and at most 4"):
        run(handlers, [[[30, 40], [40, 40]]], candidates=9)
    for seed in (1.5, -1, None):
        with pytest.raises(gr.Error, match="`seed` must be a whole number of at least 0"):
            run(handlers, [[[30, 40], [40, 40]]], seed=seed)


def test_what_an_edit_showed_is_taken_off_however_it_ends(
    handlers: Handlers, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a value that gradio sends on, which None is not."""
    handlers.load(str(photo), ME)
    assert run(handlers, [[[30, 40], [40, 40]]])[-2]["stage"]["live"] is NOTHING
    updates = handlers.run(ME, drawn(handlers, [[[30, 40], [40, 40]]]), "", 5, 1, "", *UNSAID)
    monkeypatch.setattr(handlers.workshop.pipe.unet, "forward", lambda *_, **__: 1 / 0)
    told: list[Any] = []
    with pytest.raises(gr.Error, match="ZeroDivisionError"):
        told.extend(updates)
    last = told[-1]
    assert last["stage"]["live"] is NOTHING
    assert last["run"]["interactive"]
    assert delete_none(dict(last["stage"])) == last["stage"]


def test_who_cancels_before_there_is_a_picture_is_told_so_and_goes_on(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    updates = handlers.run(ME, drawn(handlers, [[[30, 40], [40, 40]]]), "", 0, 2, "", *UNSAID)
    next(updates)
    handlers.cancel(ME)
    *_, cancelled, idle = updates
    assert "cancelled before there was a picture" in cancelled["status"]
    assert cancelled["stage"]["live"] is NOTHING
    assert idle == {"run": gr.update(interactive=True), "cancel": gr.update(interactive=False)}
    assert "pair 1" in run(handlers, [[[30, 40], [40, 40]]])[-2]["words"]


def test_who_hears_that_an_edit_is_over_can_go_on_at_once(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    edit = handlers.run(ME, drawn(handlers, [[[30, 40], [40, 40]]]), "", 0, 1, "", *UNSAID)
    while "run" not in (told := next(edit)) or not told["run"]["interactive"]:
        pass
    assert "goes on from here" in handlers.go_on(ME)["status"]


def test_visitors_know_nothing_of_each_other(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    with pytest.raises(gr.Error, match="There is no picture yet"):
        handlers.use(YOU)
    mine = drawn(handlers, [[[30, 40], [40, 40]]])
    handlers.load(str(photo), YOU)
    with pytest.raises(gr.Error, match="The picture changed meanwhile"):
        next(handlers.run(YOU, mine, "", 0, 1, "", *UNSAID))


def test_the_preview_answers_for_the_points_that_it_was_asked_for(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    value = drawn(handlers, [[[30, 40], [40, 40]]])
    shown = handlers.preview(value, True, ME)["stage"]["preview"]
    assert shown["revision"] == 3
    assert shown["url"].startswith("data:image/jpeg;base64,")
    assert shown["paths"][0][0] == pytest.approx([30, 40], abs=0.01)
    assert shown["paths"][0][-1] == pytest.approx([40, 40], abs=0.01)
    assert handlers.preview(value, False, ME)["stage"]["preview"] is NOTHING
    said = handlers.preview(drawn(handlers, [[[300, 4], [1, 1]]]), True, ME)["stage"]["preview"]
    assert said["revision"] == 3
    assert "must lie inside" in said["text"]


def test_a_preview_of_the_picture_before_says_nothing(handlers: Handlers, photo: Path) -> None:
    """It comes late when somebody is quick, and must not speak over what is said of the picture that is shown."""
    handlers.load(str(photo), ME)
    value = drawn(handlers, [[[30, 40], [40, 40]]], mask=mask_url(Image.new("L", (96, 80), 200)))
    handlers.sample("astronaut", ME)
    assert list(handlers.preview(value, True, ME)) == ["stage"]
    assert handlers.preview(value, True, ME)["stage"]["preview"] is NOTHING
    for wrong in ([1], "points", {**value, "points": "many"}):
        assert handlers.preview(wrong, True, ME)["stage"]["preview"] is NOTHING


def test_a_preview_that_can_not_be_made_is_said_on_the_picture(
    handlers: Handlers, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for empty in (None, {"picture": None, "points": [], "mask": None, "revision": 0}):
        assert handlers.preview(empty, True, ME)["stage"]["preview"] is NOTHING
    handlers.load(str(photo), ME)
    value = drawn(handlers, [[[30, 40], [40, 40]]])

    def fail(*_: Any) -> None:
        raise FloatingPointError("not finite")

    monkeypatch.setattr(handlers.workshop.pipe, "preview", fail)
    assert handlers.preview(value, True, ME)["stage"]["preview"] == {"revision": 3, "text": "not finite"}
    monkeypatch.setattr(visitors, "MOST_VISITORS", 1)
    assert "Too many people" in handlers.preview(value, True, YOU)["stage"]["preview"]["text"]
    with pytest.raises(gr.Error, match="Too many people"):
        handlers.cancel(YOU)


def test_a_scene_that_says_the_same_again_is_another(handlers: Handlers, photo: Path, tmp_path: Path) -> None:
    """Or gradio would not tell the page of it."""
    handlers.load(str(photo), ME)
    (tmp_path / "points.json").write_text('{"points": [[30, 40], [40, 40]]}')
    first, second = (handlers.bring([str(tmp_path / "points.json")], ME)["stage"]["scene"] for _ in range(2))
    assert first != second
    assert {**first, "number": 0} == {**second, "number": 0}


def test_an_edit_of_a_program_ends_when_the_program_has_gone(
    handlers: Handlers, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, edit = Api(handlers.workshop, tmp_path, MODEL), handlers.workshop.edit

    def left(order: Order, watcher: Watcher) -> Iterator[Any]:
        for event in edit(order, watcher):
            api.leave(YOU)
            assert not watcher.is_cancelled
            api.leave(ME)
            yield event

    monkeypatch.setattr(handlers.workshop, "edit", left)
    with pytest.raises(gr.Error, match="Cancelled"):
        api.edit(ME, str(photo), [[30, 40]], [[40, 40]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": None}, "`seed` must be a whole number of at least 0 and at most"),
        ({"seed": 1.5}, "`seed` must be a whole number"),
        ({"handles": 5}, r"`handles` must be a list of \(x, y\) pairs of numbers, got 5"),
        ({"targets": {"x": 1}}, r"`targets` must be a list of \(x, y\) pairs"),
        ({"handles": None}, "`handles` must be at least one point"),
        ({"options": [1]}, "`options` must be a mapping"),
    ],
)
def test_what_a_program_gets_wrong_is_said_in_the_words_of_the_api(
    handlers: Handlers, photo: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    call = {"image": str(photo), "handles": [[30, 40]], "targets": [[40, 40]], **changes}
    with pytest.raises(gr.Error, match=said):
        Api(handlers.workshop, tmp_path, MODEL).edit(ME, **call)


def test_an_instruction_goes_out_and_comes_back(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    points = [[[30, 40], [40, 41]], [[70, 20], [70, 20]]]
    region = Image.new("L", (96, 80))
    region.paste(255, (10, 20, 50, 60))
    parcel = handlers.export(drawn(handlers, points, mask=mask_url(region)), "a face", ME)["stage"]["parcel"]
    paths = [each["url"].removeprefix("gradio_api/file=") for each in parcel]
    assert json.loads(Path(paths[0]).read_text()) == {
        "prompt": "a face",
        "points": [p for pair in points for p in pair],
    }
    brought = handlers.bring(paths, ME)
    assert brought["stage"]["scene"]["points"] == points
    assert brought["prompt"] == "a face"
    mask = mask_of(brought["stage"]["scene"]["mask"], (96, 80))
    assert mask is not None
    assert mask.tobytes() == region.tobytes()
    Path(paths[0]).write_text('{"points": [[500, 1], [2, 2]]}')
    with pytest.raises(gr.Error, match="must lie inside the picture"):
        handlers.bring(paths[:1], ME)


def test_the_command_line_that_is_shown_says_the_same_edit(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    texts = dict.fromkeys(OPTIONS, "")
    texts |= {"supervision_lr": "0.5", "hold_unselected": "yes", "restore_source": "no", "dynamic_selection": "none"}
    value = drawn(handlers, [[[30, 40], [40, 40]], [[70, 20], [70, 20]]])
    updates = list(handlers.run(ME, value, "fast", 5, 1, "it's me", *texts.values()))
    program, command, *arguments = shlex.split(updates[-2]["command"])
    assert (program, command) == ("dynadrag", "edit")
    args = build_parser().parse_args([command, *arguments])
    assert (args.handle, args.target) == ([(30, 40), (70, 20)], [(40, 40), (70, 20)])
    assert (args.prompt, args.preset, args.seed) == ("it's me", "fast", 5)
    given = {"supervision_lr": 0.5, "hold_unselected": True, "restore_source": False, "dynamic_selection": None}
    assert given_options(args, DragSettings) == given
    folder = handlers.visitors.of("me").last.picture.parent
    record = json.loads((folder / "result.json").read_text())
    assert record["seed"] == 5
    assert record["pins"] == [False, True]
    assert record["settings"]["supervision_lr"] == {"value": 0.5, "from": "given"}
    assert (folder / str(args.image)).is_file()


def test_every_option_has_a_field_and_empty_ones_say_nothing() -> None:
    assert set(OPTIONS) == set(options_of(DragSettings)) - {"return_intermediates"}
    assert given_by(UNSAID) == {}
    texts = dict.fromkeys(OPTIONS, "")
    assert given_by([*{**texts, "kv_start_layer": "none", "cuda_graphs": "no"}.values()]) == {
        "kv_start_layer": None,
        "cuda_graphs": False,
    }
    with pytest.raises(ValueError, match="`max_iterations` must be a whole number"):
        given_by([*{**texts, "max_iterations": "many"}.values()])


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"points": 3},
        {"points": [[[1, 2]]]},
        {"points": [[[1, 2], ["x", 3]]]},
        {"mask": "http://elsewhere/mask.png"},
        {"mask": "data:image/png;base64,AAAA"},
    ],
)
def test_nothing_of_a_browser_is_believed(value: Any) -> None:
    if value == []:
        assert Drawn.of(value, (96, 80)).handles == []
        return
    with pytest.raises(ValueError, match=r"^`|must be|picture"):
        Drawn.of(value, (96, 80))


def test_names_of_files_are_text_and_not_markup(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    run(handlers, [[[30, 40], [40, 40]]])
    last = handlers.visitors.of("me").last
    assert last is not None
    assert re.fullmatch(r"[\w-]+", last.edit.order.base.name)
    assert "<b>" not in links({"<b>": Path("/x/<b>.json")})
    assert "<b>" not in words(["<b>", "<b>"])


def test_visitors_are_forgotten_with_their_files(tmp_path: Path) -> None:
    known = Visitors(tmp_path, idle_seconds=0.0)
    folder = known.of("me").folder
    assert folder.is_dir()
    assert known.of("you").folder != folder
    assert not folder.exists()
    assert len(known) == 1


def test_nobody_is_forgotten_for_their_own_click_or_for_a_long_edit(handlers: Handlers, photo: Path) -> None:
    handlers.load(str(photo), ME)
    visitor = handlers.visitors.of("me")
    visitor.seen -= 2 * IDLE_SECONDS
    assert handlers.visitors.of("me") is visitor
    edit = handlers.run(ME, drawn(handlers, [[[30, 40], [40, 40]]]), "", 0, 1, "", *UNSAID)
    next(edit)
    visitor.seen -= 2 * IDLE_SECONDS
    list(edit)
    handlers.visitors.of("you")
    assert handlers.visitors.of("me") is visitor


def test_a_tab_that_seems_closed_is_forgotten_once_it_gives_no_sign(
    handlers: Handlers, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By timers that are wound here by hand."""
    timers: list[SimpleNamespace] = []

    def timer(seconds: float, act: Callable[..., None], given: tuple[Any, ...]) -> SimpleNamespace:
        timers.append(SimpleNamespace(seconds=seconds, ring=lambda: act(*given), start=lambda: None))
        return timers[-1]

    monkeypatch.setattr(visitors, "threading", SimpleNamespace(Timer=timer))
    scene = handlers.load(str(photo), ME)["stage"]["scene"]["picture"]
    visitor = handlers.visitors.of("me")
    handlers.leave(ME)
    for sign in (lambda: handlers.here(scene), lambda: handlers.cancel(ME)):
        visitor.sign -= SIGN_SECONDS
        sign()
        timers[-1].ring()
        assert handlers.visitors.of("me") is visitor
        assert timers[-1].seconds == pytest.approx(SIGN_SECONDS, abs=5)
    visitor.sign -= SIGN_SECONDS
    handlers.here("another")
    timers[-1].ring()
    assert len(timers) == 3
    assert len(handlers.visitors) == 0
    assert not visitor.folder.exists()


def test_a_sample_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Image.Image:
        raise ImportError

    monkeypatch.setattr(samples, "_astronaut", missing)
    with pytest.raises(ValueError, match=r"pip install 'dynadrag\[app\]'"):
        samples.sample_picture("astronaut")
