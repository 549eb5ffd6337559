# SPDX-License-Identifier: Apache-2.0
"""Play a bag on ROS 2 (clouds or images, odometry, transforms and /clock), or compute its flow: --offline or --view.

Reads rosbag1 and rosbag2 (sqlite3, mcap); rosbag2 need not be installed. Images are played where the bag has no clouds,
or where --topic names them. Examples:

  python3 -m zeroflow_ros.replay drive.mcap --rate 0.5 --loop
  python3 -m zeroflow_ros.replay drive.bag --ros-args -r /velodyne_points:=/flow_node/input/pointcloud
  python3 -m zeroflow_ros.replay drive/ --offline --out drive_flow
  python3 -m zeroflow_ros.replay drive/ --view
  python3 -m zeroflow_ros.replay stereo/ --topic /stereo/left/image_rect --topic /stereo/right/image_rect
  python3 -m zeroflow_ros.replay out/flow.mcap --view-file out/flow.rrd
"""

import argparse
import importlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from zeroflow_ros.bags.bag import LONGEST_PAUSE, STATIC_TRANSFORMS_TOPIC, Bag, BagMessage, duration_text
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS
from zeroflow_ros.bags.read_ahead import ReadAhead
from zeroflow_ros.camera.metric_scale import SCALES
from zeroflow_ros.camera.stereo_topics import CAMERA_INFO, IMAGE_TYPES
from zeroflow_ros.ego_motion.bag_motion import EGO_MOTION
from zeroflow_ros.ego_motion.camera_bag import has_camera, has_stereo
from zeroflow_ros.engines.mono_card import is_mono_model
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError
from zeroflow_ros.lidar.dynamic_points import DYNAMIC_MIN_SPEED
from zeroflow_ros.lidar.sweep_assembly import ASSEMBLE_SWEEPS
from zeroflow_ros.runtime.command_line import forget_interrupt, interrupt_normally, split_ros_args, stop_on_signals
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory
from zeroflow_ros.views.report import percentiles, write_json

_SENSOR_TYPES = (POINT_CLOUD, *IMAGE_TYPES)
_PLAYED_TYPES = (*_SENSOR_TYPES, CAMERA_INFO, ODOMETRY, TRANSFORMS)
_CLOCK_PERIOD = 0.025  # s of wall time, as of `ros2 bag play --clock`; each message wakes every node
_DEPTH, _MAX_DEPTH = 10, 200  # queue of the publishers: a subscriber loses messages when it is a second late
_MAX_REPORTED = 100_000  # sweeps in the report, 3 h at 10 Hz: a loop may play for days
_TOLD_PAUSE = 5.0  # s of wall time: longer ones without a message are logged
_PACE_SWEEPS = 10  # whose stamps are compared with their recording times
_NODES_GONE = 3.0  # s without any other node, after which waiting for their subscribers is in vain
_SETTLE = 0.2  # s from the discovery of a subscriber until it gets best-effort messages too


class Player:
    """Publishes the messages of a bag at the times they were recorded.

    node: an rclpy node. bag: opened. topics: the clouds and images to play; if empty all clouds, and without clouds all
    images. The CameraInfo of a bag are played with its images.
    rate: seconds of the bag per second of wall time. start, duration: seconds of the bag; duration 0: to its end.
    Pauses above LONGEST_PAUSE seconds of the bag are skipped, also those beside a few messages with a wrong time.
    stop: ends play() early.
    sensors: what is played of them. The first one is counted: `num_sweeps` are its messages.
    Raises: DataError when the bag has no such topic, or ends before `start`.
    """

    def __init__(self, node, bag: Bag, *, topics=(), rate: float = 1.0, start: float = 0.0, duration: float = 0.0,
                 stop: threading.Event | None = None):  # fmt: skip
        if not rate > 0 or start < 0 or duration < 0:
            raise ConfigError(
                f'Expected a rate above 0 and no negative start or duration, got {rate}, {start} and {duration}.'
            )
        if start >= bag.duration:
            raise DataError(f'Cannot start at {start} s: {bag.path} is {bag.duration:.1f} s long.')
        self._node, self._bag, self._rate = node, bag, rate
        self.stop = stop or threading.Event()
        self.sensors = _sensor_topics(bag, topics)
        self.noun = 'sweeps' if self.sensors[0] in bag.topics_of(POINT_CLOUD) else 'images'
        self._first_ns, end_ns = bag.window(start, duration)
        self._end_ns = min(end_ns, bag.last_ns + 1)
        self._start_ns = bag.start_ns + round(start * 1e9)  # what is recorded before is published at this time
        self._publishers = self._make_publishers()
        self.num_sweeps = 0
        self._sweeps: deque[dict] = deque(maxlen=_MAX_REPORTED)  # each: topic, stamp_ns, published_wall_ns
        self._lateness_ms: deque[float] = deque(maxlen=_MAX_REPORTED)
        self._pace: list[tuple[int, int]] = []  # stamp and recording time of the first messages of one sensor [ns]

    def _make_publishers(self) -> dict:
        from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
        from rosgraph_msgs.msg import Clock

        self._clock = self._node.create_publisher(Clock, '/clock', 1)
        self._make_clock = Clock
        publishers = {}
        for topic in self._bag.topics:
            if topic.msgtype not in _PLAYED_TYPES or (
                topic.msgtype in _SENSOR_TYPES and topic.name not in self.sensors
            ):
                continue
            if topic.msgtype == CAMERA_INFO and not self._plays_images():
                continue
            package, _, name = topic.msgtype.split('/')
            try:
                message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            except ImportError:
                self._node.get_logger().info(f'{topic.name} is not played: {package} is not installed.')
                continue
            is_static = topic.name == STATIC_TRANSFORMS_TOPIC
            rate = topic.num_messages / max(self._bag.duration, 1.0)  # 10 sweeps a second, 120 parts of sweeps
            qos = QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=100 if is_static else min(max(_DEPTH, round(rate)), _MAX_DEPTH),
                reliability=ReliabilityPolicy.RELIABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if is_static else DurabilityPolicy.VOLATILE,
            )
            publishers[topic.name] = self._node.create_publisher(message_type, topic.name, qos)
        return publishers

    def _plays_images(self) -> bool:
        return any(topic.name in self.sensors and topic.msgtype in IMAGE_TYPES for topic in self._bag.topics)

    def wait_for_subscribers(self, count: int, timeout: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until each sensor has `count` subscribers; return False on timeout, or when `give_up` returns True."""
        deadline = time.monotonic() + timeout
        while any(self._publishers[topic].get_subscription_count() < count for topic in self.sensors):
            if time.monotonic() > deadline or self.stop.wait(0.02) or give_up():
                return False
        return not (count and self.stop.wait(_SETTLE))

    def play(self) -> None:
        """Play the chosen part once; return early when `stop` is set."""
        if STATIC_TRANSFORMS_TOPIC in self._publishers:  # static transforms from before the start are valid too
            for message in self._bag.messages([STATIC_TRANSFORMS_TOPIC], end_ns=self._first_ns):
                self._publish(message)
        messages = ReadAhead(self._bag.messages(self._publishers, start_ns=self._first_ns, end_ns=self._end_ns))
        try:
            last_ns, is_first = self._start_ns, True
            self._play_on_from(last_ns)
            for message in messages:
                now_ns = max(message.time_ns, self._start_ns)
                if is_first or now_ns - last_ns > LONGEST_PAUSE * 1e9:
                    self._skip_pause(last_ns, now_ns)  # opening a file and reading its types takes time, too
                    is_first = False
                due = self._wall_of(now_ns)
                self._tell_pause(due - time.perf_counter(), now_ns)
                if not self._wait_until(due):
                    return
                self._lateness_ms.append(max(0.0, (time.perf_counter() - due) * 1e3))
                self._publish_clock(now_ns)
                self._publish(message)
                last_ns = now_ns
            if self._end_ns - last_ns <= LONGEST_PAUSE * 1e9:
                self._wait_until(self._wall_of(self._end_ns))
        finally:
            messages.close()

    def _play_on_from(self, time_ns: int) -> None:
        """Let a time of the bag be now."""
        self._anchor_wall, self._anchor_ns = time.perf_counter(), time_ns

    def _wall_of(self, time_ns: int) -> float:
        """Return when a time of the bag is due [s of wall time]."""
        return self._anchor_wall + (time_ns - self._anchor_ns) * 1e-9 / self._rate

    def _skip_pause(self, last_ns: int, now_ns: int) -> None:
        if now_ns - last_ns <= LONGEST_PAUSE * 1e9:
            self._play_on_from(last_ns)
            return
        self._play_on_from(now_ns)
        pause = duration_text((now_ns - last_ns) * 1e-9)
        self._node.get_logger().warning(f'Skipped {pause} without a message in {self._bag.path}.')

    def _tell_pause(self, seconds: float, now_ns: int) -> None:
        if seconds > _TOLD_PAUSE:
            self._node.get_logger().info(
                f'Next message in {duration_text(seconds)}. To play from there: '
                f'--start {(now_ns - self._bag.start_ns) * 1e-9:.1f}'
            )

    def _wait_until(self, due: float) -> bool:
        """Wait until a wall time, and publish the bag's time on /clock meanwhile; return False when stopped."""
        while (remaining := due - time.perf_counter()) > 0:
            if self.stop.wait(min(remaining, _CLOCK_PERIOD)):
                return False
            now = time.perf_counter()
            if now < due:  # else the time of the next message is published, and a later one here would set it back
                elapsed_ns = max(0, round((now - self._anchor_wall) * self._rate * 1e9))
                self._publish_clock(self._anchor_ns + elapsed_ns)
        return not self.stop.is_set()

    def _publish_clock(self, now_ns: int) -> None:
        clock = self._make_clock()
        clock.clock.sec, clock.clock.nanosec = divmod(now_ns, 1_000_000_000)
        self._clock.publish(clock)

    def _publish(self, message: BagMessage) -> None:
        if message.topic in self.sensors:
            self.num_sweeps += message.topic == self.sensors[0] or self.noun == 'sweeps'
            self._check_pace(message)
            self._sweeps.append(
                {'topic': message.topic, 'stamp_ns': message.stamp_ns, 'published_wall_ns': time.time_ns()}
            )
        self._publishers[message.topic].publish(bytes(message.cdr))

    def _check_pace(self, message: BagMessage) -> None:
        """Warn once when the recording times of the messages run at another speed than their stamps."""
        if message.topic != self.sensors[0] or len(self._pace) == _PACE_SWEEPS:
            return
        self._pace.append((message.stamp_ns, message.time_ns))
        if len(self._pace) < _PACE_SWEEPS:
            return
        by_stamp, by_recording = (float(np.median(np.diff(times))) * 1e-9 for times in zip(*self._pace, strict=True))
        if by_stamp <= 0 or 0.5 < by_recording / by_stamp < 2:
            return
        remedy = '--offline does not use recording times.'
        if by_recording > 1e-5:
            remedy = f'--rate {by_recording / by_stamp:.3g} plays them at the speed of their stamps.'
        self._node.get_logger().warning(
            f'The {self.noun} on {message.topic} are {by_stamp:.3g} s apart by their stamps, but were recorded '
            f'{by_recording:.3g} s apart. {remedy}'
        )

    def report(self) -> dict:
        """Return the played sweeps (the last 100,000) and how late the messages were."""
        return {
            'bag': str(self._bag.path),
            'rate': self._rate,
            'sweeps_played': self.num_sweeps,
            'lateness_ms': percentiles(list(self._lateness_ms)),
            'sweeps': list(self._sweeps),
        }


def _sensor_topics(bag: Bag, requested) -> list[str]:
    """Return the topics of clouds and images to play. Raises: DataError that lists what the bag has."""
    images = [name for msgtype in IMAGE_TYPES for name in bag.topics_of(msgtype)]
    if requested:
        return [topic if topic in images else bag.point_cloud_topic(topic) for topic in requested]
    found = bag.topics_of(POINT_CLOUD) or images
    if not found:
        bag.point_cloud_topic()  # raises, and lists the topics of the bag
    return found


def play(args, ros_args: list[str], stop: threading.Event) -> None:
    """Play a bag, with the parsed command line, until it ends or `stop` is set."""
    if args.times < 1:
        raise ConfigError(f'--times must be at least 1, got {args.times}.')
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions

        from zeroflow_ros.ros.ros_program import warn_of_unused_parameters
    except ImportError as error:
        raise ConfigError(f'{error}. Source a ROS 2 installation, install rclpy, or use --offline.') from error

    with Bag(args.bag) as bag:
        try:
            rclpy.init(args=ros_args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as error:  # rcl raises several types for invalid arguments
            raise ConfigError(f'ROS refuses the arguments {" ".join(ros_args)}: {error}') from error
        try:
            node = rclpy.create_node('replay', start_parameter_services=False)
            log = node.get_logger()
            warn_of_unused_parameters(node, ros_args)
            player = Player(node, bag, topics=args.topic, rate=args.rate, start=args.start, duration=args.duration,
                            stop=stop)  # fmt: skip
            for note in bag.notes:
                log.warning(note)
            told = set(bag.notes)
            _wait_for_subscribers(player, args, node)
            if stop.is_set():
                log.info('Stopped before playing.')
                return
            log.info(f'Playing {bag.path} at {args.rate:g}x: {", ".join(player.sensors)}')
            played = 0
            while not stop.is_set() and (args.loop or played < args.times):
                player.play()
                played += 1
            if not player.num_sweeps and not stop.is_set():
                what = 'cloud' if player.noun == 'sweeps' else 'image'
                raise DataError(f'There is no {what} in this part of {bag.path}. Choose another --start or --duration.')
            for note in bag.notes:
                if note not in told:
                    log.warning(note)
            log.info(f'Played {player.num_sweeps} {player.noun}.')
            if args.report:
                write_json(args.report, player.report())
            stop.wait(_SETTLE)  # until the last messages are delivered
        finally:
            rclpy.try_shutdown()


def _wait_for_subscribers(player: Player, args, node) -> None:
    required = args.wait_for_subscribers
    if required is None:  # existing subscribers should get the first sweep; there may be none
        player.wait_for_subscribers(1, 2.0)
        return
    others = _OtherNodes(node)
    if not player.wait_for_subscribers(required, args.wait_timeout, others.have_ended) and not player.stop.is_set():
        if others.ended:
            raise DataError(
                f'{" and ".join(others.ended)} ended before {" and ".join(player.sensors)} had {required} subscribers. '
                'Its log has the reason.'
            )
        raise DataError(
            f'Fewer than {required} subscribers on {" and ".join(player.sensors)} within {args.wait_timeout:g} s. '
            'Start the node first, and check that topic and ROS_DOMAIN_ID agree.'
        )


class _OtherNodes:
    """The nodes that come and go while the player waits."""

    def __init__(self, node):
        self._node, self._seen, self._last_seen = node, set(), time.monotonic()
        self.ended: list[str] = []  # names of nodes that were there before

    def have_ended(self) -> bool:
        """Return whether there were other nodes, and for some seconds none of them has been there any more."""
        found = self._node.get_node_names_and_namespaces()
        names = {f'{space.rstrip("/")}/{name}' for name, space in found if not name.startswith('_')}
        names.discard(self._node.get_fully_qualified_name())
        self._seen |= names
        self.ended = sorted(self._seen - names)
        if names or not self._seen:
            self._last_seen = time.monotonic()
        return time.monotonic() - self._last_seen > _NODES_GONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='replay', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bag', help='rosbag2 directory, or a .mcap, .db3 or .bag file')
    parser.add_argument('--topic', action='append', default=[], 
                        help='cloud or image to play, repeatable; offline also the left images of a stereo camera; '
                        'default: all clouds, without clouds all images')  # fmt: skip
    parser.add_argument('--start', type=float, default=0.0, help='seconds of the bag to skip; default: 0')
    parser.add_argument('--duration', type=float, default=0.0, help='seconds of the bag to play; default: to its end')
    parser.add_argument('--report', default='', help='JSON file for a report of the run')
    live = parser.add_argument_group('on ROS 2')
    live.add_argument('--rate', type=float, default=1.0, help='playback speed, 1 is real time; default: 1')
    live.add_argument('--loop', action='store_true', help='repeat until stopped')
    live.add_argument('--times', type=int, default=1, help='number of times to play; default: 1')
    live.add_argument('--wait-for-subscribers', type=int, metavar='N', default=None,
                      help='start when each sensor has N subscribers; default: wait up to 2 s for one')  # fmt: skip
    live.add_argument('--wait-timeout', type=float, default=60.0, help='longest wait for them [s]; default: 60')
    offline = parser.add_argument_group('offline')
    offline.add_argument('--offline', action='store_true', help='no ROS: compute flow at full speed, drop no sweep')
    _add_offline_arguments(parser, offline)
    return parser


def _add_offline_arguments(parser, group) -> None:
    group.add_argument('--out', default='', help='rosbag2 directory to write flow to, or a file ending in .mcap')
    view = group.add_mutually_exclusive_group()
    view.add_argument('--view', action='store_true',
                      help='show cloud, flow and trajectory in the Rerun viewer while they are computed; if the bag '
                      'contains flow and --out is not given, show the recorded flow')  # fmt: skip
    view.add_argument('--view-file', default='', metavar='FILE.rrd', help='write a file for the Rerun viewer instead')
    group.add_argument('--replace', action='store_true', help='replace an existing output')
    group.add_argument('--ego-motion', choices=(*EGO_MOTION, 'visual'), default='auto',
                       help='auto: odometry when the bag has it, else tf, else registration of clouds, or visual: from '
                       'the images')  # fmt: skip
    group.add_argument('--fixed-frame', default='',
                       help='frame fixed in the world, for tf; default: odom, else map or world')  # fmt: skip
    group.add_argument('--stamp-offset', type=float, default=None, metavar='S',
                       help='added to the stamps of clouds to look up poses [s]; default: 0, and clocks that differ '
                       'are refused')  # fmt: skip
    group.add_argument('--odometry-topic', default='', help='odometry to use; default: the only one in the bag')
    group.add_argument('--odometry-T-lidar', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                       help='pose of the LiDAR in the odometry child frame; default: from /tf_static, /tf')  # fmt: skip
    group.add_argument('--deskew', action='store_true',
                       help='move points to the stamp of the sweep, with their times and the ego motion')  # fmt: skip
    group.add_argument('--assemble-sweeps', choices=ASSEMBLE_SWEEPS, default='auto',
                       help='auto: join messages that surely hold parts of a revolution; off: each message is a sweep; '
                       'default: auto')  # fmt: skip
    group.add_argument('--time-field', default='', help='field with the point times; default: recognised by its name')
    group.add_argument('--time-unit', default='auto', help='its unit: s, ms, us, ns, or auto (default)')
    group.add_argument('--ego-box', type=float, nargs=6,
                       metavar=('X_MIN', 'X_MAX', 'Y_MIN', 'Y_MAX', 'Z_MIN', 'Z_MAX'),
                       help='box of the own vehicle, whose points count as no returns [m]')  # fmt: skip
    group.add_argument('--min-range', type=float, default=0.0,
                       help='points closer to the sensor count as no returns [m]; default: 0')  # fmt: skip
    group.add_argument('--static-points', type=float, nargs='?', const=DYNAMIC_MIN_SPEED, default=None, metavar='SPEED',
                       help='also write the clouds without points of at least SPEED [m/s], for SLAM; without a number: '
                       f'{DYNAMIC_MIN_SPEED}')  # fmt: skip
    group.add_argument('--model', default='', help='model file, or tensorrt:FILE; default: the bundled model')
    group.add_argument('--threads', type=int, default=2, help='CPU threads of the engine; default: 2')
    group.add_argument('--output-on', default='latest', help='sweep with the velocities: latest (default) or previous')
    group.add_argument('--sensor-height', type=float, default=None,
                       help='height above the ground [m]; default: estimated from the ground')  # fmt: skip
    group.add_argument('--base-frame', default='base_link',
                       help="frame whose z is up and that /tf_static of the bag connects with the LiDAR; '': do not "
                       'look; default: base_link')  # fmt: skip
    group.add_argument('--base-T-lidar', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                       help='pose of the LiDAR in such a frame, instead of /tf_static')  # fmt: skip
    camera = parser.add_argument_group('offline, cameras')
    camera.add_argument('--odometry-T-camera', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                        help='pose of the left optical frame in the odometry child frame; default: from /tf_static, '
                        '/tf')  # fmt: skip
    camera.add_argument(
        '--output-frame', default='', help='frame of the clouds; default: the left optical frame, whose z is forward'
    )
    camera.add_argument('--output-T-camera', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                        help='pose of the left optical frame in that frame; default: from /tf_static')  # fmt: skip
    camera.add_argument('--rectify', action='store_true', help='the images are raw: rectify them by their CameraInfo')
    camera.add_argument('--cloud-step', type=int, default=2,
                        help='write every n-th pixel of every n-th row; default: 2')  # fmt: skip
    camera.add_argument('--scale', choices=SCALES, default='model',
                        help='one camera: where metres come from; default: model')  # fmt: skip
    camera.add_argument('--camera-height', type=float, default=0.0, metavar='M',
                        help='of the camera above the ground, for --scale camera_height')  # fmt: skip
    group.add_argument('--refinements', type=int, default=0, help='extra inference passes; default: 0')
    group.add_argument(
        '--no-fit-objects', action='store_true', help='the flow of the network, without fitting moving objects'
    )


def _compute(args) -> int:
    """Compute or show the flow of clouds, of a stereo camera or of one camera; return the exit status."""
    with Bag(args.bag) as bag:
        clouds = bag.topics_of(POINT_CLOUD)
        is_mono = is_mono_model(args.model) if args.model else False
        is_camera = is_mono or (has_stereo(bag) and not (clouds if not args.topic else set(args.topic) & set(clouds)))
        if not is_camera and not clouds and has_camera(bag):
            raise DataError(
                f'{bag.path} has images of one camera, without a partner, which need a model for one camera: give it '
                'with --model.'
            )
    if is_camera:
        from zeroflow_ros.runtime import camera_offline  # loads OpenCV, which playing does not need

        return camera_offline.main(args)
    from zeroflow_ros.runtime import offline  # loads the engine, which playing does not need

    return offline.main(args)


def main(args: list[str] | None = None) -> int:
    """Run from a command line, sys.argv unless given; return the exit status."""
    own, ros_args = split_ros_args(sys.argv[1:] if args is None else args)
    parsed = _parser().parse_args(own)
    keep_freed_memory()
    try:
        if parsed.offline or parsed.view or parsed.view_file:
            interrupt_normally()
            return _compute(parsed)
        with stop_on_signals() as stop:
            play(parsed, ros_args, stop)
        return 0
    except KeyboardInterrupt:
        print('replay: stopped', file=sys.stderr)
        forget_interrupt()
        return 130
    except (ZeroFlowError, OSError) as error:
        print(f'replay: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
