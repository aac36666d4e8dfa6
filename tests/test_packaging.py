"""What is installed, pinned and promised: the files round the packages, and what the documents say of them."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import shutil
import tarfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import setuptools
from PIL import Image
from safetensors import safe_open
from setuptools import build_meta

import dynadrag_pipeline
from dynadrag_pipeline import EMBEDDED_CHECKPOINT, EMBEDDED_MOTION_PREDICTOR, DynaDragPipeline
from dynadrag_pipeline.cli import build_parser

ROOT = Path(__file__).parents[1]
HOW_TO = (
    "docs/how_to/points_and_masks.md",
    "docs/how_to/it_did_not_move.md",
    "docs/how_to/callback.md",
    "docs/how_to/memory_and_time.md",
)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/README.md",
    *HOW_TO,
    "docs/architecture.md",
    "docs/notebook/experiments.md",
    "docs/hub.md",
    "docs/modular.md",
    "docs/notebook/motion_prediction.md",
    "examples/portraits_128/README.md",
    "integrations/comfyui/README.md",
)
OUR_PACKAGES = {"conversion", "dynadrag_pipeline", "motion_predictor"}
OUR_PATH = re.compile(r"(?<![\w/.-])(?:\.ci|docs|examples|tests|dynadrag_pipeline|motion_predictor)/[\w./-]*\w")
BESIDE_THE_PACKAGES = ("benchmarks", "docs", "examples", "integrations", "tests")
AT_THE_TOP = ("setup.py", "pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "CITATION.cff", ".ci/run")
LINK = re.compile(r"\]\(([^)]+)\)|src=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """What setup.py passes to setuptools."""
    arguments: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
        runpy.run_path("setup.py")
    return arguments


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What setuptools puts into a source distribution: from path to content, without the folder at its top.

    It is built in a copy, since setuptools leaves its notes beside the sources.
    """
    folder: Path = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".venv", ".git", ".*_cache", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "clone", ignore=ignored)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder / "clone")
        name = build_meta.build_sdist(str(folder))
    with tarfile.open(folder / name) as archive:
        members = [member for member in archive if member.isfile()]
        return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    """Tested version of each package, by its normalised name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {_normalised(name): version for name, version in pins}


def test_installs_the_packages_and_nothing_else(declared: dict[str, Any]) -> None:
    top_level = {package.split(".")[0] for package in declared["packages"]}
    assert {"dynadrag_pipeline", "motion_predictor"} <= top_level <= OUR_PACKAGES


def test_installs_all_files_of_the_embedded_weights(declared: dict[str, Any]) -> None:
    embedded = (EMBEDDED_CHECKPOINT, EMBEDDED_MOTION_PREDICTOR)
    files = {path for folder in embedded for path in folder.rglob("*") if path.is_file()}
    assert EMBEDDED_CHECKPOINT / "model_index.json" in files
    assert EMBEDDED_MOTION_PREDICTOR / "config.json" in files
    assert files <= _packaged_files(declared)


def test_the_text_encoder_has_the_names_that_all_versions_of_transformers_read() -> None:
    """They take weights of this form since there is CLIP; those without the first level, only since 5.6."""
    with safe_open(EMBEDDED_CHECKPOINT / "text_encoder" / "model.safetensors", framework="pt") as weights:
        assert [name for name in weights.keys() if not name.startswith("text_model.")] == []  # noqa: SIM118


def test_installs_the_markers_of_type_hints(declared: dict[str, Any]) -> None:
    markers = {ROOT / package / "py.typed" for package in ("dynadrag_pipeline", "motion_predictor")}
    assert markers <= _packaged_files(declared)


def test_a_source_distribution_has_what_a_clone_has(source_distribution: dict[str, bytes]) -> None:
    beside = [path for folder in BESIDE_THE_PACKAGES for path in (ROOT / folder).rglob("*") if path.is_file()]
    named = {str(path.relative_to(ROOT)) for path in beside if path.suffix != ".pyc"}
    weights = {str(path.relative_to(ROOT)) for path in EMBEDDED_CHECKPOINT.rglob("*") if path.is_file()}
    assert {"tests/conftest.py", "docs/images/demo.png"} <= named
    assert named | weights | {*AT_THE_TOP, *DOCUMENTS} <= source_distribution.keys()
    assert [name for name in source_distribution if name.endswith(".pyc")] == []


def test_the_description_for_a_package_index_has_no_links_to_files(source_distribution: dict[str, bytes]) -> None:
    described = message_from_bytes(source_distribution["PKG-INFO"]).get_payload()
    assert "docs/architecture.md tells the whole way" in described
    assert "[DynaDrag](https://arxiv.org/abs/2601.00542)" in described
    assert "What `make demo` writes" not in described  # the caption of a picture
    assert [link for link, _ in LINK.findall(described) if "://" not in link] == []
    assert "![" not in described


def test_command_line_is_a_function_that_exists(declared: dict[str, Any]) -> None:
    (script,) = declared["entry_points"]["console_scripts"]
    module, function = script.removeprefix("dynadrag=").split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_newest_entry_of_the_changelog_is_this_version(declared: dict[str, Any]) -> None:
    entries = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(entry for entry in entries if entry != "Unreleased") == declared["version"]


def test_every_requirement_has_a_tested_version(declared: dict[str, Any], constraints: dict[str, str]) -> None:
    requirements = [*declared["install_requires"], *declared["extras_require"]["dev"]]
    names = {_normalised(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in requirements}
    assert "torch" in names
    assert names <= constraints.keys()


def test_constraints_are_plain_versions(constraints: dict[str, str]) -> None:
    """No tags of local builds such as `+cpu`, which most package indexes do not have."""
    assert {name: version for name, version in constraints.items() if not re.fullmatch(r"[\d.]+", version)} == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_points_to_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [(first or second).split("#")[0] for first, second in LINK.findall(text)]
    local = [(ROOT / document).parent / link for link in links if link and "://" not in link]
    paths = [ROOT / path for path in OUR_PATH.findall(text)]
    assert local or paths or document == "CHANGELOG.md"
    assert [str(path) for path in [*local, *paths] if not path.exists()] == []


@pytest.mark.parametrize("document", ["README.md", *HOW_TO])
def test_documents_call_the_pipeline_with_arguments_that_it_has(document: str) -> None:
    blocks = _code_blocks(document, "python")
    assert blocks
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    edits = [call for call in calls if ast.unparse(call.func) == "pipe"]
    used = {key.arg for call in edits for key in call.keywords if key.arg}
    methods = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute) and _is_pipe(call.func.value)}
    assert edits
    assert used <= inspect.signature(DynaDragPipeline.__call__).parameters.keys()
    assert [name for name in methods if not hasattr(DynaDragPipeline, name)] == []


def test_readme_imports_names_that_exist() -> None:
    nodes = [node for block in _code_blocks("README.md", "python") for node in ast.walk(ast.parse(block))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "dynadrag_pipeline"]
    names = {alias.name for node in imports for alias in node.names}
    assert "DynaDragPipeline" in names
    assert [name for name in names if not hasattr(dynadrag_pipeline, name)] == []


@pytest.mark.parametrize("document", HOW_TO)
def test_code_of_a_how_to_page_runs_from_the_first_block_to_the_last(
    document: str, pipe: DynaDragPipeline, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pipeline of random weights, in a folder that has what the page says there is."""
    monkeypatch.chdir(tmp_path)
    portrait = Image.radial_gradient("L").convert("RGB")  # 256 x 256, as the demo's
    (tmp_path / "demo").mkdir()
    portrait.save("demo/hopper.png")
    for instruction in _code_blocks(document, "json"):
        (tmp_path / "smile.json").write_text(instruction)
    quickly = DynaDragPipeline(**pipe.components, recommended_settings=quick)
    quickly.set_progress_bar_config(disable=True)
    names: dict[str, Any] = {"pipe": quickly, "portrait": portrait}
    for block in _code_blocks(document, "python"):
        exec(compile(block, document, "exec"), names)


def test_readme_names_options_that_the_pipeline_has() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"\w+", row)}
    assert {"mask", "max_iterations"} <= names <= inspect.signature(DynaDragPipeline.__call__).parameters.keys()


@pytest.mark.parametrize("document", ["README.md", *HOW_TO])
def test_commands_of_documents_are_understood(document: str) -> None:
    lines = "\n".join(_code_blocks(document, "bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dynadrag ")]
    assert commands or document != "README.md"
    for command in commands:
        build_parser().parse_args(command)


def test_make_targets_that_documents_name_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {name for document in DOCUMENTS for name in _make_targets((ROOT / document).read_text())}
    assert {"demo", "test", "lint"} <= named <= set(targets)


def _packaged_files(declared: dict[str, Any]) -> set[Path]:
    """The files beside the modules that setuptools would install."""
    command = setuptools.Distribution(declared).get_command_obj("build_py")
    command.ensure_finalized()
    return {ROOT / folder / file for _, folder, _, files in command.data_files for file in files}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _code_blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def _make_targets(text: str) -> list[str]:
    return re.findall(r"(?:`|^)make (?:[A-Z]+=\S+ )*([a-z]+)", text, re.MULTILINE)


def _is_pipe(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "pipe"
