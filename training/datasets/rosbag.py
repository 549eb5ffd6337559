# SPDX-License-Identifier: Apache-2.0
"""Recorded drives: consecutive clouds of a rosbag1 or rosbag2, paired by the rules of the vehicle.

The bag is read once in order, to learn which sweeps make pairs and how the vehicle moved; after that, pairs are read
one by one, wherever they are.
"""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.datasets import split_options
from training.datasets.pairs import DatasetPair
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

    topic: of the clouds, '' for the only one. odometry_topic: likewise. ego_motion: see `BagMotion`.
    sensor_height: of the clouds' frame above the ground [m]; 0: it is seen in the sweeps.
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
    frame_id: str


class BagPairs:
    """The sweep pairs of one bag, in the frame of its clouds.

    skipped: how many clouds gave no pair with the one before, by reason; the first one is not counted.
    ego_motion, note: the source of ego motion, and why it is not odometry. boxes: true flow, or None.
    Raises: DataError when the bag is damaged or holds no pair, EgoMotionError when it lacks what was asked for.
    """

    def __init__(self, path: str | Path, boxes: TrackedBoxes | None = None, options: BagOptions = BagOptions()):
        self.path, self.boxes = Path(path), boxes
        self.name = self.path.resolve().stem
        self.skipped: Counter[str] = Counter()
        self._pairs: list[tuple[_Place, _Place, np.ndarray]] = []
        self._heights: dict[str, float] = {}  # of the sensor, by frame
        with Bag(path) as bag:
            self.topic = bag.point_cloud_topic(options.topic)
            self._index(bag, options)
        self._sweep = lru_cache(maxsize=2)(self._read_sweep)  # the newer sweep of a pair is the older one of the next

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the number of the older cloud in its topic, and its stamp [ns]."""
        place = self._pairs[index][0]
        return f'{place.number:06d}_{place.stamp_ns}'

    def __getitem__(self, index: int) -> DatasetPair:
        place0, place1, ego0_T_ego1 = self._pairs[index]
        (points0, is_ground0), (points1, is_ground1) = self._sweep(place0), self._sweep(place1)
        pair = SweepPair(points0.copy(), points1.copy(), ego0_T_ego1, (place1.stamp_ns - place0.stamp_ns) * 1e-9)
        truth = self.boxes and self.boxes.true_flow(pair, place0.number, place1.number)
        return DatasetPair(self.key(index), pair, is_ground0.copy(), is_ground1.copy(), truth)

    def _read_sweep(self, place: _Place) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of a sweep, and which are ground."""
        with Bag(self.path) as bag:  # opened anew: processes that share an open file disturb each other
            messages = bag.messages([self.topic], start_ns=place.time_ns, end_ns=place.time_ns + 1)
            recorded = next(islice(messages, place.ordinal, None), None)
        if recorded is None or recorded.stamp_ns != place.stamp_ns:
            raise DataError(f'{self.path} has changed since it was opened: cloud {place.number} is gone.')
        points = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD)).points
        return points, is_ground(points, self._heights[place.frame_id])

    def _index(self, bag: Bag, options: BagOptions) -> None:
        total = next(topic.num_messages for topic in bag.topics if topic.name == self.topic)
        if self.boxes and len(self.boxes.sweeps) != total:
            raise DataError(
                f'{self.boxes.path} has boxes for {len(self.boxes.sweeps)} sweeps, {self.path} has {total} clouds on '
                f'{self.topic}. They belong together only with one list of boxes for each cloud.'
            )
        motion = BagMotion(bag, options.ego_motion, frame_id=_first_frame(bag, self.topic),
                           odometry_topic=options.odometry_topic)  # fmt: skip
        self.ego_motion, self.note = motion.source, motion.note
        buffer, last, reason = SweepBuffer(_DT_RANGE), None, ''
        heights: defaultdict[str, SensorHeight] = defaultdict(lambda: SensorHeight(options.sensor_height or None))
        for number, recorded, ordinal in tqdm(
            _in_order(bag, self.topic, motion), f'{self.name}, ego motion by {motion.source}', total, delay=2,
        ):  # fmt: skip
            try:
                sweep = _decode(recorded)
            except (CloudError, DataError) as error:
                self.skipped[Drop.MALFORMED.value] += 1
                reason = str(error)
                continue
            previous, drop = buffer.push(sweep)
            if drop in (Drop.TIME_RESET, Drop.FRAME_CHANGED):
                motion.reset()
            place = _Place(number, recorded.time_ns, ordinal, sweep.stamp_ns, sweep.frame_id)
            before, last = last, place if buffer.last is sweep else last
            if buffer.last is sweep:
                self._heights[sweep.frame_id] = heights[sweep.frame_id].update(sweep.points)
            if drop is not None:
                self.skipped[drop.value] += drop != Drop.FIRST
                continue
            try:
                self._pairs.append((before, place, motion.between(previous, sweep)))
            except EgoMotionError as error:
                self.skipped[Drop.EGO_MOTION.value] += 1
                reason = str(error)
        self.skipped = +self.skipped
        if not self._pairs:
            skipped = ', '.join(f'{count} {name}' for name, count in self.skipped.items()) or 'too few clouds'
            raise DataError(f'{self.path}: {total} clouds on {self.topic} make no pair ({skipped}). {reason}'.rstrip())
        for frame_id in {place.frame_id for place, _, _ in self._pairs}:
            if self._heights[frame_id] == 0:
                raise DataError(
                    f'{self.path}: no sweep shows enough ground to tell how high the sensor {frame_id!r} stands. Say '
                    'it: bag:PATH?sensor_height=1.7 [m].'
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
