"""The scripts that made the embedded checkpoint: what they draw, and that a run may be interrupted."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from assemble import leave_code_out
from fit import fit
from layout import GRID, LayoutDistribution
from PIL import Image
from portraits import draw_batch, enlarge_some, is_grey, load_held_out, load_portraits
from sample import Sampler, draw_faces
from skimage import data

from dynadrag_pipeline import EMBEDDED_CHECKPOINT, DynaDragPipeline


def write_faces(archive: Path, colours: list[tuple[int, int, int]]) -> Path:
    """Black and white pictures, but for the top left: grey as a whole only if that is grey."""
    with zipfile.ZipFile(archive, "w") as faces:
        for number, colour in enumerate(colours):
            encoded = io.BytesIO()
            picture = Image.new("RGB", (16, 16), colour)
            picture.paste("black", (8, 0, 16, 8))
            picture.paste("white", (0, 8, 16, 16))
            picture.save(encoded, "PNG")
            faces.writestr(f"face_{number}.png", encoded.getvalue())
    return archive


def test_each_source_gets_its_share_of_the_draws_and_grey_pictures_a_fifth(tmp_path):
    colourful = write_faces(tmp_path / "colourful.zip", [(200, 0, 0)] * 3)
    mixed = write_faces(tmp_path / "mixed.zip", [(0, 0, 200), (100, 100, 100)])
    pictures, weights = load_portraits([colourful, mixed], size=16, shares=[30, 10])
    assert pictures.shape == (5, 3, 16, 16)
    torch.testing.assert_close(weights, torch.tensor([10, 10, 10, 10 / 1.2, 2 / 1.2]))


@pytest.mark.parametrize("tint", [(255, 255, 255), (255, 235, 200), (150, 180, 255)], ids=["grey", "sepia", "blue"])
def test_prints_in_shades_of_one_tint_are_grey_and_photographs_in_colour_are_not(tint):
    in_colour = data.astronaut()
    shades = in_colour.mean(axis=2, keepdims=True) / 255
    assert is_grey((shades * np.array(tint)).astype(np.uint8))
    assert not is_grey(in_colour)


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

    def test_the_weights_of_the_lowest_held_out_loss_are_returned_and_the_run_ends_soon_after(self, tmp_path):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)

        def train() -> float:
            ema = fit(
                model,
                lambda generator: (model.weight - 2).square().sum(),  # passes by 1, which is held to be right
                tmp_path,
                steps=1000,
                learning_rate=0.1,
                ema_decay=0.0,
                seed=0,
                log_every=5,
                held_out_loss=lambda: (model.weight - 1).square().sum(),
                patience=4,
            )
            ema.copy_to(model.parameters())
            return model.weight.item()

        log = tmp_path / "log.jsonl"
        best = train()
        held_out = [json.loads(line)["held_out"] for line in log.read_text().splitlines()]
        assert held_out.index(min(held_out)) == len(held_out) - 5
        assert (best - 1) ** 2 == pytest.approx(min(held_out), abs=1e-6)
        assert train() == best
        assert len(log.read_text().splitlines()) == len(held_out)


class TestLayoutDistribution:
    @staticmethod
    def example() -> LayoutDistribution:
        """Of two channels; cells of the first have a mean of 3 and vary together, those of the second on their own."""
        generator = torch.Generator().manual_seed(0)
        together = 3 + torch.randn(4000, 1, 1, 1, generator=generator).expand(-1, -1, GRID, GRID)
        alone = 0.5 * torch.randn(4000, 1, GRID, GRID, generator=generator)
        cells = torch.cat([together, alone], dim=1)
        return LayoutDistribution.fit(cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))

    def test_layouts_are_drawn_with_the_mean_and_covariance_of_those_it_was_fitted_to(self):
        distribution, generator = self.example(), torch.Generator().manual_seed(1)
        layouts = torch.stack([distribution.draw(GRID, generator).flatten() for _ in range(4000)])
        cells = GRID**2
        expected_mean = torch.tensor([3.0] * cells + [0.0] * cells)
        expected = torch.block_diag(torch.ones(cells, cells), 0.25 * torch.eye(cells))
        torch.testing.assert_close(layouts.mean(dim=0), expected_mean, atol=0.1, rtol=0)
        torch.testing.assert_close(torch.cov(layouts.T), expected, atol=0.1, rtol=0)

    def test_mirror_images_are_as_likely(self):
        ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
        noise = torch.randn(100, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        mean = LayoutDistribution.fit(ramp + noise).mean.view(GRID, GRID)
        torch.testing.assert_close(mean, mean.flip(-1))

    def test_it_is_the_same_from_its_file_but_for_half_precision(self, tmp_path):
        distribution = self.example()
        distribution.save(tmp_path / "layout.safetensors")
        loaded = LayoutDistribution.load(tmp_path / "layout.safetensors")
        torch.testing.assert_close(loaded.mean, distribution.mean, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(loaded.root, distribution.root, atol=1e-3, rtol=1e-3)


@pytest.mark.embedded
class TestSampler:
    @pytest.fixture(scope="class")
    def sampler(self) -> Sampler:
        return Sampler(EMBEDDED_CHECKPOINT, steps=2, guidance=2.0)

    def test_a_face_depends_on_its_seed_and_not_on_the_batch_that_it_is_drawn_in(self, sampler):
        faces = [np.asarray(face, dtype=float) for face in draw_faces(sampler, count=3, seed=5)]
        alone = np.asarray(draw_faces(sampler, count=1, seed=7)[0], dtype=float)
        assert np.abs(alone - faces[2]).max() <= 1
        assert np.abs(faces[1] - faces[2]).mean() > 10

    def test_guidance_goes_on_from_what_unperturbed_attention_predicts(self, sampler, monkeypatch):
        plain = Sampler(EMBEDDED_CHECKPOINT, steps=2, guidance=0.0)
        latents = plain.draw_noise(torch.Generator().manual_seed(0))[None]
        with torch.no_grad():
            unguided = plain.predict_noise(latents, torch.tensor(500))
            assert (sampler.predict_noise(latents, torch.tensor(500)) - unguided).abs().max() > 0.01
            monkeypatch.setattr(sampler, "guidance", 1e-6)
            torch.testing.assert_close(sampler.predict_noise(latents, torch.tensor(500)), unguided, atol=1e-4, rtol=0)


def test_what_is_put_together_has_no_code_and_names_none_as_the_shipped_checkpoint(tmp_path):
    pipeline = DynaDragPipeline.from_pretrained(EMBEDDED_CHECKPOINT)
    pipeline.motion_predictor.register_to_config(_name_or_path="")
    pipeline.save_pretrained(tmp_path)
    leave_code_out(tmp_path)
    assert not list(tmp_path.rglob("*.py"))
    for file in ("model_index.json", "motion_predictor/config.json"):
        written, shipped = (json.loads((folder / file).read_text()) for folder in (tmp_path, EMBEDDED_CHECKPOINT))
        assert written | {"_diffusers_version": None} == shipped | {"_diffusers_version": None}
    assert DynaDragPipeline.from_pretrained(tmp_path).motion_predictor is not None
