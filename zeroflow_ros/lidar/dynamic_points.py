# SPDX-License-Identifier: Apache-2.0
"""Extract the dynamic points of a flow cloud, or the static points of its input, into a separate cloud."""

import array

import numpy as np

from zeroflow_ros.lidar.cloud_layout import check_rows, read_fields
from zeroflow_ros.lidar.point_cloud import FlowCloud, decode_cloud

DYNAMIC_MIN_SPEED = 0.4  # m/s: slowest point that counts as moving
_CELL = 0.25  # m: of the margin around what moves, which reaches one cell further
_MIN_MOVING = 3  # points that move in and around a cell; fewer are single false ones
CLUSTER_FIELD = 'cluster_id'
_INT32 = 5  # of sensor_msgs/PointField


def moving_rows(velocity: np.ndarray, min_speed: float) -> np.ndarray:
    """Return the rows of velocity (N, 3) [m/s] with a speed of at least min_speed [m/s]; NaN rows are left out."""
    with np.errstate(over='ignore', invalid='ignore'):
        speed_squared = np.einsum('ij,ij->i', velocity, velocity)
        return np.flatnonzero((speed_squared >= min_speed**2) & (speed_squared < np.inf))


def dynamic_cloud(cloud: FlowCloud, rows: np.ndarray, cluster_id: np.ndarray | None = None) -> FlowCloud:
    """Return the given rows of a flow cloud, in that order, with all fields, as an unorganised cloud.

    rows: (K,) row numbers. cluster_id: (K,) int32, appended as the last field; it replaces an input field of
    that name. None: no such field.
    """
    num_points, step_in = cloud.height * cloud.width, cloud.point_step
    step = step_in + (4 if cluster_id is not None else 0)
    fields = list(cloud.fields)
    # Rows are copied as one void item each, as in flow_cloud.
    rows_in = np.ndarray(num_points, f'V{step_in}', buffer=cloud.data)
    data = array.array('B', bytes(len(rows) * step))
    np.ndarray(len(rows), f'V{step_in}', buffer=data, strides=step)[...] = rows_in[rows]
    if cluster_id is not None:
        fields = [field for field in fields if field[0] != CLUSTER_FIELD] + [(CLUSTER_FIELD, step_in, _INT32, 1)]
    if cluster_id is not None and len(rows):
        order = '>' if cloud.is_bigendian else '<'
        np.ndarray(len(rows), f'{order}i4', buffer=data, offset=step_in, strides=step)[...] = cluster_id
    return FlowCloud(1, len(rows), fields, cloud.is_bigendian, step, len(rows) * step, data)


def not_static_rows(msg, velocity: np.ndarray, min_speed: float, own_rows: np.ndarray) -> np.ndarray:
    """Return the rows that `static_cloud` leaves out: what moves, what lies beside it, and the own vehicle.

    The edges of a moving object often have no velocity, or a low one, and would leave a trace in a map. So the points
    within 0.25 m of points that move are left out, too, up to 0.5 m; the ground below a car is among them.
    velocity: (N, 3) float32 [m/s] of the rows of msg. own_rows: (K,).
    """
    moving = moving_rows(velocity, min_speed)
    if not len(moving):
        return own_rows
    points = decode_cloud(msg).points
    low, high = points[moving].min(axis=0) - 2 * _CELL, points[moving].max(axis=0) + 2 * _CELL
    with np.errstate(invalid='ignore'):
        near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
    size = ((high - low) / _CELL).astype(np.int64) + 1
    cells = (((points[near] - low) / _CELL).astype(np.int64) * (size[1] * size[2], size[2], 1)).sum(axis=1)
    of_moving = (((points[moving] - low) / _CELL).astype(np.int64) * (size[1] * size[2], size[2], 1)).sum(axis=1)
    occupied, counts = np.unique(of_moving, return_counts=True)
    steps = np.array(list(np.ndindex(3, 3, 3))) - 1
    around, place = np.unique(
        (occupied[:, None] + steps @ (size[1] * size[2], size[2], 1)).ravel(), return_inverse=True
    )
    beside = around[np.bincount(place.ravel(), np.repeat(counts, len(steps))) >= _MIN_MOVING]
    return np.concatenate([moving, near[np.isin(cells, beside)], own_rows])


def static_cloud(msg, removed: np.ndarray) -> FlowCloud:
    """Return a PointCloud2 without the given rows, as an unorganised cloud; all else stays byte for byte.

    Fields, point_step and the order of the rows are those of msg, so that SLAM reads it as it reads the input. Rows
    without a velocity stay unless they are among those removed: nothing says that they move.
    removed: (K,) row numbers.
    Raises: CloudError when header and data contradict each other.
    """
    rows = check_rows(msg)
    num_points, step = rows.height * rows.width, rows.point_step
    keep = np.ones(num_points, bool)
    keep[removed] = False
    width = int(np.count_nonzero(keep))
    data = array.array('B', bytes(width * step))
    if width:
        np.ndarray(width, f'V{step}', buffer=data)[...] = rows.view(f'V{step}', 0).reshape(-1)[keep]
    return FlowCloud(1, width, list(read_fields(msg)), rows.is_bigendian, step, width * step, data)
