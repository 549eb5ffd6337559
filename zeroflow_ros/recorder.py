# SPDX-License-Identifier: Apache-2.0
"""Record what the flow node or the camera node publishes: flow, timings, diagnostics as a rosbag2 mcap, and statistics.

Stops on Ctrl-C or SIGTERM, or --idle seconds after the last flow cloud. Example:

  python3 -m zeroflow_ros.recorder --out flow.mcap --report flow.json --idle 5
  python3 -m zeroflow_ros.recorder --out flow.mcap --flow-node /camera_flow_node
"""

import argparse
import queue
import sys
import threading
import time
from collections import defaultdict, deque
from pathlib import Path

from zeroflow_ros.bags.bag import BagWriter
from zeroflow_ros.bags.cdr import DIAGNOSTICS, MARKER, NUMBER, ODOMETRY, POINT_CLOUD, decode_message, header_stamp_ns
from zeroflow_ros.errors import ConfigError, DataError, ZeroFlowError
from zeroflow_ros.runtime import camera_worker, flow_worker
from zeroflow_ros.runtime.command_line import split_ros_args, stop_on_signals
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory
from zeroflow_ros.views.recorded_flow import RECORDING_STARTED
from zeroflow_ros.views.report import write_json

_MAX_QUEUED_BYTES = 150_000_000  # waiting for the disk: some 35 LiDAR clouds
_MAX_EARLY = 100  # messages without a stamp, received before the first flow
_LATENCY, _DT = 'pipeline_latency_ms', 'dt_s'
_DIAGNOSTICS_TOPIC = '/diagnostics'


class Recorder:
    """Subscribes to a flow node, and writes the messages on a thread of its own.

    ros_node: an rclpy node. flow_node: absolute name of the node to record. odometry_topic: recorded too, when given.
    markers: record the arrows too; the node makes them only for subscribers. writer: gets the messages, with the stamps
    of the sweeps as times. most_flow: largest number of flow clouds to write; stamps and timings are kept of all.
    """

    def __init__(self, ros_node, writer: BagWriter, *, flow_node: str = '/flow_node', odometry_topic: str = '',
                 markers: bool = False, most_flow: int | None = None):  # fmt: skip
        from diagnostic_msgs.msg import DiagnosticArray
        from nav_msgs.msg import Odometry
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import PointCloud2
        from std_msgs.msg import Float64
        from visualization_msgs.msg import Marker

        self._node, self._writer, self._most_flow = ros_node, writer, most_flow
        self.flow_topic = f'{flow_node}/output/flow'
        self.received: list[dict] = []  # for each flow cloud: stamp_ns, received_wall_ns
        self.last_flow: float | None = None  # time.monotonic() of the last flow cloud [s]
        self.num_lost = 0  # messages not written because the disk was too slow
        self._timings: dict[str, list[float]] = defaultdict(list)
        self._diagnostics: dict[str, dict] = {}
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._early: deque[tuple[str, str, bytes]] = deque(maxlen=_MAX_EARLY)
        self._queued_bytes = self._written_bytes = 0  # totals, each changed by one thread only
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

        subscribe = ros_node.create_subscription
        reliable = QoSProfile(depth=10)
        small = QoSProfile(depth=100)
        subscribe(PointCloud2, self.flow_topic, self._on_flow, reliable, raw=True)
        for stage in dict.fromkeys([*flow_worker.STAGES, *camera_worker.STAGES]):  # a node publishes one of the two
            self._subscribe_number(Float64, f'{flow_node}/debug/processing_time/{stage}_ms', stage, small)
        for name in (_LATENCY, _DT):
            self._subscribe_number(Float64, f'{flow_node}/debug/{name}', name, small)
        subscribe(DiagnosticArray, _DIAGNOSTICS_TOPIC, self._on_diagnostics, small, raw=True)
        if markers:
            topic = f'{flow_node}/output/markers'
            subscribe(Marker, topic, lambda cdr: self._on_stamped(topic, MARKER, cdr), reliable, raw=True)
        if odometry_topic:
            best_effort = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
            subscribe(Odometry, odometry_topic, lambda cdr: self._on_stamped(odometry_topic, ODOMETRY, cdr),
                      best_effort, raw=True)  # fmt: skip

    def _subscribe_number(self, message_type, topic: str, key: str, qos) -> None:
        def on_number(cdr: bytes) -> None:
            self._timings[key].append(decode_message(cdr, NUMBER).data)
            self._enqueue_at_last_stamp(topic, NUMBER, cdr)

        self._node.create_subscription(message_type, topic, on_number, qos, raw=True)

    def is_connected(self) -> bool:
        """Return whether the flow topic has a publisher."""
        return self._node.count_publishers(self.flow_topic) > 0

    def _on_flow(self, cdr: bytes) -> None:
        self.last_flow = time.monotonic()
        self.received.append({'stamp_ns': header_stamp_ns(cdr), 'received_wall_ns': time.time_ns()})
        self._on_stamped(self.flow_topic, POINT_CLOUD, cdr)
        while self._early:
            self._enqueue_at_last_stamp(*self._early.popleft())

    def _on_stamped(self, topic: str, msgtype: str, cdr: bytes) -> None:
        if self._is_below_limit():
            self._enqueue(topic, msgtype, cdr, header_stamp_ns(cdr))

    def _on_diagnostics(self, cdr: bytes) -> None:
        for status in decode_message(cdr, DIAGNOSTICS).status:
            previous = self._diagnostics.get(status.name, {'worst_level': 0})
            self._diagnostics[status.name] = {
                'level': int(status.level),
                'worst_level': max(int(status.level), previous['worst_level']),
                'message': status.message,
                'values': {item.key: item.value for item in status.values},
            }
        self._enqueue_at_last_stamp(_DIAGNOSTICS_TOPIC, DIAGNOSTICS, cdr)

    def _is_below_limit(self) -> bool:
        return self._most_flow is None or len(self.received) <= self._most_flow

    def _enqueue_at_last_stamp(self, topic: str, msgtype: str, cdr: bytes) -> None:
        """Enqueue a message without a stamp of the sensor's clock at the stamp of the last sweep."""
        if not self.received:
            self._early.append((topic, msgtype, cdr))
        elif self._is_below_limit():
            self._enqueue(topic, msgtype, cdr, self.received[-1]['stamp_ns'])

    def _enqueue(self, topic: str, msgtype: str, cdr: bytes, time_ns: int) -> None:
        if self._queued_bytes - self._written_bytes + len(cdr) > _MAX_QUEUED_BYTES:
            self.num_lost += 1
            return
        self._queued_bytes += len(cdr)
        self._queue.put((topic, msgtype, time_ns, cdr))

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._writer.write(*item)
            except Exception as error:  # a full disk must not look like a node that publishes nothing
                self._failure = self._failure or error
            self._written_bytes += len(item[-1])

    def finish(self) -> None:
        """Write the messages that still wait.

        Raises: DataError when a message could not be written.
        """
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise DataError(f'The recording is incomplete: {self._failure}. Is the disk full?')

    def report(self) -> dict:
        """Return what was received: stamps, timings by stage [ms], the last diagnostics."""
        return {
            'flow_topic': self.flow_topic,
            'flow_received': len(self.received),
            'lost_by_the_recorder': self.num_lost,
            'flow': self.received,
            'timings': dict(self._timings),
            'diagnostics': self._diagnostics,
        }


def record(args, ros_args: list[str], stop: threading.Event) -> None:
    """Record until `stop` is set or the flow ends.

    Raises: DataError when no flow was received.
    """
    try:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from zeroflow_ros.ros.ros_program import warn_of_unused_parameters
    except ImportError as error:
        raise ConfigError(f'{error}. Source a ROS 2 installation, or install rclpy.') from error

    try:
        rclpy.init(args=ros_args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rcl raises several types for invalid arguments
        raise ConfigError(f'ROS refuses the arguments {" ".join(ros_args)}: {error}') from error
    writer = BagWriter(args.out, replace=args.replace)
    try:
        node = rclpy.create_node('recorder', start_parameter_services=False)
        log = node.get_logger()
        warn_of_unused_parameters(node, ros_args)
        recorder = Recorder(node, writer, flow_node=args.flow_node, odometry_topic=args.odometry_topic,
                            markers=args.markers, most_flow=args.most_flow)  # fmt: skip
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        log.info(f'Waiting for {recorder.flow_topic}')
        is_connected = False
        while not stop.is_set() and not _is_idle(recorder, args.idle):
            executor.spin_once(timeout_sec=0.1)
            if not is_connected and recorder.is_connected():
                is_connected = True
                log.info(f'{RECORDING_STARTED} {recorder.flow_topic} to {Path(args.out).absolute()}')
        executor.shutdown()
        recorder.finish()
        if args.report:
            write_json(args.report, recorder.report())
        if not recorder.received:
            found = 'a publisher, but no message' if is_connected else 'no publisher'
            raise DataError(f'No flow to record: {recorder.flow_topic} had {found}. Check the node and ROS_DOMAIN_ID.')
        writer.close()
        log.info(f'Recorded {len(recorder.received)} sweeps with flow to {args.out}')
    except BaseException:
        writer.abort()
        raise
    finally:
        rclpy.try_shutdown()


def _is_idle(recorder: Recorder, idle: float) -> bool:
    return bool(idle) and recorder.last_flow is not None and time.monotonic() - recorder.last_flow > idle


def main(args: list[str] | None = None) -> int:
    """Run from a command line, sys.argv unless given; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='recorder', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True, help='rosbag2 directory, or a file ending in .mcap')
    parser.add_argument('--replace', action='store_true', help='replace an existing recording')
    parser.add_argument('--report', default='', help='JSON file for stamps, timings and diagnostics')
    parser.add_argument('--flow-node', default='/flow_node', help='name of the flow node; default: /flow_node')
    parser.add_argument('--odometry-topic', default='', help='also record this odometry')
    parser.add_argument('--markers', action='store_true', help='also record the arrows; the node then makes them')
    parser.add_argument('--most-flow', type=int, help='largest number of flow clouds to write; the report covers all')
    parser.add_argument('--idle', type=float, default=0.0, help='stop this many seconds after the last flow; 0: never')
    own, ros_args = split_ros_args(sys.argv[1:] if args is None else args)
    parsed = parser.parse_args(own)
    keep_freed_memory()
    try:
        with stop_on_signals() as stop:
            record(parsed, ros_args, stop)
        return 0
    except (ZeroFlowError, OSError) as error:
        print(f'recorder: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
