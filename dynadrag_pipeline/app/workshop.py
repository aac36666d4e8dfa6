"""The model and the pictures that are open in it: makes edits, one at a time, and tells how they go."""

from __future__ import annotations

import hashlib
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from motion_predictor.points import scale_points

from ..commands.edit_errors import edit_errors
from ..drag_state import DragStep
from ..pipeline_output import DynaDragPipelineOutput
from ..provenance import provenance_of
from ..session import ONCE_PER_PICTURE, DragSession
from ..settings import SettingsInForce
from .edits import Cancelled, Edit, Order, Progress, Watcher
from .limits import check_pairs, check_picture
from .turns import Turns

if TYPE_CHECKING:
    from ..pipeline_dynadrag import DynaDragPipeline

logger = logging.getLogger(__name__)

MOST_OPEN = 2
"""Pictures that are kept open: each holds its keys and values."""
TELL_EVERY = 0.25
"""Seconds between two tellings of how a picture is opened."""
SHARE_OF_OPENING = 0.3
"""How much of the bar is for opening a picture, which takes about so much of an edit's time."""

Tell = Callable[[Progress], None]


class Workshop:
    """Makes edits with one pipeline.

    Args:
        pipe ([`DynaDragPipeline`]): the model. Nobody else may edit with it meanwhile.
    """

    def __init__(self, pipe: DynaDragPipeline) -> None:
        self.pipe = pipe
        self.turns = Turns()
        self._open: OrderedDict[str, DragSession] = OrderedDict()
        self._watchers: set[Watcher] = set()

    def close(self) -> None:
        """End all edits, also those that wait, at their next step."""
        for watcher in list(self._watchers):
            watcher.cancel()

    def check(self, order: Order) -> SettingsInForce:
        """What an order comes to, before any work.

        Args:
            order ([`Order`]): what is asked for.

        Returns:
            [`SettingsInForce`]: with where each setting comes from.

        Raises:
            ValueError: if picture, number of points or settings are refused; where the points lie is seen later.
        """
        check_picture(order.base.shown)
        check_pairs(order.handles)
        return self.pipe.settings_in_force(order.given, None, order.preset)

    def edit(self, order: Order, watcher: Watcher) -> Iterator[Progress | Edit]:
        """Make an edit in a thread of its own, which ends by itself when nobody listens any more.

        Args:
            order ([`Order`]): what is asked for.
            watcher ([`Watcher`]): ends it.

        Yields:
            [`Progress`], as long as it runs, and the [`Edit`] in the end.

        Raises:
            CommandError: for what the user can put right, in the API's words.
            Cancelled: if it was ended before there was anything to show.
        """
        with edit_errors():
            in_force = self.check(order)
            turn = self.turns.ask()
        told: queue.SimpleQueue[Progress | Edit | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                with turn:
                    for before in iter(lambda: turn.before(0.5), 0):
                        if watcher.is_over:
                            raise Cancelled
                        told.put(Progress(f"waiting: {before} edit{'' if before == 1 else 's'} before yours"))
                    watcher.start()
                    with edit_errors():
                        told.put(self._made(order, in_force, watcher, told.put))
            except BaseException as error:  # whatever it is, it belongs to the listener
                told.put(error)

        self._watchers.add(watcher)
        threading.Thread(target=work, name="edit", daemon=True).start()
        try:
            while True:
                watcher.look()
                try:
                    event = told.get(timeout=1)
                except queue.Empty:
                    continue
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Edit):
                    return
        except GeneratorExit:  # nobody listens any more
            watcher.cancel()
            raise
        finally:
            self._watchers.discard(watcher)

    def _made(self, order: Order, in_force: SettingsInForce, watcher: Watcher, tell: Tell) -> Edit:
        """The edit, on the worker's thread."""
        started = time.perf_counter()
        key = _session_key(order, in_force)
        was_open = key in self._open
        session = self._opened(key, order, in_force, watcher, tell)
        session.in_force = in_force
        before = list(session.history)
        try:
            with closing(cast(Any, self._steps(session, order))) as steps, session.working():
                self._follow(steps, session, order, watcher, tell)
                result = session.history[-1]
                tell(Progress("finding the content again", 0.98))
                edited = session.image(result)
                content = None
                if session.settings.locate_content:
                    content = session.content(result, edited if session.settings.restore_source else None)
        finally:
            session.history[:] = before
        after = self.pipe.image_processor.postprocess(edited, "pil", do_denormalize=[False])[0]
        output = DynaDragPipelineOutput(
            [after],
            result.trajectory,
            result.iterations,
            result.stop_reason,
            result.motion_source,
            in_force,
            provenance_of(str(self.pipe.name_or_path or ""), session.seed),
            content,
        )
        return Edit(order, after, result, output, time.perf_counter() - started, was_open)

    def _steps(self, session: DragSession, order: Order) -> Iterator[DragStep]:
        return session.drag(
            order.handles,
            order.targets,
            order.mask,
            continue_from=order.base.start,
            is_watched=True,
            return_intermediates=True,
        )

    def _follow(
        self, steps: Iterator[DragStep], session: DragSession, order: Order, watcher: Watcher, tell: Tell
    ) -> None:
        """Let a drag run, and tell of each iteration."""
        most, started = session.settings.most_iterations, time.perf_counter()
        paths = [[list(handle)] for handle in order.handles]
        moving = ~torch.tensor(order.pins)
        targets = torch.tensor(order.targets, dtype=torch.float32)

        def away(points: torch.Tensor) -> float:
            return float((points - targets)[moving].norm(dim=-1).mean()) if moving.any() else 0.0

        distances = [away(torch.tensor(order.handles, dtype=torch.float32))]
        for count, step in enumerate(steps, start=1):
            at = scale_points((step.record.handles + step.record.step).cpu(), session.size, session.input_size)
            for path, point in zip(paths, at.tolist(), strict=True):
                path.append(point)
            distances.append(away(at))
            left = _iterations_left(distances, most)
            seconds = left * (time.perf_counter() - started) / count
            text = (
                f"iteration {count} of at most {most} · loss {step.record.loss_before:.4g} · "
                f"{distances[-1]:.1f} px to go · about {_duration(seconds)} left"
            )
            share = SHARE_OF_OPENING + (1 - SHARE_OF_OPENING) * count / (count + left + 1)
            tell(Progress(text, share, self._decoded(step, session), [list(path) for path in paths]))
            step.is_last = watcher.is_over

    @torch.no_grad()
    def _decoded(self, step: DragStep, session: DragSession) -> Image.Image | None:
        """The picture of a step, which the loop itself decodes only once it goes on."""
        if step.latents is None:
            return None
        try:
            image = session.drag_engine.decode_finite(step.latents, step.is_preview)
        except FloatingPointError:  # the loop says so
            return None
        return self.pipe.image_processor.postprocess(image, "pil", do_denormalize=[False])[0]

    def _opened(self, key: str, order: Order, in_force: SettingsInForce, watcher: Watcher, tell: Tell) -> DragSession:
        """The session of a picture: still open, or opened now."""
        session = self._open.pop(key, None)
        if session is None:
            while len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)
            with self._telling(watcher, tell):
                session = self.pipe.open_session(
                    order.base.opened,
                    order.prompt,
                    settings=in_force.settings,
                    generator=torch.Generator().manual_seed(order.seed),
                )
        else:
            tell(Progress("this picture is open: its identity LoRA and inversion are kept", SHARE_OF_OPENING))
        self._open[key] = session
        return session

    @contextmanager
    def _telling(self, watcher: Watcher, tell: Tell) -> Iterator[None]:
        """Context in which the pipeline's progress bars are told, and end what is not wanted any more."""
        pipe = cast(Any, self.pipe)
        numbers = itertools.count()
        pipe.progress_bar = lambda iterable=None, total=None: _Bar(next(numbers), total, watcher, tell)
        try:
            yield
        finally:
            del pipe.progress_bar


class _Bar:
    """A progress bar as diffusers' pipelines use it. Each fills half of what those before it left."""

    def __init__(self, number: int, total: int | None, watcher: Watcher, tell: Tell) -> None:
        self.number, self.total, self.count, self.title = number, total or 1, 0, "opening the picture"
        self.watcher, self.tell, self.told = watcher, tell, 0.0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_description(self, description: str) -> None:
        """What is counted."""
        is_word = description[1:2].islower()  # "Identity LoRA", but not "DDIM inversion"
        self.title = f"opening the picture: {description[:1].lower() if is_word else description[:1]}{description[1:]}"

    def set_postfix_str(self, *_: object, **__: object) -> None:
        """Beside the count; told elsewhere."""

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        if self.watcher.is_over:
            raise Cancelled
        self.count += count
        now = time.monotonic()
        if now - self.told > TELL_EVERY:
            self.told = now
            done = min(self.count / self.total, 1)
            left = 0.5**self.number
            self.tell(Progress(f"{self.title}, {done:.0%}", SHARE_OF_OPENING * (1 - left + left * done / 2)))


def _session_key(order: Order, in_force: SettingsInForce) -> str:
    """What an open picture is kept under: all that it depends on."""
    picture = order.base.opened
    of_opening = (name for name in ONCE_PER_PICTURE if name not in ("restore_source", "locate_content"))
    once = [(name, getattr(in_force.settings, name)) for name in of_opening]
    text = repr((picture.mode, picture.size, order.prompt, order.seed, once))
    return hashlib.sha256(text.encode() + picture.tobytes()).hexdigest()


def _iterations_left(distances: list[float], most: int) -> int:
    """How many iterations an edit may still take, by how fast its handles came nearer.

    Args:
        distances (`list[float]`): to the targets, before the first iteration and after each.
        most (`int`): iterations in all.

    Example:
        >>> _iterations_left([12.0, 9.0, 6.0], 15), _iterations_left([12.0, 0.0], 15), _iterations_left([3.0, 3.0], 15)
        (3, 1, 14)
    """
    count, nearer = len(distances) - 1, distances[0] - distances[-1]
    if nearer <= 0:
        return most - count
    return min(most - count, round(distances[-1] * count / nearer) + 1)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
