# SPDX-License-Identifier: Apache-2.0
"""Recorded drives: consecutive clouds of a rosbag1 or rosbag2, paired by the same rules as on the vehicle.

Opening reads the bag once in order, to find the pairs and their ego motion. After that, pairs are read in any order.
"""

import copy
import math
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets import split_options
from training.datasets.bag_clouds import CloudPlace, clouds_in_order, read_cloud
from training.datasets.pairs import HISTORY, DatasetPair, from_latest
from training.datasets.tracked_boxes import TrackedBoxes
from training.datasets.turned_motion import TurnedMotion, level_from_mount, mount_of
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag, BagMessage
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.bags.recording import looks_like_recording
from zeroflow_ros.ego_motion.bag_motion import BagMotion
from zeroflow_ros.ego_motion.world_clouds import in_sensor_frame
from zeroflow_ros.errors import CloudError, DataError, EgoMotionError
from zeroflow_ros.lidar.deskew import Deskew, SweepMotion, deskew
from zeroflow_ros.lidar.ground import is_ground
from zeroflow_ros.lidar.joined_cloud import starts_over
from zeroflow_ros.lidar.level import Level, SensorLevel
from zeroflow_ros.lidar.own_vehicle import OwnVehicle
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.point_times import LONGEST_SWEEP, check_time_unit, no_times_text, time_field, with_times
from zeroflow_ros.lidar.sweep import DropReason, PosedSweep, Sweep, SweepBuffer, SweepPair
from zeroflow_ros.lidar.sweep_assembly import SweepAssembly
from zeroflow_ros.runtime.health import Health
from zeroflow_ros.runtime.health import Level as Severity
from zeroflow_ros.runtime.input_checks import InputChecks, drop_text
from zeroflow_ros.runtime.run_summary import RunSummary

_DT_RANGE = (0.04, 0.25)  # s: one or two sweep periods at 10 to 20 Hz, the range of the models
_REACH = 51.2  # m, of the grids of the models
_MAX_WAITING, _MAX_WAIT_NS = 20, 2_000_000_000  # clouds that wait for later odometry in the bag: 2 s at 10 Hz


@dataclass(frozen=True)
class BagOptions:
    """Options.

    topic, odometry_topic: '' for the only one. sensor_height: height of the cloud frame above the ground [m]; 0:
    estimated from the ground. ego_motion: odometry, tf, registration or none; auto is the first that works, never none.
    fixed_frame: of tf; '' for odom, else map or world. stamp_offset: added to the stamps of clouds to look up odometry
    or tf [s]; '': 0, and clouds whose clock is another one are refused.
    deskew: move points to the stamps of their sweeps, by their times and the ego motion. time_field, time_unit: of the
    point times; '' and auto: recognised by name, type and values. base_frame: frame whose z is up and that /tf_static
    connects with the clouds; empty: do not look. base_T_lidar: x,y,z,qx,qy,qz,qw of the clouds in it, instead.
    assemble_sweeps: auto or off; see `SweepAssembly`. ego_box: x_min,x_max,y_min,y_max,z_min,z_max of the own vehicle,
    in base_frame where the mount is known, else in the frame of the clouds; min_range: of the sensor [m]. Points there
    count as no returns.
    """

    topic: str = ''
    odometry_topic: str = ''
    ego_motion: str = 'auto'
    fixed_frame: str = ''
    stamp_offset: str = ''
    sensor_height: float = 0.0
    deskew: bool = False
    time_field: str = ''
    time_unit: str = 'auto'
    base_frame: str = 'base_link'
    base_T_lidar: str = ''
    assemble_sweeps: str = 'auto'
    ego_box: str = ''
    min_range: float = 0.0

    def seconds_offset(self) -> float | None:
        """Return stamp_offset as `BagMotion` has it. Raises: DataError when it is no number of seconds."""
        try:
            offset = float(self.stamp_offset) if self.stamp_offset else None
        except ValueError:
            offset = float('nan')
        if offset is not None and not math.isfinite(offset):
            raise DataError(f'stamp_offset should be a number of seconds, got {self.stamp_offset!r}.')
        return offset

    def own_vehicle(self) -> OwnVehicle:
        """Return the region of ego_box and min_range. Raises: ConfigError or DataError when it is none."""
        return OwnVehicle.from_text(self.ego_box, self.min_range)


@dataclass(frozen=True)
class _SweepLocation:
    """Where a sweep is in the bag, and how its points are read.

    motion: motion to deskew it with; None: no deskewing. has_times: whether its point times are used.
    frame_T_sensor: 16 numbers, for clouds in a fixed frame; see `Sweep`.
    """

    cloud: CloudPlace
    motion: SweepMotion | None = None
    has_times: bool = False
    frame_T_sensor: tuple[float, ...] | None = None

    @property
    def number(self) -> int:
        return self.cloud.number

    @property
    def stamp_ns(self) -> int:
        return self.cloud.stamp_ns


class BagPairs:
    """The sweep pairs of one bag, in the frame of its clouds; turned level where the mount is known to be tilted.

    skipped: number of clouds without a pair with the previous one, by reason. The first cloud is not counted; clouds
        in another frame than the first make no pair. boxes: tracked boxes for ground-truth flow, or None.
    ego_motion, note: the source of ego motion, and why it is not odometry. level: of the cloud frame over the ground.
    has_times, times_note: whether there are pairs with point times, and why the times of some clouds are not used.
    summary: what was dropped and what is suspicious, as the diagnostics of a node would say. parts_note: what is
    joined, where messages hold parts of a revolution.
    Raises: DataError when the bag is damaged or holds no pair, EgoMotionError when it lacks the chosen ego motion.
    """

    def __init__(self, path: str | Path, boxes: TrackedBoxes | None = None, options: BagOptions = BagOptions()):
        self.path, self.boxes = Path(path), boxes
        place = self.path.resolve()
        self.name = place.name if place.is_dir() else place.stem
        self.skipped: Counter[str] = Counter()
        self.has_times, self.times_note, self._num_refused = False, '', 0
        self.parts_note = ''
        self._times = (options.time_field, options.time_unit)
        self._pairs: list[tuple[_SweepLocation, _SweepLocation, np.ndarray]] = []
        with Bag(path) as bag:
            self.topic = bag.point_cloud_topic(options.topic)
            self._index(bag, options)

    @property
    def sensor_height(self) -> float:
        """Height of the cloud frame above the ground [m]; NaN where a filter removed the ground."""
        return self.level.height

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the number of the older cloud in its topic, and its stamp [ns]."""
        place = self._pairs[index][0]
        return f'{place.number:06d}_{place.stamp_ns}'

    def numbers(self, index: int) -> tuple[int, int]:
        """Return the numbers of both clouds of a pair in their topic, which index the boxes."""
        place0, place1, _ = self._pairs[index]
        return place0.number, place1.number

    def motion(self, index: int) -> tuple[np.ndarray, float]:
        """Return ego0_T_ego1 (4, 4) of a pair and the seconds between its sweeps, without reading them."""
        place0, place1, ego0_T_ego1 = self._pairs[index]
        return ego0_T_ego1, (place1.stamp_ns - place0.stamp_ns) * 1e-9

    def __getitem__(self, index: int) -> DatasetPair:
        place0, place1, _ = self._pairs[index]
        read = (self.path, self.topic, *self._times, self._turn, self._own)
        sweep0, sweep1 = (_read_sweep(place, *read) for place in (place0, place1))
        is_ground0, is_ground1 = (_ground_of(place, read, self.level) for place in (place0, place1))
        history, future = self._beside(index, read)
        pair = SweepPair(sweep0.points.copy(), sweep1.points.copy(), *self.motion(index), history, future)
        truth = self.boxes and self.boxes.ground_truth_flow(pair, place0.number, place1.number)
        times = (sweep0.times.copy(), sweep1.times.copy()) if place0.has_times and place1.has_times else None
        return DatasetPair(self.key(index), pair, is_ground0.copy(), is_ground1.copy(), truth, times)

    def _beside(self, index: int, read: tuple) -> tuple[tuple[PosedSweep, ...], tuple[PosedSweep, ...]]:
        """Return the sweeps before and after a pair, as far as each makes a pair with the next."""
        history, ego0_T_ego = [], np.eye(4)
        for k in range(index - 1, max(index - 1 - HISTORY, -1), -1):
            older, newer, older_T_newer = self._pairs[k]
            if newer.number != self._pairs[k + 1][0].number:
                break
            ego0_T_ego = ego0_T_ego @ transforms.invert(older_T_newer)
            history.append(PosedSweep(_read_sweep(older, *read).points, ego0_T_ego))
        future, ego0_T_ego = [], self._pairs[index][2]
        for k in range(index + 1, min(index + 1 + HISTORY, len(self._pairs))):
            older, newer, older_T_newer = self._pairs[k]
            if older.number != self._pairs[k - 1][1].number:
                break
            ego0_T_ego = ego0_T_ego @ older_T_newer
            future.append(PosedSweep(_read_sweep(newer, *read).points, ego0_T_ego))
        return tuple(history), tuple(future)

    def latest(self, index: int) -> DatasetPair:
        """Return a pair seen from its newer sweep, with the ground truth of that sweep; see `from_latest`."""
        item = from_latest(self[index])
        number0, number1 = self.numbers(index)
        return replace(item, truth=self.boxes and self.boxes.ground_truth_flow(item.pair, number1, number0))

    def every(self, step: int) -> 'BagPairs':
        """Return the pairs of every step-th sweep, as from a sensor of a lower rate; none across a gap.

        Raises: DataError when no pair is left.
        """
        pairs, first = [], 0
        while first + step <= len(self._pairs):
            chain = self._pairs[first : first + step]
            gaps = [k for k in range(1, step) if chain[k][0].number != chain[k - 1][1].number]
            if not gaps:
                pairs.append((chain[0][0], chain[-1][1], reduce(np.matmul, (motion for _, _, motion in chain))))
            first += gaps[0] if gaps else step
        if not pairs:
            raise DataError(
                f'{self.path} has no {step + 1} consecutive sweeps, from which every {step}th makes a pair.'
            )
        thinned = copy.copy(self)
        thinned._pairs = pairs
        return thinned

    def _index(self, bag: Bag, options: BagOptions) -> None:
        total = next(topic.num_messages for topic in bag.topics if topic.name == self.topic)
        assembly = SweepAssembly(options.assemble_sweeps, *self._times, can_wait=True)
        if self.boxes and len(self.boxes.sweeps) > total:
            raise self._other_boxes(total)
        first = _first_cloud(bag, self.topic)
        frame_id = first.header.frame_id.lstrip('/')
        motion = BagMotion(bag, options.ego_motion, frame_id=frame_id, odometry_topic=options.odometry_topic,
                           fixed_frame=options.fixed_frame, cloud_topic=self.topic,
                           stamp_offset=options.seconds_offset())  # fmt: skip
        mount = level_T_lidar = None  # z of a fixed frame is up
        if not motion.has_world_clouds:
            mount = mount_of(bag, frame_id, options.base_frame, options.base_T_lidar)
            level_T_lidar = level_from_mount(mount)
        own_vehicle, base_T_points = options.own_vehicle(), mount
        if level_T_lidar is not None:
            base_T_points = mount @ transforms.invert(level_T_lidar)
        self._own = own_vehicle, None if base_T_points is None else tuple(base_T_points.ravel().tolist())
        self._turn = None if level_T_lidar is None else tuple(level_T_lidar[:3, :3].ravel().tolist())
        motion = motion if level_T_lidar is None else TurnedMotion(motion, level_T_lidar)
        health, recorded_ns = Health(lambda level, text: None), 0
        checks = InputChecks(health, None, deskews=options.deskew, now_ns=lambda: recorded_ns,
                             clock='they were recorded', time_name=options.time_field)  # fmt: skip
        deskewing = Deskew() if options.deskew else None
        check_time_unit(options.time_unit)
        self.has_times = time_field(first, options.time_field) is not None
        if deskewing and (motion.source == 'none' or not self.has_times):
            reason = 'no ego motion.' if self.has_times else no_times_text(first, options.time_field)
            raise DataError(f'{self.path} cannot be deskewed: {reason}')
        self.ego_motion, self.note = motion.source, motion.note
        buffer, level = SweepBuffer(_DT_RANGE), SensorLevel(height=options.sensor_height or None)
        last, reason = None, ''
        title = f'{self.name}, ego motion by {motion.source}'
        in_order = _in_order(bag, self.topic, motion, round(LONGEST_SWEEP * 1e9) if deskewing else 0)
        in_order = tqdm(in_order, title, total, delay=2, disable=None)
        num_sweeps, last_message = 0, None
        for found in clouds_in_order(in_order, assembly):
            if found.text and found.drop is None:
                self.parts_note, num_sweeps = found.text, 0
                continue
            health.record_received()
            recorded_ns, message, drop, text = found.time_ns, found.message, found.drop, found.text
            num_sweeps += drop is not DropReason.FIRST
            if drop is None:
                try:
                    sweep = self._decode(message, options.deskew)
                except CloudError as error:
                    drop, text = DropReason.MALFORMED, str(error)
            if drop is not None:
                self.skipped[drop.value] += 1
                reason = text
                health.record_dropped(drop, reason)
                continue
            try:
                sweep = motion.to_sensor_frame(sweep)
            except EgoMotionError as error:
                self.skipped[DropReason.EGO_MOTION.value] += 1
                reason = str(error)
                health.record_dropped(DropReason.EGO_MOTION, reason)
                continue
            sweep = _without_own(sweep, self._own)
            checks.check_cloud(message, sweep)
            checks.check_ego_box(own_vehicle, sweep.frame_id, options.base_frame, mount)
            if not np.isfinite(sweep.points).any():
                sweep = replace(sweep, points=sweep.points[:0], times=None)
            if starts_over(message, last_message):
                buffer.reset()
            kept = buffer.last
            previous, drop = buffer.push(sweep)
            if drop in (DropReason.TIME_RESET, DropReason.FRAME_CHANGED):
                motion.reset()
            before = last
            if buffer.last is sweep:
                has_times = sweep.times is not None
                pose = None if sweep.frame_T_sensor is None else tuple(sweep.frame_T_sensor.ravel().tolist())
                last, last_message = _SweepLocation(found.place, None, has_times, pose), message
            if sweep.frame_id != frame_id:  # another sensor, whose mounting pose is unknown
                drop = drop or DropReason.FRAME_CHANGED
            else:
                self.level = level.update(sweep.points)
                checks.report_level(self.level, sweep.points)
            text = '' if drop is None else drop_text(drop, sweep, kept, dt_range=_DT_RANGE, reach=_REACH)
            if drop is None:
                try:
                    if deskewing:
                        previous, sweep = deskewing.pair(previous, sweep, motion.poses_at_offsets)
                        before, last = (
                            replace(place, motion=m) for place, m in zip((before, last), deskewing.motions, strict=True)
                        )
                    self._pairs.append((before, last, motion.between(previous, sweep)))
                    checks.report_motion(motion.warning)
                except EgoMotionError as error:
                    drop, reason = DropReason.EGO_MOTION, str(error)
                    text = reason
            if drop is None:
                health.record_published({}, max_ms=np.inf, max_consecutive_ms=np.inf)
            else:
                health.record_dropped(drop, text)
            if drop not in (None, DropReason.FIRST):
                self.skipped[drop.value] += 1
        if self.boxes and len(self.boxes.sweeps) != num_sweeps:
            raise self._other_boxes(num_sweeps)
        self.ego_motion, self.note = motion.source, motion.note  # 'auto' may have given up odometry meanwhile
        self.has_times = any(place0.has_times and place1.has_times for place0, place1, _ in self._pairs)
        if self.times_note:
            health.report_issue('times', 'input', Severity.WARN, self.times_note)
        named = (
            'sensor_height', 'base_T_lidar', 'base_frame', 'ego_motion', 'stamp_offset', 'time_field', 'time_unit',
        )  # fmt: skip
        names = {name: f'bag:PATH?{name}=...' for name in named}
        self.summary = RunSummary.of(health, self.name, num_points=0, num_valid=0, notes=bag.notes)
        self.summary = self.summary.with_names(names)
        problems = [finding.text for finding in self.summary.findings]
        if not self._pairs:
            reason = ' '.join(dict.fromkeys([reason, *problems]))
            skipped = ', '.join(f'{count} {name}' for name, count in self.skipped.items()) or 'too few clouds'
            raise DataError(f'{self.path}: {total} clouds on {self.topic} make no pair ({skipped}). {reason}'.rstrip())
        if not (np.isfinite(self.level.height) or np.isfinite(self.level.lowest)):
            if not problems or any(finding.kind == 'no ground' for finding in self.summary.findings):
                problems = [self.level.reason + f'. Set it, in metres: bag:{self.path}?sensor_height=1.7']
            raise DataError(
                f'{self.path}: no sweep shows enough ground to estimate the sensor height: {" ".join(problems)}'
            )

    def _other_boxes(self, num_sweeps: int) -> DataError:
        return DataError(
            f'{self.boxes.path} has boxes for {len(self.boxes.sweeps)} sweeps, {self.path} has {num_sweeps} clouds on '
            f'{self.topic}. They belong together only with one list of boxes for each cloud.'
        )

    def _decode(self, message, must_have_times: bool) -> Sweep:
        """Return the sweep of a cloud with times, turned level; a sweep without returns is empty.

        If its times are invalid and `deskew` is off, this sweep has none.
        """
        sweep = _turned(decode_cloud(message), self._turn)
        if not np.isfinite(sweep.points).any():
            return replace(sweep, points=sweep.points[:0])
        if not self.has_times or sweep.stamp_ns == 0:
            return sweep
        try:
            if time_field(message, self._times[0]) is None:  # the layout may change within a bag
                raise CloudError(no_times_text(message, self._times[0]))
            return with_times(message, sweep, *self._times)
        except CloudError as error:
            if must_have_times:
                raise
            self._num_refused += 1
            self.times_note = f'The point times of {self._num_refused} clouds are not used. {error}'
            return sweep


def open_pairs(text: str) -> BagPairs:
    """Open PATH or PATH+BOXES.json, with the options of `BagOptions` behind a question mark."""
    text, options = split_options(text, BagOptions)
    path, boxes = _split_boxes(text)
    return BagPairs(path, TrackedBoxes.read(boxes) if boxes else None, options)


def recognises(text: str) -> bool:
    """Return whether PATH or PATH+BOXES.json is a bag."""
    path = Path(_split_boxes(text.partition('?')[0])[0])
    return looks_like_recording(path)


def _split_boxes(text: str) -> tuple[str, str]:
    path, plus, boxes = text.rpartition('+')
    return (path, boxes) if plus and boxes.endswith('.json') else (text, '')


@lru_cache(maxsize=2 * HISTORY + 4)  # consecutive pairs share most of their sweeps
def _read_sweep(place: _SweepLocation, path: Path, topic: str, time_name: str, time_unit: str, turn, own) -> Sweep:
    """Return a sweep, deskewed if its motion is known; turn, own: see `_turned` and `_without_own`."""
    message = read_cloud(path, topic, place.cloud, time_name, time_unit)
    sweep = _turned(decode_cloud(message), turn)
    if place.frame_T_sensor is not None:
        return _without_own(in_sensor_frame(sweep, np.reshape(place.frame_T_sensor, (4, 4))), own)
    sweep = with_times(message, sweep, time_name, time_unit) if place.has_times else sweep
    sweep = _without_own(sweep, own)
    if place.motion is not None:
        sweep = replace(sweep, points=deskew(sweep.points, sweep.times, place.motion))
    return sweep


def _without_own(sweep: Sweep, own: tuple[OwnVehicle, tuple[float, ...] | None]) -> Sweep:
    """Return a sweep without points on the own vehicle; own: the vehicle, the 16 numbers of base_T_points or None."""
    vehicle, pose = own
    return vehicle.remove(sweep, None if pose is None else np.reshape(pose, (4, 4)))


def _turned(sweep: Sweep, turn: tuple[float, ...] | None) -> Sweep:
    """Return a sweep turned level; turn: the 9 numbers of level_R_lidar, or None."""
    if turn is None:
        return sweep
    level_T_lidar = np.eye(4)
    level_T_lidar[:3, :3] = np.reshape(turn, (3, 3))
    return replace(sweep, points=transforms.apply(level_T_lidar, sweep.points))


@lru_cache(maxsize=4)  # the newer sweep of a pair is the older one of the next; those beside a pair need no mask
def _ground_of(place: _SweepLocation, read: tuple, level: Level) -> np.ndarray:
    """Return the ground mask (N,) bool of a sweep; read: see `_read_sweep`. level: of the cloud frame."""
    points = _read_sweep(place, *read).points
    if not np.isfinite(level.height):  # a filter removed the ground
        return np.zeros(len(points), bool)
    return is_ground(points, level.level_T_sensor)


def _first_cloud(bag: Bag, topic: str):
    """Return the first readable cloud. Raises: DataError when there is none."""
    for recorded in bag.messages([topic]):
        try:
            return decode_message(recorded.cdr, POINT_CLOUD)
        except DataError:
            continue
    raise DataError(f'{bag.path}: no message on {topic} can be read as a {POINT_CLOUD}.')


def _in_order(bag: Bag, topic: str, motion: BagMotion, ahead_ns: int):
    """Yield (number, message, rank among clouds of the same recording time) once the ego motion is known.

    ahead_ns: time after the stamp up to which the motion must be known [ns].
    """
    waiting: deque[tuple[int, BagMessage, int]] = deque()
    number, ordinal, last_ns = -1, 0, None
    for recorded in bag.messages([topic, motion.topic]):
        if recorded.topic != topic:
            motion.add_odometry(recorded.cdr)
        else:
            number, ordinal = number + 1, ordinal + 1 if recorded.time_ns == last_ns else 0
            last_ns = recorded.time_ns
            waiting.append((number, recorded, ordinal))
        while waiting and (
            _is_known(waiting[0][1], motion, ahead_ns)
            or (len(waiting) > _MAX_WAITING and waiting[-1][1].time_ns - waiting[0][1].time_ns >= _MAX_WAIT_NS)
        ):
            yield waiting.popleft()
    yield from waiting


def _is_known(recorded: BagMessage, motion: BagMotion, ahead_ns: int) -> bool:
    return len(recorded.cdr) < 12 or motion.covers(recorded.stamp_ns + ahead_ns)
