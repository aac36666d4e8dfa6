"""The call's contract: whatever is passed, it works, or is refused by name before any work, and is left as it was."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from dynadrag_pipeline import DynaDragPipeline
from dynadrag_pipeline.modular_blocks import DynaDragBlocks
from dynadrag_pipeline.pipeline_dynadrag import DragCall
from dynadrag_pipeline.settings import DragSettings
from motion_predictor.common.checks import LONGEST_SHOWN, got
from motion_predictor.common.options import options_of
from support.tiny_models import make_motion_predictor, make_scheduler, make_text_encoder, make_unet, make_vae

SIDE = 64
ARGUMENTS = tuple(DragCall.__dataclass_fields__)
LONGEST_MESSAGE = 1200
"""Letters; the longest lists the names of all options."""


class WorkBegan(BaseException):
    """Raised in the place of the text encoder's pass, which follows the picture's encoding and the tokenizer."""


# --- values of all kinds ---


class _Raises:
    """Raises whatever is asked of it but its type."""

    def _fail(self, *_: object, **__: object) -> Any:
        raise RuntimeError("not for you")

    __repr__ = __str__ = __len__ = __bool__ = __iter__ = __getitem__ = __array__ = _fail  # type: ignore[assignment]
    __eq__ = __lt__ = __gt__ = __float__ = __int__ = __index__ = __call__ = __fspath__ = _fail  # type: ignore[assignment]
    __hash__ = object.__hash__


class RaisesOnAttributes(_Raises):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not for you")


class RaisesOnRepr:
    def __repr__(self) -> str:
        raise RuntimeError("not for you")


class RaisesOnLen(list):
    def __len__(self) -> int:
        raise RuntimeError("not for you")


class RaisesOnIteration(list):
    def __iter__(self) -> Any:
        raise RuntimeError("not for you")


class RaisesOnEquality:
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not for you")


class RaisesOnArray:
    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("not for you")


class RaisesOnBool:
    def __bool__(self) -> bool:
        raise RuntimeError("not for you")


class RaisesOnShape:
    @property
    def shape(self) -> Any:
        raise RuntimeError("not for you")


class HasOddShape:
    shape = (RaisesOnRepr(),)


class NumberThatRaises(int):
    def __int__(self) -> int:
        raise RuntimeError("not for you")

    __float__ = __index__ = __int__


class TextThatRaises(str):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not for you")

    __hash__ = str.__hash__


class MappingThatRaises(Mapping):
    def __getitem__(self, name: Any) -> Any:
        raise RuntimeError("not for you")

    __len__ = __iter__ = __getitem__  # type: ignore[assignment]


class SourceThatRaises:
    """Has what a source of motion has, or so it says."""

    needs_picture = always_arrives = False
    check = start = propose = locate = print

    @property
    def name(self) -> str:
        raise RuntimeError("not for you")


class CallbackThatRaises(PipelineCallback):
    """Does not say its tensors."""


class CallbackOfOddTensors(PipelineCallback):
    tensor_inputs = [["latents"], 5]  # type: ignore[assignment]


def _truncated_picture() -> Image.Image:
    """A picture file that ends in the middle, which Pillow finds out when it is read."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="JPEG")
    return Image.open(io.BytesIO(file.getvalue()[:1000]))


def _closed_picture() -> Image.Image:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, format="PNG")
    picture = Image.open(file)
    picture.close()
    return picture


def _holds_itself() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


def _quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3, SIDE, SIDE), 0.1, 0, torch.quint8)


def _tiny_vae() -> AutoencoderTiny:
    channels = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    return AutoencoderTiny(**channels, **blocks, latent_channels=4)


ODD: dict[str, Callable[[], Any]] = {
    # numbers
    **{
        repr(number): lambda number=number: number
        for number in (None, True, False, 0, 1, -1, 2.5, 1e308, math.nan, math.inf, -math.inf, 1j, 3, 2**63)
    },
    "10**400": lambda: 10**400,
    "-10**5000": lambda: -(10**5000),
    "fraction": lambda: Fraction(1, 3),
    "huge fraction": lambda: Fraction(10**400, 3),
    "decimal": lambda: Decimal("0.5"),
    "nan decimal": lambda: Decimal("sNaN"),
    "numpy float": lambda: np.float32(0.5),
    "numpy longdouble": lambda: np.longdouble("1e4000"),
    "numpy nan": lambda: np.float64("nan"),
    "numpy integer": lambda: np.int64(3),
    "numpy bool": lambda: np.bool_(True),
    "numpy string": lambda: np.str_("fast"),
    "numpy bytes": lambda: np.bytes_(b"fast"),
    "numpy date": lambda: np.datetime64("2020-01-01"),
    "number that raises": lambda: NumberThatRaises(1),
    # arrays
    "empty array": lambda: np.zeros(0),
    "array without dimensions": lambda: np.array(1.0),
    "bool array without dimensions": lambda: np.array(True),
    "array of points": lambda: np.array([[10.0, 20.0]]),
    "array of objects": lambda: np.array([[object(), None]], dtype=object),
    "array of dates": lambda: np.array([["2020", "2021"]], dtype="M8[D]"),
    "array of strings": lambda: np.array([["1", "2"]]),
    "array of complex": lambda: np.array([[1j, 2]]),
    "array of bool": lambda: np.ones((SIDE, SIDE), dtype=bool),
    "array of records": lambda: np.zeros((1, 2), dtype=[("x", "f4"), ("y", "f4")]),
    "masked array": lambda: np.ma.masked_equal(np.ones((1, 2)), 1),
    "matrix": lambda: np.matrix([[10.0, 20.0]]),
    "uint8 array": lambda: np.full((SIDE, SIDE, 3), 128, dtype=np.uint8),
    "int64 array": lambda: np.full((SIDE, SIDE, 3), 128),
    "nan array": lambda: np.full((SIDE, SIDE, 3), np.nan),
    "big-endian array": lambda: np.full((SIDE, SIDE, 3), 0.5, dtype=">f4"),
    "half array": lambda: np.full((SIDE, SIDE), 0.5, dtype=np.float16),
    "array of four dimensions": lambda: np.zeros((2, SIDE, SIDE, 3)),
    "array of no pictures": lambda: np.zeros((0, SIDE, SIDE, 3)),
    "reversed array": lambda: np.full((SIDE, SIDE, 3), 0.5)[::-1, ::-1],
    "endless array": lambda: np.broadcast_to(np.float32(0.5), (10**4, 10**4)),
    "array without pixels": lambda: np.zeros((SIDE, 0, 3)),
    # tensors
    "picture tensor": lambda: torch.full((3, SIDE, SIDE), 0.5),
    "tensor without dimensions": lambda: torch.tensor(1.0),
    "bool tensor": lambda: torch.tensor(True),
    "mask tensor": lambda: torch.ones(SIDE, SIDE, dtype=torch.bool),
    "empty tensor": lambda: torch.zeros(0),
    "tensor of points": lambda: torch.tensor([[10, 20]]),
    "double tensor": lambda: torch.full((3, SIDE, SIDE), 0.5, dtype=torch.float64),
    "bfloat16 tensor": lambda: torch.full((3, SIDE, SIDE), 0.5, dtype=torch.bfloat16),
    "float8 tensor": lambda: torch.ones(3, SIDE, SIDE).to(torch.float8_e4m3fn),
    "tensor with gradients": lambda: torch.full((3, SIDE, SIDE), 0.5, requires_grad=True),
    "points with gradients": lambda: torch.tensor([[10.0, 20.0]], requires_grad=True),
    "meta tensor": lambda: torch.zeros(3, SIDE, SIDE, device="meta"),
    "conjugated tensor": lambda: torch.full((1, 2), 1j).conj(),
    "sparse tensor": lambda: torch.ones(3, SIDE, SIDE).to_sparse(),
    "quantised tensor": _quantised,
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(3, SIDE), torch.ones(2, SIDE)]),
    "inference tensor": lambda: torch.inference_mode()(torch.ones)(3, SIDE, SIDE),
    "endless tensor": lambda: torch.zeros(1).expand(10**4, 10**4),
    "batch of tensors": lambda: torch.full((2, 3, SIDE, SIDE), 0.5),
    # text and bytes
    **{repr(text): lambda text=text: text for text in ("", "fast", "latents", "predicted", "pt", "\0", "\udc80")},
    "huge string": lambda: "x" * 10**5,
    "text that raises": lambda: TextThatRaises("paper"),
    "bytes": lambda: b"latents",
    "bytearray": lambda: bytearray(b"\xff" * 100),
    "memoryview": lambda: memoryview(b"paper"),
    "path": lambda: Path("picture.png"),
    # containers
    "empty list": list,
    "empty dict": dict,
    "empty set": set,
    "empty tuple": tuple,
    "range": lambda: range(2),
    "generator": lambda: (each for each in [(1, 2)]),
    "iterator": lambda: iter([(1, 2)]),
    "deque": lambda: deque([(10, 20)]),
    "points": lambda: [(10, 20)],
    "ragged points": lambda: [(10, 20), (1,)],
    "text points": lambda: [("10", "20")],
    "bool points": lambda: [(True, False)],
    "huge points": lambda: [(10**400, 1)],
    "list that holds itself": _holds_itself,
    "dict of odd keys": lambda: {1: 2, None: 3, (): 4},
    "dict of a key that raises": lambda: {RaisesOnEquality(): 1, RaisesOnRepr(): 2},
    "dict of a huge key": lambda: {"x" * 10**5: 1},
    "dict of an option": lambda: {"max_iterations": 3},
    "dict of a bad option": lambda: {"max_iterations": "three"},
    "dict of a scale": lambda: {"scale": 0.5},
    "dict of a bad scale": lambda: {"scale": RaisesOnRepr()},
    "dict of arguments of attention": lambda: {"hidden_states": 1, "attn": 2},
    "dict of boxes": lambda: {"gligen": {"boxes": 1}},
    # objects
    "object": object,
    "class": lambda: int,
    "class of its own kind": lambda: DragSettings,
    "function": lambda: len,
    "function of four": lambda: lambda pipe, index, timestep, tensors: None,
    "function of none": lambda: lambda: None,
    "module": lambda: math,
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "exception": lambda: ValueError("image"),
    "raises": _Raises,
    "raises on attributes": RaisesOnAttributes,
    "raises on repr": RaisesOnRepr,
    "raises on len": lambda: RaisesOnLen([(10, 20)]),
    "raises on iteration": lambda: RaisesOnIteration([(10, 20)]),
    "raises on equality": RaisesOnEquality,
    "raises on array": RaisesOnArray,
    "raises on bool": RaisesOnBool,
    "raises on shape": RaisesOnShape,
    "odd shape": HasOddShape,
    "mapping that raises": MappingThatRaises,
    "source that raises": SourceThatRaises,
    "callback that raises": CallbackThatRaises,
    "callback of odd tensors": CallbackOfOddTensors,
    "callbacks of nothing": lambda: MultiPipelineCallbacks([]),
    "callbacks of odd things": lambda: MultiPipelineCallbacks([5]),  # type: ignore[list-item]
    "seeded": lambda: torch.Generator().manual_seed(1),
    "settings": DragSettings,
    "network": lambda: torch.nn.Linear(1, 1),
    "vae": _tiny_vae,
    "dtype": lambda: torch.float32,
    # pictures
    "picture": lambda: Image.new("RGB", (SIDE, SIDE), (90, 60, 30)),
    "picture of one pixel": lambda: Image.new("RGB", (1, 1)),
    "picture without pixels": lambda: Image.new("RGB", (0, SIDE)),
    "black and white picture": lambda: Image.new("1", (SIDE, SIDE), 1),
    "nan picture": lambda: Image.new("F", (SIDE, SIDE), math.nan),
    "16-bit picture": lambda: Image.new("I;16", (SIDE, SIDE), 30000),
    "palette picture": lambda: Image.new("P", (SIDE, SIDE)),
    "truncated picture": _truncated_picture,
    "closed picture": _closed_picture,
}
"""Values by name, each made anew for a call, so that examples can be shown, and a change of one be seen."""

GOOD: dict[str, tuple[str, ...]] = {
    "image": ("picture", "picture tensor", "uint8 array", "batch of tensors"),
    "handles": ("points", "array of points", "tensor of points"),
    "targets": ("points", "array of points", "tensor of points"),
    "mask": ("mask tensor", "black and white picture", "None"),
    "prompt": ("''", "'fast'"),
    "settings": ("settings", "dict of an option", "'fast'"),
    "preset": ("'fast'",),
    "preview_vae": ("vae",),
    "generator": ("seeded",),
    "output_type": ("'pt'",),
    "callback_on_step_end": ("function of four",),
}
BASE = {"image": "picture", "handles": "points", "targets": "points"}

Recipe = str | tuple[str, Any]
"""The name of a value, or `("list", recipes)`, `("tuple", recipes)` or `("dict", pairs of recipes)`."""

names = st.sampled_from(sorted(ODD))
recipes: st.SearchStrategy[Recipe] = names | st.recursive(
    names,
    lambda inner: (
        st.tuples(st.just("list"), st.lists(inner, max_size=3))
        | st.tuples(st.just("tuple"), st.lists(inner, max_size=3))
        | st.tuples(st.just("dict"), st.lists(st.tuples(names, inner), max_size=3))
    ),
    max_leaves=4,
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Recipe]:
    """A call that works, with one to three arguments of any kind."""
    changed = draw(st.lists(st.sampled_from(ARGUMENTS), min_size=1, max_size=3, unique=True))
    return BASE | {name: draw(st.sampled_from(GOOD.get(name, ("None",))) | recipes) for name in changed}


def made(recipe: Recipe) -> Any:
    if isinstance(recipe, str):
        return ODD[recipe]()
    kind, parts = recipe
    if kind == "dict":
        mapping = {}
        for key, value in parts:
            with contextlib.suppress(TypeError, RuntimeError, ValueError):  # no dict takes such a key
                mapping[made(key)] = made(value)
        return mapping
    return (list if kind == "list" else tuple)(made(part) for part in parts)


def frozen(value: Any, depth: int = 0) -> Any:
    """What tells whether a value was changed: content where it has any that can be read, identity everywhere."""
    content: Any = None
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufM" and value.size < 10**6:
        content = (value.shape, np.asarray(value).tobytes())
    elif isinstance(value, torch.Tensor) and not value.is_meta and value.layout == torch.strided:
        if not value.is_nested and value.numel() < 10**6 and not value.is_quantized:
            content = (value.shape, value.requires_grad, value.is_inference(), repr(value.detach().flatten()[:50]))
    elif type(value) in (list, tuple, deque) and depth < 4:
        content = [frozen(each, depth + 1) for each in value]
    elif type(value) is dict and depth < 4:
        content = [(id(key), frozen(each, depth + 1)) for key, each in value.items()]
    elif type(value) is Image.Image:
        content = (value.size, value.mode, value.tobytes())
    elif isinstance(value, torch.Generator):
        content = value.get_state().tolist()
    return id(value), content


def accepted_names(call: dict[str, Any]) -> set[str]:
    """What a message may name: an argument that was given, or what is said inside one."""
    names = set(call) | {"handles", "targets"}
    if "settings" in call or "preset" in call:
        names |= set(options_of(DragSettings))
    if "preview_vae" in call:
        names.add("preview_steps")
    for mapping in (call.get("settings"), call.get("cross_attention_kwargs")):
        if type(mapping) is dict:
            names |= {got(key).strip("'\"") for key in mapping}
    return names


def check_call_of(pipe: Callable[..., Any], recipe: dict[str, Recipe]) -> str:
    """Make a call; it must work, or be refused by name, and leave what it was given alone."""
    call = {name: made(each) for name, each in recipe.items()}
    before = {name: frozen(value) for name, value in call.items()}
    try:
        pipe(**call)
    except WorkBegan:
        outcome = "worked"
        before.pop("generator", None)  # a seed was drawn from it
    except (ValueError, TypeError) as error:
        outcome = "refused"
        message = str(error)
        named = re.findall(r"`([^`]*)`", message)
        named += re.findall(r"Required input '(\w+)' is missing", message)  # what diffusers says of None
        named += [re.split(r"\[|\.", name)[0] for name in named]  # `cross_attention_kwargs['scale']`
        assert accepted_names(call) & set(named), message
        assert len(message) <= LONGEST_MESSAGE, f"{len(message)}: {message[:300]}"
        assert message.count("\n") <= 3, message
    else:
        raise AssertionError("the call returned without having worked")
    assert {name: frozen(call[name]) for name in before} == before
    return outcome


@pytest.fixture(scope="module")
def beginning(tokenizer) -> Any:
    """A pipeline whose work ends where it begins: behind the tokenizer, at the text encoder's pass."""
    parts = (make_vae(), make_text_encoder(), tokenizer, make_unet(), make_scheduler())
    pipeline = DynaDragPipeline(*parts, motion_predictor=make_motion_predictor())
    pipeline.set_progress_bar_config(disable=True)

    def begin(*_: object, **__: object) -> None:
        raise WorkBegan

    pipeline.text_encoder.forward = begin
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield pipeline
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def blocks(beginning) -> Any:
    """The same in blocks."""
    pipeline = DynaDragBlocks().init_pipeline()
    pipeline.update_components(**{name: each for name, each in beginning.components.items() if each is not None})
    return pipeline


def many(count: int) -> settings:
    """The same examples in every run, however long each takes, and none is kept."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate])


@many(2000)
@given(recipe=calls())
def test_a_call_works_or_is_refused_by_name_before_any_work(beginning, recipe):
    check_call_of(beginning, recipe)


@many(300)
@given(recipe=calls())
def test_blocks_work_or_refuse_alike(blocks, recipe):
    taken = {name: each for name, each in recipe.items() if name in blocks.blocks.input_names}
    check_call_of(blocks, taken)


# --- what is seen only in the work: answers of callbacks ---

BAD_ANSWERS: dict[str, Any] = {
    "a string": "latents",
    "a number": 5,
    "no dictionary": ["latents"],
    "a number for a tensor": {"latents": 5},
    "None for a tensor": {"latents": None},
    "another size": {"latents": torch.zeros(1, 4, 16, 18)},
    "other dimensions": {"latents": torch.zeros(4, 16, 16)},
    "whole numbers": {"latents": torch.zeros(1, 4, 16, 16, dtype=torch.int64)},
    "nothing to read": {"latents": torch.zeros(1, 4, 16, 16, device="meta")},
    "a sparse tensor": {"latents": torch.zeros(1, 4, 16, 16).to_sparse()},
    "words of another width": {"prompt_embeds": torch.zeros(1, 77, 17)},
    "no words": {"prompt_embeds": torch.zeros(1, 0, 16)},
    "a mapping that raises": MappingThatRaises(),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_can_not_be_used_ends_the_edit_and_keeps_it(pipe, quick, caplog, answer):
    picture = torch.full((3, SIDE, SIDE), 0.5)
    call = {"image": picture, "handles": [(10, 20)], "targets": [(40, 20)], "output_type": "pt", **quick}

    def stop(pipe: Any, index: int, *_: object) -> None:
        pipe._interrupt = index == 1

    expected = pipe(**call, callback_on_step_end=stop)
    output = pipe(**call, callback_on_step_end=lambda pipe, index, *_: answer if index == 1 else None)
    assert output.stop_reason == "interrupted"
    assert len(output.iterations) == 2
    assert torch.equal(output.images, expected.images)
    assert "`callback_on_step_end` must" in caplog.text
    assert "iteration 1" in caplog.text


def test_tensors_of_an_answer_are_taken_in_the_precision_of_the_edit(pipe, quick):
    picture = torch.full((3, SIDE, SIDE), 0.5)

    def answer(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ones = torch.ones_like(tensors["latents"], dtype=torch.float64, requires_grad=True)
        return {"latents": ones, "not a tensor of ours": ones}

    output = pipe(picture, [(10, 20)], [(40, 20)], callback_on_step_end=answer, output_type="latent", **quick)
    assert output.stop_reason == "reached"
    assert torch.equal(output.images, torch.ones(1, 4, 16, 16))


# --- how messages show values ---


@pytest.mark.parametrize("name", sorted(ODD))
def test_any_value_is_shown_on_one_short_line(name):
    text = got(ODD[name]())
    assert "\n" not in text
    assert 0 < len(text) <= LONGEST_SHOWN
