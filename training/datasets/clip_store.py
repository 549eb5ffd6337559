# SPDX-License-Identifier: Apache-2.0
"""Simulated clips on disk, simulated on first use and checked when read."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.datasets.training_pair import TrainingPair
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class ClipStore:
    """Clips by seed in a folder: `pair(seed, k)` simulates the clip unless its file is intact.

    folder: folder of the clips. num_sweeps: sweeps per clip.
    """

    folder: Path
    num_sweeps: int = 6

    def ensure(self, seed: int) -> Path:
        """Return the file of a clip; simulate it if it is missing."""
        path = Path(self.folder) / f'clip_{seed:06d}_{self.num_sweeps}.npz'
        if not path.is_file():
            self._simulate(seed, path)
        return path

    def pair(self, seed: int, first: int, second: int) -> TrainingPair:
        """Return the pair of sweeps `first` < `second` of a clip; a damaged file is simulated again."""
        return self.read(seed, lambda arrays: _pair(arrays, first, second))

    def read(self, seed: int, make):
        """Return make(arrays) of the arrays of a clip, by name; a damaged file is simulated again."""
        path = self.ensure(seed)
        try:
            with np.load(path) as arrays:
                return make(arrays)
        except _DAMAGED:
            path.unlink(missing_ok=True)
        with np.load(self.ensure(seed)) as arrays:
            return make(arrays)

    def _simulate(self, seed: int, path: Path) -> None:
        from training.simulation.clips import simulate_clip  # the ray caster is needed only here

        clip = simulate_clip(seed, num_sweeps=self.num_sweeps)
        arrays = {
            'stamp_ns': np.array([sweep.stamp_ns for sweep in clip.sweeps]),
            'odom_T_lidar': np.stack([sweep.odom_T_lidar for sweep in clip.sweeps]),
            'lidar_height': np.float64(clip.lidar_height),
        }
        for k, sweep in enumerate(clip.sweeps):
            others = sweep.category != Category.EGO  # returns from the ego vehicle move with it: nothing to learn
            arrays[f'points_{k}'] = sweep.points[others]
            arrays[f'category_{k}'] = sweep.category[others]
            for other in (k - 1, k + 1):
                if 0 <= other < len(clip.sweeps):
                    arrays[f'flow_{k}_{other}'] = clip.flow(k, other)[others].astype(np.float16)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.stem}.{os.getpid()}.npz')
        np.savez(temporary, **arrays)
        os.replace(temporary, path)


def _pair(arrays, first: int, second: int) -> TrainingPair:
    poses, stamps = arrays['odom_T_lidar'], arrays['stamp_ns']
    ego1_T_ego0 = transforms.invert(poses[second]) @ poses[first]
    points0 = transforms.apply(ego1_T_ego0, arrays[f'points_{first}'])
    points1 = arrays[f'points_{second}']
    flow0 = arrays[f'flow_{first}_{second}'].astype(np.float32) @ ego1_T_ego0[:3, :3].T.astype(np.float32)
    flow1 = arrays[f'flow_{second}_{first}'].astype(np.float32)
    points0[:, 2] += np.float32(arrays['lidar_height'])
    points1[:, 2] += np.float32(arrays['lidar_height'])
    dt = float(stamps[second] - stamps[first]) * 1e-9
    grounds = [arrays[f'category_{k}'] == Category.GROUND for k in (first, second)]
    return TrainingPair(points0, points1, flow0, flow1, dt, *grounds)
