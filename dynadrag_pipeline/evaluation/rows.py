"""A run's own rows: edits by options that are said in a file, beside the methods that have a name.

A file is a mapping from the name of each row to what is different in its edits (YAML, of which JSON is a part):

```yaml
carried once:
  motion: straight
  carry: once
  settle_iterations: 0
half as far: {inversion_strength: 0.5}
easier steps: {carry: none, motion: {search: {expected_loss: 0.3}}}
another predictor: {motion: predicted, motion_predictor: runs/robust}
the paper, without selection: {preset: paper, dynamic_selection: none}
```

What a row does not say is as in the other rows of the run. With `misplaced_handle: true` its instructions have one
handle more, which leads astray: pairs whose true motion is known get one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from motion_predictor.common.checks import check_choice, check_switch, got
from motion_predictor.common.options import options_of
from motion_predictor.training_config import read_yaml

from ..motion.names import MOTION_NAMES
from ..settings import PRESETS, DragSettings
from .method_names import METHOD_NAMES, TRUE_MOTION, back_of, folder_name
from .methods import OWN, SOURCES_WITH_NUMBERS, Method

LONGEST_NAME = 80  # letters of a row's name, which names a folder and is a cell of a table
OF_A_ROW = ("motion", "motion_predictor", "preset", "misplaced_handle")
"""What a row may say beside the options of an edit."""


def load_rows(path: Path) -> list[Method]:
    """The rows of a file, in its order.

    Args:
        path (`Path`): of the file.

    Returns:
        `list` of [`Method`]: one for each row.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is no such mapping; the message says which row, what of it, and what is accepted.
    """
    rows: list[Method] = []
    for name, said in OmegaConf.to_container(read_yaml(path)).items():  # type: ignore[union-attr]
        try:
            checked = _checked_name(name, [row.name for row in rows])
            rows.append(_row(checked, {} if said is None else said))
        except ValueError as error:
            raise ValueError(f"`{path.name}`, row {got(name)}: {error}") from error
    if not rows:
        raise ValueError(f"`{path}` must hold rows, such as `half as far: {{inversion_strength: 0.5}}`, got none.")
    return rows


def _checked_name(name: Any, others: list[str]) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"its name must be a line of text of at most {LONGEST_NAME} letters; put it in quotes.")
    if "|" in name:
        raise ValueError("its name must be without `|`, which parts the cells of tables.")
    known_names = [each for other in (*METHOD_NAMES, *others) for each in (other, back_of(other))]
    taken = {folder_name(each).casefold(): each for each in known_names}  # some file systems don't tell capitals apart
    for own in (name, back_of(name)):
        known = taken.get(folder_name(own).casefold())
        if known is not None:
            raise ValueError(f"its name must differ from {known!r} in its letters or digits, capitals aside.")
    return name


def _row(name: str, said: Any) -> Method:
    if not isinstance(said, Mapping):
        raise ValueError(f"it must be a mapping from options to values, such as `{{carry: once}}`, got {got(said)}.")
    options = options_of(DragSettings)
    unknown = [each for each in said if each not in (*OF_A_ROW, *options)]
    if unknown:
        accepted = ", ".join((*OF_A_ROW, *options))
        raise ValueError(f"`{unknown[0]}` is no option: it must be one of {accepted}.")
    values = {
        each: options[each].kind.check(each, options[each].kind.read(value) if isinstance(value, str) else value)
        for each, value in said.items()
        if each in options
    }
    motion, numbers = _motion(said.get("motion"))
    predictor = said.get("motion_predictor", OWN)
    if not isinstance(predictor, str) or not predictor:
        raise ValueError(
            f"`motion_predictor` must be 'own', 'embedded', or the folder or Hub id of one, got {got(predictor)}."
        )
    if motion not in (None, "predicted") and "motion_predictor" in said:
        raise ValueError(f"`motion_predictor` goes with `motion: predicted`: leave it out beside {motion!r}.")
    motion = "predicted" if "motion_predictor" in said else motion
    preset = said.get("preset")
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
    misplaced = check_switch("misplaced_handle", said.get("misplaced_handle", False))
    return Method(name, motion, numbers, predictor, values, preset, misplaced)


def _motion(said: Any) -> tuple[str | None, dict[str, Any]]:
    """Name and numbers of a source of motion: `track`, or `{track: {radius: 5}}`."""
    names = (*MOTION_NAMES, TRUE_MOTION)
    if not isinstance(said, Mapping):
        return (None if said is None else check_choice("motion", said, names)), {}
    if len(said) != 1:
        raise ValueError(f"`motion` must be a name, or one name with its numbers, got {got(said)}.")
    [(name, numbers)] = said.items()
    check_choice("motion", name, tuple(SOURCES_WITH_NUMBERS))
    accepted = list(inspect.signature(SOURCES_WITH_NUMBERS[name]).parameters)
    if not isinstance(numbers, Mapping) or not set(numbers) <= set(accepted):
        raise ValueError(f"`motion` must give `{name}` numbers by name, of {', '.join(accepted)}, got {got(numbers)}.")
    SOURCES_WITH_NUMBERS[name](**numbers)  # says what is out of range
    return name, dict(numbers)
