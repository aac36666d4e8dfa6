"""What a set of edits is measured by, against the set of true outcomes: FID and KID, by torchmetrics.

The network is torch-fidelity's InceptionV3 (`pip install 'dynadrag[perceptual]'`, which brings torchvision along),
whose weights it fetches. Any network from pictures `(1, 3, height, width)` uint8 to features `(1, dimensions)` takes
its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .perceptual import no_pickles_run

ENOUGH = 2000
"""Pictures below which FID says more of their number than of what they show."""

MOST_IN_A_SUBSET = 1000  # of KID, as torch-fidelity takes
SUBSETS = 100


class InceptionDistances:
    """FID and KID of sets of pictures.

    Args:
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.
        network (`torch.nn.Module`, *optional*): in the place of InceptionV3.

    Attributes:
        protocol (`str`): what exactly they are.

    Raises:
        ImportError, OSError: if packages or weights can't be had.
    """

    def __init__(self, device: str = "cpu", network: torch.nn.Module | None = None) -> None:
        self.device = device
        if network is None:
            network = _inception()
            self.protocol = "torchmetrics, on the 2048 features of torch-fidelity's InceptionV3"
        else:
            self.protocol = f"torchmetrics, on the features of a {type(network).__name__}"
        self.network = network

    def __call__(self, edited: Sequence[np.ndarray], target: Sequence[np.ndarray]) -> dict[str, float]:
        """Both of two sets of pictures.

        Args:
            edited, target (`Sequence` of `np.ndarray` of shape `(height, width, 3)`): uint8, of any sizes.

        Returns:
            `dict[str, float]`: `fid` and `kid`.
        """
        return {
            "fid": frechet_inception_distance(edited, target, self.network, self.device),
            "kid": kernel_inception_distance(edited, target, self.network, self.device),
        }


def frechet_inception_distance(
    edited: Iterable[np.ndarray], target: Iterable[np.ndarray], network: torch.nn.Module, device: str = "cpu"
) -> float:
    """FID (Heusel et al., 2017): the Frechet distance of the Gaussians that fit the features of two sets.

    Args:
        edited, target (`Iterable` of `np.ndarray` of shape `(height, width, 3)`): uint8, two of each at least.
        network (`torch.nn.Module`): pictures `(1, 3, height, width)` uint8 to features `(1, dimensions)`.
        device (`str`, *optional*, defaults to `"cpu"`): where the network computes.

    Returns:
        `float`: 0 for the same pictures.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_OnDevice(network, device))
    return float(_of_both(metric, edited, target).compute())


def kernel_inception_distance(
    edited: Sequence[np.ndarray], target: Sequence[np.ndarray], network: torch.nn.Module, device: str = "cpu"
) -> float:
    """KID (Binkowski et al., 2018), times 1000: the mean over 100 subsets of at most 1000 pictures, always the same.

    Args:
        edited, target, network, device: as of [`frechet_inception_distance`].

    Returns:
        `float`: about 0 for the same pictures; as it is unbiased, it may be less.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(MOST_IN_A_SUBSET, len(edited), len(target))
    metric = KernelInceptionDistance(feature=_OnDevice(network, device), subsets=SUBSETS, subset_size=size)
    _of_both(metric, edited, target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return 1000 * float(metric.compute()[0])


class _OnDevice(torch.nn.Module):
    """A network on a device, for a metric on the CPU: FID adds up in float64, which not every device has."""

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.device = network.to(device).eval(), device
        with torch.no_grad():
            self.num_features = self(torch.zeros(1, 3, 299, 299, dtype=torch.uint8)).shape[-1]

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network(pictures.to(self.device)).cpu()


@torch.no_grad()
def _of_both(metric: Any, edited: Iterable[np.ndarray], target: Iterable[np.ndarray]) -> Any:
    for pictures, is_real in ((edited, False), (target, True)):
        for picture in pictures:
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
            metric.update(pixels, real=is_real)
    return metric


def _inception() -> torch.nn.Module:
    """As torch-fidelity has it, resizing included."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    with no_pickles_run():
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], None, antialias=False)
