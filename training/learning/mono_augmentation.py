# SPDX-License-Identifier: Apache-2.0
"""Random changes of windows of images for the training of students of one camera."""

from dataclasses import dataclass

import numpy as np

from training.learning.stereo_augmentation import StereoAugmentation
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.transforms import rotation_matrix


@dataclass(frozen=True)
class MonoAugmentation:
    """Strength of the augmentation of windows. Source of the defaults: multi-mono-sf, without grey and noise.

    crop_width, crop_height: of the part of the camera's image that is cut out first [px of the camera]; 0 or larger
    than the image: all of it. min_scale: smallest share of its sides that a second cut keeps. max_shift: largest shift
    of the second cut from the centre, a share of what the first one has room for at min_scale.
    flip: probability that images are flipped left to right, and the eyes swapped.
    reverse: probability that a window runs backwards in time.
    right_eye: probability that the student sees the images of the right eye; rotation: standard deviation of a rotation
    of each image about each axis [degrees]. Both only where the loss does not compare images: labels follow them.
    colour, gamma, brightness, channel, grey, noise: as in StereoAugmentation; all images of a window change alike.
    """

    crop_width: int = 1224
    crop_height: int = 370
    min_scale: float = 0.93
    max_shift: float = 0.5
    flip: float = 0.5
    reverse: float = 0.0
    right_eye: float = 0.0
    rotation: float = 0.0
    colour: float = 0.5
    gamma: float = 0.2
    brightness: float = 2.0
    channel: float = 0.2
    grey: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        shares = self.max_shift, self.flip, self.reverse, self.right_eye
        if not 0 < self.min_scale <= 1 or min(shares) < 0 or max(shares) > 1:
            raise ConfigError(
                'min_scale should be above 0 and at most 1, max_shift, flip, reverse and right_eye from 0 to 1.'
            )
        if not 0 <= self.rotation <= 10:
            raise ConfigError(f'rotation should be 0 to 10 degrees, got {self.rotation}.')
        if self.crop_width < 0 or self.crop_height < 0:
            raise ConfigError(f'A crop should be 0 px or more, got {self.crop_width} x {self.crop_height}.')

    def draw_crop(self, width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """Return left, top, width and height [px] of the part of an image of a size that a sample shows."""
        sides = [
            min(side, crop or side) for side, crop in ((width, self.crop_width), (height, self.crop_height))
        ]  # fmt: skip
        starts = [int(rng.integers(whole - side + 1)) for whole, side in zip((width, height), sides, strict=True)]
        scale = rng.uniform(self.min_scale, 1)
        rest = 1 - scale
        reach = min(rest / 2, self.max_shift * (1 - self.min_scale))  # within the first cut
        shifts = rng.uniform(-reach, reach, 2)
        found = [start + side * (rest / 2 + shift) for start, side, shift in zip(starts, sides, shifts, strict=True)]
        return found[0], found[1], sides[0] * scale, sides[1] * scale

    def draw_flip(self, rng: np.random.Generator) -> bool:
        """Return whether to flip a sample."""
        return bool(rng.random() < self.flip)

    def draw_rotations(self, num: int, rng: np.random.Generator) -> np.ndarray | None:
        """Return rotations (num, 3, 3) of the camera of each image; None where there are none."""
        if not self.rotation:
            return None
        return np.stack([rotation_matrix(vector) for vector in rng.normal(0, np.radians(self.rotation), (num, 3))])

    def images(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return images (N, H, W, 3) float32 in [0, 1] in other colours, all alike, and with noise."""
        return StereoAugmentation(
            colour=self.colour, gamma=self.gamma, brightness=self.brightness, channel=self.channel, grey=self.grey,
            noise=self.noise,
        ).images(images, rng)  # fmt: skip
