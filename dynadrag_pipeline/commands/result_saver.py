"""Save the results of long work, elsewhere if need be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from motion_predictor.common.command_errors import NotSaved, one_line


@dataclass
class ResultSaver:
    """Saves results where they are to be, or, if that fails after the work is done, in a folder of its own.

    Attributes:
        written (`list[Path]`): what was saved, as it comes.
    """

    written: list[Path]
    elsewhere: Path | None = None
    problems: list[str] = field(default_factory=list)

    def save(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file, whole or not at all."""
        from motion_predictor.common.atomic_file import atomic_file

        def write_to(place: Path) -> None:
            with atomic_file(place) as file:
                write(file)

        self._save(path, write_to)

    def save_folder(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Write a folder."""
        self._save(path, write)

    def raise_if_elsewhere(self) -> None:
        """Say what is not where it was to be."""
        if self.problems:
            raise NotSaved("; ".join(self.problems))

    def _save(self, path: Path, write_to: Callable[[Path], Any]) -> None:
        try:
            write_to(path)
            self.written.append(path)
        except OSError as error:
            self._save_elsewhere(path, write_to, one_line(error))

    def _save_elsewhere(self, path: Path, write_to: Callable[[Path], Any], problem: str) -> None:
        try:
            self.elsewhere = self.elsewhere or Path(tempfile.mkdtemp(prefix="dynadrag-"))
            write_to(self.elsewhere / path.name)
            self.written.append(self.elsewhere / path.name)
            self.problems.append(f"cannot write `{path}` ({problem}): it is in `{self.elsewhere}`")
        except OSError as error:
            self.problems.append(f"cannot write `{path}` ({problem}), nor elsewhere ({one_line(error)})")
