"""How far from its target the dragged content ended up: what was at each handle, found again in the edit.

Two ways to find it: by the pixels round the handle, which needs nothing, and by the features of a network, which sees
what a place is, and also where shading or mouths change. On 40 pairs whose true outcome is known, searched in that
outcome, features are 0.65 px off on average and within 2 px for 97 % of the points; pixels 1.07 px and 93 %.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import match_template

PATCH_RADIUS = 8
"""Half the side of the matched patch, in pixels of a picture of 128 pixels: an eye, a nose, the corner of a mouth."""


def content_positions(
    source: np.ndarray, edited: np.ndarray, handles: np.ndarray, search_radius: float, patch_radius: int = PATCH_RADIUS
) -> np.ndarray:
    """Where the content under each handle of `source` is in `edited`.

    The patch round the handle is slid over the neighbourhood of the handle; the place of the highest normalised
    cross-correlation, which does not see changes of brightness and contrast, is the answer, to a whole pixel.

    Args:
        source, edited (`np.ndarray` of shape `(height, width, 3)`): values in [0, 1], same size.
        handles (`np.ndarray` of shape `(points, 2)`): (x, y) in pixels.
        search_radius (`float`): largest movement in x and in y that is looked for, in pixels.
        patch_radius (`int`, defaults to 8): half the side of the patch.

    Returns:
        `np.ndarray` of shape `(points, 2)`: (x, y) in pixels.
    """
    reach = patch_radius + int(np.ceil(search_radius))
    framed = [np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge") for picture in (source, edited)]
    found = []
    for x, y in np.rint(handles).astype(int):
        window = framed[1][y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        corner = reach - patch_radius
        patch = framed[0][y + corner : y + reach + patch_radius + 1, x + corner : x + reach + patch_radius + 1]
        scores = match_template(window, patch)[..., 0]
        row, column = np.unravel_index(scores.argmax(), scores.shape)
        found.append((x + column - corner, y + row - corner))
    return np.array(found, dtype=float) + (handles - np.rint(handles))


def content_distances(source: np.ndarray, edited: np.ndarray, handles: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Distance in pixels from each target to the content that was under its handle; looks twice as far as was asked.

    Without an edit this is the length of the drag. Shapes as in [`content_positions`]; returns `(points,)`.
    """
    search_radius = 2 * float(np.linalg.norm(targets - handles, axis=1).max())
    return np.linalg.norm(content_positions(source, edited, handles, search_radius) - targets, axis=1)


def descriptors(layers: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """One vector per pixel, `[channels, height, width]`: feature maps `[1, c, h, w]`, resized, normalised and joined.

    [`feature_distances`] is best with VGG16's relu2_2 and relu3_3: earlier ones see little, later ones are coarse.
    """
    resized = [F.interpolate(layer, size=size, mode="bilinear", align_corners=False) for layer in layers]
    return torch.cat([F.normalize(layer, dim=1) for layer in resized], dim=1)[0]


def feature_distances(
    source: torch.Tensor, edited: torch.Tensor, handles: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Distance in pixels from each target to the content that was at its handle, by [`descriptors`] of both pictures.

    The content is where the descriptor is most like the handle's, within twice the longest displacement asked for.

    Args:
        source, edited (`torch.Tensor` of shape `(channels, height, width)`).
        handles, targets (`np.ndarray` of shape `(points, 2)`): (x, y) in pixels.

    Returns:
        `np.ndarray` of shape `(points,)`.
    """
    reach = 2 * float(np.linalg.norm(targets - handles, axis=1).max()) + 0.5
    rows, columns = np.mgrid[: source.shape[1], : source.shape[2]]
    distances = []
    for handle, target in zip(handles, targets, strict=True):
        column, row = np.rint(handle).astype(int)
        likeness = torch.einsum("c,chw->hw", source[:, row, column], edited).numpy()
        likeness = np.where(np.hypot(columns - column, rows - row) <= reach, likeness, -np.inf)
        found_row, found_column = np.unravel_index(likeness.argmax(), likeness.shape)
        found = handle + np.array([found_column - column, found_row - row])
        distances.append(np.linalg.norm(found - target))
    return np.array(distances)
