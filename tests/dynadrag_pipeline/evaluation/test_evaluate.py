"""Runs over pairs: the same figures however often they are stopped, and tables that compare pair by pair."""

from __future__ import annotations

import doctest
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from dynadrag_pipeline.cli import main
from dynadrag_pipeline.commands import evaluate as evaluate_command
from dynadrag_pipeline.evaluation import (
    code_version,
    method_names,
    methods,
    metrics,
    pairs,
    records,
    report,
    set_metrics,
)
from dynadrag_pipeline.evaluation.method_names import METHOD_NAMES
from dynadrag_pipeline.evaluation.methods import METHODS, Method, TrueFlow, bent_through_points, source_of_motion
from dynadrag_pipeline.evaluation.metrics import (
    ClipSimilarity,
    Metrics,
    mean_squared_error,
    noise_ratio_outside,
    picture_metrics,
    structural_similarity,
)
from dynadrag_pipeline.evaluation.plots import distances_figure, paths_figure
from dynadrag_pipeline.evaluation.records import Record, RecordFile, read_records
from dynadrag_pipeline.evaluation.report import best_median_worst, edits_sheet, format_tables, interval
from dynadrag_pipeline.evaluation.rows import load_rows
from dynadrag_pipeline.evaluation.run import EvaluationRun
from dynadrag_pipeline.network_state import why_not_captured
from dynadrag_pipeline.session import DragSession
from support.evaluation_pairs import SIDE, make_pair, smooth_picture
from support.tiny_models import make_motion_predictor

OPTIONS = {"num_inference_steps": 2, "max_iterations": 2, "supervision_steps": 1, "identity_lora_steps": 1}


class TestMetrics:
    def test_squared_error_is_on_the_scale_of_one(self):
        black, white = (np.full((SIDE, SIDE, 3), value, dtype=np.uint8) for value in (0, 255))
        assert mean_squared_error(black, white) == 1
        had = Metrics({name: picture_metrics()[name] for name in ("mse_unit", "mse_bytes")})
        one = make_pair(1)
        one.target[:] = 255
        assert had(black, one) == {"mse_unit": 1000, "mse_bytes": pytest.approx(65.025)}

    def test_outside_the_mask_counts_alone(self):
        source, mask = smooth_picture(1), make_pair(1).mask
        edited = source.copy()
        edited[20:30] = 0
        assert noise_ratio_outside(edited, source, mask) == 100
        edited[0:5] = edited[0:5] // 2
        squared = np.square(edited[~mask] / 255 - source[~mask] / 255).mean()
        assert noise_ratio_outside(edited, source, mask) == pytest.approx(-10 * np.log10(squared))
        assert np.isnan(noise_ratio_outside(edited, source, np.ones_like(mask)))

    def test_structural_similarity_of_two_plain_pictures_is_its_first_factor(self):
        """(2 a b + C1) / (a^2 + b^2 + C1), of which C1 = (0.01 * 255)^2: nothing varies."""
        first, second = (np.full((32, 32, 3), value, dtype=np.uint8) for value in (100, 150))
        c1 = 2.55**2
        expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
        assert structural_similarity(first, second) == pytest.approx(expected, abs=1e-6)
        assert structural_similarity(smooth_picture(1), smooth_picture(1)) == pytest.approx(1)

    def test_clip_is_read_in_its_own_format_and_compares_embeddings(self, tmp_path):
        torch.manual_seed(0)
        width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPVisionConfig(image_size=32, patch_size=8, **width)
        CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
        similarity = ClipSimilarity(str(tmp_path))
        assert similarity(smooth_picture(1), smooth_picture(1)) == pytest.approx(1)
        other = similarity(smooth_picture(1), 255 - smooth_picture(2))
        assert -1 <= other < 0.9999
        assert other == pytest.approx(similarity(255 - smooth_picture(2), smooth_picture(1)))

    def test_dino_is_read_in_its_own_format_and_compares_class_tokens(self, tmp_path):
        torch.manual_seed(0)
        config = Dinov2Config(
            image_size=28, patch_size=14, hidden_size=16, mlp_ratio=1, num_hidden_layers=1, num_attention_heads=2
        )
        Dinov2Model(config).save_pretrained(tmp_path)
        BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
        metrics = Metrics({f"dino {tmp_path}": picture_metrics(dino=str(tmp_path))[f"dino {tmp_path}"]})
        assert not metrics.missing
        one = make_pair(1)
        assert metrics(one.target, one)[f"dino {tmp_path}"] == pytest.approx(1)
        assert -1 <= metrics(255 - smooth_picture(2), one)[f"dino {tmp_path}"] < 0.9999

    def test_what_can_not_be_had_says_why_and_the_others_are_computed(self, tmp_path):
        had = Metrics(picture_metrics(clip=str(tmp_path / "nowhere")))
        name = f"clip {tmp_path / 'nowhere'}"
        assert name in had.missing
        assert name not in had(smooth_picture(1), make_pair(1))
        table = format_tables([Record("a", "m", "", {"asked": 1.0, **had(smooth_picture(1), make_pair(1))}, {})], had)
        assert "CLIP: not measured: " in table
        assert "| SSIM |" in table


class TestRecords:
    RECORD = Record("001", "track", "abc", {"distance": 1.5}, {"stop_reason": "reached"})

    def test_a_record_is_read_as_it_was_and_the_last_counts(self, tmp_path):
        RecordFile(tmp_path / "records.000.jsonl").append(Record("001", "track", "abc", {"distance": 9.0}, {}))
        RecordFile(tmp_path / "records.001.jsonl").append(self.RECORD)
        assert read_records(tmp_path) == {("001", "track", "abc"): self.RECORD}

    @pytest.mark.parametrize("kept", [1, 20, -2])
    def test_what_a_kill_leaves_of_a_line_costs_no_other(self, tmp_path, kept):
        file = RecordFile(tmp_path / "records.000.jsonl")
        file.append(self.RECORD)
        whole = file.path.read_bytes()
        file.path.write_bytes(whole + whole[:kept])
        file.append(Record("002", "track", "abc", {}, {}))
        assert [key[0] for key in read_records(tmp_path)] == ["001", "002"]

    def test_what_is_not_known_is_null_in_the_file_and_read_as_such(self, tmp_path):
        told = {"similarities": [float("-inf"), 0.5], "stop_reason": None}
        file = RecordFile(tmp_path / "records.000.jsonl")
        file.append(Record("001", "track", "abc", {"distance": float("nan"), "lost": 1.0}, told))

        def refused(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        json.loads(file.path.read_text(), parse_constant=refused)
        [read] = read_records(tmp_path).values()
        assert np.isnan(read.figures["distance"])
        assert read.figures["lost"] == 1
        assert read.told == {"similarities": [None, 0.5], "stop_reason": None}


class TestRun:
    PAIRS = (make_pair(1), make_pair(2))
    CHOSEN = tuple(METHODS[name] for name in ("no edit", "track", "straight"))

    def metrics(self) -> Metrics:
        wanted = picture_metrics()
        return Metrics({name: wanted[name] for name in ("mse_unit", "ssim", "psnr_outside")})

    def table(self, pipe, folder: Path) -> str:
        measured = self.metrics()
        return format_tables(EvaluationRun(pipe, folder, measured, OPTIONS)(self.PAIRS, self.CHOSEN), measured)

    def test_killed_ten_times_it_ends_with_the_same_table(self, pipe, tmp_path, monkeypatch):
        expected = self.table(pipe, tmp_path / "whole")
        random, append = np.random.default_rng(0), RecordFile.append

        def killed(file: RecordFile, record: Record) -> None:
            append(file, record)
            content = file.path.read_bytes()
            file.path.write_bytes(content[: len(content) - int(random.integers(0, 2000))])
            raise KeyboardInterrupt

        for _ in range(10):
            monkeypatch.setattr(RecordFile, "append", killed if random.random() < 0.7 else append)
            try:
                self.table(pipe, tmp_path / "killed")
            except KeyboardInterrupt:
                continue
        monkeypatch.setattr(RecordFile, "append", append)
        assert self.table(pipe, tmp_path / "killed") == expected

    def test_a_metric_that_comes_later_is_measured_on_the_pictures_that_are_there(self, pipe, tmp_path):
        EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)(self.PAIRS, self.CHOSEN)
        before = (tmp_path / "records.000.jsonl").read_bytes()
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        records = run(self.PAIRS, self.CHOSEN)
        assert (tmp_path / "records.000.jsonl").read_bytes() == before
        assert all(np.isfinite(record.figures["ssim"]) for record in records)

    def test_what_is_done_is_not_done_again_but_for_other_settings(self, pipe, tmp_path):
        def passes(**options) -> int:
            count: list[None] = []
            run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS | options)
            hook = pipe.unet.register_forward_hook(lambda *_: count.append(None))
            run(self.PAIRS[:1], self.CHOSEN)
            hook.remove()
            return len(count)

        assert passes() > 0
        assert passes() == 0
        assert passes(supervision_lr=0.5) > 0

    def test_figures_are_of_the_picture_that_lies_there_whichever_file_has_them(self, pipe, tmp_path):
        """One process of several made the edit, and another one again when its picture was gone."""
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)
        [made] = run(self.PAIRS[:1], self.CHOSEN[1:2])
        before = replace(made, figures={**made.figures, "distance": 99.0}, told={**made.told, "picture": "another"})
        RecordFile(tmp_path / "records.001.jsonl").append(before)
        assert run(self.PAIRS[:1], self.CHOSEN[1:2]) == [made]
        assert len((tmp_path / "records.000.jsonl").read_text().splitlines()) == 1, "and it is not made again"

    def test_an_edit_is_that_of_a_call_and_its_record_says_how_it_came_about(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        nothing, tracked, _ = run(self.PAIRS[:1], self.CHOSEN)
        one = self.PAIRS[0]
        assert nothing.figures["distance"] == nothing.figures["asked"] == 8
        assert (run.picture("no edit", one.name) == one.source).all()
        mask = np.uint8(255) * one.mask
        output = pipe(one.source, one.handles, one.targets, mask, motion="track", output_type="np", **OPTIONS)
        assert np.abs(run.picture("track", one.name) / 255 - output.images[0]).max() < 0.51 / 255
        assert tracked.told["stop_reason"] == output.stop_reason
        assert tracked.figures["passes"] == 2 + 2 + 1, "a step in each iteration, one denoising, the last loss"
        assert why_not_captured(pipe.unet) is None, "counting passes leaves them free to be captured on a GPU"

    def test_the_true_motion_leads_a_tenth_of_the_way_and_goes_on_where_it_is_not_known(self):
        one = make_pair(1)
        one.flow[:5, :5] = np.nan
        picture, point = torch.zeros(1, 3, 2 * SIDE, 2 * SIDE), torch.zeros(1, 2)
        said = TrueFlow(one.flow).predict(picture, point, point)
        assert said.flow[0, :, 60, 40].tolist() == pytest.approx([1.6, 0])
        assert said.total_flow[0, :, 60, 40].tolist() == pytest.approx([16, 0])
        assert said.total_flow[0, :, 0, 0].tolist() == pytest.approx([16, 0])

    def test_what_a_picture_costs_once_is_made_once_for_all_that_agree_on_it(self, pipe, tmp_path, monkeypatch):
        """A LoRA for the picture, and an inversion for each of the two strengths, whatever the order of the rows."""
        made: list[str] = []
        for name in ("fit_identity_lora", "invert"):
            original = getattr(DragSession, name)
            monkeypatch.setattr(
                DragSession,
                name,
                lambda session, name=name, original=original: (made.append(name), original(session))[1],
            )
        rows = [
            Method("as ever", "straight"),
            Method("half as far", "straight", options={"inversion_strength": 0.5}),
            Method("carried", "straight", options={"carry": "once", "settle_iterations": 0}),
            Method("its own pixels", "straight", options={"restore_source": True}),
        ]
        records = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)(self.PAIRS[:1], rows)
        assert [record.method for record in records] == [row.name for row in rows]
        assert made == ["fit_identity_lora", "invert", "invert"]

    def test_a_row_is_a_call_with_its_options(self, pipe, tmp_path):
        options = {"inversion_strength": 0.5, "restore_source": True, "supervision_lr": 0.1}
        run, one = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS), self.PAIRS[0]
        run([one], [METHODS["straight"], Method("row", "straight", options=options)])
        mask = np.uint8(255) * one.mask
        output = pipe(one.source, one.handles, one.targets, mask, output_type="np", **OPTIONS, **options)
        assert np.abs(run.picture("row", one.name) / 255 - output.images[0]).max() < 0.51 / 255
        assert (run.picture("row", one.name) != run.picture("straight", one.name)).any()

    def test_a_row_of_the_same_name_with_other_options_is_made_again_and_so_is_the_first_one_after_it(
        self, pipe, tmp_path
    ):
        def picture(rate: float) -> np.ndarray:
            run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
            run(self.PAIRS[:1], [Method("row", "straight", options={"supervision_lr": rate})])
            return run.picture("row", self.PAIRS[0].name)

        slow, fast = picture(0.01), picture(0.5)
        assert (slow != fast).any()
        assert (picture(0.01) == slow).all()

    def test_an_edit_forth_and_back_is_one_of_what_came_out(self, pipe, tmp_path):
        """From where the handles were sent, with the same options, and compared with where it all began."""
        one = self.PAIRS[0]
        seen = []
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS, drag_back=lambda *both: seen.append(both) or 0.25)
        records = run([one], [METHODS[name] for name in ("no edit", "true motion", "straight")])
        assert [record.figures.get("drag_back") for record in records] == [0.25, None, 0.25], "none knows it back"
        forth = run.picture("straight", one.name)
        output = pipe(forth, one.targets, one.handles, np.uint8(255) * one.mask, output_type="np", **OPTIONS)
        back = run.picture("straight (back)", one.name)
        assert np.abs(back / 255 - output.images[0]).max() < 0.51 / 255
        assert (seen[0][0] == one.source).all(), "what was not edited"
        assert (seen[1][0] == back).all()
        assert all((source == one.source).all() for _, source in seen)

    def test_a_misplaced_handle_is_dragged_and_not_counted(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)
        [record] = run(self.PAIRS[:1], [Method("row", "straight", misplaced_handle=True)])
        assert np.array(record.told["trajectory"]).shape[1] == 3
        assert record.figures["asked"] == pytest.approx(8)
        assert record.figures["points"] == 2

    def test_a_mask_along_the_border_has_room_for_a_misplaced_handle(self):
        mask = np.zeros_like(self.PAIRS[0].mask)
        mask[:6] = True
        pair = pairs.with_misplaced_handle(replace(self.PAIRS[0], mask=mask))
        assert mask[tuple(pair.handles[-1, ::-1].astype(int))]

    def test_a_pair_whose_true_motion_is_not_known_gets_no_misplaced_handle(self, pipe, tmp_path):
        one = replace(self.PAIRS[0], flow=np.full_like(self.PAIRS[0].flow, np.nan))
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)
        [record] = run([one], [Method("row", "straight", misplaced_handle=True)])
        assert np.array(record.told["trajectory"]).shape[1] == 2

    def test_a_picture_without_a_true_outcome_is_edited_with_its_prompt_and_measured_by_the_rest(self, pipe, tmp_path):
        one = replace(self.PAIRS[0], target=None, prompt="a cat", name="animals/one")
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        [record] = run([one], [METHODS["straight"]])
        assert np.isfinite(record.figures["psnr_outside"])
        assert "ssim" not in record.figures
        mask = np.uint8(255) * one.mask
        output = pipe(one.source, one.handles, one.targets, mask, prompt="a cat", output_type="np", **OPTIONS)
        assert np.abs(run.picture("straight", one.name) / 255 - output.images[0]).max() < 0.51 / 255

    def test_another_predictor_is_another_edit(self, pipe, tmp_path):
        for seed in (0, 1):
            make_motion_predictor(seed).save_pretrained(tmp_path / f"predictor{seed}")
        run = EvaluationRun(pipe, tmp_path / "run", self.metrics(), OPTIONS)
        rows = [Method(f"row {seed}", "predicted", {}, str(tmp_path / f"predictor{seed}")) for seed in (0, 1)]
        records = run(self.PAIRS[:1], rows)
        assert records[0].told["trajectory"] != records[1].told["trajectory"]
        mark = run.mark(rows[0], self.PAIRS[0])
        make_motion_predictor(2).save_pretrained(tmp_path / "predictor0")
        again = EvaluationRun(pipe, tmp_path / "run", self.metrics(), OPTIONS)
        again.prepare(self.PAIRS[:1], rows)
        assert again.mark(rows[0], self.PAIRS[0]) != mark

    def test_a_row_that_asks_the_predictor_makes_no_other_row_again(self, pipe, tmp_path, monkeypatch):
        monkeypatch.setattr(pipe, "motion_predictor", make_motion_predictor(0))
        alone, beside = (EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS) for _ in range(2))
        alone.prepare(self.PAIRS, self.CHOSEN)
        beside.prepare(self.PAIRS, [*self.CHOSEN, METHODS["predicted"]])
        for method in self.CHOSEN:
            assert alone.mark(method, self.PAIRS[0]) == beside.mark(method, self.PAIRS[0])

    def test_other_code_makes_other_figures_and_other_comments_do_not(self, pipe, tmp_path, monkeypatch):
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        mark = run.mark(METHODS["straight"], self.PAIRS[0])
        read, changes = code_version.self_contained, []
        monkeypatch.setattr(code_version, "self_contained", lambda name: "".join([read(name), *changes]))
        for change, is_same in (("# a comment\n", True), ("ROUNDS = 3\n", False)):
            changes[:] = [change]
            code_version.code_version.cache_clear()
            assert (run.mark(METHODS["straight"], self.PAIRS[0]) == mark) == is_same
        code_version.code_version.cache_clear()

    def test_another_text_encoder_makes_other_figures(self, pipe, tmp_path):
        mark = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS).mark(METHODS["straight"], self.PAIRS[0])
        with torch.no_grad():
            next(pipe.text_encoder.parameters()).add_(1)
        assert EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS).mark(METHODS["straight"], self.PAIRS[0]) != mark

    def test_the_code_that_puts_a_handle_elsewhere_counts_too(self, pipe, tmp_path, monkeypatch):
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        misplaced = Method("row", "straight", misplaced_handle=True)
        mark, read = run.mark(misplaced, self.PAIRS[0]), code_version.inspect.getsource
        changed = lambda module: read(module) + "MARGIN = 3\n" * (module is pairs)  # noqa: E731
        monkeypatch.setattr(code_version.inspect, "getsource", changed)
        code_version.code_version.cache_clear()
        assert run.mark(misplaced, self.PAIRS[0]) != mark
        code_version.code_version.cache_clear()

    def test_a_figure_is_measured_again_by_another_version_of_what_measures_it(self, pipe, tmp_path, monkeypatch):
        run = EvaluationRun(pipe, tmp_path, self.metrics(), OPTIONS)
        run(self.PAIRS[:1], self.CHOSEN[:1])
        before = run._measure_marks(self.PAIRS[0], self.CHOSEN[0])
        monkeypatch.setattr(metrics, "version", lambda package: "99.0")
        after = run._measure_marks(self.PAIRS[0], self.CHOSEN[0])
        assert {name for name in before if before[name] != after[name]} == {"ssim"}

    def test_a_method_that_can_not_be_run_is_named_before_any_work(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path / "run", self.metrics(), OPTIONS)
        with pytest.raises(ValueError, match="Method 'predicted': `motion` must be another than 'predicted'"):
            run(self.PAIRS, [METHODS["straight"], METHODS["predicted"]])
        with pytest.raises(ValueError, match=r"Method 'row': `motion_predictor` must be 'own'.* got '.*nowhere'"):
            run(self.PAIRS, [Method("row", "predicted", motion_predictor=str(tmp_path / "nowhere"))])
        assert not (tmp_path / "run").exists()

    def test_true_motion_that_is_not_known_is_not_made_up(self, pipe, tmp_path):
        nowhere = np.full_like(self.PAIRS[1].flow, np.nan)
        pairs = [self.PAIRS[0], replace(self.PAIRS[1], flow=nowhere)]
        run = EvaluationRun(pipe, tmp_path / "run", self.metrics(), OPTIONS)
        with pytest.raises(ValueError, match="Method 'true motion': pair '002' has no true motion"):
            run(pairs, [METHODS["straight"], METHODS["true motion"]])
        assert not (tmp_path / "run").exists()
        by_default = SimpleNamespace(methods=None)
        assert METHODS["true motion"] in evaluate_command._named(by_default, [], pairs[:1])
        assert METHODS["true motion"] not in evaluate_command._named(by_default, [], pairs)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"targets": np.array([[20.0, 30.0], [64.0, 44.0]], dtype=np.float32)}, r"`targets` must lie inside"),
            ({"mask": np.zeros((SIDE, SIDE), dtype=bool)}, "`mask` must select something"),
        ],
    )
    def test_an_instruction_that_can_not_be_followed_is_named_before_any_work(self, wrong, said, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path / "run", self.metrics(), OPTIONS)
        with pytest.raises(ValueError, match=f"Pair '002': {said}"):
            run([self.PAIRS[0], replace(self.PAIRS[1], **wrong)], self.CHOSEN)
        assert not (tmp_path / "run").exists()

    def test_every_name_is_a_method(self):
        assert set(METHOD_NAMES) == set(METHODS)


class TestPicturesAndFlows:
    def test_a_picture_is_bent_through_its_points_and_only_where_it_may(self):
        """All points go eight pixels to the right: so does the middle of the mask."""
        one = make_pair(3)
        bent = bent_through_points(one)
        assert (bent[~one.mask] == one.source[~one.mask]).all()
        near_points = np.s_[28:34, 26:36]
        off = np.abs(bent[near_points].astype(float) - one.target[near_points]).mean()
        assert off < 0.1 * np.abs(one.source[near_points].astype(float) - one.target[near_points]).mean()

    def test_a_picture_that_is_bent_has_its_content_looked_for(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)
        bent, nothing = run([make_pair(3)], [METHODS["bend"], METHODS["no edit"]])
        assert (run.picture("bend", "003") == bent_through_points(make_pair(3))).all()
        assert nothing.figures["distance"] == bent.figures["asked"] == 8
        seen = bent.told["content"]
        assert seen["asked"] == [8, 8]
        assert max(seen["similarities"]) < 0.9999, "another picture than the source was looked at"

    def test_one_step_bends_once_and_takes_no_adam_steps(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS)
        [record] = run([make_pair(1)], [METHODS["one-step"]])
        assert record.figures["iterations"] == 1
        assert record.told["stop_reason"] == "reached"
        assert record.figures["passes"] == 2 + 2, "a look before and one after, and a denoising"

    def test_the_true_motion_can_be_carried(self, pipe, tmp_path):
        run = EvaluationRun(pipe, tmp_path, Metrics({}), OPTIONS | {"restore_source": False})
        options = {"carry": "once", "settle_iterations": 0}
        away = make_pair(1)
        away.flow[40:, :, 1] = 4
        for name, each in (("one", make_pair(1)), ("other", away)):
            run([each], [Method(name, "true motion", options=options)])
        true, other = (run.picture(name, "001") for name in ("one", "other"))
        assert (true != make_pair(1).source).any()
        assert (true != other).any(), "what is between the points is the true flow's to say"


class TestRows:
    def load(self, tmp_path: Path, text: str) -> list[Method]:
        (tmp_path / "rows.yaml").write_text(text)
        return load_rows(tmp_path / "rows.yaml")

    def test_a_file_says_what_is_different_in_each_row(self, tmp_path):
        rows = self.load(
            tmp_path,
            """
            carried once, 0 iterations: {motion: straight, carry: once, settle_iterations: 0}
            strength 0.5: {inversion_strength: 0.5, supervision_lr: 1e-2}
            without selection: {preset: paper, dynamic_selection: none}
            easier: {motion: {search: {expected_loss: 0.3}}}
            another: {motion_predictor: embedded}
            the true one: {motion: true motion, carry: once}
            nothing else:
            """,
        )
        by_name = {row.name: row for row in rows}
        carried = by_name["carried once, 0 iterations"]
        assert (carried.motion, carried.options) == ("straight", {"carry": "once", "settle_iterations": 0})
        assert by_name["strength 0.5"].options == {"inversion_strength": 0.5, "supervision_lr": 0.01}
        assert by_name["without selection"] == Method(
            "without selection", preset="paper", options={"dynamic_selection": None}
        )
        assert by_name["easier"].motion_options == {"expected_loss": 0.3}
        assert source_of_motion(by_name["easier"], make_pair(1), None).expected_loss == 0.3
        assert (by_name["another"].motion, by_name["another"].motion_predictor) == ("predicted", "embedded")
        assert source_of_motion(by_name["the true one"], make_pair(1), None).name == "true motion"
        assert by_name["nothing else"] == Method("nothing else")

    def test_json_is_read_too(self, tmp_path):
        assert self.load(tmp_path, '{"a": {"carry": "once"}}')[0].options == {"carry": "once"}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a: {inversion_strength: 2}", "row 'a': `inversion_strength` must be .* at most 1, got 2"),
            ("a: {inversion_strenght: 1}", "row 'a': `inversion_strenght` is no option: it must be one of motion, "),
            ("a: {preset: papers}", "row 'a': `preset` must be one of 'paper'.*, got 'papers'"),
            ("a: {motion: lucky}", "row 'a': `motion` must be one of 'predicted'.*'true motion', got 'lucky'"),
            ("a: {motion: {track: {radius: 0}}}", "row 'a': `radius` must be a whole number of at least 1"),
            ("a: {motion: {track: {raduis: 3}}}", "row 'a': `motion` must give `track` numbers .* of radius, step"),
            ("a: {motion: {straight: {radius: 3}}}", "row 'a': `motion` must be one of 'track', 'search'"),
            ("a: {motion: straight, motion_predictor: own}", "row 'a': `motion_predictor` goes with"),
            ("a: {motion_predictor: 3}", "row 'a': `motion_predictor` must be 'own', 'embedded', .* got 3"),
            ("a: [1]", r"row 'a': it must be a mapping from options to values, .* got \[1\]"),
            ("straight: {carry: once}", "row 'straight': its name must differ from 'straight'"),
            ("{a b: {}, a_b: {}}", "row 'a_b': its name must differ from 'a b' in its letters or digits"),
            ("{Half: {}, half: {}}", "row 'half': its name must differ from 'Half' .* capitals aside"),
            ("straight (back): {}", r"row 'straight \(back\)': its name must differ from 'straight \(back\)'"),
            ("{a (back): {}, a: {}}", r"row 'a': its name must differ from 'a \(back\)'"),
            ("'a|b': {}", "row 'a|b': its name must be without"),
            ("1: {}", "row 1: its name must be a line of text"),
            ("{}", "must hold rows"),
            ("a: ${oc.env:HOME}", "is not read"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_row_its_value_and_what_is_accepted(self, tmp_path, text, said):
        with pytest.raises(ValueError, match=said):
            self.load(tmp_path, text)


class TestReport:
    def records(self) -> list[Record]:
        distances = {"a": 1.0, "b": 9.0, "c": 30.0}
        return [
            Record(name, method, "", {"asked": 8.0, "distance": distance + more}, {})
            for name, distance in distances.items()
            for method, more in (("straight", 2.0), ("predicted", 0.0))
        ]

    def test_methods_are_compared_pair_by_pair(self):
        """Those that differ by two on each pair differ by two without a doubt, however different the pairs are."""
        table = format_tables(self.records(), Metrics({}))
        assert "| straight | 2 [2, 2]; 0 of 3 |" in table
        assert "3 pairs, 8.00 px asked for" in table
        alone = [record for record in self.records() if record.method == "straight"]
        assert "Difference" not in format_tables(alone, Metrics({}))
        other_way = format_tables(self.records(), Metrics({}), baseline="straight")
        assert "| predicted | -2 [-2, -2]; 3 of 3 |" in other_way

    def test_a_mean_over_fewer_pairs_says_over_how_many_and_a_difference_is_over_those_that_have_both(self):
        def record(pair: str, method: str, distance: float, lost: float, points: float) -> Record:
            return Record(pair, method, "", {"asked": 8.0, "distance": distance, "lost": lost, "points": points}, {})

        unknown = float("nan")
        records = [
            record("a", "track", 4.0, 0.0, 3.0),
            record("b", "track", unknown, 1.0, 1.0),
            record("c", "track", 4.0, 0.0, 1.0),
            record("a", "straight", 1.0, 0.0, 3.0),
            record("b", "straight", 9.0, 0.0, 1.0),
            record("c", "straight", unknown, 1.0, 1.0),
        ]
        table = format_tables(records, Metrics({}))
        means, differences = table.split("Difference to straight")
        assert "| track | 4 [4, 4] (n = 2) | 0.2 [" in means, "one of five points was not found"
        assert "| straight | 5 [1, 9] (n = 2) | 0.2 [" in means
        assert "| track | 3 [3, 3]; 0 of 1 |" in differences
        [axes] = distances_figure(records).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["track (n = 2)", "straight (n = 2)"]

    def test_the_interval_holds_the_mean_and_narrows_with_the_number_of_pairs(self):
        values = np.random.default_rng(0).normal(5, 1, 400)
        mean, low, high = interval(values)
        assert mean == pytest.approx(values.mean())
        assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
        assert np.isnan(interval(np.array([np.nan]))).all()

    def test_best_median_and_worst_are_found_and_what_is_unknown_is_worst(self):
        records = self.records()
        assert best_median_worst(records, "predicted") == ["a", "b", "c"]
        records.append(Record("d", "predicted", "", {"distance": float("nan")}, {}))
        assert best_median_worst(records, "predicted")[-1] == "d"
        assert best_median_worst(records[:1], "straight") == ["a"]

    def test_the_figure_of_distances_has_a_line_for_each_method_at_its_mean(self):
        [axes] = distances_figure(self.records()).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["straight", "predicted"]
        means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert means == pytest.approx([40 / 3 + 2, 40 / 3])

    def test_paths_are_drawn_on_their_sources_and_the_true_one_is_under_the_others(self):
        def record(method: str, number: int, *corners: float) -> Record:
            handles = make_pair(number).handles
            trajectory = [(handles + np.array([way, 0])).tolist() for way in (0.0, *corners)]
            return Record(f"{number:03d}", method, "", {}, {"trajectory": trajectory})

        records = [record("track", 1, 3, 5), record("true motion", 1, 8), record("track", 2, 1)]
        records.append(Record("001", "no edit", "", {}, {}))
        shown = [make_pair(1), make_pair(2)]
        figure = paths_figure(shown, records, ["no edit", "track", "true motion"])
        first, second = figure.axes
        paths = [line for line in first.lines if line.get_linestyle() == "-"]
        assert [line.get_color() == "black" for line in paths] == [True, True, False, False]
        assert paths[2].get_xdata().tolist() == [20, 23, 25]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true motion", "track"]
        assert len([line for line in second.lines if line.get_linestyle() == "-"]) == 2

    def test_a_sheet_has_a_line_for_each_pair(self):
        sheet = edits_sheet(
            [make_pair(1), make_pair(2)], ["m"], lambda method, name: make_pair(int(name)).source, side=64
        )
        assert sheet.size == (192, 128)

    def test_a_picture_on_a_sheet_keeps_its_proportions(self):
        wide = replace(make_pair(1), source=np.zeros((32, SIDE, 3), dtype=np.uint8), mask=np.ones((32, SIDE), bool))
        wide = replace(wide, target=wide.source, handles=wide.handles[:1], targets=wide.targets[:1])
        sheet = np.array(edits_sheet([wide], ["m"], lambda *_: wide.source, side=2 * SIDE))
        edit = sheet[:, 2 * SIDE : 4 * SIDE]
        assert (edit[32:-32] == 0).all(), "twice as wide as high, in the middle of its cell"
        assert (edit[:32] == 255).all()
        assert (edit[-32:] == 255).all()
        drawn = np.argwhere(sheet[:, : 2 * SIDE][32:-32].any(axis=-1))
        asked = 2 * (np.concatenate([wide.handles, wide.targets]) + 0.5) - 0.5
        assert drawn.mean(axis=0)[::-1] == pytest.approx(asked.mean(axis=0), abs=2)


def test_set_distances_that_fail_say_so_in_their_place(monkeypatch):
    """After hours of work the report is still written."""

    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(set_metrics, "InceptionDistances", lambda device: out_of_memory)
    run = SimpleNamespace(picture=lambda method, name: make_pair(int(name)).source)
    said = evaluate_command._set_table([make_pair(1), make_pair(2)], ["track"], run, "cpu")
    assert said == "FID, KID: not measured: out of memory\n"


@pytest.mark.embedded
def test_the_command_compares_two_methods(tmp_path, capsys):
    for number in (1, 2):
        make_pair(number).save(tmp_path / "pairs")
    quick = ["--max-iterations", "1", "--supervision-steps", "1", "--steps", "2", "--identity-lora-steps", "0"]
    command = ["evaluate", str(tmp_path / "pairs"), "--out", str(tmp_path / "run"), "--clip", str(tmp_path), "--quiet"]
    assert main([*command, "--methods", "track", "straight", "--settle-iterations", "0", *quick]) == 0
    table = capsys.readouterr().out
    assert "| track |" in table
    assert "track: as straight, since `carry` is 'once'" in table
    written = {path.name for path in (tmp_path / "run").iterdir()}
    drawn = {"evaluation.png", "distances.png", "paths.png"}
    assert written == {"evaluation.md", "figures.000.jsonl", "records.000.jsonl", "pictures", *drawn}
    lines = [json.loads(line) for line in (tmp_path / "run" / "records.000.jsonl").read_text().splitlines()]
    expected = [(name, method) for name in ("001", "002") for method in ("track", "straight")]
    assert [(line["pair"], line["method"]) for line in lines] == expected


@pytest.mark.parametrize("package", ["matplotlib", "omegaconf"])
def test_a_package_that_is_missing_is_named_before_any_work(package, tmp_path, monkeypatch, capsys):
    for name in [each for each in sys.modules if each.split(".")[0] == package or each.endswith(("plots", "rows"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "rows.yaml").write_text("half: {inversion_strength: 0.5}")
    command = ["evaluate", str(tmp_path), "--rows", str(tmp_path / "rows.yaml"), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "pip install 'dynadrag[evaluation]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.embedded
def test_the_command_takes_rows_and_says_what_they_are(tmp_path, capsys):
    make_pair(1).save(tmp_path / "pairs")
    rows = {"carried": {"motion": "straight", "carry": "once"}, "general": {"motion_predictor": "embedded"}}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    quick = ["--max-iterations", "1", "--supervision-steps", "1", "--steps", "2", "--identity-lora-steps", "0"]
    command = ["evaluate", str(tmp_path / "pairs"), "--rows", str(tmp_path / "rows.json"), "--methods", "no edit"]
    command += ["--out", str(tmp_path / "run"), "--clip", str(tmp_path), "--quiet", "--settle-iterations", "0"]
    assert main([*command, *quick, "--baseline", "no edit"]) == 0
    table = capsys.readouterr().out
    assert "Difference to no edit" in table
    assert 'carried: {"motion": "straight", "carry": "once"}.' in table
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:4] == [
        "no edit",
        "carried",
        "general",
    ]
    assert main([*command, *quick, "--baseline", "nothing"]) == 2
    assert "`--baseline` must be one of 'no edit', 'carried', 'general', got 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("module", [code_version, method_names, methods, metrics, records, report])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
