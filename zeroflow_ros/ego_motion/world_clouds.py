# SPDX-License-Identifier: Apache-2.0
"""Clouds that SLAM has already moved into its fixed frame, as FAST-LIO's cloud_registered: back to the sensor's frame.

The model sees the surroundings of the sensor, so crop and grid must move with it.
"""

from dataclasses import replace

import numpy as np

from zeroflow_ros.ego_motion import tf_poses
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert

FIXED_FRAMES = (*tf_poses.FIXED_FRAMES, 'camera_init')
_OFF_GRID = 51.0  # m: no point of the bundled models' grid
_OFF_ORIGIN = 20.0  # m: the nearest twentieth of the points of a sensor is nearer
REGISTERED_REMEDY = (
    'Clouds of SLAM in a fixed frame need the ego motion from odometry, of the topic whose header.frame_id is '
    "'{frame_id}'; or use the clouds that the driver sends."
)
_FAR = 20.0  # m from the origin: half of that is beyond the blind zone around a sensor
_MAX_TILT = np.radians(10.0)  # of the sensor against the fixed frame; less is a road's slope


class WorldFrame:
    """Decides whether clouds are in the fixed frame of an odometry.

    The names decide: the frame of the clouds is the odometry's header.frame_id and not its child_frame_id. Drivers that
    leave the child frame empty, or write one name everywhere, are judged by where the points lie, once the sensor is
    20 m from the origin.
    """

    def __init__(self):
        self._seen: bool | None = None  # what the points say
        self._frames: tuple[str, str, str] | None = None

    def holds(self, frame_id: str, odometry_frame: str, child_frame: str) -> bool:
        """Return whether clouds with a frame_id are in the fixed frame."""
        if (frame_id, odometry_frame, child_frame) != self._frames:
            self._frames, self._seen = (frame_id, odometry_frame, child_frame), None
        if not frame_id or frame_id != odometry_frame:
            return False
        if child_frame not in ('', frame_id):
            return True
        return (child_frame == '') if self._seen is None else self._seen

    def is_uncertain(self) -> bool:
        """Return whether the names alone do not decide, and the points have not yet."""
        frame_id, odometry_frame, child_frame = self._frames or ('', '', '')
        return bool(frame_id) and frame_id == odometry_frame and child_frame in ('', frame_id) and self._seen is None

    def look_at(self, points: np.ndarray, frame_T_sensor: np.ndarray) -> None:
        """Look where points (N, 3) lie: around the sensor's pose, or around the origin."""
        distance = float(np.linalg.norm(frame_T_sensor[:2, 3]))
        if distance < _FAR:
            return
        some = points[:: 1 + len(points) // 4000, :2]
        with np.errstate(invalid='ignore'):
            near_sensor = np.count_nonzero(np.linalg.norm(some - frame_T_sensor[:2, 3], axis=1) < distance / 2)
            near_origin = np.count_nonzero(np.linalg.norm(some, axis=1) < distance / 2)
        if max(near_sensor, near_origin) >= 20 and not 0.5 < near_sensor / max(near_origin, 1) < 2:
            self._seen = bool(near_sensor > near_origin)


def in_sensor_frame(sweep: Sweep, frame_T_sensor: np.ndarray) -> Sweep:
    """Return a sweep with its points moved from its frame_id into the frame of the sensor at its stamp.

    frame_T_sensor: (4, 4). Such clouds have been deskewed before they were moved, so the times are dropped.
    """
    # In double: far from the origin float32 has steps of millimetres, and of decimetres in UTM.
    points = apply(invert(frame_T_sensor), sweep.points.astype(np.float64)).astype(np.float32)
    return replace(sweep, points=points, times=None, frame_T_sensor=frame_T_sensor)


def far_from_origin(sweep: Sweep) -> str:
    """Return a sentence about clouds in a fixed frame far from its origin, whose sensor is not known; else ''."""
    if sweep.frame_T_sensor is not None or sweep.frame_id.split('/')[-1] not in FIXED_FRAMES:
        return ''
    with np.errstate(over='ignore', invalid='ignore'):
        distance = np.linalg.norm(sweep.points[:: 1 + len(sweep.points) // 2000, :2], axis=1)
    distance = distance[np.isfinite(distance)]
    if not len(distance) or np.quantile(distance, 0.05) < _OFF_ORIGIN or distance.min() > _OFF_GRID:
        return ''  # near, or so far that the sweep counts as empty
    return (
        f"The clouds lie {np.median(distance):.0f} m from the origin of their frame '{sweep.frame_id}', which is fixed "
        'in the world, and the model sees the surroundings of the origin. '
    ) + REGISTERED_REMEDY.format(frame_id=sweep.frame_id)


def measured_points(sweep: Sweep) -> np.ndarray:
    """Return the points of a sweep in its frame_id, (N, 3) float32."""
    return sweep.points if sweep.frame_T_sensor is None else apply(sweep.frame_T_sensor, sweep.points)


def in_cloud_axes(velocity: np.ndarray, sweep: Sweep) -> np.ndarray:
    """Return velocities (N, 3) of a sweep in the axes of its frame_id."""
    if sweep.frame_T_sensor is None:
        return velocity
    rotation = np.eye(4)
    rotation[:3, :3] = sweep.frame_T_sensor[:3, :3]
    return apply(rotation, velocity)


def mount_of(sweep: Sweep, mount: np.ndarray | None) -> np.ndarray | None:
    """Return base_T_sensor, (4, 4), of a sweep: `mount` where it is known, else how the sensor lies in a fixed frame.

    A sensor that is tilted by less than 10 degrees against the fixed frame gets none: that is a road's slope.
    """
    if sweep.frame_T_sensor is None or mount is not None:
        return mount
    up = sweep.frame_T_sensor[2, :3]
    return None if up[2] > np.cos(_MAX_TILT) else _upright(up)


def _upright(up: np.ndarray) -> np.ndarray:
    """Return base_T_sensor for `up` (3,) in the sensor's frame, rounded to 2 degrees so that it stays the same."""
    angles = np.round(np.degrees([np.arctan2(up[1], up[2]), np.arcsin(np.clip(-up[0], -1, 1))]) / 2) * 2
    roll, pitch = np.radians(angles)
    cos, sin = np.cos, np.sin
    base_T_sensor = np.eye(4)
    base_T_sensor[:3, :3] = [
        [cos(pitch), sin(pitch) * sin(roll), sin(pitch) * cos(roll)],
        [0, cos(roll), -sin(roll)],
        [-sin(pitch), cos(pitch) * sin(roll), cos(pitch) * cos(roll)],
    ]
    return base_T_sensor
