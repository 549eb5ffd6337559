# SPDX-License-Identifier: Apache-2.0
"""Estimate roll, pitch and height of the sensor over the ground, from its mount and from the sweeps."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from zeroflow_ros.lidar.ground import MAX_HEIGHT, fit_ground_plane, lowest_per_cell

MAX_TILT = np.radians(17.0)  # of the ground that is corrected, against z of the sensor or mount: 15 and a road's slope
# Level sensors of real vehicles see the road tilted by up to 1.1 degrees (slopes, springs): less changes nothing.
_DEAD_BAND = np.radians(1.5)
_NEAR, _FAR = 2.5, 25.0  # m: beyond the vehicle's own returns, and near enough to fit one plane
_MAX_POINTS = 6_000  # used; 12 in each of the 500 cells
_MAX_ABOVE = 0.5  # m: a ground farther above the frame's origin is no ground below a sensor
_NUM_SAMPLES = 256  # planes through three points; 30 % of the cells on the ground make 7 good ones
_ON, _BELOW = 0.25, 0.4  # m: cells that support a plane, and cells that no ground has below it
_MIN_SCORE = 20  # cells, 80 m^2
_SEARCHED = 3  # times the memory: sweeps that are all looked at after the start, 3 s
_SEARCH_TILT = np.radians(25.0)  # a plane beyond MAX_TILT is found, to be reported
_MAX_LOWEST = 3.5  # m, of a sensor on a vehicle
_LEVEL_SURFACE = np.radians(5.0)  # tilt of a lowest surface that stands for a removed ground
_LAYER, _MIN_LAYER_SHARE = 0.15, 0.35  # m; share of the points in ground cells that lie on the ground
_RING_SLOPE, _RING_NOISE = 0.005, 0.05  # half a level beam: 0.3 degrees and range noise [m]
_SECTORS, _RANGES, _MIN_RANGES, _SURFACE_SHARE = 90, 8, 3, 0.5  # a surface is seen at several ranges in one direction


@dataclass(frozen=True, eq=False)
class Level:
    """How the frame of the points lies over the ground.

    up: (3,) float64, unit vector that points up, in the frame of the points.
    height: of the frame's origin above the ground [m]; NaN where it is not known.
    tilt_from: 'ground', 'mount' or 'nothing' (z is taken to be up).
    reason: why the last sweep that was looked at gave no ground; '' where it gave a level. seen_tilt: of its
    ground against the mount, or z [rad], where that is too large to be corrected; else NaN.
    lowest: height of the frame's origin above the lowest surface seen [m], which is no ground (a filter removed that);
    NaN where there is none or the height is known. seen_height: of the frame's origin above the ground that the sweeps
    show [m], also where another height is set; NaN where they show none.
    """

    up: np.ndarray
    height: float
    tilt_from: str
    reason: str = ''
    seen_tilt: float = float('nan')
    lowest: float = float('nan')
    seen_height: float = float('nan')

    @cached_property
    def level_T_sensor(self) -> np.ndarray:
        """(4, 4) float64: z up, x the horizontal part of the sensor's x, z = 0 on the ground below the sensor.

        Where the height is not known, z = 0 is on the lowest surface: a few decimetres off the ground is better than
        metres. Without one, the origin stays where it is.
        """
        level_T_sensor = np.eye(4)
        level_T_sensor[:3, :3] = level_rotation(self.up)
        level_T_sensor[2, 3] = next((z for z in (self.height, self.lowest) if np.isfinite(z)), 0.0)
        return level_T_sensor

    @property
    def roll(self) -> float:
        """Roll of the sensor [rad]: level_R_sensor = R_y(pitch) R_x(roll)."""
        return float(np.arctan2(self.up[1], self.up[2]))

    @property
    def pitch(self) -> float:
        """Pitch of the sensor [rad], positive when its x axis points down."""
        return float(np.arcsin(np.clip(-self.up[0], -1, 1)))


def level_rotation(up: np.ndarray) -> np.ndarray:
    """Return level_R_sensor, (3, 3): it maps `up` to z and keeps the heading of the sensor's x axis.

    up: (3,) unit vector in the sensor's frame. An x axis that points straight up or down has no heading: the level x is
    then where it would point after pitching by 90 degrees.
    """
    forward = np.array([1.0, 0.0, 0.0])
    if abs(up[0]) > 0.999:
        forward = np.array([0.0, 0.0, -np.sign(up[0])])
    x = forward - forward @ up * up
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(up, x), up])


class Ground(NamedTuple):
    """The ground in one sweep.

    up: (3,) unit vector in the frame of the points, None where no ground was found. height: of the origin above the
    ground [m]. reason: why it was not found; else ''. lowest: height above a lowest surface that is no ground [m].
    """

    up: np.ndarray | None = None
    height: float = float('nan')
    reason: str = ''
    lowest: float = float('nan')


def find_ground(points: np.ndarray, up: np.ndarray | None = None) -> Ground:
    """Return the ground of a sweep.

    points: (N, 3) float [m]; NaN rows are ignored. up: (3,) where the mount says up is; None: z. The ground may be
    tilted by 25 degrees against it. Three steps:
    1. Planes through three of the lowest points of 2 m cells. The best has most of these points on it and fewest below.
    2. A robust fit around that plane; see `fit_ground_plane`.
    3. Tests that a surface was found, and that it lies below the sensor.
    """
    sensor_R_start = np.eye(3) if up is None else level_rotation(up).T
    with np.errstate(over='ignore', invalid='ignore'):
        near = np.flatnonzero(np.einsum('ij,ij->i', points, points) < (_FAR * 1.2) ** 2)
    xyz = np.take(points, near[:: 1 + len(near) // (2 * _MAX_POINTS)], axis=0).astype(np.float64)
    xyz = _crop(_without_level_ring(xyz) @ sensor_R_start)
    xyz = xyz[:: 1 + len(xyz) // _MAX_POINTS]
    plane = _best_plane(lowest_per_cell(xyz))
    if plane is None:
        return Ground(reason='too few points between 2.5 and 25 m')
    start_R_level = level_rotation(_normal(plane)).T
    levelled = _crop(xyz @ start_R_level)
    fit = fit_ground_plane(levelled)
    if fit is None:
        return Ground(reason='no plane holds enough of the lowest points')
    normal = _normal(fit)
    height = float(-fit[2] * normal[2])
    if height < -_MAX_ABOVE:
        return Ground(reason=f'the only plane found is {-height:.1f} m above the sensor')
    share = _layer_share(levelled, fit)
    if share < _MIN_LAYER_SHARE:
        level = 0 < height < _MAX_LOWEST and (start_R_level @ normal)[2] > np.cos(_LEVEL_SURFACE)
        reason = f'only {share:.0%} of the points near the lowest ones lie on a plane'
        return Ground(reason=reason, lowest=height if level else float('nan'))
    found = sensor_R_start @ start_R_level @ normal
    return Ground(found / np.linalg.norm(found), height)


def _crop(xyz: np.ndarray) -> np.ndarray:
    """Return the points between _NEAR and _FAR from the origin, horizontally."""
    radius_squared = xyz[:, 0] ** 2 + xyz[:, 1] ** 2
    inside = (radius_squared > _NEAR**2) & (radius_squared < _FAR**2) & (np.abs(xyz[:, 2]) < MAX_HEIGHT)
    return xyz[inside]


def _normal(plane: np.ndarray) -> np.ndarray:
    """Return the upward unit normal of z = plane @ (x, y, 1)."""
    normal = np.array([-plane[0], -plane[1], 1.0])
    return normal / np.linalg.norm(normal)


def _best_plane(lowest: np.ndarray) -> np.ndarray | None:
    """Return z = plane @ (x, y, 1), (3,), with most of the lowest points (C, 3) on it and few below; None: too few."""
    if len(lowest) < _MIN_SCORE:
        return None
    rng = np.random.default_rng(0)  # the same sweep gives the same plane
    corners = lowest[rng.integers(len(lowest), size=(_NUM_SAMPLES, 3))]  # (S, 3, 3)
    matrix = np.concatenate([corners[..., :2], np.ones((_NUM_SAMPLES, 3, 1))], axis=-1)
    usable = np.abs(np.linalg.det(matrix)) > 20.0  # twice the area [m^2]: smaller triangles have noisy slopes
    planes = np.linalg.solve(matrix[usable], corners[usable][..., 2:])[..., 0]  # (S, 3)
    planes = planes[np.hypot(planes[:, 0], planes[:, 1]) < np.tan(_SEARCH_TILT)]
    heights, counts = np.unique(np.round(lowest[:, 2], 1), return_counts=True)
    planes = np.append(planes, [[0.0, 0.0, heights[counts.argmax()]]], axis=0)  # a level one too
    above = lowest[:, 2] - planes[:, :2] @ lowest[:, :2].T - planes[:, 2:]  # (S, C)
    score = np.count_nonzero(np.abs(above) < _ON, axis=1) - np.count_nonzero(above < -_BELOW, axis=1)
    below = np.where(planes[:, 2] < _MAX_ABOVE, score, 0)
    return planes[(below if below.max() >= _MIN_SCORE else score).argmax()]  # one above the sensor is worth a report


def _without_level_ring(xyz: np.ndarray) -> np.ndarray:
    """Return the points (N, 3) without those at the height of the origin, if one level beam drew them.

    A level beam draws the plane z = 0 through the sensor on everything around it, and a sensor of few beams has more
    points there than on the ground. It meets one range in each direction; the ground of a frame whose origin lies on
    the ground is seen at several.
    """
    with np.errstate(invalid='ignore'):
        radius = np.hypot(xyz[:, 0], xyz[:, 1])
        level = np.abs(xyz[:, 2]) < _RING_SLOPE * radius + _RING_NOISE
    rows = np.flatnonzero(level & (radius > _NEAR) & (radius < _FAR))
    if not len(rows):
        return xyz
    sector = ((np.arctan2(xyz[rows, 1], xyz[rows, 0]) / (2 * np.pi) + 0.5) * _SECTORS).astype(np.int64) % _SECTORS
    place = ((radius[rows] - _NEAR) / (_FAR - _NEAR) * _RANGES).astype(np.int64)
    occupied = np.zeros((_SECTORS, _RANGES), bool)
    occupied[sector, place] = True
    ranges = occupied.sum(axis=1)
    if np.count_nonzero(ranges >= _MIN_RANGES) >= _SURFACE_SHARE * np.count_nonzero(ranges):
        return xyz
    return xyz[~level]


def _layer_share(xyz: np.ndarray, plane: np.ndarray) -> float:
    """Return the share of points on a plane, among the points of the 2 m cells whose lowest point is on it.

    Most points of a cell of ground are on the ground. Where the ground was removed, the lowest points of walls and cars
    may lie on a plane too, but the other points of their cells are above it.
    """
    above = xyz[:, 2] - (xyz[:, :2] @ plane[:2] + plane[2])
    low = above < 2.0  # trees hang over ground
    cell = np.floor(xyz[low, 0] / 2.0).astype(np.int64) * 64 + np.floor(xyz[low, 1] / 2.0).astype(np.int64)
    above = above[low]
    _, cell = np.unique(cell, return_inverse=True)
    lowest = np.full(cell.max(initial=-1) + 1, np.inf)
    np.minimum.at(lowest, cell, above)
    in_ground_cell = (np.abs(lowest) < 0.2)[cell]
    on = np.abs(above) < _LAYER
    return np.count_nonzero(in_ground_cell & on) / max(1, np.count_nonzero(in_ground_cell))


class SensorLevel:
    """Level of the frame of the points over the last sweeps.

    mount: (3, 3) or (4, 4), base_R_sensor of a base frame whose z is up; None: not known, then z of the points is up to
    15 degrees off. height: of the frame's origin above the ground [m]; None: estimated.
    memory: sweeps over which the median is taken. It keeps one bad sweep (trucks all around the vehicle) from shifting
    the world of the network.
    """

    def __init__(self, mount: np.ndarray | None = None, *, height: float | None = None, memory: int = 10):
        self.height = height
        self._found: deque[tuple[float, ...]] = deque(maxlen=memory)  # up and height
        self._lowest: deque[float] = deque(maxlen=memory)
        self.mount = None
        self.set_mount(mount)

    def set_mount(self, mount: np.ndarray | None) -> None:
        """Use another mount; the levels of past sweeps are forgotten if it differs."""
        same = mount is self.mount or (
            mount is not None and self.mount is not None and np.array_equal(mount, self.mount)
        )
        self.mount = mount
        self._mount_up = np.array([0.0, 0.0, 1.0]) if mount is None else np.asarray(mount, np.float64)[2, :3]
        if not same or not hasattr(self, '_sweeps'):
            self.reset()

    def reset(self) -> None:
        """Forget the levels of past sweeps."""
        self._found.clear()
        self._lowest.clear()
        self._sweeps = 0
        self._level: Level | None = None

    def update(self, points: np.ndarray) -> Level:
        """Add a sweep (N, 3) [m] and return the level."""
        # The mount is constant: once the memory is full, or nothing was found for a while, one sweep in ten is enough.
        searching = len(self._found) < self._found.maxlen and self._sweeps < _SEARCHED * self._found.maxlen
        if searching or self._sweeps % 10 == 0:
            up, height, reason, lowest = find_ground(points, None if self.mount is None else self._mount_up)
            if np.isfinite(lowest):
                self._lowest.append(lowest)
            seen_tilt = float('nan')
            if up is not None:
                tilt = float(np.arccos(np.clip(up @ self._mount_up, -1, 1)))
                if tilt > MAX_TILT:
                    seen_tilt, reason = tilt, f'the ground is tilted by {np.degrees(tilt):.0f} degrees'
                else:
                    self._found.append((*up, height))
            self._level = self._median(reason, seen_tilt)
        self._sweeps += 1
        return self._level

    def _median(self, reason: str, seen_tilt: float) -> Level:
        told = self.mount is not None
        if not self._found:
            height = float('nan') if self.height is None else self.height
            lowest = np.median(self._lowest) if self._lowest and self.height is None else float('nan')
            return Level(self._mount_up, height, 'mount' if told else 'nothing', reason, seen_tilt, float(lowest))
        *up, height = np.median(self._found, axis=0)
        up = np.array(up) / np.linalg.norm(up)
        seen_height = float(height)
        height = seen_height if self.height is None else self.height
        if up @ self._mount_up > np.cos(_DEAD_BAND):
            tilt_from = 'mount' if told else 'nothing'
            return Level(self._mount_up, height, tilt_from, reason, seen_tilt, seen_height=seen_height)
        return Level(up, height, 'ground', reason, seen_tilt, seen_height=seen_height)


def find_ground_anywhere(points: np.ndarray) -> Ground:
    """Return the ground of a sweep whatever direction is up, to say how a sensor may be mounted; see `find_ground`.

    points: (N, 3) float [m]. Takes 26 times as long as `find_ground`: for a message, not for every sweep. Of several
    planes, as walls are, the ground is the one near the sensor with the most points. The height is negative where the
    ground lies above the origin: most of the other points are then on the far side of it.
    """
    with np.errstate(over='ignore', invalid='ignore'):
        near = points[np.einsum('ij,ij->i', points, points) < (_FAR * 1.2) ** 2]
    near = near[:: 1 + len(near) // (2 * _MAX_POINTS)]
    best, most = Ground(reason='no plane below the sensor is found in any direction'), 0
    directions = np.array([d for d in np.ndindex(3, 3, 3) if d != (1, 1, 1)]) - 1.0
    for up in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        ground = find_ground(near, up)
        if ground.up is None or not 0 < ground.height < _MAX_LOWEST:
            continue
        above = near @ ground.up + ground.height
        count = np.count_nonzero(np.abs(above) < _LAYER)
        if count > most:
            upright = np.count_nonzero(above >= _LAYER) >= np.count_nonzero(above <= -_LAYER)
            best, most = ground if upright else Ground(-ground.up, -ground.height), count
    return best
