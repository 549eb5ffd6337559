# SPDX-License-Identifier: Apache-2.0
"""From the scene flow of pixels to points, velocities relative to the world, and the error of the speed."""

from typing import NamedTuple

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

_AT_REST = np.float32(1e-3)  # m: shorter motions have no direction
_BLOCK = 30000  # pixels computed at a time: 120 kB stay in the cache, and are reused by malloc
_MIN_PARALLAX = np.float32(1e-3)  # px


class PixelVelocity(NamedTuple):
    """Points of the pixels of a frame and their velocities, in the left optical frame at the time of that frame.

    points: (H, W, 3) float32 [m], NaN where the depth was not measured. velocity: (H, W, 3) float32 [m/s] relative to
    the world. speed_sigma: (H, W) float32 [m/s], standard deviation of the speed that the errors of disparity and flow
    give. Velocity and speed_sigma are finite together, and NaN where the motion was not measured.
    """

    points: np.ndarray
    velocity: np.ndarray
    speed_sigma: np.ndarray


def pixel_velocity(
    flow: StereoFlow, camera: StereoCamera, dt: float, *, other_T_reference: np.ndarray | None = None
) -> PixelVelocity:
    """Return points and velocities of the pixels of the reference frame.

    dt: time from the reference to the other frame [s]: negative where the other frame is the earlier one, as in the
    node. other_T_reference: (4, 4), ego motion between the optical frames; None: that of the flow, which makes pixels
    of the static scene exactly 0.

    The speed is |m / dt| of the motion m = reference_T_other p1 - p0 of a point. Its variance is that of disparity,
    other disparity and flow times the squared derivative of |m| by each. At rest m has no direction; the variance is
    then that along the ray, which is the largest.

    Raises: ValueError for a dt of 0 or not finite, for a size other than the camera's, and where no ego motion is
    known.
    """
    ego = flow.other_T_reference if other_T_reference is None else other_T_reference
    if ego is None:
        raise ValueError('Velocities relative to the world need other_T_reference: the flow has no ego motion.')
    if not np.isfinite(dt) or dt == 0:
        raise ValueError(f'dt of a stereo pair must be finite and not 0, got {dt}.')
    if flow.disparity.shape != (camera.height, camera.width):
        raise ValueError(
            f'Flow of {flow.disparity.shape} pixels does not fit to a camera of {camera.height} x {camera.width}.'
        )
    height, width = flow.disparity.shape
    has_depth = flow.is_measured if flow.is_disparity_measured is None else flow.is_disparity_measured
    points, velocity = (np.empty((height, width, 3), np.float32) for _ in range(2))
    speed_sigma = np.empty((height, width), np.float32)
    if numba_support.numba_kernels is not None:
        maps = (
            flow.disparity, flow.other_disparity, flow.flow, flow.disparity_sigma, flow.other_disparity_sigma,
            flow.flow_sigma, np.full((height, width), np.nan) if flow.motion_sigma is None else flow.motion_sigma,
        )  # fmt: skip
        numbers = (
            camera.fx,
            camera.fy,
            camera.cx,
            camera.cy,
            camera.disparity_at_infinity,
            camera.fx * camera.baseline,
        )
        numba_support.numba_kernels.pixel_velocity(
            *(np.ascontiguousarray(values, np.float32) for values in maps), np.ascontiguousarray(has_depth, bool),
            np.ascontiguousarray(flow.is_measured, bool), np.array(numbers, np.float32),
            np.ascontiguousarray(ego[:3, :3], np.float32), np.ascontiguousarray(ego[:3, 3], np.float32), np.float32(dt),
            points, velocity, speed_sigma,
        )  # fmt: skip
        return PixelVelocity(points, velocity, speed_sigma)
    step = max(1, _BLOCK // width)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            p0, moved, length, sigma = _motion(flow, camera, ego, rows)
            if flow.motion_sigma is not None:
                np.copyto(sigma, flow.motion_sigma[rows], where=np.isfinite(flow.motion_sigma[rows]))
            valid = flow.is_measured[rows] & np.isfinite(length) & np.isfinite(sigma)
            unknown = _nan_outside(valid)
            sigma *= np.float32(1 / abs(dt))
            np.add(sigma, unknown, out=speed_sigma[rows])
            no_depth = _nan_outside(has_depth[rows])
            for k in range(3):
                np.add(p0[k], no_depth, out=points[rows, :, k])
                turned = moved[0] * np.float32(ego[0, k] / dt)
                turned += moved[1] * np.float32(ego[1, k] / dt)
                turned += moved[2] * np.float32(ego[2, k] / dt)
                np.add(turned, unknown, out=velocity[rows, :, k])
    return PixelVelocity(points, velocity, speed_sigma)


def is_moving(speed: np.ndarray, speed_sigma: np.ndarray, *, min_speed: float, sigmas: float = 2.0) -> np.ndarray:
    """Return what moves: speed above min_speed [m/s], and above so many standard deviations; False for NaN.

    What is uncertain is not called moving.
    """
    with np.errstate(invalid='ignore'):
        return (speed >= min_speed) & (speed > sigmas * speed_sigma)


def _motion(flow: StereoFlow, camera: StereoCamera, ego: np.ndarray, rows: slice):
    """Return points, motions (each 3 x (h, W) [m]), and length of the motion and its standard deviation, of some rows.

    Points are in the reference frame. Motions are in the axes of the other frame: they turn no length.
    """
    R, t = ego[:3, :3].astype(np.float32), ego[:3, 3].astype(np.float32)
    fx, fy, cx, cy = (np.float32(value) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
    at_infinity, per_pixel = np.float32(camera.disparity_at_infinity), np.float32(camera.fx * camera.baseline)
    x = (np.arange(camera.width, dtype=np.float32) - cx) / fx
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) - cy) / fy)[:, None]

    def inverse(disparity):
        parallax = disparity[rows] - at_infinity
        parallax[parallax < _MIN_PARALLAX] = np.nan
        return np.divide(np.float32(1), parallax, out=parallax)

    inverse0, inverse1 = inverse(flow.disparity), inverse(flow.other_disparity)
    z0, z1 = inverse0 * per_pixel, inverse1 * per_pixel
    p0 = (z0 * x, z0 * y, z0)
    x1, y1 = flow.flow[rows, :, 0] * (1 / fx), flow.flow[rows, :, 1] * (1 / fy)
    x1 += x
    y1 += y
    p1 = (np.multiply(x1, z1, out=x1), np.multiply(y1, z1, out=y1), z1)
    turned, moved = [], []
    for k in range(3):
        ray = x * R[k, 0] + (y * R[k, 1] + R[k, 2])
        ray *= z0
        turned.append(ray)
        motion = p1[k] - ray
        motion -= t[k]
        moved.append(motion)
    length = np.sqrt(_dot(moved, moved))
    # A mask as a factor: choosing by it, pixel for pixel, takes ten times as long.
    rests = (length < _AT_REST).astype(np.float32)
    scale = 1 / (length + rests)
    along_ray = rests / np.sqrt(_dot(p1, p1))
    n = []
    for k in range(3):
        direction = moved[k] * scale
        direction *= 1 - rests
        direction += p1[k] * along_ray
        n.append(direction)
    by_flow = n[0] * (z1 * (1 / fx))
    by_flow *= by_flow
    by_v = n[1] * (z1 * (1 / fy))
    by_v *= by_v
    by_flow += by_v
    # By the disparities: a point moves along its ray, by itself over the disparity.
    by_other = _dot(n, p1)
    by_other *= inverse1
    by_reference = _dot(n, turned)
    by_reference *= inverse0
    by_flow *= flow.flow_sigma[rows] ** 2
    by_other *= flow.other_disparity_sigma[rows]
    by_reference *= flow.disparity_sigma[rows]
    by_other *= by_other
    by_reference *= by_reference
    by_flow += by_other
    by_flow += by_reference
    return p0, moved, length, np.sqrt(by_flow, out=by_flow)


def _nan_outside(mask: np.ndarray) -> np.ndarray:
    """Return what added to values leaves those in the mask and makes the others NaN: 0 / 1 and 0 / 0."""
    return np.divide(np.float32(0), mask, dtype=np.float32)


def _dot(a, b) -> np.ndarray:
    total = a[0] * b[0]
    total += a[1] * b[1]
    total += a[2] * b[2]
    return total
