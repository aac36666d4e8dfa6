"""The parts of the page that handlers update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Parts:
    """Components by what they are for; filled in by the layout."""

    stage: Any = None
    status: Any = None
    run: Any = None
    cancel: Any = None
    prompt: Any = None
    words: Any = None
    gallery: Any = None
    files: Any = None
    command: Any = None
    use: Any = None
    go_on: Any = None
    undo: Any = None
    redo: Any = None
    options: list[Any] = field(default_factory=list)

    @property
    def shown(self) -> list[Any]:
        """What changes with the picture and the edit that is shown."""
        names = ("stage", "status", "words", "gallery", "files", "command", "use", "go_on", "undo", "redo", "prompt")
        return [getattr(self, name) for name in names]
