"""What is remembered of each visitor, in memory and in a folder of theirs, until they leave or are idle for long."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .edits import Base, Edit, Watcher
from .limits import IDLE_SECONDS, MOST_EDITS, MOST_VISITORS, SIGN_SECONDS


@dataclass(eq=False)
class Made:
    """An edit with its files; two are the same only if they are one.

    Attributes:
        edit ([`Edit`]): that was made.
        files (`dict[str, Path]`): by what people call them.
    """

    edit: Edit
    files: dict[str, Path]

    @property
    def picture(self) -> Path:
        """The file of the edited picture."""
        return self.files["picture"]


@dataclass
class Visitor:
    """One tab of a browser.

    Attributes:
        folder (`Path`): of their files, whose name nobody can guess.
        base ([`Base`], *optional*): the picture that points are put on.
        scene (`Path`, *optional*): the file that shows it, by which the page knows it too.
        line (`list[Made]`): edits that can be undone and redone.
        position (`int`): how many of the line are not undone.
        gallery (`list[Made]`): all edits, the last one last.
        watcher ([`Watcher`], *optional*): of the edit that runs.
        seen (`float`): when they last did something, or an edit of theirs ended.
        sign (`float`): when their tab last gave a sign.
    """

    folder: Path
    base: Base | None = None
    scene: Path | None = None
    line: list[Made] = field(default_factory=list)
    position: int = 0
    gallery: list[Made] = field(default_factory=list)
    watcher: Watcher | None = None
    seen: float = field(default_factory=time.monotonic)
    sign: float = field(default_factory=time.monotonic)

    def see(self) -> None:
        """Note that somebody is there."""
        self.seen = self.sign = time.monotonic()

    @property
    def last(self) -> Made | None:
        """The last edit that is not undone."""
        return self.line[self.position - 1] if self.position else None

    @property
    def shown(self) -> Made | None:
        """The edit that is shown: the last one, unless its result was taken as a picture since."""
        return self.last if self.last and self.last.edit.order.base is self.base else None

    @property
    def newest_first(self) -> list[Made]:
        """The gallery as it is shown: what was just made is seen without scrolling."""
        return self.gallery[::-1]

    def put(self, base: Base) -> None:
        """Let points be put on another picture."""
        scene = self.new_path("picture.png")
        base.shown.save(scene, compress_level=1)
        if self.scene is not None:
            shutil.rmtree(self.scene.parent, ignore_errors=True)
        self.base, self.scene = base, scene

    def begin(self, base: Base) -> None:
        """Let points be put on a new picture; edits of the one before can't be undone any more."""
        self.put(base)
        self._keep([], self.gallery)

    def add(self, made: Made) -> None:
        """Keep an edit; what was undone can't be redone any more, and the oldest goes when there are too many."""
        line = [*self.line[: self.position], made]
        self._keep(line[-MOST_EDITS:], [*self.gallery, made][-MOST_EDITS:])

    def _keep(self, line: list[Made], gallery: list[Made]) -> None:
        """Keep these edits, the last of the line shown, and the files of no others."""
        before = {*self.line, *self.gallery}
        self.line, self.gallery, self.position = line, gallery, len(line)
        for old in before - {*line, *gallery}:
            shutil.rmtree(old.picture.parent, ignore_errors=True)

    def new_path(self, name: str) -> Path:
        """A path in a new folder of its own."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        return folder / name


class Visitors:
    """The visitors of the app by the key of their tab.

    Args:
        folder (`Path`): that theirs are made in.
        idle_seconds (`float`, *optional*): after which a visitor is forgotten.
    """

    def __init__(self, folder: Path, idle_seconds: float = IDLE_SECONDS) -> None:
        self.folder = folder
        self.idle_seconds = idle_seconds
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visitors)

    def of(self, key: str | None) -> Visitor:
        """The visitor of a tab; a new one, if it is new or was forgotten.

        Args:
            key (`str`, *optional*): of the tab's session.

        Raises:
            ValueError: if there are `MOST_VISITORS` already.
        """
        with self._lock:
            if str(key) in self._visitors:
                self._visitors[str(key)].see()
            self._forget_idle()
            if str(key) not in self._visitors:
                if len(self._visitors) >= MOST_VISITORS:
                    raise ValueError("Too many people are here: try again in some minutes.")
                folder = self.folder / secrets.token_hex(16)
                folder.mkdir(parents=True)
                self._visitors[str(key)] = Visitor(folder)
            return self._visitors[str(key)]

    def keep(self, scene: str) -> None:
        """Note that a tab is still open, whose picture the page knows by this name."""
        with self._lock:
            for each in self._visitors.values():
                if each.scene is not None and each.scene.parent.name == scene:
                    each.sign = time.monotonic()

    def leave(self, key: str | None) -> None:
        """A tab was closed, or lost its connection: forget the visitor once it gives no sign any more."""
        with self._lock:
            visitor = self._visitors.get(str(key))
            if visitor is not None:
                self._look_after(SIGN_SECONDS, str(key), visitor)

    def _look_after(self, seconds: float, key: str, visitor: Visitor) -> None:
        timer = threading.Timer(seconds, self._forget_if_gone, (key, visitor))
        timer.daemon = True  # the app ends without it
        timer.start()

    def _forget_if_gone(self, key: str, visitor: Visitor) -> None:
        with self._lock:
            if self._visitors.get(key) is not visitor:
                return
            left = SIGN_SECONDS - (time.monotonic() - visitor.sign)
            if left > 0:
                self._look_after(left, key, visitor)
            else:
                self._forget(key)

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for key, each in list(self._visitors.items()):
            if each.watcher is None and now - each.seen > self.idle_seconds:
                self._forget(key)

    def _forget(self, key: str) -> None:
        visitor = self._visitors.pop(key, None)
        if visitor is not None:
            if visitor.watcher is not None:
                visitor.watcher.cancel()
            shutil.rmtree(visitor.folder, ignore_errors=True)
