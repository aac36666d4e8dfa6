"""Counts how often Python asks a device for an answer: there it waits for all that was launched before.

On the CPU no tensor is on a device. So those that would be are named in the beginning, and what is computed from them
would be there too; tables and timesteps, which stay on the CPU, are not among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
ASKS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten._unique2}


class DeviceQuestions(TorchDispatchMode):
    """Context that counts, by operator, the questions to tensors that would be on a device."""

    def __init__(self, on_device: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self._there = WeakIdKeyDictionary()
        for tensor in on_device:
            self._there[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        is_there = any(each in self._there for each in given)
        answer = func(*args, **(kwargs or {}))
        if is_there:
            by_mask = func.overloadpacket in (aten.index, aten.index_put_) and any(
                each.dtype == torch.bool for each in given[1:]
            )
            if func.overloadpacket in ASKS or by_mask:
                self.asked[str(func.overloadpacket)] += 1
            for each in tree_leaves(answer):
                if isinstance(each, torch.Tensor):
                    self._there[each] = True
        return answer
