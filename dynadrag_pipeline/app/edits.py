"""What the app edits, what it says while it does, and what an edit came to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..content import ContentLocations, left_behind
from ..drag_result import DragResult
from ..drag_state import DragState
from ..pipeline_output import DynaDragPipelineOutput
from .limits import GONE_SECONDS, MOST_SECONDS

Point = list[float]


@dataclass(frozen=True)
class Base:
    """What an edit begins with.

    Attributes:
        shown (`PIL.Image.Image`): the picture that points are put on, upright, RGB.
        name (`str`): of its file, without the ending.
        opened (`PIL.Image.Image`): what a session is opened with; another picture where an edit is continued.
        start ([`DragState`], *optional*): where an edit is gone on from.
    """

    shown: Image.Image
    name: str
    opened: Image.Image
    start: DragState | None = None


@dataclass(frozen=True)
class Order:
    """An edit as it was asked for.

    Attributes:
        base ([`Base`]): what it begins with.
        handles, targets (`list`): (x, y) in pixels of the picture; a handle on its target is a pin.
        mask (`PIL.Image.Image`, *optional*): where the picture may change.
        prompt (`str`): what the picture shows.
        preset (`str`, *optional*): settings by name.
        given (`dict`): options by name.
        seed (`int`): of everything random.
    """

    base: Base
    handles: list[Point]
    targets: list[Point]
    mask: Image.Image | None = None
    prompt: str = ""
    preset: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def pins(self) -> list[bool]:
        """Which pairs hold still."""
        return [handle == target for handle, target in zip(self.handles, self.targets, strict=True)]


@dataclass(frozen=True)
class Progress:
    """What is to be told of an edit while it runs.

    Attributes:
        text (`str`): one line.
        share (`float`): of the work, from 0 to 1.
        image (`PIL.Image.Image`, *optional*): the picture after an iteration.
        paths (`list`): of each handle, from its beginning on, (x, y) in pixels of the picture.
    """

    text: str
    share: float = 0.0
    image: Image.Image | None = None
    paths: list[list[Point]] = field(default_factory=list)


@dataclass(frozen=True)
class Edit:
    """An edit that was made.

    Attributes:
        order ([`Order`]): what was asked for.
        after (`PIL.Image.Image`): the edited picture, of the size of the one that it began with.
        result ([`DragResult`]): what a session can go on from.
        output ([`DynaDragPipelineOutput`]): the same as a call of the pipeline returns it.
        seconds (`float`): that it took.
        was_open (`bool`): whether the picture was still open, with its identity LoRA and its inversion.
    """

    order: Order
    after: Image.Image
    result: DragResult
    output: DynaDragPipelineOutput
    seconds: float
    was_open: bool = False

    def drop_pictures(self) -> None:
        """Let go of the pictures between, once they are in files: they are most of what an edit holds."""
        for step in self.result.iterations:
            step.image = step.flow = None

    @property
    def words(self) -> list[str]:
        """Why it ended, where the content went, pair by pair, and what may help if it did not."""
        reasons = {
            "reached": "all handles have arrived",
            "max_iterations": "the iterations are used up",
            "stalled": "no handle moves any more",
            "interrupted": "cancelled: this is what there was",
            "diverged": "the numbers left their range: this is the last good picture",
        }
        count = len(self.result.iterations)
        kept = ", with what was kept of the picture" if self.was_open else ""
        took = f"{count} iteration{'' if count == 1 else 's'} in {self.seconds:.0f} s{kept}"
        head = f"{took}: {reasons[self.result.stop_reason]}"
        content = self.output.content
        if content is None:
            return [head]
        assert isinstance(content, ContentLocations)  # one picture
        advice = left_behind(content, self.result.stop_reason)
        pairs = [_pair_words(content, pair) for pair in range(len(self.order.handles))]
        return [head, *pairs, *([advice] if advice else [])]


def _pair_words(content: ContentLocations, pair: int) -> str:
    """Where the content of one pair went."""
    distance, asked = float(content.distances[pair]), float(content.asked[pair])
    if not asked:
        return f"pin {pair + 1}: {'held' if distance < 1.5 else f'moved by {distance:.0f} px'}"
    if not content.found[pair]:
        return f"pair {pair + 1}: content not found again, of {asked:.0f} px asked"
    return f"pair {pair + 1}: content {distance:.0f} px from its target of {asked:.0f} px asked"


class Cancelled(Exception):
    """Somebody pressed Cancel before there was anything to show."""


class Watcher:
    """Whether somebody still wants an edit: it ends by Cancel, by its time, or when nobody looks any more."""

    def __init__(self, most_seconds: float = MOST_SECONDS) -> None:
        self._cancel = threading.Event()
        self._deadline: float | None = None
        self._most_seconds = most_seconds
        self._seen = time.monotonic()

    def cancel(self) -> None:
        """End it with what there is."""
        self._cancel.set()

    def look(self) -> None:
        """Say that somebody is there."""
        self._seen = time.monotonic()

    def start(self) -> None:
        """Let the time run: waiting does not count."""
        self._deadline = time.monotonic() + self._most_seconds

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody pressed Cancel."""
        return self._cancel.is_set()

    @property
    def is_over(self) -> bool:
        """Whether the edit is to end."""
        now = time.monotonic()
        is_late = self._deadline is not None and now > self._deadline
        return self._cancel.is_set() or is_late or now - self._seen > GONE_SECONDS
