"""Functions that several processes run together, as torchrun starts them, but without importing torch in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from motion_predictor import training
from motion_predictor.training_config import TrainingConfig

PROCESSES = 2
TIMEOUT = 120  # seconds
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["av", "cv2", "motion_predictor.data.video_records", "motion_predictor.training", "torch.utils.tensorboard"]
)


def run_together(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function answers in each process; None where that was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        CONTEXT.Process(target=_answer, args=(rank, port, pipe[1], function, args)) for rank, pipe in enumerate(pipes)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert {process.exitcode for process in processes} in ({0}, {-signal.SIGKILL})
    return [answer.recv() if answer.poll() else None for answer, _ in pipes]


def _answer(rank: int, port: int, pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
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
