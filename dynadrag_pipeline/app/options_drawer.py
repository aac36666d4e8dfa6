"""The drawer of all options, generated from [`DragSettings`]: what is left empty stays as preset or checkpoint say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from motion_predictor.common.options import SAME, Choice, Option, Switch, checked, options_of

from ..settings import AutoOrOff, DragSettings, SettingsInForce

HIDDEN = ("return_intermediates",)
"""What the app decides itself: it shows the pictures between."""
OPTIONS = {name: each for name, each in options_of(DragSettings).items() if name not in HIDDEN}
SWITCH = {"yes": True, "no": False}


def add_drawer(in_force: SettingsInForce) -> list[Any]:
    """Add a field for each option, under the titles of their groups.

    Args:
        in_force ([`SettingsInForce`]): what holds where a field is left empty, which it shows.

    Returns:
        `list`: the fields, in the order of [`OPTIONS`].
    """
    fields: list[Any] = []
    groups: dict[str, list[Option]] = {}
    for each in OPTIONS.values():
        groups.setdefault(each.group, []).append(each)
    for title, options in groups.items():
        gr.HTML(f"<h3>{title[:1].upper()}{title[1:]}</h3>")
        for each in options:
            fields.append(_field(each, in_force))
    order = [each.name for options in groups.values() for each in options]
    return [fields[order.index(name)] for name in OPTIONS]


def placeholders(in_force: SettingsInForce) -> list[Any]:
    """What fields show when something else holds where they are left empty.

    Args:
        in_force ([`SettingsInForce`]): of the preset that was chosen.

    Returns:
        `list`: an update of each field, in the order of [`OPTIONS`].
    """
    return [
        gr.update(choices=_choices(each, in_force)) if _words(each) else gr.update(placeholder=_shown(each, in_force))
        for each in OPTIONS.values()
    ]


def given_by(texts: Sequence[Any]) -> dict[str, Any]:
    """The options that were given, checked.

    Args:
        texts (`Sequence`): what the fields hold, in the order of [`OPTIONS`].

    Raises:
        ValueError: for the first that is not accepted, in the API's words.
    """
    given = {
        name: _read(each, str(text).strip())
        for (name, each), text in zip(OPTIONS.items(), texts, strict=True)
        if text is not None and str(text).strip()
    }
    return checked(DragSettings, given)


def _field(option: Option, in_force: SettingsInForce) -> Any:
    about: dict[str, Any] = {"label": option.name, "info": f"{option.sentence}.", "elem_id": f"option-{option.name}"}
    if _words(option):
        return gr.Dropdown(_choices(option, in_force), value="", **about)
    return gr.Textbox("", placeholder=_shown(option, in_force), max_lines=1, **about)


def _words(option: Option) -> list[str]:
    """What may be chosen, if that is a matter of words."""
    if isinstance(option.kind, Switch):
        return list(SWITCH)
    if isinstance(option.kind, AutoOrOff):
        return ["auto", "no"]
    if isinstance(option.kind, Choice):
        return ["none" if each is None else each for each in option.kind.accepted]
    return []


def _choices(option: Option, in_force: SettingsInForce) -> list[tuple[str, str]]:
    return [(f"{_shown(option, in_force)} (unchanged)", ""), *((word, word) for word in _words(option))]


def _shown(option: Option, in_force: SettingsInForce) -> str:
    value = getattr(in_force.settings, option.name)
    return option.default_shown(SAME if value == option.default else value)


def _read(option: Option, text: str) -> Any:
    return SWITCH.get(text, text) if isinstance(option.kind, Switch) else option.kind.read(text)
