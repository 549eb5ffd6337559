# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the `read_points` of sensor_msgs_py, where ROS is installed as wheels, which lack that package."""

import numpy as np

from zeroflow_ros.lidar.cloud_layout import DATATYPES


def read_points(cloud, field_names) -> np.ndarray:
    """Return the named fields of a little-endian sensor_msgs/PointCloud2 as a structured array, one row per point."""
    fields = {field.name: field for field in cloud.fields}
    layout = {
        'names': list(field_names),
        'formats': [DATATYPES[fields[name].datatype][0] for name in field_names],
        'offsets': [fields[name].offset for name in field_names],
        'itemsize': cloud.point_step,
    }
    return np.frombuffer(cloud.data, np.dtype(layout))
