"""One resumable training loop for the three networks of the embedded checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from tqdm import tqdm

LossFunction = Callable[[torch.Generator], torch.Tensor]


def warmup_stable_decay(step: int, steps: int, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Learning-rate factor: linear warm-up, a plateau, and a linear fall over the last `decay_share` of the run.

    The plateau does not depend on the length of the run, so a run may be prolonged after it was resumed.
    """
    decay_start = steps * (1 - decay_share)
    falling = (steps - step) / max(steps - decay_start, 1) if step > decay_start else 1.0
    return min(1.0, (step + 1) / warmup, max(falling, 0.0))


def fit(
    model: torch.nn.Module,
    loss_function: LossFunction,
    out: Path,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    save_every: int = 200,
    bfloat16: bool = False,
) -> EMAModel:
    """Minimise `loss_function` over `model` for `steps` AdamW steps and return the averaged weights.

    The loss draws everything random from the generator that it is given. That generator is seeded by `seed` and
    the number of the step, so a run that was interrupted and resumed sees the same samples as one that was not.
    State is kept in `out/state.pt` (written beside and renamed, so a kill leaves the last good file), the losses
    in `out/log.jsonl`. Ctrl-C saves and re-raises. `bfloat16` lets torch multiply in that precision: processors that
    know it take two thirds of the time, others many times as long.
    """
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    ema = EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75)
    start = 0
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["step"]

    def save(step: int) -> None:
        partial = state_file.with_suffix(".partial")
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
            "step": step,
        }
        torch.save(state, partial)
        os.replace(partial, state_file)

    model.train()
    step, running, began = start, None, time.perf_counter()
    try:
        with tqdm(total=steps, initial=start, desc=f"Training {out.name}", mininterval=5) as progress:
            while step < steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * warmup_stable_decay(step, steps)
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    loss = loss_function(torch.Generator().manual_seed(seed * 1_000_003 + step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                ema.step(model.parameters())
                step += 1
                running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
                progress.update()
                progress.set_postfix(loss=f"{running:.4f}")
                if step % save_every == 0:
                    save(step)
                    seconds = round(time.perf_counter() - began, 1)
                    with (out / "log.jsonl").open("a") as log:
                        log.write(json.dumps({"step": step, "loss": round(running, 6), "seconds": seconds}) + "\n")
    finally:
        save(step)
    return ema
