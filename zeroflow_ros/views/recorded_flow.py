# SPDX-License-Identifier: Apache-2.0
"""Statistics and a picture of a recorded flow topic."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.camera.pixel_cloud import moving_pixels, unpacked_rgb
from zeroflow_ros.errors import CloudError, DataError
from zeroflow_ros.lidar.point_cloud import decode_cloud, decode_velocity, read_field
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.views.bev_plot import plot_sweep
from zeroflow_ros.views.camera_plot import plot_camera_frame

RECORDING_STARTED = 'Recording'  # start of the recorder's log line once it has found the node
MOVING = 0.5  # m/s: slower points may be static, with an error of the ego motion
SURE = 3.0  # standard deviations: what is less sure to move counts as static, where a cloud says how sure it is


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
    for _, sweep, velocity in _read_messages(path):
        yield sweep.stamp_ns, sweep.points, velocity


def _read_messages(path: str | Path) -> Iterator[tuple[object, Sweep, np.ndarray]]:
    with Bag(path) as bag:
        for recorded in bag.messages([bag.point_cloud_topic()]):
            message = decode_message(recorded.cdr, POINT_CLOUD)
            yield message, decode_cloud(message), read_velocity(message)


def count_moving(path: str | Path) -> list[int]:
    """Return the number of points faster than MOVING in each sweep; of cameras, those that surely are."""
    return [len(moving_pixels(v, _sigma(message), MOVING, SURE)) for message, _, v in _read_messages(path)]


def _sigma(message) -> np.ndarray:
    """Return the standard deviation of the speed of each row, (N,) [m/s]: 0 where the cloud has none."""
    if 'speed_sigma' in [field.name for field in message.fields]:
        return read_field(message, 'speed_sigma')
    return np.zeros(message.height * message.width, np.float32)


def count_valid(path: str | Path) -> tuple[int, int]:
    """Return the number of points with a return, and of those with a velocity."""
    num_points = num_valid = 0
    for _, points, velocity in read_flow(path):
        num_points += int(np.count_nonzero(np.isfinite(points).all(axis=1)))
        num_valid += int(np.count_nonzero(np.isfinite(velocity).all(axis=1)))
    return num_points, num_valid


def draw_busy_sweep(path: str | Path, num_moving: list[int], picture: str | Path, title: str) -> None:
    """Draw the sweep at the upper quartile of moving points."""
    chosen = _busy(num_moving)
    for index, (_, points, velocity) in enumerate(read_flow(path)):
        if index == chosen:
            plot_sweep(points, velocity, picture, title=title, min_speed=MOVING)
            return


def draw_busy_frame(path: str | Path, num_moving: list[int], picture: str | Path, title: str) -> None:
    """Draw the stereo frame at the upper quartile of moving points, with its image, depth and motion.

    The clouds must be in an optical frame.
    """
    chosen = _busy(num_moving)
    for index, (message, sweep, velocity) in enumerate(_read_messages(path)):
        if index == chosen:
            shape = message.height, message.width
            plot_camera_frame(
                unpacked_rgb(read_field(message, 'rgb')).reshape(*shape, 3), sweep.points.reshape(*shape, 3),
                velocity.reshape(*shape, 3), _sigma(message).reshape(shape), picture, title=title, min_speed=MOVING,
                min_sigmas=SURE,
            )  # fmt: skip
            return


def _busy(num_moving: list[int]) -> int:
    """Return the number of the sweep at the upper quartile; the one with the most moving points may be wrong."""
    return int(np.argsort(num_moving, kind='stable')[int(0.75 * (len(num_moving) - 1))])
