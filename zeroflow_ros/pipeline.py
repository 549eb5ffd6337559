# SPDX-License-Identifier: Apache-2.0
"""From a sweep pair to the velocity of every point; the node, replay, benchmark and evaluation all call this."""

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
EGO_MOTION_REMOVED = 2  # bit 1: ... relative to the world, not to the sensor
OUTPUT_ON = ('latest', 'previous')
_LEAST_REFINED = 0.05  # m; what stands would only gather more noise


@dataclass(frozen=True)
class FlowEstimate:
    """Velocity of every point of one sweep of a pair.

    velocity: (N, 3) float32 [m/s], ego motion removed, axes of that sweep's frame; NaN where there is none.
    flow_valid: (N,) uint8, 0 where velocity is NaN, else VALID | EGO_MOTION_REMOVED.
    output_on: 'latest' or 'previous': the sweep whose rows these are.
    dt: seconds between the sweeps. sensor_height: the height above ground [m] that was used.
    stages_ms: milliseconds by stage.
    """

    velocity: np.ndarray
    flow_valid: np.ndarray
    output_on: str
    dt: float
    sensor_height: float
    stages_ms: dict


class FlowPipeline:
    """Common frame, ground policy, engine, velocity. Knows no ROS.

    engine: runs the model. output_on: the sweep that gets the velocities.
    sensor_height: of the points' frame above the ground [m]; None to see it in the sweeps.
    ego_motion_removed: False when the caller feeds identity for want of ego motion; it ends up in flow_valid.
    refinements: how often the engine is asked once more, with the points that move moved by the flow so far. What it
        finds then is added: a network is more exact about the last decimetre of a motion than about the whole of it.
    """

    def __init__(self, engine: Engine, *, output_on: str = 'latest', sensor_height: float | None = None,
                 ego_motion_removed: bool = True, refinements: int = 0):  # fmt: skip
        if output_on not in OUTPUT_ON:
            raise ConfigError(f'output_on must be one of {OUTPUT_ON}, got {output_on!r}.')
        if output_on == 'latest' and engine.card.direction == 'forward':
            raise ConfigError(
                f'The model {engine.card.name} was trained forward in time only, so it cannot flow the latest sweep. '
                'Set output_on to previous.'
            )
        if refinements < 0:
            raise ConfigError(f'refinements must be 0 or more, got {refinements}.')
        self.engine = engine
        self.output_on = output_on
        self.refinements = refinements
        self._flags = VALID | (EGO_MOTION_REMOVED if ego_motion_removed else 0)
        self._sensor_height = SensorHeight(sensor_height)

    def reset(self) -> None:
        """Forget what was learned from past sweeps (the sensor height)."""
        self._sensor_height.reset()

    def estimate(self, pair: SweepPair) -> FlowEstimate:
        """Return the velocity of every row of the pair's latest (or previous) sweep.

        The network flows its first input towards its second. For the latest sweep it therefore gets (latest,
        previous) and the result is negated.
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
            raised = np.eye(4)
            if card.z_origin == 'ground':
                raised[2, 3] = height
            network_T_source, network_T_target = raised, raised @ source_T_target
            if card.network_frame == 'target':
                network_T_source, network_T_target = raised @ transforms.invert(source_T_target), raised
            if card.ground == 'remove':
                source, target = (_without_ground(points, height) for points in (source, target))

        def infer(points: np.ndarray) -> np.ndarray:
            flow = self.engine.infer(
                points, target, watch, network_T_source=network_T_source, network_T_target=network_T_target
            )
            if card.network_frame == 'target':
                source_R_network = np.eye(4)
                source_R_network[:3, :3] = network_T_source[:3, :3].T
                with watch('finish'), np.errstate(invalid='ignore'):  # an infinite number becomes NaN, and its row
                    flow = transforms.apply(source_R_network, flow)
            return flow

        flow = infer(source)
        for _ in range(self.refinements):
            with watch('prepare'):
                moving = np.flatnonzero(np.einsum('ij,ij->i', flow, flow) > _LEAST_REFINED**2)
                if not len(moving):
                    break
                moved = source.copy()
                moved[moving] += flow[moving]
            rest = infer(moved)[moving]
            with watch('finish'):
                flow[moving] += np.where(np.isfinite(rest), rest, np.float32(0))  # NaN: moved out of the model's grid
        with watch('finish'):
            velocity, flow_valid = self._to_velocity(flow, sign / pair.dt)
        return FlowEstimate(velocity, flow_valid, self.output_on, pair.dt, height, watch.stages_ms)

    def _to_velocity(self, flow: np.ndarray, per_second: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (velocity (N, 3) [m/s], flow_valid (N,)); a row with a number that is not finite is NaN throughout."""
        if numba_kernels is not None:
            velocity, flow_valid = np.empty_like(flow), np.empty(len(flow), np.uint8)
            numba_kernels.to_velocity(flow, np.float32(per_second), np.uint8(self._flags), velocity, flow_valid)
            return velocity, flow_valid
        velocity = flow * np.float32(per_second)
        valid = np.isfinite(velocity).all(axis=1)
        velocity[~valid] = np.nan
        return velocity, valid * np.uint8(self._flags)


def _without_ground(points: np.ndarray, height: float) -> np.ndarray:
    """Return the points with NaN in the rows of the ground, which lies `height` [m] below the origin."""
    return np.where(is_ground(points, height)[:, None], np.float32(np.nan), points)
