# SPDX-License-Identifier: Apache-2.0
"""Recorded drives with a stereo camera: consecutive frames of a rosbag1 or rosbag2, paired as on the vehicle.

Opening reads the bag once in order, to find the pairs and their ego motion. After that, pairs are read in any order.
"""

import json
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from training.datasets import split_options
from training.datasets.lidar_depth import BagDepth
from training.datasets.pairs import LATEST
from training.datasets.stereo_pairs import StereoBox, StereoDatasetPair
from training.datasets.tracked_boxes import TrackedBoxes, pose_of
from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag, BagMessage
from zeroflow_ros.bags.cdr import decode_message
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_checks import StereoChecks
from zeroflow_ros.camera.stereo_pairing import SIDES, FrameBuffer, FrameDrop, StereoMessages, StereoPairing
from zeroflow_ros.camera.stereo_reader import StereoReader
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO
from zeroflow_ros.ego_motion.bag_motion import BagMotion, static_transforms
from zeroflow_ros.ego_motion.camera_bag import first_image, open_camera_motion, stereo_topics
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError, ZeroFlowError
from zeroflow_ros.lidar.sweep import Sweep

_MAX_WAITING, _MAX_WAIT_NS = 20, 2_000_000_000  # pairs that wait for later odometry in the bag
_KEPT_FRAMES = 6
_NO_POINTS = np.zeros((0, 3), np.float32)
_SOURCES = ('auto', 'odometry', 'tf', 'none')  # of ego motion; auto takes the first that works
_CHECKED = 5  # frames of a bag that are looked at for swapped cameras and row errors


@dataclass(frozen=True)
class StereoBagOptions:
    """Options.

    topic: of the left images, '' for the stereo camera that is found first. odometry_topic: '' for the only one.
    ego_motion: odometry, tf or none; auto is the first of these that works: without ego motion, estimators find it in
    the images. fixed_frame: of tf, as in `BagMotion`. images_are_rectified: false for raw images. tolerance: largest
    difference of the stamps of left and right images [s]. min_dt, max_dt: time between the frames of a pair [s].
    boxes_frame: frame of the boxes; '' for the entry `frame` of their file. latest: the newer frame is the reference,
    as in the node. clouds: bag with the clouds of the same drive, which give true depth for scores; mount: bag whose
    /tf_static connects them with the left camera, '' for one of these two.
    """

    topic: str = ''
    odometry_topic: str = ''
    ego_motion: str = 'auto'
    fixed_frame: str = ''
    images_are_rectified: bool = True
    tolerance: float = 0.005
    min_dt: float = 0.06
    max_dt: float = 0.5
    boxes_frame: str = ''
    latest: bool = False
    clouds: str = ''
    mount: str = ''


@dataclass(frozen=True)
class _ImagePlace:
    """An image in a bag. time_ns: of recording. ordinal: among the messages of its topic with that time."""

    time_ns: int
    ordinal: int
    stamp_ns: int


@dataclass(frozen=True, eq=False)
class _FramePlace:
    """A stereo frame in a bag. number: of the left image in its topic. infos: both CameraInfo."""

    number: int
    stamp_ns: int
    frame_id: str
    images: tuple[_ImagePlace, _ImagePlace]
    infos: tuple[object, object]


class StereoBagPairs:
    """The stereo pairs of one bag; the older frame is the reference.

    skipped: number of images and frames without a pair, by reason; the first frame is not counted. warnings: sentences
    on what was dropped, and on the bag. ego_motion, note: the source of ego motion, and why it is not odometry.
    boxes: tracked boxes, one list for each left image; None: none.
    Raises: DataError when the bag is damaged, has no stereo camera or no pair, or the boxes are of another recording.
    """

    sensor = 'stereo'

    def __init__(self, path: str | Path, boxes: TrackedBoxes | None = None,
                 options: StereoBagOptions = StereoBagOptions()):  # fmt: skip
        self.path, self.boxes, self._options = Path(path), boxes, options
        place = self.path.resolve()
        self.name = place.name if place.is_dir() else place.stem
        self.skipped: Counter[str] = Counter()
        self._texts: dict[str, str] = {}
        self._pairs: list[tuple[_FramePlace, _FramePlace, np.ndarray | None]] = []
        self._reader = StereoReader(options.images_are_rectified)
        self._frames: OrderedDict[int, StereoFrame] = OrderedDict()
        with Bag(path) as bag:
            self.topics = stereo_topics(bag, options.topic)
            self._index(bag)
            self.warnings = [*bag.notes, *self._warnings()]
        self.warnings += self._check_images()
        self._depth = (
            BagDepth(options.clouds, (options.mount,) if options.mount else (path, options.clouds))
            if options.clouds
            else None
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Return the number of the older left image in its topic, and its stamp [ns]."""
        place = self._pairs[index][0]
        return f'{place.number:06d}_{place.stamp_ns}' + LATEST * self._options.latest

    def __getitem__(self, index: int) -> StereoDatasetPair:
        if self._options.latest:
            return self.latest(index)
        older, newer, older_T_newer = self._pairs[index]
        newer_T_older = None if older_T_newer is None else transforms.invert(older_T_newer)
        return self._item(self.key(index), older, newer, newer_T_older, partial(self._earlier, index))

    def _earlier(self, index: int, most: int) -> list[np.ndarray]:
        """Return the left images right before the older frame of a pair, without a gap."""
        images = []
        while len(images) < most and index > 0 and self._pairs[index - 1][1] is self._pairs[index][0]:
            index -= 1
            images.insert(0, self._frame(self._pairs[index][0]).left)
        return images

    def latest(self, index: int) -> StereoDatasetPair:
        """Return a pair seen from its newer frame, which becomes the reference: dt is negative."""
        older, newer, older_T_newer = self._pairs[index]
        return self._item(self.key(index).removesuffix(LATEST) + LATEST, newer, older, older_T_newer)

    def _item(
        self, key: str, reference: _FramePlace, other: _FramePlace, other_T_reference, earlier=None
    ) -> StereoDatasetPair:
        frames = [self._frame(place) for place in (reference, other)]
        dt = (other.stamp_ns - reference.stamp_ns) * 1e-9
        boxes = None if self.boxes is None else self._boxes_of(reference.number, other.number)
        depth = self._depth and self._depth.of(frames[0])
        return StereoDatasetPair(key, *frames, other_T_reference, dt, None, boxes, depth, earlier)

    def _boxes_of(self, reference: int, other: int) -> tuple[StereoBox, ...]:
        before = {box['track_id']: box for box in self.boxes.sweeps[other]}
        return tuple(
            StereoBox(
                box['category'], np.array(box['size_lwh'], np.float64), self._camera_T_boxes @ pose_of(box),
                self._camera_T_boxes @ pose_of(before[box['track_id']]),
            )
            for box in self.boxes.sweeps[reference] if box['track_id'] in before
        )  # fmt: skip

    def _frame(self, place: _FramePlace) -> StereoFrame:
        """Return a frame, read from the bag. Raises: DataError when it cannot be."""
        if place.number not in self._frames:
            with Bag(self.path) as bag:  # reopened: processes must not share an open file
                images = [self._image(bag, side, place) for side in range(2)]
            try:
                frame = self._reader.read(StereoMessages(*images, *place.infos, place.stamp_ns, place.frame_id))
            except ZeroFlowError as error:
                raise DataError(f'{self.path}, frame {place.number}: {error}') from error
            self._frames[place.number] = frame
            while len(self._frames) > _KEPT_FRAMES:
                self._frames.popitem(last=False)
        return self._frames[place.number]

    def _image(self, bag: Bag, side: int, place: _FramePlace):
        topic, image = self._image_topics[side], place.images[side]
        found = bag.messages([topic], start_ns=image.time_ns, end_ns=image.time_ns + 1)
        recorded = next(islice(found, image.ordinal, None), None)
        if recorded is None or recorded.stamp_ns != image.stamp_ns:
            raise DataError(
                f'{self.path} has changed since it was opened: image {place.number} is gone. Open it again.'
            )
        return decode_message(recorded.cdr, self.topics.image_type)

    @property
    def _image_topics(self) -> tuple[str, str]:
        return self.topics.left_image, self.topics.right_image

    def _index(self, bag: Bag) -> None:
        options, first = self._options, first_image(bag, self.topics)
        frame_id = first.header.frame_id.lstrip('/')
        if options.ego_motion not in _SOURCES:
            raise ConfigError(f'ego_motion of a stereo bag is {", ".join(_SOURCES)}; got {options.ego_motion!r}.')
        motion, self.note = open_camera_motion(
            bag, options.ego_motion, frame_id=frame_id, left_image=self.topics.left_image,
            odometry_topic=options.odometry_topic, fixed_frame=options.fixed_frame,
        )  # fmt: skip
        self.ego_motion = 'none' if motion is None else motion.source
        if self.boxes is not None:
            self._camera_T_boxes = self._place_boxes(bag, frame_id)
        buffer, waiting = FrameBuffer((options.min_dt, options.max_dt)), deque()
        total = next(topic.num_messages for topic in bag.topics if topic.name == self.topics.left_image)
        topics = [*self.topics.names, *([motion.topic] if motion and motion.topic else [])]
        messages = tqdm(bag.messages(topics), f'{self.name}, ego motion by {self.ego_motion}', delay=2, disable=None)
        num_lefts = 0
        for outcome, recorded in self._frames_in_order(messages, motion):
            if outcome is None:
                num_lefts += 1
                continue
            if outcome.drop is not None:
                self._drop(outcome.drop, outcome.text)
            elif outcome.messages is not None:
                place, kept = _place_of(outcome.messages), buffer.last
                previous, drop = buffer.push(place)
                if drop is None:
                    waiting.append((previous, place, recorded.time_ns))
                elif drop is not FrameDrop.FIRST:
                    self._drop(drop, buffer.drop_text(drop, place, kept))
            while waiting and (
                motion is None
                or motion.covers(waiting[0][1].stamp_ns)
                or (len(waiting) > _MAX_WAITING and waiting[-1][2] - waiting[0][2] >= _MAX_WAIT_NS)
            ):
                self._add(*waiting.popleft()[:2], motion)
        while waiting:
            self._add(*waiting.popleft()[:2], motion)
        if self.boxes is not None and len(self.boxes.sweeps) != num_lefts:
            raise DataError(
                f'{self.boxes.path} has boxes for {len(self.boxes.sweeps)} frames, {self.path} has {num_lefts} images '
                f'on {self.topics.left_image}. They belong together only with one list of boxes for each left image.'
            )
        if not self._pairs:
            skipped = ' '.join(self._warnings()) or 'Too few images.'
            raise DataError(f'{self.path}: {total} images on {self.topics.left_image} make no pair. {skipped}')

    def _frames_in_order(self, messages: Iterator[BagMessage], motion: BagMotion | None):
        """Yield (outcome of the pairing, message) for each image, and (None, message) for each left image."""
        pairing, infos = StereoPairing(self._options.tolerance), {}
        sides = dict(zip((*self._image_topics, self.topics.left_info, self.topics.right_info), SIDES * 2, strict=True))
        numbers, last = Counter(), {}
        for recorded in messages:
            if recorded.topic not in sides:
                motion.add_odometry(recorded.cdr)
                continue
            side, is_image = sides[recorded.topic], recorded.topic in self._image_topics
            try:
                message = decode_message(recorded.cdr, self.topics.image_type if is_image else CAMERA_INFO)
            except DataError as error:
                if is_image:
                    self._drop(FrameDrop.MALFORMED, str(error))
                    numbers[side] += 1
                    if side == 'left':
                        yield None, recorded
                continue
            if not is_image:
                content = recorded.topic, bytes(recorded.cdr)[12:]  # what follows the stamp
                outcomes = pairing.push_info(side, infos.setdefault(content, message))
            else:
                ordinal = last[side][1] + 1 if side in last and last[side][0] == recorded.time_ns else 0
                last[side] = recorded.time_ns, ordinal
                place = _ImagePlace(recorded.time_ns, ordinal, recorded.stamp_ns)
                outcomes = pairing.push(side, SimpleNamespace(header=message.header, place=place, number=numbers[side]))
                numbers[side] += 1
                if side == 'left':
                    yield None, recorded
            for outcome in outcomes:
                yield outcome, recorded

    def _add(self, older: _FramePlace, newer: _FramePlace, motion: BagMotion | None) -> None:
        older_T_newer = None
        if motion is not None:
            sweeps = (Sweep(_NO_POINTS, place.stamp_ns, place.frame_id) for place in (older, newer))
            try:
                older_T_newer = motion.between(*sweeps)
            except EgoMotionError as error:
                self._drop(FrameDrop.EGO_MOTION, str(error))
                return
        self._pairs.append((older, newer, older_T_newer))

    def _drop(self, reason: FrameDrop, text: str) -> None:
        self.skipped[reason.value] += 1
        self._texts.setdefault(reason.value, text)

    def _warnings(self) -> list[str]:
        """Return a sentence on each reason for which images or frames are left out."""
        said = [f'{number} dropped ({name}). {self._texts[name]}' for name, number in self.skipped.items()]
        return [*said, *([f'No odometry is used. {self.note}'] if self.note else [])]

    def _check_images(self) -> list[str]:
        """Return what is doubtful about the cameras, as a few frames of the bag show it.

        Raises: DataError where left and right are swapped, or the images are not rectified at all.
        """
        some = np.unique(np.linspace(0, len(self._pairs) - 1, _CHECKED).round().astype(int))
        warnings, bad = {}, {}
        for index in some:
            try:
                found = StereoChecks().check(self._frame(self._pairs[index][0]))
            except DataError:  # a single image that cannot be read is told when its pair is
                continue
            for finding in found:
                of_cameras = finding.drop in (FrameDrop.SWAPPED, FrameDrop.CALIBRATION)
                (bad if of_cameras else warnings).setdefault(finding.kind, []).append(finding.text)
        for texts in bad.values():
            if 2 * len(texts) > len(some):
                raise DataError(f'{self.path}: {texts[0]}')
        return [texts[0] for texts in (*warnings.values(), *bad.values()) if 2 * len(texts) > len(some)]

    def _place_boxes(self, bag: Bag, frame_id: str) -> np.ndarray:
        """Return the pose (4, 4) of the frame of the boxes in the left optical frame."""
        frame = self._options.boxes_frame or json.loads(self.boxes.path.read_text()).get('frame', '')
        if not isinstance(frame, str) or not frame:
            raise DataError(
                f'{self.boxes.path} does not say in which frame its boxes are: add an entry "frame", or name it: '
                'stereo:BAG+BOXES?boxes_frame=velodyne.'
            )
        tf = static_transforms(bag, frame_id, frame)
        camera_T_boxes = tf.lookup(frame_id, frame)
        if camera_T_boxes is None:
            raise DataError(
                f'/tf_static of {self.path} does not connect {frame!r}, the frame of the boxes, with {frame_id!r}, the '
                f'frame of the left images; it has {", ".join(tf.frames) or "nothing"}.'
            )
        return camera_T_boxes


def _place_of(messages: StereoMessages) -> _FramePlace:
    images = messages.left.place, messages.right.place
    infos = messages.left_info, messages.right_info
    return _FramePlace(messages.left.number, messages.stamp_ns, messages.frame_id, images, infos)


def open_pairs(text: str) -> StereoBagPairs:
    """Open PATH or PATH+BOXES.json, with the options of `StereoBagOptions` behind a question mark."""
    text, options = split_options(text, StereoBagOptions)
    path, plus, boxes = text.rpartition('+')
    if not (plus and boxes.endswith('.json')):
        return StereoBagPairs(text, None, options)
    return StereoBagPairs(path, TrackedBoxes.read(Path(boxes)), options)


def recognises(text: str) -> bool:
    """Return False: a bare path of a bag is that of its clouds."""
    return False
