# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs of simulated streets; disparity, flow, and what is hidden are known for every pixel.

A pair is a function of its seed and the options. With a folder, pairs are simulated on first use and kept, one file
each; an interrupted run goes on with the files that are missing.
"""

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.pairs import LATEST
from training.datasets.stereo_pairs import StereoDatasetPair, StereoTruth
from zeroflow_ros import transforms
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.errors import DataError

_FIRST_STAMP_NS = 1_700_000_000_000_000_000  # any time but 0, which ROS reads as "unknown"
_JPEG_QUALITY = 95
_STEPS_PER_PIXEL = 256  # of stored disparity, as in the files of KITTI; coarser where it exceeds 255 px
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_FRAME_ID = 'camera_left_optical'


@dataclass(frozen=True)
class StereoSimulationOptions:
    """Options.

    camera: kitti (1242 x 375), kitti_half (621 x 188) or kitti_quarter (310 x 94). varied: 1 for cameras that differ
    from KITTI's in mount, baseline and focal length. num_frames: frames of a drive, 2 or more. at: number of the older
    frame of the pair. latest: 1 for flow from the newer frame back to the older. alongside: 1 for a large vehicle
    beside the ego vehicle.
    """

    camera: str = 'kitti'
    varied: int = 0
    num_frames: int = 2
    at: int = 0
    latest: int = 0
    alongside: int = 0


class StereoSimulationPairs:
    """One pair of frames of the simulated drive of each seed.

    first, last: seeds, both included. folder: of stored drives, to which missing ones are added; None: each drive is
    simulated on every access, which takes seconds.
    Raises: DataError for seeds or options that make no pair.
    """

    sensor = 'stereo'

    def __init__(self, first: int, last: int, folder: str | Path | None, options: StereoSimulationOptions):
        if not 0 <= first <= last:
            raise DataError(f'Seeds of simulated drives go from FIRST to LAST, 0 <= FIRST <= LAST, got {first}-{last}.')
        for name in ('varied', 'latest', 'alongside'):
            if getattr(options, name) not in (0, 1):
                raise DataError(f'{name} is 0 or 1, got {getattr(options, name)}.')
        if options.num_frames < 2 or not 0 <= options.at < options.num_frames - 1:
            raise DataError(
                f'A drive has two frames or more, and at goes from 0 to num_frames - 2; got num_frames='
                f'{options.num_frames} and at={options.at}.'
            )
        self.seeds, self.folder, self.options = range(first, last + 1), folder and Path(folder), options
        self.name = f'stereo_simulation_{first}-{last}'

    def __len__(self) -> int:
        return len(self.seeds)

    def key(self, index: int) -> str:
        """Return the seed and the number of the older frame; it ends in _latest where the newer is the reference."""
        return f'drive_{self.seeds[index]:06d}_{self.options.at:02d}{LATEST if self.options.latest else ""}'

    def path(self, index: int) -> Path | None:
        """Return the file that holds the drive of a pair, or None without a folder."""
        if self.folder is None:
            return None
        options = self.options
        kind = ''.join(f'_{name}' for name in ('varied', 'alongside') if getattr(options, name))
        return self.folder / f'stereo_{self.seeds[index]:06d}_{options.camera}_{options.num_frames}{kind}.npz'

    def ensure(self, index: int) -> None:
        """Simulate the drive of a pair unless its file is there; does nothing without a folder."""
        path = self.path(index)
        if path is None or path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.stem}.{os.getpid()}.npz')
        np.savez_compressed(temporary, **self._simulate(index))
        os.replace(temporary, path)

    def __getitem__(self, index: int) -> StereoDatasetPair:
        path = self.path(index)
        if path is None:
            return self._pair(index, self._simulate(index))
        self.ensure(index)
        try:
            with np.load(path) as arrays:
                return self._pair(index, arrays)
        except _DAMAGED:
            path.unlink(missing_ok=True)
        self.ensure(index)
        with np.load(path) as arrays:
            return self._pair(index, arrays)

    def _simulate(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays that are stored of a drive, by name."""
        from training.simulation.cameras.stereo_drive import simulate_stereo  # the ray caster is needed only here

        options = self.options
        drive = simulate_stereo(
            self.seeds[index], camera=options.camera, num_frames=options.num_frames, varied=bool(options.varied),
            alongside=bool(options.alongside),
        )  # fmt: skip
        camera = drive.rig.camera
        arrays = {
            'camera': np.array([getattr(camera, name) for name in _INTRINSICS]),
            'odom_T_left': np.stack([drive.odom_T_left(k) for k in range(len(drive))]),
            'odom_T_bodies': drive.world.odom_T_bodies,
        }
        for k in range(len(drive)):
            frame = drive.frame(k)
            step = max(1 / _STEPS_PER_PIXEL, float(np.nanmax(frame.disparity, initial=0)) / 65535)
            arrays |= {
                f'left_{k}': _jpeg(frame.left),
                f'right_{k}': _jpeg(frame.right),
                f'stamp_{k}': np.float64(frame.stamp),
                f'disparity_step_{k}': np.float64(step),
                f'disparity_{k}': np.round(np.nan_to_num(frame.disparity) / step).astype(np.uint16),
                f'body_{k}': frame.body,
                f'category_{k}': frame.category,
                f'visible_right_{k}': np.packbits(frame.is_visible_right),
            }
            for other in (k - 1, k + 1):
                if 0 <= other < len(drive):
                    seen = drive.visibility(frame, other)
                    arrays[f'visible_{k}_{other}'] = np.packbits(np.stack(seen))
        return arrays

    def _pair(self, index: int, arrays) -> StereoDatasetPair:
        first, second = self.options.at, self.options.at + 1
        if self.options.latest:
            first, second = second, first
        frames = [_stereo_frame(arrays, k) for k in (first, second)]
        poses = arrays['odom_T_left']
        dt = float(arrays[f'stamp_{second}'] - arrays[f'stamp_{first}'])
        other_T_reference = transforms.invert(poses[second]) @ poses[first]
        truth = _truth(arrays, first, second, frames[0].camera)
        stored = [] if self.options.latest else [arrays[f'left_{k}'] for k in range(first)]
        return StereoDatasetPair(
            self.key(index), *frames, other_T_reference, dt, truth, earlier=partial(_last_images, stored)
        )


def open_pairs(text: str) -> StereoSimulationPairs:
    """Open SEED, FIRST-LAST, FIRST-LAST@FOLDER or FIRST-LAST@FOLDER?camera=kitti_half&varied=1.

    Raises: DataError for any other text, and for options that make no pair.
    """
    text, options = split_options(text, StereoSimulationOptions)
    seeds, _, folder = text.partition('@')
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', seeds)
    if not match:
        raise DataError(f'Simulated drives are named FIRST-LAST or FIRST-LAST@FOLDER, as in 0-9, got {text!r}.')
    return StereoSimulationPairs(int(match[1]), int(match[2] or match[1]), folder or None, options)


def recognises(text: str) -> bool:
    """Return False: a simulation has no path."""
    return False


_INTRINSICS = ('width', 'height', 'fx', 'fy', 'cx', 'cy', 'baseline')


def _stereo_frame(arrays, k: int) -> StereoFrame:
    intrinsics = dict(zip(_INTRINSICS, arrays['camera'].tolist(), strict=True))
    camera = StereoCamera(**intrinsics | {name: int(intrinsics[name]) for name in ('width', 'height')})
    images = [_read_jpeg(arrays[f'{side}_{k}']) for side in ('left', 'right')]
    return StereoFrame(*images, camera, _FIRST_STAMP_NS + round(float(arrays[f'stamp_{k}']) * 1e9), _FRAME_ID)


def _truth(arrays, first: int, second: int, camera: StereoCamera) -> StereoTruth:
    from training.simulation.cameras import pixel_motion

    body = arrays[f'body_{first}']
    disparity = (arrays[f'disparity_{first}'] * arrays[f'disparity_step_{first}']).astype(np.float32)
    disparity[body == pixel_motion.NO_BODY] = np.nan
    poses, bodies = arrays['odom_T_left'], arrays['odom_T_bodies']
    motion = pixel_motion.pixel_motion(
        camera, disparity, body, poses[[first, second]], bodies[[first, second]]
    )  # fmt: skip

    def unpacked(name: str, count: int) -> np.ndarray:
        bits = np.unpackbits(arrays[name], count=count * body.size)
        return bits.reshape(count, *body.shape).astype(bool)

    seen_left, seen_right = unpacked(f'visible_{first}_{second}', 2)
    known = np.isfinite(motion.other_disparity)
    return StereoTruth(
        disparity, motion.other_disparity, motion.flow, unpacked(f'visible_right_{first}', 1)[0],
        seen_left & seen_right & known, seen_left & known, pixel_motion.is_object(arrays[f'category_{first}']),
        motion.is_moving,
    )  # fmt: skip


def _last_images(stored: list[np.ndarray], most: int) -> list[np.ndarray]:
    return [_read_jpeg(data) for data in stored[max(0, len(stored) - most) :]]


def _jpeg(image: np.ndarray) -> np.ndarray:
    cv2 = load_opencv()
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].ravel()


def _read_jpeg(data: np.ndarray) -> np.ndarray:
    cv2 = load_opencv()
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError('a stored image cannot be decoded')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
