# SPDX-License-Identifier: Apache-2.0
"""The camera node's ROS parameters; those that it shares with the flow node are taken from there."""

from dataclasses import dataclass

from zeroflow_ros.camera.metric_scale import SCALES
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.ros.parameters import Parameters, check_pose, pose_matrix
from zeroflow_ros.runtime.camera_sensor import SENSORS
from zeroflow_ros.runtime.parameter_fields import check_fields, parameter, same_parameter

EGO_MOTION = ('odometry', 'tf', 'visual', 'none')
IMAGE_TRANSPORT = ('raw', 'compressed')


@dataclass(frozen=True)
class CameraParameters:
    """All parameters of the camera node and their defaults.

    Raises: ConfigError on a value of the wrong type, out of range, or in conflict with another one.
    """

    autostart: bool = same_parameter(Parameters, 'autostart')
    sensor: str = parameter(
        'stereo', 'stereo: a left and a right image; mono: one image, which needs model_path.', choices=SENSORS
    )  # fmt: skip
    image_transport: str = parameter(
        'raw', 'Type of the image topics: raw for sensor_msgs/Image, compressed for sensor_msgs/CompressedImage.',
        choices=IMAGE_TRANSPORT
    )  # fmt: skip
    images_are_rectified: bool = parameter(
        True, 'Whether the images are rectified already; false: rectify them by their CameraInfo.'
    )
    pairing_tolerance_s: float = parameter(
        0.005, 'Largest difference between the stamps of a left and a right image that make a pair [s].', low=0.0,
        high=0.5
    )  # fmt: skip
    model_path: str = parameter(
        '', 'Model file for the sensor (.onnx); empty: the classical estimator for stereo cameras.'
    )  # fmt: skip
    scale: str = parameter(
        'model', 'Of one camera: where metres come from. model: as it was trained; odometry: distances by ego_motion '
        'odometry or tf over those in the images; camera_height: the height above the ground.', choices=SCALES
    )  # fmt: skip
    camera_height: float = parameter(
        0.0, 'With scale camera_height: height of the camera above the ground [m].', low=0.0, high=100.0
    )  # fmt: skip
    max_disparity: int = parameter(
        128, 'Largest disparity that the classical estimator looks for [px]: depth is at least focal length [px] times '
        'baseline over it. Time grows with it; rounded up to a multiple of 32.', low=16, high=1024
    )  # fmt: skip
    num_threads: int = parameter(2, 'CPU threads of OpenCV and onnxruntime.', low=1, high=256)
    min_dt_s: float = parameter(
        0.06, 'Shortest time between the two frames of a pair [s]: frames of a faster camera are left out, because '
        'velocities over a short time are noisy.', low=0.005, high=1.0
    )  # fmt: skip
    max_dt_s: float = parameter(0.5, 'Longest time between the two frames of a pair [s].', low=0.01, high=2.0)
    output_on: str = parameter(
        'latest', 'Frame on which velocities are published; of one camera, the model says which.',
        choices=('latest', 'previous')
    )  # fmt: skip
    output_frame: str = parameter(
        '', 'Frame of the published clouds, markers and velocities, whose z is up, as base_link; empty: the optical '
        'frame of the left camera, whose z is forward. The object tracker needs z up.'
    )  # fmt: skip
    output_T_camera: tuple = parameter(
        (), 'Pose [x, y, z, qx, qy, qz, qw] of the left optical frame in output_frame [m]; not set: /tf_static has it.'
    )
    cloud_step: int = parameter(
        2, 'The clouds have every n-th pixel of every n-th row; 1 is 19 MB for 1242 x 375 pixels.', low=1, high=64
    )
    ego_motion: str = parameter(
        'visual', 'Source of the ego motion; visual: from the images themselves.', choices=EGO_MOTION
    )
    fixed_frame: str = same_parameter(Parameters, 'fixed_frame')
    odometry_T_camera: tuple = parameter(
        (), 'With ego_motion odometry: pose [x, y, z, qx, qy, qz, qw] of the left optical frame in the child frame of '
        'the odometry [m]; not set: tf has the transform.'
    )  # fmt: skip
    stamp_offset_s: float = parameter(
        0.0, 'Added to the stamp of an image to look up its ego motion [s].', low=-100.0, high=100.0, live=True
    )
    ego_motion_timeout_s: float = parameter(
        0.1, 'How long a frame waits for its odometry or tf [s].', low=0.0, high=5.0, live=True
    )
    input_reliability: str = parameter(
        'auto', 'QoS of the images; auto: reliable if every publisher offers it.',
        choices=('auto', 'reliable', 'best_effort')
    )  # fmt: skip
    input_timeout_s: float = same_parameter(Parameters, 'input_timeout_s')
    always_run: bool = parameter(False, 'Compute even without subscribers.', live=True)
    max_arrows: int = same_parameter(Parameters, 'max_arrows')
    min_speed: float = same_parameter(Parameters, 'min_speed')
    arrow_seconds: float = same_parameter(Parameters, 'arrow_seconds')
    arrow_cell: float = same_parameter(Parameters, 'arrow_cell')
    dynamic_min_speed: float = same_parameter(Parameters, 'dynamic_min_speed')
    dynamic_min_sigmas: float = parameter(
        3.0, 'A point moves if its speed is also at least this many standard deviations (speed_sigma): far points are '
        'uncertain.', low=0.0, high=100.0, live=True
    )  # fmt: skip
    cluster_dynamic_points: bool = same_parameter(Parameters, 'cluster_dynamic_points')
    max_processing_time_ms: float = same_parameter(Parameters, 'max_processing_time_ms')
    max_consecutive_delay_ms: float = same_parameter(Parameters, 'max_consecutive_delay_ms')

    def __post_init__(self):
        check_fields(self)
        for name in ('odometry_T_camera', 'output_T_camera'):
            check_pose(getattr(self, name), name)
        if self.ego_motion == 'tf' and not self.fixed_frame:
            raise ConfigError("With ego_motion 'tf', fixed_frame must name a frame such as 'odom'; it is empty.")
        if self.output_T_camera and not self.output_frame:
            raise ConfigError('output_T_camera is the pose in output_frame, which is empty. Set output_frame, too.')
        if self.sensor == 'mono' and not self.model_path:
            raise ConfigError(
                'With sensor mono, model_path must name a model for one camera, as there is no classical estimator for '
                'it. Write one with: python3 -m export.to_onnx CHECKPOINT --out MODEL.onnx'
            )
        if self.scale != 'model' and self.sensor != 'mono':
            raise ConfigError(f'scale {self.scale} is for sensor mono; a stereo camera measures metres.')
        if self.scale == 'odometry' and self.ego_motion not in ('odometry', 'tf'):
            raise ConfigError(
                f"scale odometry compares the images with ego_motion 'odometry' or 'tf', but ego_motion is "
                f'{self.ego_motion!r}. Set ego_motion, or another scale.'
            )
        if self.scale == 'camera_height' and not self.camera_height:
            raise ConfigError('With scale camera_height, set camera_height, in metres above the ground; it is 0.')
        if not self.min_dt_s < self.max_dt_s:
            raise ConfigError(f'min_dt_s must be below max_dt_s, got {self.min_dt_s} and {self.max_dt_s}.')

    def extrinsic(self):
        """Return odometry_T_camera as (4, 4); None when it is not set."""
        return pose_matrix(self.odometry_T_camera)

    def output_pose(self):
        """Return output_T_camera as (4, 4); None when it is not set."""
        return pose_matrix(self.output_T_camera)

    @property
    def dt_range(self) -> tuple[float, float]:
        """Shortest and longest time between the frames of a pair [s]."""
        return self.min_dt_s, self.max_dt_s
