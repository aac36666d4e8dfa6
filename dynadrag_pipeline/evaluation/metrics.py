"""What an edit is measured by, beside where its content went: each a number of the edited and of the true picture.

Pictures are `(height, width, 3)` uint8 RGB. A metric whose weights or packages can't be had says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from motion_predictor.common.command_errors import one_line

from .pairs import EvaluationPair
from .perceptual import ImageFidelity, LearnedPerceptualDistance

DEFAULT_CLIP = "openai/clip-vit-large-patch14"


def mean_squared_error(edited: np.ndarray, target: np.ndarray) -> float:
    """Mean squared difference on the scale from 0 to 1.

    Args:
        edited, target (`np.ndarray` of shape `(height, width, 3)`): uint8.

    Returns:
        `float`: 255^2 times as much is the one on the scale from 0 to 255.

    Example:
        >>> black, grey = (np.full((2, 2, 3), value, dtype=np.uint8) for value in (0, 51))
        >>> round(mean_squared_error(black, grey), 4)
        0.04
    """
    return float(np.square((edited.astype(float) - target) / 255).mean())


def noise_ratio_outside(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB against the source where nothing may change; NaN if all may, 100 if nothing did.

    Args:
        edited, source (`np.ndarray` of shape `(height, width, 3)`): uint8.
        mask (`np.ndarray` of shape `(height, width)`): bool, True where the picture may change.

    Returns:
        `float`: in dB.

    Example:
        >>> source, mask = np.zeros((2, 2, 3), dtype=np.uint8), np.array([[True, False], [False, False]])
        >>> edited = source.copy()
        >>> edited[0, 0] = 255
        >>> noise_ratio_outside(edited, source, mask)
        100.0
    """
    if mask.all():
        return float("nan")
    squared = np.square((edited[~mask].astype(float) - source[~mask]) / 255).mean()
    return float(-10 * np.log10(max(squared, 1e-10)))


def structural_similarity(edited: np.ndarray, target: np.ndarray) -> float:
    """SSIM as of Wang et al. (2004): a Gaussian window of sigma 1.5, over RGB, by scikit-image.

    Args:
        edited, target (`np.ndarray` of shape `(height, width, 3)`): uint8.

    Returns:
        `float`: 1 for the same picture.
    """
    from skimage.metrics import structural_similarity as ssim

    return float(
        ssim(
            edited,
            target,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


class ClipSimilarity:
    """Cosine of CLIP's embeddings of the edited and of the true picture, preprocessed as the model says.

    Args:
        name (`str`, *optional*): folder or Hub id of a CLIP model.
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.

    Raises:
        OSError: if there is no such model.
    """

    def __init__(self, name: str = DEFAULT_CLIP, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        self.processor = CLIPImageProcessor.from_pretrained(name)
        self.model = CLIPVisionModelWithProjection.from_pretrained(name).to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, edited: np.ndarray, target: np.ndarray) -> float:
        """The cosine for two pictures `(height, width, 3)` uint8."""
        pictures = [Image.fromarray(picture) for picture in (edited, target)]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
        first, second = self.model(pixel_values=pixels).image_embeds.double()
        return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


class DinoSimilarity:
    """Cosine of the class tokens of a DINO of the edited and of the true picture, preprocessed as the model says.

    Args:
        name (`str`): folder or Hub id of a DINO or DINOv2 model, such as `"facebook/dinov2-base"`.
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.

    Raises:
        OSError: if there is no such model.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name).to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, edited: np.ndarray, target: np.ndarray) -> float:
        """The cosine for two pictures `(height, width, 3)` uint8."""
        pictures = [Image.fromarray(picture) for picture in (edited, target)]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
        first, second = self.model(pixel_values=pixels).last_hidden_state[:, 0].double()
        return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


Measure = Callable[[np.ndarray, EvaluationPair], float]
"""A number of an edited picture `(height, width, 3)` uint8 and its pair."""


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        title (`str`): of the column, with its unit.
        protocol (`str`): what exactly it is; what was loaded may say more by an attribute of this name.
        load (`Callable`): answers with a [`Measure`]; an exception is why it can't be had.
        needs_target (`bool`): whether it compares with a true outcome.
        is_per_point (`bool`): whether its mean goes over all points rather than over pictures.
    """

    title: str
    protocol: str
    load: Callable[[], Any]
    needs_target: bool = True
    is_per_point: bool = False


@dataclass(frozen=True)
class _Compared:
    """A comparison of two pictures as a [`Measure`] of an edit and one picture of its pair."""

    compare: Callable[[np.ndarray, np.ndarray], float]
    with_picture: str
    package: str | None = None

    @property
    def protocol(self) -> str | None:
        if self.package is not None:
            return f"{self.package} {version(self.package)}"
        return getattr(self.compare, "protocol", None)

    def __call__(self, edited: np.ndarray, pair: EvaluationPair) -> float:
        return self.compare(edited, getattr(pair, self.with_picture))


def picture_metrics(clip: str = DEFAULT_CLIP, device: str = "cpu", dino: str | None = None) -> dict[str, Metric]:
    """All metrics of single pictures by name.

    Args:
        clip (`str`, *optional*): folder or Hub id of the CLIP model.
        device (`str`, *optional*, defaults to `"cpu"`): where networks compute.
        dino (`str`, *optional*): folder or Hub id of a DINO model; by default, there is no such metric.
    """

    def to_target(make: Callable[[], Callable[[np.ndarray, np.ndarray], float]]) -> Callable[[], Measure]:
        return lambda: _Compared(make(), "outcome")

    def ssim() -> Measure:
        import skimage.metrics  # noqa: F401 - whether it is there

        return _Compared(structural_similarity, "outcome", "scikit-image")

    metrics = {
        "mse_unit": Metric(
            "MSE x 10^3, [0, 1]",
            "mean squared error to the true outcome, values from 0 to 1, times 1000",
            lambda: lambda edited, pair: 1e3 * mean_squared_error(edited, pair.outcome),
        ),
        "mse_bytes": Metric(
            "MSE x 10^-3, 0..255",
            "the same, values from 0 to 255, over 1000",
            lambda: lambda edited, pair: 255**2 / 1e3 * mean_squared_error(edited, pair.outcome),
        ),
        "lpips_alex": Metric(
            "LPIPS (alex)",
            "to the true outcome",
            to_target(partial(LearnedPerceptualDistance, "alexnet", device)),
        ),
        "lpips_vgg": Metric(
            "LPIPS (vgg)",
            "to the true outcome",
            to_target(partial(LearnedPerceptualDistance, "vgg16", device)),
        ),
        "ssim": Metric("SSIM", "Gaussian window of sigma 1.5, RGB, to the true outcome", ssim),
        f"clip {clip}": Metric(
            "CLIP",
            f"cosine of the image embeddings of `{clip}`, to the true outcome",
            to_target(partial(ClipSimilarity, clip, device)),
        ),
        "fidelity": Metric("IF", "", lambda: _Compared(ImageFidelity(device), "source"), needs_target=False),
        "psnr_outside": Metric(
            "outside the mask, dB",
            "PSNR to the source where nothing may change",
            lambda: lambda edited, pair: noise_ratio_outside(edited, pair.source, pair.mask),
            needs_target=False,
        ),
    }
    if dino is not None:
        metrics[f"dino {dino}"] = Metric(
            "DINO",
            f"cosine of the class tokens of `{dino}`, to the true outcome",
            to_target(partial(DinoSimilarity, dino, device)),
        )
    return metrics


@dataclass
class Metrics:
    """The metrics that can be had, loaded once.

    Attributes:
        wanted (`dict[str, Metric]`): by name.
        missing (`dict[str, str]`): why the others can't be had.
    """

    wanted: dict[str, Metric]
    missing: dict[str, str] = field(default_factory=dict)
    _loaded: dict[str, Measure] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, metric in self.wanted.items():
            try:
                self._loaded[name] = metric.load()
            except Exception as error:  # whatever packages and hubs raise
                self.missing[name] = one_line(error, 300)

    @property
    def had(self) -> dict[str, Metric]:
        """Those that can be had, by name."""
        return {name: metric for name, metric in self.wanted.items() if name in self._loaded}

    def protocol(self, name: str) -> str:
        """What exactly a metric is that can be had."""
        said = (self.wanted[name].protocol, getattr(self._loaded[name], "protocol", None))
        return "; ".join(each for each in said if each)

    def measure(self, name: str, edited: np.ndarray, pair: EvaluationPair) -> float:
        """One of them for an edited picture `(height, width, 3)` uint8."""
        return float(self._loaded[name](edited, pair))

    def __call__(self, edited: np.ndarray, pair: EvaluationPair) -> dict[str, float]:
        """All of them for an edited picture `(height, width, 3)` uint8, by name."""
        return {name: self.measure(name, edited, pair) for name in self._loaded}
