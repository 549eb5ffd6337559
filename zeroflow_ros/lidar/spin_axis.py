# SPDX-License-Identifier: Apache-2.0
"""The axis of the cloud frame that the beams of a rotating LiDAR turn around: z, or another in an optical frame."""

import numpy as np

_MAX_LOOKS = 60  # messages: a revolution of segments is seen by then
_ALONG = 0.25  # share of z in the directions of the points, above which z may be in the plane of rotation
_AROUND = 0.15  # share of the axis of rotation: 0.11 for beams up to 35 degrees from the plane of rotation


class SpinAxis:
    """Finds the axis from the directions of the points of the first messages.

    A message may hold part of a revolution, so the directions of all messages count. Points lie near the plane of
    rotation: the axis is the one along which they have the smallest share. It is z unless that is clearly wrong, as
    hemispherical sensors have no such plane.
    axis: 0, 1 or 2.
    """

    def __init__(self):
        self.axis = 2
        self._sum, self._num_looks = np.zeros(3), 0

    def look(self, returns: np.ndarray) -> bool:
        """Look at points (N, 3) of one message, N > 0; return whether the axis is another one now."""
        if self._num_looks >= _MAX_LOOKS:
            return False
        self._num_looks += 1
        squared = returns.astype(np.float64) ** 2
        self._sum += (squared / np.maximum(squared.sum(axis=1, keepdims=True), 1e-12)).mean(axis=0)
        share, before = self._sum / self._sum.sum(), self.axis
        self.axis = int(share.argmin()) if share[2] > _ALONG and share.min() < _AROUND else 2
        return self.axis != before


def azimuth_about(points: np.ndarray, axis: int) -> np.ndarray:
    """Return the azimuths (N,) [rad] of points (N, 3) about an axis of their frame; about z: from x to y."""
    return np.arctan2(points[:, (axis + 2) % 3], points[:, (axis + 1) % 3])
