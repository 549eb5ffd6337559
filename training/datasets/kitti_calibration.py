# SPDX-License-Identifier: Apache-2.0
"""Calibration files of KITTI: lines of a name, a colon and numbers."""

from pathlib import Path

import numpy as np

from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, DataError

_FARTHEST = 100.0  # m between two sensors of a vehicle
_SIZES = {'P_rect_02': 12, 'P_rect_03': 12, 'S_rect_02': 2, 'R_rect_00': 9, 'R': 9, 'T': 3}


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """Return the numbers of a calibration file by name; lines with other text are left out.

    Raises: DataError when the file is missing, or an entry that is used here has another number of values.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path} should be a calibration file of KITTI: {error}') from error
    found = {}
    for line in lines:
        name, _, values = line.partition(':')
        try:
            found[name] = np.array(values.split(), np.float64)
        except ValueError:
            continue  # calib_time is a date
        if found[name].size != _SIZES.get(name, found[name].size) or not np.isfinite(found[name]).all():
            raise DataError(f'{path}: {name} should be {_SIZES.get(name)} finite numbers, got {values[:100]!r}.')
    return found


def stereo_camera(path: Path) -> StereoCamera:
    """Return the rectified colour cameras of a calib_cam_to_cam file: 2, left, and 3, right.

    Raises: DataError when an entry is missing or the cameras are not rectified.
    """
    found = _entries(path, 'P_rect_02', 'P_rect_03', 'S_rect_02')
    left, right = (found[name].reshape(3, 4) for name in ('P_rect_02', 'P_rect_03'))
    if not np.allclose(left[:, :3], right[:, :3], atol=1e-3):
        raise DataError(f'{path}: P_rect_02 and P_rect_03 should differ in their last column only.')
    width, height = (int(value) for value in found['S_rect_02'])
    baseline = (left[0, 3] - right[0, 3]) / left[0, 0] if left[0, 0] else 0.0
    numbers = (left[0, 0], left[1, 1], left[0, 2], left[1, 2], baseline)
    try:
        return StereoCamera(width, height, *map(float, numbers))
    except ConfigError as error:
        raise DataError(f'{path}: {error}') from error


def camera_T_reference(path: Path) -> np.ndarray:
    """Return the pose (4, 4) of the unrectified grey camera 0, the frame of the other files, in colour camera 2.

    The axes of the result are those of the rectified cameras. Raises: DataError when an entry is missing.
    """
    found = _entries(path, 'P_rect_02', 'R_rect_00')
    projection, result = found['P_rect_02'].reshape(3, 4), np.eye(4)
    result[:3, :3] = found['R_rect_00'].reshape(3, 3)
    try:
        result[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])  # 6 cm between cameras 0 and 2
    except np.linalg.LinAlgError as error:
        raise DataError(f'{path}: P_rect_02 is not the projection of a camera.') from error
    return _checked(result, path, 'R_rect_00')


def read_rigid(path: Path) -> np.ndarray:
    """Return the transform (4, 4) of a calib_velo_to_cam or calib_imu_to_velo file.

    Raises: DataError when an entry is missing or R is no rotation.
    """
    found = _entries(path, 'R', 'T')
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = found['R'].reshape(3, 3), found['T']
    return _checked(result, path, 'R')


def camera_T_imu(folder: Path) -> np.ndarray:
    """Return the pose (4, 4) of the IMU in rectified colour camera 2, from the three files of a day of raw data.

    Raises: DataError when a file or an entry is missing.
    """
    camera_T_velodyne = camera_T_reference(folder / 'calib_cam_to_cam.txt') @ read_rigid(
        folder / 'calib_velo_to_cam.txt'
    )
    return camera_T_velodyne @ read_rigid(folder / 'calib_imu_to_velo.txt')


def _checked(pose: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Return a pose (4, 4). Raises: DataError when it is no rigid transform between sensors of one vehicle."""
    if not (np.abs(pose[:3, :3]) < 2).all() or not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-3):
        raise DataError(f'{path}: {name} is not a rotation.')
    if not (np.abs(pose[:3, 3]) < _FARTHEST).all():
        raise DataError(f'{path}: the sensors are {np.abs(pose[:3, 3]).max():.3g} m apart.')
    return pose


def _entries(path: Path, *names: str) -> dict[str, np.ndarray]:
    found = read_calibration(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f'{path} lacks {", ".join(missing)}; expected a calibration file of KITTI raw data.')
    return found
