"""Pictures of whole maps in colours: where everything went, and where predictors and the spline would take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from ..data.samples import MotionSample
from ..data.shards import MotionShards
from .maps import DrawnMap, draw_map, predicted_wholes
from .plots import HANDLE_MARK, TARGET_MARK, save_figure
from .predictor import Predictor
from .references import SPLINE, reference_maps
from .regions import moving_region
from .settings import EvaluationSettings

PANEL_INCHES = 2.56
LEGEND_SIDE = 129  # pixels of the wheel
UNKNOWN = 0.6  # grey


def flow_colours(flow: np.ndarray, longest: float) -> np.ndarray:
    """A flow in colours: the hue says whereto, and the deeper the farther; white stays, grey is not known.

    Args:
        flow (`np.ndarray` of shape `(height, width, 2)`): in pixels; NaN where it is not known.
        longest (`float`): the length of the deepest colour, in pixels.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: float in [0, 1].

    Example:
        >>> flow_colours(np.array([[[0.0, 0.0], [9.0, 0.0], [-9.0, 0.0]]]), longest=9.0).round(2)[0].tolist()
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    known = np.isfinite(flow).all(axis=-1)
    u, v = np.moveaxis(np.where(known[..., None], flow, 0.0), -1, 0)
    hue = np.arctan2(v, u) / (2 * np.pi) % 1.0
    depth = (np.hypot(u, v) / max(longest, 1e-9)).clip(0, 1)
    colours = hsv_to_rgb(np.stack([hue, depth, np.ones_like(depth)], axis=-1))
    return np.where(known[..., None], colours, UNKNOWN)


def save_flows(
    predictors: Mapping[str, Predictor],
    shards: MotionShards,
    settings: EvaluationSettings,
    order: Sequence[int],
    path: Path,
) -> None:
    """Draw the whole ways of the best, the middle and the worst sample: true, predicted, and the spline's.

    Args:
        predictors (`Mapping[str, Predictor]`): by name.
        shards (`MotionShards`): the dataset.
        settings (`EvaluationSettings`): how samples are drawn.
        order (`Sequence[int]`): the numbers of samples from the best to the worst, of `map_figures`.
        path (`Path`): of the picture.
    """
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    rows = {title: draw_map(shards, number, settings) for title, number in chosen.items()}
    panels = {title: _panels(predictors, drawn, settings) for title, drawn in rows.items() if drawn is not None}
    columns = max(len(maps) for maps in panels.values()) + 2  # and the source, and the legend
    height, width = next(iter(panels.values()))["true"].shape[:2]
    panel_height = PANEL_INCHES * height / width + 0.2  # and the title
    figure = Figure(figsize=(PANEL_INCHES * columns, panel_height * len(panels)), layout="constrained")
    for axes, (title, maps) in zip(figure.subplots(len(panels), columns, squeeze=False), panels.items(), strict=True):
        drawn = rows[title]
        if drawn is not None:
            _draw_row(axes, title, drawn, maps)
    save_figure(figure, path)


def _panels(
    predictors: Mapping[str, Predictor], drawn: DrawnMap, settings: EvaluationSettings
) -> dict[str, np.ndarray]:
    """Whole ways `[H, W, 2]` by title."""
    batch = MotionSample.stack([drawn.sample]).to(settings.torch_device)
    wholes, _ = predicted_wholes(predictors, batch)
    flows = {"true": batch.total, **wholes, SPLINE: reference_maps(batch)[SPLINE]}
    return {title: flow[0].permute(1, 2, 0).cpu().numpy() for title, flow in flows.items()}


def _draw_row(panels: Sequence[Axes], title: str, drawn: DrawnMap, maps: Mapping[str, np.ndarray]) -> None:
    sample, true = drawn.sample, maps["true"]
    region = moving_region(torch.from_numpy(true).permute(2, 0, 1)[None])[0].numpy()
    longest = float(np.linalg.norm(true[region], axis=-1).max())
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(sample.image.permute(1, 2, 0).numpy())
    panels[0].contour(sample.mask[0].numpy(), [0.5], colors="white", linewidths=0.8)
    panels[0].plot(*sample.handles[sample.valid].T.numpy(), **HANDLE_MARK)
    panels[0].plot(*sample.targets[sample.valid].T.numpy(), **TARGET_MARK)
    height, width = region.shape
    panels[0].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    panels[0].set_title(f"{title}: points and mask", fontsize="small")
    for axes, (name, flow) in zip(panels[1:], maps.items(), strict=False):
        axes.imshow(flow_colours(flow, longest))
        error = float(np.linalg.norm(flow - true, axis=-1)[region].mean())
        axes.set_title(name if flow is true else f"{name}: {error:.1f} px off", fontsize="small")
    _draw_wheel(panels[-1], longest)


def _draw_wheel(axes: Axes, longest: float) -> None:
    """The legend: each colour where its motion leads."""
    across = np.linspace(-1.1, 1.1, LEGEND_SIDE)
    directions = np.stack(np.meshgrid(across, across, indexing="xy"), axis=-1)
    wheel = flow_colours(directions, 1.0)
    outside = np.linalg.norm(directions, axis=-1) > 1
    axes.imshow(np.where(outside[..., None], 1.0, wheel))
    axes.set_title(f"rim: {longest:.1f} px", fontsize="small")
