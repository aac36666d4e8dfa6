"""Functions that several processes run together, as torchrun starts them, but without importing torch in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed import TCPStore

from motion_predictor import training
from motion_predictor.training_config import TrainingConfig

PROCESSES = 2
TIMEOUT = 120  # seconds
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["av", "cv2", "motion_predictor.data.video_records", "motion_predictor.training", "torch.utils.tensorboard"]
)


def run_together(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function answers in each process; None where that was killed.

    As torchrun does, this process keeps the store where the others meet, and stops all when one of them has failed: a
    port that is looked up beforehand may be taken by then, and a process would wait long for one that has ended.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        CONTEXT.Process(target=_answer, args=(rank, store.port, pipe[1], function, args))
        for rank, pipe in enumerate(pipes)
    ]
    try:
        for process in processes:
            process.start()
        failures = _first_failures(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not failures or -signal.SIGKILL in failures, f"processes ended with {failures}"
    return [answer.recv() if answer.poll() else None for answer, _ in pipes]


def _first_failures(processes: Sequence[BaseProcess]) -> set[int | None]:
    """Wait until all have ended well, and there are none, or until the first that have not, with their exit codes."""
    deadline = time.monotonic() + TIMEOUT
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in wait(list(running), deadline - time.monotonic())]
        failures = {process.exitcode for process in ended} - {0}
        if failures or not ended:
            return failures or {None}  # None after the time is over
    return set()


def _answer(rank: int, port: int, pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    pipe.send(function(*args))


def train_until_killed(config: TrainingConfig, step: int) -> None:
    """A training run that is killed when it has taken a step, before it has saved that."""
    after_step = training._Run._after_step

    def killed(run: training._Run, at: int, *args: Any) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        after_step(run, at, *args)

    training._Run._after_step = killed
    training.train_motion_predictor(config)
