"""What an edit costs on a GPU, and whether it is the same each time: all in one run, with nothing to download.

python benchmarks/gpu.py --out runs/gpu
python benchmarks/gpu.py --quick --out runs/gpu
python benchmarks/gpu.py --device cpu --tiny --out runs/tiny  # that it runs: no figure of it means anything

Networks of Stable Diffusion 1.5's size with random weights, 512 x 512 pixels, built on the device. An edit is 50 DDIM
steps, 5 supervision steps and 25 iterations, of which the eager rows make a few, and are scaled; the replayed rows
make all. The floor is what the edit's passes take by themselves, replayed one after the other. A section that fails
says so, and the others go on. Tables are written to `gpu.md`, numbers to `gpu.json`. Nothing else should run on the
GPU.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import platform
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import skimage.data
import torch
from PIL import Image
from random_networks import forget_peak, peak_memory, random_networks, synchronize
from speed import HANDLES, HEAD, TARGETS, Measures, Subject, in_a_process

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline, repeatable
from dynadrag_pipeline.components import frozen_components
from dynadrag_pipeline.denoiser import Condition, Denoiser, UNetDenoiser
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.drag_loop import DragLoop
from dynadrag_pipeline.encoding import decode_latents, encode_picture
from dynadrag_pipeline.graphed_denoiser import GraphedDenoiser, captured_passes
from dynadrag_pipeline.identity_lora import IdentityLora
from dynadrag_pipeline.kv_replacement import KVBank, default_kv_start_layer
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.source import EditView, Motion, guarded_motion
from dynadrag_pipeline.picture import to_picture_tensor
from dynadrag_pipeline.repeatable import repeatable_attention, repeatable_convolutions
from dynadrag_pipeline.session import DragSession
from motion_predictor.common.atomic_file import atomic_file

Row = dict[str, Any]
Table = dict[str, Row]

SUPERVISION_STEPS = 5
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps, iterations, lora_steps (`int`): of an edit.
        eager_iterations, eager_lora_steps (`int`): of the rows that are scaled.
        repeats (`int`): of a single pass.
        dtypes (`tuple[str, ...]`): in which calls are compared.
        is_whole (`bool`): whether a second process, offloading and the embedded checkpoint are measured, too.
    """

    steps: int = 50
    iterations: int = 25
    lora_steps: int = 200
    eager_iterations: int = 2
    eager_lora_steps: int = 20
    repeats: int = 20
    dtypes: tuple[str, ...] = DTYPES
    is_whole: bool = True


QUICK = Plan(20, 5, 50, eager_iterations=1, eager_lora_steps=5, repeats=10, dtypes=("float16",), is_whole=False)
TINY = Plan(steps=4, iterations=2, lora_steps=3, eager_iterations=1, eager_lora_steps=2, repeats=2)


class EvenMotion(PredictedMotion):
    """Asks the predictor, for what that costs, and goes in equal steps, so that no edit ends early."""

    name = "even"
    always_arrives = True

    def propose(self, view: EditView) -> Motion:
        return guarded_motion(view, view.straight_step, super().propose(view).flow)


class Stages:
    """Seconds by stage, each waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, stage: str, function: Callable[[], Any]) -> Any:
        synchronize(self.device)
        began = time.perf_counter()
        answer = function()
        synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - began
        return answer

    def iterate(self, edit: DragEdit) -> None:
        """An iteration, part by part."""
        self.timed("selection", edit.select_points)
        self.timed("motion prediction", edit.propose_motion)
        self.timed("motion supervision", edit.supervise_motion)
        self.timed("denoising", edit.denoise)
        edit.locate_handles()


class Bench:
    """The networks of a run, its picture and its points.

    Args:
        device (`torch.device`): where to run.
        dtype (`str`): the networks' precision.
        plan ([`Plan`]): how much is measured.
        is_tiny (`bool`): whether the networks are tiny.
    """

    def __init__(self, device: torch.device, dtype: str, plan: Plan, is_tiny: bool) -> None:
        self.device, self.dtype, self.plan, self.is_tiny = device, dtype, plan, is_tiny
        self.networks = random_networks(device, getattr(torch, dtype), is_tiny)
        self.pipe = self.networks.pipeline()
        side = self.networks.side
        head = Image.fromarray(skimage.data.astronaut()).crop(HEAD).resize((side, side), Image.Resampling.LANCZOS)
        self.picture = head
        self.handles, self.targets = (
            [(side / 128 * x, side / 128 * y) for x, y in each] for each in (HANDLES, TARGETS)
        )
        self.fastest: dict[str, float] = {}  # seconds of a replayed pass, for the floor

    @property
    def options(self) -> dict[str, Any]:
        """Of every edit: so that it is of the planned length."""
        return {"num_inference_steps": self.plan.steps, "supervision_steps": SUPERVISION_STEPS, "stop_distance": 0.0}

    def session(self, **options: Any) -> DragSession:
        """A session of the picture, not opened yet."""
        return DragSession(
            models=self.pipe,
            in_force=self.pipe.settings_in_force(self.options | options),
            picture=to_picture_tensor(self.picture),
            progress_bar=_no_progress,
        )

    def call(self, **options: Any) -> Any:
        """A whole edit, its LoRA fitted anew."""
        self.pipe.identity_loras.fitted.clear()
        given = {"motion": EvenMotion(self.pipe.motion_predictor), "output_type": "pt"} | self.options | options
        return self.pipe(self.picture, self.handles, self.targets, **given)

    # --- single passes ---

    @torch.no_grad()
    def passes(self) -> Table:
        """Milliseconds of each kind of pass, launched by Python and replayed, and how far apart they are."""
        unet, table = self.networks.unet, Table()
        condition = Condition(self.networks.prompt_embeds)
        side = unet.config.sample_size
        latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)
        with (
            frozen_components(self.pipe),
            repeatable_convolutions(self.device),
            repeatable_attention(unet, self.device),
        ):
            eager = UNetDenoiser(unet, condition)
            with captured_passes(unet, self.device) as captured:
                graphed = None if captured is None else GraphedDenoiser(eager, captured)
                for name, run in self._kinds(latents).items():
                    table[name] = self._pass(name, run, eager, graphed)
                    if graphed is not None:
                        self.fastest[name] = table[name]["replayed, ms"] / 1e3
            own = self._kinds(latents)["supervised, with gradient"]
        with _torch_s_own_gradients(), frozen_components(self.pipe), captured_passes(unet, self.device) as captured:
            graphed = None if captured is None else GraphedDenoiser(eager, captured)
            table["the same, by kernels that add in any order"] = self._pass("own", own, eager, graphed)
        with captured_passes(
            unet, self.device
        ) as captured:  # outside of `frozen_components`, kernels are as they were
            graphed = None if captured is None else GraphedDenoiser(eager, captured)
            plain = self._kinds(latents)["plain"]
            table["plain, kernels not in channels_last"] = self._pass("plain", plain, eager, graphed)
        return table

    def _kinds(self, latents: torch.Tensor) -> dict[str, Callable[[Denoiser], Callable[[], Any]]]:
        """Each kind of pass, as what a denoiser prepares and then does again and again."""
        timestep = torch.tensor(501)
        start = default_kv_start_layer(self.networks.unet)

        def plain(denoiser: Denoiser) -> Callable[[], Any]:
            return lambda: denoiser(latents, timestep)

        def recording(denoiser: Denoiser) -> Callable[[], Any]:
            def run() -> torch.Tensor:
                with denoiser.recording(KVBank(start)):
                    return denoiser(latents, timestep)

            return run

        def replaying(denoiser: Denoiser) -> Callable[[], Any]:
            bank = KVBank(start)
            with denoiser.recording(bank):
                denoiser(latents, timestep)

            def run() -> torch.Tensor:
                with denoiser.replaying(bank):
                    return denoiser(latents, timestep)

            return run

        def supervised(denoiser: Denoiser) -> Callable[[], Any]:
            at = latents.clone().requires_grad_()

            def run() -> torch.Tensor:
                with torch.enable_grad():
                    return denoiser.features(at, timestep)[1].detach()

            return run

        def with_gradient(denoiser: Denoiser) -> Callable[[], Any]:
            at = latents.clone().requires_grad_()

            def run() -> torch.Tensor:
                with torch.enable_grad():
                    output, features = denoiser.features(at, timestep)
                    return torch.autograd.grad(output.mean() + features.float().mean(), at)[0]

            return run

        return {
            "plain": plain,
            "recording": recording,
            "replaying": replaying,
            "supervised": supervised,
            "supervised, with gradient": with_gradient,
        }

    def _pass(
        self,
        name: str,
        kind: Callable[[Denoiser], Callable[[], Any]],
        eager: UNetDenoiser,
        graphed: GraphedDenoiser | None,
    ) -> Row:
        run = kind(eager)
        expected = run().clone()
        row: Row = {"by Python, ms": 1e3 * self._seconds(run)}
        if graphed is None:
            return row
        began = time.perf_counter()
        with _looked_at_once(graphed):
            replay = kind(graphed)
            answer = replay().clone()
            synchronize(self.device)
            row["captured in, s"] = time.perf_counter() - began
            row["replayed, ms"] = 1e3 * self._seconds(replay)
        row["apart"] = (answer.float() - expected.float()).abs().max().item()
        row["of"] = expected.float().abs().max().item()
        row["again apart"] = (replay().float() - answer.float()).abs().max().item()
        return row

    def _seconds(self, run: Callable[[], Any]) -> float:
        """Of one of several in a row."""
        for _ in range(2):
            run()
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(self.plan.repeats):
            run()
        synchronize(self.device)
        return (time.perf_counter() - began) / self.plan.repeats

    # --- edits ---

    def edits(self) -> Table:
        """The edit apart from its LoRA, stage by stage (Table 3 of the paper)."""
        plan = self.plan
        table = {
            "plain": self._plain(),
            "exact, by Python": self._edit(plan.eager_iterations, cuda_graphs=False),
            "exact": self._edit(plan.iterations),
            "previews of 4 steps": self._edit(plan.iterations, preview_steps=4),
        }
        for row in table.values():
            row["times as fast as plain"] = table["plain"]["seconds"] / row["seconds"]
        return table

    @torch.no_grad()
    def _plain(self) -> Row:
        """The method as published, as in `speed.py`."""
        args = argparse.Namespace(
            device=str(self.device),
            dtype=self.dtype,
            threads=torch.get_num_threads(),
            random_stable_diffusion=True,
            steps=self.plan.steps,
            iterations=self.plan.eager_iterations,
            identity_lora_steps=1,
        )
        subject, measures, stages = Subject(args, self.networks), Measures(), Stages(self.device)
        forget_peak(self.device)
        with subject.prepared(measures, subject.fit_lora()):
            engine = subject.engine(measures, partial(decode_latents, subject.vae))
            latents = encode_picture(subject.vae, subject.picture)[0]
            noise = stages.timed("inversion", lambda: engine.invert(latents))
            reference = stages.timed("reference", lambda: engine.denoise_reference(noise))
            loop = DragLoop(subject.edit(engine, noise, reference), stages.iterate)
            steps = stages.timed("dragging", lambda: list(loop))
        return self._row(stages, len(steps), preview_steps=None)

    @torch.no_grad()
    def _edit(self, iterations: int, **options: Any) -> Row:
        session = self.session(max_iterations=iterations, identity_lora_steps=0, **options)
        stages = Stages(self.device)
        forget_peak(self.device)
        with session.working():
            stages.timed("encoding", session.encode)
            with session.carrying_lora():
                stages.timed("inversion", session.invert)
                stages.timed("reference", session.denoise_reference)
            source = EvenMotion(self.pipe.motion_predictor)
            steps = session.drag(self.handles, self.targets, motion=source, iterate=stages.iterate)
            done = stages.timed("dragging", lambda: list(steps))
        return self._row(stages, len(done), options.get("preview_steps"))

    def _row(self, stages: Stages, iterations: int, preview_steps: int | None) -> Row:
        """Seconds of an edit of the planned length, from one of `iterations`."""
        plan, measured = self.plan, dict(stages.seconds)
        dragging = measured.pop("dragging")
        parts = ("selection", "motion prediction", "motion supervision", "denoising")
        once = sum(seconds for stage, seconds in measured.items() if stage not in parts)
        measured["decoding and the rest"] = dragging - sum(measured.get(part, 0.0) for part in parts)
        scale = plan.iterations / iterations
        scaled = {
            stage: seconds * (scale if stage in (*parts, "decoding and the rest") else 1)
            for stage, seconds in measured.items()
        }
        seconds = once + dragging * scale
        row: Row = {"iterations measured": iterations, "seconds": seconds}
        floor = self._floor(preview_steps)
        if floor:
            row["over the floor"] = seconds / floor
        row["GiB at most"] = peak_memory(self.device) / 2**30
        row["stages"] = scaled
        return row

    def _floor(self, preview_steps: int | None) -> float:
        """Seconds of the passes of an exact edit, or one with previews, replayed one after the other."""
        if not self.fastest:
            return 0.0
        plan, one = self.plan, self.fastest
        between = plan.steps if preview_steps is None else min(preview_steps, plan.steps)
        denoising = (plan.iterations - 1) * between + plan.steps
        supervised = plan.iterations * SUPERVISION_STEPS * one["supervised, with gradient"] + one["supervised"]
        return plan.steps * (one["plain"] + one["recording"]) + denoising * one["replaying"] + supervised

    def whole(self) -> Table:
        """Calls of the pipeline, LoRA and all."""
        table = Table()
        for name, options in {"exact": {}, "previews of 4 steps": {"preview_steps": 4}}.items():
            forget_peak(self.device)
            synchronize(self.device)
            began = time.perf_counter()
            given = {"max_iterations": self.plan.iterations, "identity_lora_steps": self.plan.lora_steps}
            self.call(**given, **options)
            synchronize(self.device)
            seconds = time.perf_counter() - began
            table[name] = {"seconds": seconds, "GiB at most": peak_memory(self.device) / 2**30}
        return table

    def lora(self) -> Table:
        """The identity LoRA, by Python and replayed, and how far its weights are apart after the same steps."""
        plan = self.plan
        few, by_python = self._fit(plan.eager_lora_steps, cuda_graphs=False)
        _, replayed = self._fit(plan.eager_lora_steps)
        all_steps, _ = self._fit(plan.lora_steps)
        apart = max(
            (by_python.state_dict[name] - value).abs().max().item() for name, value in replayed.state_dict.items()
        )
        largest = max(value.abs().max().item() for value in by_python.state_dict.values())
        scaled = few["seconds"] * plan.lora_steps / plan.eager_lora_steps
        return {
            "by Python": {**few, "seconds": scaled, "steps measured": plan.eager_lora_steps},
            "replayed": {**all_steps, "steps measured": plan.lora_steps, "apart": apart, "of": largest},
        }

    @torch.no_grad()
    def _fit(self, steps: int, **options: Any) -> tuple[Row, IdentityLora]:
        session = self.session(identity_lora_steps=steps, **options)
        forget_peak(self.device)
        with session.working():
            session.encode()
            synchronize(self.device)
            began = time.perf_counter()
            lora = session.fit_identity_lora()
            synchronize(self.device)
        return {"seconds": time.perf_counter() - began, "GiB at most": peak_memory(self.device) / 2**30}, lora

    @torch.no_grad()
    def one_iteration(self) -> Table:
        """Replayed and by Python, after one iteration from the same start."""
        session = self.session(identity_lora_steps=0, max_iterations=1).open()
        for options in ({"cuda_graphs": False}, {}, {}):
            source = EvenMotion(self.pipe.motion_predictor)
            list(session.drag(self.handles, self.targets, motion=source, **options))
        by_python, replayed, again = (result.state for result in session.history)
        return {
            name: {
                "latent apart": (one.noise - other.noise).abs().max().item(),
                "picture apart, of 255": 255 * (one.image - other.image).abs().max().item(),
            }
            for name, one, other in (
                ("replayed and by Python", replayed, by_python),
                ("replayed and again", replayed, again),
            )
        }

    @torch.no_grad()
    def busy(self) -> Table:
        """The share of an iteration in which the GPU works, as its profiler sees it."""
        if self.device.type != "cuda":
            return {"an iteration": {"share": None}}
        table = Table()
        for name, options in {"exact": {}, "previews of 4 steps": {"preview_steps": 4}}.items():
            session = self.session(identity_lora_steps=0, max_iterations=3, **options).open()
            shares: list[float] = []

            def iterate(edit: DragEdit, shares: list[float] = shares) -> None:
                if edit.k != 1:  # the first one captures, and the last one has no preview
                    edit.iterate()
                    return
                synchronize(self.device)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    began = time.perf_counter()
                    edit.iterate()
                    synchronize(self.device)
                    seconds = time.perf_counter() - began
                shares.append(_busy_seconds(profile) / seconds)

            source = EvenMotion(self.pipe.motion_predictor)
            list(session.drag(self.handles, self.targets, motion=source, iterate=iterate))
            table[name] = {"share": shares[0]}
        return table

    def strictly(self) -> Table:
        """With torch's own switch, and without."""
        given = {"max_iterations": 2, "identity_lora_steps": self.plan.eager_lora_steps}
        table, pictures = Table(), {}
        for name, strict in {"as it is": False, "torch.use_deterministic_algorithms(True)": True}.items():
            torch.use_deterministic_algorithms(strict)
            try:
                synchronize(self.device)
                began = time.perf_counter()
                pictures[name] = self.call(**given).images
                synchronize(self.device)
                table[name] = {"seconds": time.perf_counter() - began}
            finally:
                torch.use_deterministic_algorithms(False)
        apart = 255 * (pictures["as it is"] - pictures["torch.use_deterministic_algorithms(True)"]).abs().max().item()
        table["torch.use_deterministic_algorithms(True)"]["apart, of 255"] = apart
        return table


def repeated(device: torch.device, plan: Plan, is_tiny: bool) -> Table:
    """Two calls in this process, and one in another: the pictures' bits."""
    here = _short_edits(str(device), plan, is_tiny, calls=2)
    elsewhere = in_a_process(_short_edits, str(device), plan, is_tiny, 1) if plan.is_whole else {}
    table = Table()
    for dtype, (first, second) in here.items():
        table[dtype] = {
            "two calls": "the same bits" if torch.equal(first, second) else "other bits",
            "apart, of 255": 255 * (first - second).abs().max().item(),
        }
        if dtype in elsewhere:
            same = torch.equal(first, elsewhere[dtype][0])
            table[dtype]["another process"] = "the same bits" if same else "other bits"
        table[dtype]["sha256"] = hashlib.sha256(first.numpy().tobytes()).hexdigest()[:16]
    return table


def _short_edits(device: str, plan: Plan, is_tiny: bool, calls: int) -> dict[str, list[torch.Tensor]]:
    """Pictures of the same call, again and again, in each precision."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    given = {"num_inference_steps": min(10, plan.steps), "max_iterations": 2, "identity_lora_steps": 5}
    pictures = {}
    for dtype in plan.dtypes:
        bench = Bench(torch.device(device), dtype, plan, is_tiny)
        pictures[dtype] = [bench.call(**given).images.cpu() for _ in range(calls)]
    return pictures


def memory(device: torch.device, dtype: str, plan: Plan, is_tiny: bool) -> Table:
    """GiB at most, networks included: an edit of two iterations, and a fit of a LoRA with next to no edit."""
    rows: dict[str, tuple[Callable[[DynaDragPipeline], object], dict[str, Any]]] = {
        "as it is": (lambda pipe: None, {}),
        "without graphs": (lambda pipe: None, {"cuda_graphs": False}),
        "K/V on the host": (lambda pipe: None, {"kv_placement": "host"}),
    }
    if plan.is_whole:
        rows["gradient checkpointing"] = (lambda pipe: pipe.unet.enable_gradient_checkpointing(), {})
    if plan.is_whole and device.type == "cuda":
        rows["model offload"] = (partial(_offloaded, device=device), {"num_inference_steps": 10})
        rows["sequential offload"] = (partial(_offloaded, device=device, by_layer=True), {"num_inference_steps": 4})
    table = Table()
    for name, (prepare, options) in rows.items():
        table[name] = Row()
        try:
            _most_held(table[name], Bench(device, dtype, plan, is_tiny), prepare, options)
        except Exception as error:  # the other rows are worth having
            traceback.print_exc()
            table[name]["failed"] = f"{type(error).__name__}: {error}"
        gc.collect()
    return table


def _most_held(row: Row, bench: Bench, prepare: Callable[[DynaDragPipeline], object], options: dict[str, Any]) -> None:
    prepare(bench.pipe)
    forget_peak(bench.device)
    bench.call(**{"max_iterations": 2, "identity_lora_steps": 0} | options)
    row["edit"] = peak_memory(bench.device) / 2**30
    if bench.plan.is_whole:
        forget_peak(bench.device)
        bench.call(**options | {"max_iterations": 1, "identity_lora_steps": 2, "num_inference_steps": 2})
        row["LoRA fit"] = peak_memory(bench.device) / 2**30


def _offloaded(pipe: DynaDragPipeline, device: torch.device, by_layer: bool = False) -> None:
    pipe.to("cpu")
    pipe.unet.enable_gradient_checkpointing()
    (pipe.enable_sequential_cpu_offload if by_layer else pipe.enable_model_cpu_offload)(device=device)


def embedded(device: torch.device, plan: Plan, is_tiny: bool) -> Table:
    """The embedded checkpoint's pictures beside the CPU's in float32: means, of 255."""
    short = {"max_iterations": 2, "identity_lora_steps": 2} if is_tiny else {}
    head = Image.fromarray(skimage.data.astronaut()).crop(HEAD).resize((128, 128), Image.Resampling.LANCZOS)

    def edited(on: torch.device, dtype: str) -> torch.Tensor:
        pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT, dtype=getattr(torch, dtype)).to(on)
        pipe.set_progress_bar_config(disable=True)
        return pipe(head, HANDLES, TARGETS, output_type="pt", **short).images.cpu()

    expected = edited(torch.device("cpu"), "float32")
    differences = {dtype: 255 * (edited(device, dtype) - expected).abs() for dtype in DTYPES}
    return {dtype: {"mean": each.mean().item(), "most": each.max().item()} for dtype, each in differences.items()}


@contextmanager
def _torch_s_own_gradients() -> Iterator[None]:
    """Context in which a GPU's gradients are torch's own, as on the CPU."""
    before = repeatable.adds_in_any_order
    repeatable.adds_in_any_order = lambda device: False
    try:
        yield
    finally:
        repeatable.adds_in_any_order = before


@contextmanager
def _looked_at_once(denoiser: Denoiser) -> Iterator[None]:
    """Context of a loop of passes, as an edit enters it."""
    with denoiser.prompt_projected():
        yield


def _busy_seconds(profile: Any) -> float:
    """How long at least one kernel or copy ran."""
    cuda = torch.autograd.DeviceType.CUDA
    events = [each for each in profile.profiler.kineto_results.events() if each.device_type() == cuda]
    spans = sorted((each.start_ns(), each.start_ns() + each.duration_ns()) for each in events)
    busy, until = 0, -math.inf
    for start, end in spans:
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy / 1e9


class _NoProgress:
    def __enter__(self) -> _NoProgress:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def update(self) -> None:
        """Nothing to show."""

    def set_postfix_str(self, *text: object, **options: object) -> None:
        """Nothing to show."""


def _no_progress(total: int, description: str) -> _NoProgress:
    return _NoProgress()


# --- the report ---


def versions(device: torch.device, dtype: str) -> Row:
    """What the figures are of."""
    row = {"device": platform.processor() or platform.machine(), "dtype": dtype, "torch": torch.__version__}
    row |= {"diffusers": diffusers.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        row |= {"device": torch.cuda.get_device_name(device), "CUDA": torch.version.cuda or "ROCm"}
        row["cuDNN"] = str(torch.backends.cudnn.version())
    return row


def bars(results: dict[str, Any]) -> Table:
    """What was set out for, beside what came of it; of an H100, in float16."""

    def of(*path: str) -> Any:
        value: Any = results
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    host, plain_memory = of("memory", "K/V on the host", "edit"), of("memory", "without graphs", "edit")
    graphs = of("memory", "as it is", "edit")
    same = [row["two calls"] == "the same bits" for row in (of("repeats") or {}).values() if "two calls" in row]
    wanted: list[tuple[str, Any, Callable[[Any], bool]]] = [
        (
            "exact, times as fast as plain: at least 5",
            of("edits", "exact", "times as fast as plain"),
            lambda x: x >= 5,
        ),
        ("whole edit, seconds: at most 20", of("whole edits", "exact", "seconds"), lambda x: x <= 20),
        ("with previews of 4: at most 10", of("whole edits", "previews of 4 steps", "seconds"), lambda x: x <= 10),
        ("LoRA, seconds: at most 6", of("identity LoRA", "replayed", "seconds"), lambda x: x <= 6),
        ("over the floor: at most 1.15", of("edits", "exact", "over the floor"), lambda x: x <= 1.15),
        ("GPU busy: at least 0.8", of("busy share", "exact", "share"), lambda x: x >= 0.8),
        ("GiB, exact: at most 5", of("memory", "as it is", "edit"), lambda x: x <= 5),
        ("GiB, K/V on the host: at most 4", host, lambda x: x <= 4),
        (
            "GiB for graphs: at most 1",
            None if graphs is None or plain_memory is None else graphs - plain_memory,
            lambda x: x <= 1,
        ),
        ("two calls to the bit, precisions", sum(same) if same else None, lambda x: x == len(same)),
        (
            "replayed and by Python, latent apart after an iteration: at most 1e-3",
            of("one iteration", "replayed and by Python", "latent apart"),
            lambda x: x <= 1e-3,
        ),
    ]
    return {
        name: {"measured": value, "holds": "not measured" if value is None else "yes" if holds(value) else "no"}
        for name, value, holds in wanted
    }


def format_table(rows: Table) -> str:
    """Markdown, with a column for each name that occurs."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row if name != "stages"))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(_shown(row.get(each)) for each in columns)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def report(results: dict[str, Any]) -> str:
    """All tables, in Markdown."""
    texts = [" · ".join(f"{name} {value}" for name, value in results["versions"].items()) + "\n"]
    for title, rows in results.items():
        if title in ("versions", "seconds"):
            continue
        texts.append(f"## {title}\n\n{rows if isinstance(rows, str) else format_table(rows)}")
        stages = (
            {} if isinstance(rows, str) else {name: row["stages"] for name, row in rows.items() if "stages" in row}
        )
        if stages:
            texts.append(f"Seconds by stage:\n\n{format_table(stages)}")
    return "\n".join(texts)


def write(results: dict[str, Any], out: Path) -> None:
    """`gpu.md` and `gpu.json`."""
    for file, content in (("gpu.md", report(results)), ("gpu.json", json.dumps(results, indent=2))):
        with atomic_file(out / file) as opened:
            opened.write(content.encode())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of most rows (default: float16)")
    parser.add_argument("--quick", action="store_true", help="fewer iterations and rows")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to see that it runs")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA here; --device cpu --tiny shows that the benchmark runs.")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic products ask for
    plan = TINY if args.tiny else QUICK if args.quick else Plan()
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"versions": versions(device, args.dtype), "seconds": {}}

    def section(title: str, measure: Callable[[], Table]) -> None:
        began = time.perf_counter()
        try:
            results[title] = measure()
        except Exception as error:  # the others are worth having
            traceback.print_exc()
            results[title] = f"failed: {type(error).__name__}: {error}\n"
        results["seconds"][title] = time.perf_counter() - began
        write(results, args.out)  # a later section may never end
        print(f"{title}: {results['seconds'][title]:.1f} s", file=sys.stderr, flush=True)

    bench = Bench(device, args.dtype, plan, args.tiny)
    section("passes", bench.passes)
    section("one iteration", bench.one_iteration)
    section("edits", bench.edits)
    section("identity LoRA", bench.lora)
    section("whole edits", bench.whole)
    section("busy share", bench.busy)
    if plan.is_whole:
        section("deterministic algorithms", bench.strictly)
    del bench
    gc.collect()
    section("repeats", lambda: repeated(device, plan, args.tiny))
    section("memory", lambda: memory(device, args.dtype, plan, args.tiny))
    if plan.is_whole:
        section("embedded checkpoint, beside the CPU in float32, of 255", lambda: embedded(device, plan, args.tiny))
    if plan.is_whole or args.tiny:
        results["bars"] = bars(results)
    write(results, args.out)
    print(report(results))
    return results


if __name__ == "__main__":
    main()
