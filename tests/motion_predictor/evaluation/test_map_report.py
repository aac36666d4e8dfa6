"""Tables of whole maps: that they show the figures, and leave out what there are none of."""

from __future__ import annotations

import numpy as np

from motion_predictor.evaluation.map_figures import map_figures
from motion_predictor.evaluation.map_report import format_kinds, format_maps
from support.known_maps import make_maps


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_kinds_stand_side_by_side_with_errors_of_the_splines():
    figures = {"faces": map_figures(make_maps()), "hands": map_figures(make_maps(rigid=0.6)), "old": None}
    title, few, many, near = format_kinds(figures)
    assert title.startswith("## ")
    for table, handles in ((few, "1 or 2 handles"), (many, "3 or 7 handles")):
        rows = rows_of(table)
        assert handles in rows[0][0]
        assert rows[0][1:] == ["faces (4)", "hands (4)"]
        assert ["it, rolled out", "2.50 (2.50 ... 2.50)", "2.50 (2.50 ... 2.50)"] in rows
        assert ["rigid", "0.00 (0.00 ... 0.00)", "2.00 (2.00 ... 2.00)"] in rows
    assert ["it, rolled out", "0.50, 1.00", "0.50, 1.00"] in rows_of(near)
    assert format_kinds({"old": None}) == []


def test_a_kind_has_tables_of_the_whole_way_and_of_the_next_step_in_tenths():
    text = "\n".join(format_maps(map_figures(make_maps(samples=7))))
    rows = rows_of(text)
    assert ["zero flow", "3.00", "4.00", "5.00", "4.00"] in [row[:5] for row in rows]
    assert ["it, rolled out", "2.00, 0.50, 1.00", "2.00, 0.50, 1.00", "2.00, 0.50, 1.00"] in rows
    assert ["it", "0.20, 0.50, 1.00", "0.20, 0.50, 1.00", "0.20, 0.50, 1.00"] in rows
    assert "paths that bend" not in text


def test_numbers_of_handles_and_steps_that_nothing_is_known_of_have_no_tables():
    maps = make_maps(samples=2)
    maps.step[:] = np.nan
    text = "\n".join(format_maps(map_figures(maps)))
    assert "2 handles (1)" in text
    assert "3 handles" not in text
    assert "the next step from" not in text
