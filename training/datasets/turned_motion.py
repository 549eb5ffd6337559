# SPDX-License-Identifier: Apache-2.0
"""Sensors that are mounted tilted or upside down: their sweeps and motions turned level by the mount."""

from dataclasses import replace

import numpy as np

from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.ego_motion.bag_motion import static_transforms
from zeroflow_ros.errors import DataError, EgoMotionError
from zeroflow_ros.lidar.level import level_rotation
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, from_quaternion, invert

_LEVEL = np.cos(np.radians(1.5))  # a mount tilted by less changes nothing, as on the vehicle


def mount_of(bag: Bag, frame_id: str, base_frame: str, base_T_lidar: str) -> np.ndarray | None:
    """Return base_T_sensor, (4, 4); None where the mount is not known.

    frame_id: of the clouds. base_frame: frame whose z is up, '' for none; /tf_static of the bag says how the sensor is
    mounted on it. base_T_lidar: 'x,y,z,qx,qy,qz,qw', instead of that.
    Raises: DataError when base_T_lidar is not such a pose.
    """
    if base_T_lidar:
        try:
            numbers = [float(number) for number in base_T_lidar.split(',')]
            return from_quaternion(numbers[:3], numbers[3:])
        except (ValueError, EgoMotionError) as error:
            raise DataError(f'base_T_lidar should be x,y,z,qx,qy,qz,qw, got {base_T_lidar!r}.') from error
    frames = base_frame.lstrip('/'), frame_id
    return static_transforms(bag, *frames).lookup(*frames) if base_frame else None


def level_from_mount(base_T_sensor: np.ndarray | None) -> np.ndarray | None:
    """Return level_T_lidar, (4, 4), a rotation; None where the mount is not known, or is level."""
    if base_T_sensor is None or base_T_sensor[2, 2] > _LEVEL:
        return None
    level_T_lidar = np.eye(4)
    level_T_lidar[:3, :3] = level_rotation(base_T_sensor[2, :3])
    return level_T_lidar


class TurnedMotion:
    """A source of ego motion for sweeps that are turned level.

    motion: in the frame of the clouds, see `BagMotion`; it gets the sweeps as they were recorded.
    level_T_lidar: (4, 4), a rotation.
    """

    def __init__(self, motion, level_T_lidar: np.ndarray):
        self._motion, self._level_T_lidar, self._lidar_T_level = motion, level_T_lidar, invert(level_T_lidar)
        motion.set_mount(level_T_lidar)
        self._recorded: tuple[Sweep | None, Sweep | None] = None, None  # the last turned sweep, and as recorded

    def __getattr__(self, name: str):
        return getattr(self._motion, name)

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """See `BagMotion.between`."""
        return self._turned(self._motion.between(self._as_recorded(sweep0), self._as_recorded(sweep1)))

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """See `BagMotion.poses_at_offsets`."""
        sweep, other = self._as_recorded(sweep), self._as_recorded(other)
        return self._turned(self._motion.poses_at_offsets(sweep, other, offsets_ns))

    def _turned(self, poses: np.ndarray) -> np.ndarray:
        return self._level_T_lidar @ poses @ self._lidar_T_level

    def _as_recorded(self, sweep: Sweep) -> Sweep:
        if sweep is not self._recorded[0]:  # the newer sweep of a pair is the older one of the next: the same object
            self._recorded = sweep, replace(sweep, points=apply(self._lidar_T_level, sweep.points))
        return self._recorded[1]
