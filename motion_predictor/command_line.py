"""The commands of the motion predictor, for `dynadrag`."""

from __future__ import annotations


class CommandError(Exception):
    """What the user can put right; shown as one line, without a traceback."""
