# SPDX-License-Identifier: Apache-2.0
"""Compute the point and the velocity of every pixel from two frames. Node, replay and evaluation use it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from zeroflow_ros.camera.pixel_cloud import every_nth_pixel
from zeroflow_ros.camera.pixel_velocity import pixel_velocity
from zeroflow_ros.camera.stereo import StereoEstimator, StereoFlow, StereoFrame
from zeroflow_ros.ego_motion.trajectory import check_plausible
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError, EgoMotionError, ZeroFlowError
from zeroflow_ros.pipeline import EGO_MOTION_REMOVED, OUTPUT_ON, VALID

EGO_MOTION = ('given', 'visual', 'none')


@dataclass(frozen=True)
class CameraFlowEstimate:
    """Point and velocity of every step-th pixel of every step-th row of a frame, in its left optical frame.

    points: (H', W', 3) float32 [m], z forward; NaN where the depth is not known. velocity: (H', W', 3) float32 [m/s],
    ego motion removed; NaN where there is none. speed_sigma: (H', W') float32 [m/s], standard deviation of the speed.
    flow_valid: (H', W') uint8, 0 where velocity is NaN, else VALID | EGO_MOTION_REMOVED; as of the LiDAR pipeline.
    full_disparity: returns `disparity`, (H, W) float32 [px] of all pixels, NaN where it is not known; computed when it
    is first needed. step: H' is H / step.
    output_on: 'latest' or 'previous', the frame that the pixels belong to. dt: seconds between the frames.
    other_T_reference: (4, 4) ego motion from that frame to the other one; None with ego motion 'none'.
    stages_ms: milliseconds per stage.
    """

    points: np.ndarray
    velocity: np.ndarray
    speed_sigma: np.ndarray
    flow_valid: np.ndarray
    full_disparity: Callable[[], np.ndarray]
    output_on: str
    dt: float
    other_T_reference: np.ndarray | None
    stages_ms: dict
    step: int = 1

    @cached_property
    def disparity(self) -> np.ndarray:
        """Disparity of all pixels, (H, W) float32 [px], NaN where it is not known."""
        return self.full_disparity()

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels (H', W', ...) of an image (H, W, ...) that points and velocities belong to; a view."""
        return every_nth_pixel(pixels, self.step)


class CameraPipeline:
    """Estimate depth and scene flow of a pair of stereo frames, remove the ego motion, divide by dt; no ROS.

    estimator: measures disparity and optical flow; one with an attribute output_on has flow of that frame only.
    output_on: the frame that gets the velocities.
    ego_motion: 'given': the caller passes it with each pair; 'visual': the estimator finds it in the images; 'none':
    velocities are relative to the camera, and flow_valid says so. step: velocities of every n-th pixel of every n-th
    row only, which costs less.
    """

    def __init__(self, estimator: StereoEstimator, *, output_on: str = 'latest', ego_motion: str = 'given',
                 step: int = 1):  # fmt: skip
        if output_on not in OUTPUT_ON:
            raise ConfigError(f'output_on must be one of {OUTPUT_ON}, got {output_on!r}.')
        if (only := getattr(estimator, 'output_on', output_on)) != output_on:
            raise ConfigError(
                f'The model {estimator.name} has the flow of the {only} frame of a pair, not of the {output_on} one. '
                f'Set output_on to {only}.'
            )
        if ego_motion not in EGO_MOTION:
            raise ConfigError(f'ego_motion must be one of {EGO_MOTION}, got {ego_motion!r}.')
        if step < 1:
            raise ConfigError(f'step must be 1 or more, got {step}.')
        self.estimator, self.output_on, self.ego_motion, self.step = estimator, output_on, ego_motion, step
        self._flags = VALID | (EGO_MOTION_REMOVED if ego_motion != 'none' else 0)

    def prepare(self, frame: StereoFrame) -> None:
        """Compute what only one frame is needed for, while its partner has not come; not all estimators can."""
        with contextlib.suppress(ZeroFlowError):  # `estimate` will say it
            getattr(self.estimator, 'prepare', lambda frame: None)(frame)

    def estimate(
        self, previous: StereoFrame, latest: StereoFrame, dt: float, previous_T_latest: np.ndarray | None = None, *,
        is_seen: np.ndarray | None = None,
    ) -> CameraFlowEstimate:  # fmt: skip
        """Return the velocity of every pixel of the latest (or previous) of two frames.

        dt: seconds between them, positive. previous_T_latest: (4, 4) ego motion of the optical frame, with ego motion
        'given'. is_seen: (H, W) bool, False where a raw camera saw nothing; None: it saw all.
        An estimator measures flow from its first frame to its second, in either direction of time; for the latest
        frame these are (latest, previous), and the result is negated.
        Raises: EgoMotionError when ego motion is missing, or the images do not show it; NoFlowError of an estimator
        that needs more frames.
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
            part = self._estimate(reference, other, given)
        # An estimator may refine what it is given: GPS and IMU are good to centimetres, images to millimetres.
        other_T_reference = given if part.other_T_reference is None else part.other_T_reference
        if self.ego_motion == 'visual':
            if other_T_reference is None:
                raise EgoMotionError(
                    'The images do not show the motion of the camera: too few pixels, or too few that move as one. '
                    'Check exposure and focus, or set ego_motion to odometry or tf.'
                )
            check_plausible(other_T_reference, dt)
        with watch('velocity'):
            by = np.eye(4) if self.ego_motion == 'none' else other_T_reference
            camera = reference.camera.every_nth(self.step)
            points, velocity, speed_sigma = pixel_velocity(part, camera, sign * dt, other_T_reference=by)
            valid = np.isfinite(speed_sigma)
            if is_seen is not None:
                valid &= every_nth_pixel(is_seen, self.step)
                velocity[~valid] = np.nan
                speed_sigma[~valid] = np.nan
        return CameraFlowEstimate(
            points, velocity, speed_sigma, valid * np.uint8(self._flags), part.full_disparity, self.output_on, dt,
            None if self.ego_motion == 'none' else other_T_reference, watch.stages_ms, self.step,
        )  # fmt: skip

    def _estimate(self, reference: StereoFrame, other: StereoFrame, given: np.ndarray | None) -> StereoFlow:
        """Return the flow of every step-th pixel, with `full_disparity`."""
        if self.step > 1 and hasattr(self.estimator, 'estimate_every_nth'):
            return self.estimator.estimate_every_nth(reference, other, given, step=self.step)
        flow = self.estimator.estimate(reference, other, given)
        return replace(_every_nth(flow, self.step), full_disparity=lambda: _measured_disparity(flow))


def _measured_disparity(flow: StereoFlow) -> np.ndarray:
    has_depth = flow.is_measured if flow.is_disparity_measured is None else flow.is_disparity_measured
    return np.where(has_depth, flow.disparity, np.float32(np.nan))


def _every_nth(flow: StereoFlow, step: int) -> StereoFlow:
    """Return the flow of every step-th pixel, in the pixels of `StereoCamera.every_nth`."""
    if step == 1:
        return flow
    lengths = ('disparity', 'other_disparity', 'flow', 'disparity_sigma', 'other_disparity_sigma', 'flow_sigma')
    fields = {name: every_nth_pixel(getattr(flow, name), step) / np.float32(step) for name in lengths}
    for name in ('is_measured', 'is_disparity_measured', 'motion_sigma'):
        values = getattr(flow, name)
        fields[name] = None if values is None else every_nth_pixel(values, step)
    return replace(flow, **fields)
