# SPDX-License-Identifier: Apache-2.0
"""Training samples of students for stereo cameras: augmented crops of stereo pairs, with the scene flow to learn."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.learning.shuffled_samples import ShuffledSamples
from training.learning.stereo_sources import StereoExample, StereoSource
from training.learning.stereo_train_config import StereoTrainConfig
from training.learning.strategies.proxy import Proxy
from training.students import CameraStudent
from zeroflow_ros.camera.network_images import NetworkImages
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION, pixel_motion
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, DataError

_FEWEST_PIXELS, _TRIES = 100, 20


class StereoSample(NamedTuple):
    """One sample. images: (4, H, W, 3) float32 in [0, 1]: left and right of the reference frame, then of the other.

    ego_motion: (3, 4) float32, see zeroflow_ros.camera.static_scene. target: (H, W, 4) float32 [px of the images],
    disparity, disparity in the other frame, flow u, v; NaN where not known.
    """

    images: np.ndarray
    ego_motion: np.ndarray
    target: np.ndarray


class StereoBatch(NamedTuple):
    """Samples as tensors. images: four of (B, 3, H, W). ego_motion: (B, 3, 4). target: (B, 4, H, W)."""

    images: tuple[Tensor, Tensor, Tensor, Tensor]
    ego_motion: Tensor
    target: Tensor


def collate_stereo(samples: list[StereoSample]) -> StereoBatch:
    """Join samples into one batch."""
    images = torch.from_numpy(np.stack([sample.images for sample in samples], axis=1)).permute(0, 1, 4, 2, 3)
    target = torch.from_numpy(np.stack([sample.target for sample in samples])).permute(0, 3, 1, 2)
    ego_motion = torch.from_numpy(np.stack([sample.ego_motion for sample in samples]))
    return StereoBatch(tuple(images.contiguous().unbind()), ego_motion, target.contiguous())


class StereoSamples(ShuffledSamples):
    """Reads stereo pairs, and cuts, scales and colours crops of them.

    Raises: ConfigError when the student cannot take crops of the configured size.
    """

    def __init__(self, config: StereoTrainConfig, source: StereoSource, student: CameraStudent):
        super().__init__(config, source)
        self.strategy = Proxy(config)
        self._network = NetworkImages(config.width, config.height, student.resize)
        if config.crop_width % student.multiple or config.crop_height % student.multiple:
            raise ConfigError(
                f'{student.name} takes crops whose width and height are multiples of {student.multiple} px, not '
                f'{config.crop_width} x {config.crop_height}.'
            )

    def __getitem__(self, number: tuple[int, int]) -> StereoSample:
        """Return one sample; crops with hardly any label are drawn again.

        Raises: DataError when no crop is usable.
        """
        index, rng = self.draw(number)
        for _ in range(_TRIES):
            sample = self._sample(self.source[index], rng)
            if np.isfinite(sample.target).sum() >= _FEWEST_PIXELS:
                return sample
            index = int(rng.integers(len(self.source)))
        raise DataError(f'{_TRIES} crops of {self.source.about["data"]} had fewer than {_FEWEST_PIXELS} labels.')

    def _sample(self, example: StereoExample, rng: np.random.Generator) -> StereoSample:
        config, pair = self.config, example.pair
        augmentation = config.augmentation
        images = np.concatenate([self._network.images(frame) for frame in (pair.reference, pair.other)])
        target = network_target(example.target, pair.reference.camera, self._network)
        zoom = augmentation.draw_zoom(rng)
        width, height = (round(size / zoom) for size in (config.crop_width, config.crop_height))
        left, top = (int(rng.integers(whole - part + 1)) for whole, part in (
            (config.width, width), (config.height, height)
        ))  # fmt: skip
        camera = self._network.camera(pair.reference.camera)
        camera = dataclasses.replace(camera, width=width, height=height, cx=camera.cx - left, cy=camera.cy - top)
        images, target = (
            images[:, top : top + height, left : left + width],
            target[top : top + height, left : left + width],
        )
        images, target, camera = resized(images, target, camera, config.crop_width, config.crop_height)
        images = _shifted(images, rng.uniform(-1, 1) * augmentation.right_shift)
        images = augmentation.images(images.astype(np.float32) / 255, rng)
        other_T_reference = augmentation.ego_motion(pair.other_T_reference, rng)
        motion = UNKNOWN_MOTION if other_T_reference is None else pixel_motion(camera, other_T_reference)
        return StereoSample(images, motion, target)


def network_target(target: np.ndarray, camera: StereoCamera, network: NetworkImages) -> np.ndarray:
    """Return values (H, W, 4) [px of the camera] at the pixels of a network's images, in its pixels.

    The nearest pixel's values are taken: a mean over an edge belongs to nothing. Borders of padded images are NaN;
    DWARF's code mirrors the labels there, although the flow in a mirror goes the other way.
    """
    target = target.copy()
    target[..., :2] -= np.float32(camera.disparity_at_infinity)
    if network.resize == 'pad':
        seen = network.camera(camera)
        left, top = round(seen.cx - camera.cx), round(seen.cy - camera.cy)
        padded = np.full((network.height, network.width, 4), np.nan, np.float32)
        padded[top : top + camera.height, left : left + camera.width] = target
        return padded
    return _nearest(target, network.width, network.height)


def resized(images: np.ndarray, target: np.ndarray, camera: StereoCamera, width: int, height: int):
    """Return images (N, H, W, 3), values (H, W, 4) and the camera that took them, at another size."""
    if target.shape[:2] == (height, width):
        return images, target, camera
    cv2 = load_opencv()
    images = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images])
    return images, _nearest(target, width, height), camera.scaled(width, height)


def _nearest(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return values (H, W, 4) of the nearest pixels of images of another size, in its pixels."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in ((height, values.shape[0]), (width, values.shape[1]))
    )
    x, y = width / values.shape[1], height / values.shape[0]
    return values[rows[:, None], columns] * np.float32([x, x, x, y])


def _shifted(images: np.ndarray, rows: float) -> np.ndarray:
    """Return images (4, H, W, 3), the right ones shifted down by a part of a row, as imperfect rectification does."""
    if not rows:
        return images
    cv2 = load_opencv()
    shift, size = np.float32([[1, 0, 0], [0, 1, rows]]), images.shape[2:0:-1]
    moved = [
        cv2.warpAffine(image, shift, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) if k % 2 else image
        for k, image in enumerate(images)
    ]
    return np.stack(moved)
