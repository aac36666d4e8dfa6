from __future__ import annotations

import math

import numpy as np
import pytest

from motion_predictor.common.checks import check_choice, check_number, check_whole_number


@pytest.mark.parametrize("value", [1, 25, np.int64(3)])
def test_whole_numbers_from_the_least_on_are_accepted(value):
    check_whole_number("steps", value, least=1)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None, math.nan])
def test_what_is_no_such_whole_number_is_named(value):
    with pytest.raises(ValueError, match=r"`steps` must be a whole number of at least 1, got") as error:
        check_whole_number("steps", value, least=1)
    assert str(error.value).endswith(f"got {value!r}.")


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.25)])
def test_numbers_within_both_ends_are_accepted(value):
    check_number("threshold", value, least=0, most=1)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf, True, "0.5", None, 1j, [0.5]])
def test_what_is_no_number_within_both_ends_is_named(value):
    with pytest.raises(ValueError, match="`threshold` must be a finite number of at least 0 and at most 1") as error:
        check_number("threshold", value, least=0, most=1)
    assert repr(value) in str(error.value)


def test_an_open_end_is_not_accepted_itself():
    check_number("rate", 1e-9, above=0, most=math.inf)
    with pytest.raises(ValueError, match=r"`rate` must be a finite number above 0, got 0\."):
        check_number("rate", 0, above=0, most=math.inf)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_without_an_upper_end_numbers_must_still_be_finite(value):
    with pytest.raises(ValueError, match="finite"):
        check_number("rate", value, above=0, most=math.inf)


@pytest.mark.parametrize("value", ["all", None])
def test_choices_are_accepted(value):
    check_choice("strategy", value, ("all", None))


@pytest.mark.parametrize("value", ["ALL", "", 0, False, ["all"]])
def test_other_choices_are_named_with_what_is_accepted(value):
    with pytest.raises(ValueError, match="`strategy` must be one of 'all', None, got") as error:
        check_choice("strategy", value, ("all", None))
    assert repr(value) in str(error.value)
