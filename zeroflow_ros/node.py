# SPDX-License-Identifier: Apache-2.0
"""The scene-flow node: PointCloud2 in, the same cloud with a velocity for every point out.

    ros2 run zeroflow_ros flow_node --ros-args -r '~/input/pointcloud:=/points' -r '~/input/odometry:=/odom'
    python3 -m zeroflow_ros.node --ros-args --params-file config/node.yaml -p ego_motion:=registration

Parameters: config/node.yaml. Topics: see README.md.
"""

import array
import math
import signal
import sys
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import PointCloud2, PointField

from zeroflow_ros.cloud_input import CloudInput
from zeroflow_ros.ego_motion import open_ego_motion
from zeroflow_ros.engine import DEFAULT_MODEL, load_engine
from zeroflow_ros.errors import ConfigError, ModelError, ZeroFlowError
from zeroflow_ros.flow_worker import FlowWorker
from zeroflow_ros.health import Health, Level
from zeroflow_ros.heap import keep_freed_memory
from zeroflow_ros.messages import diagnostic_array
from zeroflow_ros.model_card import REMEDY
from zeroflow_ros.outputs import FLOW, MARKERS, Publishers
from zeroflow_ros.parameters import changed, read_parameters
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.sweep import SweepPair

_WATCH_S = 0.5
_NO_CLOCK_S = 5.0


class FlowNode(Node):
    """setup() opens the model and the topics, run() takes clouds, teardown() stops; see the module.

    Raises: ConfigError for a parameter that is unknown or does not make sense.
    """

    def __init__(self, **node_arguments):
        super().__init__('flow_node', automatically_declare_parameters_from_overrides=True, **node_arguments)
        qos = [
            f'qos_overrides.{self.resolve_topic_name(topic)}.publisher.{policy}'
            for topic in (FLOW, MARKERS)
            for policy in ('history', 'depth', 'reliability')
        ]
        self.parameters = read_parameters(self, others=qos)
        # One line each: rclpy forbids a call site to change its severity.
        logs = {
            'debug': lambda text: self.get_logger().debug(text),
            'info': lambda text: self.get_logger().info(text),
            'warning': lambda text: self.get_logger().warning(text),
            'error': lambda text: self.get_logger().error(text),
        }
        self.health = Health(lambda severity, text: logs[severity](text))
        self._input = self._worker = self._ego_motion = None

    def setup(self) -> None:
        """Open the model, the source of ego motion, and the outputs.

        Raises: ModelError or ConfigError.
        """
        p = self.parameters
        engine = load_engine(p.model_path, name=p.engine, num_threads=p.num_threads)
        pipeline = FlowPipeline(
            engine, output_on=p.output_on, sensor_height=None if math.isnan(p.sensor_height) else p.sensor_height,
            ego_motion_removed=p.ego_motion != 'none',
        )  # fmt: skip
        _try_out(pipeline)
        card = engine.card
        self.nominal_dt = card.nominal_dt
        self._model_facts = {
            'path': p.model_path or DEFAULT_MODEL, 'name': card.name, 'student': card.student, 'engine': p.engine,
            'precision': card.precision, 'checksum': card.checksum, 'dt_range_s': card.dt_range,
            'licence': card.licence, 'training': card.training,
        }  # fmt: skip
        self._ego_motion = open_ego_motion(self, p, self.health)
        self._worker = FlowWorker(
            pipeline, self._ego_motion, self.health, Publishers(self), parameters=lambda: self.parameters,
            now_ns=lambda: self.get_clock().now().nanoseconds,
        )  # fmt: skip
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def run(self) -> None:
        """Start to take clouds."""
        p = self.parameters
        self._worker.start()
        self.health.listening()
        self._input = CloudInput(self, p.input_reliability, self._worker.put, self.health)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a paused bag stops ROS time, and must not stop these
        self._started = time.monotonic()
        self._timers_made = [
            self.create_timer(1.0, self._report, clock=steady),
            self.create_timer(_WATCH_S, self._input.probe, clock=steady),
        ]
        backward = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        self._jump = self.get_clock().create_jump_callback(
            backward, post_callback=lambda _: self._worker.clock_jumped_back()
        )
        name = self._model_facts['name']
        self.get_logger().info(
            f'{name} ({p.engine}, {p.num_threads} threads) gives the {p.output_on} sweep of {self._input.topic} '
            f'velocities on {self.resolve_topic_name(FLOW)}; {self._ego_motion.describe()}'
        )

    def teardown(self) -> None:
        """Stop taking clouds, finish the one at hand, and give everything back."""
        for part in (self._worker, self._input, self._ego_motion):
            if part is not None:
                part.stop() if part is self._worker else part.close()

    def _on_set_parameters(self, changes) -> SetParametersResult:
        try:
            self.parameters = changed(self.parameters, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        try:
            self._publish_diagnostics()
        except Exception as error:  # a report that fails must not end the node
            if self.context.ok():
                text = f'The diagnostics failed: {type(error).__name__}: {error}'
                self.health.trouble('diagnostics', 'model', Level.ERROR, text, log='error')

    def _publish_diagnostics(self) -> None:
        self.health.watch_silence(self.parameters.input_timeout_s, self._input.describe)
        use_sim_time = self.get_parameter('use_sim_time').value
        has_no_time = use_sim_time and self.get_clock().now().nanoseconds == 0
        if has_no_time and time.monotonic() - self._started > _NO_CLOCK_S:
            text = 'use_sim_time is set, but nothing comes on /clock. Play the bag with --clock, or unset it.'
            self.health.say_once('no clock', text)
            self.health.trouble('no clock', 'input', Level.WARN, text, log='debug')
        facts = {
            'input': {'topic': self._input.topic, 'reliability': self._input.reliability, **self._worker.facts},
            'ego_motion': {'source': self.parameters.ego_motion},
            'model': self._model_facts,
        }
        name = self.get_fully_qualified_name().lstrip('/')
        statuses = [(f'{name}: {s.part}', s.level, s.message, s.values) for s in self.health.statuses(facts)]
        self._diagnostics.publish(diagnostic_array(self.get_clock().now().to_msg(), statuses))


def _try_out(pipeline: FlowPipeline) -> None:
    """Take a small cloud all the way: what compiles or allocates at first use must not make the first sweeps late.

    Raises: ModelError when the model does not run.
    """
    side = np.linspace(-20, 20, 40, dtype=np.float32)
    rows = np.stack(np.meshgrid(side, side, [np.float32(1)], [np.float32(0)]), axis=-1).reshape(-1, 4)
    fields = [
        PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1)
        for k, name in enumerate(('x', 'y', 'z', 'intensity'))
    ]
    msg = PointCloud2(height=1, width=len(rows), fields=fields, point_step=16, row_step=rows.nbytes)
    msg.data = array.array('B', rows.tobytes())
    points, card = decode_cloud(msg).points, pipeline.engine.card
    try:
        estimate = pipeline.estimate(SweepPair(points, points, np.eye(4), card.nominal_dt))
    except Exception as error:  # engines raise a dozen unrelated types
        raise ModelError(f'The model {card.name} opens but does not run: {error}. {REMEDY}') from error
    flow_cloud(msg, estimate.velocity, estimate.flow_valid)
    pipeline.reset()


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; return the exit code."""
    argv = sys.argv if args is None else [sys.argv[0], *args]
    if {'-h', '--help'} & set(argv):
        print(__doc__)
        return 0
    node, started = None, False
    keep_freed_memory()
    try:
        rclpy.init(args=argv)
        started = True
        if rest := remove_ros_args(argv)[1:]:
            raise ConfigError(f'Unknown arguments {rest}. ROS arguments come after --ros-args; see --help.')
        node = FlowNode()
        node.setup()
        node.run()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except ZeroFlowError as error:
        rclpy.logging.get_logger('flow_node').fatal(str(error))
        return 1
    except Exception as error:
        if started and not rclpy.ok():  # told to stop while starting
            return 0
        if node is not None:
            raise
        # rcl has several types of error for a YAML file or an argument that it cannot read.
        text = f'ROS refuses an argument or a parameter file: {error}. In YAML leave out what has no value ([], ~).'
        rclpy.logging.get_logger('flow_node').fatal(text)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn the end into a traceback
        if node is not None:
            node.teardown()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
