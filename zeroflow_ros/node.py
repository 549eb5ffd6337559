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
from zeroflow_ros.errors import GpuLostError, ModelError, ZeroFlowError
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.ros.cloud_input import CloudInput
from zeroflow_ros.ros.ego_motion_sources import open_ego_motion
from zeroflow_ros.ros.messages import diagnostic_array
from zeroflow_ros.ros.parameters import apply_live_changes, read_parameters
from zeroflow_ros.ros.publishers import DYNAMIC_POINTS, FLOW, MARKERS, STATIC_POINTS, FlowPublishers
from zeroflow_ros.ros.ros_program import node_log, run_node
from zeroflow_ros.ros.sensor_mount import SensorMount
from zeroflow_ros.runtime.flow_worker import FlowWorker
from zeroflow_ros.runtime.health import Health, Level

_REPORT_S, _WATCH_S = 1.0, 0.5
_NO_CLOCK_S = 5.0
_MAX_FAILURES = 2  # failed sweeps in a row, after which the node makes itself inactive


class FlowNode(LifecycleNode):
    """A managed node: configure opens the model and the topics, activate starts publishing; see the module.

    While inactive it keeps the latest sweep, so the first sweep after activation has flow. Cleanup releases all
    resources. If configuring fails, the node logs the reason and stays unconfigured.

    Raises: ConfigError for an unknown parameter or an invalid value.
    """

    def __init__(self, **node_arguments):
        super().__init__('flow_node', automatically_declare_parameters_from_overrides=True, **node_arguments)
        qos = [
            f'qos_overrides.{self.resolve_topic_name(topic)}.publisher.{policy}'
            for topic in (FLOW, DYNAMIC_POINTS, STATIC_POINTS, MARKERS)
            for policy in ('history', 'depth', 'reliability')
        ]
        self.parameters = read_parameters(self, others=qos)
        apply_live_changes(self)
        self.unused_parameters: list[str] = []  # warnings about parameter files
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        self._undo: list[Callable[[], object]] = []  # calls that release the resources, in order of acquisition

    def _on_change_state(self, request, response):
        """Refuse a transition that the current state does not have: rclpy would raise, and the node would end."""
        try:
            return self._change_state(request, response)
        except Exception as error:
            self.get_logger().warning(f'The current state does not have this transition: {error}')
            response.success = False
            return response

    def autostart(self) -> bool:
        """Configure and activate, as a lifecycle manager would; return whether the node is active."""
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
        return self._transition(self.tear_down)  # then the node is unconfigured and can be configured again

    def _transition(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Run the step of a transition and return the result; log errors here, because rclpy drops them."""
        try:
            step()
        except ZeroFlowError as error:
            self.get_logger().fatal(str(error))
            self.tear_down()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            if self.context.ok():  # else the node was stopped meanwhile
                self.get_logger().fatal(f'{type(error).__name__}: {error}\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _set_up(self) -> None:
        """Open the model, the source of ego motion, and the topics.

        Raises: ModelError or ConfigError.
        """
        p = self.parameters
        self.health = Health(node_log(self))
        engine = self._engine = self._open_engine()
        pipeline = FlowPipeline(
            engine, output_on=p.output_on, sensor_height=None if math.isnan(p.sensor_height) else p.sensor_height,
            ego_motion_removed=p.ego_motion != 'none', refinements=p.refinements,
        )  # fmt: skip
        _warm_up(pipeline)
        card = engine.card
        self.nominal_dt = card.nominal_dt
        self._model_facts = {
            'path': resolve_model_path(p.model_path, engine=p.engine), 'name': card.name, 'student': card.student,
            'precision': card.precision, 'checksum': card.checksum, 'dt_range_s': card.dt_range,
            'licence': card.licence, 'training': card.training,
        }  # fmt: skip
        self._ego_motion = open_ego_motion(self, p, self.health)
        self._undo.append(self._ego_motion.close)
        mount = SensorMount(self, p.base_frame, p.mount())
        self._undo.append(mount.close)
        publishers = FlowPublishers(self)
        self._undo.append(publishers.close)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._undo.append(lambda: self.destroy_publisher(self._diagnostics))
        self._worker = FlowWorker(
            pipeline, self._ego_motion, self.health, publishers, parameters=lambda: self.parameters,
            now_ns=lambda: self.get_clock().now().nanoseconds, mount=mount.lookup,
        )  # fmt: skip
        self._engine_failed = False
        self._worker.start()
        self._undo.append(self._worker.stop)
        self._start_input()

    def _open_engine(self) -> Engine:
        """Return the engine that the parameters name; an engine for this GPU is built first if there is none.

        Raises: ModelError.
        """
        p, warn = self.parameters, self.get_logger().warning

        def on_gpu() -> Engine:
            return load_engine(
                p.model_path, name='tensorrt', cache=p.engine_cache, max_points=p.max_points, progress=warn
            )

        def on_cpu() -> Engine:
            # Without a model_path this is the bundled model for CPUs, not the one for GPUs.
            return load_engine(p.model_path, num_threads=p.num_threads)

        if p.engine == 'onnxruntime':
            return on_cpu()
        return FallbackEngine(on_gpu, on_cpu, warn) if p.cpu_fallback else on_gpu()

    def build_engine(self) -> None:
        """Build the engine for this GPU if there is none, for the parameter build_only.

        Raises: ModelError.
        """
        self.get_logger().info(f'Ready: {self._open_engine().runs_on}.')

    def _start_input(self) -> None:
        """Subscribe to clouds, watch the topic and the clock, and start the diagnostics."""
        self.health.start_input_timeout()
        self._input = CloudInput(self, self.parameters.input_reliability, self._worker.put, self.health)
        self._undo.append(self._input.close)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a paused bag stops ROS time, but not these timers
        self._started = time.monotonic()
        for seconds, callback in ((_REPORT_S, self._report), (_WATCH_S, self._input.match_qos)):
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
            f'{name} ({self._engine.runs_on}) computes velocities for the {p.output_on} sweep of {self._input.topic} '
            f'and publishes them on {self.resolve_topic_name(FLOW)}; {self._ego_motion.describe()}'
        )

    def _deactivate(self) -> None:
        self._worker.set_active(False)
        self.get_logger().info('Inactive: no flow until the node is activated again.')

    def tear_down(self) -> None:
        """Stop taking clouds, finish the current one, and release all resources."""
        while self._undo:
            self._undo.pop()()
        self._input = self._worker = self._ego_motion = self._diagnostics = self._engine = None
        gc.collect()  # callbacks and their owners refer to each other, and keep the engine alive

    def close(self) -> None:
        """Release all resources, and destroy the node."""
        self.tear_down()
        self.destroy_node()

    def _report(self) -> None:
        try:
            if self._worker.gpu_lost:
                raise GpuLostError(self._worker.gpu_lost)
            self._deactivate_if_engine_failed()
            self._publish_diagnostics()
        except GpuLostError:
            raise  # ends the process, so that systemd starts a new one
        except Exception as error:  # an error in the diagnostics must not end the node
            if self.context.ok():
                text = f'The diagnostics failed: {type(error).__name__}: {error}'
                self.health.report_issue('diagnostics', 'model', Level.ERROR, text, log='error')

    def _deactivate_if_engine_failed(self) -> None:
        if self._worker.active and self._worker.num_failures >= _MAX_FAILURES:
            self._engine_failed = True
            self.trigger_deactivate()
        if self._engine_failed:
            text = (
                f'{self._engine.runs_on} failed on {_MAX_FAILURES} sweeps in a row, so the node made itself inactive. '
                'Activate it again when the GPU works, or set cpu_fallback.'
            )
            self.health.report_issue('engine', 'model', Level.ERROR, text, log='error')

    def _publish_diagnostics(self) -> None:
        self.health.check_input_timeout(self.parameters.input_timeout_s, self._input.describe)
        for text in self.unused_parameters:
            self.health.report_issue(text, 'inference', Level.WARN, text, log='debug')
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


def _warm_up(pipeline: FlowPipeline) -> None:
    """Process a small cloud, so that compiling and allocating at first use do not delay the first sweeps.

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
    except Exception as error:  # engines raise many unrelated types
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
