"""What a training run of the motion predictor is: data, network, samples, loss, optimisation; and two presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .common.checks import check_choice, check_number, check_whole_number, got
from .data.samples import SampleSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig

# The recipe as published is what all defaults say: motion over one frame, a delta on one pixel, plain MSE (Eq. 1).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "robust": {
        "network": {"delta_paint": "disc", "delta_scale": 0.1, "straight_share": 0.1},
        "samples": {"horizon": 10, "min_cosine": 0.3, "remove_background": True, "augment": True},
        "loss": {"handle_weight": 10.0, "error": "length", "relative": True},
    },
    "dense": {
        "network": {
            "in_channels": 10,
            "delta_paint": "spread",
            "straight_share": 0.1,
            "flow_unit": "displacement",
            "takes_mask": True,
            "takes_rigid": True,
            "horizons": ["step", "total"],
            "predicts_deviation": True,
            "step_share": 0.1,
        },
        "samples": {
            "horizon": 10,
            "min_cosine": 0.3,
            "remove_background": True,
            "augment": True,
            "framing": True,
            "total": True,
            "masks": 0.65,
            "far_handles": 0.5,
            "few_handles": 0.5,
            "pins": 0.2,
        },
        "loss": {"relative": True, "moving_weight": 3.0, "step_weight": 0.0, "likelihood_weight": 0.02},
    },
}

DEEPEST = 20  # levels of values in values
PRECISIONS = ("no", "fp16", "bf16")
ERRORS = ("squared", "length", "charbonnier")

LIMITS: dict[str, tuple[int, int]] = {
    "steps": (1, 10**9),
    "batch_size": (1, 4096),
    "gradient_accumulation": (1, 4096),
    "warmup_steps": (0, 10**9),
    "workers": (0, 256),
    "save_every": (1, 10**9),
    "validate_every": (0, 10**9),
    "validation_samples": (0, 10**6),
    "seed": (0, 2**32 - 2),  # the samples of the validation have the next one
}
"""The least and the most that the whole numbers of a run may be."""


@dataclass
class DataSource:
    """A dataset that `dynadrag build-dataset` or `build-portraits` wrote, and how it is drawn from.

    Attributes:
        folder (`str`): of the dataset.
        weight (`float`, *optional*, defaults to 1.0): how often it is drawn from, in proportion.
        framing (`bool`, *optional*): whether its records are framed anew; None: as `samples` says. Those of
            `build-portraits --smallest-face` are framed in all ways already.
    """

    folder: str
    weight: float = 1.0
    framing: bool | None = None

    def __post_init__(self) -> None:
        check_number("weight", self.weight, above=0)


@dataclass
class LossSettings:
    """How the error of the flow is weighed.

    Attributes:
        handle_weight (`float`, *optional*, defaults to 0.0): weight of pixels on the discs of handles, on top of 1; 0
            is plain MSE (Eq. 1).
        moving_weight (`float`, *optional*, defaults to 0.0): weight of pixels that move by more than a fifth of the
            longest motion, on top of 1.
        error (`str`, *optional*, defaults to `"squared"`): `"squared"` (Eq. 1), whose best answer is the mean of what
            may be; `"length"`, whose best answer is a median, which is nought where most labels rest;
            `"charbonnier"`, the square of small errors and the length of large ones.
        relative (`bool`, *optional*, defaults to `False`): divide a sample's error by that of standing still in place
            of a straight step. An absolute error would leave short displacements untaught, and every
            displacement is short in the end.
        step_weight (`float`, *optional*, defaults to 1.0): of the error of the next step; 0 if it is a share of the
            whole way.
        total_weight (`float`, *optional*, defaults to 1.0): of that of the whole way, of a network that predicts it.
        likelihood_weight (`float`, *optional*, defaults to 0.0): of the likelihood of what the network says of its
            errors, of a network that does; it teaches the deviations and nothing else.
    """

    handle_weight: float = 0.0
    moving_weight: float = 0.0
    error: str = "squared"
    relative: bool = False
    step_weight: float = 1.0
    total_weight: float = 1.0
    likelihood_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("handle_weight", "moving_weight", "step_weight", "total_weight", "likelihood_weight"):
            check_number(name, getattr(self, name), least=0)
        check_choice("error", self.error, ERRORS)


@dataclass
class TrainingConfig:
    """A training run, as its YAML file says it; what the file leaves out is as the preset says, or as here.

    Attributes:
        out (`str`): folder for checkpoints, curves and the trained model.
        data (`list[DataSource]`): datasets with weights.
        preset (`str`, *optional*, defaults to `"robust"`): `"paper"`, `"robust"` or `"dense"`: values that the rest of
            the file may change.
        start_from (`str`, *optional*): folder of a `MotionPredictorModel` to begin with, such as a converted SimVP;
            none: random weights.
        network (`dict[str, Any]`, *optional*): arguments of `MotionPredictorModel`, over those of `start_from`;
            `sample_size` is also the side of the training pictures.
        samples (`SampleSettings`, *optional*): how samples are drawn.
        loss (`LossSettings`, *optional*): how the error is weighed.
        steps (`int`, *optional*, defaults to 100000): training steps.
        batch_size (`int`, *optional*, defaults to 8): samples per training step and process, before accumulation.
        gradient_accumulation (`int`, *optional*, defaults to 1): batches per training step.
        learning_rate (`float`, *optional*, defaults to 0.001): of AdamW, after the warm-up and before the fall.
        warmup_steps (`int`, *optional*, defaults to 100): over which the rate rises from 0.
        decay_share (`float`, *optional*, defaults to 0.3): of the steps, at the end, over which the rate falls to 0.
        weight_decay (`float`, *optional*, defaults to 0.01): of AdamW.
        max_gradient_norm (`float`, *optional*, defaults to 1.0): longer gradients are shortened to this.
        ema_decay (`float`, *optional*, defaults to 0.999): of the average of the weights, which is what is saved in
            the end.
        mixed_precision (`str`, *optional*, defaults to `"no"`): `"no"`, `"fp16"` or `"bf16"`.
        workers (`int`, *optional*, defaults to 1): processes that draw samples, for each process that trains; 0 draws
            them between the steps.
        save_every (`int`, *optional*, defaults to 500): steps between checkpoints.
        validate_every (`int`, *optional*, defaults to 500): steps between measurements of the loss on the validation
            splits; 0 for none.
        validation_samples (`int`, *optional*, defaults to 64): samples that it is measured on.
        seed (`int`, *optional*, defaults to 0): of everything random.
    """

    out: str
    data: list[DataSource]
    preset: str = "robust"
    start_from: str | None = None
    network: dict[str, Any] = field(default_factory=dict)
    samples: SampleSettings = field(default_factory=SampleSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    steps: int = 100_000
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.3
    weight_decay: float = 1e-2
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    workers: int = 1
    save_every: int = 500
    validate_every: int = 500
    validation_samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            check_whole_number(name, getattr(self, name), least=least, most=most)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        check_number("max_gradient_norm", self.max_gradient_norm, above=0)
        for name in ("decay_share", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a number from 0 to below 1, got {getattr(self, name)}.")
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        if not self.data:
            raise ValueError("`data` must be at least one dataset with a `folder`, got none.")


def load_training_config(path: str | Path, changes: Sequence[str] = ()) -> TrainingConfig:
    """Read a run's YAML file: the preset's values, then the file's, then `changes`.

    Values are taken as they are written: `${...}` would read the environment or other values, and is refused.

    Args:
        path (`str` or `Path`): of the file; folders in it are relative to where the command is started.
        changes (`Sequence[str]`, *optional*): `"key=value"` with dots between levels, such as `"samples.horizon=0"`.

    Returns:
        `TrainingConfig`: the run.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no YAML, and for a key that does not exist, a value of the wrong type or out of range,
            naming the key.

    Example:
        >>> config = load_training_config("motion_predictor.yaml", ["steps=200"])  # doctest: +SKIP
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given = OmegaConf.merge(read_yaml(path), _read_changes(changes))
    try:
        preset = OmegaConf.select(given, "preset", default=TrainingConfig.preset)
        check_choice("preset", preset, tuple(PRESETS))
        merged = OmegaConf.merge(OmegaConf.structured(TrainingConfig), PRESETS[preset], given)
        return cast(TrainingConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, AttributeError) as error:
        reason = " ".join(line.strip() for line in str(error).split("\n")[:2])
        raise ValueError(f"`{path}`: {reason} (keys and their meaning: `TrainingConfig`)") from error


def read_yaml(path: str | Path) -> DictConfig:
    """Read the keys and values of a YAML file, with no code run and nothing else read for it.

    Args:
        path (`str` or `Path`): of the file, in UTF-8.

    Returns:
        `DictConfig`: of OmegaConf, without interpolations.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it does not hold keys and values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        _check_yaml(text, kinds=("mapping",))
        given = OmegaConf.create(text)
        _check_plain(OmegaConf.to_container(given))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"`{path}` must be YAML with keys and values, got {_reason(error)}.") from error
    return cast("DictConfig", given)


def _read_changes(changes: Sequence[str]) -> DictConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for change in changes:
        try:
            _check_yaml(change.partition("=")[2])
            _check_plain(OmegaConf.to_container(OmegaConf.from_dotlist([change])))
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise ValueError(f"`{got(change)[1:-1]}` must be a key and a YAML value, got {_reason(error)}.") from error
    return OmegaConf.from_dotlist(list(changes))


def _check_yaml(text: str, kinds: Sequence[str] = ("mapping", "list", "value")) -> None:
    """Raise a ValueError for what parsers would crash at: they call themselves for each level."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if depth == 0 and isinstance(event, yaml.NodeEvent):
            starts = {yaml.MappingStartEvent: "mapping", yaml.SequenceStartEvent: "list"}
            kind = starts.get(type(event), "value")
            if kind not in kinds:
                raise ValueError(f"a {kind}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")


def _check_plain(values: Any) -> None:
    """Raise a ValueError for what OmegaConf would replace by something read elsewhere, such as `${oc.env:HOME}`."""
    if isinstance(values, str) and "${" in values:
        raise ValueError(f"{got(values)}, whose `${{...}}` is not read")
    if isinstance(values, dict):
        for value in values.values():
            _check_plain(value)
    if isinstance(values, list):
        for value in values:
            _check_plain(value)


def _reason(error: Exception) -> str:
    """What is wrong in a YAML text, and in which line."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{getattr(error, 'problem', None)} in line {mark.line + 1}"
    return " ".join(str(error).split("\n")[0].split())


def save_training_config(config: TrainingConfig) -> str:
    """A run as YAML, with every value written out.

    Args:
        config (`TrainingConfig`): of the run.

    Returns:
        `str`: YAML that [`load_training_config`] reads.

    Example:
        >>> save_training_config(TrainingConfig("run", [DataSource("clips")])).splitlines()[0]
        'out: run'
    """
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
