"""All options of an edit, each said once, and which of several sayings of them is in force.

A field of [`DragSettings`] is everything there is to say of an option. The call's signature and docstring, the inputs
of the blocks, the command line and its help, the record of an edit and the tables of the docs are made from these
fields. No torch here, so that help is answered at once.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

from motion_predictor.choices import MOTION_GUARDS, MotionGuard
from motion_predictor.common.checks import check_choice, got, naming
from motion_predictor.common.options import (
    SAME,
    Choice,
    Kind,
    Number,
    Switch,
    WholeNumber,
    check_fields,
    checked,
    docstring_of,
    option,
    options_of,
    parameters_of,
)

ChannelReduction = Literal["mean", "sum"]
SourcePatches = Literal["iteration", "step", "original"]
OptimizerScope = Literal["edit", "iteration"]
Carry = Literal["none", "once", "iteration"]
SelectionStrategy = Literal["all", "first", "random"]
KVPlacement = Literal["auto", "device", "host"]
CudaGraphs = Literal["auto", False]
Origin = Literal["given", "checkpoint", "preset", "paper", "default"]
"""Where a setting comes from: it was given; the checkpoint recommends it, or a preset; it is the paper's; or it is
this project's default, where the paper says nothing or otherwise."""

DRAG_LOOP = "drag loop (Fig. 2)"
SELECTION = "selection of handles (Sec. 3.2.2)"
SUPERVISION = "motion supervision (Eq. 2, 3)"
CARRY = "carry (beyond the paper)"
DENOISING = "inversion and denoising (Sec. 3.1, 3.3)"
IDENTITY_LORA = "identity LoRA (Sec. 4.2)"
PICTURES = "picture and record"
SPEED = "speed and memory"
READINGS = "readings of the paper, for ablations"

LARGEST_SIDE = 16384
"""Pixels of a picture's side, at most."""


@dataclass(frozen=True)
class AutoOrOff(Kind):
    """`"auto"`, or `False`, which is `no` on the command line."""

    @property
    def metavar(self) -> str:
        return "{auto,no}"

    def _checked(self, name: str, value: Any) -> Any:
        if value is False or (isinstance(value, str) and value == "auto"):
            return value
        raise ValueError(f"`{name}` must be 'auto' or False, got {got(value)}.")

    def _read(self, text: str) -> Any:
        return False if text == "no" else text


@dataclass(frozen=True, kw_only=True)
class DragSettings:
    """The options of an edit. What is not given is the paper's value, where the paper has one (Sec. 4.2).

    Raises:
        ValueError: if one is out of range, naming it, its value and what is accepted.

    Example:
        >>> DragSettings(max_iterations=10).supervision_steps
        5
    """

    max_iterations: int = option(
        25,
        WholeNumber(least=1, most=10_000),
        "predict-and-move iterations at most: more for longer paths, fewer for less time",
        group=DRAG_LOOP,
        source="Sec. 4.2",
    )
    stop_distance: float | None = option(
        None,
        Number(or_none=True, least=0),
        "pixels of the input within which a handle has arrived at its target",
        group=DRAG_LOOP,
        default_text="4 px for a short side of 512 px, in proportion for others",
    )
    settle_iterations: int = option(
        0,
        WholeNumber(least=0, most=10_000),
        "iterations more once all handles have arrived, in which all of them are supervised at their targets, set "
        "aside before or not: content that lags behind its handle catches up. 0 is the paper",
        group=DRAG_LOOP,
    )
    motion_guard: MotionGuard = option(
        "project",
        Choice(accepted=MOTION_GUARDS),
        "what is done with predicted steps: 'none' takes them as they are; 'clamp' lands on the target where a step "
        "would pass it; 'project' also removes what points away from the target",
        group=DRAG_LOOP,
        source="Sec. 11",
        paper="none",
    )
    largest_deviation: float | None = option(
        None,
        Number(or_none=True, above=0),
        "a predicted step that may be wrong by more than so many times its length, as the motion predictor says of "
        "it, is replaced by a straight one; None follows it however unsure it is. Predictors that say nothing of it "
        "are followed",
        group=DRAG_LOOP,
    )
    dynamic_selection: SelectionStrategy | None = option(
        "all",
        Choice(accepted=(*get_args(SelectionStrategy), None)),
        "which handles are supervised: 'all' judges them in every iteration (ADS), 'first' once and for all (FDS), "
        "'random' draws as many as 'all' would take (RS), None takes all of them",
        group=SELECTION,
        source="Sec. 3.2.2, 4.5",
    )
    similarity_threshold: float = option(
        0.6,
        Number(least=-1, most=1),
        "cosine of the features at a handle and at its target from which on the handle is set aside",
        group=SELECTION,
        source="Sec. 3.2.2",
    )
    supervision_steps: int = option(
        5,
        WholeNumber(least=1, most=10_000),
        "Adam steps on the latent in each iteration; raise it if content lags behind its handle",
        group=SUPERVISION,
        source="Eq. 3, Sec. 4.2",
    )
    supervision_lr: float = option(
        0.01,
        Number(above=0, most=1e3),
        "their learning rate: how far each step changes the picture",
        group=SUPERVISION,
        source="Sec. 4.2",
    )
    supervision_damping: float = option(
        0.0,
        Number(least=0, most=1e3),
        "keeps Adam from moving what has next to no gradient: added to its denominator, as a share of the largest "
        "value of the first gradient. 0 is plain Adam; 0.05 spares what is far from all handles",
        group=SUPERVISION,
    )
    supervision_reach: float | None = option(
        None,
        Number(or_none=True, above=0, most=1e3),
        "how far from the handles' paths the latent may change, as a share of the short side: 0.2 keeps what is "
        "further off than three tenths of it",
        group=SUPERVISION,
        default_text="everywhere",
    )
    supervision_radius: int = option(
        1,
        WholeNumber(least=0, most=256),
        "r_1 of Eq. 2: patches are 2 r_1 + 1 cells wide, on a grid of half the picture's size",
        group=SUPERVISION,
        source="Sec. 4.2",
    )
    mask_weight: float = option(
        0.1,
        Number(least=0, most=1e6),
        "lambda of Eq. 2: raise it if the picture changes outside the mask",
        group=SUPERVISION,
        source="Sec. 4.2",
    )
    carry: Carry = option(
        "none",
        Choice(accepted=get_args(Carry)),
        "bends the latent along a dense flow, so that content goes with its handle and supervision only finishes it: "
        "'once' goes all the way in the first iteration, and leaves the rest to `settle_iterations`; 'iteration' goes "
        "with each step, and supervises what is left; 'none' is the paper",
        group=CARRY,
    )
    num_inference_steps: int = option(
        50,
        WholeNumber(least=1, most=100_000),
        "DDIM steps of a full inversion or denoising: fewer are faster and rougher",
        group=DENOISING,
        source="Sec. 4.2",
        flags=("--steps",),
    )
    inversion_strength: float = option(
        1.0,
        Number(above=0, most=1),
        "share of these steps that the picture is inverted by before its latent is edited; lower keeps more of the "
        "picture, and moves less. DragDiffusion takes 0.7",
        group=DENOISING,
        source="Sec. 4.2: the 50-th step latent code",
    )
    kv_start_layer: int | None = option(
        None,
        WholeNumber(or_none=True, least=0),
        "first self-attention layer, in the order of execution, whose keys and values are the original's; 0 replaces "
        "in all, the number of layers in none",
        group=DENOISING,
        source="Sec. 3.3",
        default_text="the first one of the last two up-blocks: 10 of 0..15 in Stable Diffusion 1.x",
    )
    identity_lora_steps: int = option(
        200,
        WholeNumber(least=0, most=1_000_000),
        "optimisation steps that teach the model this picture; 0 goes without: faster, and faces drift",
        group=IDENTITY_LORA,
        source="Sec. 4.2",
    )
    identity_lora_rank: int = option(
        16, WholeNumber(least=1, most=4096), "rank of the LoRA", group=IDENTITY_LORA, source="Sec. 4.2"
    )
    identity_lora_lr: float = option(
        2e-4, Number(above=0, most=1e3), "learning rate of its fit", group=IDENTITY_LORA, source="Sec. 4.2"
    )
    processing_resolution: int | None = option(
        None,
        WholeNumber(or_none=True, least=0, most=LARGEST_SIDE),
        "short side, in pixels, at which the picture is edited; 0 keeps its own. The result has the input's size",
        group=PICTURES,
        default_text="what the UNet was trained at",
    )
    restore_source: bool = option(
        False,
        Switch(),
        "take the source's own pixels, at their own size, wherever they show what the edited picture shows, moved or "
        "not: resizing, autoencoder, inversion and supervision blur them. What the edit invented stays; latents are "
        "returned as they are",
        group=PICTURES,
    )
    locate_content: bool = option(
        True,
        Switch(),
        "look in the result for what was at each handle, by features of the UNet, and say how far from its target it "
        "is: two UNet passes for the first edit of a picture, one for each further one, and one more with "
        "`restore_source`, which then takes no moved content back",
        group=PICTURES,
    )
    return_intermediates: bool = option(
        False, Switch(), "keep picture and flow of every iteration, for sheets and GIFs", group=PICTURES
    )
    preview_steps: int | None = option(
        None,
        WholeNumber(or_none=True, least=1, most=100_000),
        "DDIM steps for the pictures that are made only to find the next motion from: 4 are several times as fast as "
        "all, and the result is always denoised in full",
        group=SPEED,
        default_text="all",
    )
    kv_placement: KVPlacement = option(
        "auto",
        Choice(accepted=get_args(KVPlacement)),
        "where the original's keys and values wait: on the 'device', in the memory of the 'host', from where each is "
        "copied when its timestep comes, or on the device if they fill no more than half of what is free there",
        group=SPEED,
    )
    cuda_graphs: CudaGraphs = option(
        "auto",
        AutoOrOff(),
        "whether the UNet's passes are captured once and replayed on a GPU, which is several times as fast as "
        "launching them from Python, and takes more memory there: 'auto' does where it can (not under offloading, nor "
        "with compiled blocks or hooks on the UNet, nor to denoise what was carried if something came into view), "
        "False never",
        group=SPEED,
    )
    feature_block: int = option(
        -1,
        WholeNumber(least=-64, most=63),
        "index of the UNet's up-block whose output is F; DragDiffusion takes the one before the last",
        group=READINGS,
        source="Sec. 3.1",
    )
    channel_reduction: ChannelReduction = option(
        "mean",
        Choice(accepted=get_args(ChannelReduction)),
        "over the feature channels in Eq. 2. The equation sums; DragDiffusion, whose learning rate and lambda the "
        "paper keeps, takes the mean",
        group=READINGS,
    )
    source_patches: SourcePatches = option(
        "iteration",
        Choice(accepted=get_args(SourcePatches)),
        "'iteration' takes the patches at h^k from z_t^k once (Eq. 2); 'step' anew in each Adam step, as "
        "DragDiffusion does; 'original' the patches at h^0 from the unedited z_t^0, as GoodDrag does: what an "
        "iteration did not move far enough is still asked for in the next",
        group=READINGS,
        source="Eq. 2",
    )
    optimizer_scope: OptimizerScope = option(
        "edit",
        Choice(accepted=get_args(OptimizerScope)),
        "'edit' keeps one Adam state for all iterations, 'iteration' begins a new one in each",
        group=READINGS,
    )
    hold_unselected: bool = option(
        False,
        Switch(),
        "whether handles that are set aside also stay where they are. Eq. 4 moves all of them",
        group=READINGS,
        source="Eq. 4",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def most_iterations(self) -> int:
        """Iterations of the longest edit."""
        return self.max_iterations + self.settle_iterations


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        name: each.default if each.paper is SAME else each.paper for name, each in options_of(DragSettings).items()
    },
    "fast": {"preview_steps": 4, "identity_lora_steps": 80},
    "carry": {"carry": "once", "settle_iterations": 3, "inversion_strength": 0.7},
}
"""Settings by name. `paper` is the paper to the letter, whatever a checkpoint recommends; `fast` trades openly;
`carry` bends the latent along with the motion, which is beyond the paper."""


@dataclass(frozen=True)
class SettingsInForce:
    """The settings of an edit, and where each of them comes from.

    Attributes:
        settings ([`DragSettings`]): the settings.
        origins (`dict[str, str]`): by name of the option: see [`Origin`].
    """

    settings: DragSettings
    origins: dict[str, Origin]

    def changed(self, given: Mapping[str, Any]) -> SettingsInForce:
        """The same with some values given anew."""
        values = checked(type(self.settings), given)
        settings = type(self.settings)(**{**vars(self.settings), **values})
        return SettingsInForce(settings, {**self.origins, **dict.fromkeys(values, "given")})

    @property
    def idle(self) -> list[str]:
        """Options that were asked for, and do nothing to the picture beside the `carry` in force.

        Who gave most of them, as settings of an earlier result, asked for none of them in particular.

        Example:
            >>> settings_in_force({"carry": "once", "supervision_lr": 0.3}).idle
            ['supervision_lr']
        """
        if 2 * list(self.origins.values()).count("given") > len(self.origins):
            return []
        return [name for name in _idle_beside_carry(self.settings) if self.origins[name] == "given"]

    def record(self) -> dict[str, dict[str, Any]]:
        """What a record of the edit says of them: `{"max_iterations": {"value": 25, "from": "paper"}, ...}`."""
        return {name: {"value": getattr(self.settings, name), "from": origin} for name, origin in self.origins.items()}


def _idle_beside_carry(settings: DragSettings) -> list[str]:
    """Names of the options that do nothing to the picture, since the latent is carried."""
    if settings.carry == "none":
        return []
    is_supervised = settings.carry == "iteration" or settings.settle_iterations > 0
    idle = {
        "source_patches": True,  # what content was at first is compared with
        "optimizer_scope": settings.settle_iterations == 0,  # each bend of the latent begins a new state
        "motion_guard": settings.carry == "once",  # no steps are asked for
        "largest_deviation": settings.carry == "once",
        "max_iterations": settings.carry == "once" and not settings.hold_unselected,
        **dict.fromkeys(("supervision_steps", "supervision_lr", "supervision_damping"), not is_supervised),
        **dict.fromkeys(("supervision_reach", "supervision_radius", "mask_weight"), not is_supervised),
    }
    return [name for name, is_idle in idle.items() if is_idle]


def settings_in_force(
    given: Mapping[str, Any],
    settings: DragSettings | SettingsInForce | Mapping[str, Any] | str | None = None,
    preset: str | None = None,
    recommended: Mapping[str, Any] | None = None,
) -> SettingsInForce:
    """What holds of several sayings: a keyword goes before `settings`, these before the preset, and so on.

    Args:
        given (`Mapping`): keywords of a call.
        settings ([`DragSettings`], `Mapping` or `str`, *optional*):
            a set of them, which is complete if it is a [`DragSettings`]; or the name of a preset.
        preset (`str`, *optional*): one of [`PRESETS`].
        recommended (`Mapping`, *optional*): what the checkpoint says suits it.

    Raises:
        ValueError: for an option that does not exist, a value that is not accepted, or an unknown preset.

    Example:
        >>> in_force = settings_in_force({"max_iterations": 10}, recommended={"supervision_lr": 0.6})
        >>> in_force.settings.supervision_lr, in_force.origins["supervision_lr"], in_force.origins["max_iterations"]
        (0.6, 'checkpoint', 'given')
        >>> settings_in_force({}, preset="paper", recommended={"supervision_lr": 0.6}).settings.supervision_lr
        0.01
    """
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
    if isinstance(settings, str):
        named = check_choice("settings", settings, tuple(PRESETS))
        if preset not in (None, named):
            raise ValueError(f"`preset` must be left out where `settings` names one: got {preset!r} beside {named!r}.")
        preset, settings = named, None
    with naming("settings", settings):
        said = _as_mapping(settings)
    options = options_of(DragSettings)
    in_force = {name: each.default for name, each in options.items()}
    origins: dict[str, Origin] = {
        name: "paper" if each.source and each.paper is SAME else "default" for name, each in options.items()
    }
    layers: list[tuple[Origin, Mapping[str, Any]]] = [
        ("checkpoint", recommended or {}),
        ("paper" if preset == "paper" else "preset", PRESETS[preset] if preset else {}),
        ("given", said),
        ("given", given),
    ]
    for origin, layer in layers:
        values = checked(DragSettings, layer)
        in_force |= values
        origins |= dict.fromkeys(values, origin)
    return SettingsInForce(DragSettings(**in_force), origins)


def _as_mapping(settings: DragSettings | SettingsInForce | Mapping[str, Any] | None) -> dict[str, Any]:
    """What `settings=` says; all options, if it is a [`DragSettings`], or the settings of a result."""
    if isinstance(settings, SettingsInForce):
        settings = settings.settings
    if settings is not None and not isinstance(settings, (DragSettings, Mapping)):
        raise ValueError(f"`settings` must be DragSettings, a mapping or the name of a preset, got {got(settings)}.")
    return vars(settings) if isinstance(settings, DragSettings) else dict(settings or {})


def recommended_settings(folder: str | Path) -> dict[str, Any]:
    """What a checkpoint in a folder recommends, read off its index alone; nothing if there is no such folder.

    Raises:
        ValueError: if its index is damaged.
    """
    index = Path(os.path.expanduser(folder), "model_index.json")
    if not os.path.isfile(index):  # nor can it be one, if the name is too long or forbidden
        return {}
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"`{index}` must be a JSON file: {error}.") from error
    return check_recommended(content.get(RECOMMENDED) if isinstance(content, dict) else None)


RECOMMENDED = "recommended_settings"
"""The entry of a checkpoint's config that holds what it recommends."""


def check_recommended(values: Any) -> dict[str, Any]:
    """The settings that a checkpoint recommends, checked: all that this version knows of."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"`{RECOMMENDED}` must be a mapping from options to their values, got {got(values)}.")
    known = options_of(DragSettings)
    return checked(DragSettings, {name: value for name, value in values.items() if name in known})


Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def takes(
    call: Callable[Parameters, Any],
) -> Callable[[Callable[[Any, dict[str, Any]], Answer]], Callable[Concatenate[Any, Parameters], Answer]]:
    """Let a method be called with the fields of a dataclass; it gets those that were given, as a dictionary.

    Type checkers and editors see the dataclass's constructor, `help` and `inspect.signature` the same, with all
    options. In the method's docstring, `{options}` stands for the options' entries.

    Args:
        call (`type`): a dataclass that inherits from [`DragSettings`], whose other fields are the rest of the call.
    """
    settings: Any = call
    inputs = [
        each for each in inspect.signature(settings).parameters.values() if each.name not in options_of(settings)
    ]

    def decorate(method: Callable[[Any, dict[str, Any]], Answer]) -> Callable[Concatenate[Any, Parameters], Answer]:
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = inspect.Signature([itself, *inputs, *parameters_of(settings)])

        @functools.wraps(method)
        def called(self: Any, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            del given["self"]
            return method(self, given)

        setattr(called, "__signature__", signature)  # noqa: B010 - types know of no such attribute
        called.__doc__ = (method.__doc__ or "").replace("{options}", docstring_of(settings).strip())
        return called

    return decorate
