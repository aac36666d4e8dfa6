"""The code that travels with weights: a module, and all that it needs of this project, as one file of source.

From the Hub, diffusers fetches the file that an index names, and one step of what that file imports beside it. So a
repository's code has to be in one piece. It is put together from the installed sources whenever something is saved,
and is read by people before they trust it: sources are joined as they stand, comments included, never rewritten.
"""

from __future__ import annotations

import ast
import textwrap
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from typing import Any

PACKAGES = ("dynadrag_pipeline", "motion_predictor")

# The motion predictor is a component, whose class comes from the file beside its weights: a second class of the same
# name in the pipeline's file would only be mistaken for it.
STAND_INS = {("motion_predictor", "MotionPredictorModel"): ("diffusers", "ModelMixin")}

HEADER = """\
# Put together from the sources of dynadrag {version} (Apache-2.0), to load where that package is not installed:
# {modules}.
# Change the package instead of this file.
"""


@lru_cache
def self_contained(module: str) -> str:
    """Source of `module` and of the modules of this project that it imports, as one file without relative imports.

    Args:
        module (`str`): full name, such as `"dynadrag_pipeline.pipeline_dynadrag"`.

    Raises:
        ValueError: if a module can't be joined to the others: it imports from this project inside a function or under
            another name, or gives a name that is taken a different meaning.

    Example:
        >>> source = self_contained("dynadrag_pipeline.point_selection")
        >>> "def sample_patches" in source, "from .motion_supervision" in source
        (True, False)
    """
    parts: dict[str, _Part] = {}
    _collect(module, parts)
    _check_names(parts)
    imports = _joined({line for part in parts.values() for line in part.imports})
    try:
        installed = version("dynadrag")
    except PackageNotFoundError:  # run from a source tree that is not installed
        installed = "0.0.0"
    named = textwrap.fill(", ".join(parts), width=115, subsequent_indent="# ")
    header = HEADER.format(version=installed, modules=named)
    blocks = [f"# ---- {name} ----\n\n{part.body}" for name, part in parts.items()]
    return "\n\n\n".join(["\n".join([header, *imports]), *blocks]) + "\n"


class _Part:
    """One module: what it imports from outside and from this project, what it defines, and its text without both."""

    def __init__(self, module: str) -> None:
        self.module = module
        source = _source(module)
        tree = ast.parse(source)
        self.imports: set[str] = set()
        self.needs: list[str] = []
        self.names: dict[str, str] = {}
        removed: list[ast.stmt] = []
        if ast.get_docstring(tree) is not None:
            removed.append(tree.body[0])
        for statement in tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                removed.append(statement)
                self._take_import(statement)
            else:
                self._refuse_hidden_imports(statement)
                for name in _defined(statement):
                    self.names[name] = ast.unparse(statement)
        lines = source.splitlines()
        for statement in reversed(removed):
            del lines[statement.lineno - 1 : statement.end_lineno]
        self.body = "\n".join(lines).strip()

    def _take_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        home = self._home(statement)
        if home is None:
            self.imports.update(_single_imports(statement))
            return
        for alias in statement.names:
            stand_in = STAND_INS.get((home, alias.name))
            if alias.asname is not None:
                raise ValueError(
                    f"`{alias.name}` must keep its name where `{self.module}` imports it, got `{alias.asname}`."
                )
            if stand_in is not None:
                self.imports.add(f"from {stand_in[0]} import {stand_in[1]} as {alias.name}")
            elif home not in self.needs:
                self.needs.append(home)

    def _home(self, statement: ast.Import | ast.ImportFrom) -> str | None:
        """The module of this project that an import takes from; `None` if it is of another."""
        if isinstance(statement, ast.Import):
            name = statement.names[0].name
        else:
            name = resolve_name("." * statement.level + (statement.module or ""), self.module.rpartition(".")[0])
        return name if name.split(".")[0] in PACKAGES else None

    def _refuse_hidden_imports(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and self._home(node) is not None:
                raise ValueError(
                    f"`{self.module}` must import modules of this project at the top of its file, got an import in "
                    f"line {node.lineno}."
                )


def _source(module: str) -> str:
    """A module's text, from wherever the package is installed."""
    loader: Any = getattr(find_spec(module), "loader", None)
    source = loader.get_source(module) if hasattr(loader, "get_source") else None
    if source is None:
        raise ValueError(f"`{module}` must be a module that is installed with its source, got none.")
    return source


def _collect(module: str, parts: dict[str, _Part]) -> None:
    """Read a module after those that it needs, each once."""
    if module in parts:
        return
    part = _Part(module)
    for needed in part.needs:
        _collect(needed, parts)
    parts[module] = part


def _single_imports(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """One line for each imported name, so that those of several modules can be joined."""
    names = [alias.name if alias.asname is None else f"{alias.name} as {alias.asname}" for alias in statement.names]
    source = f"from {statement.module} import " if isinstance(statement, ast.ImportFrom) else "import "
    return [source + name for name in names]


def _joined(imports: set[str]) -> list[str]:
    """The lines of [`_single_imports`], with one line for all names of a source."""
    future = "from __future__ import annotations"
    plain = sorted(line for line in imports if line.startswith("import "))
    sources: dict[str, list[str]] = {}
    for line in sorted(imports - {future, *plain}):
        source, _, name = line.partition(" import ")
        sources.setdefault(source, []).append(name)
    return [future, "", *plain, *(f"{source} import {', '.join(names)}" for source, names in sources.items())]


def _defined(statement: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [
        node.id for target in targets if target is not None for node in ast.walk(target) if isinstance(node, ast.Name)
    ]


def _check_names(parts: dict[str, _Part]) -> None:
    """Raise if one name would mean two things in the file."""
    meanings: dict[str, tuple[str, str]] = {}
    for module, part in parts.items():
        imported = {line.split()[-1]: line for line in part.imports}
        for name, meaning in {**imported, **part.names}.items():
            other, known = meanings.setdefault(name, (module, meaning))
            if known != meaning:
                raise ValueError(f"`{name}` must mean one thing in one file, got two, of `{other}` and of `{module}`.")
