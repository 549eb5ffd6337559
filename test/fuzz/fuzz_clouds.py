# SPDX-License-Identifier: Apache-2.0
"""Hostile clouds for decode_cloud and flow_cloud, with and without numba; an intact cloud follows each one."""

import numpy as np
from cloud_messages import ONE, message
from hostile_clouds import clouds
from hostile_examples import Examples

from zeroflow_ros.errors import CloudError
from zeroflow_ros.lidar import point_cloud
from zeroflow_ros.lidar.cloud_layout import check_rows
from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud

_MOST = 2_000_000  # number of velocities when the decoder rejects the cloud


class Clouds:
    """Every other case runs without numba."""

    limit_s, margin_mb = 5.0, 512

    def __init__(self, seed, _folder):
        self._messages = Examples(clouds(), seed)
        self._msg = None
        for point_cloud.numba_kernels in {numba_kernels, None}:  # compile the numba functions
            self._serve(message(ONE))

    def prepare(self, case):
        self._msg = self._messages[case]
        point_cloud.numba_kernels = numba_kernels if case % 2 else None

    def run(self, case):
        try:
            points = self._serve(self._msg)
        except CloudError:
            if (num_points := _num_points(self._msg)) <= _MOST:
                self._refuse(num_points)
            raise
        finally:
            assert self._serve(message(ONE)).tolist() == [[1, 2, 3]]
        return 'served' if len(points) else 'served, empty'

    def _serve(self, msg):
        sweep = decode_cloud(msg)
        finite = np.isfinite(sweep.points)
        assert (finite.all(1) == finite.any(1)).all(), 'a row is partly NaN'
        num_points = len(sweep.points)
        velocity, flow_valid = np.ones((num_points, 3), np.float32), np.ones(num_points, np.uint8)
        cloud = flow_cloud(msg, velocity, flow_valid)
        assert len(cloud.data) == cloud.height * cloud.row_step or not num_points
        return sweep.points

    def _refuse(self, num_points):
        """Check flow_cloud alone: it may accept clouds without coordinates, and may raise only ZeroFlowError."""
        try:
            flow_cloud(self._msg, np.ones((num_points, 3), np.float32), np.ones(num_points, np.uint8))
        except CloudError:
            pass

    def finish(self):
        return {}


def _num_points(msg):
    """Return the rows of a cloud, by its header where that is too broken to be read."""
    try:
        rows = check_rows(msg)
    except CloudError:
        return max(msg.height * msg.width, 0)
    return rows.height * rows.width
