# SPDX-License-Identifier: Apache-2.0
"""Rectified stereo cameras, the frames they take, and the scene flow of the pixels of one frame to another.

Axes are those of the left camera's optical frame: x right, y down, z forward. Pixel (u, v) = (column, row) has its
centre at whole numbers. Disparity is positive: the pixel (u, v) of the left image shows what
(u - disparity, v) shows in the right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from zeroflow_ros.errors import ConfigError

_MIN_DISPARITY = 1e-3  # px; below it a point is as good as infinitely far


@dataclass(frozen=True)
class StereoCamera:
    """A pair of rectified pinhole cameras of the same size and focal length.

    width, height: size of both images [px]. fx, fy: focal lengths [px]. cx, cy: principal point of the left [px].
    baseline: distance between the optical centres [m]. right_cx: principal point of the right [px]; None: the same.

    Raises: ConfigError for a size, a focal length or a baseline that is not positive and finite.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    baseline: float
    right_cx: float | None = None

    def __post_init__(self):
        for name in ('width', 'height', 'fx', 'fy', 'baseline'):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f'{name} of a stereo camera must be positive and finite, got {value}.')

    @property
    def disparity_at_infinity(self) -> float:
        """Disparity of a point that is infinitely far away [px]: 0 unless the principal points differ."""
        return 0.0 if self.right_cx is None else self.cx - self.right_cx

    def depth(self, disparity: np.ndarray) -> np.ndarray:
        """Return the depth [m] of disparities [px] of any shape, float32; NaN where it is NaN or not positive."""
        parallax = np.asarray(disparity, np.float32) - np.float32(self.disparity_at_infinity)
        near = parallax > _MIN_DISPARITY
        return np.where(near, self.fx * self.baseline / np.where(near, parallax, 1), np.nan).astype(np.float32)

    def disparity(self, depth: np.ndarray) -> np.ndarray:
        """Return the disparity [px] of depths [m], float32; NaN where the depth is NaN or not positive."""
        positive = np.asarray(depth) > 0
        parallax = self.fx * self.baseline / np.where(positive, depth, 1) + self.disparity_at_infinity
        return np.where(positive, parallax, np.nan).astype(np.float32)

    @cached_property
    def rays(self) -> np.ndarray:
        """The point at depth 1 m of each pixel of the left image, (H, W, 3) float32."""
        u, v = np.meshgrid(np.arange(self.width), np.arange(self.height))
        rays = np.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy, np.ones_like(u)], axis=-1)
        return rays.astype(np.float32)

    def points(self, disparity: np.ndarray) -> np.ndarray:
        """Return the point of each pixel, (H, W, 3) float32 [m], from its disparity (H, W) [px]; NaN where unknown."""
        return self.rays * self.depth(disparity)[..., None]

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixel (..., 2) and the disparity (...) [px] of points (..., 3) [m]; NaN behind the camera."""
        z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
        u, v = self.fx * points[..., 0] / z + self.cx, self.fy * points[..., 1] / z + self.cy
        return np.stack([u, v], axis=-1), self.disparity(points[..., 2])

    def scaled(self, width: int, height: int) -> 'StereoCamera':
        """Return the camera of the same view whose images are resized to width x height [px]."""
        x, y = width / self.width, height / self.height
        # The centre of the first pixel is at 0, so its outer corner is at -0.5.
        return StereoCamera(
            width, height, self.fx * x, self.fy * y, (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5,
            self.baseline, None if self.right_cx is None else (self.right_cx + 0.5) * x - 0.5,
        )  # fmt: skip

    def every_nth(self, step: int) -> 'StereoCamera':
        """Return the camera of every step-th pixel of every step-th row: its pixels are `step` times as long."""
        if step == 1:
            return self
        return StereoCamera(
            -(-self.width // step), -(-self.height // step), self.fx / step, self.fy / step, self.cx / step,
            self.cy / step, self.baseline, None if self.right_cx is None else self.right_cx / step,
        )  # fmt: skip


@dataclass(frozen=True)
class StereoFrame:
    """What a stereo camera saw at one time.

    left, right: rectified images, (H, W, 3) uint8 RGB or (H, W) uint8 grey, of the camera's size.
    stamp_ns: ROS time [ns]. frame_id: optical frame of the left camera. bits: of the camera's values that the 8 bits
    are the highest of.
    """

    left: np.ndarray
    right: np.ndarray
    camera: StereoCamera
    stamp_ns: int = 0
    frame_id: str = ''
    bits: int = 8

    def __post_init__(self):
        size = (self.camera.height, self.camera.width)
        for name in ('left', 'right'):
            image = getattr(self, name)
            if image.dtype != np.uint8 or image.shape not in (size, (*size, 3)):
                raise ValueError(
                    f'{name} must be {size} or {(*size, 3)} uint8 as its camera, got {image.shape} {image.dtype}'
                )


@dataclass(frozen=True)
class StereoFlow:
    """Scene flow of the pixels of the reference frame, as a stereo estimator measures it; ego motion included.

    disparity: (H, W) float32 [px] in the reference frame. other_disparity: (H, W) float32 [px], disparity that the same
    point of the scene has in the other frame. flow: (H, W, 2) float32 [px], optical flow (u, v) from the reference to
    the other frame. All are NaN where not known.
    disparity_sigma, other_disparity_sigma, flow_sigma: (H, W) float32 [px], standard deviations; of flow, per axis.
    is_measured: (H, W) bool, False where the values are filled in from the surroundings, as boards want them.
    other_T_reference: (4, 4) float64, ego motion between the optical frames that was used or found; None: neither.
    is_disparity_measured: (H, W) bool, where at least `disparity` is measured; None: as is_measured.
    motion_sigma: (H, W) float32 [m], standard deviation of the length of the point's motion relative to the static
    scene, where the estimator knows it better than the errors of the single pixel say: one motion of many pixels. NaN
    elsewhere; None: nowhere.
    full_disparity: of a flow of every n-th pixel, returns the measured disparity of all pixels, (H, W) float32 [px].
    """

    disparity: np.ndarray
    other_disparity: np.ndarray
    flow: np.ndarray
    disparity_sigma: np.ndarray
    other_disparity_sigma: np.ndarray
    flow_sigma: np.ndarray
    is_measured: np.ndarray
    other_T_reference: np.ndarray | None = None
    is_disparity_measured: np.ndarray | None = None
    motion_sigma: np.ndarray | None = None
    full_disparity: Callable[[], np.ndarray] | None = None


class StereoEstimator(Protocol):
    """Estimates scene flow from two stereo frames.

    An estimator may also have `estimate_every_nth`, with the same arguments and `step`: the flow of every step-th pixel
    of every step-th row, in the pixels of `StereoCamera.every_nth`.
    """

    name: str

    def estimate(self, reference: StereoFrame, other: StereoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of the pixels of `reference` to the time of `other`, which may be earlier.

        other_T_reference: (4, 4), ego motion between the optical frames where it is known; else it is estimated.
        """
