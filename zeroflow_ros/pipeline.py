# SPDX-License-Identifier: Apache-2.0
"""Compute the velocity of every point from a sweep pair. Node, replay, benchmark and evaluation use this pipeline."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.engines.engine import Engine
from zeroflow_ros.engines.stopwatch import Stopwatch
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.ground import SensorHeight, is_ground
from zeroflow_ros.lidar.numba_support import numba_kernels
from zeroflow_ros.lidar.sweep import SweepPair

VALID = 1  # bit 0 of flow_valid: the row has a velocity
EGO_MOTION_REMOVED = 2  # bit 1: the velocity is relative to the world, not to the sensor
OUTPUT_ON = ('latest', 'previous')
_MIN_REFINED_FLOW = 0.05  # m; refining static points would only add noise


@dataclass(frozen=True)
class FlowEstimate:
    """Velocity of every point of one sweep of a pair.

    velocity: (N, 3) float32 [m/s], ego motion removed, axes of that sweep's frame; NaN where there is none.
    flow_valid: (N,) uint8, 0 where velocity is NaN, else VALID | EGO_MOTION_REMOVED.
    output_on: 'latest' or 'previous', the sweep that the rows belong to.
    dt: seconds between the sweeps. sensor_height: height above ground [m] used for this pair.
    stages_ms: milliseconds per stage.
    """

    velocity: np.ndarray
    flow_valid: np.ndarray
    output_on: str
    dt: float
    sensor_height: float
    stages_ms: dict


class FlowPipeline:
    """Transform both sweeps to one frame, apply the ground policy, run the engine, convert flow to velocity; no ROS.

    engine: runs the model. output_on: the sweep that gets the velocities.
    sensor_height: height of the points' frame above the ground [m]; None: estimated from the sweeps.
    ego_motion_removed: False when the caller passes identity because it has no ego motion; written to flow_valid.
    refinements: extra inference passes. Each one warps the moving points by the flow so far and adds the residual that
        the network then predicts: a network is more accurate for a small remaining motion than for a large one.
    """

    def __init__(self, engine: Engine, *, output_on: str = 'latest', sensor_height: float | None = None,
                 ego_motion_removed: bool = True, refinements: int = 0):  # fmt: skip
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
        self._flags = VALID | (EGO_MOTION_REMOVED if ego_motion_removed else 0)
        self._sensor_height = SensorHeight(sensor_height)

    def reset(self) -> None:
        """Forget the sensor height estimated from past sweeps."""
        self._sensor_height.reset()

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
            height = self._sensor_height.update(source) if card.z_origin == 'ground' or card.ground == 'remove' else 0.0
            network_T_vehicle = np.eye(4)
            if card.z_origin == 'ground':
                network_T_vehicle[2, 3] = height
            network_T_source, network_T_target = network_T_vehicle, network_T_vehicle @ source_T_target
            if card.network_frame == 'target':
                network_T_source, network_T_target = (
                    network_T_vehicle @ transforms.invert(source_T_target),
                    network_T_vehicle,
                )
            if card.ground == 'remove':
                source, target = (_without_ground(points, height) for points in (source, target))

        def infer(points: np.ndarray) -> np.ndarray:
            flow = self.engine.infer(
                points, target, watch, network_T_source=network_T_source, network_T_target=network_T_target
            )
            if card.network_frame == 'target':
                source_R_network = np.eye(4)
                source_R_network[:3, :3] = network_T_source[:3, :3].T
                with watch('finish'), np.errstate(invalid='ignore'):  # infinity becomes NaN, as does its row
                    flow = transforms.apply(source_R_network, flow)
            return flow

        flow = infer(source)
        for _ in range(self.refinements):
            with watch('prepare'):
                moving = np.flatnonzero(np.einsum('ij,ij->i', flow, flow) > _MIN_REFINED_FLOW**2)
                if not len(moving):
                    break
                warped = source.copy()
                warped[moving] += flow[moving]
            residual = infer(warped)[moving]
            with watch('finish'):
                flow[moving] += np.where(
                    np.isfinite(residual), residual, np.float32(0)
                )  # NaN: warped out of the grid of the model
        with watch('finish'):
            velocity, flow_valid = self._to_velocity(flow, sign / pair.dt)
        return FlowEstimate(velocity, flow_valid, self.output_on, pair.dt, height, watch.stages_ms)

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


def _without_ground(points: np.ndarray, height: float) -> np.ndarray:
    """Return the points with ground rows set to NaN; the ground lies `height` [m] below the origin."""
    return np.where(is_ground(points, height)[:, None], np.float32(np.nan), points)
