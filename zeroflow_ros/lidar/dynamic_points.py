# SPDX-License-Identifier: Apache-2.0
"""Extract the dynamic points of a flow cloud into a separate cloud."""

import array

import numpy as np

from zeroflow_ros.lidar.point_cloud import FlowCloud

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
