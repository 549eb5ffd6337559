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
    """Clips by seed in a folder: `window(seed, ...)` simulates the clip unless its file is intact.

    folder: folder of the clips. num_sweeps: sweeps per clip. alongside: clips with a large vehicle beside the ego
    vehicle. rate_hz: sweeps per second, 0 for those of the LiDAR of the seed; see `simulate_clip` for both.
    """

    folder: Path
    num_sweeps: int = 6
    alongside: bool = False
    rate_hz: float = 0

    @property
    def kind(self) -> str:
        """Return what the names of the files begin with."""
        return ('alongside' if self.alongside else 'clip') + (f'{self.rate_hz:g}hz' if self.rate_hz else '')

    def ensure(self, seed: int) -> Path:
        """Return the file of a clip; simulate it if it is missing."""
        path = Path(self.folder) / f'{self.kind}_{seed:06d}_{self.num_sweeps}.npz'
        if not path.is_file():
            self._simulate(seed, path)
        return path

    def window(self, seed: int, first: int, num_sweeps: int = 2) -> TrainingPair:
        """Return num_sweeps consecutive sweeps of a clip, from `first`; a damaged file is simulated again."""
        return self.read(seed, lambda arrays: _window(arrays, range(first, first + num_sweeps)))

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

        clip = simulate_clip(seed, num_sweeps=self.num_sweeps, alongside=self.alongside, rate_hz=self.rate_hz)
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


def _window(arrays, sweeps: range) -> TrainingPair:
    poses, stamps = arrays['odom_T_lidar'], arrays['stamp_ns']
    first, last = sweeps[0], sweeps[-1]

    def in_last(k: int) -> np.ndarray:
        points = transforms.apply(transforms.invert(poses[last]) @ poses[k], arrays[f'points_{k}'])
        points[:, 2] += np.float32(arrays['lidar_height'])
        return points

    last_R_first = (poses[last][:3, :3].T @ poses[first][:3, :3]).astype(np.float32)
    flow0 = arrays[f'flow_{first}_{first + 1}'].astype(np.float32) @ last_R_first.T
    flow1 = arrays[f'flow_{last}_{last - 1}'].astype(np.float32)
    dt = float(stamps[first + 1] - stamps[first]) * 1e-9
    clouds = [in_last(k) for k in sweeps]
    is_ground = [arrays[f'category_{k}'] == Category.GROUND for k in (first, last)]
    return TrainingPair(clouds[0], clouds[-1], flow0, flow1, dt, *is_ground, between=tuple(clouds[1:-1]))
