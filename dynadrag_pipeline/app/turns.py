"""One edit at a time: a queue whose places can be seen."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from .limits import MOST_WAITING


class Turns:
    """A queue of edits. Whoever is first works; the others wait, and can say how many are before them."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self._queue: deque[Turn] = deque()
        self._moved = threading.Condition()

    def ask(self) -> Turn:
        """Take a place at the end.

        Raises:
            ValueError: if too many wait already.
        """
        with self._moved:
            if len(self._queue) > self.most_waiting:
                raise ValueError(f"Too many edits are waiting ({self.most_waiting}): try again in a minute.")
            turn = Turn(self)
            self._queue.append(turn)
            return turn

    def before(self, turn: Turn, timeout: float = 0.0) -> int:
        """How many are before a turn, after waiting for a move if there are any.

        Args:
            turn ([`Turn`]): that was asked for, and not left.
            timeout (`float`, *optional*, defaults to 0): seconds to wait at most.

        Returns:
            `int`: 0 for whoever may work.
        """
        with self._moved:
            if timeout and self._queue.index(turn):
                self._moved.wait(timeout)
            return self._queue.index(turn)

    def leave(self, turn: Turn) -> None:
        """Give a place up, wherever it is."""
        with self._moved:
            self._queue.remove(turn)
            self._moved.notify_all()


class Turn:
    """A place in the queue, held for as long as its context."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.turns.leave(self)

    def before(self, timeout: float = 0.0) -> int:
        """How many edits are before this one."""
        return self.turns.before(self, timeout)
