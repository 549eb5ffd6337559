# SPDX-License-Identifier: Apache-2.0
"""The scene-flow node: PointCloud2 in, the same cloud with a velocity for every point out.

    ros2 run zeroflow_ros flow_node --ros-args -r '~/input/pointcloud:=/points' -r '~/input/odometry:=/odom'
    python3 -m zeroflow_ros.node --ros-args --params-file config/node.yaml -p ego_motion:=registration

It is a managed (lifecycle) node that configures and activates itself, unless the parameter autostart is false.
Parameters: config/node.yaml. Topics: see README.md.
"""

import array
import math
import sys

import numpy as np
import rclpy
from sensor_msgs.msg import PointCloud2, PointField

from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.model_card import REMEDY
from zeroflow_ros.engines.selection import FallbackEngine, load_engine, resolve_model_path
from zeroflow_ros.errors import GpuLostError, ModelError
from zeroflow_ros.lidar import object_motion
from zeroflow_ros.lidar.point_cloud import decode_cloud, flow_cloud
from zeroflow_ros.lidar.stray_returns import stray_share
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair
from zeroflow_ros.pipeline import FlowPipeline
from zeroflow_ros.ros.ego_motion_sources import open_ego_motion
from zeroflow_ros.ros.managed_node import ManagedNode
from zeroflow_ros.ros.parameters import Parameters
from zeroflow_ros.ros.publishers import DYNAMIC_POINTS, FLOW, MARKERS, STATIC_POINTS, FlowPublishers
from zeroflow_ros.ros.ros_program import node_log, run_node
from zeroflow_ros.ros.sensor_input import SensorInput
from zeroflow_ros.ros.sensor_mount import SensorMount
from zeroflow_ros.runtime.flow_worker import FlowWorker
from zeroflow_ros.runtime.health import Health, Level

CLOUD = '~/input/pointcloud'
_DEPTH = 16  # parts of a revolution come a few ms apart and all count; of whole sweeps the worker takes the newest
_MAX_FAILURES = 2  # failed sweeps in a row, after which the node makes itself inactive


class FlowNode(ManagedNode):
    """A managed node: configure opens the model and the topics, activate starts publishing; see the module.

    While inactive it keeps the latest sweep, so the first sweep after activation has flow. Cleanup releases all
    resources.

    Raises: ConfigError for an unknown parameter or an invalid value.
    """

    def __init__(self, **node_arguments):
        super().__init__('flow_node', Parameters, (FLOW, DYNAMIC_POINTS, STATIC_POINTS, MARKERS), **node_arguments)

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
            fit_objects=p.fit_objects,
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
        self._open_diagnostics()
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
        self._input = SensorInput(
            self, CLOUD, PointCloud2, self._worker.put, self.health, noun='cloud',
            reliability=self.parameters.input_reliability, depth=_DEPTH,
        )  # fmt: skip
        self._undo.append(self._input.close)
        self._watch_input(self._input.match_qos, self._worker.clock_jumped_back)

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

    def _forget(self) -> None:
        self._input = self._worker = self._ego_motion = self._diagnostics = self._engine = None

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
        if self._worker.gpu_lost:
            raise GpuLostError(self._worker.gpu_lost)
        self._deactivate_if_engine_failed()
        self.health.check_input_timeout(self.parameters.input_timeout_s, self._input.describe)
        self._report_settings()
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
        self._publish_health(facts)


def _warm_up(pipeline: FlowPipeline) -> None:
    """Process clouds as large as those of a sensor with 64 beams, at two times.

    At first use, kernels are compiled and memory is taken from the system. Done here, neither delays the first sweeps.

    Raises: ModelError when the model does not run.
    """
    clouds = [_street(seconds) for seconds in (0.0, 0.1)]
    sweeps, card = [decode_cloud(msg).points for msg in clouds], pipeline.engine.card
    past = (PosedSweep(sweeps[0], np.eye(4)),) * (card.num_sweeps - 2)
    try:
        estimate = pipeline.estimate(SweepPair(*sweeps, np.eye(4), card.nominal_dt, past))
    except Exception as error:  # engines raise many unrelated types
        raise ModelError(f'The model {card.name} opens but does not run: {error}. {REMEDY}') from error
    flow_cloud(clouds[-1], estimate.velocity, estimate.flow_valid)
    stray_share(sweeps[-1])
    object_motion.warm_up()
    pipeline.reset()


def _street(seconds: float) -> PointCloud2:
    """Return a cloud of level ground, two walls, and blocks that drive past at 10 m/s, with 64 x 1800 points."""
    azimuth = np.pi / 1800 * np.arange(-1799, 1800, 2)
    down = np.radians(np.linspace(-2, 25, 64))[:, None]
    to_ground = 1.7 / np.maximum(np.tan(down), 0.01)
    to_wall, to_row = 12 / np.abs(np.sin(azimuth)), 5 / np.abs(np.sin(azimuth))
    x = to_row * np.cos(azimuth)
    on_block = (np.abs(x) < 40) & ((x + 10 * seconds) % 40 < 4)
    distance = np.minimum(to_ground, np.where(on_block, to_row, to_wall))
    direction = np.stack(np.broadcast_arrays(np.cos(azimuth), np.sin(azimuth), -np.tan(down)), axis=-1)
    rows = np.zeros((64 * 1800, 4), np.float32)
    rows[:, :3] = (distance[..., None] * direction).reshape(-1, 3)
    fields = [
        PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1)
        for k, name in enumerate(('x', 'y', 'z', 'intensity'))
    ]
    msg = PointCloud2(height=1, width=len(rows), fields=fields, point_step=16, row_step=rows.nbytes)
    msg.data = array.array('B', rows.tobytes())
    return msg


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
