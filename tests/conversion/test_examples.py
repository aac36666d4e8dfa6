"""Examples in the docstrings of the package run."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "module", ["checkpoint_file", "foreign_lora", pytest.param("stable_diffusion", marks=pytest.mark.embedded)]
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(import_module(f"conversion.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
