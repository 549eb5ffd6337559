# SPDX-License-Identifier: Apache-2.0
"""Sweeps of spinning LiDARs in rooms and streets made of boxes, by ray casting."""

import numpy as np

from zeroflow_ros.transforms import yaw_translation

SENSORS = {  # beam elevations [deg], columns of a revolution
    8: (np.linspace(-10.5, 10.5, 8), 1800),
    16: (np.linspace(-15, 15, 16), 1800),
    32: (np.linspace(-25, 15, 32), 1800),
    64: (np.linspace(-22, 22, 64), 1024),
}
_FAR = 100.0  # m


def room(length, width, height=2.6, furniture=()):
    """Return the hull of a room as (low, high) of its inside, centred, with boxes on its floor.

    furniture: (x, y, length, width, height) of each box, centre and size [m].
    """
    hull = (np.array([-length / 2, -width / 2, 0]), np.array([length / 2, width / 2, height]))
    boxes = [
        (np.array([x - dx / 2, y - dy / 2, 0]), np.array([x + dx / 2, y + dy / 2, dz]))
        for x, y, dx, dy, dz in furniture
    ]
    return hull, boxes


OFFICE = ((1.2, 1.4, 0.8, 0.6, 1.1), (-1.5, -1.2, 0.6, 0.9, 0.75), (-0.8, 1.7, 1.0, 0.35, 1.9))
PLACES = {
    'bare room of 4 x 5 m': room(5, 4),
    'office of 4 x 5 m': room(5, 4, furniture=OFFICE),
    'hall of 15 x 10 m': room(15, 10, 4, [(4, 3, 1.5, 0.8, 1), (-5, -3, 2, 0.6, 2), (1, -4, 0.5, 0.5, 4)]),
    'closed corridor of 20 x 6 m': room(20, 6),
    'endless corridor': room(1000, 3),
    'endless narrow corridor': room(1000, 2),
    'warehouse': room(60, 40, 9, [(x, y, 12, 1.2, 6) for x in (-20, -4, 12) for y in (-12, -6, 6, 12)]),
    'street': room(
        2000, 400, 100,
        [(x, s * (13 + 1.5 * (k % 3)), 9.5, 8, 9) for k, x in enumerate(range(-90, 91, 10)) for s in (-1, 1)]
        + [(x, y, 4.2, 1.8, 1.5) for x, y in [(-30, 6), (-12, -6), (8, 6), (20, -6), (33, 6), (-22, -6)]]
        + [(x, s * 7.5, 0.3, 0.3, 6) for x in range(-60, 61, 15) for s in (-1, 1)],
    ),
}  # fmt: skip


def sweep(place, world_T_sensor, num_beams=16, seed=0, noise=0.02):
    """Return the points (N, 3) float32 of one revolution in the sensor's frame; no return beyond 100 m.

    noise: standard deviation of the range [m].
    """
    elevations, columns = SENSORS[num_beams]
    azimuth = np.arange(columns) * 2 * np.pi / columns
    elevation, azimuth = (grid.ravel() for grid in np.meshgrid(np.radians(elevations), azimuth, indexing='ij'))
    rays = np.c_[np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    origin, directions = world_T_sensor[:3, 3], rays @ world_T_sensor[:3, :3].T
    (low, high), boxes = place
    with np.errstate(divide='ignore', invalid='ignore'):
        reach = np.nanmin(np.maximum((low - origin) / directions, (high - origin) / directions), axis=1)
        for low, high in boxes:
            ends = np.sort(np.stack([(low - origin) / directions, (high - origin) / directions]), axis=0)
            near, far = ends[0].max(axis=1), ends[1].min(axis=1)
            reach = np.where((near < far) & (near > 0), np.minimum(reach, near), reach)
    reach = reach + np.random.default_rng(seed).normal(0, noise, len(reach))
    return (rays * reach[:, None])[(reach < _FAR) & (reach > 0.2)].astype(np.float32)


def drive(step, count, height=0.6):
    """Return world_T_sensor of `count` sweeps, each one `step` (4, 4) after the one before."""
    poses = [yaw_translation(0.1, 0.2, -0.1, height)]
    while len(poses) < count:
        poses.append(poses[-1] @ step)
    return poses
