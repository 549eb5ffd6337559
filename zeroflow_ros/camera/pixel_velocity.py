# SPDX-License-Identifier: Apache-2.0
"""From the scene flow of pixels to points, velocities relative to the world, and the error of the speed."""

from typing import NamedTuple

import numpy as np

from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow

_AT_REST = np.float32(1e-3)  # m: shorter motions have no direction
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
    R, t = ego[:3, :3].astype(np.float32), ego[:3, 3].astype(np.float32)
    fx, fy, cx, cy = (np.float32(value) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
    x = (np.arange(width, dtype=np.float32) - cx) / fx
    y = ((np.arange(height, dtype=np.float32) - cy) / fy)[:, None]
    at_infinity, per_pixel = np.float32(camera.disparity_at_infinity), np.float32(camera.fx * camera.baseline)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        parallax0, parallax1 = flow.disparity - at_infinity, flow.other_disparity - at_infinity
        z0 = per_pixel / np.where(parallax0 > _MIN_PARALLAX, parallax0, np.float32(np.nan))
        z1 = per_pixel / np.where(parallax1 > _MIN_PARALLAX, parallax1, np.float32(np.nan))
        p0 = (x * z0, y * z0, z0)
        p1 = ((x + flow.flow[..., 0] / fx) * z1, (y + flow.flow[..., 1] / fy) * z1, z1)
        # The motion in the axes of the other frame: they turn no length.
        along = [p1[k] - (R[k, 0] * p0[0] + R[k, 1] * p0[1] + R[k, 2] * p0[2] + t[k]) for k in range(3)]
        length = np.sqrt(along[0] ** 2 + along[1] ** 2 + along[2] ** 2)
        speed_sigma = _length_sigma(flow, p0, p1, R, along, length, parallax0, parallax1, fx, fy)
        if flow.motion_sigma is not None:
            speed_sigma = np.where(np.isfinite(flow.motion_sigma), flow.motion_sigma, speed_sigma)
        speed_sigma /= np.float32(abs(dt))
    valid = flow.is_measured & np.isfinite(length) & np.isfinite(speed_sigma)
    has_depth = flow.is_measured if flow.is_disparity_measured is None else flow.is_disparity_measured
    points, velocity = (np.empty((height, width, 3), np.float32) for _ in range(2))
    for k in range(3):
        points[..., k] = np.where(has_depth, p0[k], np.float32(np.nan))
        turned = R[0, k] * along[0] + R[1, k] * along[1] + R[2, k] * along[2]
        velocity[..., k] = np.where(valid, turned / np.float32(dt), np.float32(np.nan))
    return PixelVelocity(points, velocity, np.where(valid, speed_sigma, np.float32(np.nan)))


def is_moving(speed: np.ndarray, speed_sigma: np.ndarray, *, min_speed: float, sigmas: float = 2.0) -> np.ndarray:
    """Return what moves: speed above min_speed [m/s], and above so many standard deviations; False for NaN.

    What is uncertain is not called moving.
    """
    with np.errstate(invalid='ignore'):
        return (speed >= min_speed) & (speed > sigmas * speed_sigma)


def _length_sigma(flow, p0, p1, R, along, length, parallax0, parallax1, fx, fy) -> np.ndarray:
    """Return the standard deviation of the length of the motion (H, W) [m]."""
    rests = length < _AT_REST
    safe = np.where(rests, np.float32(1), length)
    range1 = np.sqrt(p1[0] ** 2 + p1[1] ** 2 + p1[2] ** 2)
    n = [np.where(rests, p1[k] / range1, along[k] / safe) for k in range(3)]
    by_flow = (n[0] * p1[2] / fx) ** 2 + (n[1] * p1[2] / fy) ** 2
    by_other = (n[0] * p1[0] + n[1] * p1[1] + n[2] * p1[2]) / parallax1
    in_reference = [R[0, k] * n[0] + R[1, k] * n[1] + R[2, k] * n[2] for k in range(3)]
    by_reference = (in_reference[0] * p0[0] + in_reference[1] * p0[1] + in_reference[2] * p0[2]) / parallax0
    variance = by_flow * flow.flow_sigma**2
    variance += (by_other * flow.other_disparity_sigma) ** 2
    variance += (by_reference * flow.disparity_sigma) ** 2
    return np.sqrt(variance)
