"""Code that travels: one file that is whole, reads as the package does, and is refused where joining would lie."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import zipfile
from types import ModuleType

import pytest
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils.dynamic_modules_utils import find_pipeline_class, get_relative_imports

from dynadrag_pipeline.drag_engine import DragEngine
from dynadrag_pipeline.kv_replacement import KVBank
from dynadrag_pipeline.pipeline_dynadrag import DynaDragPipeline
from motion_predictor import MotionPredictorModel, points
from motion_predictor.common import remote_code
from motion_predictor.common.remote_code import self_contained

PIPELINE = "dynadrag_pipeline.pipeline_dynadrag"
PREDICTOR = "motion_predictor.modeling_motion_predictor"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a source to a file, and run it as a module of its own."""

    def run(source: str, name: str = "travelled") -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return run


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package of given modules, which stands in for this project's."""

    def make(zipped: bool = False, **sources: str) -> None:
        home = tmp_path / "site"
        files = {"__init__.py": "", **{f"{name}.py": source for name, source in sources.items()}}
        if zipped:
            home = tmp_path / "site.zip"
            with zipfile.ZipFile(home, "w") as archive:
                for name, source in files.items():
                    archive.writestr(f"travelling/{name}", source)
        else:
            (home / "travelling").mkdir(parents=True)
            for name, source in files.items():
                (home / "travelling" / name).write_text(source)
        monkeypatch.syspath_prepend(str(home))
        monkeypatch.setattr(remote_code, "PACKAGES", ("travelling",))

    yield make
    self_contained.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "travelling"]:
        del sys.modules[name]


@pytest.mark.parametrize("module", [PIPELINE, PREDICTOR])
def test_the_file_imports_nothing_of_this_project(module):
    tree = ast.parse(self_contained(module))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    sources = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert "torch" in sources
    assert not {source for source in sources if source.split(".")[0] in remote_code.PACKAGES}
    assert all(node.level == 0 for node in imports if isinstance(node, ast.ImportFrom))


@pytest.mark.parametrize("module", [PIPELINE, PREDICTOR])
def test_diffusers_finds_no_further_file_to_fetch(module, tmp_path):
    (tmp_path / "code.py").write_text(self_contained(module))
    assert get_relative_imports(tmp_path / "code.py") == []


def test_classes_and_functions_are_there_word_for_word():
    source = self_contained(PIPELINE)
    for part in (DynaDragPipeline, DragEngine, KVBank, points.scale_points):
        assert inspect.getsource(part) in source


def test_it_runs_and_defines_one_pipeline(load):
    module = load(self_contained(PIPELINE))
    assert find_pipeline_class(module).__name__ == "DynaDragPipeline"
    assert issubclass(module.DynaDragPipeline, DiffusionPipeline)
    assert module.DynaDragPipeline is not DynaDragPipeline


def test_the_predictor_s_class_is_left_to_the_file_beside_its_weights(load):
    assert load(self_contained(PIPELINE)).MotionPredictorModel is ModelMixin
    assert issubclass(load(self_contained(PREDICTOR)).MotionPredictorModel, ModelMixin)


def test_a_predictor_s_file_is_all_that_its_class_needs(load):
    module = load(self_contained(PREDICTOR), "modeling_motion_predictor")
    config = {"hidden_channels_spatial": 8, "hidden_channels_translator": 16, "num_translator_blocks": 2}
    ours, theirs = MotionPredictorModel(**config), module.MotionPredictorModel(**config)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_modules_come_after_those_that_they_need(package, load):
    package(first="from .second import VALUE\n\nDOUBLE = 2 * VALUE\n", second="VALUE = 21\n")
    assert load(self_contained("travelling.first")).DOUBLE == 42


def test_a_module_that_two_others_need_is_there_once(package):
    package(
        top="from .left import a\nfrom .right import b\n",
        left="from .base import VALUE\n\n\ndef a():\n    return VALUE\n",
        right="from travelling.base import VALUE\n\n\ndef b():\n    return VALUE\n",
        base="VALUE = 1\n",
    )
    assert self_contained("travelling.top").count("VALUE = 1") == 1


def test_comments_stay_and_imports_of_several_lines_go(package):
    package(
        top='"""Doc."""\n\nfrom .base import (\n    VALUE,\n)\n\n# Why it is so.\nOTHER = VALUE  # and this\n',
        base="VALUE = 1\n",
    )
    source = self_contained("travelling.top")
    assert "# Why it is so.\nOTHER = VALUE  # and this" in source
    assert ast.parse(source)
    assert ".base import" not in source


def test_sources_are_read_from_a_zip_too(package, load):
    package(zipped=True, first="from .second import VALUE\n", second="VALUE = 3\n")
    assert load(self_contained("travelling.first")).VALUE == 3


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"top": "def late():\n    from .base import VALUE\n", "base": ""},
            r"`travelling\.top` must import .* at the top of its file, got an import in line 2\.",
        ),
        (
            {"top": "from .base import VALUE as other\n", "base": "VALUE = 1\n"},
            r"`VALUE` must keep its name where `travelling\.top` imports it, got `other`\.",
        ),
        (
            {"top": "from .base import VALUE\n\nx = 1\n", "base": "x = 2\nVALUE = x\n"},
            r"`x` must mean one thing in one file, got two, of `travelling\.base` and of `travelling\.top`\.",
        ),
        (
            {"top": "from .base import f\nfrom math import log\n", "base": "def log(): ...\n\n\ndef f(): ...\n"},
            r"`log` must mean one thing in one file, got two, of `travelling\.base` and of `travelling\.top`\.",
        ),
        ({"top": "from .gone import VALUE\n"}, r"`travelling\.gone` must be a module .* with its source, got none\."),
    ],
)
def test_what_can_t_be_joined_truthfully_is_refused(package, sources, message):
    package(**sources)
    with pytest.raises(ValueError, match=message):
        self_contained("travelling.top")


def test_it_says_what_it_was_made_from():
    head = self_contained(PIPELINE).partition("\n\n")[0]
    assert "Apache-2.0" in head
    assert PIPELINE in head
