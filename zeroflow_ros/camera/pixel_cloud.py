# SPDX-License-Identifier: Apache-2.0
"""The pixels of a camera as an organised cloud with velocities: x y z rgb vx vy vz speed speed_sigma flow_valid."""

import array

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.lidar.cloud_layout import FLOAT32, UINT8
from zeroflow_ros.lidar.dynamic_points import moving_rows
from zeroflow_ros.lidar.point_cloud import FlowCloud

FIELDS = ('x', 'y', 'z', 'rgb', 'vx', 'vy', 'vz', 'speed', 'speed_sigma', 'flow_valid')
_NUM_FLOATS = len(FIELDS) - 1
_STEP = 4 * len(FIELDS)  # bytes: flow_valid is one byte and three of padding
_STATIC_FIELDS = FIELDS[:4]


def pixel_cloud(
    points: np.ndarray, image: np.ndarray, velocity: np.ndarray, speed_sigma: np.ndarray, flow_valid: np.ndarray, *,
    reuse: array.array | None = None,
) -> FlowCloud:  # fmt: skip
    """Return every pixel of an image as a row of an organised cloud.

    points: (H, W, 3) float32 [m]. image: (H, W, 3) uint8 RGB or (H, W) grey. velocity: (H, W, 3) float32 [m/s].
    speed_sigma: (H, W) float32 [m/s], standard deviation of the speed. flow_valid: (H, W) uint8. What is not known is
    NaN. rgb is packed as PCL and RViz read it. reuse: data of an earlier cloud that is no longer needed; overwritten
    if its length matches.
    """
    height, width = points.shape[:2]
    num_bytes = height * width * _STEP
    data = reuse if reuse is not None and len(reuse) == num_bytes else array.array('B', bytes(num_bytes))
    rows = np.frombuffer(data, np.float32).reshape(height, width, len(FIELDS))
    words = rows.view(np.uint32)
    if numba_support.numba_kernels is not None:
        channels = image[..., None] if image.ndim == 2 else image
        maps = (points, channels, velocity, speed_sigma, flow_valid)
        numba_support.numba_kernels.pixel_cloud(*map(np.ascontiguousarray, maps), rows, words)
    else:
        rows[..., :3] = points
        words[..., 3] = _packed_rgb(image)
        rows[..., 4:7] = velocity
        with np.errstate(over='ignore', invalid='ignore'):
            rows[..., 7] = np.sqrt(np.einsum('...i,...i->...', velocity, velocity))
        rows[..., 8] = speed_sigma
        words[..., 9] = flow_valid
    return FlowCloud(height, width, _fields(FIELDS), False, _STEP, width * _STEP, data)


def every_nth_pixel(values: np.ndarray, step: int) -> np.ndarray:
    """Return every step-th value of every step-th row of an image (H, W, ...); a view."""
    return values[::step, ::step]


def static_pixels(cloud: FlowCloud, removed: np.ndarray) -> FlowCloud:
    """Return the points of a cloud of `pixel_cloud` that are known, without the given rows, as x y z rgb.

    removed: (K,) row numbers. The result is not organised, and every row has a position.
    """
    rows = np.frombuffer(cloud.data, np.float32).reshape(-1, len(FIELDS))
    keep = np.isfinite(rows[:, 2])
    keep[removed] = False
    kept = np.ascontiguousarray(rows[keep, : len(_STATIC_FIELDS)])
    data = array.array('B', kept.tobytes())
    step = 4 * len(_STATIC_FIELDS)
    return FlowCloud(1, len(kept), _fields(_STATIC_FIELDS), False, step, len(kept) * step, data)


def moving_pixels(velocity: np.ndarray, speed_sigma: np.ndarray, min_speed: float, min_sigmas: float) -> np.ndarray:
    """Return the rows of velocity (N, 3) [m/s] that move: fast enough, and surely so.

    speed_sigma: (N,) [m/s]. min_speed: [m/s]. min_sigmas: smallest speed in standard deviations.
    """
    rows = moving_rows(velocity, min_speed)
    speed = np.sqrt(np.einsum('ij,ij->i', velocity[rows], velocity[rows]))
    return rows[speed >= min_sigmas * speed_sigma[rows]]


def _packed_rgb(image: np.ndarray) -> np.ndarray:
    """Return colours as 0x00RRGGBB, (H, W) uint32."""
    if image.ndim == 2:
        return image * np.uint32(0x010101)
    image = image.astype(np.uint32)
    return image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]


def unpacked_rgb(rgb: np.ndarray) -> np.ndarray:
    """Return the colours (..., 3) uint8 of a field rgb (...) float32."""
    packed = np.ascontiguousarray(rgb, np.float32).view(np.uint32)
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)


def _fields(names: tuple[str, ...]) -> list:
    return [(name, 4 * k, UINT8 if name == 'flow_valid' else FLOAT32, 1) for k, name in enumerate(names)]
