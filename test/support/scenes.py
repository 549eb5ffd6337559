# SPDX-License-Identifier: Apache-2.0
"""Small OpenSceneFlow scenes with known content, in the format of its preprocessing scripts."""

from pathlib import Path

import numpy as np

from training.datasets.total_flow import residual_to_total
from zeroflow_ros import transforms

START = 315_966_265_000_000_000  # ns, as in Argoverse 2
STEP = 100_000_000  # ns
CAR, SIGN = 19, 21  # categories
EGO0_T_EGO1 = transforms.yaw_translation(np.pi / 90, 1.5, 0.1)  # 2 degrees to the left and 1.5 m ahead per sweep


def stamp(k: int) -> str:
    return str(START + k * STEP)


def write_scene(path: Path, *, num_sweeps=3, num_points=400, with_flow=True, ego_T_lidar=None, pose_type=np.float32,
                stamps=None, eval_mask=None) -> np.ndarray:  # fmt: skip
    """Write a scene and return the true residual flow (N, 3) [m] of each of its sweeps, the same for all.

    100 points are a car that moves 0.8 m along x of ego0, 20 a sign; all others are static, the first 50 are ground.
    ego_T_lidar: pose of the frame of the stored points; poses and flow are in the vehicle frame.
    """
    import h5py

    points = np.random.default_rng(0).uniform(-40, 40, (num_points, 3)).astype(np.float32)
    classes = np.zeros(num_points, np.uint8)
    classes[100:200], classes[200:220] = CAR, SIGN
    residual = np.zeros((num_points, 3), np.float32)
    residual[100:200, 0] = 0.8
    world_T_ego = transforms.yaw_translation(1.0, 5000.0, 2000.0)
    names = stamps or [stamp(k) for k in range(num_sweeps)]
    with h5py.File(path, 'w') as file:
        for k, name in enumerate(names):
            group = file.create_group(name)
            stored = points
            if ego_T_lidar is not None:
                stored = transforms.apply(transforms.invert(ego_T_lidar), points.astype(np.float64)).astype(np.float32)
            intensity = np.zeros((num_points, 1), np.float32)
            group.create_dataset('lidar', data=np.hstack((stored, intensity)))
            group.create_dataset('ground_mask', data=np.arange(num_points) < 50)
            group.create_dataset('pose', data=world_T_ego.astype(pose_type))
            group.create_dataset('lidar_dt', data=np.linspace(0, 0.1, num_points, dtype=np.float32))
            if eval_mask is not None:
                group.create_dataset('eval_mask', data=eval_mask[:, None])
            if with_flow and k + 1 < len(names):
                group.create_dataset('flow', data=residual_to_total(residual, points, EGO0_T_EGO1))
                group.create_dataset('flow_is_valid', data=np.arange(num_points) != 399)
                group.create_dataset('flow_category_indices', data=classes)
                group.create_dataset('ego_motion', data=np.linalg.inv(EGO0_T_EGO1).astype(np.float32))
            world_T_ego = world_T_ego @ EGO0_T_EGO1
    return residual


def change(path: Path, name: str, value) -> None:
    """Replace a dataset 'stamp/name' of a scene, or remove it when value is None."""
    import h5py

    with h5py.File(path, 'r+') as file:
        del file[name]
        if value is not None:
            file[name] = value
