# SPDX-License-Identifier: Apache-2.0
"""Shared by tests of students of one camera: a drive past a textured plane that moves by whole pixels."""

import numpy as np

from training.datasets.pairs import LATEST
from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from training.learning.mono_augmentation import MonoAugmentation
from training.learning.mono_train_config import MonoTrainConfig
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

WIDTH, HEIGHT, DISPARITY, STEP = 64, 64, 4, 2  # px
CAMERA = StereoCamera(WIDTH, HEIGHT, 40.0, 40.0, 31.5, 31.5, 0.5)
PLAIN = MonoAugmentation(crop_width=0, crop_height=0, min_scale=1.0, flip=0, colour=0)
TINY = MonoTrainConfig(
    width=WIDTH, height=HEIGHT, steps=3, batch=1, held_out=0.0, save_every=1, log_every=1, num_threads=1, lr_steps=5,
    lr=1e-3, labels=200, augmentation=PLAIN,
)  # fmt: skip
PERIOD_NS = 10**8


class MonoWorld:
    """A dataset: the plane has a disparity of 4 px, and moves 2 px to the right from frame to frame.

    missing: numbers of the older frames of pairs that the dataset lacks. latest: from the newer frame to the older.
    """

    sensor = 'stereo'

    def __init__(self, num_frames=7, *, missing=(), latest=False, with_truth=True, name='mono_world'):
        self.numbers = [k for k in range(num_frames - 1) if k not in missing]
        self.latest, self.with_truth, self.name = latest, with_truth, name

    def __len__(self):
        return len(self.numbers)

    def key(self, index):
        number = self.numbers[index]
        return f'{number:06d}_{10**18 + number * PERIOD_NS}' + LATEST * self.latest

    def __getitem__(self, index):
        number, sign = self.numbers[index], -1 if self.latest else 1
        frames = [frame(number), frame(number + 1)][::sign]
        truth = truth_of(sign * STEP) if self.with_truth else None
        return StereoDatasetPair(self.key(index), *frames, np.eye(4), sign * 0.1, truth)


def frame(number):
    """Return a frame; its texture is smooth, and repeats."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    texture = np.repeat(np.repeat(noise, 4, 0), 4, 1)
    left = np.roll(texture, STEP * number, axis=1)
    return StereoFrame(left, np.roll(left, -DISPARITY, axis=1), CAMERA, 10**18 + number * PERIOD_NS)


def truth_of(flow):
    """Return the truth of a frame whose pixels move by a flow along x [px]; a quarter of them is not known."""
    disparity = np.full((HEIGHT, WIDTH), DISPARITY, np.float32)
    disparity[::2, ::2] = np.nan
    motion = np.stack([disparity * 0 + flow, disparity * 0], axis=2).astype(np.float32)
    known = np.isfinite(disparity)
    return StereoTruth(disparity, disparity.copy(), motion, known, known, known, np.zeros_like(known))
