# SPDX-License-Identifier: Apache-2.0
"""Submission format of the KITTI scene flow 2015 board, and check of the archive.

The archive has disp_0/, disp_1/ and flow/ with NNNNNN_10.png each, for scenes 000000 to 000199, in the size of the
images: disparity of frame 10, disparity of the same points in frame 11, optical flow from 10 to 11. Missing pixels
are filled by the board. Source: the development kit of KITTI scene flow 2015.
"""

import zipfile
from pathlib import Path

import numpy as np

from training.datasets.kitti_png import decode, encode_disparity, encode_flow
from training.datasets.stereo_pairs import StereoDatasetPair, StereoPairDataset
from zeroflow_ros.camera.stereo import StereoFlow
from zeroflow_ros.errors import DataError

STEREO_BOARD = 'kitti_scene_flow'
NUM_SCENES = 200
_FOLDERS = ('disp_0', 'disp_1', 'flow')


def submitted_pairs(dataset: StereoPairDataset, num_scenes: int = NUM_SCENES) -> dict[str, int]:
    """Return the index in the dataset of each pair that the board expects, by its key NNNNNN_10.

    Raises: DataError when one is missing or there are others.
    """
    index_of = {dataset.key(index): index for index in range(len(dataset))}
    wanted = [f'{scene:06d}_10' for scene in range(num_scenes)]
    odd = sorted(set(wanted) ^ set(index_of))
    if odd:
        raise DataError(
            f'{dataset.name} has {len(index_of)} pairs, the board scores {num_scenes}, {wanted[0]} to {wanted[-1]}; '
            f'one that differs is {odd[0]}. Submit kitti_scene_flow:KITTI/testing.'
        )
    return {key: index_of[key] for key in wanted}


def submission_files(item: StereoDatasetPair, found: StereoFlow) -> dict[str, bytes]:
    """Return the content of the three files of a pair by name; pixels that are not finite are left out.

    Raises: DataError when the estimate has another size than the images, or no pixel of one kind.
    """
    size = item.reference.left.shape[:2]
    parts = dict(zip(_FOLDERS, (found.disparity, found.other_disparity, found.flow), strict=True))
    for folder, values in parts.items():
        if values.shape[:2] != size:
            raise DataError(f'{item.key}: the images are {size}, {folder} of the estimate is {values.shape[:2]}.')
        if not np.isfinite(values).any():
            raise DataError(f'{item.key}: the estimate has no value for {folder}, which the board refuses.')
    return {
        f'{folder}/{item.key}.png': (encode_flow if folder == 'flow' else encode_disparity)(values)
        for folder, values in parts.items()
    }


def share_without_value(found: StereoFlow) -> float:
    """Return the share of pixels of which one of the three values is missing."""
    known = np.isfinite(found.disparity) & np.isfinite(found.other_disparity) & np.isfinite(found.flow).all(-1)
    return float(1 - known.mean())


def check_stereo_archive(path: Path, sizes: dict[str, tuple[int, int]], num_scenes: int = NUM_SCENES) -> None:
    """Read a finished submission and compare it with the board's format.

    sizes: (height, width) of the images by key; scenes that are not named can have any size.
    Raises: DataError that names the first file that is missing, unexpected or wrong.
    """
    wanted = [f'{folder}/{scene:06d}_10.png' for folder in _FOLDERS for scene in range(num_scenes)]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith('/')]
            if sorted(names) != sorted(wanted):
                odd = sorted(set(names) ^ set(wanted)) or sorted(names)
                raise DataError(
                    f'{path} holds {len(names)} files, expected {len(wanted)}, {wanted[0]} to {wanted[-1]}; one that '
                    f'differs is {odd[0]}.'
                )
            for name in wanted:
                _check_file(f'{path}: {name}', archive.read(name), sizes.get(Path(name).stem), 'flow/' in name)
    except zipfile.BadZipFile as error:
        raise DataError(f'{path} is not a zip archive: {error}') from error


def _check_file(name: str, content: bytes, size: tuple[int, int] | None, is_flow: bool) -> None:
    image = decode(content, name)
    kind = (np.uint16, 3 if is_flow else 1)
    found = (image.dtype, 1 if image.ndim == 2 else image.shape[2])
    if found != kind:
        raise DataError(
            f'{name} should be a 16-bit PNG of {kind[1]} channels, got {8 * found[0].itemsize} bits and {found[1]}.'
        )
    if size is not None and image.shape[:2] != size:
        raise DataError(f'{name} is {image.shape[1]} x {image.shape[0]} pixels, its image {size[1]} x {size[0]}.')
    known = image[..., 0] if is_flow else image
    if not known.any():
        raise DataError(f'{name} has no pixel with a value.')
    if is_flow and image[..., 0].max() > 1:
        raise DataError(f'{name} should have 0 or 1 in its blue channel, got {image[..., 0].max()}.')
