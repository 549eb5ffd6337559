# SPDX-License-Identifier: Apache-2.0
"""PandaSet in the official layout, as sweep pairs, in the frame of the upper LiDAR turned to x forward, y left.

A sequence folder holds lidar/NN.pkl.gz (x y z in the world [m], i, t [s], d: 0 for the spinning Pandar64, 1 for the
forward-facing PandarGT), lidar/poses.json, lidar/timestamps.json, and annotations/cuboids/NN.pkl.gz. Files are pickled
tables, which are read by `frame_pickles` and only with the user's word. In the LiDAR frame of PandaSet x points to the
right and y forward; yaw 0 of a cuboid points along y of the world, dimensions.x is its width, dimensions.y its length.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.datasets import split_options
from training.datasets.box_flow import BOX_MARGIN, MovingBox, box_flow
from training.datasets.drive_pairs import NO_FILE, Drive, DrivePairs, DropLog, unit_quaternion_pose
from training.datasets.frame_pickles import read_frame
from training.datasets.pairs import GroundTruthFlow, MetaClass
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.sweep import DropReason

SENSORS = {'both': (0, 1), 'pandar64': (0,), 'pandargt': (1,)}
_STAMPS = (1e9, 1e10)  # s: 2001 to 2286
_LONGEST = 0.25  # s between a point and the stamp of its sweep
_BOTH = -1  # sensor_id of cuboids that hold the points of both sensors
_TURNED = transforms.yaw_translation(np.pi / 2, 0, 0)  # pandaset_T_ego: x forward is y of PandaSet
_CUBOID = ('uuid label yaw stationary position.x position.y position.z dimensions.x dimensions.y dimensions.z '
           'cuboids.sensor_id')  # fmt: skip
# As Argoverse 2's categories are scored; labels not listed here are ignored.
_MEMBERS = {
    MetaClass.CAR: ('Car', 'Pickup Truck'),
    MetaClass.OTHER_VEHICLES: (
        'Medium-sized Truck', 'Semi-truck', 'Towed Object', 'Other Vehicle - Construction Vehicle',
        'Other Vehicle - Uncommon', 'Emergency Vehicle', 'Bus', 'Train', 'Trolley', 'Tram / Subway',
    ),
    MetaClass.PEDESTRIAN: ('Pedestrian', 'Pedestrian with Object'),
    MetaClass.WHEELED_VRU: (
        'Motorcycle', 'Personal Mobility Device', 'Motorized Scooter', 'Bicycle', 'Other Vehicle - Pedicab',
    ),
}  # fmt: skip
META_CLASS = {label: meta_class for meta_class, labels in _MEMBERS.items() for label in labels}


@dataclass(frozen=True)
class PandaSetOptions:
    """Options.

    trust_pickles: the user's word that the files come from a trusted source; nothing is read without. sensor: one of
    SENSORS. ego_box: x_min,x_max,y_min,y_max,z_min,z_max of the own vehicle in the frame of the points [m]: points
    inside count as no returns; '' for none.
    """

    trust_pickles: bool = False
    sensor: str = 'both'
    ego_box: str = ''


@dataclass(frozen=True)
class Cuboid:
    """A box of one sweep. world_T_box: (4, 4). half_size: (3,) [m]. sensor: whose points it holds, _BOTH for all."""

    world_T_box: np.ndarray
    half_size: np.ndarray
    meta_class: MetaClass
    is_stationary: bool
    sensor: int


class PandaSetSequence(Drive):
    """The sweeps of one sequence; see `Drive`.

    Raises: DataError when poses.json or timestamps.json is missing or malformed.
    """

    def __init__(self, path: Path, options: PandaSetOptions):
        self.path, self.name, self.dropped = path, path.resolve().name, DropLog()
        self._own_vehicle, self._sensors = OwnVehicle.from_text(options.ego_box), SENSORS[options.sensor]
        poses, stamps = _read_list(path / 'lidar' / 'poses.json'), _read_list(path / 'lidar' / 'timestamps.json')
        files = {int(file.name.split('.')[0]): file for file in (path / 'lidar').glob('[0-9]*.pkl.gz')}
        if len(poses) != len(stamps):
            raise DataError(f'{path}/lidar has {len(poses)} poses and {len(stamps)} timestamps, expected as many.')
        self.stamps_ns, self.world_T_ego, self._files = [], [], []
        for number, (pose, stamp) in enumerate(zip(poses, stamps, strict=True)):
            stamp_ns, world_T_ego = _stamp_ns(stamp, path), _pose(pose, f'{path}/lidar/poses.json: pose {number}')
            if number not in files:
                self.dropped.add(NO_FILE, f'There is no {path}/lidar/{number:02d}.pkl.gz')
                continue
            self.stamps_ns.append(stamp_ns)
            self.world_T_ego.append(world_T_ego)
            self._files.append(files[number])
        for number in sorted(files.keys() - set(range(len(poses)))):
            self.dropped.add(DropReason.EGO_MOTION.value, f'{files[number]} has no pose in poses.json')

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Drive`. Points without plausible times have none."""
        points, times, _ = _sweep(self, number)
        return points, times

    def read_sweep(self, number: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Return the points, times and sensors (N,) of a sweep."""
        columns = read_frame(self._files[number], 'x y z t d')
        kept = np.isin(columns['d'], self._sensors)
        world = np.stack([columns[axis][kept] for axis in 'xyz'], 1).astype(np.float64)
        points = transforms.apply(transforms.invert(self.world_T_ego[number]), world).astype(np.float32)
        points[~np.isfinite(points).all(1)] = np.nan
        points[self._own_vehicle.rows(points, None)] = np.nan
        times = columns['t'][kept].astype(np.float64) - self.stamps_ns[number] * 1e-9
        plausible = np.isfinite(times).all() and np.abs(times).max(initial=0) < _LONGEST
        return points, times.astype(np.float32) if plausible else None, columns['d'][kept].astype(np.int64)

    def truth(self, number: int, other: int, points: np.ndarray) -> GroundTruthFlow | None:
        """See `Drive`. Stationary cuboids do not move, although their annotated boxes jitter."""
        now, then = self._cuboids(number), self._cuboids(other)
        if now is None or then is None:
            return None
        ego0_T_world, sensor_of = transforms.invert(self.world_T_ego[number]), _sweep(self, number)[2]
        flow, is_valid = np.zeros_like(points), np.zeros(len(points), bool)
        meta_class = np.zeros(len(points), np.uint8)
        for sensor in self._sensors:
            boxes = []
            for uuid, box in now.items():
                if box.sensor not in (_BOTH, sensor):
                    continue
                later = box if box.is_stationary else then.get(uuid)
                pose = None if later is None else ego0_T_world @ later.world_T_box
                half_size = box.half_size + [BOX_MARGIN / 2, BOX_MARGIN / 2, 0]
                boxes.append(MovingBox(ego0_T_world @ box.world_T_box, pose, half_size, box.meta_class))
            rows = np.flatnonzero(sensor_of == sensor)
            found = box_flow(points[rows], boxes)
            flow[rows], meta_class[rows], is_valid[rows] = found.flow, found.meta_class, found.is_valid
        return GroundTruthFlow(flow, meta_class, is_valid)

    def _cuboids(self, number: int) -> dict[str, Cuboid] | None:
        """Return the cuboids of a sweep by uuid; None where it is not annotated."""
        path = self.path / 'annotations' / 'cuboids' / self._files[number].name
        return _read_cuboids(path) if path.is_file() else None


def open_pairs(text: str) -> DrivePairs:
    """Open ROOT, or one sequence, with the options of `PandaSetOptions` behind a question mark. Raises: DataError."""
    text, options = split_options(text, PandaSetOptions)
    root = Path(text)
    if options.sensor not in SENSORS:
        raise DataError(f'sensor is one of {", ".join(SENSORS)}, got {options.sensor!r}.')
    paths = _sequences(root)
    if not paths:
        raise DataError(f'{root} is no sequence of PandaSet and holds none: expected <sequence>/lidar/poses.json.')
    if not options.trust_pickles:
        raise DataError(
            f'The sweeps of {root} are pickles, which can hold anything their writer wants. They are read by an '
            'unpickler that admits only tables of numbers and strings, and only if you know where they come from. Say '
            f'so: pandaset:{text}?trust_pickles=true'
        )
    return DrivePairs(root.resolve().name, [PandaSetSequence(path, options) for path in paths])


def recognises(text: str) -> bool:
    """Return whether a path is a sequence of PandaSet, or a folder of sequences."""
    return bool(_sequences(Path(text.partition('?')[0])))


def _sequences(root: Path) -> list[Path]:
    paths = [root] if (root / 'lidar' / 'poses.json').is_file() else sorted(root.glob('*/lidar/poses.json'))
    return [path if path == root else path.parents[1] for path in paths]


@lru_cache(maxsize=4)
def _sweep(sequence: PandaSetSequence, number: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return sequence.read_sweep(number)


@lru_cache(maxsize=8)
def _read_cuboids(path: Path) -> dict[str, Cuboid]:
    columns = read_frame(path, _CUBOID)
    found = {}
    for row, uuid in enumerate(columns['uuid']):
        box = {name: column[row] for name, column in columns.items()}
        try:
            numbers = [float(box[name]) for name in ('yaw', *(f'position.{axis}' for axis in 'xyz'))]
            half_size = np.array([float(box[f'dimensions.{axis}']) for axis in 'xyz']) / 2
            sensor = int(box['cuboids.sensor_id'])
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f'{path}: cuboid {uuid}: {error}.') from error
        if not np.isfinite([*numbers, *half_size]).all() or not (half_size > 0).all():
            raise DataError(f'{path}: cuboid {uuid} needs finite numbers and a size above 0, got {numbers}, '
                            f'{(2 * half_size).tolist()}.')  # fmt: skip
        pose = transforms.yaw_translation(*numbers)
        meta_class = META_CLASS.get(str(box['label']), MetaClass.IGNORED)
        found[str(uuid)] = Cuboid(pose, half_size, meta_class, bool(box['stationary']), sensor)
    return found


def _read_list(path: Path) -> list:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'{path} should be a JSON list, one item for each sweep: {error}.') from error
    if not isinstance(content, list):
        raise DataError(f'{path} should be a JSON list, got {type(content).__name__}.')
    return content


def _stamp_ns(stamp, path: Path) -> int:
    if not isinstance(stamp, int | float) or not _STAMPS[0] <= stamp < _STAMPS[1]:
        raise DataError(
            f'{path}/lidar/timestamps.json should hold seconds since 1970, such as 1557539924.5, got {stamp!r}.'
        )
    return round(stamp * 1e9)


def _pose(pose, what: str) -> np.ndarray:
    """Return world_T_ego (4, 4) of an item of poses.json."""
    try:
        position, heading = pose['position'], pose['heading']
        translation = [float(position[axis]) for axis in 'xyz']
        quaternion = [float(heading[axis]) for axis in 'xyzw']
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{what} should have position x y z and heading w x y z: {error}') from error
    return unit_quaternion_pose(translation, quaternion, what) @ _TURNED
