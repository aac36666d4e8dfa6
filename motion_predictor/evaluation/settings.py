"""What predictors are evaluated with; a module of its own, since the help of the command line loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.checks import got
from ..common.options import Choice, Text, WholeNumber, check_fields, option
from ..data.shards import SPLITS


@dataclass(frozen=True)
class EvaluationSettings:
    """What motion predictors are evaluated with; [`options_of`] tells what each field means.

    Raises:
        ValueError: if one is out of range, naming it, its value and what is accepted.

    Example:
        >>> EvaluationSettings(samples=32).horizon
        10
    """

    split: str = option("val", Choice(accepted=SPLITS), "records to judge by")
    samples: int = option(
        256,
        WholeNumber(least=1, most=1_000_000),
        "samples drawn from each dataset, spread evenly over its records",
    )
    rollouts: int = option(
        32,
        WholeNumber(least=0, most=1_000_000),
        "how many of them are rolled out, which takes a hundred predictions each",
    )
    maps: int = option(
        64,
        WholeNumber(least=0, most=1_000_000),
        "samples of each dataset whose whole map is judged, with each of 1, 2, 3 and 7 handles; 26 predictions each",
    )
    pictures: int = option(
        8,
        WholeNumber(least=0, most=1000),
        "how many rollouts of each dataset are drawn over its pictures; 0: no pictures of flows either",
    )
    horizon: int = option(
        10,
        WholeNumber(least=0, most=10_000),
        "labels are the motion over ceil(n / N) frames, where the end is n frames away; 0: one frame",
        source="Sec. 3.2.1",
    )
    batch_size: int = option(
        16,
        WholeNumber(least=1, most=4096),
        "samples that are predicted at once; figures depend on it by rounding alone",
    )
    seed: int = option(0, WholeNumber(least=0, most=2**32 - 1), "of all that is drawn at random")
    device: str | None = option(
        None,
        Text(or_none=True),
        "where the networks run, such as `cpu` or `cuda:1`",
        default_text="a GPU if there is one",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def torch_device(self) -> str:
        """Where the networks run.

        Raises:
            ValueError: if there is no such device.
        """
        import torch

        wanted = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=wanted)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"`device` must be one that is there, such as 'cpu', got {got(wanted)}.") from error
        return wanted
