"""What an edit costs, beside the method as published: UNet passes counted, wall time, memory, and the same picture.

python benchmarks/speed.py --out runs/speed
python benchmarks/speed.py --random-stable-diffusion --device cuda --dtype float16 --out runs/speed_512

`plain` denoises the original again in each iteration, as the other half of a batch, looks at the latent anew for each
purpose, trains through weights that want gradients, and carries the identity LoRA as an adapter. The rows below it
switch on one measure each, then all that leave the picture alone (`exact`: the pipeline's default), and previews. Each
row runs in a process of its own, with the same weights, LoRA, picture, points and motion, for the same number of
iterations. Nothing else should run on the machine; where others share it, `--repeat 3` goes through all rows three
times and keeps the shortest times. `--exactness` compares iterations one by one, from the same start.

A forward pass counts 1, and its backward pass to the latent 1 more; what plain's backward to the weights takes is not
counted. Overhead is the wall time over (passes counted x one pass measured in the same process).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import skimage.data
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from random_networks import RandomNetworks, forget_peak, peak_memory, random_networks, synchronize
from tqdm import tqdm

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DragInstruction, DynaDragPipeline
from dynadrag_pipeline.components import kernels_channels_last
from dynadrag_pipeline.ddim_inversion import ddim_denoise, ddim_preview, make_ddim_schedulers, preview_timesteps
from dynadrag_pipeline.denoiser import Condition, UNetDenoiser
from dynadrag_pipeline.drag_edit import DragEdit
from dynadrag_pipeline.drag_engine import DragEngine, Reference
from dynadrag_pipeline.drag_loop import DragLoop
from dynadrag_pipeline.drag_state import DragState
from dynadrag_pipeline.encoding import decode_latents, encode_picture, encode_prompt
from dynadrag_pipeline.identity_lora import (
    IdentityLora,
    LoraSettings,
    attached_as_adapter,
    attached_identity_lora,
    fit_identity_lora,
)
from dynadrag_pipeline.kv_replacement import KVBank, default_kv_start_layer, self_attention_layers
from dynadrag_pipeline.loss_scale import LossScale
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.picture import to_picture_tensor
from dynadrag_pipeline.settings import DragSettings, recommended_settings
from motion_predictor import MotionPredictorModel
from motion_predictor.common.atomic_file import atomic_file

HEAD = (126, 0, 326, 200)  # of the astronaut Eileen Collins (NASA, public domain), in scikit-image's picture
HANDLES, TARGETS = [(49, 64), (77, 66), (63, 80)], [(60, 64), (88, 66), (76, 80)]  # of 128 pixels: eyes and nose
ADAM_SETTINGS = ("supervision_lr", "supervision_damping")  # without damping, this rate lets rounding grow
PACE = 0.15  # of the predicted steps, so that no handle arrives before the last iteration
PASSES_MEASURED = 15


@dataclass(frozen=True)
class Measures:
    """What is switched on."""

    kv_bank: bool = False
    frozen_weights: bool = False
    one_look: bool = False
    lora_in_weights: bool = False
    prompt_once: bool = False
    channels_last: bool = False
    compiled_blocks: bool = False
    preview_steps: int | None = None


EXACT = Measures(True, True, True, True, True, True)


def rows(preview_steps: list[int]) -> dict[str, Measures]:
    """The rows of the table, by name."""
    return {
        "plain": Measures(),
        "K/V bank": Measures(kv_bank=True),
        "frozen weights": Measures(frozen_weights=True),
        "one look at each latent": Measures(one_look=True),
        "LoRA in the weights": Measures(lora_in_weights=True),
        "prompt projected once": Measures(prompt_once=True),
        "channels last": Measures(channels_last=True),
        "exact (default)": EXACT,
        "exact without channels last": replace(EXACT, channels_last=False),
        "exact, compiled blocks": replace(EXACT, compiled_blocks=True),
        **{f"previews of {count} steps": replace(EXACT, preview_steps=count) for count in preview_steps},
    }


class Paced:
    """The motion predictor's own flow, in shorter steps."""

    def __init__(self, predictor: MotionPredictorModel) -> None:
        self.predictor = predictor

    def predict_flow(self, *arguments: torch.Tensor) -> torch.Tensor:
        return PACE * self.predictor.predict_flow(*arguments)


class FirstOfTheBatch:
    """An attention processor round another: all of the batch attend to the keys and values of its first."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        return self.inner(attn, hidden_states, hidden_states[:1].expand_as(hidden_states))


@contextmanager
def mutual_attention(unet: UNet2DConditionModel, start_layer: int) -> Iterator[None]:
    """Context in which the last layers attend to the first picture of the batch."""
    before = unet.attn_processors
    replaced = {name: FirstOfTheBatch(before[name]) for name in self_attention_layers(unet)[start_layer:]}
    try:
        unet.set_attn_processor(before | replaced)
        yield
    finally:
        unet.set_attn_processor(before)


class Meter:
    """Counts the forward passes of a UNet, and adds up seconds by stage."""

    def __init__(self, unet: UNet2DConditionModel, synchronize: Callable[[], None]) -> None:
        self.passes = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self.synchronize = synchronize
        unet.register_forward_pre_hook(self._forward)

    def _forward(self, module: torch.nn.Module, inputs: Any) -> None:
        self.passes += len(inputs[0])

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a stage."""

        def run(*arguments: Any, **kwargs: Any) -> Any:
            self.synchronize()
            began = time.perf_counter()
            result = function(*arguments, **kwargs)
            self.synchronize()
            self.seconds[stage] += time.perf_counter() - began
            return result

        return run


@dataclass
class MeasuredEngine(DragEngine):
    """The engine with the K/V bank to be switched off."""

    measures: Measures = EXACT
    noise: torch.Tensor | None = None

    def denoise_reference(self, noise: torch.Tensor) -> Reference:
        self.noise = noise
        if self.measures.kv_bank:
            return super().denoise_reference(noise)
        previous = ddim_denoise(self.denoiser, self.sampler, noise, self.timesteps[:1])  # of the mask's term
        return Reference(noise, previous, KVBank(0))

    def denoise(self, noise: torch.Tensor, reference: Reference, steps: int | None = None) -> torch.Tensor:
        if self.measures.kv_bank:
            return super().denoise(noise, reference, steps)
        prompt = self.denoiser.condition.prompt_embeds
        predict_both = UNetDenoiser(self.denoiser.unet, Condition(prompt.expand(2, -1, -1)))
        both = torch.cat([self.noise, noise])
        with mutual_attention(self.denoiser.unet, self.kv_start_layer):
            if steps is None:
                return ddim_denoise(predict_both, self.sampler, both, self.timesteps)[1:]
            return ddim_preview(predict_both, self.sampler, both, preview_timesteps(self.timesteps, steps))[1:]


class MeasuredDenoiser(UNetDenoiser):
    """A denoiser that may project the prompt anew in each pass."""

    def __init__(self, unet: UNet2DConditionModel, condition: Condition, prompt_once: bool) -> None:
        super().__init__(unet, condition)
        self.prompt_once = prompt_once

    def prompt_projected(self) -> AbstractContextManager[None]:
        return super().prompt_projected() if self.prompt_once else nullcontext()


class MeasuredGradients(LossScale):
    """Counts backward passes, which may reach the weights too."""

    def __init__(self, is_half: bool, frozen_weights: bool) -> None:
        super().__init__(is_half)
        self.frozen_weights = frozen_weights
        self.passes = 0

    def gradients(self, loss: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self.passes += 1
        if self.frozen_weights:
            return super().gradients(loss, inputs)
        for each in inputs:
            each.grad = None
        loss.backward()
        return tuple(each.grad for each in inputs)


class MeasuredEdit(DragEdit):
    """An edit that may look at the latent anew for each purpose, and whose parts are timed."""

    def __init__(self, engine: MeasuredEngine, *arguments: Any, meter: Meter | None = None) -> None:
        super().__init__(engine, *arguments, is_watched=False)
        self.meter = meter
        self.measures = engine.measures
        self.gradients = MeasuredGradients(engine.denoiser.is_half, self.measures.frozen_weights)
        self.optimizer.loss_scale = self.gradients

    def select_points(self) -> None:
        super().select_points()
        if not self.measures.one_look:
            self.look_again()

    def propose_motion(self) -> None:
        self._timed("motion prediction", super().propose_motion)

    def supervise_motion(self) -> None:
        self._timed("motion supervision", super().supervise_motion)

    def denoise(self) -> None:
        self._timed("denoising", super().denoise)

    def _timed(self, stage: str, part: Callable[[], None]) -> None:
        (part if self.meter is None else self.meter.timed(stage, part))()


class Subject:
    """The models, the picture and the instruction that all rows share."""

    def __init__(self, args: argparse.Namespace, networks: RandomNetworks | None = None) -> None:
        torch.set_num_threads(args.threads)
        self.args, self.device = args, torch.device(args.device)
        dtype = getattr(torch, args.dtype)
        if args.random_stable_diffusion:
            networks = networks or random_networks(self.device, dtype)
            side, self.unet, self.vae, predictor = networks.side, networks.unet, networks.vae, networks.predictor
            self.prompt_embeds, self.scheduler_config = networks.prompt_embeds, networks.scheduler.config
        else:
            side = 128
            pipe = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT, dtype=dtype)
            self.unet, self.vae, predictor = pipe.unet, pipe.vae, pipe.motion_predictor
            self.prompt_embeds = encode_prompt(pipe.tokenizer, pipe.text_encoder.eval(), "").detach()
            self.scheduler_config = pipe.scheduler.config
        for model in (self.unet, self.vae, predictor):
            model.eval().requires_grad_(False).to(self.device)
        self.predictor = Paced(predictor)
        self.prompt_embeds = self.prompt_embeds.to(self.device, dtype)
        head = Image.fromarray(skimage.data.astronaut()).crop(HEAD).resize((side, side), Image.Resampling.LANCZOS)
        self.picture = to_picture_tensor(head).to(self.device)
        scale = side // 128
        points = ([(scale * x, scale * y) for x, y in each] for each in (HANDLES, TARGETS))
        self.instruction = DragInstruction.from_user(*points, None, (side, side))
        recommended = {} if args.random_stable_diffusion else recommended_settings(EMBEDDED_CHECKPOINT)
        adam = {name: recommended[name] for name in ADAM_SETTINGS if name in recommended}
        self.settings = DragSettings(max_iterations=args.iterations, **adam)

    def synchronize(self) -> None:
        synchronize(self.device)

    def fit_lora(self) -> IdentityLora:
        """The identity LoRA of the picture."""
        with torch.no_grad():
            _, sample_latents = encode_picture(self.vae, self.picture)
        return fit_identity_lora(
            UNetDenoiser(self.unet, Condition(self.prompt_embeds)),
            self.scheduler_config,
            sample_latents,
            LoraSettings(steps=self.args.identity_lora_steps),
            progress_bar=lambda total: tqdm(total=total, desc="Identity LoRA", leave=False),
        )

    @contextmanager
    def prepared(self, measures: Measures, lora: IdentityLora) -> Iterator[None]:
        """Context in which the UNet is as a row wants it."""
        attached = attached_identity_lora if measures.lora_in_weights else attached_as_adapter
        layout = kernels_channels_last(self.unet) if measures.channels_last else nullcontext()
        if measures.compiled_blocks:
            torch._dynamo.config.recompile_limit = 64
            self.unet.compile_repeated_blocks()
        with layout, attached(self.unet, lora):
            self.unet.requires_grad_(not measures.frozen_weights)
            yield
        self.unet.requires_grad_(False)

    def engine(self, measures: Measures, decode: Callable[[torch.Tensor], torch.Tensor]) -> MeasuredEngine:
        sampler, inverse = make_ddim_schedulers(self.scheduler_config, self.args.steps)
        return MeasuredEngine(
            denoiser=MeasuredDenoiser(self.unet, Condition(self.prompt_embeds), measures.prompt_once),
            sampler=sampler,
            inverse=inverse,
            decode=decode,
            progress_bar=lambda total, text: tqdm(
                total=total, desc=text, leave=False, disable=not sys.stderr.isatty()
            ),
            settings=replace(self.settings, preview_steps=measures.preview_steps),
            kv_start_layer=default_kv_start_layer(self.unet),
            measures=measures,
        )

    def edit(
        self, engine: MeasuredEngine, noise: torch.Tensor, reference: Reference, meter: Meter | None = None
    ) -> MeasuredEdit:
        """The drag that all rows make."""
        start = DragState(noise, reference.latents, self.picture)
        return MeasuredEdit(engine, reference, start, self.instruction, PredictedMotion(self.predictor), meter=meter)

    @torch.no_grad()
    def one_pass(self) -> list[float]:
        """Seconds of some UNet passes, as the UNet is now."""
        latents = torch.randn(1, self.unet.config.in_channels, *[self.unet.config.sample_size] * 2, device=self.device)
        seconds = []
        for _ in range(PASSES_MEASURED):
            self.synchronize()
            began = time.perf_counter()
            self.unet(latents.to(self.unet.dtype), 501, self.prompt_embeds, return_dict=False)
            self.synchronize()
            seconds.append(time.perf_counter() - began)
        return seconds[2:]


@torch.no_grad()
def run_row(args: argparse.Namespace, measures: Measures, lora_folder: Path) -> dict[str, Any]:
    """One row, in this process: what it cost, and its picture."""
    subject = Subject(args)
    lora = IdentityLora.load(lora_folder)
    with subject.prepared(measures, lora):
        passes_before = subject.one_pass()
        forget_peak(subject.device)
        meter = Meter(subject.unet, subject.synchronize)
        decode = meter.timed("decoding", partial(decode_latents, subject.vae))
        engine = subject.engine(measures, decode)

        began = time.perf_counter()
        latents, _ = encode_picture(subject.vae, subject.picture)
        noise = meter.timed("inversion", engine.invert)(latents)
        reference = meter.timed("reference", engine.denoise_reference)(noise)
        edit = subject.edit(engine, noise, reference, meter)
        loop = DragLoop(edit)
        steps = list(loop)
        subject.synchronize()
        seconds = time.perf_counter() - began
        counted = meter.passes + edit.gradients.passes
        passes = passes_before + subject.one_pass()
    return {
        "passes": counted,
        "seconds": seconds,
        "pass_seconds": statistics.median(passes),
        "overhead": seconds / (counted * statistics.median(passes)),
        "memory": peak_memory(subject.device),
        "iterations": len(steps),
        "stop_reason": loop.stop_reason,
        "stages": dict(meter.seconds),
        "image": steps[-1].image.cpu(),
    }


@torch.no_grad()
def run_exactness(args: argparse.Namespace, lora_folder: Path) -> list[float]:
    """The largest difference of the pictures after each iteration, plain and exact, both from plain's state."""
    subject = Subject(args)
    lora = IdentityLora.load(lora_folder)
    starts: list[dict[str, Any]] = []
    pictures: list[torch.Tensor] = []
    decode = partial(decode_latents, subject.vae)

    def remember(edit: MeasuredEdit) -> None:
        starts.append(
            {
                "latents": edit.latents.detach().clone(),
                "adam": [{k: v.clone() for k, v in state.items()} for state in edit.optimizer.adam.state.values()],
                "handles": edit.points.handles,
                "image": edit.image,
            }
        )
        edit.iterate()
        pictures.append(decode(edit.denoised))

    def follow(edit: MeasuredEdit) -> None:
        start = starts[len(differences)]
        edit.latents.copy_(start["latents"])
        edit.optimizer.adam.state.clear()
        for state in start["adam"]:
            edit.optimizer.adam.state[edit.latents] = state
        edit.points.handles, edit.image = start["handles"], start["image"]
        edit.look_again()
        edit.iterate()
        differences.append((decode(edit.denoised) - pictures[len(differences)]).abs().max().item())

    differences: list[float] = []
    for measures, iterate in ((Measures(), remember), (EXACT, follow)):
        with subject.prepared(measures, lora):
            engine = subject.engine(measures, decode)
            noise = engine.invert(encode_picture(subject.vae, subject.picture)[0])
            reference = engine.denoise_reference(noise)
            list(DragLoop(subject.edit(engine, noise, reference), iterate))
    return differences


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers in a process of its own, whose memory is its alone."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def fit_and_save(args: argparse.Namespace, folder: Path) -> float:
    """Fit the LoRA, save it, and answer with the seconds that it took."""
    subject = Subject(args)
    began = time.perf_counter()
    lora = subject.fit_lora()
    subject.synchronize()
    seconds = time.perf_counter() - began
    lora.save(folder)
    return seconds


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, beside `plain`."""
    plain = results["plain"]
    lines = [
        "| | UNet passes | of plain's | seconds | times as fast | ms a pass | overhead | GiB at most | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in results.items():
        difference = (row["image"] - plain["image"]).abs().max().item()
        lines.append(
            f"| {name} | {row['passes']} | {row['passes'] / plain['passes']:.0%} | {row['seconds']:.1f} "
            f"| {plain['seconds'] / row['seconds']:.2f} | {1e3 * row['pass_seconds']:.0f} | {row['overhead']:.2f} "
            f"| {row['memory'] / 2**30:.2f} | {difference:.1e} |"
        )
    return "\n".join(lines) + "\n"


def format_stages(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the seconds of each stage, as in the paper's Table 3."""
    stages = list(dict.fromkeys(stage for row in results.values() for stage in row["stages"]))
    lines = [f"| seconds | {' | '.join(stages)} |", f"|---|{'---:|' * len(stages)}"]
    for name, row in results.items():
        cells = [f"{row['stages'].get(stage, 0):.1f}" for stage in stages]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for speed.md, speed.json and the pictures")
    parser.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument(
        "--random-stable-diffusion",
        action="store_true",
        help="networks of Stable Diffusion 1.5's size with random weights, at 512 px (default: the embedded, 128 px)",
    )
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: 50)")
    parser.add_argument("--iterations", type=int, default=25, help="of the drag loop (default: 25)")
    parser.add_argument("--identity-lora-steps", type=int, default=20, help="its time is told apart (default: 20)")
    parser.add_argument("--preview-steps", type=int, nargs="+", default=[4], help="rows with previews (default: 4)")
    parser.add_argument("--repeat", type=int, default=1, help="rounds through all rows (default: 1)")
    parser.add_argument("--rows", nargs="+", help="names of rows to run beside `plain` (default: all)")
    parser.add_argument("--exactness", action="store_true", help="compare iterations one by one instead")
    args = parser.parse_args()
    table = rows(args.preview_steps)
    unknown = set(args.rows or ()) - set(table)
    if unknown:
        parser.error(f"--rows: {', '.join(sorted(unknown))} is none of {', '.join(table)}.")
    args.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        lora_seconds = in_a_process(fit_and_save, args, Path(folder))
        if args.exactness:
            differences = in_a_process(run_exactness, args, Path(folder))
            print("largest difference after each single iteration:", " ".join(f"{each:.1e}" for each in differences))
            return
        results: dict[str, dict[str, Any]] = {}
        for _ in range(args.repeat):
            for name, measures in table.items():
                if name == "plain" or args.rows is None or name in args.rows:
                    row = in_a_process(run_row, args, measures, Path(folder))
                    print(f"{name}: {row['passes']} passes, {row['seconds']:.1f} s, {row['stop_reason']}", flush=True)
                    results[name] = min(results.get(name, row), row, key=lambda one: one["seconds"])
    fit = f"Before that, {args.identity_lora_steps} steps of an identity LoRA took {lora_seconds:.1f} s.\n"
    text = f"{format_table(results)}\n{format_stages(results)}\n{fit}"
    print(text)
    numbers = {name: {key: value for key, value in row.items() if key != "image"} for name, row in results.items()}
    for file, content in (("speed.md", text), ("speed.json", json.dumps(numbers, indent=2))):
        with atomic_file(args.out / file) as opened:
            opened.write(content.encode())
    for name, row in results.items():
        pixels = (255 * row["image"][0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(args.out / f"{name.replace('/', '')}.png".replace(" ", "_"))


if __name__ == "__main__":
    main()
