"""Options that are said once: what the command line makes of them, and how it shows them."""

from __future__ import annotations

import argparse
import doctest
from dataclasses import dataclass

import pytest

from motion_predictor.common import options
from motion_predictor.common.options import (
    Choice,
    Number,
    Switch,
    Text,
    WholeNumber,
    add_options,
    check_fields,
    given_options,
    option,
)


@dataclass(frozen=True)
class Settings:
    steps: int = option(0, WholeNumber(least=0, most=100_000_000), "steps", source="Sec. 4")
    share: float = option(1.0, Number(least=0, most=1), "share in %")
    few: int = option(1, WholeNumber(or_none=True), "few")
    mode: str | None = option("fast", Choice(accepted=("fast", None)), "mode")
    keep: bool = option(False, Switch(), "keep")
    labels: tuple[str, ...] | None = option(None, Text(or_none=True, many=True), "labels", default_text="all of them")
    device: str | None = option(None, Text(or_none=True), "device", group="machine", default_text="a GPU")

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="command", exit_on_error=False)
    add_options(parser, Settings)
    return parser


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ("", {}),
        ("--steps 7 --share 0.5", {"steps": 7, "share": 0.5}),
        ("--few none --mode none --device none", {"few": None, "mode": None, "device": None}),
        ("--keep", {"keep": True}),
        ("--no-keep", {"keep": False}),
        ("--labels nose 3", {"labels": ("nose", "3")}),
        ("--labels none", {"labels": None}),
    ],
)
def test_what_is_given_on_the_command_line_becomes_settings(
    parser: argparse.ArgumentParser, arguments: str, given: dict[str, object]
):
    options = given_options(parser.parse_args(arguments.split()), Settings)
    assert list(options) == list(given)
    assert Settings(**options) == Settings(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps many", "must be a whole number of at least 0 and at most 100000000, got 'many'"),
        ("--steps -1", "got -1"),
        ("--share 1.5", "must be a finite number of at least 0 and at most 1, got 1.5"),
        ("--share nan", "got nan"),
        ("--mode slow", "must be one of 'fast', None, got 'slow'"),
    ],
)
def test_what_is_not_accepted_is_told(parser: argparse.ArgumentParser, arguments: str, message: str):
    with pytest.raises(argparse.ArgumentError, match=message):
        parser.parse_args(arguments.split())


def test_help_shows_defaults_as_they_are_meant(parser: argparse.ArgumentParser):
    shown = " ".join(parser.format_help().split())
    for text in (
        "steps (Sec. 4) (default: 0)",
        "share in % (default: 1.0)",
        "few (default: 1)",
        "keep (default: no)",
        "labels (default: all of them)",
        "machine: --device VALUE device (default: a GPU)",
    ):
        assert text in shown, text


def test_the_examples_of_the_docstrings_run():
    results = doctest.testmod(options)
    assert results.attempted >= 4
    assert results.failed == 0
