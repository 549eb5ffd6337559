# SPDX-License-Identifier: Apache-2.0
"""A dataset that is labelled in a millisecond, with its teacher and label job."""

import dataclasses
import os
import time

import numpy as np

from training.datasets.pairs import DatasetPair
from training.labels.label_job import LabelJob
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import SweepPair

HEIGHT = 1.7  # m, height of the sensor above the ground
WALL_FLOW = (0.5, 0.0, 0.1)  # m, the teacher's flow of all points
_PLANE = np.stack(np.meshgrid(np.arange(-20.0, 20.0), np.arange(-20.0, 20.0)), -1).reshape(-1, 2)


def sweep(num_wall: int, rng: np.random.Generator, *, reach: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, 3) in the sensor frame, a plane with some other points over it, and which points are ground."""
    ground = np.column_stack([_PLANE, np.full(len(_PLANE), -HEIGHT)])
    wall = rng.uniform([-reach, -reach, -1.0], [reach, reach, 1.0], (num_wall, 3))
    points = np.concatenate([ground, wall]).astype(np.float32)
    return points, np.arange(len(points)) < len(ground)


def pair(key: str, num_wall: int = 30, seed: int = 0) -> DatasetPair:
    """Return a pair whose vehicle drives 1 m ahead."""
    rng = np.random.default_rng(seed)
    points0, is_ground0 = sweep(num_wall, rng)
    points1, is_ground1 = sweep(num_wall + 1, rng)
    ego0_T_ego1 = transforms.yaw_translation(0.01, 1.0, 0.0)
    return DatasetPair(key, SweepPair(points0, points1, ego0_T_ego1, 0.1), is_ground0, is_ground1)


class World:
    """`num_pairs` pairs; pair i has 30 + i points over the ground. Reading those in `broken` fails."""

    name = 'world'

    def __init__(self, num_pairs: int, broken: tuple[int, ...] = (), seed: int = 0):
        self.num_pairs, self.broken, self.seed = num_pairs, broken, seed

    def __len__(self) -> int:
        return self.num_pairs

    def key(self, index: int) -> str:
        return f'drive/{index:06d}'

    def __getitem__(self, index: int) -> DatasetPair:
        if index in self.broken:
            raise DataError(f'sweep {index} is cut short')
        return pair(self.key(index), 30 + index, self.seed + index)


@dataclasses.dataclass(frozen=True)
class WallConfig:
    """Settings of the teacher.

    seconds: time per pair. diary: file with a line per labelled pair. die_at: pair at which it kills its process.
    notes_process: the diary names the process, too.
    """

    seconds: float = 0.0
    diary: str = ''
    die_at: int = -1
    notes_process: bool = False


class WallTeacher:
    """Labels all points with WALL_FLOW."""

    name = 'wall'

    def __init__(self, config: WallConfig):
        self.config = config

    def label(self, points0, points1, dt, *, times=None):
        if len(points0) - 30 == self.config.die_at:
            os._exit(9)
        if self.config.diary:
            with open(self.config.diary, 'a') as file:
                process = f' {os.getpid()}' if self.config.notes_process else ''
                file.write(f'{len(points0) - 30}{process}\n')
        time.sleep(self.config.seconds)
        flow = np.float32(WALL_FLOW)
        return np.tile(flow, (len(points0), 1)), np.tile(-flow, (len(points1), 1))


@dataclasses.dataclass(frozen=True)
class WorldJob(LabelJob):
    """A label job without files for dataset and teacher."""

    num_pairs: int = 6
    broken: tuple[int, ...] = ()
    seed: int = 0
    wall: WallConfig = WallConfig()

    def open_datasets(self):
        return [World(self.num_pairs, self.broken, self.seed) for _ in self.datasets]

    def build_teacher(self):
        return WallTeacher(self.wall)
