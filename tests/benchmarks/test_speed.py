"""The benchmark of speed: its passes against the formulas, and its rows against one another."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speed import EXACT, Measures, Subject, format_stages, format_table, rows, run_exactness, run_row

N, K, S, P = 4, 2, 5, 2  # denoising steps, iterations, supervision steps, preview steps


@pytest.fixture(scope="module")
def args() -> argparse.Namespace:
    return argparse.Namespace(
        device="cpu",
        dtype="float32",
        threads=1,
        random_stable_diffusion=False,
        steps=N,
        iterations=K,
        identity_lora_steps=2,
    )


@pytest.fixture(scope="module")
def lora_folder(args, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    Subject(args).fit_lora().save(folder)
    return folder


@pytest.mark.embedded
def test_passes_are_those_of_the_formulas_and_the_picture_is_plains(args, lora_folder):
    expected = {
        "plain": (Measures(), N + 1 + K * (1 + 2 * S + 2 * N) + 1),
        "exact": (EXACT, N + N + K * (2 * S + N) + 1),
        "previews": (replace(EXACT, preview_steps=P), N + N + K * 2 * S + (K - 1) * P + N + 1),
    }
    results = {name: run_row(args, measures, lora_folder) for name, (measures, _) in expected.items()}
    for name, (_, passes) in expected.items():
        assert results[name]["passes"] == passes, name
        assert results[name]["iterations"] == K, "no handle arrives before"
    torch.testing.assert_close(results["exact"]["image"], results["plain"]["image"], rtol=0, atol=1e-3)
    table = format_table(results).splitlines()
    assert table[2].startswith(f"| plain | {expected['plain'][1]} | 100% |")
    assert len(format_stages(results).splitlines()) == 2 + len(results)


@pytest.mark.embedded
def test_each_iteration_is_plains(args, lora_folder):
    differences = run_exactness(args, lora_folder)
    assert len(differences) == K
    assert max(differences) < 1e-3


def test_each_measure_has_a_row_of_its_own():
    alone = [measures for measures in rows([4]).values() if sum(bool(each) for each in vars(measures).values()) == 1]
    switched_on = {name for measures in alone for name, on in vars(measures).items() if on}
    assert switched_on == {name for name, on in vars(EXACT).items() if on}
