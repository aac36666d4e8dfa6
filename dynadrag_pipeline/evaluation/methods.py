"""The ways to edit that are compared: sources of motion on one engine, and what they are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from motion_predictor import MotionPredictorModel
from motion_predictor.common.checks import got
from motion_predictor.common.command_errors import one_line

from ..dense_flow import DenseFlow, filled, resize_shift, unfolded
from ..latent_bend import bent_picture
from ..motion.line_search import LineSearchMotion
from ..motion.names import MOTION_NAMES
from ..motion.predicted import Predicted, PredictedMotion
from ..motion.smooth import smooth_flow
from ..motion.source import MotionSource
from ..motion.tracked import TrackedMotion
from .method_names import BEND, NO_EDIT, ONE_STEP, TRUE_MOTION
from .pairs import EvaluationPair

MOTION_SHARE = 10  # a step of the true motion is a tenth of the displacement, as in the predictor's labels

OWN, EMBEDDED = "own", "embedded"
"""Motion predictors by name: the model's, and the one that comes with the package."""

SOURCES_WITH_NUMBERS: dict[str, type[TrackedMotion] | type[LineSearchMotion]] = {
    TrackedMotion.name: TrackedMotion,
    LineSearchMotion.name: LineSearchMotion,
}
"""By name: sources of motion that have numbers of their own."""


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name (`str`): in tables.
        motion (`str`, *optional*): of `MOTION_NAMES`, or `"true motion"`; by default as a call would choose.
        motion_options (`Mapping`): numbers of the source of motion, of those in `SOURCES_WITH_NUMBERS`.
        motion_predictor (`str`): whose motion is predicted: `"own"`, `"embedded"`, or the folder or Hub id of one.
        options (`Mapping`): of the edit, over those of the run.
        preset (`str`, *optional*): options by name, in the place of the run's.
        misplaced_handle (`bool`): whether the instruction has one handle more, which leads astray.
        back (`bool`): whether it begins with what the method came to, and drags from targets to handles.
        picture (`Callable`, *optional*): makes a picture of the pair without any model, in the place of an edit.
    """

    name: str
    motion: str | None = None
    motion_options: Mapping[str, Any] = field(default_factory=dict)
    motion_predictor: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    misplaced_handle: bool = False
    back: bool = False
    picture: Callable[[EvaluationPair], np.ndarray] | None = None

    @property
    def asks_predictor(self) -> bool:
        """Whether its edits depend on a motion predictor."""
        return self.picture is None and self.motion in (None, "predicted")

    def said(self) -> dict[str, Any]:
        """All that it says, as JSON has it: what its results depend on beside the run's own settings.

        Returns:
            `dict[str, Any]`: by name of the attribute.

        Example:
            >>> Method("half as far", "straight", options={"inversion_strength": 0.5}).said()["options"]
            {'inversion_strength': 0.5}
        """
        names = ("motion", "motion_options", "motion_predictor", "options", "preset", "misplaced_handle")
        return {name: getattr(self, name) for name in names}


class TrueFlow:
    """Answers like a network that knows the true motion: all of it, and a tenth as the next step.

    Args:
        flow (`np.ndarray` of shape `(height, width, 2)`):
            from source to target; where it is not known, it goes on from where it is.
    """

    horizons = ("step", "total")
    takes_mask = True

    def __init__(self, flow: np.ndarray) -> None:
        known = torch.from_numpy(np.isfinite(flow).all(axis=-1)).float()[None, None]
        self.flow = filled(torch.from_numpy(np.nan_to_num(flow)).permute(2, 0, 1)[None].float(), known)

    def predict(
        self, image: torch.Tensor, handles: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Predicted:
        """The true motion at the size of a picture, whatever it has become.

        Args:
            image (`torch.Tensor` of shape `(1, channels, height, width)`): whose size counts alone.
            handles, targets, mask: are not looked at.

        Returns:
            [`Predicted`]: flows of shape `(1, 2, height, width)`, in pixels of the picture.
        """
        total = resize_shift(self.flow, (image.shape[-2], image.shape[-1])).to(image)
        return Predicted(total / MOTION_SHARE, None, total)


class TrueMotion(PredictedMotion):
    """Motion by the true flow, which needs no picture: what a predictor that is always right would say.

    Args:
        flow (`np.ndarray` of shape `(height, width, 2)`): see [`TrueFlow`].
    """

    name = TRUE_MOTION
    needs_picture = False

    def __init__(self, flow: np.ndarray) -> None:
        super().__init__(TrueFlow(flow))


def bent_through_points(pair: EvaluationPair) -> np.ndarray:
    """The source, bent by the smooth dense flow through the pair's points: no model.

    Outside the mask nothing changes, and where nothing comes to, what is near is stretched.

    Args:
        pair ([`EvaluationPair`]): whose points and mask are followed; its target and its flow are not looked at.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: uint8 RGB.

    Example:
        >>> source = np.zeros((64, 64, 3), dtype=np.uint8)
        >>> source[28:37, 20:29] = 255
        >>> handles, everywhere = np.float32([[24, 32]]), np.ones((64, 64), dtype=bool)
        >>> pair = EvaluationPair("dot", source, None, everywhere, handles, handles + np.float32([8, 0]), source)
        >>> bent_through_points(pair)[32, [24, 32], 0].tolist()
        [0, 255]
    """
    size = (pair.source.shape[0], pair.source.shape[1])
    handles, targets = torch.from_numpy(pair.handles), torch.from_numpy(pair.targets)
    mask = torch.from_numpy(pair.mask)[None, None]
    flow = smooth_flow(lambda share: handles.lerp(targets, share), size, mask.float())
    source = torch.from_numpy(pair.source).permute(2, 0, 1)[None].float()
    bent = bent_picture(source, resize_shift(DenseFlow.of(unfolded(flow)).backward, size))
    bytes_of = torch.where(mask, bent, source).round().clamp(0, 255).byte()
    return np.ascontiguousarray(bytes_of[0].permute(1, 2, 0).numpy())


def source_of_motion(method: Method, pair: EvaluationPair, predictor: Any) -> MotionSource | str | None:
    """What a method passes as `motion=` for a pair.

    Args:
        method ([`Method`]): that edits.
        pair ([`EvaluationPair`]): that is edited.
        predictor ([`MotionPredictorModel`], *optional*): see [`load_predictor`].

    Returns:
        [`MotionSource`], `str` or `None`: an object, a name of `MOTION_NAMES`, or the choice is the call's.
    """
    if method.motion == TRUE_MOTION:
        return TrueMotion(pair.flow)
    if method.motion in SOURCES_WITH_NUMBERS:
        return SOURCES_WITH_NUMBERS[method.motion](**method.motion_options)
    if method.motion in (None, "predicted") and predictor is not None:
        return PredictedMotion(predictor)
    return method.motion


def load_predictor(name: str, own: Any, device: Any, dtype: torch.dtype) -> Any:
    """The motion predictor of a method.

    Args:
        name (`str`): see [`Method`].
        own ([`MotionPredictorModel`], *optional*): the model's.
        device (`torch.device` or `str`): where it is to compute.
        dtype (`torch.dtype`): in what.

    Returns:
        [`MotionPredictorModel`] or `None`: none if the model has no own one.

    Raises:
        ValueError: if it can't be loaded.
    """
    from .. import EMBEDDED_MOTION_PREDICTOR

    if name == OWN:
        return own
    folder = EMBEDDED_MOTION_PREDICTOR if name == EMBEDDED else os.path.expanduser(name)
    try:
        return MotionPredictorModel.from_pretrained(folder, dtype=dtype).to(device)
    except Exception as error:  # damaged files make the libraries raise anything
        raise ValueError(
            "`motion_predictor` must be 'own', 'embedded', or the folder or Hub id of one, "
            f"got {got(name)}: {one_line(error, 300)}"
        ) from error


METHODS = {
    each.name: each
    for each in (
        Method(NO_EDIT, picture=lambda pair: pair.source),
        Method(BEND, picture=bent_through_points),
        Method(TRUE_MOTION, TRUE_MOTION),
        Method(ONE_STEP, "straight", options={"carry": "once", "settle_iterations": 0}),
        *(Method(name, name) for name in MOTION_NAMES),
    )
}
"""By name: no edit, the photograph bent without a model, every source of motion that has a name, one that knows the
true motion, and one step.

One step is the idea of FastDrag (Zhao et al., 2024, arXiv 2405.15769): the latent is bent once, by all of the way, and
denoised with the original's keys and values; there is no supervision. Here the flow is smooth through the points and
noise is kept noise, as for `carry`. FastDrag's code (github.com/XuanjiaZ/FastDrag, `utils/continuous_drag.py`)
stretches each handle's way down to nought at a circle round the mask, takes the mean of these ways by the inverse
distances to the handles, and fills what is left empty from the four nearest cells along row and column. A session's
settings are the run's, as for every other method; that code inverts by 0.7 of ten steps, with the UNet of an LCM
(`drag_ui.py`)."""
