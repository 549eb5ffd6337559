# SPDX-License-Identifier: Apache-2.0
"""Stereo drives of KITTI raw data (synchronised and rectified): kitti_raw:DATE/DRIVE.

DATE is the folder of a day, DRIVE that of a drive in it:
  2011_09_26/calib_cam_to_cam.txt, calib_velo_to_cam.txt, calib_imu_to_velo.txt
  2011_09_26/2011_09_26_drive_0005_sync/image_{02,03}/data/%010d.png, image_02/timestamps.txt
  2011_09_26/2011_09_26_drive_0005_sync/oxts/data/%010d.txt, oxts/timestamps.txt         GPS and inertial poses
  2011_09_26/2011_09_26_drive_0005_sync/velodyne_points/data/%010d.bin                   clouds, for true depth
  2011_09_26/2011_09_26_drive_0005_sync/proj_depth/groundtruth/image_02/%010d.png        improved true depth

Poses are on the Mercator projection at the latitude of the first one, as in the raw data development kit.
"""

import calendar
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.kitti_calibration import camera_T_imu, stereo_camera
from training.datasets.kitti_png import check_size, read_image
from training.datasets.lidar_depth import DriveDepth
from training.datasets.pairs import LATEST
from training.datasets.stereo_pairs import StereoDatasetPair
from zeroflow_ros import transforms
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_pairing import FrameBuffer, FrameDrop
from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.errors import DataError, EgoMotionError

_EARTH_RADIUS = 6378137.0  # m
_REACH = 50_000_000  # ns by which an image may be before the first or after the last pose
_SIDES = ('image_02', 'image_03')
_OXTS_FIELDS = 30
_MOST = np.array([85, 180, 1e4, 7, 7, 7])  # of latitude, longitude [degrees], altitude [m], roll, pitch, yaw [rad]


@dataclass(frozen=True)
class KittiRawOptions:
    """Options.

    ego_motion: oxts, or none. min_dt, max_dt: time between the frames of a pair [s]. latest: the newer frame is the
    reference, as in the node. depth: true depth for scores, velodyne (the cloud of the frame), improved (the maps of
    KITTI's depth benchmark) or none.
    """

    ego_motion: str = 'oxts'
    min_dt: float = 0.06
    max_dt: float = 0.5
    latest: bool = False
    depth: str = 'none'


@dataclass(frozen=True)
class _Frame:
    """A frame of a drive. number: in the names of its files. pose: world_T_camera, None for none."""

    number: int
    stamp_ns: int
    pose: np.ndarray | None
    frame_id: str = 'camera_02'


class KittiRawPairs:
    """Pairs of consecutive frames of one drive; the older frame is the reference.

    There is no ground truth but depth, on request.

    skipped: number of frames without a pair with the previous one, by reason. The first frame is not counted.
    Raises: DataError that names a missing folder, file or entry.
    """

    sensor = 'stereo'

    def __init__(self, drive: str | Path, options: KittiRawOptions = KittiRawOptions()):
        self.path = Path(drive)
        self.name = self.path.resolve().name
        self.skipped: Counter[str] = Counter()
        if options.ego_motion not in ('oxts', 'none'):
            raise DataError(f'ego_motion of kitti_raw should be oxts or none, got {options.ego_motion!r}.')
        for folder in (*(f'{side}/data' for side in _SIDES), *(['oxts/data'] if options.ego_motion == 'oxts' else [])):
            if not (self.path / folder).is_dir():
                raise DataError(
                    f'{self.path} lacks the folder {folder}. Expected a drive of KITTI raw data, synced and rectified: '
                    'kitti_raw:2011_09_26/2011_09_26_drive_0005_sync.'
                )
        self._day = self.path.resolve().parent
        self._from_latest = options.latest
        self._depth = None if options.depth == 'none' else DriveDepth(self.path, options.depth)
        self._calibration = self._day / 'calib_cam_to_cam.txt'
        self._camera = stereo_camera(self._calibration)
        self._pairs = self._find_pairs(options)

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the number of the older frame, as in the names of its files, and its stamp [ns]."""
        older = self._pairs[index][0]
        return f'{older.number:010d}_{older.stamp_ns}' + LATEST * self._from_latest

    def __getitem__(self, index: int) -> StereoDatasetPair:
        if self._from_latest:
            return self.latest(index)
        return self._item(self.key(index), *self._pairs[index], partial(self._earlier, index))

    def latest(self, index: int) -> StereoDatasetPair:
        """Return a pair seen from its newer frame, which becomes the reference: dt is negative."""
        older, newer = self._pairs[index]
        return self._item(self.key(index).removesuffix(LATEST) + LATEST, newer, older)

    def _earlier(self, index: int, most: int) -> list[np.ndarray]:
        """Return the left images right before the older frame of a pair, without a gap."""
        images = []
        while len(images) < most and index > 0 and self._pairs[index - 1][1].number == self._pairs[index][0].number:
            index -= 1
            images.insert(0, self._read(_SIDES[0], self._pairs[index][0].number))
        return images

    def _item(self, key: str, reference: _Frame, other: _Frame, earlier=None) -> StereoDatasetPair:
        other_T_reference = None
        if reference.pose is not None:
            other_T_reference = transforms.invert(other.pose) @ reference.pose
        dt = (other.stamp_ns - reference.stamp_ns) * 1e-9
        return StereoDatasetPair(
            key, self._frame(reference), self._frame(other), other_T_reference, dt,
            depth=self._depth and self._depth.of(reference.number), earlier=earlier,
        )  # fmt: skip

    def _frame(self, frame: _Frame) -> StereoFrame:
        images = [self._read(side, frame.number) for side in _SIDES]
        return StereoFrame(*images, self._camera, frame.stamp_ns, frame.frame_id)

    def _read(self, side: str, number: int) -> np.ndarray:
        path = self._image(side, number)
        image = read_image(path)
        check_size(path, image, (self._camera.height, self._camera.width), self._calibration)
        return image

    def _image(self, side: str, number: int) -> Path:
        return self.path / side / 'data' / f'{number:010d}.png'

    def _find_pairs(self, options: KittiRawOptions) -> list[tuple[_Frame, _Frame]]:
        stamps = _read_stamps(self.path / 'image_02' / 'timestamps.txt')
        numbers = [number for number in range(len(stamps)) if self._image('image_02', number).is_file()]
        missing = [number for number in numbers if not self._image('image_03', number).is_file()]
        if missing:
            raise DataError(
                f'{self.path} lacks {len(missing)} right images, for example {self._image("image_03", missing[0])}. '
                'Unpack the drive again.'
            )
        poses = dict.fromkeys(numbers)
        if options.ego_motion == 'oxts':
            world_T_imu = _ImuPoses(self.path / 'oxts')
            imu_T_camera = transforms.invert(camera_T_imu(self._day))
            poses = {number: world_T_imu.at(stamps[number]) @ imu_T_camera for number in numbers}
        buffer, pairs = FrameBuffer((options.min_dt, options.max_dt)), []
        for number in numbers:
            frame = _Frame(number, stamps[number], poses[number])
            previous, drop = buffer.push(frame)
            if drop is None and frame.pose is not None:
                try:
                    check_plausible(
                        transforms.invert(previous.pose) @ frame.pose, (frame.stamp_ns - previous.stamp_ns) * 1e-9
                    )
                except EgoMotionError:
                    drop = FrameDrop.EGO_MOTION
            if drop is None:
                pairs.append((previous, frame))
            elif drop is not FrameDrop.FIRST:
                self.skipped[drop.value] += 1
        if not pairs:
            skipped = ', '.join(f'{count} {name}' for name, count in self.skipped.items())
            raise DataError(f'{self.path}: {len(numbers)} images make no pair. {skipped}'.rstrip())
        return pairs

    @property
    def warnings(self) -> list[str]:
        """Sentences on the frames that make no pair."""
        return [f'{number} frames make no pair ({name}).' for name, number in self.skipped.items()]


class _ImuPoses:
    """The poses of the IMU of a drive, world_T_imu, at any time; z of the world is up. folder: oxts."""

    def __init__(self, folder: Path):
        self._stamps = _read_stamps(folder / 'timestamps.txt')
        paths = [folder / 'data' / f'{number:010d}.txt' for number in range(len(self._stamps))]
        rows = [_read_oxts(path) for path in paths]
        scale = np.cos(np.radians(rows[0][0]))
        self._poses = [_pose(row, scale) for row in rows]
        self._folder = folder

    def at(self, stamp_ns: int) -> np.ndarray:
        """Return the pose (4, 4) at a time. Raises: DataError more than 50 ms before the first or after the last."""
        stamps = self._stamps
        if not stamps[0] - _REACH <= stamp_ns <= stamps[-1] + _REACH:
            raise DataError(
                f'{self._folder} has no pose at {stamp_ns} ns, the time of an image. Unpack the drive again.'
            )
        if len(stamps) == 1:
            return self._poses[0]
        after = int(np.clip(np.searchsorted(stamps, stamp_ns), 1, len(stamps) - 1))
        before = after - 1
        fraction = (stamp_ns - stamps[before]) / (stamps[after] - stamps[before])
        return transforms.interpolate(self._poses[before], self._poses[after], fraction)


def _read_oxts(path: Path) -> np.ndarray:
    try:
        row = np.array(path.read_text().split(), np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f'{path} should be a line of {_OXTS_FIELDS} numbers: {error}') from error
    if row.size < 6 or not (np.abs(row[:6]) <= _MOST).all():  # not NaN
        raise DataError(
            f'{path} should start with latitude and longitude [degrees], altitude [m], roll, pitch and yaw [rad], got '
            f'{row[:6].tolist()}.'
        )
    return row


def _pose(row: np.ndarray, scale: float) -> np.ndarray:
    """Return the pose (4, 4) of a row of oxts on the Mercator projection of a scale. Source: KITTI raw data kit."""
    latitude, longitude, altitude, roll, pitch, yaw = row[:6]
    pose = np.eye(4)
    pose[:3, :3] = (
        transforms.rotation_matrix([0, 0, yaw]) @ transforms.rotation_matrix([0, pitch, 0])
        @ transforms.rotation_matrix([roll, 0, 0])
    )  # fmt: skip
    radius = scale * _EARTH_RADIUS
    pose[:3, 3] = (
        radius * np.radians(longitude), radius * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2)), altitude
    )  # fmt: skip
    return pose


def _read_stamps(path: Path) -> list[int]:
    """Return the lines '2011-09-26 13:02:25.594360375' of a file as ROS times [ns].

    Raises: DataError when the file is missing, empty or has another line, or when times do not ascend.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path} cannot be read: {error}') from error
    stamps = []
    for line in filter(str.strip, lines):
        match = re.fullmatch(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.(\d{1,9})', line.strip())
        try:
            seconds = calendar.timegm(time.strptime(match[1], '%Y-%m-%d %H:%M:%S'))
        except (TypeError, ValueError) as error:
            raise DataError(f'{path} should have lines like 2011-09-26 13:02:25.594360375, got {line!r}.') from error
        stamps.append(seconds * 10**9 + int(match[2].ljust(9, '0')))
    if not stamps or any(later <= earlier for earlier, later in pairwise(stamps)):
        raise DataError(f'{path} should have a later time on each line, and one line at least.')
    return stamps


def open_pairs(text: str) -> KittiRawPairs:
    """See `open_dataset`."""
    drive, options = split_options(text, KittiRawOptions)
    return KittiRawPairs(drive, options)


def recognises(text: str) -> bool:
    """Return whether a path is a drive of KITTI raw data with colour images of both cameras."""
    drive = Path(text.partition('?')[0])
    return all((drive / side / 'data').is_dir() for side in _SIDES)
