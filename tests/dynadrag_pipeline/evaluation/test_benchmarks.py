"""Benchmarks without true outcomes: their layouts, and the protocols of their mean distance."""

from __future__ import annotations

import doctest
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from dynadrag_pipeline.cli import main
from dynadrag_pipeline.evaluation import mean_distance as room
from dynadrag_pipeline.evaluation.dragbench import load_benchmark, write_instructions
from dynadrag_pipeline.evaluation.judge import Judge, distance_metrics
from dynadrag_pipeline.evaluation.mean_distance import mean_distance
from dynadrag_pipeline.evaluation.metrics import Metrics
from dynadrag_pipeline.evaluation.pairs import holds_pairs, load_pairs
from support.evaluation_pairs import make_pair

SIZE = (40, 60)


def write(place: Path, name: str = "drag_instruction.json") -> None:
    place.mkdir(parents=True)
    Image.new("RGB", SIZE[::-1], (9, 8, 7)).save(place / "original_image.png")
    Image.new("L", SIZE[::-1], 255).save(place / "mask.png")
    content = {"prompt": "a cat", "points": [[1, 2], [11, 2], [3, 4], [3, 9]]}
    if name.endswith(".pkl"):
        (place / name).write_bytes(pickle.dumps(content))
    else:
        (place / name).write_text(json.dumps(content))


class TestReading:
    def test_categories_and_plain_folders_are_read_alike(self, tmp_path):
        write(tmp_path / "animals" / "one")
        write(tmp_path / "two", "meta_data.json")
        pictures = list(load_benchmark(tmp_path))
        assert [picture.name for picture in pictures] == ["animals/one", "two"]
        for picture in pictures:
            assert picture.source.shape == (*SIZE, 3)
            assert picture.handles.tolist() == [[1, 2], [3, 4]]
            assert picture.targets.tolist() == [[11, 2], [3, 9]]
            assert picture.mask.all()
            assert picture.prompt == "a cat"

    def test_a_picture_with_arrows_drawn_on_is_no_source(self, tmp_path):
        """DragBench shows each drag in one, beside the picture itself."""
        for name in ("one", "two"):
            write(tmp_path / name)
            Image.new("RGB", SIZE[::-1]).save(tmp_path / name / "user_drag.png")
        (tmp_path / "two" / "original_image.png").unlink()
        (picture,) = load_benchmark(tmp_path)
        assert picture.source[0, 0].tolist() == [9, 8, 7]

    def test_without_a_mask_everything_may_change(self, tmp_path):
        write(tmp_path / "one")
        (tmp_path / "one" / "mask.png").unlink()
        assert next(load_benchmark(tmp_path)).mask.all()

    def test_drag100_is_read(self, tmp_path):
        write(tmp_path / "cat_2", "points.json")
        (tmp_path / "cat_2" / "original_image.png").unlink()
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "cat_2" / "original.jpg")
        picture = next(load_benchmark(tmp_path))
        assert (picture.name, picture.target, picture.handles.tolist()) == ("cat_2", None, [[1, 2], [3, 4]])

    def test_the_first_ones_alone_may_be_wanted_and_pairs_are_told_apart(self, tmp_path):
        for name in ("a", "b"):
            write(tmp_path / name)
        assert [picture.name for picture in load_benchmark(tmp_path, 1)] == ["a"]
        assert not holds_pairs(tmp_path)
        make_pair(1).save(tmp_path / "pairs")
        assert holds_pairs(tmp_path / "pairs")

    @pytest.mark.parametrize("given", ["pairs", "pairs/videos/001", "."])
    def test_true_outcomes_are_never_dropped_but_their_sets_are_named(self, tmp_path, given, capsys):
        for kind in ("portraits", "videos"):
            make_pair(1).save(tmp_path / "pairs" / kind)
        assert main(["evaluate", str(tmp_path / given), "--methods", "no edit", "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert "must be one set of pairs" in said
        assert str(tmp_path / "pairs" / "videos") in said
        assert (str(tmp_path / "pairs" / "portraits") in said) == (given != "pairs/videos/001")

    def test_a_pair_of_ours_needs_no_mask_and_no_true_motion(self, tmp_path):
        """The layout that other sets with true outcomes can be brought into."""
        make_pair(1).save(tmp_path)
        place = tmp_path / "001"
        Image.open(place / "target.png").save(place / "target.jpg")
        for name in ("mask.png", "flow.npz", "target.png"):
            (place / name).unlink()
        [pair] = load_pairs(tmp_path)
        assert pair.mask.all()
        assert not pair.has_flow
        assert pair.outcome.shape == pair.source.shape

    def test_a_pickle_is_never_opened(self, tmp_path, monkeypatch):
        write(tmp_path / "one", "meta_data.pkl")
        monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("it was opened"))
        monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("it was opened"))
        with pytest.raises(
            ValueError, match=r"meta_data.pkl` is a pickle, .* is not opened: `dynadrag convert benchmark"
        ):
            list(load_benchmark(tmp_path))

    def test_a_pickle_of_plain_data_is_written_out_without_being_run(self, tmp_path, monkeypatch, capsys):
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[:10] = 1
        for name in ("animals/one", "two"):
            write(tmp_path / name, "meta_data.pkl")
            (tmp_path / name / "mask.png").unlink()
            said = {"prompt": "a dog", "points": [(1, 2), [11, np.int64(2)]], "mask": mask}
            (tmp_path / name / "meta_data.pkl").write_bytes(pickle.dumps(said))
        for function in ("load", "loads"):
            monkeypatch.setattr(pickle, function, lambda *_: pytest.fail("it was opened"))
        assert main(["convert", "benchmark", str(tmp_path)]) == 0
        assert "wrote 2 instructions" in capsys.readouterr().out
        first, second = load_benchmark(tmp_path)
        assert (first.name, first.prompt, second.prompt) == ("animals/one", "a dog", "a dog")
        assert first.targets.tolist() == [[11, 2]]
        assert (first.mask == (mask > 0)).all()
        assert write_instructions(tmp_path) == 0, "what is there stays"

    def test_a_pickle_that_runs_something_is_refused_by_name(self, tmp_path, capsys):
        write(tmp_path / "one", "meta_data.pkl")
        (tmp_path / "one" / "meta_data.pkl").write_bytes(pickle.dumps({"points": print}))
        assert main(["convert", "benchmark", str(tmp_path)]) == 2
        assert "nothing of it was run" in capsys.readouterr().err
        assert not (tmp_path / "one" / "drag_instruction.json").exists()

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            (["x" * 1000] * 1000, "must hold a mapping with `points`, got a list"),
            ({"points": [], "prompt": ["x" * 1000] * 1000}, "must have a text for its `prompt`, got a list"),
            ({"points": [["x" * 1000] * 2] * 1000}, r"must have points \[x, y\], got "),
            ({"points": [], "mask": np.zeros((2, 3, 4))}, r"must have a mask \(height, width\), got \(2, 3, 4\)"),
        ],
    )
    def test_what_a_pickle_says_is_refused_in_few_words(self, tmp_path, said, message):
        """What is shared would be many times the file, if it were written out."""
        write(tmp_path / "one", "meta_data.pkl")
        (tmp_path / "one" / "mask.png").unlink()
        (tmp_path / "one" / "meta_data.pkl").write_bytes(pickle.dumps(said))
        with pytest.raises(ValueError, match=message) as refused:
            write_instructions(tmp_path)
        assert len(str(refused.value)) < 1000

    def test_a_folder_without_pictures_or_instructions_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"must hold pairs, or pictures named original_image\.png"):
            list(load_benchmark(tmp_path))
        write(tmp_path / "one")
        (tmp_path / "one" / "drag_instruction.json").unlink()
        with pytest.raises(ValueError, match=r"must hold one of drag_instruction\.json"):
            list(load_benchmark(tmp_path))


class TestMeanDistance:
    FEATURES = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(3))
    HANDLE, TARGET = torch.tensor([[20.0, 10.0]]), torch.tensor([[30.0, 10.0]])

    def distance(self, protocol: str, after: torch.Tensor, **options) -> float:
        return float(mean_distance(protocol, self.FEATURES, after, self.HANDLE, self.TARGET, SIZE, **options))

    def test_content_that_came_half_of_the_way_has_the_other_half_left(self):
        after = self.FEATURES.roll(5, 3)
        assert self.distance("dragdiffusion", after) == 5
        assert self.distance("masked", after, mask=torch.ones(SIZE, dtype=torch.bool)) == 5
        assert self.distance("regiondrag", after) == pytest.approx(100 * 5 / 60)

    def test_heights_and_widths_count_in_their_own_measure(self):
        after = self.FEATURES.roll((4, 10), (2, 3))
        assert self.distance("regiondrag", after) == pytest.approx(100 * 4 / 40)

    def test_they_differ_in_where_they_look(self):
        """Content 20 px beyond its target: the discs reach 7 px, the mask ends at column 40."""
        after, mask = self.FEATURES.roll(30, 3), torch.zeros(SIZE, dtype=torch.bool)
        mask[:, :40] = True
        assert self.distance("dragdiffusion", after) == 20
        assert self.distance("regiondrag", after) < 100 * np.hypot((17.1 + 0.5) / 60, 7.1 / 40)
        assert self.distance("masked", after, mask=mask) != 20

    def test_what_it_needs_is_named(self):
        with pytest.raises(ValueError, match="`mask` must be given"):
            self.distance("masked", self.FEATURES)
        with pytest.raises(ValueError, match="`protocol` must be"):
            self.distance("MD", self.FEATURES)


class TestJudge:
    def test_an_unedited_picture_has_all_of_the_way_left(self, pipe):
        """Each place is most like itself, by whatever features: of the whole picture, and of the mask."""
        metrics = Metrics(distance_metrics("own", pipe))
        assert not metrics.missing
        figures = metrics(make_pair(1).source, make_pair(1))
        assert figures["md_dragdiffusion own"] == pytest.approx(8, abs=0.01)
        assert figures["md_masked own"] == pytest.approx(8, abs=0.01)
        assert figures["md_regiondrag own"] <= 100 * 2 * 8 / 64
        assert "of this run alone" in metrics.protocol("md_masked own")

    def test_a_stable_diffusion_judges_by_the_published_numbers(self, pipe, tmp_path):
        parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        left_out = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts, **left_out).save_pretrained(tmp_path)
        metrics = Metrics(distance_metrics(str(tmp_path), pipe))
        assert not metrics.missing
        assert "t = 261, up-block 1, 8 noises" in metrics.protocol(f"md_dragdiffusion {tmp_path}")

    def test_a_judge_that_can_not_be_had_says_so(self, pipe, tmp_path):
        metrics = Metrics(distance_metrics(str(tmp_path / "nowhere"), pipe))
        assert len(metrics.missing) == 3
        assert "a Stable Diffusion is needed" in metrics.missing[f"md_masked {tmp_path / 'nowhere'}"]

    def test_the_source_is_looked_at_once_for_all_edits_of_it(self, pipe, monkeypatch):
        seen = []
        judge = Judge(pipe, "", 0, -1, 1)
        look = judge.features
        monkeypatch.setattr(judge, "features", lambda *args: seen.append(args) or look(*args))
        for number in (1, 1, 2):
            judge.source_features(make_pair(number))
        assert len(seen) == 2


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(room).failed == 0
