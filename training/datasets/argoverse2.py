# SPDX-License-Identifier: Apache-2.0
"""Argoverse 2 Sensor logs in the official layout, where flow labels lie beside the sweeps.

A log folder holds sensors/lidar/<timestamp_ns>.feather, city_SE3_egovehicle.feather, and flow_labels.feather for its
first sweep: total flow to the second one, ego motion included, with class, dynamic and is_ground_0.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.sweep import SweepPair


@dataclass(frozen=True)
class LabelledPair:
    """A sweep pair with the true residual flow of its first sweep.

    pair: in the vehicle frame of Argoverse, origin at the rear axle.
    flow: (N, 3) float32 [m], residual, in ego0. is_foreground, is_dynamic, is_ground: (N,) bool.
    """

    pair: SweepPair
    flow: np.ndarray
    is_foreground: np.ndarray
    is_dynamic: np.ndarray
    is_ground: np.ndarray


def read_labelled_pair(log: Path) -> LabelledPair:
    """Read the first two sweeps of a log and the labels of the first.

    Raises: DataError that names the missing file.
    """
    from pyarrow import feather

    log = Path(log)
    files = sorted((log / 'sensors' / 'lidar').glob('*.feather'), key=lambda path: int(path.stem))
    if len(files) < 2:
        raise DataError(f'{log} needs two sweeps in sensors/lidar/<timestamp_ns>.feather, found {len(files)}.')

    def table(path: Path) -> dict[str, np.ndarray]:
        if not path.is_file():
            raise DataError(f'{log} lacks {path.relative_to(log)}.')
        columns = feather.read_table(path)
        return {name: columns[name].to_numpy() for name in columns.column_names}

    poses = table(log / 'city_SE3_egovehicle.feather')
    labels = table(log / 'flow_labels.feather')
    clouds, city_T_ego = [], []
    for path in files[:2]:
        sweep = table(path)
        clouds.append(np.stack([sweep[axis] for axis in 'xyz'], axis=1).astype(np.float32))
        rows = np.flatnonzero(poses['timestamp_ns'] == int(path.stem))
        if len(rows) != 1:
            raise DataError(f'{log}: city_SE3_egovehicle.feather has {len(rows)} poses at {path.stem}, expected 1.')
        pose = {name: values[rows[0]] for name, values in poses.items()}
        city_T_ego.append(
            transforms.from_quaternion(
                [pose['tx_m'], pose['ty_m'], pose['tz_m']], [pose['qx'], pose['qy'], pose['qz'], pose['qw']]
            )
        )
    if len(labels['classes']) != len(clouds[0]):
        raise DataError(f'{log}: flow_labels.feather has {len(labels["classes"])} rows, the sweep {len(clouds[0])}.')
    ego0_T_ego1 = transforms.invert(city_T_ego[0]) @ city_T_ego[1]
    total = np.stack([labels[f'flow_t{axis}_m'] for axis in 'xyz'], axis=1).astype(np.float32)
    residual = transforms.apply(ego0_T_ego1, clouds[0] + total) - clouds[0]
    dt = (int(files[1].stem) - int(files[0].stem)) * 1e-9
    pair = SweepPair(clouds[0], clouds[1], ego0_T_ego1, dt)
    return LabelledPair(pair, residual, labels['classes'] > 0, labels['dynamic'], labels['is_ground_0'])
