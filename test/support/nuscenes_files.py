# SPDX-License-Identifier: Apache-2.0
"""A small nuScenes in the official layout, written by an independent writer."""

import json

import numpy as np
from drive_world import THE_CAR, THE_PEDESTRIAN, DriveWorld, moved, pose, quaternion_wxyz

START_US = 1_531_883_530_449_377
PERIOD = 0.05  # s
KEYFRAMES = (2, 6, 10)  # numbers of sweeps, out of 13
NUM_SWEEPS = 13
MOUNT_YAW, MOUNT = -np.pi / 2, (0.94, 0.0, 1.84)  # x of the sensor points right
OWN_POINTS = np.array([[1.0, 0.3, 1.6], [3.0, -0.8, 0.9], [-0.5, 0.0, 1.2]])  # on the vehicle, in the ego frame


def stamp_us(k: int) -> int:
    return START_US + round(k * PERIOD * 1e6)


def sensor_points(world: DriveWorld, k: int) -> np.ndarray:
    """Return sweep k, (N, 5) float32 in the sensor's frame: the points of the world, of the vehicle, one no return."""
    in_ego = np.concatenate([world.in_ego(k * PERIOD), OWN_POINTS])
    in_sensor = moved(np.linalg.inv(pose(*MOUNT, MOUNT_YAW)), in_ego)
    in_sensor = np.concatenate([in_sensor, np.zeros((1, 3))])
    return np.c_[in_sensor, np.full(len(in_sensor), 7.0), np.arange(len(in_sensor)) % 32].astype(np.float32)


def write_nuscenes(root, scenes=('scene-0001',), annotated=True) -> DriveWorld:
    """Write all tables and sweeps; every scene is the same drive. The pedestrian is not in the last keyframe."""
    world = DriveWorld()
    tables = {name: [] for name in (
        'sensor', 'calibrated_sensor', 'ego_pose', 'sample', 'sample_data', 'scene', 'log', 'category', 'instance',
        'sample_annotation', 'attribute', 'visibility', 'map',
    )}  # fmt: skip
    tables['sensor'] += [{'token': 's0', 'channel': 'CAM_FRONT', 'modality': 'camera'},
                         {'token': 's1', 'channel': 'LIDAR_TOP', 'modality': 'lidar'}]  # fmt: skip
    tables['log'].append({'token': 'log', 'logfile': 'n0', 'vehicle': 'n0', 'date_captured': '', 'location': 'here'})
    tables['category'] += [{'token': 'c0', 'name': 'vehicle.car', 'description': ''},
                           {'token': 'c1', 'name': 'human.pedestrian.adult', 'description': ''}]  # fmt: skip
    for folder in ('samples', 'sweeps'):
        (root / folder / 'LIDAR_TOP').mkdir(parents=True, exist_ok=True)
    for name in scenes:
        mount = {'translation': list(MOUNT), 'rotation': quaternion_wxyz(MOUNT_YAW), 'camera_intrinsic': []}
        tables['calibrated_sensor'] += [{'token': f'{name}-m0', 'sensor_token': 's0', **mount},
                                        {'token': f'{name}-m1', 'sensor_token': 's1', **mount}]  # fmt: skip
        samples = [f'{name}-sample{k}' for k in KEYFRAMES]
        tables['scene'].append({'token': name, 'name': name, 'description': '', 'log_token': 'log', 'nbr_samples': 3,
                                'first_sample_token': samples[0], 'last_sample_token': samples[-1]})  # fmt: skip
        for k, token in zip(KEYFRAMES, samples, strict=True):
            tables['sample'].append({'token': token, 'timestamp': stamp_us(k), 'scene_token': name,
                                     'prev': '', 'next': ''})  # fmt: skip
        for k in range(NUM_SWEEPS):
            is_key = k in KEYFRAMES
            file = f'{"samples" if is_key else "sweeps"}/LIDAR_TOP/{name}__LIDAR_TOP__{stamp_us(k)}.pcd.bin'
            sensor_points(world, k).tofile(root / file)
            at = world.world_T_ego(k * PERIOD)
            tables['ego_pose'].append({'token': f'{name}-pose{k}', 'timestamp': stamp_us(k),
                                       'rotation': quaternion_wxyz(world.ego_yaw(k * PERIOD)),
                                       'translation': at[:3, 3].tolist()})  # fmt: skip
            after = [token for j, token in zip(KEYFRAMES, samples, strict=True) if j >= k]
            common = {'sample_token': (after or samples[-1:])[0], 'ego_pose_token': f'{name}-pose{k}',
                      'timestamp': stamp_us(k), 'is_key_frame': is_key, 'prev': '', 'next': ''}  # fmt: skip
            camera = {'token': f'{name}-c{k}', 'calibrated_sensor_token': f'{name}-m0', 'fileformat': 'jpg',
                      'filename': f'sweeps/CAM_FRONT/{k}.jpg', 'height': 900, 'width': 1600}  # fmt: skip
            lidar = {'token': f'{name}-l{k}', 'calibrated_sensor_token': f'{name}-m1', 'fileformat': 'pcd',
                     'filename': file, 'height': 0, 'width': 0}  # fmt: skip
            tables['sample_data'] += [common | camera, common | lidar]
        for number, mover in enumerate((THE_CAR, THE_PEDESTRIAN)):
            instance = f'{name}-i{number}'
            tables['instance'].append({'token': instance, 'category_token': f'c{number}', 'nbr_annotations': 3})
            for k, token in zip(KEYFRAMES, samples, strict=True):
                if number == 1 and k == KEYFRAMES[-1]:
                    continue
                length, width, height = mover.size
                tables['sample_annotation'].append({
                    'token': f'{instance}-{k}', 'sample_token': token, 'instance_token': instance,
                    'translation': world.box(mover, k * PERIOD)[:3, 3].tolist(), 'size': [width, length, height],
                    'rotation': quaternion_wxyz(mover.yaw + mover.yaw_rate * k * PERIOD),
                    'attribute_tokens': [], 'visibility_token': '', 'num_lidar_pts': 9, 'prev': '', 'next': '',
                })  # fmt: skip
    if not annotated:
        tables['sample_annotation'] = []
    (root / 'v1.0-mini').mkdir()
    for name, rows in tables.items():
        (root / 'v1.0-mini' / f'{name}.json').write_text(json.dumps(rows, indent=0))
    return world


def edit(root, table: str, change) -> None:
    """Rewrite a table after change(rows), which edits the list of rows in place."""
    path = root / 'v1.0-mini' / f'{table}.json'
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows, indent=0))
