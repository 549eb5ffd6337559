# SPDX-License-Identifier: Apache-2.0
"""Shared by tests of camera students: stereo pairs of a textured plane that moves by whole pixels."""

import numpy as np

from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from training.learning.stereo_augmentation import StereoAugmentation
from training.learning.stereo_train_config import StereoTrainConfig
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame

CAMERA = StereoCamera(96, 48, 60.0, 60.0, 47.5, 23.5, 0.5)
PLAIN = StereoAugmentation(
    colour=0, grey=0, zoom=0, noise=0, right_shift=0, no_ego_motion=0, ego_translation=0, ego_rotation=0
)
TINY = StereoTrainConfig(
    width=96, height=48, crop_width=64, crop_height=32, steps=3, batch=2, held_out=0.0, save_every=1, log_every=1,
    num_threads=1, num_workers=0, lr_steps=1, lr=1e-3, augmentation=PLAIN,
)  # fmt: skip


class StereoWorld:
    """A dataset: pair k has disparity 4 + k px, then 6 + k px, and flow (2, -1) px."""

    name, sensor = 'stereo_world', 'stereo'

    def __init__(self, count=4, with_truth=True):
        self.count, self.with_truth = count, with_truth

    def __len__(self):
        return self.count

    def key(self, index):
        return f'world/{index:02d}'

    def __getitem__(self, index):
        texture = np.random.default_rng(index).integers(0, 256, (48, 96, 3), np.uint8)
        texture = np.repeat(np.repeat(texture[:24, :48], 2, 0), 2, 1)
        left1 = np.roll(texture, (-1, 2), (0, 1))
        images = texture, np.roll(texture, -(4 + index), 1), left1, np.roll(left1, -(6 + index), 1)
        frames = StereoFrame(*images[:2], CAMERA, 0), StereoFrame(*images[2:], CAMERA, 10**8)
        return StereoDatasetPair(
            self.key(index), *frames, np.eye(4), 0.1, self.truth(index) if self.with_truth else None
        )

    def truth(self, index):
        def constant(value):
            return np.full((48, 96), value, np.float32)

        flow, all_pixels = np.stack([constant(2), constant(-1)], axis=2), np.ones((48, 96), bool)
        return StereoTruth(
            constant(4 + index), constant(6 + index), flow, all_pixels, all_pixels, all_pixels, ~all_pixels
        )
