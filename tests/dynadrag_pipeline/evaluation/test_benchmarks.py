"""Benchmarks without true outcomes: their layouts, and the protocols of their mean distance."""

from __future__ import annotations

import doctest
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline.evaluation import mean_distance as room
from dynadrag_pipeline.evaluation.dragbench import load_benchmark
from dynadrag_pipeline.evaluation.mean_distance import mean_distance

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

    def test_a_mask_need_not_be_there(self, tmp_path):
        write(tmp_path / "one")
        (tmp_path / "one" / "mask.png").unlink()
        assert next(load_benchmark(tmp_path)).mask is None

    def test_a_pickle_is_never_opened(self, tmp_path, monkeypatch):
        write(tmp_path / "one", "meta_data.pkl")
        monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("it was opened"))
        monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("it was opened"))
        with pytest.raises(ValueError, match=r"meta_data.pkl` is a pickle, .* is not opened"):
            list(load_benchmark(tmp_path))

    def test_a_folder_without_pictures_or_instructions_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"must hold pictures named original_image\.png"):
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


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(room).failed == 0
