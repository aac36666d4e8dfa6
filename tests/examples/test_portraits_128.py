"""The scripts that made the embedded checkpoint: what they draw, and that a run may be interrupted."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "portraits_128"))

from fit import fit
from portraits import draw_batch, enlarge_some, load_held_out, load_portraits


def write_faces(archive: Path, colours: list[tuple[int, int, int]]) -> Path:
    with zipfile.ZipFile(archive, "w") as faces:
        for number, colour in enumerate(colours):
            encoded = io.BytesIO()
            Image.new("RGB", (16, 16), colour).save(encoded, "PNG")
            faces.writestr(f"face_{number}.png", encoded.getvalue())
    return archive


def test_each_source_gets_its_share_of_the_draws_and_grey_pictures_a_fifth(tmp_path):
    colourful = write_faces(tmp_path / "colourful.zip", [(200, 0, 0)] * 3)
    mixed = write_faces(tmp_path / "mixed.zip", [(0, 0, 200), (100, 100, 100)])
    pictures, weights = load_portraits([colourful, mixed], size=16, shares=[30, 10])
    assert pictures.shape == (5, 3, 16, 16)
    torch.testing.assert_close(weights, torch.tensor([10, 10, 10, 10 / 1.2, 2 / 1.2]))


def test_a_small_source_is_not_drowned_by_a_large_one(tmp_path):
    small = write_faces(tmp_path / "small.zip", [(200, 0, 0)])
    large = write_faces(tmp_path / "large.zip", [(0, 0, 200)] * 4)
    _, weights = load_portraits([small, large], size=16)
    assert weights[0] == weights[1:].sum()


def test_a_source_without_pictures_is_refused_by_name(tmp_path):
    empty = write_faces(tmp_path / "empty.zip", [])
    with pytest.raises(ValueError, match=r"empty\.zip` holds no pictures"):
        load_portraits([write_faces(tmp_path / "faces.zip", [(200, 0, 0)]), empty], size=16)


def test_held_out_faces_are_not_among_those_to_train_on(tmp_path):
    faces = write_faces(tmp_path / "faces.zip", [(number, 0, 200) for number in range(70)])
    trained_on, _ = load_portraits([faces], size=16, held_out_from=faces)
    held_out = load_held_out(faces, size=16)
    reds = [set(pictures[:, 0, 0, 0].tolist()) for pictures in (trained_on, held_out)]
    assert len(held_out) == 60
    assert len(trained_on) == 10
    assert reds[0] | reds[1] == set(range(70))
    assert not reds[0] & reds[1]


def test_half_of_the_pictures_are_enlarged_and_nothing_from_outside_is_seen():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(400, 3, 64, 64)
    enlarged = enlarge_some(ramp, generator)
    span = enlarged[:, 0, 32, -1] - enlarged[:, 0, 32, 0]
    assert 0.4 < (span > 1.999).float().mean() < 0.6
    assert span.min() > 2 / 1.15 - 0.05
    # Whatever is seen of a ramp rises evenly; a border would show as a jump or a plateau.
    steps = enlarged[..., 1:-2] - enlarged[..., 2:-1]
    assert (steps.amax(dim=-1) - steps.amin(dim=-1)).max() < 1e-4


def test_a_batch_is_drawn_by_weight_and_mirrored_half_of_the_time():
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    pictures[1, :, :, :2] = 255
    batch = draw_batch(pictures, torch.tensor([0.0, 1.0]), 200, torch.Generator().manual_seed(0))
    left, right = batch[:, 0, 0, 0], batch[:, 0, 0, -1]
    assert set(left.tolist()) == {-1.0, 1.0}
    assert torch.equal(left, -right)
    assert 0.4 < (left == 1).float().mean() < 0.6


class TestFit:
    @staticmethod
    def run(out: Path, steps: int, interrupt_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        drawn = 0

        def loss_function(generator: torch.Generator) -> torch.Tensor:
            nonlocal drawn
            if drawn == interrupt_at:
                raise KeyboardInterrupt
            drawn += 1
            inputs = torch.randn(8, 3, generator=generator)
            return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

        def held_out_loss() -> torch.Tensor:
            return (model.weight - 1).square().mean()

        ema = fit(model, loss_function, out, steps, 0.05, 0.9, seed=0, log_every=10, held_out_loss=held_out_loss)
        trained = model.weight.detach().clone()
        ema.copy_to(model.parameters())
        return torch.cat([trained, model.weight.detach()])

    def test_the_loss_falls_and_the_log_says_so_with_the_held_out_loss_beside_it(self, tmp_path):
        self.run(tmp_path, 200)
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [record["step"] for record in log] == list(range(10, 201, 10))
        assert log[-1]["loss"] < 0.01 * log[0]["loss"]
        assert log[-1]["held_out"] < 0.1 * log[0]["held_out"]

    def test_an_interrupted_run_goes_on_to_the_same_weights(self, tmp_path):
        whole = self.run(tmp_path / "whole", 30)
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "parts", 30, interrupt_at=17)
        np.testing.assert_array_equal(self.run(tmp_path / "parts", 30), whole)
