# SPDX-License-Identifier: Apache-2.0
"""A drive through a street of posts and walls: sweeps, poses, and messages of an odometry."""

from types import SimpleNamespace

import numpy as np

from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert, to_quaternion, yaw_translation

S = 1_000_000_000
T0 = 1_700_000_000 * S
DT_NS = S // 10


def street(seed: int = 0, length: float = 120.0) -> np.ndarray:
    """Return points (N, 3) [m] of ground, posts and house corners along x, around a sensor 1.8 m above the ground."""
    rng = np.random.default_rng(seed)
    count = round(1.5 * length)
    posts = np.c_[rng.uniform(-40, length, count), rng.choice([-1, 1], count) * rng.uniform(4, 25, count)]
    posts = np.repeat(posts, 60, axis=0) + rng.normal(0, 0.08, (60 * count, 2))
    posts = np.c_[posts, rng.uniform(-1.8, 2.5, len(posts))]
    corners = np.arange(-40, length, 15.0)
    walls = [
        np.c_[np.full(400, x), rng.uniform(8, 12, 400) * side, rng.uniform(-1.8, 4, 400)]
        for x in corners
        for side in (-1, 1)
    ]
    ground = np.c_[rng.uniform(-40, length, 6000), rng.uniform(-25, 25, 6000), np.full(6000, -1.8)]
    return np.concatenate([posts, *walls, ground])


def traffic(k: int, speed: float, lanes=(-3.5, 3.5, 7.0), count: int = 8) -> np.ndarray:
    """Return points (N, 3) [m] of large vehicles in sweep k that drive along x at a speed [m/s]."""
    rng = np.random.default_rng(7)
    parts = []
    for lane in lanes:
        for x in np.linspace(-30, 30, count):
            box = rng.uniform([0, -1.2, -1.6], [9, 1.2, 1.5], (500, 3))
            side = rng.integers(0, 2, 500)
            box[:, 1] = np.where(side, -1.2, 1.2)
            parts.append(box + [x + speed * 0.1 * k, lane, 0])
    return np.concatenate(parts)


def sweep(k: int, pose: np.ndarray, world: np.ndarray, frame_id: str = 'lidar') -> Sweep:
    """Return sweep k of a sensor at a pose, with its own share of the points and 2 cm of noise."""
    rng = np.random.default_rng(k)
    points = apply(invert(pose), world[rng.random(len(world)) < 0.8])
    return Sweep((points + rng.normal(0, 0.02, points.shape)).astype(np.float32), T0 + k * DT_NS, frame_id)


def poses(num_sweeps: int, speed: float = 6.0, turn: float = 0.05) -> list[np.ndarray]:
    """Return odom_T_lidar of each sweep of a drive at a speed [m/s] that turns [rad/s]."""
    step = yaw_translation(0.1 * turn, 0.1 * speed, 0)
    found = [np.eye(4)]
    while len(found) < num_sweeps:
        found.append(found[-1] @ step)
    return found


def odometry(stamp_ns: int, pose: np.ndarray, twist=(0, 0, 0, 0, 0, 0), *, frame_id='odom', child_frame_id='lidar'):
    """Return a nav_msgs/Odometry by duck type."""

    def vector(values):
        return SimpleNamespace(**dict(zip('xyzw', map(float, values), strict=False)))

    stamp = SimpleNamespace(sec=stamp_ns // S, nanosec=stamp_ns % S)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp, frame_id=frame_id),
        child_frame_id=child_frame_id,
        pose=SimpleNamespace(
            pose=SimpleNamespace(position=vector(pose[:3, 3]), orientation=vector(to_quaternion(pose)))
        ),
        twist=SimpleNamespace(twist=SimpleNamespace(linear=vector(twist[:3]), angular=vector(twist[3:]))),
    )
