"""ComfyUI's contract with nodes, as its documentation has it, and a runner that keeps it: no ComfyUI is needed.

docs.comfy.org, "Custom nodes": properties, datatypes, more on inputs, lifecycle; and the format of API workflows.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
OPTIONS = {
    "default", "defaultInput", "forceInput", "lazy", "tooltip", "min", "max", "step", "round", "label_on", "label_off",
    "multiline", "placeholder", "dynamicPrompts", "control_after_generate", "options", "image_upload",
}  # fmt: skip

Nodes = Mapping[str, type[Any]]
Prompt = dict[str, dict[str, Any]]


class LoadImage:
    """ComfyUI's own, as far as a workflow shows it. The picture and the mask are set by a test."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"
    CATEGORY = "image"
    image, mask = torch.zeros(1, 64, 64, 3), torch.zeros(1, 64, 64)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (["portrait.png"], {"image_upload": True})}}

    def load(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image * 1, self.mask * 1  # made here, so in inference mode


class SaveImage:
    """ComfyUI's own, which keeps the pictures here."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    CATEGORY = "image"
    OUTPUT_NODE = True
    saved: list[torch.Tensor] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images: torch.Tensor, filename_prefix: str) -> dict[str, Any]:
        self.saved.append(images)
        return {"ui": {"images": []}}


class PreviewImage(SaveImage):
    """ComfyUI's own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}

    def save(self, images: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
        return super().save(images, "")


CORE: dict[str, type[Any]] = {"LoadImage": LoadImage, "SaveImage": SaveImage, "PreviewImage": PreviewImage}


def load_pack(folder: Path) -> ModuleType:
    """Import a folder as ComfyUI imports one of `custom_nodes`: by its path, under a name that is no package's."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def check_node(node: type[Any]) -> None:
    """Assert what ComfyUI takes for granted of a node's class."""
    assert isinstance(inspect.getattr_static(node, "INPUT_TYPES"), classmethod) or "INPUT_TYPES" not in vars(node)
    inputs = node.INPUT_TYPES()
    assert "required" in inputs
    assert inputs.keys() <= {"required", "optional", "hidden"}
    for name, given in (inputs["required"] | inputs.get("optional", {})).items():
        assert name.isidentifier()
        _check_input(given)
    types = node.RETURN_TYPES
    assert isinstance(types, tuple)
    assert all(isinstance(each, str) for each in types)
    for beside in ("RETURN_NAMES", "OUTPUT_TOOLTIPS"):
        assert len(getattr(node, beside, types)) == len(types)
    assert isinstance(node.CATEGORY, str)
    function = inspect.signature(getattr(node, node.FUNCTION))
    required = {f"{name}" for name in inputs["required"]}
    known = required | set(inputs.get("optional", {})) | set(inputs.get("hidden", {}))
    without_default = {
        name for name, each in function.parameters.items() if each.default is each.empty and name != "self"
    }
    assert without_default <= required
    assert known <= set(function.parameters)
    for name in ("IS_CHANGED", "VALIDATE_INPUTS"):
        if hasattr(node, name):
            kinds = inspect.signature(getattr(node, name)).parameters.values()
            assert {each.name for each in kinds if each.kind is not each.VAR_KEYWORD} <= known


def _check_input(given: Any) -> None:
    assert isinstance(given, tuple)
    assert 1 <= len(given) <= 2
    kind, options = given[0], given[1] if len(given) == 2 else {}
    assert options.keys() <= OPTIONS
    if isinstance(kind, list):
        assert kind
        assert options.get("default", kind[0]) in kind
        return
    assert isinstance(kind, str)
    assert kind.isupper()
    if kind in WIDGETS and "default" in options:
        assert type(options["default"]) is WIDGETS[kind]
    if "min" in options and "max" in options:
        assert options["min"] <= options["default"] <= options["max"]


def validate(prompt: Prompt, nodes: Nodes) -> list[str]:
    """What ComfyUI would find wrong with a workflow before it runs it."""
    errors = (
        []
        if any(getattr(nodes[each["class_type"]], "OUTPUT_NODE", False) for each in prompt.values())
        else ["no output"]
    )
    for place, each in prompt.items():
        node = nodes[each["class_type"]]
        inputs = node.INPUT_TYPES()
        errors += [f"{place}: {name} is missing" for name in inputs["required"] if name not in each["inputs"]]
        declared = inputs["required"] | inputs.get("optional", {})
        own_check = getattr(node, "VALIDATE_INPUTS", None)
        checks_itself = inspect.signature(own_check).parameters if own_check else {}
        for name, value in each["inputs"].items():
            if name not in declared:
                errors.append(f"{place}: {name} is no input of {each['class_type']}")
                continue
            kind, options = declared[name][0], declared[name][1] if len(declared[name]) == 2 else {}
            if isinstance(value, list):
                if nodes[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]] != kind:
                    errors.append(f"{place}: {name} is linked to another type")
            elif isinstance(kind, list):
                if value not in kind:
                    errors.append(f"{place}: {name} is not in its list")
            elif kind not in WIDGETS:
                errors.append(f"{place}: {name} must be linked")
            elif name not in checks_itself and (
                not isinstance(value, WIDGETS[kind])
                or ("min" in options and value < options["min"])
                or ("max" in options and value > options["max"])
            ):
                errors.append(f"{place}: {name} has a value that it does not take")
        if own_check:
            known = _known_before(each["inputs"])
            answer = own_check(**{name: value for name, value in known.items() if name in checks_itself})
            errors += [] if answer is True else [f"{place}: {answer}"]
    return errors


def _known_before(inputs: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI knows of inputs before anything is run: nothing of those that are linked."""
    return {name: None if isinstance(value, list) else value for name, value in inputs.items()}


def fingerprints(prompt: Prompt, nodes: Nodes) -> dict[str, Any]:
    """What the nodes of a workflow say of whether they changed. Those that raise are run each time, unseen."""
    return {
        place: nodes[each["class_type"]].IS_CHANGED(**_known_before(each["inputs"]))
        for place, each in prompt.items()
        if hasattr(nodes[each["class_type"]], "IS_CHANGED")
    }


def run(prompt: Prompt, nodes: Nodes) -> dict[str, tuple[Any, ...]]:
    """Run a workflow as ComfyUI does: in inference mode, each node after those that it is linked to.

    Returns:
        `dict[str, tuple]`: what each node answered.
    """
    answers: dict[str, tuple[Any, ...]] = {}

    def answer_of(place: str) -> tuple[Any, ...]:
        if place not in answers:
            node = nodes[prompt[place]["class_type"]]
            given = {
                name: answer_of(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in prompt[place]["inputs"].items()
            }
            answer = getattr(node(), node.FUNCTION)(**given)
            answers[place] = answer if isinstance(answer, tuple) else ()
            assert len(answers[place]) == len(node.RETURN_TYPES)
            for kind, value in zip(node.RETURN_TYPES, answers[place], strict=True):
                check_value(kind, value)
        return answers[place]

    assert fingerprints(prompt, nodes) == fingerprints(prompt, nodes)
    with torch.inference_mode():
        for place in prompt:
            answer_of(place)
    return answers


def check_value(kind: str, value: Any) -> None:
    """Assert that a value is of a datatype of ComfyUI's."""
    if kind in ("IMAGE", "MASK"):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == torch.float32
        assert value.ndim == (4 if kind == "IMAGE" else 3)
        assert kind == "MASK" or value.shape[-1] == 3
        assert value.min() >= 0
        assert value.max() <= 1
        assert value.device.type == "cpu"
    elif kind in WIDGETS:
        assert isinstance(value, WIDGETS[kind])
