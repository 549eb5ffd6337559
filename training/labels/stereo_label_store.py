# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels of stereo pairs on disk, with the images they belong to.

A label file is one of `LabelStore` with seven blocks: the four images as PNG, disparity, other disparity and flow as
the 16-bit PNG files of KITTI. So disparity is rounded to 1/256 px and flow to 1/64 px; reading and writing again gives
the same file.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from training.datasets.kitti_png import (
    decode_disparity,
    decode_flow,
    decode_image,
    encode_disparity,
    encode_flow,
    encode_image,
)
from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from training.labels.label_store import LabelStore
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow, StereoFrame
from zeroflow_ros.errors import DataError


class StereoLabelStore(LabelStore):
    """The labels of one stereo teacher with one configuration; a StereoPairDataset, too, whose truth is the labels.

    What is labelled counts as not occluded, and nothing as foreground.
    """

    sensor = 'stereo'

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.name = f'labels of {self.folder.resolve().name}'
        self._keys: list[str] | None = None

    def __len__(self) -> int:
        return len(self._all_keys)

    def key(self, index: int) -> str:
        """Return the key of a label without reading it."""
        return self._all_keys[index]

    def __getitem__(self, index: int) -> StereoDatasetPair:
        return self.read(self.key(index))

    @property
    def _all_keys(self) -> list[str]:
        """The keys that the store had when it was first asked."""
        if self._keys is None:
            self._keys = self.keys()
        return self._keys

    def read(self, key: str) -> StereoDatasetPair:
        """Return the pair of a label, with the label as its truth. Raises: DataError when it is missing or damaged."""
        header, blocks = self._read_blocks(key)
        name = str(self.path(key))
        images = [decode_image(block, name) for block in blocks[:4]]
        disparity, other_disparity = (decode_disparity(block, name) for block in blocks[4:6])
        flow = decode_flow(blocks[6], name)
        known = [np.isfinite(values) for values in (disparity, other_disparity, flow[..., 0])]
        truth = StereoTruth(disparity, other_disparity, flow, *known, np.zeros(disparity.shape, bool))
        camera = StereoCamera(**header['camera'])
        frames = [
            StereoFrame(*images[2 * k : 2 * k + 2], camera, stamp_ns, header['frame_id'])
            for k, stamp_ns in enumerate(header['stamps_ns'])
        ]
        motion = header['other_T_reference']
        return StereoDatasetPair(key, *frames, None if motion is None else np.array(motion), header['dt'], truth)

    def checksum(self, key: str) -> str:
        """Return the `stereo_checksum` of the pair that a label was made from. Raises: DataError as `read`."""
        return self._read_blocks(key)[0]['input_sha256']

    def write(self, item: StereoDatasetPair, label: StereoFlow) -> Path:
        """Write the label of a pair atomically, replacing an existing one: the pixels that `is_measured` marks.

        Disparities are also labels where `is_disparity_measured` says so. The ego motion is that which the teacher
        found, else that of the pair.
        Raises: DataError when it cannot be written, or the label has another size than the images.
        """
        if label.disparity.shape != item.reference.left.shape[:2]:
            raise DataError(
                f'{item.key}: images of {item.reference.left.shape[:2]} have a label of {label.disparity.shape}.'
            )
        images = [image for frame in (item.reference, item.other) for image in (frame.left, frame.right)]
        measured, nan = label.is_measured, np.float32(np.nan)
        has_disparity = measured if label.is_disparity_measured is None else label.is_disparity_measured
        blocks = [encode_image(image) for image in images]
        blocks.append(encode_disparity(np.where(has_disparity, label.disparity, nan)))
        blocks.append(encode_disparity(np.where(measured, label.other_disparity, nan)))
        blocks.append(encode_flow(np.where(measured[..., None], label.flow, nan)))
        motion = item.other_T_reference if label.other_T_reference is None else label.other_T_reference
        return self._write_blocks(
            {
                'key': item.key, 'dt': item.dt, 'input_sha256': stereo_checksum(item),
                'camera': dataclasses.asdict(item.reference.camera), 'frame_id': item.reference.frame_id,
                'stamps_ns': [item.reference.stamp_ns, item.other.stamp_ns],
                'other_T_reference': None if motion is None else np.asarray(motion, np.float64).tolist(),
            },
            blocks,
        )  # fmt: skip


def stereo_checksum(item: StereoDatasetPair) -> str:
    """Return the sha256 of images, camera, ego motion and dt of a pair; equal ones get equal labels."""
    digest = hashlib.sha256(repr((item.reference.camera, item.dt)).encode())
    for frame in (item.reference, item.other):
        for image in (frame.left, frame.right):
            digest.update(str(image.shape).encode())
            digest.update(np.ascontiguousarray(image).tobytes())
    if item.other_T_reference is not None:
        digest.update(np.asarray(item.other_T_reference, np.float64).tobytes())
    return digest.hexdigest()
