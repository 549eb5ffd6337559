# SPDX-License-Identifier: Apache-2.0
"""The interface of datasets: sweep pairs with ego motion, ground masks, and ground-truth flow where known."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.sweep import SweepPair

Times = tuple[np.ndarray, np.ndarray]  # (N,) and (M,): seconds from the stamp to the measurement of each point
HISTORY = 3  # sweeps beside a pair, before it and after it, that datasets give where they have them
LATEST = '_latest'  # ends the key of a pair seen from its newer sweep: labels of the pair are not labels of that


class MetaClass(IntEnum):
    """The classes by which scene flow is scored. Source: bucketed-scene-flow-eval."""

    BACKGROUND = 0
    CAR = 1
    OTHER_VEHICLES = 2
    PEDESTRIAN = 3
    WHEELED_VRU = 4
    IGNORED = 5  # signs, cones, animals, the vehicle itself: neither foreground nor background


@dataclass(frozen=True)
class GroundTruthFlow:
    """Ground-truth flow of the older sweep of a pair. Never given to a teacher.

    flow: (N, 3) float32 [m] residual flow to the newer sweep, in ego0: 0 on the static world.
    meta_class: (N,) uint8, a MetaClass. is_valid: (N,) bool, False where the flow is not known.
    """

    flow: np.ndarray
    meta_class: np.ndarray
    is_valid: np.ndarray

    def __post_init__(self):
        n = len(self.flow)
        if self.flow.shape != (n, 3) or self.meta_class.shape != (n,) or self.is_valid.shape != (n,):
            raise ValueError(
                f'flow must be (N, 3), meta_class and is_valid (N,), got {self.flow.shape}, {self.meta_class.shape} '
                f'and {self.is_valid.shape}'
            )


@dataclass(frozen=True)
class DatasetPair:
    """One item of a dataset.

    key: names the pair within the dataset and in files: letters, digits, '.', '_', '-' and '/'.
    pair: the sweeps in their own vehicle or sensor frames, and the ego motion between them.
    is_ground0 (N,), is_ground1 (M,): bool.
    truth: ground truth of sweep 0, or None.
    times: (N,) and (M,) float32, seconds after the stamp of its sweep that each point was measured; None if unknown.
    mount: (4, 4), base_T_sensor of a base frame whose z is up; None: not known, then z of the points is about up.
    """

    key: str
    pair: SweepPair
    is_ground0: np.ndarray
    is_ground1: np.ndarray
    truth: GroundTruthFlow | None = None
    times: Times | None = None
    mount: np.ndarray | None = None

    def __post_init__(self):
        n, m = len(self.pair.points0), len(self.pair.points1)
        if self.is_ground0.shape != (n,) or self.is_ground1.shape != (m,):
            raise ValueError(
                f'{self.key}: sweeps of {n} and {m} points need as many ground flags, got {self.is_ground0.shape} and '
                f'{self.is_ground1.shape}'
            )
        if self.times is not None and tuple(map(np.shape, self.times)) != ((n,), (m,)):
            raise ValueError(f'{self.key}: sweeps of {n} and {m} points have {[*map(np.shape, self.times)]} times')
        if self.truth is not None and len(self.truth.flow) != n:
            raise ValueError(f'{self.key}: a sweep of {n} points has ground-truth flow for {len(self.truth.flow)}')


def from_latest(item: DatasetPair) -> DatasetPair:
    """Return a pair seen from its newer sweep, which becomes sweep 0; without ground truth, which is of the older."""
    times = item.times and (item.times[1], item.times[0])
    return DatasetPair(
        item.key + LATEST, item.pair.reversed(), item.is_ground1, item.is_ground0, None, times, item.mount
    )


class PairDataset(Protocol):
    """Sweep pairs by number. Reading the same pair twice gives the same pair."""

    name: str

    def __len__(self) -> int:
        """Return the number of pairs."""

    def key(self, index: int) -> str:
        """Return the key of a pair without reading it."""

    def __getitem__(self, index: int) -> DatasetPair:
        """Return a pair. Raises: DataError with the reason when it cannot be read."""


def evenly_spread(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers below `total`, first and last among them; all for 0.

    Raises: ConfigError when count is negative.
    """
    if count < 0:
        raise ConfigError(f'The number of pairs should be 0 (all) or more, got {count}.')
    return np.linspace(0, total - 1, min(count or total, total)).round().astype(int).tolist()


def scene_and_stamp(name: str, key: str) -> tuple[str, int]:
    """Return the scene of a pair and the stamp of its older sweep, from the dataset's name and the pair's key.

    SCENE/STAMP (logs, scenes) and NUMBER_STAMP (bags) contain both; any other key is a scene that starts at 0.
    """
    if match := re.fullmatch(r'(?:(.+)/|\d+_)(\d+)', key):
        return (match[1] or name).replace('/', '_'), int(match[2])
    return key.replace('/', '_'), 0
