"""What code a figure was made by: a hash that changes with whatever may change the figure, and with nothing else.

A version number says too little of a clone that is worked on, and the state of a repository too much: a word in the
docs would make a run of days begin anew. What counts is the code that edits and measures, as Python reads it: without
comments, docstrings and layout. It is the code that travels to the Hub with a pipeline, which is all of the engine and
the motion predictor's network, with the rooms of the evaluation that make pictures and figures; and the versions of
the packages underneath.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import lru_cache
from types import ModuleType

from motion_predictor.common.remote_code import self_contained

from ..provenance import provenance_of


@lru_cache
def code_version(*modules: ModuleType) -> str:
    """Hash of the engine's code, of modules, and of the versions of what they stand on.

    Args:
        modules (`ModuleType`): that figures depend on beside the engine.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    sources = [self_contained("dynadrag_pipeline.pipeline_dynadrag"), *(inspect.getsource(each) for each in modules)]
    versions = {name: version for name, version in provenance_of("", 0)["versions"].items() if name != "dynadrag"}
    parts = [*map(meaning, sources), repr(sorted(versions.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def meaning(source: str) -> str:
    r"""A module's code as Python reads it.

    Example:
        >>> meaning("def half(x):\n    'Half.'\n    return x / 2") == meaning("def half(x): return (x / 2)  # of it")
        True
        >>> meaning("x / 2") == meaning("x / 3")
        False
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            is_docstring = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[is_docstring:]
    return ast.dump(tree)
