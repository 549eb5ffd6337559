# SPDX-License-Identifier: Apache-2.0
"""Range images of the Waymo Open perception data as points in the vehicle frame.

Rows go from the highest beam to the lowest, columns from azimuth pi to -pi, in the axes of the laser turned about z to
those of the vehicle. Cells of the TOP LiDAR have a vehicle pose of their own. Source: the geometry that
waymo-open-dataset documents and computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

TOP = 1  # LaserName
LASERS = {1: 'TOP', 2: 'FRONT', 3: 'SIDE_LEFT', 4: 'SIDE_RIGHT', 5: 'REAR'}
NO_FLOW = -1  # class of points without scene flow label
_FARTHEST = 1e4  # m: no LiDAR sees farther


@dataclass(frozen=True)
class FramePoints:
    """The returns of one frame, in the vehicle frame of its middle.

    points: (N, 3) float32 [m]. is_unlabelled: (N,) bool, in a zone without labels. velocity: (N, 3) float32 [m/s] over
    ground in the axes of the vehicle, and its kind (N,) int8, NO_FLOW where there is none; None without labels.
    """

    points: np.ndarray
    is_unlabelled: np.ndarray
    velocity: np.ndarray | None
    kind: np.ndarray | None


@dataclass(frozen=True)
class LabelBox:
    """A labelled box. vehicle_T_box: (4, 4). half_size: (3,) [m]. kind: Label.Type."""

    vehicle_T_box: np.ndarray
    half_size: np.ndarray
    kind: int


@dataclass(frozen=True)
class LaserMount:
    """A laser on the vehicle. vehicle_T_laser: (4, 4). inclinations: of the beams, lowest first [rad].

    Without listed inclinations, the beams lie evenly between `lowest` and `highest` [rad].
    """

    vehicle_T_laser: np.ndarray
    inclinations: np.ndarray
    lowest: float
    highest: float

    def rows(self, height: int, what: str) -> np.ndarray:
        """Return the inclinations of the rows of an image, highest first, (height,). Raises: DataError."""
        inclinations = self.inclinations
        if not len(inclinations):
            inclinations = self.lowest + (self.highest - self.lowest) * (np.arange(height) + 0.5) / height
        if len(inclinations) != height or not np.isfinite(inclinations).all():
            raise DataError(f'{what}: {height} rows of the range image have {len(inclinations)} beam inclinations.')
        return inclinations[::-1]


def image_points(cells: np.ndarray, mount: LaserMount, cell_poses: np.ndarray | None, world_T_vehicle: np.ndarray,
                 flow: np.ndarray | None, what: str) -> FramePoints:  # fmt: skip
    """Return the returns of one range image.

    cells: (H, W, 4) range [m], intensity, elongation, whether in a zone without labels. cell_poses: (H, W, 6), see
    `_from_cell_frames`; None: all have that of the frame. flow: (H, W, 4) vx, vy, vz [m/s], class; None: no labels.
    Raises: DataError when the shapes do not agree.
    """
    height, width = cells.shape[:2]
    inclinations = mount.rows(height, what)
    is_return = (cells[..., 0] > 0) & (cells[..., 0] < _FARTHEST)  # (H, W); NaN is none
    ranges = np.where(is_return, cells[..., 0], 0).astype(np.float64)
    points = range_image_points(ranges, inclinations, mount.vehicle_T_laser)[is_return]
    if cell_poses is not None:
        if cell_poses.shape[:2] != (height, width):
            raise DataError(f'{what}: {cells.shape[:2]} cells have {cell_poses.shape[:2]} poses.')
        points = _from_cell_frames(points, cell_poses[is_return].astype(np.float64), world_T_vehicle)
    velocity = kind = None
    if flow is not None:
        if flow.shape[:2] != (height, width):
            raise DataError(f'{what}: {cells.shape[:2]} cells have {flow.shape[:2]} scene flow labels.')
        flow = flow[is_return]
        is_label = (np.abs(flow[:, :4]) < 127).all(1)  # m/s and class; NaN is none
        velocity, kind = flow[:, :3].copy(), np.where(is_label, flow[:, 3], NO_FLOW).astype(np.int8)
    points[~(np.abs(points) < _FARTHEST).all(1)] = np.nan  # a cell with a senseless pose
    return FramePoints(points.astype(np.float32), cells[..., 3][is_return] > 0, velocity, kind)


def join_points(parts: Sequence[FramePoints]) -> FramePoints:
    """Return the returns of several images as one; images without labels have points without label."""
    points, is_unlabelled = (np.concatenate([getattr(part, name) for part in parts]) for name in
                             ('points', 'is_unlabelled'))  # fmt: skip
    if all(part.kind is None for part in parts):
        return FramePoints(points, is_unlabelled, None, None)
    velocity, kind = np.zeros_like(points), np.full(len(points), NO_FLOW, np.int8)
    ends = np.cumsum([len(part.points) for part in parts])
    for part, end in zip(parts, ends.tolist(), strict=True):
        if part.kind is not None:
            rows = slice(end - len(part.points), end)
            velocity[rows], kind[rows] = part.velocity, part.kind
    return FramePoints(points, is_unlabelled, velocity, kind)


def label_box(center, size, heading: float, kind: int, what: str) -> LabelBox:
    """Return a box. center, size: x y z, and length, width, height [m]. Raises: DataError when numbers are missing."""
    half_size = np.array(size, np.float64) / 2
    is_near = (np.abs([*center, *half_size]) < _FARTHEST).all() and np.isfinite(heading)  # NaN is not
    if not (is_near and (half_size > 0).all()):
        raise DataError(f'{what} lacks a position or a size.')
    return LabelBox(transforms.yaw_translation(heading, *center), half_size, kind)


def range_image_points(ranges: np.ndarray, inclinations: np.ndarray, vehicle_T_laser: np.ndarray) -> np.ndarray:
    """Return the points (H, W, 3) float64 [m] of a range image, each in the vehicle frame at its own time.

    ranges: (H, W) [m]. inclinations: (H,) [rad] of the rows.
    """
    width = ranges.shape[1]
    turn = np.arctan2(vehicle_T_laser[1, 0], vehicle_T_laser[0, 0])
    azimuth = np.pi * (1 - 2 * (np.arange(width) + 0.5) / width) - turn  # (W,)
    level = np.cos(inclinations)[:, None] * ranges
    in_laser = np.stack(
        [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(inclinations)[:, None] * ranges], axis=-1
    )
    return in_laser @ vehicle_T_laser[:3, :3].T + vehicle_T_laser[:3, 3]


def _from_cell_frames(points: np.ndarray, poses: np.ndarray, world_T_vehicle: np.ndarray) -> np.ndarray:
    """Return points (N, 3), each in the vehicle frame of its own pose (N, 6), in the one of the frame.

    poses: roll, pitch, yaw [rad], x, y, z [m] in the world: turned about x first, then y, then z.
    """
    roll, pitch, yaw = poses[:, :3].T
    x, y, z = points.T
    y, z = np.cos(roll) * y - np.sin(roll) * z, np.sin(roll) * y + np.cos(roll) * z
    x, z = np.cos(pitch) * x + np.sin(pitch) * z, np.cos(pitch) * z - np.sin(pitch) * x
    x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
    return transforms.apply(transforms.invert(world_T_vehicle), np.stack([x, y, z], axis=1) + poses[:, 3:])
