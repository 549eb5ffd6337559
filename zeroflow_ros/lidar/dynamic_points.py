# SPDX-License-Identifier: Apache-2.0
"""Extract the dynamic points of a flow cloud, or the static points of its input, into a separate cloud."""

import array

import numpy as np

from zeroflow_ros.lidar.cloud_layout import check_rows, read_fields
from zeroflow_ros.lidar.point_cloud import FlowCloud

DYNAMIC_MIN_SPEED = 0.4  # m/s: slowest point that counts as moving
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
