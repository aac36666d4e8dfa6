"""LPIPS and the Frechet distance: weights that are read safely, and closed forms."""

import pickle

import numpy as np
import pytest
import torch
from perceptual import PerceptualNetwork, frechet_distance, load_arrays

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
    return PerceptualNetwork("alexnet", folder)


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
    with pytest.raises(ValueError, match="nothing but numpy arrays"):
        load_arrays(file)
    assert capsys.readouterr().out == ""


def test_the_frechet_distance_of_shifted_and_widened_gaussians_is_the_closed_form():
    """With the same directions: the squared shift, and the squared differences of the standard deviations."""
    unit = np.random.default_rng(0).normal(size=(500, 3))
    unit = np.linalg.qr(unit - unit.mean(axis=0))[0] * np.sqrt(499)  # exactly white
    deviations, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.0, -1.0])
    reference, moved = unit * deviations, unit * (2 * deviations) + shift
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moved, reference) == pytest.approx(np.sum(shift**2) + np.sum(deviations**2), rel=1e-6)
