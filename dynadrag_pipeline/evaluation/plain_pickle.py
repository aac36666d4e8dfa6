"""Plain data out of a pickle, without unpickling: nothing is imported, and nothing is called.

A pickle is a program for a small machine, some of whose instructions import and call whatever they name. Weights and
annotations that people have published as pickles hold dictionaries, lists, numbers, texts and numpy arrays alone. Here
the instructions are read as data (`pickletools` names them). Those that build containers are followed; a name stays a
name, a call stays a note of what would be called with what; and of these notes exactly those that numpy writes for an
array are turned into one, by `numpy.frombuffer` on bytes of a length that was checked. Whatever else is in the file is
refused, by its name.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from motion_predictor.common.checks import got

MOST_BYTES = 2**28  # of a file, and of all arrays and bytes in it: what is shared counts as often as it is used
MOST_VALUES = 10**6  # containers and their entries: entries may be shared, so that a small file could unfold to many
DEEPEST = 50  # levels of containers

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_MARK = object()
_ARRAYS = {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_ARRAYS_IN_ONE = {(module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")}
_BYTES, _NO_BYTES = ("_codecs", "encode"), ("__builtin__", "bytes")
_SCALARS = {(module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_ARRAY, _TYPE = ("numpy", "ndarray"), ("numpy", "dtype")


@dataclass(frozen=True)
class _Name:
    """What would have been imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def key(self) -> tuple[str, str]:
        return self.module, self.name


@dataclass
class _Call:
    """What would have been called, and the state that its answer would have been given."""

    function: Any
    arguments: Any
    state: Any = None


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds, if that is plain data.

    Args:
        path (`Path`): of the file.

    Returns:
        Dictionaries, lists, tuples, numbers, texts, bytes, `None` and `np.ndarray` of numbers.

    Raises:
        OSError: if it can't be read.
        ValueError: if it holds anything else, of which nothing is run.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "plain.pkl")
        ...     _ = path.write_bytes(pickle.dumps({"points": [(1, 2.5)], "mask": np.eye(2, dtype=np.uint8)}))
        ...     read_plain_pickle(path)
        {'points': [(1, 2.5)], 'mask': array([[1, 0],
               [0, 1]], dtype=uint8)}
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"`{path}` must be a pickle of at most {MOST_BYTES >> 20} MiB, got a larger file.")
    try:
        return _Plain().of(_followed(path.read_bytes()))
    except (ValueError, AttributeError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        why = error if isinstance(error, ValueError) else f"it is damaged ({type(error).__name__})."
        raise ValueError(f"`{path}` must be a pickle of plain data; nothing of it was run: {why}") from error


def _followed(content: bytes) -> Any:
    """The value that the instructions build, with notes of names and calls in it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "STOP":
            return stack.pop()
        _follow(operation.name, argument, stack, memo)
    raise ValueError("it has no end.")


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name == "MARK":
        stack.append(_MARK)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _VALUES:
        stack.append(argument)
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _TUPLES:
        _replace(stack, _TUPLES[name], tuple)
    elif name in ("TUPLE", "LIST"):
        stack.append((tuple if name == "TUPLE" else list)(_since_mark(stack)))
    elif name == "DICT":
        stack.append(_pairs(_since_mark(stack)))
    elif name == "APPEND":
        last = stack.pop()
        _top(stack, list).append(last)
    elif name == "APPENDS":
        entries = _since_mark(stack)
        _top(stack, list).extend(entries)
    elif name == "SETITEM":
        last_pair = stack[-2:]
        del stack[-2:]
        _top(stack, dict).update(_pairs(last_pair))
    elif name == "SETITEMS":
        pairs = _pairs(_since_mark(stack))
        _top(stack, dict).update(pairs)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        module, _, what = argument.partition(" ")
        stack.append(_Name(module, what))
    elif name == "STACK_GLOBAL":
        _replace(stack, 2, _name)
    elif name == "REDUCE":
        _replace(stack, 2, lambda said: _Call(*said))
    elif name == "BUILD":
        state = stack.pop()
        _top(stack, _Call).state = state
    else:
        raise ValueError(f"it has an instruction that plain data does without, {name}.")


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise TypeError
    return stack[-1]


def _replace(stack: list[Any], count: int, make: Any) -> None:
    said = stack[-count:]
    if len(said) < count or _MARK in [each for each in said if each is _MARK]:
        raise IndexError
    del stack[-count:]
    stack.append(make(said))


def _since_mark(stack: list[Any]) -> list[Any]:
    entries: list[Any] = []
    while (entry := stack.pop()) is not _MARK:
        entries.append(entry)
    return entries[::-1]


def _name(said: list[Any]) -> _Name:
    if not all(isinstance(each, str) for each in said):
        raise TypeError
    return _Name(*said)


def _pairs(entries: list[Any]) -> dict[Any, Any]:
    for key in entries[::2]:  # before they are hashed: a small file can hold a key that unfolds without an end
        if not isinstance(key, (str, int)):
            raise ValueError(f"it has a key that is no text or number, but a {type(key).__name__}.")
    return dict(zip(entries[::2], entries[1::2], strict=True))


class _Plain:
    """Turns what the instructions built into plain values, and refuses what is none."""

    def __init__(self) -> None:
        self.values = self.bytes = 0

    def of(self, value: Any, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MOST_VALUES or depth > DEEPEST:
            raise ValueError(f"it holds more than {MOST_VALUES} values, or {DEEPEST} levels of them.")
        if isinstance(value, dict):
            return {key: self.of(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.of(each, depth + 1) for each in value)
        if isinstance(value, (_Call, bytearray)):
            made = bytes(value) if isinstance(value, bytearray) else _called(value)
            self.bytes += made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
            if self.bytes > MOST_BYTES:
                raise ValueError(f"its arrays unfold to more than {MOST_BYTES >> 20} MiB.")
            return made
        if isinstance(value, _Name):
            raise ValueError(f"it asks for {value}, which is not plain data.")
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        raise ValueError("it is damaged.")


def _called(call: _Call) -> Any:
    """An array, a number of numpy's or bytes, as pickles describe them."""
    function, arguments = call.function, call.arguments
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no name.")
    if function.key in (_BYTES, _NO_BYTES):
        return _bytes(call)
    if function.key in _SCALARS and len(arguments) == 2:
        return _numbers(arguments[0], (), arguments[1])[0].item()
    if function.key in _ARRAYS_IN_ONE and len(arguments) == 4:
        content, kind, shape, order = arguments
        return _shaped(kind, shape, content, order == "F")
    if function.key in _ARRAYS and arguments[:1] == (_Name(*_ARRAY),):
        if not isinstance(call.state, tuple) or len(call.state) != 5:
            raise ValueError("it holds an array without its content.")
        _, shape, kind, is_fortran, content = call.state
        return _shaped(kind, shape, content, is_fortran is True)
    raise ValueError(f"it asks for {function}, which is not plain data.")


def _shaped(kind: Any, shape: Any, content: Any, is_fortran: bool) -> np.ndarray:
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError("it holds an array of a shape that is none.")  # shown, what is shared in it would unfold
    return _numbers(kind, shape, content).reshape(shape, order="F" if is_fortran else "C").copy()


def _bytes(content: Any) -> bytes:
    """Bytes, also as texts of Latin letters, which is what protocols of Python 2 write."""
    if isinstance(content, _Call) and isinstance(content.function, _Name):
        if content.function.key == _NO_BYTES and content.arguments == ():
            return b""
        if content.function.key == _BYTES and content.arguments[1:] == ("latin1",):
            content = content.arguments[0]
    if isinstance(content, str):
        return content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError("it holds an array without its content.")
    return bytes(content)


def _numbers(kind: Any, shape: tuple[int, ...], content: Any) -> np.ndarray:
    """A flat array of the numbers in some bytes, which are of the size that shape and kind say."""
    is_type = isinstance(kind, _Call) and isinstance(kind.function, _Name) and kind.function.key == _TYPE
    code = kind.arguments[0] if is_type and kind.arguments else None
    if not isinstance(code, str) or code not in ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
        raise ValueError(f"it holds an array of {got(code) if isinstance(code, str) else 'objects'}, not of numbers.")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise ValueError("it holds an array of an unknown byte order.")
    dtype = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    content = _bytes(content)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError("it holds an array whose content is not of its size.")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
