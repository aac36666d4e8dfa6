"""Whole maps of predictors whose answers are known, on motion that is known: what is measured, and of what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from motion_predictor.data.motion_record import MotionRecord
from motion_predictor.data.samples import MotionSample
from motion_predictor.data.shards import MotionShards, write_shard
from motion_predictor.evaluation.evaluate import evaluate
from motion_predictor.evaluation.maps import HANDLE_COUNTS, Maps, draw_map, drawn_maps, measure_maps
from motion_predictor.evaluation.predictor import Predictor
from motion_predictor.evaluation.report import format_table
from motion_predictor.evaluation.rollout import roll_out_map
from motion_predictor.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(samples=2, rollouts=0, maps=3, batch_size=4, device="cpu")
VELOCITIES = [(0.5, -0.25), (-0.75, 0.0), (0.25, 0.5)]


def measure(predictor: Predictor | Callable[..., torch.Tensor], shards: MotionShards) -> Maps:
    numbers = range(SETTINGS.maps * len(HANDLE_COUNTS))
    maps = measure_maps({"it": Predictor.of(predictor)}, drawn_maps(shards, numbers, SETTINGS), "cpu")
    assert maps is not None
    return maps


def figures_of(predictor, shards: MotionShards) -> dict:
    figures = evaluate({"it": predictor}, {"data": shards}, SETTINGS)["sources"]["data"]["maps"]
    assert figures is not None
    return figures


def test_samples_are_drawn_with_each_number_of_handles_from_all_records(make_shards):
    shards = make_shards(VELOCITIES)
    drawn = [draw_map(shards, number, SETTINGS) for number in range(12)]
    assert [int(entry.sample.valid.sum()) for entry in drawn] == 3 * list(HANDLE_COUNTS)
    assert [entry.record for entry in drawn] == [0] * 4 + [1] * 4 + [2] * 4


def test_the_truth_has_no_error_and_the_size_and_direction_of_the_truth(make_shards, share_of_the_displacement):
    """All has gone as far as the handles after 15 frames, and over two of them, a tenth, rounded up, as a step."""
    figures = figures_of(share_of_the_displacement(1.0), make_shards(VELOCITIES))
    for handles in ("all", "1", "2", "3", "7"):
        whole = figures["whole"][handles]["all"]["maps"]
        for name in ("it, rolled out", "rigid", "affine"):
            assert whole[name]["endpoint_error"] == pytest.approx(0, abs=1e-3)
            assert whole[name]["size"] == pytest.approx(1, abs=1e-4)
            assert whole[name]["cosine"] == pytest.approx(1, abs=1e-4)
    steps = figures_of(share_of_the_displacement(2 / 15), make_shards(VELOCITIES))["step"]["all"]["all"]["maps"]
    for name in ("it", "true step", "best share of true way"):
        assert steps[name]["endpoint_error"] == pytest.approx(0, abs=1e-2)  # flows are kept to 1/64 px
        assert steps[name]["size"] == pytest.approx(2 / 15, abs=1e-3)


def test_no_motion_is_wrong_by_all_of_it(make_shards, share_of_the_displacement):
    figures = figures_of(share_of_the_displacement(0), make_shards([(0.5, -0.25)]))
    for name in ("it, rolled out", "zero flow"):
        figure = figures["whole"]["all"]["all"]["maps"][name]
        assert figure["endpoint_error"] == pytest.approx(15 * np.hypot(0.5, 0.25), abs=1e-2)
        assert (figure["size"], figure["cosine"]) == (0, 0)


def test_a_rollout_that_goes_a_share_of_what_remains_leaves_the_power_of_the_rest(
    make_shards, share_of_the_displacement
):
    figures = figures_of(share_of_the_displacement(0.1), make_shards(VELOCITIES))["whole"]["all"]["all"]["maps"]
    assert figures["it, rolled out"]["size"] == pytest.approx(1 - 0.9**25, abs=1e-3)


def test_a_predictor_is_asked_for_the_whole_way_if_it_has_it_and_given_a_mask_if_it_takes_one(make_shards):
    asked = []

    def predict_flow(image, handles, targets, valid, *, mask, horizon="step"):
        asked.append(horizon)
        assert mask.shape == (len(image), 1, *image.shape[2:])
        share = 1.0 if horizon == "total" else 0.0
        return (share * (targets - handles)[:, 0])[:, :, None, None].expand(-1, 2, *image.shape[2:])

    predictor = Predictor(predict_flow, horizons=("step", "total"), takes_mask=True)
    whole = figures_of(predictor, make_shards(VELOCITIES))["whole"]["all"]["all"]["maps"]
    assert whole["it, in one shot"]["endpoint_error"] == pytest.approx(0, abs=1e-3)
    assert whole["it, rolled out"]["size"] == 0
    assert set(asked) == {"step", "total"}


def test_a_model_says_itself_what_can_be_asked_of_it():
    class Model:
        horizons, takes_mask = ["step", "total"], True

        def predict_flow(self, image, handles, targets, valid):
            return image[:, :2]

    assert Predictor.of(Model()).horizons == ("step", "total")
    assert Predictor.of(Model()).takes_mask
    plain = Predictor.of(Model().predict_flow)
    assert (plain.horizons, plain.takes_mask) == (("step",), False)


def test_steps_are_put_together_where_the_content_has_come_to(picture):
    """A turn by one degree, 25 times over, is a turn by 25: a sum of steps at the first place would lead outward."""
    centre, angle = torch.tensor([31.5, 31.5]), math.radians(1)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    places = torch.stack([x, y], dim=-1) - centre
    step = (places @ turn.T - places).permute(2, 0, 1)[None]
    image = torch.nn.functional.interpolate(picture[None], size=(64, 64))
    batch = MotionSample(
        image=image,
        handles=torch.tensor([[[40.0, 31.5]]]),
        targets=torch.tensor([[[0.0, 0.0]]]),
        valid=torch.tensor([[True]]),
        steps=torch.zeros(1, 1, 2),
        label=torch.zeros(1, 2, 64, 64),
        frames=torch.tensor([20]),
        total=torch.zeros(1, 2, 64, 64),
        mask=torch.ones(1, 1, 64, 64),
    )
    path, motion = roll_out_map(lambda *points: step, batch)
    whole = torch.matrix_power(turn, 25)
    expected = (places @ whole.T - places).permute(2, 0, 1)
    inside = places.norm(dim=-1) < 28
    torch.testing.assert_close(motion[0][:, inside], expected[:, inside], atol=1e-3, rtol=0)
    torch.testing.assert_close(path[0, -1, 0] - centre, whole @ torch.tensor([8.5, 0.0]), atol=1e-3, rtol=0)


def test_only_what_moves_is_judged_and_by_its_distance_from_the_nearest_handle(tmp_path: Path, make_shards):
    """The left half of a record of 48 x 64 moves, its handles lie around (24, 24)."""
    record = make_shards(VELOCITIES)[0]
    still = record.end_flows.copy()
    still[:, :, 8:] = 0
    shards = written(tmp_path, {"half": replace(record, end_flows=still)})
    maps = measure(lambda image, *points: torch.zeros_like(image[:, :2]), shards)
    lengths = np.hypot(*maps.whole.T)
    assert lengths.min() > 0.2 * lengths.max() > 0
    counts = np.bincount(maps.sample)
    assert (counts == 1024).all()  # of about 32 x 48 pixels
    farthest = (24 + 4) * np.sqrt(2) * 128 / 48
    assert 0 < maps.distance.min() < 4
    assert 0.8 * farthest < maps.distance.max() <= farthest


def test_what_goes_out_of_sight_may_change(tmp_path: Path, make_shards):
    """A third of the record moves, a third goes out of sight, the last one stays."""
    record = make_shards(VELOCITIES)[0]
    ends = record.end_flows.copy()
    ends[:, :, 5:10] = np.nan
    ends[:, :, 10:] = 0
    drawn = draw_map(written(tmp_path, {"thirds": replace(record, end_flows=ends)}), 0, SETTINGS)
    assert drawn is not None
    assert drawn.sample.mask[0, :, :40].all()
    assert not drawn.sample.mask[0, :, 48:].any()


def test_the_camera_is_taken_out_of_labels_ways_and_paths(tmp_path: Path, make_shards, share_of_the_displacement):
    """All of it moves with the camera, so there is nothing to judge; handles that go on move by the rest."""
    record = make_shards(VELOCITIES)[0]
    camera = record.tracks[0].copy()
    assert draw_map(written(tmp_path / "a", {"clip": replace(record, background=camera)}), 0, SETTINGS) is None
    shards = written(tmp_path / "b", {"clip": replace(record, background=camera / 2)})
    drawn = draw_map(shards, 0, SETTINGS)
    assert drawn is not None
    true_way = 7.5 * np.array(VELOCITIES[0])
    np.testing.assert_allclose(drawn.paths[0, -1] - drawn.paths[0, 0], true_way, atol=0.05)
    np.testing.assert_allclose(drawn.sample.total[:, 20, 20], true_way, atol=0.05)


def test_records_that_do_not_say_where_everything_goes_are_not_judged(tmp_path: Path, make_shards):
    nothing = {"end_frames": np.zeros(0, dtype=np.int64), "end_flows": np.zeros((0, 0, 0, 2), dtype=np.float32)}
    shards = written(tmp_path, {"old": replace(make_shards(VELOCITIES)[0], **nothing)})
    results = evaluate({"it": lambda image, *points: image[:, :2]}, {"data": shards}, SETTINGS)
    assert results["sources"]["data"]["maps"] is None
    assert "do not say where everything goes" in format_table(results)


def written(folder: Path, records: dict[str, MotionRecord]) -> MotionShards:
    """A dataset with a video for each record."""
    for name, record in records.items():
        write_shard(folder / "val" / f"{name}.tar", [replace(record, key=f"{name}_000000")])
    return MotionShards(folder, "val")


def test_figures_do_not_depend_on_the_size_of_batches(make_shards, share_of_the_displacement):
    shards = make_shards(VELOCITIES)
    results = [
        evaluate({"it": share_of_the_displacement(0.3)}, {"data": shards}, replace(SETTINGS, batch_size=size))
        for size in (1, 5)
    ]
    one, other = (source["sources"]["data"]["maps"] for source in results)
    for name, figure in one["whole"]["all"]["all"]["maps"].items():
        assert figure["endpoint_error"] == pytest.approx(
            other["whole"]["all"]["all"]["maps"][name]["endpoint_error"], abs=1e-4
        )


@pytest.mark.parametrize("side", [1, -1])
def test_paths_that_bend_are_found_and_compared_with_those_of_rollouts(tmp_path: Path, make_shards, side: int):
    """Handles go right in an arc over the top, and left in an arc below: both bend to the left."""
    share = np.arange(1, 21)[:, None] / 15
    records = {}
    for name, direction in (("right", 1.0), ("left", -1.0)):
        arc = np.concatenate([12 * share, -16 * share * (1 - share)], axis=1) * direction
        record = make_shards(VELOCITIES)[0]
        records[name] = replace(
            record,
            tracks=np.broadcast_to(arc, (12, 20, 2)).astype(np.float32).copy(),
            end_flows=np.broadcast_to(arc[14], record.end_flows.shape).astype(np.float32).copy(),
        )
    # A third one bends to the other side, and a predictor can tell by the direction.
    down = np.concatenate([-16 * share * (1 - share), 12 * share], axis=1)
    records["down"] = replace(
        records["right"],
        tracks=np.broadcast_to(down, (12, 20, 2)).astype(np.float32).copy(),
        end_flows=np.broadcast_to(down[14], records["right"].end_flows.shape).astype(np.float32).copy(),
    )

    def bent(image, handles, targets, valid):
        ahead = 0.2 * (targets - handles)[:, 0]
        to_the_left = torch.where(ahead[:, 1].abs() > ahead[:, 0].abs(), -1.0, 1.0)[:, None]
        aside = torch.stack([ahead[:, 1], -ahead[:, 0]], dim=1) * to_the_left * side
        return (ahead + aside)[:, :, None, None].expand(-1, 2, *image.shape[2:])

    shards = written(tmp_path, records)
    maps = measure(bent, shards)
    assert len(maps.bend) == 3 * sum(HANDLE_COUNTS)
    np.testing.assert_allclose(np.abs(maps.bend), 4, atol=0.1)  # 16 s (1 - s), at s = 7 or 8 of 15
    curves = figures_of(bent, shards)["curves"]["it"]
    assert curves["correlation"] * side > 0.8
    assert curves["same_side"] == (1 if side == 1 else 0)
    straight = figures_of(lambda image, *points: torch.zeros_like(image[:, :2]), shards)["curves"]["it"]
    assert straight["correlation"] is None
    assert straight["same_side"] == 0
