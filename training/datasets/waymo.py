# SPDX-License-Identifier: Apache-2.0
"""Waymo Open perception data as sweep pairs in the vehicle frame, without TensorFlow: TFRecords, or Parquet tables.

Each file holds the frames of one drive at 10 Hz. A sweep consists of all returns of all LiDARs of a frame, unless less
is asked for. The scene flow labels of a frame are velocities since the frame before, ego motion removed.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.box_flow import MovingBox, box_flow
from training.datasets.drive_pairs import Drive, DrivePairs, DropLog
from training.datasets.pairs import GroundTruthFlow, MetaClass
from training.datasets.range_image import NO_FLOW, FramePoints, LabelBox
from training.datasets.tfrecord import CutFileError, Record, read_record, records
from training.datasets.waymo_frame import FrameHeader, frame_boxes, frame_header, frame_points, map_offset, map_points
from training.datasets.waymo_tables import TabledFrame, is_tables, read_tables
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.sweep import DropReason

_LIDARS, _RETURNS, _FLOWS, _GROUNDS = ('all', 'top'), ('both', 'first'), ('labels', 'boxes'), ('points', 'map')
_STAMPS_US = (10**15, 10**16)  # September 2001 to 2286
# Label.Type and the classes of scene flow labels: vehicle (cars, lorries and buses alike), pedestrian, sign, cyclist.
_META_CLASS = np.array(
    [MetaClass.BACKGROUND, MetaClass.CAR, MetaClass.PEDESTRIAN, MetaClass.IGNORED, MetaClass.WHEELED_VRU], np.uint8
)
_MAP_CELL, _MAP_NEIGHBOURS, _MAP_MARGIN = 0.3, 20, 0.4  # m, points, m. Source: ZeroFlow


@dataclass(frozen=True)
class RecordedFrame:
    """A frame of a TFRecord file."""

    record: Record

    @property
    def name(self) -> str:
        """For messages."""
        return f'{self.record.path}, record {self.record.number}'

    def points(self, only_top: bool, only_first: bool) -> FramePoints:
        """See `waymo_frame.frame_points`."""
        return frame_points(read_record(self.record), self.name, only_top=only_top, only_first=only_first)

    def boxes(self) -> dict[str, LabelBox]:
        """Return the labelled boxes by id."""
        return frame_boxes(read_record(self.record), self.name)

    def map_points(self) -> np.ndarray:
        """Return the points of the map, (N, 3) [m] in the world; none where the frame has no map."""
        return map_points(read_record(self.record), self.name)

    def map_offset(self) -> np.ndarray:
        """Return what is added to points in the world to agree with the map, (3,) [m]."""
        return map_offset(read_record(self.record), self.name)


@dataclass(frozen=True)
class WaymoOptions:
    """Options.

    lidars: all, or top. returns: both, or first. flow: labels, the scene flow labels of the frame whose points are
    scored: exact for the newer sweep of a pair, and for the older one its velocity since the sweep before carried on;
    or boxes, the motion of the labelled boxes between both sweeps. ground: points, by Patchwork++, or map, at most
    0.4 m above the mean of the nearest map points. ZeroFlow took lidars=top, returns=first, flow=labels, ground=map.
    ego_box: x_min,x_max,y_min,y_max,z_min,z_max of the own vehicle in the vehicle frame [m], whose points count as no
    returns; '' for none.
    """

    lidars: str = 'all'
    returns: str = 'both'
    flow: str = 'labels'
    ground: str = 'points'
    ego_box: str = ''


class WaymoDrive(Drive):
    """The frames of one drive; see `Drive`."""

    ground_z = 0.0  # the vehicle frame lies on the ground

    def __init__(self, name: str, options: WaymoOptions):
        self.name, self.dropped, self._options = name, DropLog(), options
        self._own_vehicle = OwnVehicle.from_text(options.ego_box)
        self.stamps_ns, self.world_T_ego, self._frames = [], [], []
        self.num_without_flow = 0

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""
        if self._options.flow == 'boxes' or not self.num_without_flow:
            return []
        count = f'{self.num_without_flow} of {len(self._frames)}'
        return [
            f'{self.name}: {count} frames have no scene flow labels and are not scored. Take flow=boxes, or files that '
            'have them.'
        ]

    def add(self, frame: RecordedFrame | TabledFrame, header: FrameHeader) -> None:
        """Add a frame, in order of time."""
        self.stamps_ns.append(header.stamp_us * 1000)
        self.world_T_ego.append(header.world_T_vehicle)
        self._frames.append(frame)
        self.num_without_flow += not header.has_flow

    def read(self, number: int) -> tuple[np.ndarray, None]:
        """See `Drive`. Waymo stores no times of points."""
        points = _points(self, number).points.copy()
        points[self._own_vehicle.rows(points, None)] = np.nan
        return points, None

    def frame_points(self, number: int) -> FramePoints:
        """Return the returns of a frame with their labels."""
        return self._frames[number].points(self._options.lidars == 'top', self._options.returns == 'first')

    def boxes(self, number: int) -> dict[str, LabelBox]:
        """Return the labelled boxes of a frame by id."""
        return self._frames[number].boxes()

    def truth(self, number: int, other: int, points: np.ndarray) -> GroundTruthFlow | None:
        """See `Drive`. Points in zones without labels are not valid."""
        labelled = _points(self, number)
        if self._options.flow == 'boxes':
            return self._box_truth(number, other, points, labelled.is_unlabelled)
        if labelled.velocity is None:
            return None
        seconds = (self.stamps_ns[other] - self.stamps_ns[number]) * 1e-9
        kind = labelled.kind
        is_valid = (kind != NO_FLOW) & ~labelled.is_unlabelled & np.isfinite(points).all(1)
        if (kind < NO_FLOW).any() or (kind >= len(_META_CLASS)).any():
            raise DataError(f'{self._frames[number].name}: scene flow labels have the classes {np.unique(kind)}.')
        flow = np.where(is_valid[:, None], labelled.velocity * np.float32(seconds), 0).astype(np.float32)
        return GroundTruthFlow(flow, np.where(kind == NO_FLOW, 0, _META_CLASS[kind]).astype(np.uint8), is_valid)

    def _box_truth(self, number: int, other: int, points: np.ndarray,
                   is_unlabelled: np.ndarray) -> GroundTruthFlow | None:  # fmt: skip
        now, then = _boxes(self, number), _boxes(self, other)
        if not now or not then:
            return None
        ego0_T_ego1 = transforms.invert(self.world_T_ego[number]) @ self.world_T_ego[other]
        boxes = [
            MovingBox(
                box.vehicle_T_box, ego0_T_ego1 @ then[name].vehicle_T_box if name in then else None, box.half_size,
                int(_META_CLASS[box.kind]) if 0 <= box.kind < len(_META_CLASS) else MetaClass.IGNORED,
            )
            for name, box in now.items()
        ]  # fmt: skip
        found = box_flow(points, boxes)
        return GroundTruthFlow(found.flow, found.meta_class, found.is_valid & ~is_unlabelled)

    def ground(self, number: int, points: np.ndarray) -> np.ndarray | None:
        """Return which points (N, 3) are ground by the map; None: to be found from the points."""
        if self._options.ground == 'points':
            return None
        in_world = transforms.apply(self.world_T_ego[number], points.astype(np.float64))
        in_world += self._frames[number].map_offset()
        mask = np.isfinite(in_world).all(1)
        mask[mask] = in_world[mask, 2] <= _map_heights(self, in_world[mask, :2]) + _MAP_MARGIN
        return mask

    def map_points(self) -> np.ndarray:
        """Return the points of the map, which the first frame holds, (N, 3) [m] in the world."""
        points = self._frames[0].map_points()
        if not len(points):
            raise DataError(
                f'{self._frames[0].name} holds no map. Leave out ground=map, or take version 1.4 of the data.'
            )
        return points


def open_pairs(text: str) -> DrivePairs:
    """Open a TFRecord file or a folder of them, with the options of `WaymoOptions`. Raises: DataError."""
    text, options = split_options(text, WaymoOptions)
    for name, known in (('lidars', _LIDARS), ('returns', _RETURNS), ('flow', _FLOWS), ('ground', _GROUNDS)):
        if getattr(options, name) not in known:
            raise DataError(f'{name} is one of {", ".join(known)}, got {getattr(options, name)!r}.')
    root, drives = Path(text), {}
    if is_tables(root):
        _add_tables(root, drives, options)
    for path in _files(root):
        _add_file(path, drives, options)
    if not drives:
        raise DataError(f'{root} is no TFRecord file and holds none: expected segment-*.tfrecord, or tables in lidar/.')
    name = root.resolve().name.removesuffix('.tfrecord')
    return DrivePairs(name, list(drives.values()))


def recognises(text: str) -> bool:
    """Return whether a path is a TFRecord file, a folder of them, or one of tables."""
    root = Path(text.partition('?')[0])
    return bool(_files(root)) or is_tables(root)


def _files(root: Path) -> list[Path]:
    return sorted(root.glob('*.tfrecord')) if root.is_dir() else [root] if root.suffix == '.tfrecord' else []


def _add_file(path: Path, drives: dict[str, WaymoDrive], options: WaymoOptions) -> None:
    """Add the frames of a file to their drives; frames that cannot be read, and the rest of a cut file, are counted.

    Raises: DataError when no frame can be read.
    """
    drive, problems = None, []
    try:
        for record, data in records(path):
            frame = RecordedFrame(record)
            try:
                header = _checked(frame_header(data, frame.name), frame.name)
            except DataError as error:
                problems.append(error)
                continue
            drive = _drive_of(header, drives, options)
            drive.add(frame, header)
    except CutFileError as error:
        problems.append(error)
    if drive is None:
        raise problems[0]
    for error in problems:
        drive.dropped.add(DropReason.MALFORMED.value, str(error).rstrip('.'))


def _add_tables(root: Path, drives: dict[str, WaymoDrive], options: WaymoOptions) -> None:
    """Add the drives of a folder of tables."""
    for tables in read_tables(root):
        for header in tables.headers():
            frame = TabledFrame(tables, header.stamp_us)
            _drive_of(header, drives, options).add(frame, _checked(header, frame.name))
        for stamp_us in tables.without_pose:
            drive = drives.setdefault(tables.context, WaymoDrive(tables.context, options))
            drive.dropped.add(DropReason.EGO_MOTION.value, f'{tables.context}: frame {stamp_us} has no vehicle_pose')


def _drive_of(header: FrameHeader, drives: dict[str, WaymoDrive], options: WaymoOptions) -> WaymoDrive:
    name = header.context.replace('/', '_')
    return drives.setdefault(name, WaymoDrive(name, options))


def _checked(header: FrameHeader, name: str) -> FrameHeader:
    if not _STAMPS_US[0] <= header.stamp_us < _STAMPS_US[1]:
        raise DataError(f'{name}: the timestamp should be microseconds since 1970, got {header.stamp_us}.')
    return header


@lru_cache(maxsize=6)
def _points(drive: WaymoDrive, number: int) -> FramePoints:
    return drive.frame_points(number)


@lru_cache(maxsize=4)
def _boxes(drive: WaymoDrive, number: int) -> dict[str, LabelBox]:
    return drive.boxes(number)


@lru_cache(maxsize=1)
def _map_tree(drive: WaymoDrive):
    from scipy.spatial import cKDTree

    points = drive.map_points()
    return cKDTree(points[:, :2]), points[:, 2]


def _map_heights(drive: WaymoDrive, places: np.ndarray) -> np.ndarray:
    """Return the height of the ground (N,) [m] at places (N, 2) of the world: the mean of the nearest map points."""
    tree, heights = _map_tree(drive)
    cells, cell_of = np.unique(np.round(places / _MAP_CELL), axis=0, return_inverse=True)
    _, nearest = tree.query(cells * _MAP_CELL, k=min(_MAP_NEIGHBOURS, len(heights)))
    return heights[nearest.reshape(len(cells), -1)].mean(axis=1)[cell_of.reshape(-1)]
