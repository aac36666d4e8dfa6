"""What an edit is measured by, beside where its content went: each a number of the edited and of the true picture.

Pictures are `(height, width, 3)` uint8 RGB. A metric whose weights or packages can't be had says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from .pairs import EvaluationPair

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


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        title (`str`): of the column, with its unit.
        protocol (`str`): what exactly it is.
        load (`Callable`): answers with `(edited, pair) -> float`; an exception is why it can't be had.
    """

    title: str
    protocol: str
    load: Callable[[], Callable[[np.ndarray, EvaluationPair], float]]


def picture_metrics(clip: str = DEFAULT_CLIP, device: str = "cpu") -> dict[str, Metric]:
    """All metrics of pictures by name.

    Args:
        clip (`str`, *optional*): folder or Hub id of the CLIP model.
        device (`str`, *optional*, defaults to `"cpu"`): where networks compute.
    """

    def clip_similarity() -> Callable[[np.ndarray, EvaluationPair], float]:
        similarity = ClipSimilarity(clip, device)
        return lambda edited, pair: similarity(edited, pair.target)

    def ssim() -> Callable[[np.ndarray, EvaluationPair], float]:
        import skimage.metrics  # noqa: F401 - whether it is there

        return lambda edited, pair: structural_similarity(edited, pair.target)

    return {
        "mse_unit": Metric(
            "MSE x 10^3, [0, 1]",
            "mean squared error to the true outcome, values from 0 to 1, times 1000",
            lambda: lambda edited, pair: 1e3 * mean_squared_error(edited, pair.target),
        ),
        "mse_bytes": Metric(
            "MSE x 10^-3, 0..255",
            "the same, values from 0 to 255, over 1000",
            lambda: lambda edited, pair: 255**2 / 1e3 * mean_squared_error(edited, pair.target),
        ),
        "ssim": Metric("SSIM", "scikit-image, Gaussian window of sigma 1.5, RGB, to the true outcome", ssim),
        "clip": Metric("CLIP", f"cosine of the image embeddings of `{clip}`, to the true outcome", clip_similarity),
        "psnr_outside": Metric(
            "outside the mask, dB",
            "PSNR to the source where nothing may change",
            lambda: lambda edited, pair: noise_ratio_outside(edited, pair.source, pair.mask),
        ),
    }


@dataclass
class Metrics:
    """The metrics that can be had, loaded once.

    Attributes:
        wanted (`dict[str, Metric]`): by name.
        missing (`dict[str, str]`): why the others can't be had.
    """

    wanted: dict[str, Metric]
    missing: dict[str, str] = field(default_factory=dict)
    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, metric in self.wanted.items():
            try:
                self._loaded[name] = metric.load()
            except Exception as error:  # whatever packages and hubs raise
                self.missing[name] = " ".join(str(error).split())[:200] or type(error).__name__

    def __call__(self, edited: np.ndarray, pair: EvaluationPair) -> dict[str, float]:
        """All of them for an edited picture `(height, width, 3)` uint8, by name."""
        return {name: measure(edited, pair) for name, measure in self._loaded.items()}
