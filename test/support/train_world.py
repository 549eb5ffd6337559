# SPDX-License-Identifier: Apache-2.0
"""Shared by training tests: one simulated clip, and a label store in memory."""

import dataclasses

import numpy as np

from training.datasets.clip_store import ClipStore
from training.learning.pair_sources import ClipSource
from training.learning.train_config import TrainConfig, TrainPhase
from zeroflow_ros.lidar.pillars import PillarGrid

GRID = PillarGrid(256, 0.4, -2.0, 4.0)
TINY = TrainConfig(
    num_clips=1,
    num_sweeps=2,
    warm_up=TrainPhase(steps=2, batch=2, cells=32, near_mover=1.0, min_height=0.3),
    crops=TrainPhase(steps=1, batch=1, cells=32),
    full=TrainPhase(steps=1, batch=1, cells=256),
    save_every=1,
    log_every=1,
    num_workers=0,
    num_threads=1,
)


def source(clips):
    return ClipSource(ClipStore(clips, 2), 1)


class Labels:
    """A store of pseudo-labels in memory."""

    folder = 'labels'

    def __init__(self, pairs):
        self.about = {'teacher': 'made_up'}
        self.pairs = pairs

    def keys(self):
        return self.pairs.keys()

    def training_pair(self, key):
        return self.pairs[key]


def make_labels(clips):
    """Return ten labels of one pair, whose first cloud has flow near the sensor only."""
    pair = ClipStore(clips, 2).window(0, 0)
    flow0 = pair.flow0.copy()
    flow0[np.linalg.norm(pair.points0[:, :2], axis=1) > 4] = np.nan
    return Labels({f'drive/{k:02d}': dataclasses.replace(pair, flow0=flow0) for k in range(10)})
