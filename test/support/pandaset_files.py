# SPDX-License-Identifier: Apache-2.0
"""A small PandaSet in the official layout, written by an independent writer."""

import json

import numpy as np
from drive_world import CAR, THE_CAR, THE_PEDESTRIAN, WALL, DriveWorld, quaternion_wxyz
from pandas_pickles import write_frame

START = 1_557_539_924.5  # s
PERIOD = 0.1  # s
NUM_SWEEPS = 5
LIDAR_HEIGHT = 1.9  # m
LATE = 0.03  # s: the forward-facing sensor sees moving things later


def stamp(k: int) -> float:
    return START + k * PERIOD


def sensor_of(world: DriveWorld) -> np.ndarray:
    """Return the sensor of each row, (N,)."""
    return (np.arange(len(world.kind)) % 5 == 0).astype(np.int64)


def world_points(world: DriveWorld, k: int) -> np.ndarray:
    """Return sweep k in the world, (N, 3)."""
    late = sensor_of(world) == 1
    return np.where(late[:, None], world.points(k * PERIOD + LATE), world.points(k * PERIOD))


def is_bus(world: DriveWorld, k: int) -> np.ndarray:
    """Return which rows are the part of a wall that is annotated as a parked bus."""
    local = world.points(0.0) - world.points(0.0)[0]
    origin = local - (local[world.kind == WALL].mean(0))
    return (world.kind == WALL) & (np.abs(origin[:, 0]) < 4.5)


def cuboids(world: DriveWorld, k: int) -> dict:
    """Return the columns of the cuboids of sweep k: the car twice, the pedestrian, and a parked bus that jitters."""
    rows = []

    def add(uuid, label, mover, time, sensor, sibling):
        box, (length, width, height) = world.box(mover, time), mover.size
        heading = mover.yaw + mover.yaw_rate * time - np.pi / 2  # 0 along y of the world
        rows.append((uuid, label, heading, False, box[:3, 3], (width, length, height), sensor, sibling))

    for sensor in (0, 1):
        add(f'car{sensor}', 'Car', THE_CAR, k * PERIOD + LATE * sensor, sensor, f'car{1 - sensor}')
    add('ped', 'Pedestrian with Object', THE_PEDESTRIAN, k * PERIOD, -1, '-')
    wall = world.points(0.0)[is_bus(world, k)]
    center = (wall.max(0) + wall.min(0)) / 2 + [0.02 * (k % 2), 0, 0]
    size = np.ptp(wall, axis=0) + [0.2, 0.2, 0.2]
    rows.append(('bus', 'Bus', 0.0, True, center, size, -1, '-'))
    uuid, label, yaw, stationary, center, size, sensor, sibling = zip(*rows, strict=True)
    center, size = np.array(center), np.array(size)
    return {
        'uuid': uuid, 'label': label, 'yaw': np.array(yaw), 'stationary': np.array(stationary),
        'camera_used': np.array([-1] * len(rows)),
        **{f'position.{axis}': center[:, j] for j, axis in enumerate('xyz')},
        **{f'dimensions.{axis}': size[:, j] for j, axis in enumerate('xyz')},
        'attributes.object_motion': ['Moving'] * len(rows), 'cuboids.sibling_id': sibling,
        'cuboids.sensor_id': np.array(sensor),
    }  # fmt: skip


def write_pandaset(root, sequences=('001',), layout='old') -> DriveWorld:
    """Write sequences, all of the same drive."""
    world = DriveWorld()
    for name in sequences:
        lidar, poses = root / name / 'lidar', []
        for k in range(NUM_SWEEPS):
            points, (x, y, _) = world_points(world, k), world.world_T_ego(k * PERIOD)[:3, 3]
            count = len(points)
            write_frame(lidar / f'{k:02d}.pkl.gz', {
                **{axis: points[:, j] for j, axis in enumerate('xyz')}, 'i': np.full(count, 7.0),
                't': stamp(k) + np.linspace(-0.05, 0.04, count), 'd': sensor_of(world),
            }, layout=layout)  # fmt: skip
            write_frame(root / name / 'annotations' / 'cuboids' / f'{k:02d}.pkl.gz', cuboids(world, k), layout=layout)
            w, qx, qy, qz = quaternion_wxyz(world.ego_yaw(k * PERIOD) - np.pi / 2)  # y of the sensor points forward
            poses.append({'position': {'x': float(x), 'y': float(y), 'z': LIDAR_HEIGHT},
                          'heading': {'w': w, 'x': qx, 'y': qy, 'z': qz}})  # fmt: skip
        (lidar / 'poses.json').write_text(json.dumps(poses))
        (lidar / 'timestamps.json').write_text(json.dumps([stamp(k) for k in range(NUM_SWEEPS)]))
    return world


def true_flow(world: DriveWorld, k: int, other: int) -> np.ndarray:
    """Return the true residual flow of sweep k to the time of sweep `other`, (N, 3) [m] in the vehicle's axes."""
    flow = (world_points(world, other) - world_points(world, k)) @ world.world_T_ego(k * PERIOD)[:3, :3]
    return np.where((world.kind >= CAR)[:, None], flow, 0)
