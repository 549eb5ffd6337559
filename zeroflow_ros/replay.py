# SPDX-License-Identifier: Apache-2.0
"""Play a bag on ROS 2: its clouds, odometry, transforms and /clock; or, with --offline or --view, compute its flow.

Reads any rosbag1 or rosbag2 (sqlite3, mcap), and needs no rosbag2 installation. Examples:

  python3 -m zeroflow_ros.replay drive.mcap --rate 0.5 --loop
  python3 -m zeroflow_ros.replay drive.bag --ros-args -r /velodyne_points:=/flow_node/input/pointcloud
  python3 -m zeroflow_ros.replay drive/ --offline --out drive_flow
  python3 -m zeroflow_ros.replay drive/ --view
  python3 -m zeroflow_ros.replay out/flow.mcap --view-file out/flow.rrd
"""

import argparse
import importlib
import sys
import threading
import time
from collections import deque

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag, BagMessage
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, TRANSFORMS
from zeroflow_ros.bags.read_ahead import ReadAhead
from zeroflow_ros.ego_motion.bag_motion import EGO_MOTION
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError
from zeroflow_ros.runtime.command_line import split_ros_args, stop_on_signals
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory
from zeroflow_ros.views.report import percentiles, write_json

_PLAYED_TYPES = (POINT_CLOUD, ODOMETRY, TRANSFORMS)
_CLOCK_PERIOD = 0.01  # s of wall time
_DEPTH = 10  # of the publishers: a subscriber may fall a second behind before it loses sweeps of 10 Hz
_REMEMBERED = 100_000  # sweeps of a loop that plays for days; 3 h at 10 Hz
_SETTLE = 0.2  # s between the first sign of a subscriber and its being ready for best-effort messages too


class Player:
    """Publishes a bag in its own time.

    node: an rclpy node. bag: opened. topics: the clouds to play; every cloud when empty.
    rate: seconds of the bag per second of wall time. start, duration: seconds of the bag; duration 0 is all of it.
    stop: ends play early.
    Raises: DataError when the bag has no such cloud, or nothing in that time.
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
        self.clouds = [bag.point_cloud_topic(topic) for topic in topics] or bag.topics_of(POINT_CLOUD)
        if not self.clouds:
            bag.point_cloud_topic()  # raises, and says what there is
        self._start_ns = bag.start_ns + round(start * 1e9)
        self._end_ns = min(bag.end_ns, self._start_ns + round(duration * 1e9)) if duration else bag.end_ns
        self._publishers = self._make_publishers()
        self.num_sweeps = 0
        self._sweeps: deque[dict] = deque(maxlen=_REMEMBERED)  # one for each: topic, stamp_ns, published_wall_ns
        self._lateness_ms: deque[float] = deque(maxlen=_REMEMBERED)

    def _make_publishers(self) -> dict:
        from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
        from rosgraph_msgs.msg import Clock

        self._clock = self._node.create_publisher(Clock, '/clock', 1)
        self._make_clock = Clock
        publishers = {}
        for topic in self._bag.topics:
            if topic.msgtype not in _PLAYED_TYPES or (topic.msgtype == POINT_CLOUD and topic.name not in self.clouds):
                continue
            package, _, name = topic.msgtype.split('/')
            try:
                message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            except ImportError:
                self._node.get_logger().info(f'{topic.name} is not played: {package} is not installed.')
                continue
            is_static = topic.name == STATIC_TRANSFORMS_TOPIC
            qos = QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=100 if is_static else _DEPTH,
                reliability=ReliabilityPolicy.RELIABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if is_static else DurabilityPolicy.VOLATILE,
            )
            publishers[topic.name] = self._node.create_publisher(message_type, topic.name, qos)
        return publishers

    def wait_for_subscribers(self, count: int, timeout: float) -> bool:
        """Wait until each cloud has `count` subscribers; return whether it has."""
        deadline = time.monotonic() + timeout
        while any(self._publishers[topic].get_subscription_count() < count for topic in self.clouds):
            if time.monotonic() > deadline or self.stop.wait(0.02):
                return False
        return not (count and self.stop.wait(_SETTLE))

    def play(self) -> None:
        """Play the chosen part once; returns early when `stop` is set."""
        if STATIC_TRANSFORMS_TOPIC in self._publishers:  # those from before the start hold, too
            for message in self._bag.messages([STATIC_TRANSFORMS_TOPIC], end_ns=self._start_ns):
                self._publish(message)
        messages = ReadAhead(self._bag.messages(self._publishers, start_ns=self._start_ns, end_ns=self._end_ns))
        try:
            start_wall = time.perf_counter()
            for i, message in enumerate(messages):
                if i == 0:
                    start_wall = time.perf_counter()  # opening a file and learning its types may take a while
                due = start_wall + (message.time_ns - self._start_ns) * 1e-9 / self._rate
                if not self._wait_until(due, start_wall):
                    return
                self._lateness_ms.append(max(0.0, (time.perf_counter() - due) * 1e3))
                self._tell_time(message.time_ns)
                self._publish(message)
            self._wait_until(start_wall + (self._end_ns - self._start_ns) * 1e-9 / self._rate, start_wall)
        finally:
            messages.close()

    def _wait_until(self, due: float, start_wall: float) -> bool:
        """Wait until a wall time, publishing the time of the bag meanwhile; return False when stopped."""
        while (remaining := due - time.perf_counter()) > 0:
            if self.stop.wait(min(remaining, _CLOCK_PERIOD)):
                return False
            now = time.perf_counter()
            if now < due:  # else the message that is due tells the time, and a late one must not set it back
                self._tell_time(self._start_ns + max(0, round((now - start_wall) * self._rate * 1e9)))
        return not self.stop.is_set()

    def _tell_time(self, now_ns: int) -> None:
        clock = self._make_clock()
        clock.clock.sec, clock.clock.nanosec = divmod(now_ns, 1_000_000_000)
        self._clock.publish(clock)

    def _publish(self, message: BagMessage) -> None:
        if message.topic in self.clouds:
            self.num_sweeps += 1
            self._sweeps.append(
                {'topic': message.topic, 'stamp_ns': message.stamp_ns, 'published_wall_ns': time.time_ns()}
            )
        self._publishers[message.topic].publish(bytes(message.cdr))

    def report(self) -> dict:
        """Return what was played: one entry for each sweep (the last 100,000), and how late messages were."""
        return {
            'bag': str(self._bag.path),
            'rate': self._rate,
            'sweeps_played': self.num_sweeps,
            'lateness_ms': percentiles(list(self._lateness_ms)),
            'sweeps': list(self._sweeps),
        }


def play(args, ros_args: list[str], stop: threading.Event) -> None:
    """Play the bag that the parsed command line names, until it ends or `stop` is set."""
    if args.times < 1:
        raise ConfigError(f'--times must be at least 1, got {args.times}.')
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise ConfigError(f'{error}. Source a ROS 2 installation, install rclpy, or use --offline.') from error

    with Bag(args.bag) as bag:
        try:
            rclpy.init(args=ros_args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as error:  # rcl has several types of error for arguments that it cannot read
            raise ConfigError(f'ROS refuses the arguments {" ".join(ros_args)}: {error}') from error
        try:
            node = rclpy.create_node('replay', start_parameter_services=False)
            log = node.get_logger()
            player = Player(node, bag, topics=args.topic, rate=args.rate, start=args.start, duration=args.duration,
                            stop=stop)  # fmt: skip
            _wait_for_subscribers(player, args, log)
            log.info(f'Playing {bag.path} at {args.rate:g}x: {", ".join(player.clouds)}')
            played = 0
            while not stop.is_set() and (args.loop or played < args.times):
                player.play()
                played += 1
            if not player.num_sweeps and not stop.is_set():
                raise DataError(f'There is no cloud in this part of {bag.path}. Choose another --start or --duration.')
            log.info(f'Played {player.num_sweeps} sweeps.')
            if args.report:
                write_json(args.report, player.report())
            stop.wait(_SETTLE)  # the last messages are still on their way
        finally:
            rclpy.try_shutdown()


def _wait_for_subscribers(player: Player, args, log) -> None:
    required = args.wait_for_subscribers
    if required is None:  # there may never be subscribers; those that exist should get the first sweep
        player.wait_for_subscribers(1, 2.0)
    elif not player.wait_for_subscribers(required, args.wait_timeout) and not player.stop.is_set():
        raise DataError(
            f'Fewer than {required} subscribers on {" and ".join(player.clouds)} within {args.wait_timeout:g} s. '
            'Start the node first, and check that topic and ROS_DOMAIN_ID agree.'
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='replay', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bag', help='rosbag2 directory, or a .mcap, .db3 or .bag file')
    parser.add_argument('--topic', action='append', default=[], help='cloud to play, may be repeated; default: all')
    parser.add_argument('--start', type=float, default=0.0, help='skip so many seconds of the bag')
    parser.add_argument('--duration', type=float, default=0.0, help='play so many seconds of the bag; default: all')
    parser.add_argument('--report', default='', help='write what was done as JSON to this file')
    live = parser.add_argument_group('on ROS 2')
    live.add_argument('--rate', type=float, default=1.0, help='speed of play; default: 1')
    live.add_argument('--loop', action='store_true', help='play again and again')
    live.add_argument('--times', type=int, default=1, help='play so many times; default: 1')
    live.add_argument('--wait-for-subscribers', type=int, metavar='N', default=None,
                      help='start when each cloud has N; default: one, but only for 2 s')  # fmt: skip
    live.add_argument('--wait-timeout', type=float, default=60.0, help='seconds to wait for them; default: 60')
    offline = parser.add_argument_group('offline')
    offline.add_argument('--offline', action='store_true', help='no ROS: compute flow at full speed, drop nothing')
    _add_offline_arguments(offline)
    return parser


def _add_offline_arguments(group) -> None:
    group.add_argument('--out', default='', help='rosbag2 directory to write flow to, or a file ending in .mcap')
    view = group.add_mutually_exclusive_group()
    view.add_argument('--view', action='store_true',
                      help='show cloud, flow and trajectory in the Rerun viewer while they are computed; a bag that '
                      'has flow is shown as it is, unless --out is given')  # fmt: skip
    view.add_argument('--view-file', default='', metavar='FILE.rrd', help='the same into a file for that viewer')
    group.add_argument('--replace', action='store_true', help='replace what exists')
    group.add_argument('--ego-motion', choices=EGO_MOTION, default='auto',
                       help='auto: odometry when the bag has it, else registration')  # fmt: skip
    group.add_argument('--odometry-topic', default='', help='default: the only one')
    group.add_argument('--odometry-T-lidar', type=float, nargs=7, metavar=('X', 'Y', 'Z', 'QX', 'QY', 'QZ', 'QW'),
                       help='pose of the LiDAR in the frame that odometry moves; default: from /tf_static')  # fmt: skip
    group.add_argument('--deskew', action='store_true',
                       help='move points to the stamp of their sweep, by their times and the ego motion')  # fmt: skip
    group.add_argument('--model', default='', help='model file, or tensorrt:FILE; default: the one in the package')
    group.add_argument('--threads', type=int, default=2, help='CPU threads of the engine; default: 2')
    group.add_argument('--output-on', default='latest', help='the sweep that gets the velocities: latest, previous')
    group.add_argument('--sensor-height', type=float, default=None, help='above ground [m]; default: as seen')
    group.add_argument('--refinements', type=int, default=0, help='extra inference passes; default: 0')


def main(args: list[str] | None = None) -> int:
    """Run from a command line, sys.argv unless given; return the exit status."""
    own, ros_args = split_ros_args(sys.argv[1:] if args is None else args)
    parsed = _parser().parse_args(own)
    keep_freed_memory()
    try:
        if parsed.offline or parsed.view or parsed.view_file:
            from zeroflow_ros.runtime import offline  # loads the engine, which playing has no need of

            return offline.main(parsed)
        with stop_on_signals() as stop:
            play(parsed, ros_args, stop)
        return 0
    except KeyboardInterrupt:
        print('replay: stopped', file=sys.stderr)
        return 130
    except (ZeroFlowError, OSError) as error:
        print(f'replay: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
