# SPDX-License-Identifier: Apache-2.0
"""Random changes of stereo images and of their ego motion for training."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms

_BRIGHTNESS = (0.299, 0.587, 0.114)  # BT.601


@dataclass(frozen=True)
class StereoAugmentation:
    """Strength of the augmentation of stereo pairs.

    colour: probability to change brightness and colour. colour_shared: whether all four images change alike; else each
    by itself. gamma: largest change of the exponent. brightness: largest factor; the smallest is its inverse. channel:
    largest change of the factor of a channel.
    grey: probability that all images lose their colours, as on the vehicle: reading grey images is faster.
    zoom: probability to enlarge a crop. max_zoom: largest factor.
    noise: standard deviation of each pixel's noise, of 1. right_shift: largest error of the right image's rows [px].
    no_ego_motion: share of the samples without ego motion. ego_translation, ego_rotation: standard deviations of its
    error along and about each axis [m, rad].
    """

    colour: float = 0.5
    colour_shared: bool = True
    gamma: float = 0.2
    brightness: float = 2.0
    channel: float = 0.2
    grey: float = 0.5
    zoom: float = 0.5
    max_zoom: float = 1.8
    noise: float = 0.01
    right_shift: float = 0.3
    no_ego_motion: float = 0.25
    ego_translation: float = 0.02
    ego_rotation: float = 0.001

    def images(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return images (4, H, W, 3) float32 in [0, 1] in other colours and with noise."""
        if rng.random() < self.colour:
            groups = [slice(None)] if self.colour_shared else [slice(k, k + 1) for k in range(len(images))]
            images = np.concatenate([self._coloured(images[group], rng) for group in groups])
        if rng.random() < self.grey:
            images = np.repeat(images @ np.float32(_BRIGHTNESS)[:, None], 3, axis=3)
        if self.noise:
            images = images + np.float32(self.noise) * rng.standard_normal(images.shape, np.float32)
        return np.clip(images, 0, 1)

    def _coloured(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        gamma = rng.uniform(1 - self.gamma, 1 + self.gamma)
        factor = rng.uniform(1 / self.brightness, self.brightness)
        channels = rng.uniform(1 - self.channel, 1 + self.channel, 3)
        return images ** np.float32(gamma) * (factor * channels).astype(np.float32)

    def draw_zoom(self, rng: np.random.Generator) -> float:
        """Return the factor by which a crop is enlarged."""
        return rng.uniform(1, self.max_zoom) if rng.random() < self.zoom else 1.0

    def ego_motion(self, other_T_reference: np.ndarray | None, rng: np.random.Generator) -> np.ndarray | None:
        """Return the ego motion (4, 4) with errors; None where it is unknown, or left out."""
        if rng.random() < self.no_ego_motion or other_T_reference is None:
            return None
        error = np.eye(4)
        error[:3, :3] = transforms.rotation_matrix(rng.normal(0, self.ego_rotation, 3))
        error[:3, 3] = rng.normal(0, self.ego_translation, 3)
        return error @ other_T_reference
