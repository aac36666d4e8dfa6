"""A denoiser whose passes are captured once and replayed: on a GPU, Python is what most of an edit waits for.

A pass is captured for each way in which it is used (plain, recording, replaying, supervised), shape and precision. Its
inputs are copied into buffers, among them a timestep's keys and values; what comes out is copied before the next
replay writes over it. Whatever can't be captured, or no longer is what was captured, is run by the eager denoiser.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch
from diffusers import UNet2DConditionModel

from .denoiser import Condition, UNetDenoiser
from .graph_capture import Capture, Graph, capture_on, put, say_once
from .kv_replacement import HeldInputs, KVBank
from .network_state import NetworkState, why_not_captured

MOST_PASSES = 8
"""Captured passes that are kept: the four of an edit, at two sizes."""


class CapturedPasses:
    """The captured passes of a UNet, the last used last, as long as it is what it was.

    Args:
        unet (`UNet2DConditionModel`): the network.
        capture ([`Capture`]): makes graphs.
    """

    def __init__(self, unet: UNet2DConditionModel, capture: Capture) -> None:
        self.unet = unet
        self.capture = capture
        self.passes: OrderedDict[Hashable, AnyPass] = OrderedDict()
        self.has_failed = False
        self._state: NetworkState | None = None

    def are_allowed(self) -> bool:
        """Whether passes may be replayed now. Those of a UNet that has changed are let go."""
        reason = why_not_captured(self.unet)
        if reason is not None:
            say_once(reason)
        if reason is not None or self.has_failed:
            self.clear()
            return False
        state = NetworkState(self.unet)
        if state != self._state:
            self.clear()
        self._state = state
        return True

    def find(self, key: Hashable, make: Callable[[], PassT]) -> PassT | None:
        """A pass that was captured for what `key` says, or is captured now; `None` if that fails."""
        if key not in self.passes:
            try:
                self.passes[key] = make()
            except RuntimeError as error:  # memory is short, or something in the UNet can't be captured
                self.has_failed = True
                self.clear()
                say_once(f"capturing a pass failed: {error}")
                return None
        self.passes.move_to_end(key)
        while len(self.passes) > MOST_PASSES:
            self.passes.popitem(last=False)[1].reset()
        return cast(PassT, self.passes[key])

    def clear(self) -> None:
        """Let go of all of them."""
        while self.passes:
            self.passes.popitem()[1].reset()


@contextmanager
def captured_passes(unet: UNet2DConditionModel, device: torch.device) -> Iterator[CapturedPasses | None]:
    """Context for the time in which a UNet's weights stay where they are; `None` where nothing is captured."""
    capture = capture_on(device)
    passes = None if capture is None else CapturedPasses(unet, capture)
    try:
        yield passes
    finally:
        if passes is not None:
            passes.clear()


class Buffers:
    """What a captured pass reads: latents, timestep, prompt, and a timestep's inputs of keys and values."""

    def __init__(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> None:
        self.latents = torch.empty_like(latents, requires_grad=False)
        self.timestep = torch.empty_like(timestep, device=latents.device)
        self.prompt = torch.empty_like(prompt, requires_grad=False)
        self.inputs = {layer: torch.empty_like(each) for layer, each in inputs.items()}
        self.fill(latents, timestep, prompt, inputs)

    def fill(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> None:
        """Bring in what the next replay is to read."""
        put(self.latents, latents)
        put(self.timestep, timestep)
        put(self.prompt, prompt)
        for layer, buffer in self.inputs.items():
            put(buffer, inputs[layer])

    def denoiser(self, like: UNetDenoiser) -> UNetDenoiser:
        """A denoiser with the prompt's buffer."""
        kwargs = like.condition.cross_attention_kwargs
        return UNetDenoiser(like.unet, Condition(self.prompt, kwargs and dict(kwargs)), like.feature_block)


class InferencePass:
    """A pass without gradients: the model output, and, if it records, the inputs of keys and values."""

    def __init__(
        self, capture: Capture, eager: UNetDenoiser, buffers: Buffers, bank: KVBank | None, mode: Mode
    ) -> None:
        self.buffers = buffers
        self.layers: list[str] = []
        self.denoiser = denoiser = buffers.denoiser(eager)

        @torch.no_grad()
        def run() -> tuple[torch.Tensor, ...]:
            if bank is None:
                return (denoiser(buffers.latents, buffers.timestep),)
            held = HeldInputs(bank.start_layer, buffers.inputs)
            with held.recording(eager.unet) if mode == "recording" else held.replaying(eager.unet):
                output = denoiser(buffers.latents, buffers.timestep)
            if mode == "replaying":
                return (output,)
            self.layers = list(held.inputs)
            return output, *held.inputs.values()

        capture.warm_up(run)
        self.graph: Graph = capture(run)

    def replay(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The model output, and what was recorded."""
        self.graph.replay()
        output, *recorded = (each.clone() for each in self.graph.outputs)
        return output, dict(zip(self.layers, recorded, strict=True))

    def reset(self) -> None:
        """Let go of it."""
        self.graph.reset()


class SupervisedPass:
    """A pass with its gradient to the latent: model output and features in one graph, and the way back in another.

    What the way back needs of the way forth lies in the graphs' memory, for as long as they live; so it is there
    whatever other pass is replayed between, but for one more of this one.
    """

    def __init__(self, capture: Capture, eager: UNetDenoiser, buffers: Buffers) -> None:
        self.buffers = buffers
        self.number = 0  # of the way forth that there is a way back for
        self.denoiser = buffers.denoiser(eager)
        self.latents = buffers.latents.requires_grad_()
        self.outputs: tuple[torch.Tensor, ...] | None = None
        capture.warm_up(self._forth)
        self.gradients = tuple(torch.zeros_like(each) for each in self._attached())
        capture.warm_up(self._back)
        self.outputs = None  # of the warm-up, whose memory is wanted
        self.forth: Graph = capture(self._forth)
        try:
            self.back: Graph = capture(self._back)
        except RuntimeError:
            self.forth.reset()
            raise

    def replay(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Model output and features, with their graph to the `latents` that are in the buffers."""
        return cast(Any, _Replayed.apply(latents, self))

    def reset(self) -> None:
        """Let go of it."""
        self.outputs, self.number = None, -1  # there is no way back any more
        self.back.reset()
        self.forth.reset()

    def _attached(self) -> tuple[torch.Tensor, ...]:
        assert self.outputs is not None
        return self.outputs

    def _forth(self) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            self.outputs = self.denoiser.features(self.latents, self.buffers.timestep)
        return tuple(each.detach() for each in self.outputs)

    def _back(self) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(self._attached(), [self.latents], self.gradients, retain_graph=True)


class _Replayed(torch.autograd.Function):
    """A replayed pass as a part of a graph of autograd."""

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, supervised: SupervisedPass) -> tuple[torch.Tensor, ...]:
        supervised.forth.replay()
        supervised.number += 1
        ctx.supervised, ctx.number = supervised, supervised.number
        return tuple(each.clone() for each in supervised.forth.outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        supervised: SupervisedPass = ctx.supervised
        if supervised.number != ctx.number:
            raise RuntimeError("A later pass has taken the place of this one: take its gradient before the next pass.")
        for buffer, gradient in zip(supervised.gradients, gradients, strict=True):
            put(buffer, gradient)
        supervised.back.replay()
        return supervised.back.outputs[0].clone(), None


Mode = Literal["plain", "recording", "replaying", "supervised"]
AnyPass = InferencePass | SupervisedPass
PassT = TypeVar("PassT", InferencePass, SupervisedPass)


class GraphedDenoiser:
    """A [`Denoiser`] that replays the passes of another one.

    Args:
        eager ([`UNetDenoiser`]): runs the UNet, to be captured, and wherever that can't be.
        captured ([`CapturedPasses`]): of the same UNet.
    """

    def __init__(self, eager: UNetDenoiser, captured: CapturedPasses) -> None:
        self.eager = eager
        self.captured = captured
        self._bank: KVBank | None = None
        self._mode: Mode = "plain"
        self._is_allowed: bool | None = None  # in a context in which that does not change

    @property
    def condition(self) -> Condition:
        """What passes are given; may be exchanged between passes."""
        return self.eager.condition

    @condition.setter
    def condition(self, condition: Condition) -> None:
        self.eager.condition = condition

    @property
    def is_half(self) -> bool:
        return self.eager.is_half

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        wants_gradients = torch.is_grad_enabled() and latents.requires_grad
        bank, mode = self._bank, self._mode
        # A captured pass knows nothing of places that the bank leaves out: these change with each bend of the latent.
        if wants_gradients or not self._may_replay() or (bank is not None and bank.is_silent):
            with self._eagerly() as eager:
                return eager(latents, timestep)
        inputs = bank.at(int(timestep)) if bank is not None and mode == "replaying" else {}
        given = latents, timestep, self.condition.prompt_embeds, inputs
        found = self.captured.find(
            self._key(mode, latents, timestep, *(() if bank is None else (bank.start_layer, *inputs))),
            lambda: InferencePass(self.captured.capture, self.eager, Buffers(*given), bank, mode),
        )
        if found is None:
            with self._eagerly() as eager:
                return eager(latents, timestep)
        found.buffers.fill(*given)
        output, recorded = found.replay()
        if bank is not None and mode == "recording":
            bank.keep(int(timestep), recorded)
        return output

    def features(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keeps = (
            not self.eager.unet.is_gradient_checkpointing
        )  # whose second run draws on the CPU what is no part of it
        if self._bank is not None or not (torch.is_grad_enabled() and keeps and self._may_replay()):
            with self._eagerly() as eager:
                return eager.features(latents, timestep)
        given = latents, timestep, self.condition.prompt_embeds, dict[str, torch.Tensor]()
        found = self.captured.find(
            self._key("supervised", latents, timestep, self.eager.feature_block),
            lambda: SupervisedPass(self.captured.capture, self.eager, Buffers(*given)),
        )
        if found is None:
            return self.eager.features(latents, timestep)
        found.buffers.fill(*given)
        return found.replay(latents)

    @contextmanager
    def recording(self, bank: KVBank) -> Iterator[None]:
        with self._with_bank("recording", bank):
            yield

    @contextmanager
    def replaying(self, bank: KVBank) -> Iterator[None]:
        with self._with_bank("replaying", bank):
            yield

    @contextmanager
    def prompt_projected(self) -> Iterator[None]:
        """The prompt is projected inside what is captured; but here the UNet is looked at once for all passes."""
        before = self._is_allowed
        self._is_allowed = self.captured.are_allowed()
        try:
            if self._is_allowed:
                yield
            else:
                with self.eager.prompt_projected():
                    yield
        finally:
            self._is_allowed = before

    def _may_replay(self) -> bool:
        allowed = self.captured.are_allowed() if self._is_allowed is None else self._is_allowed
        return allowed and not self.captured.has_failed

    @contextmanager
    def _with_bank(self, mode: Mode, bank: KVBank) -> Iterator[None]:
        if bank.is_silent:
            say_once(
                "where something came into view that the picture did not show, keys and values are the edit's own"
            )
        if self._may_replay() and not bank.is_silent:
            self._mode, self._bank = mode, bank
            try:
                yield
            finally:
                self._mode, self._bank = "plain", None
        else:
            before, self._is_allowed = self._is_allowed, False
            try:
                with self.eager.recording(bank) if mode == "recording" else self.eager.replaying(bank):
                    yield
            finally:
                self._is_allowed = before

    @contextmanager
    def _eagerly(self) -> Iterator[UNetDenoiser]:
        """The eager denoiser, in the context that this one is in."""
        if self._bank is None:
            yield self.eager
            return
        in_context = self.eager.recording if self._mode == "recording" else self.eager.replaying
        with in_context(self._bank):
            yield self.eager

    def _key(self, mode: Mode, latents: torch.Tensor, timestep: torch.Tensor, *more: Any) -> Hashable:
        """All that a captured pass takes for granted beside the UNet itself."""
        prompt, kwargs = self.condition.prompt_embeds, self.condition.cross_attention_kwargs or {}
        kind = latents.device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        given = tuple((name, id(value)) for name, value in kwargs.items())
        tensors = tuple((each.shape, each.stride(), each.dtype, each.device) for each in (latents, prompt))
        return mode, tensors, timestep.shape, timestep.dtype, autocast, given, more
