"""What an edit returns: the picture, and a record of how it came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from .content import ContentLocations
from .settings import SettingsInForce

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""What the edited pictures of a call may be."""

StopReason = Literal["reached", "max_iterations", "stalled", "interrupted", "diverged"]
"""Why an edit ended: all handles are at their targets; the iterations are used up; no handle moves any more; the
callback asked for it; or the optimisation met NaN or infinity, and the last good iteration was kept."""


@dataclass
class DragIteration:
    """Record of one predict-and-move iteration (Fig. 2(a)). All points and steps are (x, y) in pixels of the input.

    Attributes:
        handles (`torch.Tensor` of shape `(points, 2)`): h^k, where the handles were when the iteration began.
        predicted_step (`torch.Tensor` of shape `(points, 2)`):
            what motion prediction answered for each handle, before the guard (Eq. 4).
        step (`torch.Tensor` of shape `(points, 2)`): what the handles really moved by: h^{k+1} - h^k.
        valid (`torch.Tensor` of shape `(points,)`, bool): the handles that motion supervision dragged (Sec. 3.2.2).
        similarities (`torch.Tensor` of shape `(points,)`):
            cosine in [-1, 1] between the UNet features at each handle and at its target.
        loss_before (`float`): Eq. 2 at the latent as the iteration found it.
        loss_after (`float`):
            Eq. 2, same handles and same source patches, at the optimised latent. In a callback it is NaN still: it is
            read off the first pass of the next iteration.
        wrong_way_count (`int`): predictions that pointed away from their target, whatever the guard made of them.
        image (`torch.Tensor` of shape `(3, height, width)`, *optional*):
            I_{k+1} in [0, 1] at the size the edit runs at; only with `return_intermediates=True`.
        flow (`torch.Tensor` of shape `(2, height, width)`, *optional*):
            the predicted flow in pixels of the edit's size; only with `return_intermediates=True` and a motion
            predictor.
        gradient_retries (`int`):
            gradients that overflowed in float16, and were computed again with a smaller scale of the loss.
        deviation (`torch.Tensor` of shape `(points,)`, *optional*):
            how far the motion predictor expects its steps to be wrong, if it says so.
        carried (`torch.Tensor` of shape `(points, 2)`, *optional*):
            how far `carry` bent the latent at each handle; `None` where nothing was carried.
        invented (`float`): share of the latent that nothing of the picture comes to, so that the model invents it.
        unfolded (`float`): share of the flow that lay over other content, and was smoothed until it did not.
        added (`float`): root of the mean square of what the Adam steps changed in z_t.
    """

    handles: torch.Tensor
    predicted_step: torch.Tensor
    step: torch.Tensor
    valid: torch.Tensor
    similarities: torch.Tensor
    loss_before: float
    loss_after: float
    wrong_way_count: int
    image: torch.Tensor | None = None
    flow: torch.Tensor | None = None
    gradient_retries: int = 0
    deviation: torch.Tensor | None = None
    carried: torch.Tensor | None = None
    invented: float = 0.0
    unfolded: float = 0.0
    added: float = 0.0


@dataclass
class DynaDragPipelineOutput(BaseOutput):
    """Output of [`DynaDragPipeline`].

    For one picture the fields below hold that edit; for a list of pictures, each field is a list with one entry per
    picture (`images` is a list, or a batch, either way).

    Attributes:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            the edited pictures at the input's size; arrays are `(batch, height, width, 3)`, tensors
            `(batch, 3, height, width)`, both in [0, 1]; latents for `output_type="latent"`.
        trajectories (`torch.Tensor` of shape `(iterations + 1, points, 2)`, float32):
            where each handle was before the first and after each iteration, (x, y) in pixels of the input.
        iterations (`list[DragIteration]`): one record per iteration.
        stop_reason (`str`): `reached`, `max_iterations`, `stalled`, `interrupted` or `diverged`.
        motion_source (`str`): name of what said where handles go: `predicted`, `straight`, `path`, or a source's own.
        settings ([`SettingsInForce`], *optional*): every setting of the call, and where it comes from.
        provenance (`dict`): versions of the packages, the model, and the seed of each picture.
        content ([`ContentLocations`], *optional*):
            where what was at each handle is in the edited picture; `None` with `locate_content=False`.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    trajectories: torch.Tensor | list[torch.Tensor] = field(default_factory=list)
    iterations: list[DragIteration] | list[list[DragIteration]] = field(default_factory=list)
    stop_reason: StopReason | list[StopReason] = "max_iterations"
    motion_source: str | list[str] = "straight"
    settings: SettingsInForce | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    content: ContentLocations | list[ContentLocations | None] | None = None
