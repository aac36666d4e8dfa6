"""What happens when something is clicked: plain functions of what the page tells and of what is known of a visitor."""

from __future__ import annotations

import argparse
import functools
import html
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from motion_predictor.common.checks import check_whole_number
from motion_predictor.common.command_errors import CommandError, one_line
from motion_predictor.common.mask_picture import painted_region
from motion_predictor.common.picture_files import decode_picture

from ..commands.edit_options import LARGEST_SEED
from ..picture import to_picture_tensor
from .edit_files import MASK_NAME, command_line, write_edit
from .edits import Base, Cancelled, Edit, Order, Progress, Watcher
from .instruction_file import instruction_text, read_instruction
from .limits import MOST_CANDIDATES, check_picture
from .options_drawer import given_by, placeholders
from .parts import Parts
from .preview_picture import preview_of
from .samples import SAMPLES, sample_picture
from .stage import NOTHING, Drawn, as_mask, mask_url, passing_url
from .visitors import Made, Visitor, Visitors
from .workshop import Workshop

logger = logging.getLogger(__name__)

Updates = dict[Any, Any]
ROUGH = "still rough, details come last"
DONE = "done: compare before and after, or go on"
SERVERS_FOLDER = re.compile(r"(?<=')[^']*dynadrag-app-[^']*[/\\](?=[^'])")
"""Where an upload lies, in a message: of the path, people know the name alone."""


@contextmanager
def said_in_words() -> Iterator[None]:
    """Turn errors into toasts: with the API's words, or with none of a traceback."""
    try:
        yield
    except gr.Error:
        raise
    except Cancelled:
        raise gr.Error("Cancelled before there was a picture.", title="Cancelled", print_exception=False) from None
    except (CommandError, ValueError, OSError) as error:
        text = html.escape(SERVERS_FOLDER.sub("", one_line(error)), quote=False)
        raise gr.Error(text, title="That did not work", print_exception=False) from None
    except Exception as error:
        logger.exception("A handler failed.")
        text = f"The server met a {type(error).__name__}; its log says more. Your picture and your points are kept."
        raise gr.Error(text, title="That did not work", print_exception=False) from None


def in_words(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are toasts."""

    @functools.wraps(handler)
    def handled(*args: Any, **kwargs: Any) -> Any:
        with said_in_words():
            return handler(*args, **kwargs)

    return handled


class Handlers:
    """The handlers of a page.

    Args:
        workshop ([`Workshop`]): makes the edits.
        visitors ([`Visitors`]): what is known of each.
        model (`argparse.Namespace`): what the app was started with, for records and command lines.
        parts ([`Parts`]): of the page, which are updated.
    """

    def __init__(self, workshop: Workshop, visitors: Visitors, model: argparse.Namespace, parts: Parts) -> None:
        self.workshop = workshop
        self.visitors = visitors
        self.model = model
        self.parts = parts
        self._scenes = itertools.count()

    # --- pictures ---

    @in_words
    def load(self, path: str, request: gr.Request) -> Updates:
        """A picture that was uploaded, dropped or pasted."""
        if not path:
            return {}
        opened = uploaded_picture(path)
        check_picture(opened)
        visitor = self.visitors.of(request.session_hash)
        return self._begun(visitor, as_base(opened, Path(path).stem))

    @in_words
    def sample(self, name: str, request: gr.Request) -> Updates:
        """One of the portraits, with points that suit it."""
        visitor = self.visitors.of(request.session_hash)
        return self._begun(visitor, as_base(sample_picture(name), name), SAMPLES[name].points)

    def _begun(self, visitor: Visitor, base: Base, points: list[Any] | None = None) -> Updates:
        self._refuse_while_running(visitor)
        visitor.begin(base)
        size = f"{base.shown.width} x {base.shown.height} pixels"
        return {**self._shown(visitor, points=points or [], mask=None), self.parts.status: status(size)}

    # --- points ---

    @in_words
    def preview(self, value: Any, is_wanted: bool, request: gr.Request) -> Updates:
        """The picture bent along the motion, for as long as somebody places points."""
        said = self._preview_of(value, request) if is_wanted and isinstance(value, dict) else NOTHING
        return {self.parts.stage: gr.update(preview=said)}

    def _preview_of(self, value: dict[str, Any], request: gr.Request) -> Any:
        """What the component shows for points: it knows by the revision whether they are still there."""
        try:
            visitor = self.visitors.of(request.session_hash)
            if visitor.base is None or not _is_put_on(value, visitor):
                return NOTHING
            drawn = Drawn.of(value, visitor.base.shown.size)
            if not drawn.handles:
                return NOTHING
            shown = preview_of(self.workshop.pipe, visitor.base.shown, drawn.handles, drawn.targets, drawn.mask)
        except (CommandError, ValueError) as error:  # on the picture, where it is no bother to whoever places points
            return {"revision": value.get("revision"), "text": one_line(error)}
        return {"revision": drawn.revision, "url": passing_url(shown.image), "paths": shown.paths}

    @in_words
    def bring(self, paths: list[str], request: gr.Request) -> Updates:
        """Points from a JSON file in DragBench's layout, a mask from a picture, or both."""
        visitor = self._visitor_with_picture(request)
        assert visitor.base is not None
        size, prompt = visitor.base.shown.size, None
        changes: dict[str, Any] = {}
        for path in paths or []:
            if path.lower().endswith(".json"):
                changes["points"], prompt = read_instruction(path, size)
            else:
                mask = uploaded_picture(path)
                region = painted_region(mask)
                if region.shape != (size[1], size[0]):
                    raise ValueError(
                        f"`mask` must have the size of the picture, {size[0]}x{size[1]}, got {mask.size}."
                    )
                changes["mask"] = mask_url(as_mask(region))
        updates = {self.parts.stage: gr.update(scene={**self._scene(visitor), **changes, "result": None})}
        return updates if prompt is None else {**updates, self.parts.prompt: prompt}

    @in_words
    def export(self, value: Any, prompt: str, request: gr.Request) -> Updates:
        """Points as a JSON file, and the mask as a picture, to the browser's downloads."""
        visitor = self._visitor_with_picture(request)
        drawn = self._drawn(visitor, value)
        if not drawn.handles:
            raise ValueError("There are no points to export yet.")
        points = visitor.new_path("points.json")
        points.write_bytes(instruction_text(drawn.handles, drawn.targets, prompt or ""))
        files = [points]
        if drawn.mask is not None:
            files.append(points.with_name("mask.png"))
            drawn.mask.save(files[-1])
        parcel = [{"url": file_url(path), "name": path.name} for path in files]
        return {self.parts.stage: gr.update(parcel=parcel)}

    # --- the edit ---

    def run(
        self,
        request: gr.Request,
        value: Any,
        preset: str,
        seed: float,
        candidates: float,
        prompt: str,
        *texts: Any,
    ) -> Iterator[Updates]:
        """Make an edit, or several with one seed each, and tell how it goes."""
        parts = self.parts
        idle = {parts.run: gr.update(interactive=True), parts.cancel: gr.update(interactive=False)}
        with said_in_words():
            visitor = self._visitor_with_picture(request)
            self._refuse_while_running(visitor)
            orders = self._orders(visitor, value, preset, seed, candidates, prompt, texts)
        try:
            yield from self._candidates(visitor, orders)
            yield idle
        except gr.Error as error:
            yield {**idle, parts.stage: gr.update(live=NOTHING), parts.status: status(error.title)}
            raise

    def _candidates(self, visitor: Visitor, orders: list[Order]) -> Iterator[Updates]:
        """Make the edits one after the other; when this ends, however it does, the visitor may ask for more."""
        parts, watcher = self.parts, Watcher()
        visitor.watcher = watcher
        try:
            yield {parts.run: gr.update(interactive=False), parts.cancel: gr.update(interactive=True)}
            for number, order in enumerate(orders, start=1):
                head = f"candidate {number} of {len(orders)}: " if len(orders) > 1 else ""
                with said_in_words():
                    try:
                        yield from self._candidate(visitor, order, watcher, head)
                    except Cancelled:  # as was asked for, so it is no error
                        text = "cancelled before there was a picture"
                        yield {parts.stage: gr.update(live=NOTHING), parts.status: status(text)}
                        break
                if watcher.is_cancelled:
                    break
                watcher = visitor.watcher = Watcher()
        finally:
            watcher.cancel()
            visitor.see()
            visitor.watcher = None

    def _candidate(self, visitor: Visitor, order: Order, watcher: Watcher, head: str) -> Iterator[Updates]:
        """Make an edit, and show how it goes and what comes of it."""
        parts = self.parts
        for event in self.workshop.edit(order, watcher):
            if isinstance(event, Progress):
                yield {parts.stage: gr.update(live=_live(event, order, head)), parts.status: status(head + event.text)}
            else:
                self._keep(visitor, event)
        yield {**self._shown(visitor), parts.status: status(DONE)}

    @in_words
    def cancel(self, request: gr.Request) -> Updates:
        """End the edit that runs, with what there is."""
        watcher = self.visitors.of(request.session_hash).watcher
        if watcher is not None:
            watcher.cancel()
            return {self.parts.status: status("cancelling: the iteration at hand is finished first")}
        return {}

    def _orders(
        self,
        visitor: Visitor,
        value: Any,
        preset: str,
        seed: Any,
        candidates: Any,
        prompt: str,
        texts: tuple[Any, ...],
    ) -> list[Order]:
        """What is asked for, checked as far as that goes without work."""
        assert visitor.base is not None
        drawn = self._drawn(visitor, value)
        first = check_whole_number("seed", whole(seed), least=0, most=LARGEST_SEED - MOST_CANDIDATES)
        count = check_whole_number("candidates", whole(candidates), least=1, most=MOST_CANDIDATES)
        given = given_by(texts)
        orders = [
            Order(visitor.base, drawn.handles, drawn.targets, drawn.mask, prompt or "", preset or None, given, seed)
            for seed in range(first, first + count)
        ]
        self.workshop.check(orders[0])
        return orders

    def _keep(self, visitor: Visitor, edit: Edit) -> Made:
        folder = visitor.new_path("edit")
        made = Made(edit, write_edit(edit, folder, self.model))
        edit.drop_pictures()
        visitor.add(made)
        return made

    # --- afterwards ---

    @in_words
    def use(self, request: gr.Request) -> Updates:
        """Take the result as the next picture."""
        visitor, made = self._with_result(request)
        name = made.edit.order.base.name.removesuffix("-edited") + "-edited"  # once, however often
        base = Base(made.edit.after, name, made.edit.after)
        visitor.put(base)
        text = "the result is the picture now: place new points on it"
        return {**self._shown(visitor, points=[], mask=None), self.parts.status: status(text)}

    @in_words
    def go_on(self, request: gr.Request) -> Updates:
        """Go on with the same edit from where its handles are."""
        visitor, made = self._with_result(request)
        order, result = made.edit.order, made.edit.result
        visitor.put(Base(made.edit.after, order.base.name, order.base.opened, result.state))
        ends = _inside(result.trajectory[-1].tolist(), made.edit.after.size)
        points = [[end, target] for end, target in zip(ends, order.targets, strict=True)]
        text = "the edit goes on from here: pull the targets further, or add points, and run"
        return {**self._shown(visitor, points=points, mask=mask_url(order.mask)), self.parts.status: status(text)}

    @in_words
    def step(self, by: int, request: gr.Request) -> Updates:
        """Undo (-1) or redo (1) an edit; what undoes an edit first undoes that its result was taken as a picture."""
        visitor = self._visitor_with_picture(request)
        self._refuse_while_running(visitor)
        if by < 0 and visitor.last and not visitor.shown:
            return self._at(visitor, visitor.last)
        position = visitor.position + by
        if not 0 <= position <= len(visitor.line):
            raise ValueError("There is nothing to undo." if by < 0 else "There is nothing to redo.")
        visitor.position = position
        return self._at(visitor, visitor.last or visitor.line[0])

    @in_words
    def pick(self, event: gr.SelectData, request: gr.Request) -> Updates:
        """Show an edit of the gallery again."""
        visitor = self._visitor_with_picture(request)
        self._refuse_while_running(visitor)
        made = visitor.newest_first[int(event.index)]
        if made not in visitor.line:
            visitor.line.append(made)
        visitor.position = visitor.line.index(made) + 1
        return self._at(visitor, made)

    def _at(self, visitor: Visitor, made: Made) -> Updates:
        """Points and mask as they were for an edit, and what came of it, unless it is undone."""
        order = made.edit.order
        if visitor.base is not order.base:
            visitor.put(order.base)
        points = [list(pair) for pair in zip(order.handles, order.targets, strict=True)]
        text = DONE if visitor.last else "the edit is undone: this is the picture as it was before"
        return {**self._shown(visitor, points=points, mask=mask_url(order.mask)), self.parts.status: status(text)}

    @in_words
    def choose_preset(self, preset: str) -> list[Any]:
        """Show in the drawer what a preset comes to."""
        return placeholders(self.workshop.pipe.settings_in_force({}, None, preset or None))

    def here(self, picture: Any) -> None:
        """A page says that it is still open: by the name of its picture, which nobody can guess."""
        self.visitors.keep(str(picture))

    def leave(self, request: gr.Request) -> None:
        """Forget who closes the tab."""
        self.visitors.leave(request.session_hash)

    # --- what is shown ---

    def _shown(self, visitor: Visitor, **scene: Any) -> Updates:
        """The picture, and all that hangs on which edit is shown."""
        parts, made = self.parts, visitor.shown
        return {
            parts.stage: gr.update(scene={**self._scene(visitor), **scene}, live=NOTHING, preview=NOTHING),
            parts.words: words(made.edit.words if made else []),
            parts.gallery: [(str(each.picture), _caption(each.edit)) for each in visitor.newest_first],
            parts.files: links(made.files if made else {}),
            parts.command: command_line(made.edit.order, self.model) if made else "",
            parts.use: gr.update(interactive=made is not None),
            parts.go_on: gr.update(interactive=made is not None),
            parts.undo: gr.update(interactive=visitor.position > 0),
            parts.redo: gr.update(interactive=visitor.position < len(visitor.line)),
        }

    def _scene(self, visitor: Visitor) -> dict[str, Any]:
        assert visitor.base is not None
        assert visitor.scene is not None
        made = visitor.shown
        width, height = visitor.base.shown.size
        return {
            "number": next(self._scenes),
            "picture": visitor.scene.parent.name,
            "url": file_url(visitor.scene),
            "width": width,
            "height": height,
            "result": file_url(made.picture) if made else None,
        }

    def _drawn(self, visitor: Visitor, value: Any) -> Drawn:
        assert visitor.base is not None
        if not _is_put_on(value, visitor):
            raise ValueError("The picture changed meanwhile: place the points again.")
        return Drawn.of(value, visitor.base.shown.size)

    def _visitor_with_picture(self, request: gr.Request) -> Visitor:
        visitor = self.visitors.of(request.session_hash)
        if visitor.base is None:
            raise ValueError("There is no picture yet: open one, drop one, paste one, or take a sample.")
        return visitor

    def _with_result(self, request: gr.Request) -> tuple[Visitor, Made]:
        visitor = self._visitor_with_picture(request)
        self._refuse_while_running(visitor)
        if visitor.shown is None:
            raise ValueError("There is no result yet: run an edit first.")
        return visitor, visitor.shown

    def _refuse_while_running(self, visitor: Visitor) -> None:
        if visitor.watcher is not None:
            raise ValueError("Your edit is running: wait for it, or cancel it (Esc).")


def uploaded_picture(path: str) -> Image.Image:
    """Read a picture file, which messages call by its name: where it lies is the server's business.

    Args:
        path (`str`): of the file that was uploaded.

    Raises:
        ValueError: if it is no such file as [`open_picture`] takes.
        OSError: if it can't be read.
    """
    return decode_picture(Path(path).read_bytes(), Path(path).name)


def as_base(opened: Image.Image, name: str) -> Base:
    """A picture to begin with, as the pipeline sees it: upright, RGB, laid over white.

    Args:
        opened (`PIL.Image.Image`): of any mode, turned by its EXIF data or not.
        name (`str`): of its file; of its letters those are kept that need no quoting, and an
            edit's mask has its name to itself.

    Raises:
        ValueError: if it is too small for an edit.
    """
    upright = to_picture_tensor(opened)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    shown = Image.fromarray(upright)
    stem = re.sub(r"[^\w-]+", "-", name)[:60].strip("-") or "picture"
    if f"{stem}.png".lower() == MASK_NAME:
        stem = f"{stem}-picture"
    return Base(shown, stem, shown)


def _is_put_on(value: Any, visitor: Visitor) -> bool:
    """Whether points and a mask, if there are any, were put on the picture that is shown, and not on one before it."""
    value = value or {}
    if isinstance(value, dict) and not value.get("points") and not value.get("mask"):
        return True
    name = None if visitor.scene is None else visitor.scene.parent.name
    return isinstance(value, dict) and value.get("picture") == name


def _live(event: Progress, order: Order, head: str) -> dict[str, Any]:
    return {
        "url": None if event.image is None else passing_url(event.image),
        "paths": event.paths,
        "targets": order.targets,
        "text": head + event.text,
        "badge": head + (event.text if event.image is None else f"{event.text.partition(' of ')[0]}: {ROUGH}"),
        "share": event.share,
    }


def _inside(points: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    """Points on whole pixels of a picture."""
    return [[min(max(round(x), 0), size[0] - 1), min(max(round(y), 0), size[1] - 1)] for x, y in points]


def whole(number: Any) -> Any:
    """A number of a field, which browsers send as a float, or not at all."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _caption(edit: Edit) -> str:
    count = len(edit.order.handles)
    return f"{edit.order.base.name}, edited by {count} pair{'' if count == 1 else 's'}, seed {edit.order.seed}"


def file_url(path: Path) -> str:
    """Where the page finds a file of a visitor's folder."""
    return f"gradio_api/file={path.as_posix()}"


def status(text: str) -> str:
    """A line of what goes on, which screen readers read out."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def words(lines: list[str]) -> str:
    """What came of an edit, as a list."""
    if not lines:
        return '<p class="none">No edit yet.</p>'
    head, *pairs = (html.escape(line) for line in lines)
    return f"<p>{head}</p><ul>{''.join(f'<li>{line}</li>' for line in pairs)}</ul>"


def links(files: dict[str, Path]) -> str:
    """Downloads by their titles, in one line."""
    shown = [
        f'<a href="{html.escape(file_url(path))}" download="{html.escape(path.name)}">{html.escape(title)}</a>'
        for title, path in files.items()
    ]
    return " · ".join(shown)
