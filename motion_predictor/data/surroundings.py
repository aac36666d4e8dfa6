"""What may be around a picture, where something of it is seen from further away or comes in over its border."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, pad


def with_surroundings(picture: np.ndarray, margin: int) -> torch.Tensor:
    """A picture `[S, S, 3]` with what may be around it, `[1, 3, S + 2 margin, S + 2 margin]`: its border, blurred.

    The border as it is would be drawn out to streaks where a head moves away from it, and mirrored to a second head.
    """
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    padded = pad(image, (margin,) * 4, mode="replicate")
    kernel = 2 * (margin // 2) + 1
    blurred = pad(padded, (kernel - 1,) * 4, mode="replicate")
    for size in ((kernel, 1), (1, kernel)) * 2:
        blurred = avg_pool2d(blurred, size, stride=1)
    along = torch.arange(padded.shape[-1])
    outside = (torch.maximum(margin - along, along - (padded.shape[-1] - 1 - margin)) / (margin / 3)).clamp(0, 1)
    return torch.lerp(padded, blurred, torch.maximum(outside[:, None], outside))
