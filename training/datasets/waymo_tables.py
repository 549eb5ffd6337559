# SPDX-License-Identifier: Apache-2.0
"""Waymo Open perception data, version 2: Parquet tables, one file per drive in a folder for each component.

Read are lidar, lidar_pose, lidar_calibration, vehicle_pose and, where it is there, lidar_box. These tables hold neither
scene flow labels nor the map. Source: the components of waymo-open-dataset, version 2.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets.drive_pairs import rigid_transform
from training.datasets.range_image import (
    LASERS,
    TOP,
    FramePoints,
    LabelBox,
    LaserMount,
    image_points,
    join_points,
    label_box,
)
from training.datasets.waymo_frame import FrameHeader
from zeroflow_ros.errors import DataError

_STAMP, _LASER, _OBJECT = 'key.frame_timestamp_micros', 'key.laser_name', 'key.laser_object_id'
_IMAGES = ('[LiDARComponent].range_image_return1', '[LiDARComponent].range_image_return2')
_CELL_POSES = '[LiDARPoseComponent].range_image_return1'
_VEHICLE_POSE = '[VehiclePoseComponent].world_from_vehicle.transform'
_MOUNT = '[LiDARCalibrationComponent].extrinsic.transform'
_BEAMS = '[LiDARCalibrationComponent].beam_inclination'
_BOX = '[LiDARBoxComponent].box'
_BOX_NUMBERS = [f'{_BOX}.center.{axis}' for axis in 'xyz'] + [f'{_BOX}.size.{axis}' for axis in 'xyz']


class DriveTables:
    """The tables of one drive.

    context: its name. without_pose: stamps of frames that vehicle_pose lacks [us].
    Raises: DataError when a table is missing or lacks a column.
    """

    def __init__(self, root: Path, context: str):
        self.root, self.context = root, context
        poses = {
            row[_STAMP]: row[_VEHICLE_POSE] for row in read_rows(self.path('vehicle_pose'), [_STAMP, _VEHICLE_POSE])
        }
        stamps = sorted(_row_groups(self.path('lidar')))
        self.without_pose = [stamp for stamp in stamps if stamp not in poses]
        self._headers = [
            FrameHeader(context, stamp, rigid_transform(poses[stamp], f'The pose of {context} at {stamp}'), False)
            for stamp in stamps
            if stamp in poses
        ]
        self._poses = {header.stamp_us: header.world_T_vehicle for header in self._headers}
        columns = [_LASER, _MOUNT, *(f'{_BEAMS}.{name}' for name in ('values', 'min', 'max'))]
        self._mounts = {
            row[_LASER]: LaserMount(
                rigid_transform(row[_MOUNT], f'The extrinsic of {context}, {LASERS.get(row[_LASER], "unknown laser")}'),
                np.array(row[f'{_BEAMS}.values'] if row[f'{_BEAMS}.values'] is not None else [], np.float64),
                row[f'{_BEAMS}.min'], row[f'{_BEAMS}.max'],
            )
            for row in read_rows(self.path('lidar_calibration'), columns)
        }  # fmt: skip

    def path(self, component: str) -> Path:
        """Return the file of a component."""
        return self.root / component / f'{self.context}.parquet'

    def headers(self) -> list[FrameHeader]:
        """Return the frames with a pose, in order of time."""
        return self._headers

    def points(self, stamp_us: int, only_top: bool, only_first: bool) -> FramePoints:
        """Return the returns of a frame: by return, laser and cell, as far as wanted."""
        what = f'{self.context} at {stamp_us}'
        names = [f'{image}.{part}' for image in _IMAGES[: 1 if only_first else 2] for part in ('values', 'shape')]
        rows = {row[_LASER]: row for row in read_rows(self.path('lidar'), [_STAMP, _LASER, *names], stamp_us)}
        names = [f'{_CELL_POSES}.{part}' for part in ('values', 'shape')]
        poses = {row[_LASER]: row for row in read_rows(self.path('lidar_pose'), [_STAMP, _LASER, *names], stamp_us)}
        parts = []
        for image in _IMAGES[: 1 if only_first else 2]:
            for name in sorted(rows):
                where = f'{what}, {LASERS.get(name, "unknown laser")}'
                cells = _matrix(rows[name], image, 4, where)
                if (only_top and name != TOP) or cells is None:
                    continue
                if name not in self._mounts:
                    raise DataError(f'{where}: there is no calibration of this laser.')
                cell_poses = _matrix(poses[name], _CELL_POSES, 6, where) if name in poses else None
                if name == TOP and cell_poses is None:
                    raise DataError(f'{where}: the range image lacks the poses of its cells.')
                parts.append(image_points(cells, self._mounts[name], cell_poses, self._poses[stamp_us], None, where))
        if not parts:
            raise DataError(f'{what} holds no range image of the wanted LiDARs.')
        return join_points(parts)

    def boxes(self, stamp_us: int) -> dict[str, LabelBox]:
        """Return the labelled boxes of a frame by id; none where there is no table of boxes."""
        path, found = self.path('lidar_box'), {}
        if not path.is_file():
            return found
        columns = [_STAMP, _OBJECT, *_BOX_NUMBERS, f'{_BOX}.heading', '[LiDARBoxComponent].type']
        for row in read_rows(path, columns, stamp_us):
            numbers = [np.nan if row[name] is None else row[name] for name in _BOX_NUMBERS]
            what = f'{self.context} at {stamp_us}: the box {row[_OBJECT]!r}'
            heading, kind = row[f'{_BOX}.heading'], row['[LiDARBoxComponent].type'] or 0
            heading = np.nan if heading is None else heading
            found[row[_OBJECT]] = label_box(numbers[:3], numbers[3:], heading, kind, what)
        return found


@dataclass(frozen=True)
class TabledFrame:
    """A frame of a drive in tables."""

    tables: DriveTables
    stamp_us: int

    @property
    def name(self) -> str:
        """For messages."""
        return f'{self.tables.root}, {self.tables.context} at {self.stamp_us}'

    def points(self, only_top: bool, only_first: bool) -> FramePoints:
        """See `DriveTables.points`."""
        return self.tables.points(self.stamp_us, only_top, only_first)

    def boxes(self) -> dict[str, LabelBox]:
        """Return the labelled boxes by id."""
        return self.tables.boxes(self.stamp_us)

    def map_points(self) -> np.ndarray:
        """Return no points: the tables hold no map."""
        return np.zeros((0, 3))

    def map_offset(self) -> np.ndarray:
        """Return zeros: the tables hold no map."""
        return np.zeros(3)


def is_tables(root: Path) -> bool:
    """Return whether a folder holds tables of drives."""
    return any((root / 'lidar').glob('*.parquet'))


def read_tables(root: Path) -> list[DriveTables]:
    """Return the drives of a folder of tables, by name."""
    return [DriveTables(root, path.stem) for path in sorted((root / 'lidar').glob('*.parquet'))]


def read_rows(path: Path, columns: list[str], stamp_us: int | None = None) -> list[dict]:
    """Return rows of a table, those of one frame if stamp_us is given; lists of numbers are arrays.

    Raises: DataError when the file is missing, damaged, or lacks a column.
    """
    import pyarrow as pa

    with _open(path) as file:
        lacking = [name for name in columns if name not in file.schema_arrow.names]
        if lacking:
            raise DataError(f'{path} lacks the columns {", ".join(lacking)}.')
        groups = range(file.num_row_groups) if stamp_us is None else _row_groups(path).get(stamp_us, [])
        try:
            tables = [file.read_row_group(group, columns) for group in groups]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f'{path} is damaged: {error}.') from error
    rows = []
    for table in tables:
        stamps = None if stamp_us is None else table[_STAMP].to_pylist()
        for row in range(table.num_rows) if stamps is None else [k for k, one in enumerate(stamps) if one == stamp_us]:
            rows.append({name: _value(table[name][row]) for name in columns})
    return rows


def _value(scalar):
    values = getattr(scalar, 'values', None)
    return scalar.as_py() if values is None else values.to_numpy(zero_copy_only=False)


@lru_cache(maxsize=4096)
def _row_groups(path: Path) -> dict[int, list[int]]:
    """Return the row groups that hold rows of a frame, by its stamp [us]."""
    import pyarrow as pa

    found: dict[int, list[int]] = {}
    with _open(path) as file:
        if _STAMP not in file.schema_arrow.names:
            raise DataError(f'{path} lacks the column {_STAMP}.')
        try:
            for group in range(file.num_row_groups):
                for stamp in set(file.read_row_group(group, [_STAMP])[_STAMP].to_pylist()):
                    found.setdefault(stamp, []).append(group)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f'{path} is damaged: {error}.') from error
    return found


def _open(path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise DataError(f'There is no {path}: the drive needs lidar, lidar_pose, lidar_calibration and vehicle_pose.')
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f'{path} is no Parquet table, it may be cut: {error}.') from error


def _matrix(row: dict, name: str, channels: int, what: str) -> np.ndarray | None:
    """Return a matrix (H, W, C) float32 of a row; None where there is none."""
    values, shape = row[f'{name}.values'], row[f'{name}.shape']
    if values is None or shape is None:
        return None
    if len(shape) != 3 or shape[2] < channels or len(values) != np.prod(shape):
        shape = np.asarray(shape).tolist()
        raise DataError(f'{what} should be (H, W, {channels}), has the shape {shape} and {len(values)} numbers.')
    return values.astype(np.float32).reshape(shape)
