"""`/edit` and `/preview` for programs: the same edits, without a page."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from motion_predictor.common.checks import check_whole_number, got

from ..commands.edit_options import LARGEST_SEED
from ..drag_instruction import DragInstruction
from .edit_files import write_edit
from .edits import Base, Edit, Order, Watcher
from .handlers import as_base, in_words, uploaded_picture, whole
from .limits import MOST_EDITS, check_pairs, check_picture
from .preview_picture import preview_of
from .workshop import Workshop


class Api:
    """The functions for `gradio_client`.

    Args:
        workshop ([`Workshop`]): makes the edits; calls stand in the same queue as people.
        folder (`Path`): of the app, for files.
        model (`argparse.Namespace`): what the app was started with.
    """

    def __init__(self, workshop: Workshop, folder: Path, model: argparse.Namespace) -> None:
        self.workshop = workshop
        self.folder = folder
        self.model = model
        self._answers: deque[Path] = deque()
        self._watchers: dict[Watcher, str | None] = {}

    @in_words
    def edit(
        self,
        request: gr.Request,
        image: str,
        handles: Any,
        targets: Any,
        mask: str | None = None,
        prompt: str = "",
        preset: str = "",
        options: Any = None,
        seed: float = 0,
    ) -> tuple[str, Any, str]:
        """Drag content from handles to targets.

        Args:
            request (`gr.Request`): of the session that listens.
            image (`str`): path of the picture.
            handles, targets (`list`): as many [x, y] of each, in pixels of the picture turned upright.
            mask (`str`, *optional*): path of a picture of that size, bright where the picture may change.
            prompt (`str`, *optional*): what the picture shows.
            preset (`str`, *optional*): settings by name.
            options (`dict`, *optional*): settings one by one.
            seed (`float`, *optional*, defaults to 0): a whole number, of everything random.

        Returns:
            `tuple[str, dict, str]`: path of the edited picture, what `result.json` holds, and what came of it.

        Raises:
            gr.Error: in the words of the pipeline, for what does not fit.
        """
        if not isinstance(options or {}, dict):
            raise ValueError(f"`options` must be a mapping from options to their values, got {got(options)}.")
        base, region = _read(image, handles, targets, mask)
        seed = check_whole_number("seed", whole(seed), least=0, most=LARGEST_SEED)
        order = Order(base, handles, targets, region, prompt or "", preset or None, dict(options or {}), seed)
        watcher = Watcher()
        self._watchers[watcher] = request.session_hash
        try:
            made = [event for event in self.workshop.edit(order, watcher) if isinstance(event, Edit)][-1]
        finally:
            del self._watchers[watcher]
        folder = self.folder / secrets.token_hex(16)
        try:
            files = write_edit(made, folder, self.model)
            record = json.loads((folder / "result.json").read_text("utf-8"))
            picture = self.folder / f"{secrets.token_hex(16)}.png"
            shutil.move(files["picture"], picture)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._answers.append(picture)
        while len(self._answers) > MOST_EDITS:
            self._answers.popleft().unlink(missing_ok=True)
        return str(picture), record, "\n".join(made.words)

    def leave(self, request: gr.Request) -> None:
        """End the edits of a program that has gone."""
        for watcher, session in list(self._watchers.items()):
            if session == request.session_hash:
                watcher.cancel()

    @in_words
    def preview(self, image: str, handles: Any, targets: Any, mask: str | None = None) -> tuple[Image.Image, Any]:
        """Where a drag would lead, at once.

        Args:
            image, handles, targets, mask: as for [`edit`].

        Returns:
            `tuple[PIL.Image.Image, list]`: the bent picture, which is not the edit and at most `LARGEST_SHOWN` pixels
            long, and of each handle the path to its target, [x, y] in pixels of `image`.

        Raises:
            gr.Error: in the words of the pipeline, for what does not fit.
        """
        base, region = _read(image, handles, targets, mask)
        preview = preview_of(self.workshop.pipe, base.shown, handles, targets, region)
        return preview.image, preview.paths

    def add(self) -> None:
        """Add both to the page at hand, where nobody sees them."""
        with gr.Column(visible=False):
            image, mask = gr.File(label="image"), gr.File(label="mask")
            handles, targets = gr.JSON(label="handles"), gr.JSON(label="targets")
            prompt, preset = gr.Textbox("", label="prompt"), gr.Textbox("", label="preset")
            options, seed = gr.JSON(label="options"), gr.Number(0, label="seed")
            picture, preview = gr.File(label="picture"), gr.Image(label="preview", format="png")
            record, text = gr.JSON(label="record"), gr.Textbox(label="words")
            paths = gr.JSON(label="paths")
            points = [image, handles, targets, mask]
            edit, look = gr.Button(), gr.Button()
        edit.click(
            self.edit,
            [*points, prompt, preset, options, seed],
            [picture, record, text],
            api_name="edit",
            concurrency_limit=None,
        )
        look.click(self.preview, points, [preview, paths], api_name="preview", concurrency_limit=2)


def _read(image: str, handles: Any, targets: Any, mask: str | None) -> tuple[Base, Image.Image | None]:
    """Picture and mask of a call, and its points checked."""
    if not image:
        raise ValueError("`image` is missing: pass a picture file.")
    opened = uploaded_picture(image)
    check_picture(opened)
    check_pairs(handles)
    base, region = as_base(opened, Path(image).stem), None if not mask else uploaded_picture(mask)
    DragInstruction.from_user(handles, targets, region, (base.shown.height, base.shown.width))
    return base, region
