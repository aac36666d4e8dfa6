"""The table of edits: what is run, what is run again, and how it is summed up."""

import argparse

import numpy as np
import pytest
import torch
from drag_quality import DEFAULT, ROWS, Row, TrueFlow, format_table, interval, make_edits, parse_option, plan_rows

from dynadrag_pipeline import EMBEDDED_CHECKPOINT
from dynadrag_pipeline.evaluation.pairs import EvaluationPair, with_misplaced_handle
from dynadrag_pipeline.settings import recommended_settings


@pytest.fixture
def pair() -> EvaluationPair:
    random = np.random.default_rng(0)
    source, target = random.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    points, displacement = np.array([[40.0, 50.0]], dtype=np.float32), np.array([10, -5], dtype=np.float32)
    mask, flow = np.ones((128, 128), dtype=bool), np.tile(displacement, (128, 128, 1))
    return EvaluationPair("000_noise", source, target, mask, points, points + displacement, flow)


def marks(options: dict) -> dict[str, str]:
    return {name: mark for name, (_, _, mark) in plan_rows(list(ROWS), options, str(EMBEDDED_CHECKPOINT)).items()}


def test_rows_that_change_nothing_are_not_run_twice():
    unchanged = {
        name
        for name, row in ROWS.items()
        if row.settings and row.settings.items() <= recommended_settings(EMBEDDED_CHECKPOINT).items()
    }
    assert unchanged
    assert set(ROWS) - set(marks({})) == unchanged


def test_edits_are_told_apart_by_their_settings_and_motion():
    assert len(set(marks({}).values())) == len(marks({}))
    assert marks({"supervision_steps": 3})[DEFAULT] != marks({})[DEFAULT]
    assert marks({}) == marks({})


def test_true_motion_leads_a_tenth_of_the_displacement_and_nowhere_where_it_is_not_known(pair):
    pair.flow[0, 0] = np.nan
    flow = TrueFlow(pair.flow).predict_flow(torch.zeros(1, 3, 128, 128), torch.zeros(1, 2), torch.zeros(1, 2))
    assert flow[0, :, 50, 40].tolist() == pytest.approx([1, -0.5])
    assert flow[0, :, 0, 0].tolist() == [0, 0]


def test_a_misplaced_handle_lies_on_what_moves_least_and_is_dragged_as_far_as_the_others(pair):
    pair.flow[:, 64:] = 0
    pair.mask[:, 100:] = False
    asked = with_misplaced_handle(pair)
    assert np.array_equal(asked.handles[:-1], pair.handles)
    assert np.array_equal(asked.targets[:-1], pair.targets)
    (x, y), target = asked.handles[-1].astype(int), asked.targets[-1]
    assert 64 <= x < 100
    assert 12 <= y < 116
    assert np.linalg.norm(target - asked.handles[-1]) == pytest.approx(np.hypot(10, 5))
    assert np.array_equal(with_misplaced_handle(pair).handles, asked.handles)


def test_edits_are_made_once_and_again_only_for_other_settings(pair, tmp_path, capfd):
    """In a process of its own, as the command does."""
    args = argparse.Namespace(out=tmp_path, model=EMBEDDED_CHECKPOINT, paper_predictor=None, jobs=1)
    options = {"max_iterations": 1, "supervision_steps": 1, "num_inference_steps": 2, "identity_lora_steps": 0}

    def changed_by(options: dict) -> bool:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
        make_edits([pair], plan_rows([DEFAULT], options, str(args.model)), args)
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} != before

    assert changed_by(options)
    assert not changed_by(options)
    assert changed_by({**options, "supervision_lr": 0.02})
    assert (tmp_path / "edits" / DEFAULT / "000_noise.png").exists()


def test_the_interval_holds_the_mean_and_narrows_with_the_number_of_pairs():
    values = np.random.default_rng(0).normal(5, 1, 400)
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert interval(np.array([3.0, np.nan]))[0] == 3
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_the_table_compares_pair_by_pair():
    """Rows that differ by two on each pair differ by two without a doubt, however different the pairs are."""
    distances = np.array([1.0, 9.0, 30.0])
    measures = {
        DEFAULT: [{"distance": value} for value in distances],
        "straight steps": [{"distance": value + 2} for value in distances],
    }
    table = format_table(measures, dict.fromkeys(measures, 0.0))
    assert "| straight steps | 2 [2, 2] |" in table


def test_options_are_json_or_else_words():
    assert parse_option("max_iterations=10") == ("max_iterations", 10)
    assert parse_option("dynamic_selection=null") == ("dynamic_selection", None)
    assert parse_option("dynamic_selection=all") == ("dynamic_selection", "all")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        parse_option("max_iterations")


def test_every_row_is_a_change_of_settings_or_of_motion():
    assert all(row != Row() for name, row in ROWS.items() if name != DEFAULT)
