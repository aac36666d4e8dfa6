"""How far from its target the dragged content ended up: the patch round each handle, found again in the edit."""

from __future__ import annotations

import numpy as np
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
