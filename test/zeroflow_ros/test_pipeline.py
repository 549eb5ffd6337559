# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from point_engine import PointEngine

from zeroflow_ros import transforms
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.sweep import SweepPair
from zeroflow_ros.pipeline import EGO_MOTION_REMOVED, VALID, FlowPipeline


class NearestNeighbour(PointEngine):
    """An engine that flows each source point to its nearest target point: exact on well separated points."""

    def flow(self, source, target):
        flow = np.full_like(source, np.nan)
        for row in np.flatnonzero(np.isfinite(source).all(1)):
            flow[row] = target[np.nanargmin(np.linalg.norm(target - source[row], axis=1))] - source[row]
        return flow


@pytest.fixture(scope='module', params=['source', 'target'])
def card(request):
    return dataclasses.replace(load_engine().card, network_frame=request.param)


EGO0_T_EGO1 = transforms.yaw_translation(0.05, 1.0, 0.2)  # the vehicle drove 1 m and turned a little
GRID_POINTS = np.array([[x, y, 0.5] for x in (-20, -10, 5, 15) for y in (-12, -4, 4, 12)], np.float32)


def world_pair(moved=(0.0, 0.0, 0.0), dt=0.1):
    """A world of separate points seen before and after the ego motion; point 3 has moved in the world (ego0 frame)."""
    before = GRID_POINTS.copy()
    after = GRID_POINTS.copy()
    after[3] += np.float32(moved)
    return SweepPair(before, transforms.apply(transforms.invert(EGO0_T_EGO1), after), EGO0_T_EGO1, dt)


@pytest.mark.parametrize('output_on', ['latest', 'previous'])
def test_a_static_world_has_zero_velocity_under_a_moving_ego(card, output_on):
    estimate = FlowPipeline(NearestNeighbour(card), output_on=output_on, sensor_height=1.0).estimate(world_pair())
    np.testing.assert_allclose(estimate.velocity, 0, atol=1e-4)  # m/s: float32 rounding of 20 m over 0.1 s
    assert (estimate.flow_valid == VALID | EGO_MOTION_REMOVED).all()


@pytest.mark.parametrize('dt', [0.05, 0.1, 0.2])
def test_velocity_is_in_the_axes_of_its_sweep_and_divides_by_the_real_dt(card, dt):
    pair = world_pair(moved=(1.0, 0.0, 0.0), dt=dt)
    latest = FlowPipeline(NearestNeighbour(card), output_on='latest', sensor_height=1.0).estimate(pair)
    previous = FlowPipeline(NearestNeighbour(card), output_on='previous', sensor_height=1.0).estimate(pair)
    np.testing.assert_allclose(previous.velocity[3], [1 / dt, 0, 0], atol=1e-3)
    turned_back = EGO0_T_EGO1[:3, :3].T @ [1 / dt, 0, 0]
    np.testing.assert_allclose(latest.velocity[3], turned_back, atol=1e-3)
    assert latest.dt == dt


class HalfWay(NearestNeighbour):
    """Finds half of every motion."""

    def flow(self, source, target):
        return super().flow(source, target) / 2


@pytest.mark.parametrize('output_on', ['latest', 'previous'])
@pytest.mark.parametrize('refinements, found', [(0, 0.5), (1, 0.75), (3, 0.9375)])
def test_each_refinement_finds_its_share_of_what_is_left(card, output_on, refinements, found):
    engine, pair = HalfWay(card), world_pair(moved=(1.0, 0.0, 0.4))
    pipeline = FlowPipeline(engine, output_on=output_on, sensor_height=1.0, refinements=refinements)
    estimate = pipeline.estimate(pair)
    moved = np.array([10.0, 0, 4.0]) * found  # m/s
    expected = np.zeros_like(GRID_POINTS)
    expected[3] = moved if output_on == 'previous' else EGO0_T_EGO1[:3, :3].T @ moved
    np.testing.assert_allclose(estimate.velocity, expected, atol=1e-3)
    assert len(engine.calls) == refinements + 1
    np.testing.assert_array_equal(pair.points0, GRID_POINTS)  # it moves copies


@pytest.mark.parametrize('moved, num_calls, found', [(0.0, 1, 0.0), (0.09, 1, 0.045), (0.11, 3, 0.09625)])
def test_what_hardly_moves_is_not_refined(card, moved, num_calls, found):
    engine = HalfWay(card)
    pipeline = FlowPipeline(engine, output_on='previous', sensor_height=1.0, refinements=2)
    estimate = pipeline.estimate(world_pair(moved=(moved, 0.0, 0.0)))
    np.testing.assert_allclose(estimate.velocity[3], [10 * found, 0, 0], atol=1e-3)  # m/s
    assert len(engine.calls) == num_calls


def test_what_is_moved_out_of_the_grid_keeps_the_flow_that_it_had(card):
    class Once(NearestNeighbour):
        def flow(self, source, target):
            return super().flow(source, target) if len(self.calls) == 1 else np.full_like(source, np.nan)

    once, refined = (
        FlowPipeline(Once(card), sensor_height=1.0, refinements=count).estimate(world_pair(moved=(1.0, 0.0, 0.0)))
        for count in (0, 2)
    )
    np.testing.assert_array_equal(refined.velocity, once.velocity)
    assert (refined.flow_valid == once.flow_valid).all() and np.isfinite(once.velocity).all()


def test_the_network_sees_z_above_the_ground(card):
    engine = NearestNeighbour(card)
    FlowPipeline(engine, sensor_height=1.73).estimate(world_pair())
    np.testing.assert_allclose(engine.calls[0][0][:, 2], 0.5 + 1.73, atol=1e-5)
    flat = NearestNeighbour(dataclasses.replace(card, z_origin='sensor'))
    FlowPipeline(flat, sensor_height=1.73).estimate(world_pair())
    np.testing.assert_allclose(flat.calls[0][0][:, 2], 0.5, atol=1e-5)


def test_the_network_works_in_the_frame_that_the_card_says():
    card = load_engine().card
    for network_frame, source_z, target_z in (('source', 0.5, 0.7), ('target', 0.3, 0.5)):
        engine = NearestNeighbour(dataclasses.replace(card, network_frame=network_frame, z_origin='sensor'))
        uphill = transforms.yaw_translation(0, 0, 0, 0.2)
        FlowPipeline(engine).estimate(SweepPair(GRID_POINTS, GRID_POINTS, transforms.invert(uphill), 0.1))
        [(source, target)] = engine.calls  # the latest sweep, as its source, lies 0.2 m below the one before
        np.testing.assert_allclose(source[:, 2], source_z, atol=1e-5)
        np.testing.assert_allclose(target[:, 2], target_z, atol=1e-5)


def test_the_input_is_not_changed(card):
    pair = world_pair()
    points0, points1 = pair.points0.copy(), pair.points1.copy()
    FlowPipeline(NearestNeighbour(card), sensor_height=1.0).estimate(pair)
    np.testing.assert_array_equal(pair.points0, points0)
    np.testing.assert_array_equal(pair.points1, points1)


def test_rows_without_a_return_stay_in_place_as_nan(card):
    pair = world_pair()
    pair.points1[[0, 7]] = np.nan
    estimate = FlowPipeline(NearestNeighbour(card), sensor_height=1.0).estimate(pair)
    assert np.flatnonzero(np.isnan(estimate.velocity).all(1)).tolist() == [0, 7]
    assert np.flatnonzero(estimate.flow_valid == 0).tolist() == [0, 7]


def test_numbers_that_are_not_finite_never_leave_the_pipeline(card, compiled_or_not):
    class Broken(NearestNeighbour):
        def flow(self, source, target):
            flow = super().flow(source, target)
            flow[2, 1] = np.inf
            return flow

    estimate = FlowPipeline(Broken(card), sensor_height=1.0).estimate(world_pair())
    assert np.isnan(estimate.velocity[2]).all() and estimate.flow_valid[2] == 0
    assert np.isfinite(np.delete(estimate.velocity, 2, 0)).all()


def test_without_ego_motion_the_flag_says_so(card):
    pipeline = FlowPipeline(NearestNeighbour(card), sensor_height=1.0, ego_motion_removed=False)
    assert (pipeline.estimate(world_pair()).flow_valid == VALID).all()


def test_a_forward_only_model_is_not_used_on_the_latest_sweep(card):
    forward = NearestNeighbour(dataclasses.replace(card, direction='forward'))
    with pytest.raises(ConfigError, match='previous'):
        FlowPipeline(forward, output_on='latest')
    FlowPipeline(forward, output_on='previous')
    with pytest.raises(ConfigError, match='output_on'):
        FlowPipeline(forward, output_on='both')
    with pytest.raises(ConfigError, match='refinements must be 0 or more, got -1'):
        FlowPipeline(forward, output_on='previous', refinements=-1)


def test_a_model_without_ground_gets_none(card):
    pytest.importorskip('pypatchworkpp', reason='ground removal needs pypatchworkpp')
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(-np.pi, np.pi, 20_000), rng.uniform(3, 40, 20_000)
    ground = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1.7, 0.01, 20_000)], 1)
    wall = np.stack([np.full(500, 10.0), rng.uniform(-3, 3, 500), rng.uniform(-0.5, 1.5, 500)], 1)
    points = np.concatenate([ground, wall]).astype(np.float32)

    class Zero(NearestNeighbour):
        def flow(self, source, target):
            return source * 0

    estimate = FlowPipeline(Zero(dataclasses.replace(card, ground='remove')), sensor_height=1.7).estimate(
        SweepPair(points, points, np.eye(4), 0.1)
    )
    assert np.isnan(estimate.velocity[:20_000]).all(1).mean() > 0.95
    assert np.isfinite(estimate.velocity[20_000:]).all(1).mean() > 0.95
