# SPDX-License-Identifier: Apache-2.0
"""Motion of actors: smooth paths over the terrain, distances travelled along them, and the ground that is occupied."""

import numpy as np

from training.simulation.streets.terrain import Terrain

_STEP = 0.25  # spacing of path points [m]


def rounded_path(waypoints, radius: float) -> np.ndarray:
    """Return a dense path (P, 2) along waypoints (K, 2), road coordinates, with corners rounded over `radius` [m]."""
    waypoints = np.asarray(waypoints, np.float64)
    pieces = [waypoints[:1]]
    for before, corner, after in zip(waypoints[:-2], waypoints[1:-1], waypoints[2:], strict=True):
        inward, outward = before - corner, after - corner
        cut = min(radius, 0.45 * np.linalg.norm(inward), 0.45 * np.linalg.norm(outward))
        start = corner + cut * inward / np.linalg.norm(inward)
        end = corner + cut * outward / np.linalg.norm(outward)
        u = np.linspace(0, 1, 9)[:, None]
        pieces.append((1 - u) ** 2 * start + 2 * u * (1 - u) * corner + u**2 * end)
    pieces.append(waypoints[-1:])
    return resample(np.concatenate(pieces))


def resample(path) -> np.ndarray:
    """Return the polyline (P, 2) with a point about every 0.25 m."""
    path = np.asarray(path, np.float64)
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1)))
    at = np.linspace(0, length[-1], max(2, int(length[-1] / _STEP) + 1))
    return np.column_stack([np.interp(at, length, path[:, k]) for k in (0, 1)])


def travelled_distance(
    times: np.ndarray, speed: float, acceleration: float = 0.0, top_speed: float = 30.0
) -> np.ndarray:
    """Return the distance [m] at `times` (S,) [s]: constant acceleration, never backwards, at most `top_speed`."""
    if speed == 0 and acceleration <= 0:
        return np.zeros(len(times))
    fine = np.linspace(times[0], times[-1], 20 * len(times))
    velocity = np.clip(speed + acceleration * (fine - times[0]), 0, max(top_speed, speed))
    distance = np.append(0, np.cumsum((velocity[1:] + velocity[:-1]) / 2 * np.diff(fine)))
    return np.interp(times, fine, distance)


def poses_on_path(
    terrain: Terrain, path: np.ndarray, distance: np.ndarray, length: float, *, pitching: bool
) -> np.ndarray:
    """Return odom_T_body (S, 4, 4) of a body of `length` [m] at `distance` (S,) [m] along a path (P, 2).

    The origin of the body is on the ground below its middle; `pitching` bodies follow the slope as on two axles.
    Before and after the path the body moves along a straight line.
    """
    path_xy = terrain.to_odom(path[:, 0], path[:, 1])
    along = np.append(0, np.cumsum(np.linalg.norm(np.diff(path_xy, axis=0), axis=1)))

    def at(where):
        road = np.column_stack([np.interp(where, along, path[:, k]) for k in (0, 1)])
        over = np.clip(where - along[-1], 0, None)[:, None] + np.clip(where, None, 0)[:, None]
        end = path[-1] - path[-2]
        return road + over * end / max(np.linalg.norm(end), 1e-9)

    reach = 0.3 * length
    nose, tail, middle = at(distance + reach), at(distance - reach), at(distance)
    nose_xy, tail_xy = terrain.to_odom(nose[:, 0], nose[:, 1]), terrain.to_odom(tail[:, 0], tail[:, 1])
    nose_z, tail_z = terrain.height(nose[:, 0], nose[:, 1]), terrain.height(tail[:, 0], tail[:, 1])
    forward = np.column_stack([nose_xy - tail_xy, (nose_z - tail_z) * pitching])
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    left = np.cross([0.0, 0.0, 1.0], forward)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(distance), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = forward, left, np.cross(forward, left)
    poses[:, :2, 3] = terrain.to_odom(middle[:, 0], middle[:, 1])
    poses[:, 2, 3] = (nose_z + tail_z) / 2
    return poses


def static_pose(terrain: Terrain, s: float, t: float, yaw: float) -> np.ndarray:
    """Return odom_T_body (4, 4) at road coordinates (s, t), rotated by `yaw` [rad] from the road's direction."""
    heading = float(terrain.heading(s)) + yaw
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
    pose[:2, 3] = terrain.to_odom(s, t)
    pose[2, 3] = terrain.height(s, t)
    return pose


class Occupancy:
    """The ground that objects occupy over time, as discs in odom, so that no two objects overlap."""

    def __init__(self, num_sweeps: int):
        self._static = _Discs(1)
        self._moving = _Discs(num_sweeps)

    def is_free(self, centers: np.ndarray, radius: float, gap: float) -> bool:
        """Return whether discs of `radius` [m] at centers (S or 1, C, 2) are `gap` [m] from all others at all times."""
        return all(discs.are_clear_of(centers, radius + gap) for discs in (self._static, self._moving))

    def reserve(self, centers: np.ndarray, radius: float) -> None:
        """Reserve discs of `radius` [m] at centers (S or 1, C, 2), free or not."""
        (self._static if len(centers) == 1 else self._moving).add(centers, radius)

    def reserve_if_free(self, centers: np.ndarray, radius: float, *, gap: float = 0.15) -> bool:
        """Reserve discs if all of them are free; return whether they were."""
        if not self.is_free(centers, radius, gap):
            return False
        self.reserve(centers, radius)
        return True

    def reserve_body(self, poses: np.ndarray, size, *, gap: float = 0.25) -> bool:
        """Reserve the ground under a body of `size` (length, width, ...) [m] at odom_T_body (S or 1, 4, 4), if free.

        Returns whether it was free.
        """
        length, width = size[:2]
        radius = 0.52 * width
        spread = max(length / 2 - 0.8 * radius, 0.0)
        offset = np.linspace(-spread, spread, max(1, int(np.ceil(length / width * 1.2))))
        centers = poses[:, None, :2, 3] + offset[None, :, None] * poses[:, None, :2, 0]
        return self.reserve_if_free(centers, radius, gap=gap)


class _Discs:
    """Discs that are all static (one centre each) or all moving (one centre per sweep)."""

    def __init__(self, num_times: int):
        self._centers = np.zeros((num_times, 0, 2))
        self._radii = np.zeros(0)
        self._low = self._high = np.zeros((0, 2))  # bounds of each disc's centres over time

    def add(self, centers: np.ndarray, radius: float) -> None:
        self._centers = np.concatenate([self._centers, centers], axis=1)
        self._radii = np.append(self._radii, np.full(centers.shape[1], radius))
        self._low = np.concatenate([self._low, centers.min(axis=0)])
        self._high = np.concatenate([self._high, centers.max(axis=0)])

    def are_clear_of(self, centers: np.ndarray, distance: float) -> bool:
        reach = (self._radii + distance)[:, None]
        low, high = centers.min(axis=(0, 1)), centers.max(axis=(0, 1))
        is_near = ((self._low - reach < high) & (self._high + reach > low)).all(axis=1)
        offset = centers[:, :, None] - self._centers[:, None, is_near]
        return not (np.einsum('scki,scki->sck', offset, offset) < reach[is_near, 0] ** 2).any()
