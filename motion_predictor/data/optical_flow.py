"""Optical flow between two frames: where each pixel of the first lies in the second (Sec. 3.2.1 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..common.checks import check_choice, got
from ..common.command_errors import one_line
from .build_settings import FLOWS

if TYPE_CHECKING:
    import torch

# Below this, motion of fractions of a pixel drowns: small frames are enlarged for the flow.
SHORTEST_SIDE = 256


class OpticalFlow(Protocol):
    """Anything that tells the motion between two frames.

    Attributes:
        name (`str`): kept with the records.
    """

    name: str

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The flow from one frame to another.

        Args:
            first (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
            second (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.

        Returns:
            `np.ndarray` of shape `(height, width, 2)`: float32 `(u, v)` in pixels, u to the right, v down: the pixel
            at `(x, y)` of `first` lies at `(x + u, y + v)` of `second`.
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

        size = first.shape[:2]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return _scaled_back(self.dis.calc(*(_enlarged(frame) for frame in grey), None), size)


class UniMatchFlow:
    """UniMatch (Xu et al., arXiv 2211.05783), the paper's: `gmflow-scale2-regrefine6`.

    Args:
        checkpoint (`str` or `None`): its weights, such as `gmflow-scale2-regrefine6-mixdata-train320x576-4e7b215d.pth`
            of UniMatch's model zoo; read without running code.
        device (`torch.device`): that it runs on.

    Raises:
        ValueError: if the package `unimatch` can't be imported, or the file is no such checkpoint.
    """

    name = "unimatch"
    forward_options = {
        "attn_type": "swin",
        "attn_splits_list": [2, 8],
        "corr_radius_list": [-1, 4],
        "prop_radius_list": [-1, 1],
        "num_reg_refine": 6,
        "task": "flow",
    }

    def __init__(self, checkpoint: str | None, device: torch.device):
        try:
            from unimatch.unimatch import UniMatch
        except ImportError as error:
            raise ValueError(
                "`flow` is 'unimatch', whose code can't be imported: clone "
                f"https://github.com/autonomousvision/unimatch and put its folder on PYTHONPATH ({error})."
            ) from error
        model = UniMatch(
            num_scales=2,
            feature_channels=128,
            upsample_factor=4,
            num_head=1,
            ffn_dim_expansion=4,
            num_transformer_layers=6,
            reg_refine=True,
            task="flow",
        )
        if checkpoint is None:
            raise ValueError(
                "`flow_checkpoint` must be a file with the weights of UniMatch's gmflow-scale2-regrefine6, got None."
            )
        self.model = _with_weights(model, checkpoint, device)
        self.device = device

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        import torch

        images = [_tensor(_enlarged(frame, multiple=32), self.device) for frame in (first, second)]  # 0 ... 255
        with torch.no_grad():
            flow = self.model(*images, **self.forward_options)["flow_preds"][-1]
        return _scaled_back(_array(flow), first.shape[:2])


class RaftFlow:
    """RAFT (Teed and Deng, ECCV 2020), the large model of torchvision.

    Args:
        checkpoint (`str` or `None`): weights of `raft_large`; None to let torchvision download its own.
        device (`torch.device`): that it runs on.

    Raises:
        ValueError: if torchvision is not installed, or the file is no such checkpoint.
    """

    name = "raft"

    def __init__(self, checkpoint: str | None, device: torch.device):
        try:
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        except ImportError as error:
            raise ValueError(
                f"`flow` is 'raft', which needs torchvision: pip install torchvision, or choose another ({error})."
            ) from error
        if checkpoint is None:
            self.model = raft_large(weights=Raft_Large_Weights.DEFAULT, progress=False).to(device).eval()
        else:
            self.model = _with_weights(raft_large(weights=None), checkpoint, device)
        self.device = device

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        import torch

        images = [_tensor(_enlarged(frame, multiple=8), self.device) / 127.5 - 1 for frame in (first, second)]
        with torch.no_grad():
            flow = self.model(*images)[-1]
        return _scaled_back(_array(flow), first.shape[:2])


def make_optical_flow(name: str, checkpoint: str | None, device: torch.device) -> OpticalFlow:
    """The optical flow of a name.

    Args:
        name (`str`): one of `FLOWS`.
        checkpoint (`str` or `None`): file with its weights, if it has any.
        device (`torch.device`): that it runs on, if it is a network.

    Raises:
        ValueError: for an unknown name, and where what it needs is missing.
    """
    check_choice("flow", name, FLOWS)
    if name == "dis":
        return DISFlow()
    if name == "unimatch":
        return UniMatchFlow(checkpoint, device)
    return RaftFlow(checkpoint, device)


def _enlarged(frame: np.ndarray, multiple: int = 1) -> np.ndarray:
    """A frame with a short side of at least `SHORTEST_SIDE`, and both sides a multiple of a number."""
    import cv2

    sides = np.array(frame.shape[1::-1])
    wanted = sides * max(SHORTEST_SIDE / sides.min(), 1)
    size = tuple(int(side) for side in np.ceil(np.rint(wanted) / multiple) * multiple)
    return frame if size == tuple(sides) else cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)


def _scaled_back(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The flow `[h, w, 2]` between enlarged frames, in pixels and on the grid of frames of `(height, width)`."""
    import cv2

    if flow.shape[:2] == size:
        return flow
    scale = np.array([size[1] / flow.shape[1], size[0] / flow.shape[0]], dtype=np.float32)
    return cv2.resize(flow, size[::-1], interpolation=cv2.INTER_AREA) * scale


def _tensor(frame: np.ndarray, device: torch.device) -> torch.Tensor:
    import torch

    return torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float()


def _array(flow: torch.Tensor) -> np.ndarray:
    return flow[0].permute(1, 2, 0).float().cpu().contiguous().numpy()


def _with_weights(model: Any, checkpoint: str, device: torch.device) -> Any:
    """A network with the weights of a file, which is read without running code."""
    import pickle

    import torch

    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(weights.get("model", weights))
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`flow_checkpoint` must be a file with the weights of {type(model).__name__}, got {got(checkpoint)} "
            f"({one_line(error, 300)})."
        ) from error
    return model.to(device).eval()
