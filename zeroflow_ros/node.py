# SPDX-License-Identifier: Apache-2.0
"""The scene-flow node: PointCloud2 in, the same cloud with a velocity for every point out.

    ros2 run zeroflow_ros flow_node --ros-args -r '~/input/pointcloud:=/points' -r '~/input/odometry:=/odom'
    python3 -m zeroflow_ros.node --ros-args --params-file config/node.yaml -p ego_motion:=registration

It is a managed (lifecycle) node that configures and activates itself, unless the parameter autostart is false.
Parameters: config/node.yaml. Topics: see README.md.
"""

import array
import gc
import math
import sys
import time
import traceback
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import PointCloud2, PointField

from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.model_card import REMEDY
from zeroflow_ros.engines.selection import FallbackEngine, load_engine, resolve_model_path
from zeroflow_ros.errors import ModelError, ZeroFlowError
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.ros.cloud_input import CloudInput
from zeroflow_ros.ros.ego_motion_sources import open_ego_motion
from zeroflow_ros.ros.messages import diagnostic_array
from zeroflow_ros.ros.parameters import follow_changes, read_parameters
from zeroflow_ros.ros.publishers import DYNAMIC_POINTS, FLOW, MARKERS, FlowPublishers
from zeroflow_ros.ros.ros_program import log_of, run_node
from zeroflow_ros.runtime.flow_worker import FlowWorker
from zeroflow_ros.runtime.health import Health, Level

_REPORT_S, _WATCH_S = 1.0, 0.5
_NO_CLOCK_S = 5.0
_MOST_FAILURES = 2  # sweeps in a row that an engine fails on before the node gives up on it


class FlowNode(LifecycleNode):
    """A managed node: configure opens the model and the topics, activate publishes; see the module.

    Inactive it goes on to take clouds, so that the first one after it is activated makes a pair with the one before.
    Cleanup gives everything back. What cannot be configured is said, and leaves the node unconfigured.

    Raises: ConfigError for a parameter that is unknown or does not make sense.
    """

    def __init__(self, **node_arguments):
        super().__init__('flow_node', automatically_declare_parameters_from_overrides=True, **node_arguments)
        qos = [
            f'qos_overrides.{self.resolve_topic_name(topic)}.publisher.{policy}'
            for topic in (FLOW, DYNAMIC_POINTS, MARKERS)
            for policy in ('history', 'depth', 'reliability')
        ]
        self.parameters = read_parameters(self, others=qos)
        follow_changes(self)
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        self._undo: list[Callable[[], object]] = []  # what gives back what was taken, the last first

    def _on_change_state(self, request, response):
        """Refuse a transition that this state does not have: rclpy raises there, which would end the node."""
        try:
            return self._change_state(request, response)
        except Exception as error:
            self.get_logger().warning(f'No such transition from here: {error}')
            response.success = False
            return response

    def autostart(self) -> bool:
        """Configure and activate, as a lifecycle manager would; return whether the node is active now."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def on_configure(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._set_up)

    def on_activate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._activate)

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self._deactivate)

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.tear_down)  # and the node is unconfigured, so that it can be tried again

    def _transition(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Do what a transition does; what goes wrong is said here, rclpy would swallow it."""
        try:
            step()
        except ZeroFlowError as error:
            self.get_logger().fatal(str(error))
            self.tear_down()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            if self.context.ok():  # else it was stopped meanwhile
                self.get_logger().fatal(f'{type(error).__name__}: {error}\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _set_up(self) -> None:
        """Open the model, the source of ego motion, and the topics.

        Raises: ModelError or ConfigError.
        """
        p = self.parameters
        self.health = Health(log_of(self))
        engine = self._engine = self._open_engine()
        pipeline = FlowPipeline(
            engine, output_on=p.output_on, sensor_height=None if math.isnan(p.sensor_height) else p.sensor_height,
            ego_motion_removed=p.ego_motion != 'none', refinements=p.refinements,
        )  # fmt: skip
        _try_out(pipeline)
        card = engine.card
        self.nominal_dt = card.nominal_dt
        self._model_facts = {
            'path': resolve_model_path(p.model_path, engine=p.engine), 'name': card.name, 'student': card.student,
            'precision': card.precision, 'checksum': card.checksum, 'dt_range_s': card.dt_range,
            'licence': card.licence, 'training': card.training,
        }  # fmt: skip
        self._ego_motion = open_ego_motion(self, p, self.health)
        self._undo.append(self._ego_motion.close)
        publishers = FlowPublishers(self)
        self._undo.append(publishers.close)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._undo.append(lambda: self.destroy_publisher(self._diagnostics))
        self._worker = FlowWorker(
            pipeline, self._ego_motion, self.health, publishers, parameters=lambda: self.parameters,
            now_ns=lambda: self.get_clock().now().nanoseconds,
        )  # fmt: skip
        self._engine_failed = False
        self._worker.start()
        self._undo.append(self._worker.stop)
        self._listen()

    def _open_engine(self) -> Engine:
        """Open the model in what shall run it; an engine for a GPU is built first where there is none.

        Raises: ModelError.
        """
        p, say = self.parameters, self.get_logger().warning

        def on_gpu() -> Engine:
            return load_engine(
                p.model_path, name='tensorrt', cache=p.engine_cache, max_points=p.max_points, progress=say
            )

        def on_cpu() -> Engine:
            # Without a model of the user's it is the one that is fast on a CPU.
            return load_engine(p.model_path, num_threads=p.num_threads)

        if p.engine == 'onnxruntime':
            return on_cpu()
        return FallbackEngine(on_gpu, on_cpu, say) if p.cpu_fallback else on_gpu()

    def build_engine(self) -> None:
        """Build the engine for this GPU if there is none, and nothing else.

        Raises: ModelError.
        """
        self.get_logger().info(f'Ready: {self._open_engine().runs_on}.')

    def _listen(self) -> None:
        """Take clouds, watch the topics and the clock, and report."""
        self.health.listening()
        self._input = CloudInput(self, self.parameters.input_reliability, self._worker.put, self.health)
        self._undo.append(self._input.close)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a paused bag stops ROS time, and must not stop these
        self._started = time.monotonic()
        for seconds, callback in ((_REPORT_S, self._report), (_WATCH_S, self._input.probe)):
            timer = self.create_timer(seconds, callback, clock=steady)
            self._undo.append(lambda timer=timer: self.destroy_timer(timer))
        backward = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        jump = self.get_clock().create_jump_callback(backward, post_callback=lambda _: self._worker.clock_jumped_back())
        self._undo.append(jump.unregister)

    def _activate(self) -> None:
        self._engine_failed = False
        self._worker.set_active(True)
        name, p = self._model_facts['name'], self.parameters
        self.get_logger().info(
            f'{name} ({self._engine.runs_on}) gives the {p.output_on} sweep of {self._input.topic} velocities on '
            f' {self.resolve_topic_name(FLOW)}; {self._ego_motion.describe()}'
        )

    def _deactivate(self) -> None:
        self._worker.set_active(False)
        self.get_logger().info('Inactive: no flow until the node is activated again.')

    def tear_down(self) -> None:
        """Stop taking clouds, finish the one at hand, and give everything back."""
        while self._undo:
            self._undo.pop()()
        self._input = self._worker = self._ego_motion = self._diagnostics = self._engine = None
        gc.collect()  # callbacks and what they belong to hold each other, and the engine

    def close(self) -> None:
        """Give everything back, the node too."""
        self.tear_down()
        self.destroy_node()

    def _report(self) -> None:
        try:
            self._give_up_on_a_broken_engine()
            self._publish_diagnostics()
        except Exception as error:  # a report that fails must not end the node
            if self.context.ok():
                text = f'The diagnostics failed: {type(error).__name__}: {error}'
                self.health.report_issue('diagnostics', 'model', Level.ERROR, text, log='error')

    def _give_up_on_a_broken_engine(self) -> None:
        if self._worker.active and self._worker.num_failures >= _MOST_FAILURES:
            self._engine_failed = True
            self.trigger_deactivate()
        if self._engine_failed:
            text = (
                f'{self._engine.runs_on} failed on {_MOST_FAILURES} sweeps in a row, so the node made itself inactive. '
                'Activate it again when the GPU is well, or set cpu_fallback.'
            )
            self.health.report_issue('engine', 'model', Level.ERROR, text, log='error')

    def _publish_diagnostics(self) -> None:
        self.health.check_input_timeout(self.parameters.input_timeout_s, self._input.describe)
        use_sim_time = self.get_parameter('use_sim_time').value
        has_no_time = use_sim_time and self.get_clock().now().nanoseconds == 0
        if has_no_time and time.monotonic() - self._started > _NO_CLOCK_S:
            text = 'use_sim_time is set, but nothing comes on /clock. Play the bag with --clock, or unset it.'
            self.health.log_once('no clock', text)
            self.health.report_issue('no clock', 'input', Level.WARN, text, log='debug')
        if getattr(self._engine, 'fell_back', False):
            text = f'The GPU failed; the model runs on the CPU ({self._engine.runs_on}).'
            self.health.report_issue('cpu fallback', 'model', Level.WARN, text)
        facts = {
            'input': {
                'topic': self._input.topic,
                'reliability': self._input.reliability,
                **self._worker.input_checks.facts,
            },
            'inference': {'active': self._worker.active},
            'ego_motion': {'source': self.parameters.ego_motion},
            'model': {**self._model_facts, 'engine': self._engine.runs_on},
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
    """Run the node until it is stopped; return the exit code."""
    argv = sys.argv if args is None else [sys.argv[0], *args]
    if {'-h', '--help'} & set(argv):
        print(__doc__)
        return 0
    return run_node('flow_node', argv, FlowNode, start=_start)


def _start(node: FlowNode) -> bool:
    if node.parameters.build_only:
        node.build_engine()
        rclpy.shutdown()
        return False
    return not node.parameters.autostart or node.autostart()


if __name__ == '__main__':
    sys.exit(main())
