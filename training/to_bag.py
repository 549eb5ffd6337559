# SPDX-License-Identifier: Apache-2.0
"""Convert any dataset of sweep pairs to bags for the node, replay, RViz and Foxglove.

usage: python3 -m training.to_bag av2:LOGS osf:SCENES simulation:0-9@out/clips --out out/bags
       python3 -m zeroflow_ros.replay out/bags/LOG --offline --out out/flow

Consecutive pairs form one rosbag2 directory (mcap), named after the log or scene; a gap starts the next one. It holds
/lidar/points (x y z, and `time` [s] after the stamp where known; NaN rows are kept), /odometry (odom to the frame of
the clouds, with twist), /tf, and /tf_static where the mount of the sensor is known. Poses start at the first sweep.
--ground-truth adds the fields true_vx true_vy true_vz [m/s], NaN where unknown, and true_class. What a bag cannot
hold is listed at the end. Nothing is overwritten: bags that the same dataset gave are kept, others are an error.
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets.opensceneflow import tick_of
from training.datasets.pairs import DatasetPair, GroundTruthFlow, MetaClass, PairDataset, scene_and_stamp
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, BagWriter
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, encode_message, typestore
from zeroflow_ros.errors import DataError, ZeroFlowError

CLOUD_TOPIC, ODOMETRY_TOPIC, TF_TOPIC = '/lidar/points', '/odometry', '/tf'
WORLD_FRAME, BASE_FRAME, LIDAR_FRAME = 'odom', 'base_link', 'lidar'
SOURCE_FILE = 'source.json'  # in the directory of a bag: the dataset it was made from
_UNKNOWN_START_NS = 1_700_000_000_000_000_000  # of scenes without stamps: 0 means "unknown" to ROS
_LAST_NS = 2**31 * 10**9  # the seconds of a ROS stamp are an int32
_SAME_NS = 1000  # stamps of microseconds, and dt as a float
_FLOAT32, _UINT8 = 7, 2  # of sensor_msgs/PointField
_TRUE_FIELDS = ('true_vx', 'true_vy', 'true_vz')


@dataclass
class Omitted:
    """What the bags do not hold, counted: name -> number."""

    counts: Counter = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """Return one line for each kind, and one for what no bag holds."""
        return [
            *(f'Left out: {count} {name}' for name, count in self.counts.items() if count),
            'Left out: ground flags and intensities. Scenes of training.to_h5 keep flow and ground flags.',
        ]


@dataclass
class _OpenBag:
    """A bag that is being written. stamp_ns, points, world_T_ego: of the newest sweep."""

    writer: BagWriter
    stamp_ns: int
    points: np.ndarray
    world_T_ego: np.ndarray

    def continues(self, stamp_ns: int, points: np.ndarray) -> bool:
        near = abs(stamp_ns - self.stamp_ns) < _SAME_NS
        return near and np.array_equal(points, self.points, equal_nan=True)


def write_bags(dataset: PairDataset, spec: str, out: Path, *, ground_truth: bool = False) -> tuple[list[Path], Omitted]:
    """Write the pairs of a dataset as bags; return their directories and what they do not hold.

    spec: of the dataset, stored in each bag. ground_truth: add the fields of the true velocity.
    Raises: DataError when a bag of the same name exists that another dataset gave, or the dataset cannot be read.
    """
    by_scene: dict[str, list[tuple[int, int]]] = {}
    for index in range(len(dataset)):
        scene, stamp = scene_and_stamp(dataset.name, dataset.key(index))
        by_scene.setdefault(scene, []).append((stamp, index))
    made_from = {'dataset': spec, 'ground_truth': ground_truth}
    kept = {scene for scene in by_scene if _is_there(out / scene, made_from)}  # before hours of writing
    written, omitted = [], Omitted()
    with tqdm(total=len(dataset), desc=dataset.name, unit='pair', disable=None) as bar:
        for scene, members in by_scene.items():
            if scene in kept:
                bar.update(len(members))
            else:
                written += _SceneWriter(dataset, out / scene, made_from, omitted).write(sorted(members), bar)
    return written, omitted


def _is_there(path: Path, made_from: dict) -> bool:
    """Return whether a bag that the same dataset gave is at a path. Raises: DataError when anything else is."""
    if not path.exists():
        return False
    try:
        found = json.loads((path / SOURCE_FILE).read_text())
    except (OSError, ValueError):
        found = {}
    if found != made_from:
        raise DataError(
            f'{path} exists and was made from {found.get("dataset", "something else")!r}, not from '
            f'{made_from["dataset"]!r} with the same options. Choose another --out, or remove it.'
        )
    return True


class _SceneWriter:
    """Writes the gap-free parts of one scene; they appear at their paths when all are complete."""

    def __init__(self, dataset: PairDataset, path: Path, made_from: dict, omitted: Omitted):
        self._dataset, self._path, self._made_from, self._omitted = dataset, path, made_from, omitted
        self._folder = path.with_name(f'.{path.name}.partial')  # of the bags while they are incomplete

    def write(self, members: list[tuple[int, int]], bar) -> list[Path]:
        """Write pairs (stamp, index), in order; return the paths of the bags."""
        shutil.rmtree(self._folder, ignore_errors=True)  # left by a run that was killed
        names, bag, previous = [], None, None
        try:
            for stamp, index in members:
                item = self._dataset[index]
                stamp_ns = stamp * round(tick_of(stamp) * 1e9) or _UNKNOWN_START_NS
                if not 0 < stamp_ns < _LAST_NS - 10**9:
                    raise DataError(f'{item.key}: {stamp_ns} ns is not a stamp that ROS can represent.')
                if bag is None or not bag.continues(stamp_ns, item.pair.points0):
                    if bag is not None:
                        self._end(bag, previous)
                    names.append(self._path.name + (f'_{len(names):03d}' if names else ''))
                    if len(names) > 1:
                        _is_there(self._path.with_name(names[-1]), self._made_from)  # of another scene, or not ours
                    bag = _OpenBag(BagWriter(self._folder / names[-1]), stamp_ns, item.pair.points0, np.eye(4))
                    self._begin(bag, item)
                self._add_pair(bag, item)
                previous = item
                bar.update()
            self._end(bag, previous)
            paths = [self._path.with_name(name) for name in names]
            for name, path in reversed(list(zip(names, paths, strict=True))):  # the first part marks all as complete
                if path.exists():  # left by a run that ended between two renames
                    shutil.rmtree(path)
                (self._folder / name).rename(path)
            return paths
        except BaseException:
            if bag is not None:
                bag.writer.abort()
            raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, bag: _OpenBag, item: DatasetPair) -> None:
        """Write the mount, and the pose at the first sweep."""
        self._omitted.counts['sweeps before the first pair of a bag, whose times are not known'] += len(
            item.pair.history
        )
        if item.mount is not None:
            message = _transform(BASE_FRAME, LIDAR_FRAME, bag.stamp_ns, item.mount)
            bag.writer.write(STATIC_TRANSFORMS_TOPIC, TRANSFORMS, bag.stamp_ns, encode_message(message, TRANSFORMS))
        _write_pose(bag, item)

    def _add_pair(self, bag: _OpenBag, item: DatasetPair) -> None:
        """Write the older sweep of a pair and the pose at the newer one."""
        has_truth = self._made_from['ground_truth']
        times = item.times[0] if item.times else None
        _write_cloud(bag, item.pair.points0, times, item.truth, item.pair.dt, has_truth)
        if item.truth is not None and not has_truth:
            self._omitted.counts['sweeps with ground-truth flow (--ground-truth keeps it)'] += 1
        bag.stamp_ns, bag.points = bag.stamp_ns + round(item.pair.dt * 1e9), item.pair.points1
        bag.world_T_ego = bag.world_T_ego @ item.pair.ego0_T_ego1
        _write_pose(bag, item)

    def _end(self, bag: _OpenBag, item: DatasetPair) -> None:
        times = item.times[1] if item.times else None
        _write_cloud(bag, bag.points, times, None, item.pair.dt, self._made_from['ground_truth'])
        self._omitted.counts['sweeps after the last pair of a bag, whose times are not known'] += len(item.pair.future)
        bag.writer.close()
        (bag.writer.path / SOURCE_FILE).write_text(json.dumps(self._made_from))


def _header(stamp_ns: int, frame_id: str):
    types = typestore().types
    stamp = types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
    return types['std_msgs/msg/Header'](stamp, frame_id)


def _transform(parent: str, child: str, stamp_ns: int, parent_T_child: np.ndarray):
    types = typestore().types
    transform = types['geometry_msgs/msg/Transform'](
        types['geometry_msgs/msg/Vector3'](*parent_T_child[:3, 3]),
        types['geometry_msgs/msg/Quaternion'](*transforms.to_quaternion(parent_T_child)),
    )
    stamped = types['geometry_msgs/msg/TransformStamped'](_header(stamp_ns, parent), child, transform)
    return types[TRANSFORMS]([stamped])


def _write_pose(bag: _OpenBag, item: DatasetPair) -> None:
    """Write the odometry and tf at the newest sweep; the twist is that of the pair."""
    types, stamp_ns, pose = typestore().types, bag.stamp_ns, bag.world_T_ego
    vector, quaternion = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Quaternion']
    linear = item.pair.ego0_T_ego1[:3, 3] / item.pair.dt
    angular = transforms.rotation_vector(item.pair.ego0_T_ego1) / item.pair.dt
    position = types['geometry_msgs/msg/Point'](*pose[:3, 3])
    odometry = types[ODOMETRY](
        _header(stamp_ns, WORLD_FRAME), LIDAR_FRAME,
        types['geometry_msgs/msg/PoseWithCovariance'](
            types['geometry_msgs/msg/Pose'](position, quaternion(*transforms.to_quaternion(pose))), np.zeros(36)
        ),
        types['geometry_msgs/msg/TwistWithCovariance'](
            types['geometry_msgs/msg/Twist'](vector(*linear), vector(*angular)), np.zeros(36)
        ),
    )  # fmt: skip
    child, world_T_child = LIDAR_FRAME, pose
    if item.mount is not None:  # a frame of tf has one parent: odom, base_link, lidar
        child, world_T_child = BASE_FRAME, pose @ transforms.invert(item.mount)
    tf = _transform(WORLD_FRAME, child, stamp_ns, world_T_child)
    bag.writer.write(TF_TOPIC, TRANSFORMS, stamp_ns, encode_message(tf, TRANSFORMS))
    bag.writer.write(ODOMETRY_TOPIC, ODOMETRY, stamp_ns, encode_message(odometry, ODOMETRY))


def _write_cloud(bag: _OpenBag, points: np.ndarray, times: np.ndarray | None, truth: GroundTruthFlow | None, dt: float,
                 has_truth: bool) -> None:  # fmt: skip
    """Write points (N, 3) [m] and their times (N,) [s] after the stamp, with the true velocity if has_truth."""
    columns: dict[str, tuple[np.ndarray, str, int]] = {
        axis: (points[:, k], '<f4', _FLOAT32) for k, axis in enumerate('xyz')
    }
    if times is not None:
        columns['time'] = times, '<f4', _FLOAT32
    if has_truth:
        velocity = np.full(points.shape, np.nan, np.float32)
        kind = np.full(len(points), MetaClass.IGNORED, np.uint8)
        if truth is not None:
            velocity[truth.is_valid] = truth.flow[truth.is_valid] / np.float32(dt)
            kind = truth.meta_class
        columns |= {name: (velocity[:, k], '<f4', _FLOAT32) for k, name in enumerate(_TRUE_FIELDS)}
        columns['true_class'] = kind, 'u1', _UINT8
    rows = np.zeros(len(points), [(name, dtype) for name, (_, dtype, _) in columns.items()])
    for name, (column, _, _) in columns.items():
        rows[name] = column
    types, fields = typestore().types, []
    for name, (_, _, datatype) in columns.items():
        fields.append(types['sensor_msgs/msg/PointField'](name, rows.dtype.fields[name][1], datatype, 1))
    step, is_dense = rows.dtype.itemsize, bool(np.isfinite(points).all())
    message = types[POINT_CLOUD](
        _header(bag.stamp_ns, LIDAR_FRAME), 1, len(rows), fields, False, step, step * len(rows),
        np.frombuffer(rows.tobytes(), np.uint8), is_dense,
    )  # fmt: skip
    bag.writer.write(CLOUD_TOPIC, POINT_CLOUD, bag.stamp_ns, encode_message(message, POINT_CLOUD))


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.to_bag', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('datasets', nargs='+', metavar='DATASET', help='datasets to convert')
    parser.add_argument('--out', type=Path, required=True, help='folder for the bags')
    parser.add_argument('--ground-truth', action='store_true', help='add fields with the true velocity to the clouds')
    options = parser.parse_args(arguments)
    try:
        from training.datasets import open_dataset

        written = []
        for spec in options.datasets:
            paths, omitted = write_bags(open_dataset(spec), spec, options.out, ground_truth=options.ground_truth)
            written += paths
            if paths:
                print(f'{spec}:', *omitted.lines(), sep='\n  ')
    except (ZeroFlowError, OSError) as error:
        print(f'training.to_bag: {error}', file=sys.stderr)
        return 1
    print(f'{len(written)} bags written to {options.out}; replay them with python3 -m zeroflow_ros.replay')
    return 0


if __name__ == '__main__':
    sys.exit(main())
