"""A LoRA per picture, so that the denoiser knows the one picture it is to edit (Sec. 3.1, Sec. 4.2).

The adapter lives in the UNet only inside [`attached_identity_lora`]. It stands beside the LoRAs that the user has
loaded, and when it goes, the UNet's modules, adapters, scales and gradient flags are what they were.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from motion_predictor.common.atomic_file import atomic_file

from .denoiser import UNetDenoiser
from .graph_capture import Capture, say_once
from .identity_fit import GraphedLoraFit, LoraFit, LoraSample, draw_sample
from .network_state import why_not_captured
from .repeatable import repeatable_attention
from .settings import DragSettings

logger = logging.get_logger(__name__)

KEPT_IDENTITY_LORAS = 8
ADAPTER_NAME = "dynadrag_identity"
TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
FINGERPRINT_KEY = "dynadrag_picture"
UNET_PREFIX = "unet."


_INJECTION = threading.Lock()
"""peft draws from the process's own generator when it makes an adapter: one at a time, and its state is put back."""


class LoraSettings(NamedTuple):
    """How an identity LoRA is fitted (Sec. 4.2): AdamW steps, rank (alpha is equal to it) and learning rate."""

    steps: int = 200
    rank: int = 16
    learning_rate: float = 2e-4

    @classmethod
    def of(cls, settings: DragSettings) -> LoraSettings:
        """Those of an edit's settings."""
        return cls(settings.identity_lora_steps, settings.identity_lora_rank, settings.identity_lora_lr)


@dataclass(frozen=True)
class IdentityLora:
    """The weights that fit a UNet's attention to one picture.

    Attributes:
        state_dict (`dict[str, torch.Tensor]`): LoRA matrices in peft's naming, on the CPU, float32.
        rank (`int`): r.
        alpha (`float`): the update is scaled by alpha / r.
        picture (`str`, *optional*): [`picture_fingerprint`] of the picture it was fitted to; `None` if not known.
    """

    state_dict: dict[str, torch.Tensor]
    rank: int
    alpha: float
    picture: str | None = None

    def save(self, directory: str | Path) -> Path:
        """Write `pytorch_lora_weights.safetensors`, in the layout that `load_lora_weights` of diffusers reads too.

        The file appears whole or not at all.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {f"{UNET_PREFIX}{key}": value for key, value in _lora_config(self.rank, self.alpha).to_dict().items()}
        metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, default=_as_json, sort_keys=True)}
        if self.picture is not None:
            metadata[FINGERPRINT_KEY] = self.picture
        file = directory / LORA_WEIGHT_NAME_SAFE
        weights = {f"{UNET_PREFIX}{key}": value for key, value in self.state_dict.items()}
        with atomic_file(file) as opened:
            opened.write(save(weights, metadata))
        return file

    @classmethod
    def load(cls, directory: str | Path) -> IdentityLora:
        """Read what [`IdentityLora.save`] wrote.

        Raises:
            ValueError: if the folder holds no such file, or the file is not a LoRA of a UNet's attention.
        """
        file = Path(directory) / LORA_WEIGHT_NAME_SAFE
        if not file.is_file():
            raise ValueError(
                f"`{directory}` has no `{LORA_WEIGHT_NAME_SAFE}`: pass a folder that an identity LoRA was saved to."
            )
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"`{file}` is not a readable safetensors file: {error}.") from error
        weights = {
            key.removeprefix(UNET_PREFIX): value.float()
            for key, value in tensors.items()
            if key.startswith(UNET_PREFIX)
        }
        ranks = {value.shape[0] for key, value in weights.items() if key.endswith("lora_A.weight")}
        if len(ranks) != 1:
            raise ValueError(f"`{file}` is not an identity LoRA: it has LoRA matrices of the ranks {sorted(ranks)}.")
        (rank,) = ranks
        config = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        return cls(weights, rank, config.get(f"{UNET_PREFIX}lora_alpha", rank), metadata.get(FINGERPRINT_KEY))


class IdentityLoras:
    """The identity LoRAs that a pipeline has at hand: the last ones fitted, and one that was loaded.

    Attributes:
        fitted (`OrderedDict`): from what a fit depends on to what it came to; the last used is the last.
        loaded ([`IdentityLora`], *optional*): taken instead of a fit for the picture that it was fitted to.
        current ([`IdentityLora`], *optional*): the one of the last edit.
    """

    def __init__(self) -> None:
        self.fitted: OrderedDict[str, IdentityLora] = OrderedDict()
        self.loaded: IdentityLora | None = None
        self.current: IdentityLora | None = None

    def find(self, picture: str, key: Callable[[], str], fit: Callable[[], IdentityLora]) -> IdentityLora:
        """The LoRA of a picture: the loaded one if it is this picture's, one fitted before, or a new fit.

        Args:
            picture (`str`): its fingerprint, from [`picture_fingerprint`].
            key (`Callable`): answers with everything that a fit depends on, by [`fit_key`].
            fit (`Callable`): fits one.
        """
        if self.loaded is not None and self.loaded.picture in (None, picture):
            return self.loaded
        if self.loaded is not None:
            logger.warning("The loaded identity LoRA is for another picture, or another size of it: it is not used.")
        content = key()
        if content not in self.fitted:
            self.fitted[content] = fit()
        self.fitted.move_to_end(content)
        while len(self.fitted) > KEPT_IDENTITY_LORAS:
            self.fitted.popitem(last=False)
        return self.fitted[content]


def check_fit_beside(unet: UNet2DConditionModel) -> None:
    """Raise a ValueError if a UNet carries adapters that an identity LoRA can't be fitted beside."""
    if ADAPTER_NAME in getattr(unet, "peft_config", {}):
        raise ValueError(
            f"`unet` must have no adapter called {ADAPTER_NAME!r}, the identity LoRA's name: load yours under "
            "another `adapter_name`, or an identity LoRA by `load_identity_lora()`."
        )
    suffixes = tuple(f".{target}" for target in TARGET_MODULES)
    for name, layer in tuner_layers(unet).items():
        if name.endswith(suffixes) and (not isinstance(layer, LoraLayer) or isinstance(layer, AdaLoraLayer)):
            kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
            raise ValueError(
                f"`unet` must have no adapters but LoRAs on its attention, got {kind} on {name}: unload it, or pass "
                "`identity_lora_steps=0`."
            )


def fit_identity_lora(
    denoiser: UNetDenoiser,
    scheduler_config: FrozenDict,
    sample_latents: Callable[[torch.Generator], torch.Tensor],
    settings: LoraSettings,
    *,
    seed: int = 0,
    picture: str | None = None,
    progress_bar: Callable[[int], Any],
    capture: Capture | None = None,
) -> IdentityLora:
    """Fit a LoRA on all attention projections of the UNet to one picture (Sec. 4.2: rank 16, 200 steps, 2e-4).

    AdamW minimises the mean squared error on the UNet's own prediction type, at timesteps drawn uniformly from the
    training schedule. The UNet keeps its precision, the LoRA is float32.

    Args:
        denoiser ([`UNetDenoiser`]): runs the UNet, which is as before when this returns or raises.
        scheduler_config (`FrozenDict`): noise schedule and prediction type.
        sample_latents (`Callable`): draws z_0 of the picture, `(1, channels, height, width)`, from its posterior.
        settings ([`LoraSettings`]): steps, rank and learning rate.
        seed (`int`, defaults to 0): seeds the initial matrices, the noise and the timesteps.
        picture (`str`, *optional*): fingerprint to file the result under.
        progress_bar (`Callable`): `steps -> context manager with update()`, like `tqdm`.
        capture ([`Capture`], *optional*): captures a step, to be replayed for all of them.

    Raises:
        FloatingPointError: if a gradient is not finite in float16, however the loss is scaled, or a weight is not.
    """
    unet = denoiser.unet
    noise_schedule = DDPMScheduler.from_config(scheduler_config)
    generator = torch.Generator().manual_seed(seed)
    with _identity_adapter(unet, _lora_config(settings.rank, settings.rank), seed), torch.enable_grad():
        parameters = [parameter for name, parameter in unet.named_parameters() if f".{ADAPTER_NAME}." in name]
        unet.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        fit = LoraFit(denoiser, noise_schedule, parameters, settings.learning_rate)
        graphed: GraphedLoraFit | None = None
        device = denoiser.condition.prompt_embeds.device
        try:
            with repeatable_attention(unet, device), progress_bar(settings.steps) as progress:
                for step in range(settings.steps):
                    sample = draw_sample(sample_latents, noise_schedule, generator)
                    if step == 0:
                        graphed = _graphed(fit, capture, sample)
                    (graphed or fit).step(sample)
                    progress.update()
        finally:
            if graphed is not None:
                graphed.reset()
        state_dict = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
        weights = {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in state_dict.items()}
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise FloatingPointError(
            f"The identity LoRA came to weights that are not finite: lower `identity_lora_lr`, got "
            f"{settings.learning_rate:g}."
        )
    return IdentityLora(weights, settings.rank, settings.rank, picture)


@contextmanager
def attached_identity_lora(unet: UNet2DConditionModel, lora: IdentityLora | None) -> Iterator[None]:
    """Context in which the UNet carries `lora` beside the user's adapters; with `None` nothing is attached.

    It is added to the weights, so that no pass takes longer for it. Afterwards the weights themselves are put back:
    subtracting it again would leave them a little changed in half precision.

    Raises:
        ValueError: if the LoRA's matrices don't fit this UNet.
    """
    if lora is None:
        yield
        return
    projections = attention_projections(unet)
    expected = {
        f"{name}.lora_{side}.weight": shape
        for name, layer in projections.items()
        for side, shape in (("A", (lora.rank, layer.weight.shape[1])), ("B", (layer.weight.shape[0], lora.rank)))
    }
    if expected != {key: tuple(value.shape) for key, value in lora.state_dict.items()}:
        raise ValueError("The identity LoRA does not fit this UNet: it was made for another architecture.")
    if any(layer.weight.is_meta for layer in projections.values()) or _any_looks_at_its_base(unet):
        with attached_as_adapter(unet, lora):
            yield
        return
    requires_grad = {parameter: parameter.requires_grad for parameter in unet.parameters()}
    before = {name: layer.weight for name, layer in projections.items()}
    try:
        for name, layer in projections.items():
            precise = torch.promote_types(layer.weight.dtype, torch.float32)
            up, down = (
                lora.state_dict[f"{name}.lora_{side}.weight"].to(layer.weight.device, precise) for side in "BA"
            )
            merged = layer.weight.to(precise) + lora.alpha / lora.rank * (up @ down)
            layer.weight = torch.nn.Parameter(merged.to(layer.weight.dtype), False)
        unet.requires_grad_(False)
        yield
    finally:
        for name, layer in projections.items():
            before[name].data = before[name].data.to(layer.weight.device)  # offloading may have moved the layer
            layer.weight = before[name]
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


@contextmanager
def attached_as_adapter(unet: UNet2DConditionModel, lora: IdentityLora) -> Iterator[None]:
    """Context in which the UNet carries `lora` as an adapter beside the weights, not in them.

    For a UNet whose weights are offloaded one by one: there is nothing to add to. And for one with a DoRA of the
    user's, which scales what it is added to: while `lora` was fitted, that was the weights without it. Each pass takes
    a little longer.
    """
    with _identity_adapter(unet, _lora_config(lora.rank, lora.alpha), seed=0):
        set_peft_model_state_dict(unet, lora.state_dict, adapter_name=ADAPTER_NAME)
        unet.requires_grad_(False)
        yield


def attention_projections(unet: UNet2DConditionModel) -> dict[str, torch.nn.Linear]:
    """The layers that an identity LoRA adds to, by name, without the wrappers of the user's adapters."""
    suffixes = tuple(f".{target}" for target in TARGET_MODULES)
    named = {name: module for name, module in unet.named_modules() if name.endswith(suffixes)}
    return {
        name: module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for name, module in named.items()
    }


@contextmanager
def scaled_adapters(model: torch.nn.Module, scale: float) -> Iterator[None]:
    """Context in which the user's own active adapters in a model count `scale` times.

    That is the `scale` of `cross_attention_kwargs`. The UNet would apply it to every adapter, the identity LoRA among
    them; so it is applied here, first.

    Raises:
        ValueError: if they are of a kind that has no scale.
    """
    scaled = {} if scale == 1 else tuner_layers(model)
    for name, layer in scaled.items():
        if not hasattr(layer, "scale_layer") or not isinstance(getattr(layer, "scaling", None), dict):
            kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
            raise ValueError(f"`cross_attention_kwargs['scale']` must be 1 beside {kind} on {name}, got {scale!r}.")
    before = [(layer, dict(layer.scaling)) for layer in scaled.values()]
    try:
        for layer, _ in before:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in before:
            layer.scaling.update(scaling)


def _graphed(fit: LoraFit, capture: Capture | None, like: LoraSample) -> GraphedLoraFit | None:
    """The fit as graphs, where there is a way to capture it, and nothing in the way."""
    unet = fit.denoiser.unet
    if capture is None or unet.is_gradient_checkpointing:
        return None
    reason = why_not_captured(unet)
    if reason is None:
        try:
            return GraphedLoraFit(fit, capture, like)
        except RuntimeError as error:  # memory is short, or something in the UNet can't be captured
            reason = f"capturing a step of the identity LoRA failed: {error}"
    say_once(reason)
    return None


def _lora_config(rank: int, alpha: float) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=TARGET_MODULES)


def _as_json(value: Any) -> Any:
    """peft's configs hold sets and enums."""
    return sorted(value) if isinstance(value, set) else str(value)


def tuner_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The modules of a model that carry adapters of any kind, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def lora_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The modules of a model that carry LoRA adapters, by name."""
    return {name: module for name, module in tuner_layers(model).items() if isinstance(module, LoraLayer)}


@contextmanager
def _identity_adapter(unet: UNet2DConditionModel, config: LoraConfig, seed: int) -> Iterator[None]:
    """Add a fresh adapter beside the active ones, and take exactly it away again.

    diffusers' own calls are made for users who switch adapters: adding one switches the others off, `set_adapters`
    resets their scales, and deleting one leaves its wrappers behind. Hence the layers are handled one by one here.
    """
    before = _adapter_states(unet)
    configs = dict(unet.peft_config) if hasattr(unet, "peft_config") else None
    requires_grad = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    try:
        _inject(unet, config)
        _restore_states(before)
        ours = {name: layer for name, layer in lora_layers(unet).items() if ADAPTER_NAME in layer.lora_A}
        _draw_matrices(ours, seed)
        for layer in ours.values():
            theirs = [] if layer.disable_adapters else layer.active_adapters
            layer.enable_adapters(True)
            layer.set_adapter([*(each for each in theirs if each != ADAPTER_NAME), ADAPTER_NAME])
        yield
    finally:
        _detach(unet, before)
        if configs is None and hasattr(unet, "peft_config"):
            del unet.peft_config
        elif configs is not None:
            unet.peft_config.pop(ADAPTER_NAME, None)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(requires_grad[name])


def _adapter_states(unet: UNet2DConditionModel) -> dict[torch.nn.Module, tuple[Any, bool]]:
    """Which adapters are active in each module that has any, and whether they are switched off.

    As peft keeps it: its methods to set it change gradient flags along, and refuse what they would not have made.
    """
    return {
        module: (copy(module._active_adapter), module._disable_adapters)
        for module in unet.modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }


def _restore_states(states: Mapping[torch.nn.Module, tuple[Any, bool]]) -> None:
    """Put back what [`_adapter_states`] found, in modules that have no adapters of ours as in those that have."""
    for module, (active, disabled) in states.items():
        vars(module).update(_active_adapter=copy(active), _disable_adapters=disabled)


def _inject(unet: UNet2DConditionModel, config: LoraConfig) -> None:
    """Let peft put the adapter's layers in place, without a change of the process's random state."""
    with _INJECTION, torch.random.fork_rng(devices=[]), _weights_in_place(unet), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        inject_adapter_in_model(config, unet, ADAPTER_NAME)


def _draw_matrices(layers: Mapping[str, Any], seed: int) -> None:
    """Gaussian A with a spread of 1 / rank, and B of zeros, in float32, by a generator of their own.

    In the order in which peft draws, which fills both uniformly first: the same seed gives the same matrices as its
    own way from the process's generator.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        down, up = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        first, second = (torch.empty(each.weight.shape) for each in (down, up))
        for matrix in (first, second):
            matrix.uniform_(generator=generator)
        first.normal_(std=1 / len(first), generator=generator)
        down.weight = torch.nn.Parameter(first.to(down.weight.device))
        up.weight = torch.nn.Parameter(second.zero_().to(up.weight.device))


@contextmanager
def _weights_in_place(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which weights that are offloaded one by one seem to be on their device.

    peft makes an adapter where the weights are, and these are nowhere. No memory is taken: all elements are one.
    """
    offloaded = [layer for layer in attention_projections(unet).values() if layer.weight.is_meta]
    before = [layer.weight for layer in offloaded]
    for layer in offloaded:
        hook: Any = layer._hf_hook
        element = torch.zeros(1, dtype=layer.weight.dtype, device=hook.execution_device)
        layer.weight = torch.nn.Parameter(element.expand(layer.weight.shape), False)
    try:
        yield
    finally:
        for layer, weight in zip(offloaded, before, strict=True):
            layer.weight = weight


def _detach(unet: UNet2DConditionModel, before: Mapping[torch.nn.Module, tuple[Any, bool]]) -> None:
    """Remove the identity adapter, and the wrappers that came with it, from a UNet whose layers were `before`."""
    for name, layer in lora_layers(unet).items():
        if layer not in before:
            unet.set_submodule(name, layer.get_base_layer())
        elif ADAPTER_NAME in layer.lora_A:
            layer.delete_adapter(ADAPTER_NAME)
            for kept in vars(layer).values():  # peft leaves a word on each adapter in some of its tables
                if isinstance(kept, dict):
                    kept.pop(ADAPTER_NAME, None)
    _restore_states(before)


def _any_looks_at_its_base(unet: UNet2DConditionModel) -> bool:
    """Whether a LoRA on the attention computes with the weights that it is added to, as DoRA does."""
    suffixes = tuple(f".{target}" for target in TARGET_MODULES)
    return any(name.endswith(suffixes) and layer.lora_variant for name, layer in lora_layers(unet).items())
