"""Folders that appear whole or not at all."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder_of(text: str) -> Path:
    """The folder that an option of a command names: `type=` of argparse. An empty name is not the present folder.

    Args:
        text (`str`): what was given.

    Raises:
        argparse.ArgumentTypeError: if there is no name.

    Example:
        >>> folder_of("runs/first").name
        'first'
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"a folder's name is wanted; got {text!r}")
    return Path(text)


@contextmanager
def output_folder(path: str | Path, names: set[str], force: bool = False) -> Iterator[Path]:
    """Make a folder that takes its name only when the block ends without an exception.

    The block is given a folder of the same name inside a temporary one beside it, on the same disk. If it fails or is
    interrupted, that is removed, and an older folder at `path` stays as it was.

    Args:
        path (`str` or `Path`): of the folder; one that is there must be empty, or made for replacing by `force`.
        names (`set[str]`): of the files and folders that may lie in it; one with others in it is never replaced.
        force (`bool`, defaults to `False`): replace the folder of an earlier conversion.

    Raises:
        ValueError: if `path` is there and may not be replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with output_folder(f"{home}/model", {"config.json"}) as folder:
        ...         _ = (folder / "config.json").write_text("{}")
        ...     sorted(path.name for path in Path(home, "model").iterdir())
        ['config.json']
    """
    path = Path(path).expanduser().absolute()
    check_output_folder(path, names, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    partial.mkdir()
    new = partial / path.name
    new.mkdir()
    try:
        yield new
        if path.exists():
            path.rename(replaced)
        try:
            new.rename(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def check_output_folder(path: str | Path, names: set[str], force: bool) -> None:
    """Raise the ValueError of [`output_folder`], before the work that leads to it."""
    path = Path(path).expanduser().absolute()
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"`{path}` must be a new folder, got a file.")
    found = {entry.name for entry in path.iterdir()}
    if found and not force:
        raise ValueError(f"`{path}` is already there: pass `force` to replace it, or choose another folder.")
    if found - names:
        raise ValueError(
            f"`{path}` holds {', '.join(sorted(found - names)[:4])}, which no earlier conversion wrote: choose "
            "another folder."
        )
