"""Optical flow between two frames: where each pixel of the first lies in the second (Sec. 3.2.1 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .build_settings import FLOWS

if TYPE_CHECKING:
    import torch

# Below this, motion of fractions of a pixel drowns: small frames are enlarged for the flow.
SHORTEST_SIDE = 256


class OpticalFlow(Protocol):
    """Anything that tells the motion between two frames.

    Attributes:
        name: kept with the records.
    """

    name: str

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The flow from one frame to another.

        Args:
            first: `[H, W, 3]` uint8 RGB.
            second: `[H, W, 3]` uint8 RGB.

        Returns:
            `[H, W, 2]` float32 `(u, v)` in pixels, u to the right, v down: the pixel at `(x, y)` of `first` lies at
            `(x + u, y + v)` of `second`.
        """
        ...


class DISFlow:
    """Dense Inverse Search of OpenCV: no weights, some 10 ms a pair at 256 x 256 on one core.

    The finest scale is full resolution. One variational iteration instead of the preset's five: chained over 15
    frames, the motion then fits faces better, and it takes half the time.

    Example:
        >>> import numpy as np
        >>> ramp = np.add.outer(np.arange(64.0) ** 2 / 32, 8 * np.sin(np.arange(80.0) / 3) + 90)
        >>> first = np.repeat(ramp[:, 4:68, None], 3, axis=2).astype(np.uint8)
        >>> second = np.repeat(ramp[:, 2:66, None], 3, axis=2).astype(np.uint8)  # moved by 2 pixels to the right
        >>> flow = DISFlow()(first, second)
        >>> flow.shape, bool(abs(np.median(flow[..., 0]) - 2) < 0.1)
        ((64, 64, 2), True)
    """

    name = "dis"

    def __init__(self) -> None:
        import cv2

        cv2.setNumThreads(1)  # videos are shared out among processes
        create: Any = cv2.DISOpticalFlow_create  # type: ignore[attr-defined]
        self.dis = create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.dis.setFinestScale(0)
        self.dis.setPatchStride(4)
        self.dis.setVariationalRefinementIterations(1)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        import cv2

        height, width = first.shape[:2]
        scale = max(SHORTEST_SIDE / min(height, width), 1.0)
        large = (round(width * scale), round(height * scale))
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        if large != (width, height):
            grey = [cv2.resize(frame, large, interpolation=cv2.INTER_CUBIC) for frame in grey]
        flow = self.dis.calc(grey[0], grey[1], None)
        if large != (width, height):
            flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA)
            flow /= np.array([large[0] / width, large[1] / height], np.float32)
        return flow


def make_optical_flow(name: str, checkpoint: str | None, device: torch.device) -> OpticalFlow:
    """The optical flow of a name.

    Args:
        name: one of `FLOWS`.
        checkpoint: file with its weights, if it has any.
        device: that it runs on, if it is a network.
    """
    if name == "dis":
        return DISFlow()
    raise ValueError(f"`flow` is {name!r}: one of {FLOWS} is accepted.")
