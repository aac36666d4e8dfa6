"""Diffusion features, and the search for points by them, on networks and maps whose answers are known."""

from __future__ import annotations

import doctest
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from dynadrag_pipeline import dift
from dynadrag_pipeline.dift import dift_features, find_points

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SIZE = (32, 48)


class Repeating(nn.Module):
    """A UNet whose first up-block says what it was given, the second nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList([nn.Identity(), nn.Flatten()])
        self.weight = nn.Parameter(torch.zeros(1))
        self.told: list[dict] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **conditions) -> SimpleNamespace:
        self.told.append(conditions)
        return SimpleNamespace(sample=self.up_blocks[0](sample))


class TestFeatures:
    def test_they_are_the_mean_over_noises_that_all_pictures_share(self):
        """sqrt(a) z + sqrt(1 - a) n, of which the noises are drawn one after the other from the seed."""
        scheduler = DDIMScheduler()
        features = dift_features(Repeating(), scheduler, LATENTS, 261, 0, noises=3, seed=5)
        generator = torch.Generator().manual_seed(5)
        noise = torch.stack([torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3)]).mean(dim=0)
        alpha = scheduler.alphas_cumprod[261]
        torch.testing.assert_close(features, alpha.sqrt() * LATENTS + (1 - alpha).sqrt() * noise)

    def test_chance_of_the_caller_is_left_alone(self):
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        dift_features(Repeating(), DDIMScheduler(), LATENTS, 100, 0)
        assert torch.equal(torch.rand(2), expected)

    def test_conditions_of_one_picture_hold_for_all(self):
        unet, prompt = Repeating(), torch.rand(1, 5, 3)
        conditions = {"encoder_hidden_states": prompt, "added_cond_kwargs": {"time_ids": torch.rand(1, 6)}, "scale": 2}
        dift_features(unet, DDIMScheduler(), LATENTS, 100, 0, noises=1, conditions=conditions)
        assert torch.equal(unet.told[0]["encoder_hidden_states"], prompt.expand(2, 5, 3))
        assert unet.told[0]["added_cond_kwargs"]["time_ids"].shape == (2, 6)
        assert unet.told[0]["scale"] == 2

    def test_unets_with_and_without_a_prompt(self, unet):
        features = dift_features(
            unet, DDIMScheduler(), LATENTS, 0, -1, 1, conditions={"encoder_hidden_states": torch.rand(1, 7, 16)}
        )
        assert features.shape[0] == 2
        assert not features.requires_grad
        plain = UNet2DModel(
            8,
            4,
            4,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
        assert dift_features(plain, DDIMScheduler(), LATENTS, 0, 0, 1).shape == (2, 64, 8, 8)


def codes(*size: int) -> torch.Tensor:
    """A feature map on which no two places are alike."""
    return torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(3))


class TestSearch:
    POINTS = torch.tensor([[20.0, 12.0], [7.0, 25.0]])

    def test_content_is_found_where_it_went(self):
        found = find_points(codes(*SIZE), codes(*SIZE).roll((-3, 9), (2, 3)), self.POINTS, SIZE)
        assert found.places.tolist() == [[29, 9], [16, 22]]
        torch.testing.assert_close(found.similarities, torch.ones(2))

    def test_maps_are_sampled_as_if_resized_to_the_picture(self):
        """On a map of half the size, (20.5, 12.5) is the middle of cell (10, 6), which went to cell (12, 6)."""
        small = codes(16, 24)
        found = find_points(small, small.roll(2, 3), torch.tensor([[20.5, 12.5]]), SIZE)
        assert found.places.tolist() == [[24.5, 12.5]]

    def test_likeness_is_the_cosine_whatever_the_length_of_vectors(self):
        source = codes(*SIZE)
        found = find_points(source, 7 * source + 0, self.POINTS, SIZE)
        assert torch.equal(found.places, self.POINTS)
        opposite = find_points(source, -source, self.POINTS, SIZE, windows=_only(self.POINTS))
        torch.testing.assert_close(opposite.similarities, -torch.ones(2))

    def test_what_is_outside_a_window_is_not_looked_at(self):
        windows = torch.zeros(2, *SIZE, dtype=torch.bool)
        windows[0, :, 30:], windows[1, 22, 16] = True, True
        found = find_points(codes(*SIZE), codes(*SIZE).roll((-3, 9), (2, 3)), self.POINTS, SIZE, windows)
        assert found.places[0, 0] >= 30
        assert found.places[1].tolist() == [16, 22]

    def test_an_empty_window_finds_nothing(self):
        found = find_points(codes(*SIZE), codes(*SIZE), self.POINTS, SIZE, torch.zeros(2, *SIZE, dtype=torch.bool))
        assert torch.equal(found.places, self.POINTS)
        assert found.similarities.tolist() == [-torch.inf] * 2

    def test_a_patch_tells_apart_what_a_point_can_not(self):
        """The point's own features are nowhere but in a place whose surroundings are others."""
        source = codes(*SIZE)
        after = source.roll(4, 3)
        after[..., 12, 24] += 0.3
        after[..., 20, 40] = source[..., 12, 20]
        point = self.POINTS[:1]
        assert find_points(source, after, point, SIZE).places.tolist() == [[40, 20]]
        assert find_points(source, after, point, SIZE, patch_radius=1).places.tolist() == [[24, 12]]

    def test_patches_reach_as_far_as_their_steps_and_hang_over_the_border(self):
        source = codes(*SIZE)
        corner = torch.tensor([[0.0, 0.0], [47.0, 31.0]])
        found = find_points(source, source, corner, SIZE, patch_radius=2, patch_step=3, spacing=0.5)
        assert torch.equal(found.places, corner)
        torch.testing.assert_close(found.similarities, torch.ones(2))

    def test_in_strips_the_answer_is_the_same(self, monkeypatch):
        source, after = codes(*SIZE), codes(*SIZE).roll((-3, 9), (2, 3)) + 0.3 * codes(*SIZE)
        whole = find_points(source, after, self.POINTS, SIZE, patch_radius=1)
        monkeypatch.setattr(dift, "LARGEST_STRIP", 16 * 50 * 5)
        strips = find_points(source, after, self.POINTS, SIZE, patch_radius=1)
        assert torch.equal(whole.places, strips.places)
        torch.testing.assert_close(whole.similarities, strips.similarities)


def _only(points: torch.Tensor) -> torch.Tensor:
    """Windows of a single pixel each."""
    windows = torch.zeros(len(points), *SIZE, dtype=torch.bool)
    for window, (x, y) in zip(windows, points.long().tolist(), strict=True):
        window[y, x] = True
    return windows


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(dift).failed == 0
