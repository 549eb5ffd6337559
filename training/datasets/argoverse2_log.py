# SPDX-License-Identifier: Apache-2.0
"""One Argoverse 2 Sensor log: sweeps, poses, and the ground height from its map."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets.drive_pairs import unit_quaternion_pose
from training.datasets.pairs import HISTORY
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair

# m: points lower than this above the ground of the map are ground. Source: av2; ZeroFlow takes 0.4.
GROUND_MARGIN = 0.3
_POSE = ('tx_m', 'ty_m', 'tz_m'), ('qx', 'qy', 'qz', 'qw')  # columns of translation and quaternion


class Argoverse2Log:
    """One log: its sweeps in order of time, and the vehicle pose at each of them.

    Raises: DataError that names the missing file, or the sweep without a pose.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = (self.path / 'sensors' / 'lidar').glob('*.feather')
        self.files = sorted((file for file in files if file.stem.isdigit()), key=lambda file: int(file.stem))
        if len(self.files) < 2:
            raise DataError(
                f'{self.path} needs two sweeps in sensors/lidar/<timestamp_ns>.feather, found {len(self.files)}.'
            )
        poses = read_columns(self.path, 'city_SE3_egovehicle.feather', 'timestamp_ns qw qx qy qz tx_m ty_m tz_m')
        row_of, self.city_T_ego = {int(stamp): k for k, stamp in enumerate(poses['timestamp_ns'])}, []
        for file in self.files:
            if int(file.stem) not in row_of:
                raise DataError(
                    f'{self.path}: city_SE3_egovehicle.feather has no pose at the sweep {file.stem}; it needs one at '
                    'exactly that time.'
                )
            pose = {name: column[row_of[int(file.stem)]] for name, column in poses.items()}
            translation, quaternion = ([pose[name] for name in names] for names in _POSE)
            where = f'{self.path}: city_SE3_egovehicle.feather at {file.stem}'
            self.city_T_ego.append(unit_quaternion_pose(translation, quaternion, where))

    def pair(self, index: int) -> SweepPair:
        """Return sweeps `index` and the next."""
        ego0_T_ego1 = transforms.invert(self.city_T_ego[index]) @ self.city_T_ego[index + 1]
        dt = (int(self.files[index + 1].stem) - int(self.files[index].stem)) * 1e-9
        points0, points1 = (_read_sweep(self.path, self.files[k])[0].copy() for k in (index, index + 1))
        return SweepPair(points0, points1, ego0_T_ego1, dt, *self.beside(index))

    def beside(self, index: int) -> tuple[tuple[PosedSweep, ...], tuple[PosedSweep, ...]]:
        """Return up to HISTORY sweeps before and after the pair of sweeps `index` and the next, the nearest first."""

        def posed(numbers) -> tuple[PosedSweep, ...]:
            ego0_T_city = transforms.invert(self.city_T_ego[index])
            known = [k for k in numbers if 0 <= k < len(self.files)]
            return tuple(
                PosedSweep(_read_sweep(self.path, self.files[k])[0], ego0_T_city @ self.city_T_ego[k]) for k in known
            )

        steps = range(1, HISTORY + 1)
        return posed(index - k for k in steps), posed(index + 1 + k for k in steps)

    def times(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the times of the points of sweeps `index` and the next, (N,) and (M,) float32 [s] after their stamps.

        The two LiDARs rotate in opposite phase: one sees a car 0.05 s before the other.
        """
        times0, times1 = (_read_sweep(self.path, self.files[k])[1].copy() for k in (index, index + 1))
        return times0, times1


class GroundMap:
    """Ground height of a city as a raster.

    Raises: DataError when there is not exactly one raster and one placement under map/ of a log.
    """

    def __init__(self, log: Path):
        raster = only_map_file(log, '*_ground_height_surface____*.npy')
        placement = only_map_file(log, '*img_Sim2_city.json')
        try:
            self._heights = np.load(raster).astype(np.float64)  # (rows, columns) [m], NaN where unknown
            sim2 = json.loads(placement.read_text())
            self._rotation, self._shift = np.reshape(sim2['R'], (2, 2)), np.array(sim2['t'], np.float64)
            self._scale = float(sim2['s'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f'{raster} and {placement} should be a raster and its R, t, s: {error!r}') from error

    def is_ground(self, points: np.ndarray, margin: float = GROUND_MARGIN) -> np.ndarray:
        """Return which of points (N, 3) [m] in the city frame are at most margin [m] above the ground or below it.

        Points where the map has no height are not ground.
        """
        pixels = (points[:, :2] @ self._rotation.T + self._shift) * self._scale
        rows, columns = self._heights.shape
        with np.errstate(invalid='ignore'):  # a point that is NaN is outside
            column, row = np.round(pixels).astype(np.int64).T
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        height = np.full(len(points), np.nan)
        height[inside] = self._heights[row[inside], column[inside]]
        return points[:, 2] <= height + margin  # NaN compares as False


@lru_cache(maxsize=2 * HISTORY + 4)  # consecutive pairs share most of their sweeps
def _read_sweep(log: Path, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (N, 3) float32 [m] of a sweep, and their times (N,) float32 [s] after its stamp."""
    sweep = read_columns(log, file.relative_to(log), 'x y z offset_ns')
    points = np.stack([sweep[axis] for axis in 'xyz'], axis=1).astype(np.float32)
    return points, (sweep['offset_ns'] * 1e-9).astype(np.float32)


def only_map_file(log: Path, pattern: str) -> Path:
    """Return the only file under map/ that matches a pattern. Raises: DataError for none or several."""
    found = sorted((log / 'map').glob(pattern))
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        raise DataError(f'{log} needs exactly one map/{pattern}, found {names}.')
    return found[0]


def read_columns(log: Path, name: str | Path, columns: str) -> dict[str, np.ndarray]:
    """Return the columns of a feather file of a log; `columns` lists their names, separated by spaces.

    Raises: DataError when the file is missing, broken, or lacks one.
    """
    from pyarrow import ArrowException, feather

    if not (log / name).is_file():
        raise DataError(f'{log} lacks {name}.')
    try:
        table = feather.read_table(log / name, columns=columns.split())
    except (ArrowException, ValueError, OSError) as error:
        raise DataError(f'{log / name} should be a feather file with columns {columns}: {error}') from error
    return {column: table[column].to_numpy() for column in table.column_names}
