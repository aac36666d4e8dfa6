"""The command from beginning to end: killed at any moment, shared by processes, it ends with the same table."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dynadrag_pipeline.cli import main
from dynadrag_pipeline.evaluation.records import read_records
from support.evaluation_pairs import make_pair
from support.processes import run_together

FORK = multiprocessing.get_context("fork")  # a child begins with everything imported
KILLS = 10
QUICK = ["--steps", "3", "--max-iterations", "3", "--supervision-steps", "2", "--identity-lora-steps", "2"]


@pytest.fixture
def command(pipe, tmp_path) -> list[str]:
    """`dynadrag evaluate` of two methods on four pairs, by a checkpoint of random weights; `--out` is missing."""
    pipe.save_pretrained(tmp_path / "model")
    for number in range(4):
        make_pair(number).save(tmp_path / "pairs")
    words = ["evaluate", str(tmp_path / "pairs"), "--model", str(tmp_path / "model"), "--methods", "track", "straight"]
    return [*words, *QUICK, "--clip", str(tmp_path / "nowhere"), "--device", "cpu", "--quiet"]


def evaluate(command: list[str], out: Path) -> int:
    return main([*command, "--out", str(out)])


def evaluate_until_killed(command: list[str], out: Path) -> None:
    evaluate(command, out)
    time.sleep(600)


def figures(folder: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    return {key: record.figures for key, record in read_records(folder).items()}


def count_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records*.jsonl"))


def test_killed_ten_times_at_random_a_run_ends_with_the_same_table(command, tmp_path, capsys):
    assert evaluate(command, tmp_path / "whole") == 0
    random, out = np.random.default_rng(1), tmp_path / "killed"
    was_cut_short = 0
    for _ in range(KILLS):
        before, more = count_lines(out), int(random.integers(0, 2))
        child = FORK.Process(target=evaluate_until_killed, args=(command, out), daemon=True)
        child.start()
        while child.is_alive() and count_lines(out) < min(before + more, 8):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        was_cut_short += count_lines(out) < 8
    assert was_cut_short > 0
    assert evaluate(command, out) == 0
    assert (out / "evaluation.md").read_bytes() == (tmp_path / "whole" / "evaluation.md").read_bytes()
    assert figures(out) == figures(tmp_path / "whole")
    assert len(figures(out)) == 8


def test_processes_share_the_pairs_and_come_to_the_same_figures(command, tmp_path, capsys):
    assert evaluate(command, tmp_path / "alone") == 0
    assert run_together(evaluate, command, tmp_path / "together") == [0, 0]
    assert figures(tmp_path / "together") == figures(tmp_path / "alone")
    shares = [
        [json.loads(line)["pair"] for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "together").glob("records*.jsonl"))
    ]
    assert shares == [["000", "000", "002", "002"], ["001", "001", "003", "003"]]
    assert (tmp_path / "together" / "evaluation.md").read_bytes() == (
        tmp_path / "alone" / "evaluation.md"
    ).read_bytes()


def test_processes_share_what_an_earlier_run_left_over(command, tmp_path, capsys):
    """By place in the set, one of the two would get both pairs that are left."""
    for number in (0, 2):
        make_pair(number).save(tmp_path / "half")
    half = [str(tmp_path / "half") if word == str(tmp_path / "pairs") else word for word in command]
    assert evaluate(half, tmp_path / "run") == 0
    before = count_lines(tmp_path / "run")
    assert run_together(evaluate, command, tmp_path / "run") == [0, 0]
    shares = [
        [json.loads(line)["pair"] for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "run").glob("records*.jsonl"))
    ]
    assert [shares[0][before:], shares[1]] == [["001", "001"], ["003", "003"]]
