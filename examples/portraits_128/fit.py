"""One resumable training loop for the three networks of the embedded checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from tqdm import tqdm

LossFunction = Callable[[torch.Generator], torch.Tensor]
SECONDS_BETWEEN_SAVES = 60


def warmup_stable_decay(step: int, steps: int, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Learning-rate factor: linear warm-up, a plateau, and a linear fall over the last `decay_share` of the run.

    The plateau does not depend on the length of the run, so a run may be prolonged after it was resumed.
    """
    decay_start = steps * (1 - decay_share)
    falling = (steps - step) / max(steps - decay_start, 1) if step > decay_start else 1.0
    return min(1.0, (step + 1) / warmup, max(falling, 0.0))


def write_state(file: Path, parts: dict[str, Any], step: int) -> None:
    """Write the states of `parts`, by name, and the number of steps taken: beside `file` first, then in its place."""
    write_file(file, {name: part.state_dict() for name, part in parts.items()} | {"step": step})


def write_file(file: Path, content: dict[str, Any]) -> None:
    """Write what `torch.load` reads: beside `file`, then in its place: a kill leaves the last good one."""
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, file)


@torch.no_grad()
def averaged_weights_loss(model: torch.nn.Module, ema: EMAModel, loss: Callable[[], torch.Tensor]) -> float:
    """The loss with the averaged weights in the model, which has its own again afterwards."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    value = loss().item()
    ema.restore(model.parameters())
    return value


class BestWeights:
    """The averaged weights whose held-out loss was lowest, in a file that an interrupted run finds again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.loss, self.step = float("inf"), 0
        if file.exists():
            kept = torch.load(file, weights_only=True)
            self.loss, self.step = kept["loss"], kept["step"]

    def offer(self, loss: float, step: int, ema: EMAModel) -> None:
        """Keep the weights if they are the best so far."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            write_file(self.file, {"loss": loss, "step": step, "ema": ema.state_dict()})

    def load_into(self, ema: EMAModel) -> None:
        """Go back to the weights that were kept."""
        ema.load_state_dict(torch.load(self.file, weights_only=True)["ema"])


def fit(
    model: torch.nn.Module,
    loss_function: LossFunction,
    out: Path,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    log_every: int = 200,
    bfloat16: bool = False,
    held_out_loss: Callable[[], torch.Tensor] | None = None,
    patience: int | None = None,
) -> EMAModel:
    """Minimise `loss_function` over `model` for `steps` AdamW steps and return the averaged weights.

    The loss draws everything random from the generator that it is given, which is on the model's device. That
    generator is seeded by `seed` and the number of the step, so a run that was interrupted and resumed sees the same
    samples as one that was not. State is kept in `out/state.pt` (written beside and renamed, so a kill leaves the last
    good file), once a minute; the losses in `out/log.jsonl`, with `held_out_loss` of the averaged weights, the best of
    which are kept and returned. After `patience` lines of the log without a better one the run ends. Ctrl-C saves and
    re-raises. `bfloat16` lets torch multiply in that precision: processors that know it take two thirds of
    the time, others many times as long.
    """
    device = next(model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
    ema = EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    best = BestWeights(out / "best.pt")
    start = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["step"]

    def save(step: int) -> None:
        write_state(state_file, {"model": model, "optimizer": optimizer, "ema": ema}, step)

    def log(step: int, loss: torch.Tensor, seconds: float) -> None:
        record = {"step": step, "loss": round(loss.item(), 6), "seconds": round(seconds, 1)}
        if held_out_loss is not None:
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                held_out = averaged_weights_loss(model, ema, held_out_loss)
            best.offer(held_out, step, ema)
            record["held_out"] = round(held_out, 6)
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    model.train()
    step, losses, began = start, [], time.perf_counter()
    saved = began
    try:
        with tqdm(total=steps, initial=start, desc=f"Training {out.name}", mininterval=5) as progress:
            while step < steps and (patience is None or step - best.step <= patience * log_every or not best.step):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * warmup_stable_decay(step, steps)
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    loss = loss_function(torch.Generator(device).manual_seed(seed * 1_000_003 + step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                ema.step(model.parameters())
                step += 1
                losses.append(loss.detach())  # reading it here would have a GPU wait for Python at every step
                progress.update()
                if step % log_every == 0 or step == steps:
                    mean, losses = torch.stack(losses).mean(), []
                    progress.set_postfix(loss=f"{mean.item():.4f}")
                    log(step, mean, time.perf_counter() - began)
                if time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    save(step)
                    saved = time.perf_counter()
    finally:
        save(step)
    if best.step:
        print(f"The held-out loss was lowest after {best.step} steps: {best.loss:.4f}")
        best.load_into(ema)
    return ema
