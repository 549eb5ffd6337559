# SPDX-License-Identifier: Apache-2.0
"""Compute the point and the velocity of every pixel from two stereo frames. Node, replay and evaluation use it."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.pixel_velocity import pixel_velocity
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFrame
from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.pipeline import EGO_MOTION_REMOVED, OUTPUT_ON, VALID

EGO_MOTION = ('given', 'visual', 'none')


@dataclass(frozen=True)
class CameraFlowEstimate:
    """Point and velocity of every pixel of one frame of a pair, in the optical frame of its left camera.

    points: (H, W, 3) float32 [m], z forward; NaN where the depth is not known. velocity: (H, W, 3) float32 [m/s], ego
    motion removed; NaN where there is none. speed_sigma: (H, W) float32 [m/s], standard deviation of the speed.
    flow_valid: (H, W) uint8, 0 where velocity is NaN, else VALID | EGO_MOTION_REMOVED; as of the LiDAR pipeline.
    disparity: (H, W) float32 [px], NaN where it is not known. output_on: 'latest' or 'previous', the frame that the
    pixels belong to. dt: seconds between the frames.
    other_T_reference: (4, 4) ego motion from that frame to the other one; None with ego motion 'none'.
    stages_ms: milliseconds per stage.
    """

    points: np.ndarray
    velocity: np.ndarray
    speed_sigma: np.ndarray
    flow_valid: np.ndarray
    disparity: np.ndarray
    output_on: str
    dt: float
    other_T_reference: np.ndarray | None
    stages_ms: dict


class CameraPipeline:
    """Estimate depth and scene flow of a pair of stereo frames, remove the ego motion, divide by dt; no ROS.

    estimator: measures disparity and optical flow. output_on: the frame that gets the velocities.
    ego_motion: 'given': the caller passes it with each pair; 'visual': the estimator finds it in the images; 'none':
    velocities are relative to the camera, and flow_valid says so.
    """

    def __init__(self, estimator: StereoEstimator, *, output_on: str = 'latest', ego_motion: str = 'given'):
        if output_on not in OUTPUT_ON:
            raise ConfigError(f'output_on must be one of {OUTPUT_ON}, got {output_on!r}.')
        if ego_motion not in EGO_MOTION:
            raise ConfigError(f'ego_motion must be one of {EGO_MOTION}, got {ego_motion!r}.')
        self.estimator, self.output_on, self.ego_motion = estimator, output_on, ego_motion
        self._flags = VALID | (EGO_MOTION_REMOVED if ego_motion != 'none' else 0)

    def estimate(
        self, previous: StereoFrame, latest: StereoFrame, dt: float, previous_T_latest: np.ndarray | None = None, *,
        is_seen: np.ndarray | None = None,
    ) -> CameraFlowEstimate:  # fmt: skip
        """Return the velocity of every pixel of the latest (or previous) of two frames.

        dt: seconds between them, positive. previous_T_latest: (4, 4) ego motion of the optical frame, with ego motion
        'given'. is_seen: (H, W) bool, False where a raw camera saw nothing; None: it saw all.
        An estimator measures flow from its first frame to its second, in either direction of time; for the latest
        frame these are (latest, previous), and the result is negated.
        Raises: EgoMotionError when ego motion is missing, or the images do not show it.
        """
        if not dt > 0:
            raise ValueError(f'dt must be positive seconds, got {dt}')
        if (previous_T_latest is not None) != (self.ego_motion == 'given'):
            raise EgoMotionError(f'Ego motion {self.ego_motion!r}, but the caller passes {previous_T_latest}.')
        watch, given = Stopwatch(), None
        if self.output_on == 'latest':
            reference, other, sign, given = latest, previous, -1.0, previous_T_latest
        else:
            reference, other, sign = previous, latest, 1.0
            if previous_T_latest is not None:
                given = np.linalg.inv(previous_T_latest)
        with watch('estimate'):
            flow = self.estimator.estimate(reference, other, given)
        # An estimator may refine what it is given: GPS and IMU are good to centimetres, images to millimetres.
        other_T_reference = given if flow.other_T_reference is None else flow.other_T_reference
        if self.ego_motion == 'visual':
            if other_T_reference is None:
                raise EgoMotionError(
                    'The images do not show the motion of the camera: too few pixels, or too few that move as one. '
                    'Check exposure and focus, or set ego_motion to odometry or tf.'
                )
            check_plausible(other_T_reference, dt)
        with watch('velocity'):
            by = np.eye(4) if self.ego_motion == 'none' else other_T_reference
            points, velocity, speed_sigma = pixel_velocity(flow, reference.camera, sign * dt, other_T_reference=by)
            valid = flow.is_measured & np.isfinite(velocity).all(axis=-1) & np.isfinite(speed_sigma)
            valid &= True if is_seen is None else is_seen
            velocity[~valid] = np.nan
            speed_sigma[~valid] = np.nan
        return CameraFlowEstimate(
            points, velocity, speed_sigma, valid * np.uint8(self._flags), flow.disparity, self.output_on, dt,
            None if self.ego_motion == 'none' else other_T_reference, watch.stages_ms,
        )  # fmt: skip
