# SPDX-License-Identifier: Apache-2.0
"""Compute the velocity of every point from a sweep pair. Node, replay, benchmark and evaluation use this pipeline."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.ground import is_ground
from zeroflow_ros.lidar.level import Level, SensorLevel
from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.object_motion import EarlierSweep, fit_object_motion
from zeroflow_ros.lidar.sweep import SweepPair

VALID = 1  # bit 0 of flow_valid: the row has a velocity
EGO_MOTION_REMOVED = 2  # bit 1: the velocity is relative to the world, not to the sensor
OUTPUT_ON = ('latest', 'previous')
_MIN_REFINED_FLOW = 0.05  # m; refining static points would only add noise
_FITTED_SWEEPS = 2  # that object motion is fitted to


@dataclass(frozen=True)
class FlowEstimate:
    """Velocity of every point of one sweep of a pair.

    velocity: (N, 3) float32 [m/s], ego motion removed, axes of that sweep's frame; NaN where there is none.
    flow_valid: (N,) uint8, 0 where velocity is NaN, else VALID | EGO_MOTION_REMOVED.
    output_on: 'latest' or 'previous', the sweep that the rows belong to.
    dt: seconds between the sweeps. level: roll, pitch and height by which the input of the model was levelled.
    network_T_points: (4, 4) float64, maps the points of that sweep into the frame of the network.
    stages_ms: milliseconds per stage. num_sweeps: sweeps that the model saw.
    """

    velocity: np.ndarray
    flow_valid: np.ndarray
    output_on: str
    dt: float
    level: Level
    network_T_points: np.ndarray
    stages_ms: dict
    num_sweeps: int = 2

    @property
    def sensor_height(self) -> float:
        """Height of the frame's origin above the ground [m] for this pair; NaN: not known, see `Level`."""
        return self.level.height


class FlowPipeline:
    """Transform the sweeps to one level frame, apply the ground policy, run the engine, compute velocities; no ROS.

    engine: runs the model. output_on: the sweep that gets the velocities.
    sensor_height: height of the points' frame above the ground [m]; None: estimated from the sweeps.
    mount: base_T_sensor, (4, 4) or its rotation, of a base frame whose z is up; None: roll and pitch are estimated from
        the sweeps alone. See `SensorLevel`.
    ego_motion_removed: False when the caller passes identity because it has no ego motion; written to flow_valid.
    refinements: extra inference passes. Each one warps the moving points by the flow so far and adds the residual that
        the network then predicts: a network is more accurate for a small remaining motion than for a large one.
    fit_objects: whether each cluster of moving points gets the rigid motion that fits the sweeps, see
        `fit_object_motion`; False: the flow of the network.
    """

    def __init__(self, engine: Engine, *, output_on: str = 'latest', sensor_height: float | None = None,
                 mount: np.ndarray | None = None, ego_motion_removed: bool = True, refinements: int = 0,
                 fit_objects: bool = True):  # fmt: skip
        if output_on not in OUTPUT_ON:
            raise ConfigError(f'output_on must be one of {OUTPUT_ON}, got {output_on!r}.')
        if output_on == 'latest' and engine.card.direction == 'forward':
            raise ConfigError(
                f'The model {engine.card.name} was trained forward in time only, so it cannot estimate flow for the '
                'latest sweep. Set output_on to previous.'
            )
        if refinements < 0:
            raise ConfigError(f'refinements must be 0 or more, got {refinements}.')
        self.engine = engine
        self.output_on = output_on
        self.refinements = refinements
        self.fit_objects = fit_objects
        self._flags = VALID | (EGO_MOTION_REMOVED if ego_motion_removed else 0)
        self._level = SensorLevel(mount, height=sensor_height)

    def set_mount(self, mount: np.ndarray | None) -> None:
        """Use another mount of the sensor; None: not known."""
        self._level.set_mount(mount)

    def reset(self) -> None:
        """Forget roll, pitch and height estimated from past sweeps."""
        self._level.reset()

    def estimate(self, pair: SweepPair) -> FlowEstimate:
        """Return the velocity of every row of the pair's latest (or previous) sweep.

        The network predicts flow from its first input to its second. For the latest sweep its inputs are therefore
        (latest, previous), and the result is negated.
        """
        card, watch = self.engine.card, Stopwatch()
        if self.output_on == 'latest':
            source, target, sign = pair.points1, pair.points0, -1.0
            source_T_target = transforms.invert(pair.ego0_T_ego1)
        else:
            source, target, sign = pair.points0, pair.points1, 1.0
            source_T_target = pair.ego0_T_ego1
        with watch('prepare'):
            level = self._level.update(source)
            network_T_sensor = level.level_T_sensor.copy()
            if card.z_origin != 'ground':
                network_T_sensor[2, 3] = 0.0
            network_T_source, network_T_target = network_T_sensor, network_T_sensor @ source_T_target
            if card.network_frame == 'target':
                network_T_source, network_T_target = (
                    network_T_sensor @ transforms.invert(source_T_target),
                    network_T_sensor,
                )
            source_T_ego0 = source_T_target if self.output_on == 'latest' else np.eye(4)
            beyond = pair.history if self.output_on == 'latest' else pair.future  # the target, seen from the source
            network_T_ego0 = network_T_target if self.output_on == 'latest' else network_T_source
            older = [(sweep.points, network_T_ego0 @ sweep.ego0_T_ego) for sweep in beyond[: card.num_sweeps - 2]]
            if card.ground == 'remove':
                source, target = (_without_ground(points, level) for points in (source, target))
                older = [(_without_ground(points, level), pose) for points, pose in older]

        source_R_network = np.eye(4)
        source_R_network[:3, :3] = network_T_source[:3, :3].T
        turned = not np.array_equal(source_R_network, np.eye(4))

        def infer(points: np.ndarray, older: list) -> np.ndarray:
            flow = self.engine.infer(
                points, target, watch, network_T_source=network_T_source, network_T_target=network_T_target, older=older
            )
            if turned:
                with watch('finish'), np.errstate(invalid='ignore'):  # infinity becomes NaN, as does its row
                    flow = transforms.apply(source_R_network, flow)
            return flow

        flow = infer(source, older)
        for _ in range(self.refinements):
            with watch('prepare'):
                moving = np.flatnonzero(np.einsum('ij,ij->i', flow, flow) > _MIN_REFINED_FLOW**2)
                if not len(moving):
                    break
                warped = source.copy()
                warped[moving] += flow[moving]
            residual = infer(warped, [])[moving]  # older sweeps show the motion that is taken out here
            with watch('finish'):
                flow[moving] += np.where(
                    np.isfinite(residual), residual, np.float32(0)
                )  # NaN: warped out of the grid of the model
        if self.fit_objects:
            with watch('objects'):
                earlier = [(target, source_T_target, 1.0)]
                for i, sweep in enumerate(beyond[: _FITTED_SWEEPS - 1]):
                    away = (i + 1) * pair.dt if sweep.away is None else sweep.away
                    earlier.append((sweep.points, source_T_ego0 @ sweep.ego0_T_ego, 1 + away / pair.dt))
                fit_object_motion(
                    source, flow, level.level_T_sensor,
                    [EarlierSweep(points, level.level_T_sensor @ pose, times) for points, pose, times in earlier],
                    pair.dt, knows_ground=bool(np.isfinite(level.height)),
                    ego_motion_removed=bool(self._flags & EGO_MOTION_REMOVED),
                )  # fmt: skip
        with watch('finish'):
            velocity, flow_valid = self._to_velocity(flow, sign / pair.dt)
        return FlowEstimate(
            velocity, flow_valid, self.output_on, pair.dt, level, network_T_source, watch.stages_ms, 2 + len(older)
        )

    def _to_velocity(self, flow: np.ndarray, per_second: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (velocity (N, 3) [m/s], flow_valid (N,)); a row with any non-finite number is all NaN."""
        if numba_kernels is not None:
            velocity, flow_valid = np.empty_like(flow), np.empty(len(flow), np.uint8)
            numba_kernels.to_velocity(flow, np.float32(per_second), np.uint8(self._flags), velocity, flow_valid)
            return velocity, flow_valid
        velocity = flow * np.float32(per_second)
        valid = np.isfinite(velocity).all(axis=1)
        velocity[~valid] = np.nan
        return velocity, valid * np.uint8(self._flags)


def _without_ground(points: np.ndarray, level: Level) -> np.ndarray:
    """Return the points with ground rows set to NaN; all of them where no ground was found."""
    if not np.isfinite(level.height):
        return points
    return np.where(is_ground(points, level.level_T_sensor)[:, None], np.float32(np.nan), points)
