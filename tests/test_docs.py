"""Pages that are made from the code are what the code makes of them."""

from __future__ import annotations

from pathlib import Path

import make_pages
import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(("name", "make"), [("options.md", make_pages.options_page), ("api.md", make_pages.api_page)])
def test_a_page_is_up_to_date(name, make):
    assert (DOCS / name).read_text(encoding="utf-8") == make(), "run `make docs`"


def test_a_docstring_becomes_sections_lists_and_fences():
    page = make_pages.markdown(
        "What it does.\n\nArgs:\n    size (`int`): in pixels,\n        of a side.\n\nExample:\n    >>> 1 + 1\n    2\n"
    )
    assert "**Args**\n\n- **size** (`int`): in pixels,\n  of a side." in page
    assert "```py\n>>> 1 + 1\n2\n```" in page
