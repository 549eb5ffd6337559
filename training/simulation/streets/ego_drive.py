# SPDX-License-Identifier: Apache-2.0
"""The drive of the ego vehicle: its lane, speed, turns, and the pitch and roll of its body."""

import numpy as np

from training.simulation.sensors.lidar import Category
from training.simulation.shapes.vehicles import car
from training.simulation.streets.actor_motion import Occupancy, poses_on_path, travelled_distance
from training.simulation.streets.street_layout import StreetLayout
from training.simulation.streets.terrain import S_RANGE, T_LIMIT
from training.simulation.streets.traffic import Actor, along_road, turning_path
from zeroflow_ros import transforms


def make_ego(
    rng: np.random.Generator, layout: StreetLayout, times: np.ndarray, lidar_height: float, occupancy: Occupancy
) -> Actor:
    """Return the vehicle that carries the LiDAR, `lidar_height` [m] above the ground, at `times` (S,) [s].

    Place it before all other objects: it is returned even if its ground is occupied.
    """
    lanes = [t for t, direction in layout.lane_centers() if direction > 0]
    t = float(rng.choice(lanes)) + rng.normal(0, 0.2)
    if layout.name in ('car_park', 'plaza'):
        t = rng.uniform(-0.4, 0.4) * layout.half_width
    path = along_road(t, -60.0, S_RANGE[1])
    slowest, fastest = layout.kind.speed
    skip, speed, acceleration = 60.0, rng.uniform(slowest, min(fastest * 1.05, 20.0)), 0.0
    behaviour = rng.choice(['cruise', 'wait', 'brake', 'accelerate', 'turn'], p=[0.4, 0.2, 0.14, 0.12, 0.14])
    ahead = [(side, s, half) for side, s, half in layout.side_roads if 6 < s < 40]
    if behaviour == 'turn' and ahead:
        side, s, half = ahead[rng.integers(len(ahead))]
        path = turning_path(s, t, rng.uniform(-0.3, 0.3) * half, side * T_LIMIT, inwards=True, s_near=-60.0)
        skip, speed = 60.0 + s - rng.uniform(4, 10), rng.uniform(2, 7)
    elif behaviour == 'wait':
        speed = 0.0
    elif behaviour == 'brake':
        acceleration = -rng.uniform(0.5, 5.0)
    elif behaviour == 'accelerate':
        speed, acceleration = speed * rng.uniform(0, 0.7), rng.uniform(0.5, 2.5)
    distance = travelled_distance(times, speed, acceleration, 22.0)
    poses = poses_on_path(layout.terrain, path, skip + distance, 4.5, pitching=True)
    # The body pitches and rolls on its springs, slowly and a little, and only while it moves.
    sway = rng.normal(0, 0.0035, (2, 1)) * np.sin(distance / rng.uniform(3, 12, (2, 1)) + rng.uniform(0, 6, (2, 1)))
    nod = np.clip(-acceleration * 0.003, -0.01, 0.01) * (behaviour in ('brake', 'accelerate'))
    for pose, roll, pitch in zip(poses, *sway, strict=True):
        pose[:3, :3] = pose[:3, :3] @ transforms.rotation_matrix([roll, pitch + nod, 0])
    # The LiDAR is on a rack 0.35 to 0.9 m above the roof; the middle of the roof is behind that of the body.
    mesh, size = car(rng, height=min(lidar_height - rng.uniform(0.35, 0.9), 1.65))
    mesh = mesh.placed(rng.uniform(0.1, 0.6), 0)
    occupancy.reserve_body(poses, (size[0] + 1.0, size[1] + 0.2))
    return Actor(mesh, Category.EGO, poses)
