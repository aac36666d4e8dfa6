"""Pickles that are read without being run."""

from __future__ import annotations

import contextlib
import doctest
import pickle
from codecs import encode
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynadrag_pipeline.evaluation import plain_pickle
from dynadrag_pipeline.evaluation.plain_pickle import read_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(1, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_out_as_it_went_in(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == value


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["bool", "uint8", "int32", "int64", "float32", ">f4"])
def test_arrays_of_numbers_come_out_as_they_went_in(tmp_path, kind, protocol):
    numbers = (3 * np.random.default_rng(0).normal(size=(3, 4, 2))).astype(kind)
    for array in (numbers, np.asfortranarray(numbers), numbers[:0], numbers.T):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"mask": array, "scale": numbers[0, 0, 0]}, protocol))
        read = read_plain_pickle(tmp_path / "a.pkl")
        np.testing.assert_array_equal(read["mask"], array)
        assert read["scale"] == numbers[0, 0, 0]


class _Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class _WithState:
    pass


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(OrderedDict(a=1), id="a class of the library"),
        pytest.param(np.array([_WithState()], dtype=object), id="an array of objects"),
        pytest.param(_WithState(), id="an object"),
        pytest.param(print, id="a function"),
        pytest.param({1, 2}, id="a set"),
    ],
)
def test_what_is_no_plain_data_is_refused(tmp_path, value):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"mask": value}))
    with pytest.raises(ValueError, match=r"a\.pkl` must be a pickle of plain data; nothing of it was run"):
        read_plain_pickle(tmp_path / "a.pkl")


def test_nothing_of_a_harmful_pickle_is_run(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([_Harmful(tmp_path / "ran")]))
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_plain_pickle(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_small_file_that_unfolds_to_many_values_is_refused(tmp_path):
    value: list = []
    for _ in range(40):
        value = [value, value]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="more than"):
        read_plain_pickle(tmp_path / "a.pkl")


class _Reduced:
    """What is pickled as it says."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self):
        return self.parts


def _array_of(**changed: object) -> _Reduced:
    """What is pickled as an array of 4 KiB, but for its `shape`, its `kind` or its `content`."""
    function, arguments, (version, *state) = np.zeros(2**12, np.uint8).__reduce__()
    state = {**dict(zip(("shape", "kind", "is_fortran", "content"), state, strict=True)), **changed}
    return _Reduced(function, arguments, (version, *state.values()))


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(np.zeros(2**12, dtype=np.uint8), id="an array"),
        pytest.param(np.zeros(2**12, dtype=np.uint8).tobytes(), id="its bytes in many arrays"),
        pytest.param(bytearray(2**12), id="bytes that may change"),
    ],
)
def test_a_small_file_that_unfolds_to_many_bytes_is_refused(tmp_path, monkeypatch, kept):
    """A hundred times 4 KiB, which the file holds once."""
    monkeypatch.setattr(plain_pickle, "MOST_BYTES", 2**16)
    many = [_array_of(content=kept) if isinstance(kept, bytes) else kept for _ in range(100)]
    (tmp_path / "few.pkl").write_bytes(pickle.dumps(many[:10], 5))
    (tmp_path / "many.pkl").write_bytes(pickle.dumps(many, 5))
    assert len(read_plain_pickle(tmp_path / "few.pkl")) == 10
    assert (tmp_path / "many.pkl").stat().st_size < 2**14
    with pytest.raises(ValueError, match="its arrays unfold to more than"):
        read_plain_pickle(tmp_path / "many.pkl")


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"K\x01s.", id="as a key"),
        pytest.param(b"\x8c\x01n\x93.", id="as a name"),
    ],
)
def test_what_unfolds_without_an_end_is_refused_where_it_would_be_hashed_or_written_out(tmp_path, rest):
    """Forty tuples, each of which holds the one before it twice."""
    doubling = b"".join(bytes([*b"0h", number, *b"h", number, *b"\x86q", number + 1]) for number in range(40))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}K\x00q\x00" + doubling + rest)
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("part", ["shape", "kind", "byte order"])
def test_an_array_whose_description_unfolds_without_an_end_is_refused(tmp_path, part):
    endless: object = 1
    for _ in range(40):
        endless = (endless, endless)
    kinds = {"kind": _Reduced(np.dtype, (endless,)), "byte order": _Reduced(np.dtype, ("u1",), (3, endless))}
    array = _array_of(shape=endless) if part == "shape" else _array_of(kind=kinds[part])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(ValueError, match="it holds an array of"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(_array_of(shape=(2**70, 0), content=b""), id="a shape beyond all numbers"),
        pytest.param(_array_of(kind=_Reduced(np.dtype, ({},))), id="a kind that is none"),
        pytest.param(_array_of(content=_Reduced(encode, ("a", [1]))), id="bytes in no code"),
    ],
)
def test_an_array_that_numpy_did_not_write_is_refused(tmp_path, array):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("arguments", [b"K\x05", b"}", b"]"])
def test_a_call_with_no_arguments_at_all_is_refused(tmp_path, arguments):
    """`REDUCE` of a name and a number, a mapping and a list, as the bytes of an array."""
    content = b"c_codecs\nencode\n" + arguments + b"R"
    call = b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(" + content + b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
    (tmp_path / "a.pkl").write_bytes(call + b"K\x01\x85X\x01\x00\x00\x00CtR.")
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_plain_pickle(tmp_path / "a.pkl")


@given(content=st.binary(max_size=200))
def test_damaged_files_raise_nothing_but_value_errors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    whole = pickle.dumps({"mask": np.eye(3)})
    for damaged in (content, whole[: len(content)] + content, whole[:-3] + content):
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):  # and nothing else is raised
            read_plain_pickle(path)


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(plain_pickle).failed == 0
