"""Training of the motion predictor (DynaDrag, Eq. 1) on accelerate: one process or many, resumable to the bit."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from .common.atomic_file import atomic_file
from .common.checks import check_whole_number, got
from .data.build_settings import LARGEST_SIDE
from .data.samples import MotionSample, MotionSamples
from .data.shards import MotionShards
from .loss import motion_loss
from .modeling_motion_predictor import MotionPredictorModel
from .network_input import network_input
from .training_checkpoint import TrainingState
from .training_config import DataSource, TrainingConfig, read_yaml, save_training_config

LOG_EVERY = 20  # steps
# What a run may be resumed with a change of: nothing that a step depends on, but for the fall of the learning rate.
CHANGEABLE = ("steps", "workers", "save_every", "validate_every", "validation_samples")


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Warm-up, plateau and fall, each linear. The plateau does not depend on `steps`, so a run can be prolonged.

    Args:
        step (`int`): that is about to be taken, from 0.
        config (`TrainingConfig`): of the run.

    Returns:
        `float`: from 0 to 1.

    Example:
        >>> config = TrainingConfig("run", [DataSource("clips")], steps=100, warmup_steps=10, decay_share=0.2)
        >>> [learning_rate_factor(step, config) for step in (0, 50, 90)]
        [0.1, 1.0, 0.5]
    """
    rising = (step + 1) / max(config.warmup_steps, 1)
    fall = max(config.steps * config.decay_share, 1)
    return min(1.0, rising, (config.steps - step) / fall if config.decay_share else 1.0)


def _sources(config: TrainingConfig, split: str) -> list[DataSource]:
    """The datasets that have records in a split."""
    return [source for source in config.data if any((Path(source.folder) / split).glob("*.tar"))]


def _samples(config: TrainingConfig, split: str, size: int) -> MotionSamples:
    sources = config.data if split == "train" else _sources(config, split)
    shards = [MotionShards(source.folder, split) for source in sources]
    weights = [source.weight for source in sources]
    settings = [
        config.samples if source.framing is None else replace(config.samples, framing=source.framing)
        for source in sources
    ]
    return MotionSamples(shards, weights, settings, size, config.seed + (split == "val"))


def _first_network(config: TrainingConfig) -> MotionPredictorModel:
    """The network before its first step: with random weights, or with those of `start_from`."""
    if config.start_from is None:
        return MotionPredictorModel(**config.network)
    trained = MotionPredictorModel.from_pretrained(config.start_from)
    arguments = {name: value for name, value in trained.config.items() if not name.startswith("_")}
    network = MotionPredictorModel(**{**arguments, **config.network})
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        sizes = [name for name, value in config.network.items() if arguments.get(name) != value]
        raise ValueError(
            f"`network` must have the layers of `start_from`, {config.start_from}, got others: leave out those of "
            f"{sizes} that change a layer's shape."
        ) from error
    return network


class StepSampler(Sampler[list[int]]):
    """The numbers of the samples of each batch of this process, from a given step on.

    Step n takes the samples n * G ... (n + 1) * G - 1, where G is the size of a batch over all processes and
    accumulations. A process takes its share of each.

    Args:
        config (`TrainingConfig`): of the run.
        process (`int`): number of this process.
        processes (`int`): that train together.
        start_step (`int`): of the first batch.

    Example:
        >>> config = TrainingConfig("run", [DataSource("clips")], steps=2, batch_size=2)
        >>> list(StepSampler(config, process=1, processes=2, start_step=0))
        [[2, 3], [6, 7]]
    """

    def __init__(self, config: TrainingConfig, process: int, processes: int, start_step: int):
        self.config, self.process, self.processes, self.start_step = config, process, processes, start_step

    def __iter__(self) -> Iterator[list[int]]:
        batch_size = self.config.batch_size
        per_step = self.config.gradient_accumulation
        for batch in range(self.start_step * per_step, self.config.steps * per_step):
            first = (batch * self.processes + self.process) * batch_size
            yield list(range(first, first + batch_size))


def train_motion_predictor(config: TrainingConfig) -> Path:
    """Train a motion predictor, or go on where an earlier run in the same folder was stopped.

    A run that was interrupted and resumed ends with the same weights as one that ran through. Ctrl-C finishes the
    step, saves, and then raises `KeyboardInterrupt`; a kill loses at most `save_every` steps.

    Writes to `config.out`: `config.yaml`, `checkpoint-N/` (the last), `log.jsonl`, `tensorboard/`, and in the end
    `motion_predictor/` with the averaged weights.

    Args:
        config (`TrainingConfig`): of the run.

    Returns:
        `Path`: the folder of the trained model, for `MotionPredictorModel.from_pretrained`.

    Raises:
        FileNotFoundError: if a dataset holds no records.
        ValueError: if the folder holds a run with another configuration, or the data do not fit it.

    Example:
        >>> from motion_predictor.training_config import DataSource, TrainingConfig
        >>> config = TrainingConfig(out="runs/predictor", data=[DataSource("data/portraits")], steps=100)
        >>> train_motion_predictor(config)  # doctest: +SKIP
        PosixPath('runs/predictor/motion_predictor')
    """
    return _Run(config).train()


class _Run:
    """One process of a training run: its model, optimiser, average and place on disk."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.out = Path(config.out)
        self.accelerator = Accelerator(
            # Without this, accelerate leaves processes that torchrun started on CPUs alone with themselves.
            cpu="LOCAL_RANK" in os.environ and not torch.cuda.is_available(),
            gradient_accumulation_steps=config.gradient_accumulation,
            mixed_precision=config.mixed_precision,
            log_with="tensorboard",
            project_dir=str(self.out),
        )
        torch.manual_seed(config.seed)
        network = _first_network(config)
        size = network.config["sample_size"]
        check_whole_number("network.sample_size", size, least=1, most=LARGEST_SIDE)
        self.training_data = _samples(config, "train", size)
        validates = config.validate_every and _sources(config, "val")
        self.validation_data = _samples(config, "val", size) if validates else None
        self.ema = EMAModel(network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.network = network.to(memory_format=torch.channels_last)
        self.model, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        self.ema.to(self.accelerator.device)
        self.state = TrainingState(self.network, optimizer, self.ema, self.accelerator.scaler)

    def train(self) -> Path:
        self._claim_folder()
        start = self._resume()
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": start}})
        try:
            self._fit(start)
            return self._save_model()
        finally:
            self.accelerator.end_training()

    def _fit(self, start: int) -> None:
        sampler = StepSampler(self.config, self.accelerator.process_index, self.accelerator.num_processes, start)
        loader = DataLoader(
            self.training_data,
            batch_sampler=sampler,
            collate_fn=MotionSample.stack,
            num_workers=self.config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            prefetch_factor=4 if self.config.workers else None,
            worker_init_fn=_leave_signals_to_the_run,
        )
        batches = _with_plain_errors(iter(loader))
        self.model.train()
        meter = _Meter()
        progress = tqdm(
            total=self.config.steps,
            initial=start,
            desc=f"Training {self.out.name}",
            disable=not self.accelerator.is_main_process,
        )
        with progress, _stop_signals(self.accelerator):
            for step in range(start, self.config.steps):
                self._set_learning_rate(step)
                for batch in itertools.islice(meter.waiting(batches), self.config.gradient_accumulation):
                    with self.accelerator.accumulate(self.model):
                        meter.add(self._descend(batch.to(self.accelerator.device)))
                self.ema.step(self.network.parameters())
                progress.update()
                self._after_step(step + 1, meter, progress)

    def _descend(self, batch: MotionSample) -> torch.Tensor:
        sample, heatmap = self._network_input(batch)
        output = self.model(sample.contiguous(memory_format=torch.channels_last))
        loss = motion_loss(output, batch, heatmap, self.config.loss)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _network_input(self, batch: MotionSample) -> tuple[torch.Tensor, torch.Tensor]:
        return network_input(self.network.config, batch.image, batch.handles, batch.targets, batch.valid, batch.mask)

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(step, self.config)

    def _after_step(self, step: int, meter: _Meter, progress: tqdm) -> None:
        """What is due after a step: figures, a checkpoint, and the end that a signal asked for."""
        stopped = self.accelerator.check_trigger()
        last = step == self.config.steps
        if self.config.validate_every and (step % self.config.validate_every == 0 or last):
            self._log(step, {"validation_loss": self._validate()})
        if step % LOG_EVERY == 0 or last:
            figures = meter.read()
            progress.set_postfix(loss=f"{figures['loss']:.4f}", waiting=f"{figures['waiting_share']:.0%}")
            self._log(step, figures)
        if stopped or last or step % self.config.save_every == 0:
            self._save_checkpoint(step)
        if stopped:
            raise KeyboardInterrupt

    @torch.no_grad()
    def _validate(self) -> float:
        """The loss of the averaged weights on a fixed set of samples, each process on its share of them."""
        if self.validation_data is None:
            return float("nan")
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        self.network.eval()
        losses = []
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        for index in range(rank, max(self.config.validation_samples, ranks), ranks):
            batch = MotionSample.stack([self.validation_data[index]]).to(self.accelerator.device)
            sample, heatmap = self._network_input(batch)
            losses.append(motion_loss(self.network(sample), batch, heatmap, self.config.loss))
        self.ema.restore(self.network.parameters())
        self.network.train()
        mean = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        return float(mean)

    def _log(self, step: int, figures: dict[str, float]) -> None:
        self.accelerator.log(figures, step=step)
        if self.accelerator.is_main_process:
            with (self.out / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, **figures}) + "\n")

    def _claim_folder(self) -> None:
        """Write the configuration, or refuse a folder that holds a run with another."""
        path = self.out / "config.yaml"
        if path.exists():
            from omegaconf import OmegaConf

            there: dict[str, Any] = OmegaConf.to_container(read_yaml(path))  # type: ignore[assignment]
            here: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(self.config))  # type: ignore[assignment]
            for name in here:
                if name not in CHANGEABLE and there.get(name) != here[name]:
                    raise ValueError(
                        f"`{name}` must be {got(there.get(name))}, which the run in `{self.out}` was begun with, "
                        f"got {got(here[name])}: choose another folder, or remove it to start anew."
                    )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(save_training_config(self.config).encode())

    def _checkpoints(self) -> list[Path]:
        found = (path for path in self.out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{1,18}", path.name))
        return sorted(found, key=_step_of)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one, and return the number of steps that are done."""
        checkpoints = self._checkpoints()
        if not checkpoints:
            return 0
        self.state.load(checkpoints[-1])
        done = _step_of(checkpoints[-1])
        if self.accelerator.is_main_process:
            self._forget_steps_after(done)
        return done

    def _forget_steps_after(self, step: int) -> None:
        """Cut the log to the checkpoint's step: those after it will be taken, and logged, again."""
        log = self.out / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may have torn the last
        kept = [line for number, line in enumerate(whole, 1) if _logged_step(log, number, line) <= step]
        with atomic_file(log) as file:
            file.write(b"".join(kept))

    def _save_checkpoint(self, step: int) -> None:
        """Save beside, rename, and only then remove the older one. All processes have the same state."""
        partial, final = self.out / f"checkpoint-{step}.partial", self.out / f"checkpoint-{step}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            self.state.save(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for older in self._checkpoints()[:-1]:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def _save_model(self) -> Path:
        folder, partial = self.out / "motion_predictor", self.out / "motion_predictor.partial"
        if self.accelerator.is_main_process:
            self.ema.copy_to(self.network.parameters())
            shutil.rmtree(partial, ignore_errors=True)
            self.network.eval().save_pretrained(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _logged_step(log: Path, number: int, line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"line {number} of `{log}` must be figures with their `step`, got {got(line)}: remove the line, "
            "or the file."
        ) from error


class _Meter:
    """Loss, speed, and the share of time that was spent waiting for samples, since they were last read."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.waited = 0.0
        self.began = time.perf_counter()

    def waiting(self, batches: Iterator[MotionSample]) -> Iterator[MotionSample]:
        while True:
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            yield batch

    def add(self, loss: torch.Tensor) -> None:
        self.losses.append(loss)

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        figures = {
            "loss": float(torch.stack(self.losses).mean()),
            "batches_per_second": len(self.losses) / seconds,
            "waiting_share": self.waited / seconds,
        }
        self._start()
        return figures


def _with_plain_errors(batches: Iterator[MotionSample]) -> Iterator[MotionSample]:
    """Errors of the processes that draw samples come with their traceback as text: leave what they say."""
    try:
        yield from batches
    except ValueError as error:
        _, wrapped, message = str(error).rpartition("\nValueError: ")
        if not wrapped:
            raise
        raise ValueError(message.strip()) from None


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; those that draw samples must live until the step has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _stop_signals(accelerator: Accelerator) -> Iterator[None]:
    """Within it, the first Ctrl-C or SIGTERM lets the step at hand end; a second one acts as always."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        accelerator.set_trigger()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
