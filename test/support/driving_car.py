# SPDX-License-Identifier: Apache-2.0
"""The flow cloud of a street with a car that drives."""

import numpy as np
from flow_node import cloud

from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.ros.messages import flow_message

S = 1_000_000_000
DT_NS = S // 10
EGO_SPEED, CAR_SPEED = 5.0, 8.0  # m/s, both along x of the world


def car(k: int, *, stamp_ns=None, frame_id='lidar', with_ground=True, ego_speed=EGO_SPEED):
    """Return the flow cloud of a street with a car in its k-th sweep, from a vehicle that follows it or stands."""
    rng = np.random.default_rng(k)
    body = rng.uniform([10, -1, -1.2], [14, 1, 0.2], (400, 3)) + [(CAR_SPEED - ego_speed) * 0.1 * k, 0, 0]
    ground = np.c_[rng.uniform(-30, 30, (3000 if with_ground else 0, 2)), np.full(3000 if with_ground else 0, -1.8)]
    points = np.concatenate([body, ground]).astype(np.float32)
    velocity = np.zeros_like(points)
    velocity[:400, 0] = CAR_SPEED
    msg = cloud(points, S + k * DT_NS if stamp_ns is None else stamp_ns, frame_id=frame_id)
    return flow_message(msg, flow_cloud(msg, velocity, np.full(len(points), 3, np.uint8)))
