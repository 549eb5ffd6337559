# SPDX-License-Identifier: Apache-2.0
"""Ego motion between the sweeps of a bag, from odometry, tf, registration, or none; without ROS."""

import contextlib

import numpy as np

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS, decode_message
from zeroflow_ros.ego_motion.checked_odometry import CheckedOdometry
from zeroflow_ros.ego_motion.clock_difference import check_clocks, recorded_stamps
from zeroflow_ros.ego_motion.motion_checks import ImplausibleMotionError
from zeroflow_ros.ego_motion.static_transforms import TF_TOPIC, StaticTransforms
from zeroflow_ros.ego_motion.tf_motion import TfMotion
from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.errors import ConfigError, DataError, EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep

EGO_MOTION = ('auto', 'odometry', 'tf', 'registration', 'none')
_LOOK_NS = 10_000_000_000  # of /tf, to find a mount that never changes
_CAPACITY = 10_000  # poses: 50 s at 200 Hz, far more than is read ahead


class BagMotion:
    """The motion between two sweeps, from one source for the whole bag.

    source: 'odometry', 'tf', 'registration' or 'none'; 'auto' uses the first of the first three that works.
    frame_id: frame of the clouds. cloud_topic: theirs; '': the first one.
    odometry_T_lidar: (4, 4) pose of the clouds' frame in the odometry's child frame; None: read from the bag.
    fixed_frame: see `TfPoses`. stamp_offset: added to the stamps of clouds for the lookup [s]; None: 0, and the clocks
    of clouds and poses are compared.
    has_world_clouds: whether clouds are in the fixed frame of the odometry. topic: of the odometry that is used, else
    ''. note: why 'auto' does not use what comes first.
    Raises: DataError or EgoMotionError when the bag lacks the data that the source needs.
    """

    def __init__(self, bag: Bag, source: str, *, frame_id: str, odometry_topic: str = '',
                 odometry_T_lidar: np.ndarray | None = None, fixed_frame: str = '', cloud_topic: str = '',
                 stamp_offset: float | None = None):  # fmt: skip
        if source not in EGO_MOTION:
            raise ConfigError(f'Ego motion must be one of {", ".join(EGO_MOTION)}, got {source!r}.')
        self.topic = self.note = self._other_sources = ''
        self._offset_ns = round((stamp_offset or 0.0) * 1e9)
        self._cloud_topic = (cloud_topic or bag.topics_of(POINT_CLOUD)[0]) if stamp_offset is None else ''
        self._odometry = CheckedOdometry(_CAPACITY)
        self.has_world_clouds = False
        self._may_register = source == 'auto' and not odometry_topic
        self._lidar_odometry = self._tf = self._mount = None
        self.odometry_T_lidar = odometry_T_lidar
        notes = []
        has_tf = TF_TOPIC in bag.topics_of(TRANSFORMS)
        automatic = ('odometry', *(['tf'] if has_tf else []), 'registration')
        for self.source in automatic if source == 'auto' else (source,):
            try:
                if self.source == 'odometry':
                    self._use_odometry(bag, odometry_topic, frame_id)
                elif self.source == 'tf':
                    self._use_tf(bag, frame_id, fixed_frame)
                break
            except (DataError, EgoMotionError) as error:
                if source != 'auto' or odometry_topic:
                    raise
                notes.append(str(error).split(' It has:\n')[0])  # a note is a sentence, not a list of topics
        self.note = ' '.join(notes)
        if source == 'registration':
            self._other_sources = _other_sources(bag)
        try:
            self.reset()
        except ConfigError as error:  # no small_gicp
            raise ConfigError(f'{error} {self.note}'.rstrip()) from error

    @property
    def fixed_frame(self) -> str:
        """The frame through which tf is looked up; '' with another source."""
        return self._tf.poses.fixed_frame if self.source == 'tf' else ''

    @property
    def warning(self) -> str:
        """What is wrong with the motion throughout, though it is used; '' for nothing."""
        if self.source == 'odometry':
            return self._odometry.warning
        return self._tf.warning if self.source == 'tf' else ''

    def describe(self) -> str:
        """Describe the source in a few words."""
        return f'tf through {self.fixed_frame!r}' if self.source == 'tf' else self.source

    def _use_tf(self, bag: Bag, frame_id: str, fixed_frame: str) -> None:
        self._tf = TfMotion(bag, frame_id, fixed_frame, self._offset_ns)
        if self._cloud_topic:
            clouds, _ = recorded_stamps(bag, self._cloud_topic)
            check_clocks(clouds, self._tf.poses.stamps, TF_TOPIC)

    def _use_odometry(self, bag: Bag, requested: str, frame_id: str) -> None:
        topic = bag.odometry_topic(requested)
        if not topic:
            raise DataError(f'{bag.path} has no topic of {ODOMETRY}. It has:\n{bag.list_topics()}')
        first = decode_message(bag.first(topic).cdr, ODOMETRY)
        if self._cloud_topic:
            clouds, poses = recorded_stamps(bag, self._cloud_topic, topic)
            check_clocks(clouds, [poses], f'odometry {topic}')
        child_frame, fixed_frame = first.child_frame_id.lstrip('/'), first.header.frame_id.lstrip('/')
        self.has_world_clouds = bool(frame_id) and frame_id == fixed_frame != child_frame
        if self.odometry_T_lidar is None:
            is_known = self.has_world_clouds  # the pose is that of the sensor
            self.odometry_T_lidar = np.eye(4) if is_known else static_transform(bag, child_frame, frame_id)
        self.topic = topic

    def add_odometry(self, cdr: bytes) -> None:
        """Add one nav_msgs/Odometry; a non-finite pose is ignored, so `between` may lack a pose there."""
        with contextlib.suppress(EgoMotionError):
            self._odometry.add(decode_message(cdr, ODOMETRY))

    def set_mount(self, mount: np.ndarray | None) -> None:
        """Say how the sensor is mounted; see `LidarOdometry`."""
        self._mount = mount
        if self.source == 'registration':
            self._lidar_odometry.set_mount(mount)

    def covers(self, stamp_ns: int) -> bool:
        """Return whether the odometry read so far reaches a stamp."""
        return not self.topic or (self._odometry.track.latest_stamp_ns or 0) >= stamp_ns + self._offset_ns

    def to_sensor_frame(self, sweep: Sweep) -> Sweep:
        """Return a sweep that is in the fixed frame of the odometry in the frame of the sensor; any other unchanged.

        Raises: EgoMotionError where the pose of the sensor is not known.
        """
        if self.source != 'odometry':
            return sweep
        return self._odometry.to_sensor_frame(sweep, self.odometry_T_lidar, self._offset_ns)

    def between(self, sweep0: Sweep, sweep1: Sweep) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64, of the frames of the two sweeps.

        Raises: EgoMotionError when it is unknown or implausible.
        """
        if self.source == 'none':
            return np.eye(4)
        if self.source == 'registration':
            with self._naming_other_sources():
                ego0_T_ego1 = self._lidar_odometry.between(sweep0, sweep1)
        else:
            try:
                if self.source == 'tf':
                    ego0_T_ego1 = self._tf.between(sweep0, sweep1)
                else:
                    ego0_T_ego1 = self._odometry.between(sweep0, sweep1, self.odometry_T_lidar, self._offset_ns)
            except ImplausibleMotionError as error:
                self._register_instead(str(error), sweep1)
                raise
        check_plausible(ego0_T_ego1, (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9)
        return ego0_T_ego1

    def poses_at_offsets(self, sweep: Sweep, other: Sweep, offsets_ns: np.ndarray) -> np.ndarray:
        """Return ego_T_then, (K, 4, 4) float64, for offsets (K,) [ns] from the stamp of a sweep; see `Deskew.pair`.

        Raises: EgoMotionError when it is unknown.
        """
        if self.source == 'none':
            return np.tile(np.eye(4), (len(offsets_ns), 1, 1))
        if self.source == 'registration':
            with self._naming_other_sources():
                return self._lidar_odometry.poses_at_offsets(sweep, other, offsets_ns)
        if self.source == 'tf':
            return self._tf.poses_at_offsets(sweep, offsets_ns)
        return self._odometry.poses_at_offsets(sweep, offsets_ns, self.odometry_T_lidar, self._offset_ns)

    @contextlib.contextmanager
    def _naming_other_sources(self):
        try:
            yield
        except EgoMotionError as error:
            raise EgoMotionError(f'{error}{self._other_sources}') from error

    def _register_instead(self, reason: str, sweep: Sweep) -> None:
        """Continue with registration, where the source is 'auto' and registration is installed."""
        if not self._may_register or sweep.frame_T_sensor is not None:
            return
        before = self.source, self.note
        try:
            self.source, self.note = 'registration', reason
            self.reset()
        except ConfigError:  # no small_gicp
            self.source, self.note = before

    def reset(self) -> None:
        """Forget the last sweep, when the next one does not follow it."""
        self._odometry.reset_checks()
        if self._tf is not None:
            self._tf.reset_checks()
        if self.source == 'registration':
            from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry  # small_gicp is optional

            self._lidar_odometry = LidarOdometry()
            self._lidar_odometry.set_mount(self._mount)


def _other_sources(bag: Bag) -> str:
    """Return a sentence on the sources of ego motion that a bag has besides registration, '' for none."""
    topics = bag.topics_of(ODOMETRY)
    found = [f'odometry on {" and ".join(topics)} (--ego-motion odometry)'] if topics else []
    found += [f'{TF_TOPIC} (--ego-motion tf)'] if TF_TOPIC in bag.topics_of(TRANSFORMS) else []
    return f' {bag.path} has {" and ".join(found)}.' if found else ''


def static_transform(bag: Bag, target: str, source: str) -> np.ndarray:
    """Return target_T_source, (4, 4), of two frames on one rigid body, from /tf_static, else /tf of a bag.

    Identity when the names are equal or one is empty.
    Raises: EgoMotionError when no transforms that never change connect the frames.
    """
    if not target or not source or target == source:
        return np.eye(4)
    transforms = static_transforms(bag, target, source)
    target_T_source = transforms.lookup(target, source)
    if target_T_source is None:
        known = ', '.join(transforms.frames) or 'nothing'
        obstacle = transforms.obstacle(target, source)
        obstacle = f' They are connected on {TF_TOPIC}, but {obstacle}: use --ego-motion tf.' if obstacle else ''
        raise EgoMotionError(
            f'The odometry moves the frame {target!r}, the clouds are in {source!r}, and {STATIC_TRANSFORMS_TOPIC} of '
            f'{bag.path} does not connect them (it has {known}).{obstacle} Say how the LiDAR is mounted with '
            '--odometry-T-lidar X Y Z QX QY QZ QW, or use --ego-motion registration.'
        )
    return target_T_source


def static_transforms(bag: Bag, target: str = '', source: str = '') -> StaticTransforms:
    """Return all transforms on /tf_static of a bag, and where they do not connect two frames, the constant ones of /tf.

    Of a long bag, the first, the middle and the last seconds of /tf are read.
    """
    transforms = StaticTransforms()
    for recorded in bag.messages([STATIC_TRANSFORMS_TOPIC]):
        transforms.add(decode_message(recorded.cdr, TRANSFORMS))
    if target and source and transforms.lookup(target, source) is None and TF_TOPIC in bag.topics_of(TRANSFORMS):
        middle_ns = (bag.start_ns + bag.end_ns) // 2
        windows = [(bag.start_ns, _LOOK_NS), (middle_ns, _LOOK_NS // 4), (bag.end_ns - _LOOK_NS // 4, _LOOK_NS // 2)]
        if bag.end_ns - bag.start_ns < 2 * _LOOK_NS:
            windows = [(bag.start_ns - _LOOK_NS, 4 * _LOOK_NS)]
        for start_ns, length_ns in windows:
            for recorded in bag.messages([TF_TOPIC], start_ns=start_ns, end_ns=start_ns + length_ns):
                transforms.observe(decode_message(recorded.cdr, TRANSFORMS))
    return transforms
