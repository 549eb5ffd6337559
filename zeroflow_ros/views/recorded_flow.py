# SPDX-License-Identifier: Apache-2.0
"""Statistics and a picture of a recorded flow topic."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.errors import CloudError, DataError
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity
from zeroflow_ros.views.bev_plot import plot_sweep

RECORDING_STARTED = 'Recording'  # start of the recorder's log line once it has found the node
MOVING = 0.5  # m/s: slower points may be static, with an error of the ego motion


def read_velocity(message) -> np.ndarray:
    """Return vx, vy, vz of every row of a flow cloud, (N, 3) float32 [m/s].

    message: already accepted by `decode_cloud`, which checks that its fields lie inside its points.
    Raises: DataError when the cloud has no velocity.
    """
    try:
        return decode_velocity(message)
    except CloudError as error:
        raise DataError(str(error)) from error


def read_flow(path: str | Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (stamp_ns, points (N, 3) [m], velocity (N, 3) [m/s]) of every flow cloud of a recording."""
    with Bag(path) as bag:
        for recorded in bag.messages([bag.point_cloud_topic()]):
            message = decode_message(recorded.cdr, POINT_CLOUD)
            sweep = decode_cloud(message)
            yield sweep.stamp_ns, sweep.points, read_velocity(message)


def count_moving(path: str | Path) -> list[int]:
    """Return the number of points faster than MOVING in each sweep."""
    with np.errstate(invalid='ignore'):
        return [int((np.einsum('ij,ij->i', v, v) > MOVING**2).sum()) for _, _, v in read_flow(path)]


def count_valid(path: str | Path) -> tuple[int, int]:
    """Return the number of points with a return, and of those with a velocity."""
    num_points = num_valid = 0
    for _, points, velocity in read_flow(path):
        num_points += int(np.count_nonzero(np.isfinite(points).all(axis=1)))
        num_valid += int(np.count_nonzero(np.isfinite(velocity).all(axis=1)))
    return num_points, num_valid


def draw_busy_sweep(path: str | Path, num_moving: list[int], picture: str | Path, title: str) -> None:
    """Draw the sweep at the upper quartile of moving points; the sweep with the most may be a wrong result."""
    chosen = int(np.argsort(num_moving, kind='stable')[int(0.75 * (len(num_moving) - 1))])
    for index, (_, points, velocity) in enumerate(read_flow(path)):
        if index == chosen:
            plot_sweep(points, velocity, picture, title=title, min_speed=MOVING)
            return
