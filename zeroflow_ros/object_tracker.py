# SPDX-License-Identifier: Apache-2.0
"""The object tracker: dynamic points of the flow node in, boxes with velocities and persistent track IDs out.

    ros2 run zeroflow_ros object_tracker --ros-args -r '~/input/odometry:=/odom' \
        -r '~/input/dynamic_points:=/flow_node/output/dynamic_points'
    python3 -m zeroflow_ros.object_tracker --ros-args -p ego_motion:=tf -p confirm_hits:=3

An example of a program that uses the flow: no classes, no training, any kind of object. See docs/object_tracker.md.
"""

import sys
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from zeroflow_ros.objects.object_worker import ObjectWorker
from zeroflow_ros.objects.tracker import TrackerOptions
from zeroflow_ros.ros.ego_motion_sources import open_ego_motion
from zeroflow_ros.ros.messages import diagnostic_array
from zeroflow_ros.ros.object_markers import object_markers
from zeroflow_ros.ros.parameters import (
    Parameters,
    apply_live_changes,
    check_ego_motion,
    parameter_table,
    read_parameters,
)
from zeroflow_ros.ros.ros_program import node_log, run_node
from zeroflow_ros.runtime.health import Health, Level
from zeroflow_ros.runtime.parameter_fields import same_parameter

INPUT, OUTPUT = '~/input/dynamic_points', '~/output/objects'
_DEPTH = 5  # queue of the input, half a second: a late sweep costs less than a lost one
_LIFETIME = 0.3  # s: boxes stay visible over two lost sweeps, then disappear
_INPUT_TIMEOUT_S = 2.0
_PARTS = {'input': 'input', 'ego_motion': 'ego_motion', 'inference': 'tracking'}


@dataclass(frozen=True)
class ObjectParameters(TrackerOptions):
    """All parameters of the object tracker: what counts as an object, and where the ego motion comes from.

    Raises: ConfigError on a value of the wrong type, out of range, or in conflict with another one.
    """

    ego_motion: str = same_parameter(Parameters, 'ego_motion')
    fixed_frame: str = same_parameter(Parameters, 'fixed_frame')
    odometry_T_lidar: tuple = same_parameter(Parameters, 'odometry_T_lidar')
    stamp_offset_s: float = same_parameter(Parameters, 'stamp_offset_s')
    ego_motion_timeout_s: float = same_parameter(Parameters, 'ego_motion_timeout_s')

    extrinsic = Parameters.extrinsic

    def __post_init__(self):
        super().__post_init__()
        check_ego_motion(self)


class ObjectTracker(Node):
    """Tracks objects from construction until close().

    Raises: ConfigError for an unknown parameter or an invalid value.
    """

    def __init__(self, **node_arguments):
        super().__init__('object_tracker', automatically_declare_parameters_from_overrides=True, **node_arguments)
        self.parameters = read_parameters(self, ObjectParameters)
        self.unused_parameters: list[str] = []  # warnings about parameter files
        apply_live_changes(self)
        self._health = Health(node_log(self))
        reliable = ReliabilityPolicy.RELIABLE
        self._objects = self.create_publisher(MarkerArray, OUTPUT, QoSProfile(depth=1, reliability=reliable))
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._ego_motion = open_ego_motion(self, self.parameters, self._health)
        self._worker = ObjectWorker(
            self._ego_motion, self._health, self._publish, parameters=lambda: self.parameters, is_open=self.context.ok
        )
        self._worker.start()
        self._topic = self.resolve_topic_name(INPUT)
        self.create_subscription(PointCloud2, INPUT, self._worker.put, QoSProfile(depth=_DEPTH, reliability=reliable))
        self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(
            f'Publishing the objects in {self._topic} on {self.resolve_topic_name(OUTPUT)}; '
            f'{self._ego_motion.describe()}'
        )

    def _publish(self, msg: PointCloud2, objects: list) -> None:
        self._objects.publish(object_markers(msg.header, objects, _LIFETIME))

    def _report(self) -> None:
        """Publish the diagnostics; an error in them must not end the node."""
        try:
            self._health.check_input_timeout(_INPUT_TIMEOUT_S, self._describe_input)
            for text in self.unused_parameters:
                self._health.report_issue(text, 'inference', Level.WARN, text, log='debug')
            name = self.get_fully_qualified_name().lstrip('/')
            statuses = [
                (f'{name}: {_PARTS[s.part]}', s.level, s.message, s.values)
                for s in self._health.statuses({'input': {'topic': self._topic}})
                if s.part in _PARTS
            ]
            self._diagnostics.publish(diagnostic_array(self.get_clock().now().to_msg(), statuses))
        except Exception as error:
            if self.context.ok():
                self.get_logger().error(f'The diagnostics failed: {type(error).__name__}: {error}')

    def _describe_input(self) -> str:
        count = self.count_publishers(self._topic)
        remedy = f"Remap it: --ros-args -r '{INPUT}:=/flow_node/output/dynamic_points'."
        advice = 'No cloud arrives.' if count else remedy
        return f'{self._topic} has {count} publisher{"s" * (count != 1)}. {advice}'

    def close(self) -> None:
        """Stop taking clouds, finish the current one, and release all resources."""
        self._worker.stop()
        self._ego_motion.close()
        self.destroy_node()


def main(args: list[str] | None = None) -> int:
    """Run the node until it is stopped; return the exit code."""
    argv = sys.argv if args is None else [sys.argv[0], *args]
    if {'-h', '--help'} & set(argv):
        print(__doc__)
        return 0
    if '--parameters' in argv:
        print(parameter_table(ObjectParameters))
        return 0
    return run_node('object_tracker', argv, ObjectTracker)


if __name__ == '__main__':
    sys.exit(main())
