"""What stands where on the page: the picture, and beside it three groups: points, run, result."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from ..settings import PRESETS
from .api import Api
from .handlers import Handlers, links, status, words
from .options_drawer import add_drawer
from .samples import SAMPLES
from .stage import make_stage

PAGE_CSS = Path(__file__).with_name("page.css")
TABLE = """<div id="points-table" class="empty"><table><thead><tr><th scope="col"></th><th scope="col">from x</th>
<th scope="col">y</th><th scope="col">to x</th><th scope="col">y</th><th></th></tr></thead><tbody></tbody></table>
<p class="none">Click what to move, then where to.</p></div>"""
PRESET_TITLES = {"": "model's", **{name: name for name in PRESETS}}
PICTURE_FILES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"]
SILENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": True}
STAGE_ACT = "() => {{ window.dragStage.acts['{}'](); }}"


def theme() -> gr.themes.Base:
    """Small, quiet, with the fonts that the machine has."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    look: dict[str, Any] = {"primary_hue": "blue", "neutral_hue": "slate", "spacing_size": "sm", "text_size": "sm"}
    plain = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"], radius_size="sm", **look)
    quiet: dict[str, Any] = {  # dark enough to read
        "body_text_color_subdued": "*neutral_500",
        "body_text_color_subdued_dark": "*neutral_400",
        "input_placeholder_color": "*neutral_500",
        "input_placeholder_color_dark": "*neutral_400",
    }
    return plain.set(**quiet)


def build_page(handlers: Handlers, api: Api, model_name: str) -> gr.Blocks:
    """The page, with its handlers.

    Args:
        handlers ([`Handlers`]): whose `parts` are filled in here.
        api ([`Api`]): the functions for programs.
        model_name (`str`): what is shown as the model.
    """
    parts, in_force = handlers.parts, handlers.workshop.pipe.settings_in_force()
    with gr.Blocks(title="dynadrag", analytics_enabled=False, fill_width=True, delete_cache=(600, 7200)) as page:
        gr.HTML(
            f"<h1>dynadrag</h1><span>drag what is in a picture · model: {html.escape(model_name)}</span>",
            elem_id="head",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=480):
                parts.stage = make_stage(handlers.here)
            with gr.Column(scale=3, min_width=360, elem_id="side"):
                with gr.Column(elem_classes="part"):
                    points = _points_group()
                with gr.Column(elem_classes="part"):
                    run = _run_group(parts)
                with gr.Column(elem_classes="part"):
                    _result_group(parts)
        with gr.Sidebar(label="All options", open=False, position="right", width=420) as drawer:
            gr.HTML("<h2>All options</h2><p>What is left empty stays as the preset says, or else the model.</p>")
            parts.options = add_drawer(in_force)
        run["drawer"].click(lambda: gr.update(open=True), outputs=drawer, **SILENT)
        api.add()  # first, so that the names are its own
        _connect(handlers, points, run)
        page.unload(handlers.leave)
        page.unload(api.leave)
    return page


def _points_group() -> dict[str, Any]:
    group: dict[str, Any] = {}
    with gr.Row():
        gr.HTML("<h2>1 · Points</h2>")
        group["preview"] = gr.Checkbox(True, label="preview while clicking", container=False, elem_id="preview")
    with gr.Row():
        group["upload"] = gr.UploadButton("Open picture", file_types=PICTURE_FILES, size="sm", elem_id="upload")
        for name, sample in SAMPLES.items():
            group[name] = gr.Button(sample.title, size="sm", elem_id=f"sample-{name}")
    gr.HTML(TABLE, apply_default_css=False)
    with gr.Row():
        group["undo"] = gr.Button("Undo", size="sm", elem_id="undo-point")
        group["undo-pair"] = gr.Button("Undo pair", size="sm", elem_id="undo-pair")
        group["clear"] = gr.Button("Clear", size="sm", elem_id="clear-points")
        group["import"] = gr.UploadButton(
            "Import", file_types=[".json", ".png"], file_count="multiple", size="sm", elem_id="import"
        )
        group["export"] = gr.Button("Export", size="sm", elem_id="export")
    return group


def _run_group(parts: Any) -> dict[str, Any]:
    group: dict[str, Any] = {}
    gr.HTML("<h2>2 · Run</h2>")
    with gr.Row():
        choices = [(title, name) for name, title in PRESET_TITLES.items()]
        group["preset"] = gr.Dropdown(choices, value="", label="preset", min_width=110, elem_id="preset")
        # Handlers check them: a limit or a precision of gradio's rounds, or refuses in words of its own.
        group["seed"] = gr.Number(0, label="seed", min_width=60, elem_id="seed")
        group["candidates"] = gr.Number(1, label="candidates", min_width=70, elem_id="candidates")
    parts.prompt = gr.Textbox(
        "",
        show_label=False,
        placeholder="what the picture shows (optional)",
        max_lines=1,
        elem_id="prompt",
        container=False,
    )
    with gr.Row():
        parts.run = gr.Button("Run (R)", variant="primary", size="sm", elem_id="run")
        parts.cancel = gr.Button("Cancel (Esc)", variant="stop", size="sm", interactive=False, elem_id="cancel")
        group["drawer"] = gr.Button("All options", size="sm", elem_id="all-options")
    parts.status = gr.HTML(status("open a picture, or take a sample"), elem_id="status")
    return group


def _result_group(parts: Any) -> None:
    gr.HTML("<h2>3 · Result</h2>")
    parts.words = gr.HTML(words([]), elem_id="words")
    with gr.Row():
        parts.use = gr.Button("Use as picture", size="sm", interactive=False, elem_id="use")
        parts.go_on = gr.Button("Continue", size="sm", interactive=False, elem_id="go-on")
        parts.undo = gr.Button("Undo edit", size="sm", interactive=False, elem_id="undo-edit")
        parts.redo = gr.Button("Redo edit", size="sm", interactive=False, elem_id="redo-edit")
    parts.gallery = gr.Gallery(
        show_label=False, columns=5, height=66, allow_preview=False, interactive=False, elem_id="gallery", buttons=[]
    )
    parts.files = gr.HTML(links({}), elem_id="files")
    parts.command = gr.Textbox(
        "",
        show_label=False,
        max_lines=1,
        interactive=False,
        buttons=["copy"],
        elem_id="command",
        placeholder="the command line that repeats the edit",
    )


def _connect(handlers: Handlers, points: dict[str, Any], run: dict[str, Any]) -> None:
    parts = handlers.parts
    points["upload"].upload(handlers.load, points["upload"], parts.shown, **SILENT)
    for name in SAMPLES:
        points[name].click(_sample(handlers, name), None, parts.shown, **SILENT)
    for act in ("undo", "undo-pair", "clear"):
        points[act].click(None, js=STAGE_ACT.format(act))
    points["import"].upload(handlers.bring, points["import"], parts.shown, **SILENT)
    points["export"].click(handlers.export, [parts.stage, parts.prompt], parts.stage, **SILENT)
    looking: dict[str, Any] = {**SILENT, "trigger_mode": "always_last", "concurrency_limit": 2}
    gr.on(
        [parts.stage.input, points["preview"].change],
        handlers.preview,
        [parts.stage, points["preview"]],
        parts.stage,
        **looking,
    )
    wanted = [parts.stage, run["preset"], run["seed"], run["candidates"], parts.prompt, *parts.options]
    told = [*parts.shown, parts.run, parts.cancel]
    parts.run.click(handlers.run, wanted, told, concurrency_limit=None, trigger_mode="once", **SILENT)
    parts.cancel.click(handlers.cancel, None, parts.status, concurrency_limit=None, **SILENT)
    parts.use.click(handlers.use, None, parts.shown, **SILENT)
    parts.go_on.click(handlers.go_on, None, parts.shown, **SILENT)
    parts.undo.click(_step(handlers, -1), None, parts.shown, **SILENT)
    parts.redo.click(_step(handlers, 1), None, parts.shown, **SILENT)
    parts.gallery.select(handlers.pick, None, parts.shown, **SILENT)
    run["preset"].change(handlers.choose_preset, run["preset"], parts.options, **SILENT)


def _sample(handlers: Handlers, name: str) -> Any:
    def take(request: gr.Request) -> Any:
        return handlers.sample(name, request)

    return take


def _step(handlers: Handlers, by: int) -> Any:
    def step(request: gr.Request) -> Any:
        return handlers.step(by, request)

    return step
