# SPDX-License-Identifier: Apache-2.0
"""The camera node: images of a stereo camera or of one camera in, a point with a velocity for every pixel out.

    ros2 run zeroflow_ros camera_flow_node --ros-args -r '~/input/left/image:=/stereo/left/image_rect' \
        -r '~/input/left/camera_info:=/stereo/left/camera_info' -r '~/input/right/image:=/stereo/right/image_rect' \
        -r '~/input/right/camera_info:=/stereo/right/camera_info'
    python3 -m zeroflow_ros.camera_node --ros-args --params-file config/camera_node.yaml -p ego_motion:=odometry

One camera, with a model file:

    ros2 run zeroflow_ros camera_flow_node --ros-args -p sensor:=mono -p model_path:=mono.onnx \
        -r '~/input/image:=/camera/image_rect' -r '~/input/camera_info:=/camera/camera_info'

It is a managed (lifecycle) node that configures and activates itself, unless the parameter autostart is false.
Parameters: config/camera_node.yaml, and all with --parameters. Topics: see docs/stereo.md and
docs/mono.md.
"""

import contextlib
import dataclasses
import itertools
import sys

import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import PointCloud2

from zeroflow_ros.camera.mono import BASELINE, MonoFrame, NoFlowError
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.output_frame import OutputFrame
from zeroflow_ros.camera.pixel_cloud import pixel_cloud
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.camera.stereo_reader import CalibrationError
from zeroflow_ros.camera_pipeline import CameraPipeline
from zeroflow_ros.engines.mono_card import is_mono_model
from zeroflow_ros.engines.mono_network import open_mono_estimator
from zeroflow_ros.engines.stereo_network import open_stereo_estimator
from zeroflow_ros.errors import ConfigError, EgoMotionError, ModelError
from zeroflow_ros.ros.camera_input import CameraInput
from zeroflow_ros.ros.camera_parameters import CameraParameters
from zeroflow_ros.ros.camera_publishers import TOPICS, CameraPublishers
from zeroflow_ros.ros.ego_motion_sources import open_ego_motion
from zeroflow_ros.ros.managed_node import ManagedNode
from zeroflow_ros.ros.messages import flow_message
from zeroflow_ros.ros.parameters import parameter_table
from zeroflow_ros.ros.publishers import FLOW
from zeroflow_ros.ros.ros_program import node_log, run_node
from zeroflow_ros.ros.sensor_mount import MountTransforms, SensorMount
from zeroflow_ros.runtime.camera_sensor import MONO, STEREO
from zeroflow_ros.runtime.camera_worker import CameraWorker
from zeroflow_ros.runtime.health import Health


class CameraNode(ManagedNode):
    """A managed node: configure opens the estimator and the topics, activate starts publishing; see the module.

    While inactive it keeps the latest frame, so the first frame after activation has flow. Cleanup releases all
    resources.

    Raises: ConfigError for an unknown parameter or an invalid value.
    """

    def __init__(self, **node_arguments):
        super().__init__('camera_flow_node', CameraParameters, TOPICS, **node_arguments)

    def _set_up(self) -> None:
        """Open the estimator, the source of ego motion, and the topics.

        Raises: ConfigError.
        """
        p = self.parameters
        self._sensor = MONO if p.sensor == 'mono' else STEREO
        self.health = Health(node_log(self), kind=self._sensor.kind)
        cv2 = load_opencv()
        cv2.setNumThreads(p.num_threads)
        self._estimator, output_on = self._open_estimator()
        source = p.ego_motion if p.ego_motion in ('visual', 'none') else 'given'
        pipeline = CameraPipeline(self._estimator, output_on=output_on, ego_motion=source, step=p.cloud_step)
        _warm_up(pipeline, self._sensor.name)
        self._facts = {
            'estimator': self._estimator.name, 'opencv': cv2.__version__, 'threads': p.num_threads,
            'output_on': output_on,
        }  # fmt: skip
        self._ego_motion = open_ego_motion(self, p, self.health, is_camera=True)
        self._undo.append(self._ego_motion.close)
        self._mount = SensorMount(self, p.output_frame, p.output_pose())
        self._undo.append(self._mount.close)
        transforms = self._static_transforms()
        publishers = CameraPublishers(self, has_disparity=self._sensor is STEREO)
        self._undo.append(publishers.close)
        self._open_diagnostics()
        self._worker = CameraWorker(
            pipeline, self._ego_motion, self.health, publishers, parameters=lambda: self.parameters,
            now_ns=lambda: self.get_clock().now().nanoseconds, output=self._output,
            left_T_right=lambda left, right: None if transforms is None else transforms.lookup(left, right),
        )  # fmt: skip
        self._worker.start()
        self._undo.append(self._worker.stop)
        self.health.start_input_timeout()
        self._input = CameraInput(
            self, self._sensor, transport=p.image_transport, reliability=p.input_reliability, on_image=self._worker.put,
            on_info=self._worker.put_info, health=self.health,
        )  # fmt: skip
        self._undo.append(self._input.close)
        self._watch_input(self._input.match_qos, self._worker.clock_jumped_back)

    def _open_estimator(self) -> tuple:
        """Return the estimator, and the frame that gets its flow. Raises: ModelError for a model that does not fit."""
        p = self.parameters
        if self._sensor is STEREO:
            if p.model_path and is_mono_model(p.model_path):
                raise ModelError(f'{p.model_path} is a model for one camera. Set sensor to mono.')
            estimator = open_stereo_estimator(p.model_path, num_threads=p.num_threads, max_disparity=p.max_disparity)
            return estimator, p.output_on
        estimator = open_mono_estimator(
            p.model_path, num_threads=p.num_threads, scale=p.scale, camera_height=p.camera_height
        )
        return estimator, estimator.output_on

    def _static_transforms(self) -> MountTransforms | None:
        """Return /tf_static, for cameras whose baseline is there; None without tf2_msgs."""
        try:
            transforms = MountTransforms(self)
        except ConfigError:
            return None
        transforms.ignore_tf()
        self._undo.append(transforms.close)
        return transforms

    def _output(self, frame_id: str) -> OutputFrame:
        """Return the frame of the output for images in an optical frame.

        Raises: CalibrationError where the mount of the camera on output_frame is not known.
        """
        name = self.parameters.output_frame.lstrip('/')
        if not name:
            return OutputFrame()
        output_T_camera = self._mount.lookup(frame_id)
        if output_T_camera is None:
            raise CalibrationError(
                f"Nothing says how the camera '{frame_id}' is mounted on output_frame '{name}'. Publish this on "
                '/tf_static, or set output_T_camera.'
            )
        return OutputFrame(name, output_T_camera)

    def _activate(self) -> None:
        self._worker.set_active(True)
        p, facts = self.parameters, self._facts
        scale = '' if self._sensor is STEREO else f'; scale from {p.scale}'
        self.get_logger().info(
            f'{facts["estimator"]} (OpenCV {facts["opencv"]} on {p.num_threads} CPU threads) computes velocities for '
            f'the {facts["output_on"]} frame of {" and ".join(self._input.topics)} and publishes them on '
            f'{self.resolve_topic_name(FLOW)}; {self._ego_motion.describe()}{scale}'
        )

    def _deactivate(self) -> None:
        self._worker.set_active(False)
        self.get_logger().info('Inactive: no flow until the node is activated again.')

    def _forget(self) -> None:
        self._input = self._worker = self._ego_motion = self._diagnostics = self._mount = self._estimator = None

    def _publish_diagnostics(self) -> None:
        self.health.check_input_timeout(self.parameters.input_timeout_s, self._input.describe)
        self._report_settings()
        topics = dict(zip(self._sensor.sides, self._input.topics, strict=True))
        state = {} if self._sensor is STEREO else self._estimator.facts()
        self._publish_health({
            'input': {**topics, 'reliability': self._input.reliability, **self._worker.checks.facts},
            'inference': {'active': self._worker.active, **state},
            'ego_motion': {'source': self.parameters.ego_motion},
            'model': self._facts,
        })  # fmt: skip


def _warm_up(pipeline: CameraPipeline, sensor: str = 'stereo') -> None:
    """Process frames before the first ones arrive: large ones, then small ones.

    At first use, kernels are compiled and memory is taken from the system. Done here, neither delays the first frames.

    Raises: ConfigError or ModelError when the estimator does not run.
    """
    frames = [_walls_and_a_mover(4 * number) for number in range(4)]
    motion = np.eye(4) if pipeline.ego_motion == 'given' else None
    if sensor == 'stereo':
        large = [_walls_and_a_mover(4 * number, scale=4) for number in (0, 2)]
        pairs = [large, (frames[0], frames[2])]
    else:
        one = [_of_one_camera(frame, number) for number, frame in enumerate(frames)]
        pairs = itertools.pairwise(one)
    for pair in pairs:
        with contextlib.suppress(EgoMotionError, NoFlowError):
            estimate = pipeline.estimate(*pair, 0.1, motion)
            maps = estimate.points, estimate.image(pair[1].left), estimate.velocity, estimate.speed_sigma
            cloud = pixel_cloud(*maps, estimate.flow_valid)
            serialize_message(flow_message(PointCloud2(), cloud))
    if sensor == 'mono':
        pipeline.estimator.forget()


def _of_one_camera(frame: StereoFrame, number: int) -> MonoFrame:
    return MonoFrame(frame.left, dataclasses.replace(frame.camera, baseline=BASELINE), 1 + number * 100_000_000)


def _walls_and_a_mover(shift: int, *, scale: int = 1) -> StereoFrame:
    """Return a frame of three walls at different depths, and a square that has moved by some pixels.

    scale: 1 for 320 x 192 pixels; 4 for 1280 x 768.
    """
    camera = StereoCamera(320, 192, 240.0, 240.0, 159.5, 95.5, 0.3)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (4, camera.height // 4, camera.width // 4 + 16))
    walls, square = np.kron(coarse[:3], np.ones((4, 4))).astype(np.uint8), np.kron(coarse[3, :16, :16], np.ones((4, 4)))
    images = [np.empty((camera.height, camera.width), np.uint8) for _ in range(2)]
    for number, image in enumerate(images):
        for wall, disparity in enumerate((8, 12, 16)):
            rows = slice(64 * wall, 64 * (wall + 1))
            start = number * disparity  # the right image shows what is further right
            image[rows] = walls[wall, rows, start : start + camera.width]
        left = 120 + shift - number * 24
        image[64:128, left : left + 64] = square
    if scale > 1:
        camera = camera.scaled(scale * camera.width, scale * camera.height)
        images = [np.kron(image, np.ones((scale, scale), np.uint8)) for image in images]
    return StereoFrame(*images, camera, 1 + shift)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is stopped; return the exit code."""
    argv = sys.argv if args is None else [sys.argv[0], *args]
    if {'-h', '--help'} & set(argv):
        print(__doc__)
        return 0
    if '--parameters' in argv:
        print(parameter_table(CameraParameters))
        return 0
    return run_node('camera_flow_node', argv, CameraNode, start=lambda n: not n.parameters.autostart or n.autostart())


if __name__ == '__main__':
    sys.exit(main())
