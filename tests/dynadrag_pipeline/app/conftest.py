"""Fixtures of the app's tests: they are skipped where gradio is not installed."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'dynadrag[app]'")
