"""Options that are said once: name, type, default, what is accepted, one help text and its source, in one field.

A dataclass whose fields are made by [`option`] is a set of options. Everything that shows or takes them is made from
it: signatures and docstrings, options of the command line, inputs of blocks, tables of the docs. No torch here, so
that help is answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .checks import check_choice, check_number, check_switch, check_whole_number, got

SAME: Any = object()
"""Said of an option's value in the paper: it is the default."""


@dataclass(frozen=True)
class Kind:
    """What an option accepts. `or_none` accepts `None` too, which is `none` on the command line."""

    or_none: bool = False

    @property
    def metavar(self) -> str:
        """How the help of the command line shows a value."""
        return "VALUE"

    def check(self, name: str, value: Any) -> Any:
        """The value as a plain Python object, or a ValueError that names the option."""
        return None if value is None and self.or_none else self._checked(name, value)

    def read(self, text: str) -> Any:
        """The value that a text of the command line says; what is no such value comes back as it is."""
        return None if text == "none" and self.or_none else self._read(text)

    def _checked(self, name: str, value: Any) -> Any:
        raise NotImplementedError

    def _read(self, text: str) -> Any:
        return text


@dataclass(frozen=True)
class WholeNumber(Kind):
    """A whole number from `least` to `most`."""

    least: int = 0
    most: float = math.inf

    @property
    def metavar(self) -> str:
        return "N"

    def _checked(self, name: str, value: Any) -> int:
        return check_whole_number(name, value, self.least, self.most)

    def _read(self, text: str) -> Any:
        try:
            return int(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Number(Kind):
    """A finite number over `above`, or else from `least` on, up to `most`."""

    above: float | None = None
    least: float = -math.inf
    most: float = math.inf

    def _checked(self, name: str, value: Any) -> float:
        return check_number(name, value, above=self.above, least=self.least, most=self.most)

    def _read(self, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words, and `None` where that is among them."""

    accepted: tuple[str | None, ...] = ()

    @property
    def metavar(self) -> str:
        return "{" + ",".join("none" if each is None else each for each in self.accepted) + "}"

    def _checked(self, name: str, value: Any) -> Any:
        return check_choice(name, value, self.accepted)

    def _read(self, text: str) -> Any:
        return None if text == "none" and "none" not in self.accepted and None in self.accepted else text


@dataclass(frozen=True)
class Switch(Kind):
    """`True` or `False`."""

    def _checked(self, name: str, value: Any) -> bool:
        return check_switch(name, value)


@dataclass(frozen=True)
class Text(Kind):
    """A string; several in a tuple if `many`."""

    many: bool = False

    def _checked(self, name: str, value: Any) -> Any:
        texts = value if self.many else [value]
        if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"`{name}` must be {'strings' if self.many else 'a string'}, got {got(value)}.")
        return tuple(texts) if self.many else value


@dataclass(frozen=True)
class Option:
    """One option, as [`options_of`] reads it off a field.

    Attributes:
        default (`Any`): the value where nothing else is said.
        kind (`Kind`): what is accepted.
        help (`str`): what it does, with its unit; one or more sentences without the full stop of the last.
        group (`str`): title under which it is shown.
        source (`str`): where the default comes from, such as `"Sec. 4.2"`; empty if it is this project's own.
        paper (`Any`): the paper's value, where that is not the default.
        default_text (`str`): what the default comes to, where the value does not say it.
        flags (`tuple[str, ...]`): further names on the command line.
        name (`str`): of the field.
        type (`Any`): its annotation.
    """

    default: Any
    kind: Kind
    help: str
    group: str = ""
    source: str = ""
    paper: Any = SAME
    default_text: str = ""
    flags: tuple[str, ...] = ()
    name: str = ""
    type: Any = Any

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def sentence(self) -> str:
        """Help and source, as they are shown everywhere."""
        return f"{self.help} ({self.source})" if self.source else self.help

    def default_shown(self, default: Any = SAME) -> str:
        """How a default is shown: this option's, or another that is in force."""
        value = self.default if default is SAME else default
        if value is None and self.default_text:
            return self.default_text
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "none" if value is None or value == "" else str(value)


def option(default: Any, kind: Kind, help: str, **more: Any) -> Any:
    """A field of a dataclass of options; `more` are the further attributes of [`Option`].

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int = option(50, WholeNumber(least=1), "steps of a denoising", source="Sec. 4.2")
        >>> checked(Settings, {"steps": 0})
        Traceback (most recent call last):
        ...
        ValueError: `steps` must be a whole number of at least 1, got 0.
        >>> options_of(Settings)["steps"].sentence
        'steps of a denoising (Sec. 4.2)'
    """
    return field(default=default, metadata={"option": Option(default, kind, help, **more)})


def options_of(settings: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by name, in the order of its fields.

    Args:
        settings (`type[Any]`): a dataclass of options.

    Returns:
        `dict[str, Option]`: each with its name and type.
    """
    hints = typing.get_type_hints(settings)
    return {
        each.name: replace(each.metadata["option"], name=each.name, type=hints[each.name])
        for each in dataclasses.fields(settings)
        if "option" in each.metadata
    }


def checked(settings: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options as plain Python objects, or a ValueError for the first that is not accepted.

    Args:
        settings (`type[Any]`): a dataclass of options.
        values (`Mapping[str, Any]`): of some of them, by name.

    Returns:
        `dict[str, Any]`: the values, checked.
    """
    options = options_of(settings)
    unknown = [got(name).strip("'\"") for name in values if not isinstance(name, str) or name not in options]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no option: it must be one of {', '.join(options)}.")
    return {name: options[name].kind.check(name, value) for name, value in values.items()}


def check_fields(settings: Any) -> None:
    """Check the options of a dataclass and keep them as plain Python objects: for its `__post_init__`.

    Args:
        settings (`Any`): an object whose class is a dataclass of options.
    """
    for name, each in options_of(type(settings)).items():
        object.__setattr__(settings, name, each.kind.check(name, getattr(settings, name)))


def parameters_of(settings: type[Any]) -> list[inspect.Parameter]:
    """The options as keywords of a signature.

    Args:
        settings (`type[Any]`): a dataclass of options.

    Returns:
        `list[inspect.Parameter]`: one for each, with its default and type.
    """
    return [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in options_of(settings).values()
    ]


def docstring_of(settings: type[Any], indent: int = 12) -> str:
    """The options as entries of a docstring's `Args:`, each behind `indent` spaces."""
    entries = []
    for each in options_of(settings).values():
        kind = f"`{type_shown(each.type)}`, defaults to {each.default!r}"
        meaning = each.sentence if not each.default_text else f"{each.sentence}; by default {each.default_text}"
        text = textwrap.fill(f"{meaning}.", 119 - indent - 4)
        entries.append(textwrap.indent(f"{each.name} ({kind}):\n{textwrap.indent(text, '    ')}", " " * indent))
    return "\n".join(entries)


def options_table(settings: type[Any]) -> str:
    """The options as tables in Markdown, one for each group.

    Args:
        settings (`type[Any]`): a dataclass of options.

    Returns:
        `str`: the tables, each under a heading.
    """
    groups: dict[str, list[str]] = {}
    for each in options_of(settings).values():
        default = each.default_text or f"`{each.default!r}`"
        paper = "" if each.paper is SAME else f" In the paper: `{each.paper!r}`."
        accepted = "" if not isinstance(each.kind, Choice) else f" One of {_listed(each.kind.accepted)}."
        row = f"| `{each.name}` | {default} | {each.sentence}.{accepted}{paper} |"
        groups.setdefault(each.group, []).append(row)
    tables = [
        "\n".join(
            [
                f"## {group[:1].upper()}{group[1:]}",
                "",
                "| option | default | what it does |",
                "| --- | --- | --- |",
                *rows,
            ]
        )
        for group, rows in groups.items()
    ]
    return "\n\n".join(tables)


def add_options(
    parser: argparse.ArgumentParser, settings: type[Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Add the options to a command, under the titles of their groups.

    Args:
        parser (`argparse.ArgumentParser`): of the command.
        settings (`type`): a dataclass of options.
        defaults (`Mapping`, *optional*): what is in force where nothing is given, for the help, over the fields' own.
    """
    titles: dict[str, Any] = {"": parser}
    for each in options_of(settings).values():
        if each.group not in titles:
            titles[each.group] = parser.add_argument_group(each.group)
        shown = each.default_shown((defaults or {}).get(each.name, SAME))
        help = f"{each.sentence} (default: {shown})".replace("%", "%%")
        how: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS, "help": help}
        if isinstance(each.kind, Switch):
            titles[each.group].add_argument(each.flag, *each.flags, action=argparse.BooleanOptionalAction, **how)
        else:
            many = {"nargs": "+"} if isinstance(each.kind, Text) and each.kind.many else {}
            reading = {"type": _Reader(each), "metavar": each.kind.metavar}
            titles[each.group].add_argument(each.flag, *each.flags, **reading, **many, **how)


def given_options(args: argparse.Namespace, settings: type[Any]) -> dict[str, Any]:
    """The options that were given to a command of [`add_options`].

    Args:
        args (`argparse.Namespace`): what the command was called with.
        settings (`type[Any]`): the dataclass of options.

    Returns:
        `dict[str, Any]`: their values by name.

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int = option(50, WholeNumber(least=1), "steps of a denoising")
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, Settings)
        >>> given_options(parser.parse_args(["--steps", "7"]), Settings)
        {'steps': 7}
    """
    given = {name: each for name, each in options_of(settings).items() if hasattr(args, name)}
    none = {name for name, each in given.items() if each.kind.or_none and getattr(args, name) == ["none"]}
    return {name: None if name in none else getattr(args, name) for name in given}


def type_shown(annotation: Any) -> str:
    """An annotation as the docs show it.

    Args:
        annotation (`Any`): of a field.

    Returns:
        `str`: its name.

    Example:
        >>> type_shown(int | None), type_shown(typing.Literal["mean", "sum"])
        ('int | None', 'str')
    """
    if typing.get_origin(annotation) is typing.Literal:
        return "str"
    parts = typing.get_args(annotation)
    if parts and type(None) in parts:
        return " | ".join([*dict.fromkeys(type_shown(each) for each in parts if each is not type(None)), "None"])
    return getattr(annotation, "__name__", str(annotation))


class _Reader:
    """Reads an option's value from the command line; argparse shows what it says of a value that is not accepted."""

    def __init__(self, option: Option) -> None:
        self.option = option

    def __call__(self, text: str) -> Any:
        kind = self.option.kind
        if isinstance(kind, Text) and kind.many:
            kind = Text()  # one of them
        try:
            return kind.check(self.option.name, kind.read(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).partition("` ")[2].rstrip(".")) from None


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(f"`{each!r}`" for each in values)
