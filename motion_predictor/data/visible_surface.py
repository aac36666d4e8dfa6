"""What is seen of a surface that covers itself: a head that has turned so far that its nose hides a cheek.

The surface is a sheet of nodes that were moved, each with a depth. A point of the picture may lie on several of its
triangles; the one that is nearest to the camera, and shows its front, is seen.
"""

from __future__ import annotations

import numpy as np


class VisibleSurface:
    """A sheet of nodes, ready to be asked what is seen at some points.

    Args:
        positions (`np.ndarray` of shape `(rows, columns, 2)`): x and y of all nodes, in pixels; rows go down and
            columns to the right where the sheet shows its front.
        depth (`np.ndarray` of shape `(rows, columns)`): growing away from the camera.
        values (`np.ndarray` of shape `(rows, columns, n)`): of all nodes, to be read at the points.
        side (`int`): of the picture: points between -0.5 and `side - 0.5` are asked for.

    Example:
        >>> positions = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1)
        >>> sheet = VisibleSurface(2 * positions - 1, np.zeros((4, 4)), positions, side=4)
        >>> sheet.at(np.array([[0.0, 2.0]]))
        array([[0.5, 1.5]])
    """

    def __init__(self, positions: np.ndarray, depth: np.ndarray, values: np.ndarray, side: int):
        self._side = side
        rows, columns = depth.shape
        upper_left = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
        halves = ((0, 1, columns), (columns + 1, columns, 1))  # of each cell, clockwise in the picture
        corners = np.concatenate([upper_left[:, None] + half for half in halves])  # [triangles, 3]
        self._values = values.reshape(rows * columns, -1).astype(np.float64)
        self._nodes = positions.reshape(-1, 2).astype(np.float64)
        self._depth = depth.ravel().astype(np.float64)
        x, y = self._nodes[corners, 0], self._nodes[corners, 1]
        area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
        first = [np.floor(along.min(axis=1) + 0.5).astype(int).clip(0) for along in (x, y)]
        last = [np.floor(along.max(axis=1) + 0.5).astype(int).clip(None, side - 1) for along in (x, y)]
        seen = (area > 0) & (first[0] <= last[0]) & (first[1] <= last[1])
        self._corners, self._area = corners[seen], area[seen]
        boxes = [edge[seen] for edge in (*first, *last)]
        self._triangles, self._begins = self._by_pixel(*boxes)

    def _by_pixel(
        self, left: np.ndarray, top: np.ndarray, right: np.ndarray, bottom: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The triangles that may touch a pixel, pixel by pixel, and where those of each pixel begin."""
        width = right - left + 1
        count = width * (bottom - top + 1)
        triangle, number = _expanded(count)
        column = left[triangle] + number % width[triangle]
        pixel = (top[triangle] + number // width[triangle]) * self._side + column
        order = np.argsort(pixel, kind="stable")
        begins = np.concatenate([[0], np.cumsum(np.bincount(pixel, minlength=self._side**2))])
        return triangle[order], begins

    def at(self, points: np.ndarray) -> np.ndarray:
        """The values of what is seen at `points`.

        Args:
            points (`np.ndarray` of shape `(points, 2)`): x and y in pixels; those beyond the picture are taken to its
                border.

        Returns:
            `np.ndarray` of shape `(points, n)`: between the nodes they are linear; NaN where the sheet shows no front.
        """
        places = points.astype(np.float64).clip(-0.5, self._side - 0.5 - 1e-6)
        pixel = np.floor(places + 0.5).astype(int) @ [1, self._side]
        point, number = _expanded(self._begins[pixel + 1] - self._begins[pixel])
        triangle = self._triangles[self._begins[pixel[point]] + number]
        corners, at = self._corners[triangle], places[point]
        shares = self._shares(corners, self._area[triangle], at)
        inside = (shares > -1e-9).all(axis=1)
        point, corners, shares = point[inside], corners[inside], shares[inside]
        depth = (shares * self._depth[corners]).sum(axis=1)
        order = np.lexsort([-depth, point])  # of each point, the nearest comes last
        seen = order[np.flatnonzero(np.diff(point[order], append=-1))]
        found = np.full((len(points), self._values.shape[1]), np.nan)
        found[point[seen]] = (shares[seen][..., None] * self._values[corners[seen]]).sum(axis=1)
        return found

    def _shares(self, corners: np.ndarray, area: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Barycentric coordinates `[n, 3]` of points in triangles."""
        x, y = (self._nodes[corners, axis] - at[:, axis, None] for axis in (0, 1))
        ahead, behind = np.roll(np.arange(3), -1), np.roll(np.arange(3), -2)
        return np.asarray((x[:, ahead] * y[:, behind] - x[:, behind] * y[:, ahead]) / area[:, None])


def _expanded(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index as often as `count` says, and the number of each repetition."""
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
