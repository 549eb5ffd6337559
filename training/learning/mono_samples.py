# SPDX-License-Identifier: Apache-2.0
"""Training samples of students of one camera: augmented windows of images, with points whose scene flow is known."""

import dataclasses
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.datasets.stereo_windows import PairPlace, WindowPlace, check_consecutive
from training.learning.mono_sources import WindowSource
from training.learning.mono_train_config import MonoTrainConfig
from training.learning.shuffled_samples import ShuffledSamples
from training.learning.strategies import build_strategy
from zeroflow_ros.camera.network_images import NetworkImages
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, DataError

_TRIES = 20
_FEWEST_LABELS = 20  # of an image
_MARGIN = 1.25  # images in memory are larger than those of a sample by this, if the camera's are by far


class MonoSample(NamedTuple):
    """One sample: T frames.

    left, right: (T, H, W, 3) float32 in [0, 1]; right is empty where the loss does not need it.
    intrinsics: (3, 3) float32 [px of these images], of both eyes.
    baseline: [m]. pixel_size: (2,) float32, width and height of a pixel in pixels of the camera.
    labels: (T - 2, 2, N, 6) float32 [px of these images]: u, v, disparity, then disparity, flow u and flow v in the
    other frame, which is the next one, then the one before. NaN where not known. Disparities are those of the baseline.
    """

    left: np.ndarray
    right: np.ndarray
    intrinsics: np.ndarray
    baseline: float
    pixel_size: np.ndarray
    labels: np.ndarray


class MonoBatch(NamedTuple):
    """Samples as tensors.

    left, right: (B, T, 3, H, W). intrinsics: (B, 3, 3). baseline: (B,). pixel_size: (B, 2).
    labels: (B, T - 2, 2, N, 6).
    """

    left: Tensor
    right: Tensor
    intrinsics: Tensor
    baseline: Tensor
    pixel_size: Tensor
    labels: Tensor


def collate_mono(samples: list[MonoSample]) -> MonoBatch:
    """Join samples into one batch; the labels of an image get as many rows as those of the one with most."""
    eyes = (
        torch.from_numpy(np.stack([getattr(sample, eye) for sample in samples])).permute(0, 1, 4, 2, 3).contiguous()
        for eye in ('left', 'right')
    )
    most = max(sample.labels.shape[2] for sample in samples)
    labels = np.stack([
        np.pad(sample.labels, ((0, 0), (0, 0), (0, most - sample.labels.shape[2]), (0, 0)), constant_values=np.nan)
        for sample in samples
    ])  # fmt: skip
    rest = (
        torch.from_numpy(np.stack([np.float32(getattr(sample, name)) for sample in samples]))
        for name in ('intrinsics', 'baseline', 'pixel_size')
    )
    return MonoBatch(*eyes, *rest, torch.from_numpy(labels))


class _ScaledPair(NamedTuple):
    """A pair in memory. images: (4, h, w, 3) uint8, left and right of both frames. camera: of the full size.

    labels: (N, 6) float32 [px of the camera], of the reference frame, see MonoSample; None: none. far: disparity of
    infinitely far points [px].
    """

    key: str
    images: np.ndarray
    camera: StereoCamera
    labels: np.ndarray | None
    far: float


class MonoSamples(ShuffledSamples):
    """Reads windows, and cuts, flips and colours them.

    Windows with labels are flipped only where the right eye does not count: the labels are those of the left eye.
    Raises: ConfigError when the student cannot take images of the configured size.
    """

    def __init__(self, config: MonoTrainConfig, source: WindowSource, student):
        super().__init__(config, source)
        self.strategy = build_strategy(config)
        self._pairs: OrderedDict[PairPlace, _ScaledPair] = OrderedDict()
        if config.width % student.multiple or config.height % student.multiple:
            raise ConfigError(
                f'{student.name} takes images whose width and height are multiples of {student.multiple} px, not '
                f'{config.width} x {config.height}.'
            )

    def __getitem__(self, number: tuple[int, int]) -> MonoSample:
        """Return one sample; windows with hardly any label are drawn again, where labels count.

        Raises: DataError when no window is usable.
        """
        index, rng = self.draw(number)
        others, count = self.source.unlabelled, number[0] * self.config.batch + number[1]
        if others and count % 2:  # fine-tuning takes turns
            return self._sample(others[int(rng.integers(len(others)))], rng)
        for _ in range(_TRIES):
            sample = self._sample(self.source.places[index], rng)
            known = np.isfinite(sample.labels[..., 2]).sum(axis=-1)
            if self.config.strategy != 'mono_from_lidar' or known.max(initial=0) >= _FEWEST_LABELS:
                return sample
            index = int(rng.integers(len(self.source)))
        raise DataError(f'{_TRIES} windows of {self.source.about["data"]} had fewer than {_FEWEST_LABELS} labels.')

    def _sample(self, place: WindowPlace, rng: np.random.Generator) -> MonoSample:
        config, pairs = self.config, [self._pair(pair) for pair in place.pairs]
        camera, augmentation = pairs[0].camera, config.augmentation
        crop = augmentation.draw_crop(camera.width, camera.height, rng)
        images = np.concatenate([*(pair.images[:2] for pair in pairs), pairs[-1].images[2:]])  # left, right, left, ..
        is_backward = rng.random() < augmentation.reverse
        sees_right, rotations = False, None
        if not config.is_self_supervised:  # no other eye has to fit
            sees_right = rng.random() < augmentation.right_eye
            rotations = augmentation.draw_rotations(config.num_frames, rng)
            images = images[int(sees_right) :: 2]
        labels = np.full((config.num_frames - 2, 2, 0, 6), np.nan, np.float32)
        if config.has_labels:
            latest = [pair and self._pair(pair).labels for pair in place.latest[:-1]]
            backward = [
                turned(pair.labels) if labels is None else labels for pair, labels in zip(pairs, latest, strict=False)
            ]
            found = [(pair.labels, labels) for pair, labels in zip(pairs[1:], backward, strict=True)]
            if sees_right:
                found = [tuple(of_right_eye(labels, pairs[0].far) for labels in both) for both in found]
            if is_backward:
                found = [both[::-1] for both in reversed(found)]
            labels = self._labels(found, crop, rng)
        x, y = config.width / crop[2], config.height / crop[3]
        cx = camera.cx - pairs[0].far * sees_right
        intrinsics = np.array([
            [camera.fx * x, 0, (cx + 0.5 - crop[0]) * x - 0.5],
            [0, camera.fy * y, (camera.cy + 0.5 - crop[1]) * y - 0.5],
            [0, 0, 1],
        ], np.float32)  # fmt: skip
        if rotations is None:
            images = cut(images, camera, crop, config.width, config.height)
        else:
            images = cut(images, camera, crop, config.width, config.height, turns(rotations, intrinsics))
            labels = turned_labels(labels, rotations, intrinsics, (config.width, config.height))
        left, right = (images[::2], images[1::2]) if config.is_self_supervised else (images, images[:0])
        if is_backward:
            left, right = left[::-1], right[::-1]
        if augmentation.draw_flip(rng) and not (config.is_self_supervised and np.isfinite(labels).any()):
            left, right, intrinsics, labels = flipped(left, right, intrinsics, labels)
        images = augmentation.images(np.concatenate([left, right]).astype(np.float32) / 255, rng)
        left, right = np.split(images, [len(left)])
        pixel_size = np.float32([1 / x, 1 / y])
        return MonoSample(left, right, intrinsics, camera.baseline, pixel_size, labels)

    def _labels(self, found: list, crop: tuple[float, float, float, float], rng) -> np.ndarray:
        """Return the labels of a sample from those of its pairs: forward and backward, None for none."""
        config = self.config
        cut_out = [
            [_cut_labels(labels, crop, config.width, config.height, config.labels, rng) for labels in both]
            for both in found
        ]
        most = max(len(labels) for both in cut_out for labels in both)
        whole = np.full((len(found), 2, most, 6), np.nan, np.float32)
        for k, both in enumerate(cut_out):
            for direction, labels in enumerate(both):
                whole[k, direction, : len(labels)] = labels
        return whole

    def _pair(self, place: PairPlace) -> _ScaledPair:
        """Return a pair, from memory if it is there."""
        if place in self._pairs:
            self._pairs.move_to_end(place)
            return self._pairs[place]
        pair = self.source.windows.pair(place)
        check_consecutive([pair] if pair.dt > 0 else [dataclasses.replace(pair, dt=-pair.dt)])
        camera = pair.reference.camera
        size = camera.width, camera.height
        if camera.width > 2 * self.config.width:
            size = round(_MARGIN * self.config.width), round(_MARGIN * self.config.height)
        network = NetworkImages(*size)
        images = np.concatenate([network.images(frame) for frame in (pair.reference, pair.other)])
        labels = None
        if pair.truth is not None and self.config.has_labels:
            labels = _known(pair.truth, camera.disparity_at_infinity)
        self._pairs[place] = _ScaledPair(
            pair.key, images, dataclasses.replace(camera, right_cx=None), labels, camera.disparity_at_infinity
        )
        while len(self._pairs) > self.config.cached_pairs:
            self._pairs.popitem(last=False)
        return self._pairs[place]


def _known(truth, disparity_at_infinity: float) -> np.ndarray:
    """Return (N, 6) float32, u, v, disparity, other disparity, flow, of all pixels with a disparity."""
    v, u = np.nonzero(truth.has_disparity)
    disparities = [
        values[v, u] - np.float32(disparity_at_infinity) for values in (truth.disparity, truth.other_disparity)
    ]
    rows = np.stack([u, v, *disparities, *truth.flow[v, u].T], axis=1).astype(np.float32)
    return rows[rows[:, 2] > 0]


def turned(labels: np.ndarray | None) -> np.ndarray | None:
    """Return labels (N, 6) of a frame as (M, 6) of the other one: where its points land, and the way back."""
    if labels is None:
        return None
    labels = labels[np.isfinite(labels).all(axis=1)]
    u, v, disparity, other, flow_u, flow_v = labels.T
    return np.stack([u + flow_u, v + flow_v, other, disparity, -flow_u, -flow_v], axis=1)


def _cut_labels(labels: np.ndarray | None, crop, width: int, height: int, most: int, rng) -> np.ndarray:
    """Return labels (N, 6) [px of the camera] in a part of its image, at most `most`, (M, 6) [px of width x height]."""
    if labels is None:
        return np.zeros((0, 6), np.float32)
    x, y = width / crop[2], height / crop[3]
    cut_out = labels * np.float32([x, y, x, x, x, y])
    cut_out[:, 0] += (0.5 - crop[0]) * x - 0.5
    cut_out[:, 1] += (0.5 - crop[1]) * y - 0.5
    inside = ((cut_out[:, :2] >= 0) & (cut_out[:, :2] <= (width - 1, height - 1))).all(axis=1)
    rows = np.flatnonzero(inside)
    if most and len(rows) > most:
        rows = rng.choice(rows, most, replace=False)
    return cut_out[rows]


def of_right_eye(labels: np.ndarray | None, far: float) -> np.ndarray | None:
    """Return labels (N, 6) of the left eye as those of the right one; far: disparity of infinitely far points [px]."""
    if labels is None:
        return None
    u, v, disparity, other, flow_u, flow_v = labels.T
    return np.stack([u - disparity - np.float32(far), v, disparity, other, flow_u - other + disparity, flow_v], axis=1)


def turns(rotations: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return the homographies (N, 3, 3) float64 of the pixels of a camera that turns by rotations (N, 3, 3)."""
    return intrinsics.astype(np.float64) @ rotations @ np.linalg.inv(intrinsics.astype(np.float64))


def turned_labels(
    labels: np.ndarray, rotations: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return labels (T - 2, 2, N, 6) of T images whose cameras turn by rotations (T, 3, 3); NaN outside of the images.

    size: width and height [px].
    """
    homographies, labels = turns(rotations, intrinsics), labels.copy()
    for k in range(len(labels)):
        for direction, other in enumerate((k + 2, k)):
            rows = labels[k, direction].astype(np.float64)
            pixels, ratio = _seen_by(homographies[k + 1], rows[:, :2])
            targets, other_ratio = _seen_by(homographies[other], rows[:, :2] + rows[:, 4:])
            outside = ~((pixels >= 0) & (pixels <= (size[0] - 1, size[1] - 1))).all(axis=1)
            rows = np.column_stack([pixels, rows[:, 2] / ratio, rows[:, 3] / other_ratio, targets - pixels])
            rows[outside] = np.nan
            labels[k, direction] = rows
    return labels


def _seen_by(homography: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, 2) behind a homography, and by how much their depths grow (N,)."""
    moved = pixels @ homography[:, :2].T + homography[:, 2]
    return moved[:, :2] / moved[:, 2:], moved[:, 2]


def cut(
    images: np.ndarray, camera: StereoCamera, crop, width: int, height: int, homographies: np.ndarray | None = None
) -> np.ndarray:
    """Return a part of images (N, h, w, 3) as (N, height, width, 3).

    camera: the images are its own, at any size. crop: left, top, width, height [px of the camera].
    homographies: (N, 3, 3), of the pixels of the part; None: it stays as it is.
    """
    cv2 = load_opencv()
    x, y = images.shape[2] / camera.width, images.shape[1] / camera.height
    matrix = np.float64([
        [crop[2] / width * x, 0, (0.5 * crop[2] / width + crop[0]) * x - 0.5],
        [0, crop[3] / height * y, (0.5 * crop[3] / height + crop[1]) * y - 0.5],
    ])  # fmt: skip
    how = {'flags': cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, 'borderMode': cv2.BORDER_REPLICATE}
    if homographies is None:
        return np.stack([cv2.warpAffine(image, matrix, (width, height), **how) for image in images])
    matrices = np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(homographies)
    return np.stack([
        cv2.warpPerspective(image, one, (width, height), **how) for image, one in zip(images, matrices, strict=True)
    ])  # fmt: skip


def flipped(left: np.ndarray, right: np.ndarray, intrinsics: np.ndarray, labels: np.ndarray):
    """Return left images, right images, intrinsics and labels of what a mirror shows: left and right change places.

    Without right images, the left ones stay, and the labels are theirs. cx becomes width - cx, see
    `mono_geometry.flipped_intrinsics`.
    """
    width = left.shape[2]
    intrinsics, labels = intrinsics.copy(), labels.copy()
    intrinsics[0, 2] = width - intrinsics[0, 2]
    labels[..., 0] = width - 1 - labels[..., 0]
    labels[..., 4] = -labels[..., 4]
    if len(right):
        left, right = right, left
    return left[:, :, ::-1], right[:, :, ::-1], intrinsics, labels
