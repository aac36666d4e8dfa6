"""Pickles that are read without being run."""

from __future__ import annotations

import contextlib
import doctest
import pickle
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
