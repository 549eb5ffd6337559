# SPDX-License-Identifier: Apache-2.0
"""Pairs of simulated clips; flow, class and ground are known for every point."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.clip_store import ClipStore
from training.datasets.pairs import HISTORY, LATEST, DatasetPair, GroundTruthFlow, MetaClass
from training.simulation.sensors.lidar import Category
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair

META_CLASS = {
    Category.BACKGROUND: MetaClass.BACKGROUND,
    Category.GROUND: MetaClass.BACKGROUND,
    Category.CAR: MetaClass.CAR,
    Category.OTHER_VEHICLE: MetaClass.OTHER_VEHICLES,  # vans among them, which real labels count as cars
    Category.PEDESTRIAN: MetaClass.PEDESTRIAN,
    Category.CYCLIST: MetaClass.WHEELED_VRU,
    Category.EGO: MetaClass.IGNORED,
}
_BY_CATEGORY = np.array([META_CLASS[category] for category in Category], np.uint8)


class SimulatedPairs:
    """Two sweeps of each clip, in the LiDAR's frame, without returns from the vehicle itself.

    seeds: first and last, both included. store: a folder of clips, to which missing ones are added; None: each clip
    is simulated on every access, which takes seconds. A seed gives a different clip for each length.
    at: number of the older sweep of the pair.
    """

    def __init__(self, first: int, last: int, store: ClipStore | None = None, at: int = 0):
        if not 0 <= first <= last:
            raise DataError(f'Seeds of simulated clips go from FIRST to LAST, 0 <= FIRST <= LAST, got {first}-{last}.')
        self.seeds, self.store, self._at = range(first, last + 1), store, at
        self.name = f'simulation_{first}-{last}'

    def at_rate(self, rate_hz: float) -> 'SimulatedPairs':
        """Return pairs of as many clips of other streets with rate_hz sweeps per second, in the same folder.

        Raises: DataError without a folder.
        """
        if self.store is None:
            raise DataError(
                f'{self.name} cannot give {rate_hz:g} sweeps per second without a folder for the clips. '
                f'Use simulation:{self.seeds[0]}-{self.seeds[-1]}@FOLDER.'
            )
        store = replace(self.store, rate_hz=rate_hz)
        return SimulatedPairs(self.seeds[0], self.seeds[-1], store, self._at)

    def __len__(self) -> int:
        return len(self.seeds)

    def key(self, index: int) -> str:
        """Return the seed."""
        return f'clip_{self.seeds[index]:06d}'

    def __getitem__(self, index: int) -> DatasetPair:
        return self._pair(index, self.key(index), self._at, self._at + 1)

    def latest(self, index: int) -> DatasetPair:
        """Return a pair seen from its newer sweep, with the flow of that sweep back in time."""
        return self._pair(index, self.key(index) + LATEST, self._at + 1, self._at)

    def _pair(self, index: int, key: str, first: int, second: int) -> DatasetPair:
        seed = self.seeds[index]
        if self.store is not None:
            return self.store.read(seed, lambda arrays: _stored_pair(key, arrays, first, second))
        from training.simulation.clips import simulate_clip  # the ray caster is needed only here

        return _clip_pair(key, simulate_clip(seed, num_sweeps=2), first, second)


class ClipDrive:
    """All consecutive sweeps of one simulated clip, in the LiDAR's frame, without returns from the vehicle itself.

    clip: training.simulation.clips.SimulatedClip.
    """

    def __init__(self, clip):
        self.clip = clip
        self.name = f'clip_{clip.seed:06d}'

    def __len__(self) -> int:
        return len(self.clip.sweeps) - 1

    def key(self, index: int) -> str:
        """Return the number of the older sweep."""
        return f'{self.name}/{index:03d}'

    def __getitem__(self, index: int) -> DatasetPair:
        return _clip_pair(self.key(index), self.clip, index, index + 1)


@dataclass(frozen=True)
class SimulationOptions:
    """Options.

    num_sweeps: sweeps per clip in the folder; 0: the only length there, 2 if the folder is empty. at: number of the
    older sweep of the pair, from 0. alongside: 1 for clips with a large vehicle beside the ego vehicle. rate: sweeps
    per second; 0 for those of the LiDAR of each seed.
    """

    num_sweeps: int = 0
    at: int = 0
    alongside: int = 0
    rate: float = 0


def open_pairs(text: str) -> SimulatedPairs:
    """Open SEED, FIRST-LAST, FIRST-LAST@FOLDER or FIRST-LAST@FOLDER?num_sweeps=6&at=4.

    A seed gives a different street for each clip length, because more is built along a longer drive, so clips of
    different lengths are not interchangeable.
    Raises: DataError for any other text, or when the folder holds clips of several lengths and none is named.
    """
    text, options = split_options(text, SimulationOptions)
    seeds, _, folder = text.partition('@')
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', seeds)
    if not match:
        raise DataError(f'Simulated clips are named FIRST-LAST or FIRST-LAST@FOLDER, as in 0-9, got {text!r}.')
    first, last = int(match[1]), int(match[2] or match[1])
    if options.num_sweeps and (options.num_sweeps < 2 or not folder):
        raise DataError(f'num_sweeps is of the clips in a folder, 2 or more, got {options.num_sweeps} for {text!r}.')
    if not folder and (options.at or options.alongside or options.rate):
        raise DataError(
            f'at, alongside and rate are of the clips in a folder: simulation:{seeds}@FOLDER?num_sweeps=6&at=4.'
        )
    if not folder:
        return SimulatedPairs(first, last)
    if options.alongside not in (0, 1):
        raise DataError(f'alongside is 0 or 1, got {options.alongside}.')
    if not 0 <= options.rate <= 100:
        raise DataError(f'rate is the sweeps per second, above 0 and at most 100, got {options.rate:g}.')
    store = ClipStore(Path(folder), options.num_sweeps or 2, bool(options.alongside), options.rate)
    lengths = sorted({int(path.stem.rpartition('_')[2]) for path in Path(folder).glob(f'{store.kind}_*_*.npz')})
    if len(lengths) > 1 and not options.num_sweeps:
        raise DataError(
            f'{folder} holds clips of {lengths} sweeps, which are different drives. Say which to use: '
            f'simulation:{text}?num_sweeps={lengths[0]}'
        )
    if lengths and not options.num_sweeps:
        store = replace(store, num_sweeps=lengths[0])
    if not 0 <= options.at < store.num_sweeps - 1:
        raise DataError(f'at goes from 0 to {store.num_sweeps - 2} in clips of {store.num_sweeps} sweeps.')
    return SimulatedPairs(first, last, store, options.at)


def recognises(text: str) -> bool:
    """Return False: a simulation has no path."""
    return False


def _clip_pair(key: str, clip, first: int, second: int) -> DatasetPair:
    sweeps = clip.sweeps[first], clip.sweeps[second]
    others = [sweep.category != Category.EGO for sweep in sweeps]
    return _dataset_pair(
        key,
        [sweep.points[keep] for sweep, keep in zip(sweeps, others, strict=True)],
        [sweep.category[keep] for sweep, keep in zip(sweeps, others, strict=True)],
        clip.flow(first, second)[others[0]],
        [sweep.odom_T_lidar for sweep in sweeps],
        [sweep.stamp_ns for sweep in sweeps],
    )


def _stored_pair(key: str, arrays, first: int, second: int) -> DatasetPair:
    points, category = ([arrays[f'{name}_{k}'] for k in (first, second)] for name in ('points', 'category'))
    odom_T_lidar, step = arrays['odom_T_lidar'], second - first
    poses, stamps = ([arrays[name][k] for k in (first, second)] for name in ('odom_T_lidar', 'stamp_ns'))

    def beside(numbers) -> tuple[PosedSweep, ...]:
        known = [k for k in numbers if 0 <= k < len(odom_T_lidar)]
        return tuple(PosedSweep(arrays[f'points_{k}'], transforms.invert(poses[0]) @ odom_T_lidar[k]) for k in known)

    history = beside(first - step * k for k in range(1, HISTORY + 1))
    future = beside(second + step * k for k in range(1, HISTORY + 1))
    return _dataset_pair(key, points, category, arrays[f'flow_{first}_{second}'], poses, stamps, history, future)


def _dataset_pair(
    key: str, points, category, flow: np.ndarray, odom_T_lidar, stamp_ns, history=(), future=()
) -> DatasetPair:
    ego0_T_ego1 = transforms.invert(odom_T_lidar[0]) @ odom_T_lidar[1]
    dt = abs(float(stamp_ns[1] - stamp_ns[0])) * 1e-9
    pair = SweepPair(points[0], points[1], ego0_T_ego1, dt, history, future)
    truth = GroundTruthFlow(flow.astype(np.float32), _BY_CATEGORY[category[0]], np.ones(len(flow), bool))
    return DatasetPair(key, pair, *(of_sweep == Category.GROUND for of_sweep in category), truth)
