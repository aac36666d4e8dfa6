"""What predictors are evaluated with; a module of its own, since the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..data.shards import SPLITS


def _setting(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class EvaluationSettings:
    """What motion predictors are evaluated with. Each field's `metadata["help"]` says what it means.

    Raises:
        ValueError: for a value that is not accepted.

    Example:
        >>> EvaluationSettings(samples=32).horizon
        10
    """

    split: str = _setting("val", "records to judge by", choices=SPLITS)
    samples: int = _setting(256, "samples drawn from each dataset, spread evenly over its records")
    rollouts: int = _setting(32, "how many of them are rolled out, which takes a hundred predictions each")
    pictures: int = _setting(8, "how many rollouts of each dataset are drawn over its pictures")
    horizon: int = _setting(
        10, "labels are the motion over ceil(n / N) frames, where the end is n frames away; 0: one frame (Sec. 3.2.1)"
    )
    batch_size: int = _setting(16, "samples that are predicted at once; figures depend on it by rounding alone")
    seed: int = _setting(0, "of all that is drawn at random")
    device: str | None = _setting(
        None, "where the networks run, such as `cpu` or `cuda:1`; none: a GPU if there is one"
    )

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"`split` is {self.split!r}: one of {SPLITS} is accepted.")
        for name, least in (("samples", 1), ("rollouts", 0), ("pictures", 0), ("horizon", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a whole number from {least} on is accepted.")

    @property
    def torch_device(self) -> str:
        """Where the networks run."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")
