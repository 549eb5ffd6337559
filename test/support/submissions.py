# SPDX-License-Identifier: Apache-2.0
"""Small submissions with known content, and readers for them."""

import json
import zipfile

import numpy as np

from training.datasets.pairs import DatasetPair
from training.scoring.boards import decode, encode
from zeroflow_ros import transforms
from zeroflow_ros.lidar.sweep import SweepPair

FLOW = ['flow_tx_m', 'flow_ty_m', 'flow_tz_m']


class Known:
    """An estimator that returns a fixed residual flow."""

    name = 'known'

    def __init__(self, residual=None):
        self.residual = residual

    def flow(self, item):
        return np.zeros_like(item.pair.points0) if self.residual is None else self.residual


class Turning:
    """Pairs of a log in which the vehicle drives 1 m ahead and turns left by 90 degrees."""

    name = 'turning'
    points = np.array([[3, 2, 1], [3, 2, 1], [0, 0, 0], [7, 7, 7]], np.float32)
    residual = np.array([[0, 2, 0], [0, 0, 0], [0, 0.04, 0], [np.nan] * 3], np.float32)

    def __init__(self, keys=('log/1000',)):
        self.keys = keys

    def __len__(self):
        return len(self.keys)

    def key(self, index):
        return self.keys[index]

    def __getitem__(self, index):
        pair = SweepPair(self.points, self.points[:1], transforms.yaw_translation(np.pi / 2, 1, 0), 0.1)
        return DatasetPair(self.key(index), pair, np.zeros(4, bool), np.zeros(1, bool))


def write_masks(path, masks):
    with zipfile.ZipFile(path, 'w') as archive:
        for key, mask in masks.items():
            archive.writestr(f'{key}.feather', encode({'mask': mask}))
    return path


def read(path):
    with zipfile.ZipFile(path) as archive:
        return {
            name: json.loads(archive.read(name)) if name.endswith('.json') else decode(archive.read(name), name)
            for name in archive.namelist()
        }


def flow_of(columns):
    return np.stack([columns[name] for name in FLOW], axis=1)
