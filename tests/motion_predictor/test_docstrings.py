"""The examples in the docstrings of motion prediction run, and public functions say what they take."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import motion_predictor

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(motion_predictor.__path__, "motion_predictor.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_arguments_are_described_with_their_types(name: str):
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else None
        for section in ("Args", "Attributes"):
            _, found, rest = (docstring or "").partition(f"{section}:\n")
            entries = [line for line in rest.split("\n\n")[0].splitlines() if line[4:5].strip()] if found else []
            assert all(" (`" in entry for entry in entries), (node.name, entries)
