# SPDX-License-Identifier: Apache-2.0
"""The frame in which the velocities of a camera are published, and which way is up in it."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.transforms import apply, invert

# From an optical frame (x right, y down, z forward) to the axes of a body (x forward, y left, z up), REP 103.
BODY_T_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)  # fmt: skip

_SAME_TANGENT = 1e-3


@dataclass(frozen=True, eq=False)
class OutputFrame:
    """Moves points and velocities from the optical frame of the left camera to another frame of the same body.

    frame_id: of the output, whose z is up; '': the optical frame itself. output_T_camera: (4, 4).
    """

    frame_id: str = ''
    output_T_camera: np.ndarray | None = None

    def moved(self, points: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points [m] and velocities [m/s] of an image, (H, W, 3) each, in the output frame."""
        if self.output_T_camera is None:
            return points, velocity
        return _apply(self.output_T_camera, points), _apply(_rotation(self.output_T_camera), velocity)

    def to_upright(self, vectors: np.ndarray) -> np.ndarray:
        """Return points or velocities (N, 3) of the output frame in axes with z up, for views from above."""
        return vectors if self.frame_id else apply(BODY_T_OPTICAL, vectors)

    def from_upright(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors (N, 3) of `to_upright` in the output frame again."""
        return vectors if self.frame_id else apply(invert(BODY_T_OPTICAL), vectors)


def is_optical(points: np.ndarray) -> bool:
    """Return whether the points (H, W, 3) of an organised cloud are those of pixels in their optical frame.

    There, x / z is the same in a whole column of pixels, and y / z in a whole row.
    """
    if points.ndim != 3 or min(points.shape[:2]) < 2:
        return False
    some = points[:: 1 + points.shape[0] // 50, :: 1 + points.shape[1] // 50].astype(np.float64)
    known = np.isfinite(some).all(axis=-1) & (some[..., 2] > 0)
    if known.sum() < 20:
        return False
    with np.errstate(invalid='ignore', divide='ignore'):
        tangents = np.where(known[..., None], some[..., :2] / some[..., 2:], np.nan)
    spread = [_spread(tangents[..., 0].T), _spread(tangents[..., 1])]
    return all(one.size > 0 and np.median(one) < _SAME_TANGENT for one in spread)


def _spread(lines: np.ndarray) -> np.ndarray:
    """Return the range of the values of each line (N, K) with two known ones or more."""
    lines = lines[np.isfinite(lines).sum(axis=1) > 1]
    return np.nanmax(lines, axis=1) - np.nanmin(lines, axis=1) if len(lines) else np.zeros(0)


def _rotation(dst_T_src: np.ndarray) -> np.ndarray:
    rotation = dst_T_src.copy()
    rotation[:3, 3] = 0.0
    return rotation


def _apply(dst_T_src: np.ndarray, image: np.ndarray) -> np.ndarray:
    return apply(dst_T_src, image.reshape(-1, 3)).reshape(image.shape)
