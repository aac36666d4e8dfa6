"""A graph for machines without a GPU: it runs what was captured again, on the same buffers, and writes in place.

It is as strict as a GPU: outputs mean nothing before the first replay, each replay overwrites them, and inputs are
read where they were at capture. So a buffer that was not filled, or an output that was not copied, shows as a wrong
picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynadrag_pipeline.graph_capture import Captured


class StandInGraph:
    """A `Graph` that re-executes."""

    def __init__(self, function: Captured) -> None:
        self.function = function
        self.replays = 0
        self.is_reset = False
        self.outputs: Sequence[torch.Tensor] = [each.clone() for each in function()]
        for each in self.outputs:
            each.fill_(torch.nan)

    def replay(self) -> None:
        assert not self.is_reset, "a graph that was let go is replayed"
        self.replays += 1
        for output, value in zip(self.outputs, self.function(), strict=True):
            output.copy_(value)

    def reset(self) -> None:
        self.is_reset = True
        for each in self.outputs:
            each.fill_(torch.nan)


class StandInCapture:
    """A `Capture` that counts, and can be made to fail at one of its captures."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.graphs: list[StandInGraph] = []
        self.warm_ups = 0
        self.fails_at = fails_at

    def warm_up(self, function: Captured) -> None:
        self.warm_ups += 1
        function()

    def __call__(self, function: Captured) -> StandInGraph:
        if len(self.graphs) == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.graphs.append(StandInGraph(function))
        return self.graphs[-1]

    @property
    def alive(self) -> list[StandInGraph]:
        """The graphs that were not let go."""
        return [each for each in self.graphs if not each.is_reset]
