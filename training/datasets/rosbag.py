# SPDX-License-Identifier: Apache-2.0
"""Recorded drives: consecutive clouds of a rosbag1 or rosbag2, paired by the rules of the vehicle.

The bag is read once in order, to learn which sweeps make pairs and how the vehicle moved; after that, pairs are read
one by one, wherever they are.
"""

from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets import split_options
from training.datasets.pairs import DatasetPair
from training.datasets.tf_motion import TfMotion
from training.datasets.tracked_boxes import TrackedBoxes
from zeroflow_ros.bag_motion import BagMotion
from zeroflow_ros.bags import Bag, BagMessage
from zeroflow_ros.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.errors import CloudError, DataError, EgoMotionError
from zeroflow_ros.ground import SensorHeight, is_ground
from zeroflow_ros.point_cloud import decode_cloud
from zeroflow_ros.sweep import Drop, Sweep, SweepBuffer, SweepPair

_DT_RANGE = (0.04, 0.25)  # s: one sweep, or two, at 10 to 20 Hz; as the models are made for
_MOST_WAITING = 20  # sweeps that wait for odometry further on in the bag: 2 s at 10 Hz


@dataclass(frozen=True)
class BagOptions:
    """What a bag may leave open.

    topic, odometry_topic: '' for the only one. sensor_height: of the clouds' frame above the ground [m]; 0: it is seen
    in the sweeps. ego_motion: odometry, tf, registration or none; auto is the first that works, but never none.
    """

    topic: str = ''
    odometry_topic: str = ''
    ego_motion: str = 'auto'
    sensor_height: float = 0.0


@dataclass(frozen=True)
class _Place:
    """Where a sweep is in the bag: the number of its cloud, when it was recorded, and how many were before it then."""

    number: int
    time_ns: int
    ordinal: int
    stamp_ns: int


class BagPairs:
    """The sweep pairs of one bag, in the frame of its clouds.

    skipped: how many clouds gave no pair with the one before, by reason; the first one is not counted, and clouds in
        another frame than the first make none. boxes: true flow, or None.
    ego_motion, note: the source of ego motion, and why it is not odometry. sensor_height: [m].
    Raises: DataError when the bag is damaged or holds no pair, EgoMotionError when it lacks what was asked for.
    """

    def __init__(self, path: str | Path, boxes: TrackedBoxes | None = None, options: BagOptions = BagOptions()):
        self.path, self.boxes = Path(path), boxes
        place = self.path.resolve()
        self.name = place.name if place.is_dir() else place.stem
        self.skipped: Counter[str] = Counter()
        self._pairs: list[tuple[_Place, _Place, np.ndarray]] = []
        with Bag(path) as bag:
            self.topic = bag.point_cloud_topic(options.topic)
            self._index(bag, options)

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the number of the older cloud in its topic, and its stamp [ns]."""
        place = self._pairs[index][0]
        return f'{place.number:06d}_{place.stamp_ns}'

    def __getitem__(self, index: int) -> DatasetPair:
        place0, place1, ego0_T_ego1 = self._pairs[index]
        points0, is_ground0 = _read_sweep(self.path, self.topic, place0, self.sensor_height)
        points1, is_ground1 = _read_sweep(self.path, self.topic, place1, self.sensor_height)
        pair = SweepPair(points0.copy(), points1.copy(), ego0_T_ego1, (place1.stamp_ns - place0.stamp_ns) * 1e-9)
        truth = self.boxes and self.boxes.true_flow(pair, place0.number, place1.number)
        return DatasetPair(self.key(index), pair, is_ground0.copy(), is_ground1.copy(), truth)

    def _index(self, bag: Bag, options: BagOptions) -> None:
        total = next(topic.num_messages for topic in bag.topics if topic.name == self.topic)
        if self.boxes and len(self.boxes.sweeps) != total:
            raise DataError(
                f'{self.boxes.path} has boxes for {len(self.boxes.sweeps)} sweeps, {self.path} has {total} clouds on '
                f'{self.topic}. They belong together only with one list of boxes for each cloud.'
            )
        frame_id = _first_frame(bag, self.topic)
        motion = _open_motion(bag, frame_id, options)
        self.ego_motion, self.note = motion.source, motion.note
        buffer, height, last, reason = SweepBuffer(_DT_RANGE), SensorHeight(options.sensor_height or None), None, ''
        title = f'{self.name}, ego motion by {motion.source}'
        for number, recorded, ordinal in tqdm(_in_order(bag, self.topic, motion), title, total, delay=2, disable=None):
            try:
                sweep = _decode(recorded)
            except (CloudError, DataError) as error:
                self.skipped[Drop.MALFORMED.value] += 1
                reason = str(error)
                continue
            previous, drop = buffer.push(sweep)
            if drop in (Drop.TIME_RESET, Drop.FRAME_CHANGED):
                motion.reset()
            before = last
            if buffer.last is sweep:
                last = _Place(number, recorded.time_ns, ordinal, sweep.stamp_ns)
            if sweep.frame_id != frame_id:  # where this sensor is mounted, and how high, is another question
                drop = drop or Drop.FRAME_CHANGED
            else:
                self.sensor_height = height.update(sweep.points)
            if drop is None:
                try:
                    self._pairs.append((before, last, motion.between(previous, sweep)))
                except EgoMotionError as error:
                    drop, reason = Drop.EGO_MOTION, str(error)
            if drop not in (None, Drop.FIRST):
                self.skipped[drop.value] += 1
        if not self._pairs:
            skipped = ', '.join(f'{count} {name}' for name, count in self.skipped.items()) or 'too few clouds'
            raise DataError(f'{self.path}: {total} clouds on {self.topic} make no pair ({skipped}). {reason}'.rstrip())
        if self.sensor_height == 0:
            raise DataError(
                f'{self.path}: no sweep shows enough ground to tell how high the sensor stands. Say it, in metres: '
                f'bag:{self.path}?sensor_height=1.7'
            )


def open_pairs(text: str) -> BagPairs:
    """Open PATH or PATH+BOXES.json, with the options of `BagOptions` behind a question mark."""
    text, options = split_options(text, BagOptions)
    path, boxes = _split_boxes(text)
    return BagPairs(path, TrackedBoxes.read(boxes) if boxes else None, options)


def recognises(text: str) -> bool:
    """Return whether PATH or PATH+BOXES.json is a bag."""
    path = Path(_split_boxes(text.partition('?')[0])[0])
    suffixes = {file.suffix for file in path.iterdir()} if path.is_dir() else {path.suffix} if path.is_file() else set()
    return (path / 'metadata.yaml').is_file() or bool(suffixes & {'.mcap', '.db3', '.bag'})


def _split_boxes(text: str) -> tuple[str, str]:
    path, plus, boxes = text.rpartition('+')
    return (path, boxes) if plus and boxes.endswith('.json') else (text, '')


@lru_cache(maxsize=4)  # the newer sweep of a pair is the older one of the next
def _read_sweep(path: Path, topic: str, place: _Place, sensor_height: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a sweep, and which are ground."""
    with Bag(path) as bag:  # opened anew: processes that share an open file disturb each other
        messages = bag.messages([topic], start_ns=place.time_ns, end_ns=place.time_ns + 1)
        recorded = next(islice(messages, place.ordinal, None), None)
    if recorded is None or recorded.stamp_ns != place.stamp_ns:
        raise DataError(f'{path} has changed since it was opened: cloud {place.number} is gone. Open it again.')
    points = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD)).points
    return points, is_ground(points, sensor_height)


def _open_motion(bag: Bag, frame_id: str, options: BagOptions) -> BagMotion | TfMotion:
    """Return the source of ego motion that the options name, or the best one that the bag has."""
    named = {'frame_id': frame_id, 'odometry_topic': options.odometry_topic}
    if options.ego_motion == 'tf':
        return TfMotion(bag, frame_id=frame_id)
    if options.ego_motion != 'auto':
        return BagMotion(bag, options.ego_motion, **named)
    try:
        return BagMotion(bag, 'odometry', **named)
    except (DataError, EgoMotionError) as error:
        if options.odometry_topic:
            raise
        note = str(error)
    try:
        motion = TfMotion(bag, frame_id=frame_id)
    except EgoMotionError as error:
        motion = BagMotion(bag, 'registration', frame_id=frame_id)
        note = f'{note} {error}'
    motion.note = note
    return motion


def _first_frame(bag: Bag, topic: str) -> str:
    """Return the frame of the first cloud that can be read."""
    for recorded in bag.messages([topic]):
        try:
            return decode_message(recorded.cdr, POINT_CLOUD).header.frame_id.lstrip('/')
        except DataError:
            continue
    raise DataError(f'{bag.path}: no message on {topic} can be read as a {POINT_CLOUD}.')


def _decode(recorded: BagMessage) -> Sweep:
    """Return a sweep; one without a single return is empty."""
    sweep = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD))
    return sweep if np.isfinite(sweep.points).any() else replace(sweep, points=sweep.points[:0])


def _in_order(bag: Bag, topic: str, motion: BagMotion):
    """Yield (number, message, how many clouds were recorded at its very time before it), once its motion is known."""
    waiting: deque[tuple[int, BagMessage, int]] = deque()
    number, ordinal, last_ns = -1, 0, None
    for recorded in bag.messages([topic, motion.topic]):
        if recorded.topic != topic:
            motion.add_odometry(recorded.cdr)
        else:
            number, ordinal = number + 1, ordinal + 1 if recorded.time_ns == last_ns else 0
            last_ns = recorded.time_ns
            waiting.append((number, recorded, ordinal))
        while waiting and (_is_known(waiting[0][1], motion) or len(waiting) > _MOST_WAITING):
            yield waiting.popleft()
    yield from waiting


def _is_known(recorded: BagMessage, motion: BagMotion) -> bool:
    return len(recorded.cdr) < 12 or motion.knows(recorded.stamp_ns)
