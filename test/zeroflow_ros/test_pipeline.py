# SPDX-License-Identifier: Apache-2.0
import dataclasses
from itertools import islice

import numpy as np
import pytest
from point_engine import PointEngine

from zeroflow_ros import transforms
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.ego_motion.bag_motion import BagMotion
from zeroflow_ros.engines.selection import load_engine
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.level import level_rotation
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.lidar.sweep import PosedSweep, SweepPair
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


@pytest.mark.parametrize('output_on', ['latest', 'previous'])
def test_the_sweeps_beside_a_pair_reach_the_network_in_its_frame(card, output_on):
    """A static world seen from five places by a moving vehicle lies in one place for the network."""
    places = [transforms.yaw_translation(0.05 * k, 1.0 * k, 0.1 * k) for k in range(-3, 4)]  # of ego 0: places[3]

    def seen_from(place):
        return PosedSweep(transforms.apply(transforms.invert(place), GRID_POINTS), place)

    pair = dataclasses.replace(
        SweepPair(GRID_POINTS, seen_from(places[4]).points, places[4], 0.1),
        history=tuple(seen_from(places[k]) for k in (2, 1, 0)), future=tuple(seen_from(places[k]) for k in (5, 6)),
    )  # fmt: skip
    engine = NearestNeighbour(dataclasses.replace(card, num_sweeps=4))
    estimate = FlowPipeline(engine, output_on=output_on, sensor_height=1.0).estimate(pair)
    (source, target), older = engine.calls[0], engine.older[0]
    assert len(older) == 2 and estimate.num_sweeps == 4  # of three and of two beside the pair, what the model takes
    for points in (target, *older):
        np.testing.assert_allclose(points, source, atol=1e-4)
    backwards = FlowPipeline(
        NearestNeighbour(engine.card), output_on={'latest': 'previous', 'previous': 'latest'}[output_on],
        sensor_height=1.0,
    )  # fmt: skip
    same = backwards.estimate(pair.reversed())
    np.testing.assert_allclose(same.velocity, -estimate.velocity, atol=1e-3)
    for found, expected in zip(backwards.engine.older[0], older, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_model_of_two_sweeps_gets_no_history(card):
    pair = world_pair()
    pair = dataclasses.replace(pair, history=(PosedSweep(pair.points0, np.eye(4)),))
    engine = NearestNeighbour(dataclasses.replace(card, num_sweeps=2))
    assert FlowPipeline(engine, sensor_height=1.0).estimate(pair).num_sweeps == 2 and engine.older == [[]]


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
    pipeline = FlowPipeline(engine, output_on='previous', sensor_height=1.0, refinements=2, fit_objects=False)
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


MOUNTS = {'pitched': [0, 0.4, 0], 'rolled': [-0.3, 0, 0], 'upside down': [np.pi, 0, 0], 'both': [0.3, 0.2, 0]}


@pytest.mark.parametrize('rotation', MOUNTS.values(), ids=MOUNTS)
@pytest.mark.parametrize('output_on', ['latest', 'previous'])
def test_velocity_of_a_tilted_sensor_is_in_its_own_axes(card, rotation, output_on):
    """The network sees the level world; the caller gets what the level sensor would get, turned."""
    sensor_T_level = np.eye(4)
    sensor_T_level[:3, :3] = transforms.rotation_matrix(rotation)
    level_T_sensor = transforms.invert(sensor_T_level)
    level_T_sensor[:3, :3] = level_rotation(sensor_T_level[:3, 2])  # the level frame that looks where the sensor does
    sensor_T_level = transforms.invert(level_T_sensor)
    pair = world_pair(moved=(1.0, 0.5, 0.2))
    tilted = SweepPair(
        transforms.apply(sensor_T_level, pair.points0), transforms.apply(sensor_T_level, pair.points1),
        sensor_T_level @ pair.ego0_T_ego1 @ level_T_sensor, pair.dt,
        history=(PosedSweep(transforms.apply(sensor_T_level, pair.points0), np.eye(4)),),
    )  # fmt: skip
    engine = NearestNeighbour(dataclasses.replace(card, num_sweeps=3))
    expected = FlowPipeline(NearestNeighbour(card), output_on=output_on, sensor_height=1.0).estimate(pair)
    pipeline = FlowPipeline(engine, output_on=output_on, sensor_height=1.0, mount=level_T_sensor)
    found = pipeline.estimate(tilted)
    turned = transforms.apply(sensor_T_level, expected.velocity)
    np.testing.assert_allclose(found.velocity, turned, atol=2e-3)  # m/s: float32 of 20 m over 0.1 s
    for points in (*engine.calls[0], *engine.older[0]):
        assert np.abs(np.delete(points[:, 2], 3) - 1.5).max() < 1e-4  # level; point 3 has moved up
    assert found.level.tilt_from == 'mount' and found.sensor_height == 1.0


@pytest.mark.parametrize('mount_is_told', [True, False], ids=['told', 'untold'])
def test_the_flow_of_a_pitched_sweep_is_that_of_the_level_one(shared_data, mount_is_told):
    engine = load_engine()
    with Bag(shared_data / 'bags' / 'kitti_0005_a') as bag:
        motion = BagMotion(bag, 'odometry', frame_id='velodyne')
        for message in bag.messages([motion.topic]):
            motion.add_odometry(message.cdr)
        recorded = list(islice(bag.messages(['/velodyne_points']), 2))
    previous, latest = (decode_cloud(decode_message(message.cdr, POINT_CLOUD)) for message in recorded)
    sweeps = previous.points, latest.points
    sensor_T_level = np.eye(4)
    sensor_T_level[:3, :3] = transforms.rotation_matrix([0, np.radians(14), 0])
    pair = SweepPair(*sweeps, motion.between(previous, latest), 0.1)
    tilted = SweepPair(*(transforms.apply(sensor_T_level, points) for points in sweeps),
                       sensor_T_level @ pair.ego0_T_ego1 @ transforms.invert(sensor_T_level), 0.1)  # fmt: skip
    level = FlowPipeline(engine).estimate(pair)
    mount = transforms.invert(sensor_T_level) if mount_is_told else None
    found = FlowPipeline(engine, mount=mount).estimate(tilted)
    back = transforms.apply(transforms.invert(sensor_T_level), found.velocity)
    both = (level.flow_valid & found.flow_valid) > 0
    assert both.mean() > 0.97 * (level.flow_valid > 0).mean()
    error = np.linalg.norm(back - level.velocity, axis=1)[both] * 0.1  # m
    # Untold, the level world is that of the road, 0.8 degrees from the sensor's: other points share a pillar.
    assert error.mean() < (0.005 if mount_is_told else 0.02)
    moves = np.linalg.norm(level.velocity, axis=1)[both] > 1
    assert moves.sum() > 500 and np.median(error[moves]) < (0.03 if mount_is_told else 0.06)


@pytest.mark.parametrize('network_frame', ['source', 'target'])
def test_without_ground_the_model_sees_z_as_it_is(network_frame):
    card = dataclasses.replace(load_engine().card, network_frame=network_frame)
    engine = NearestNeighbour(card)
    estimate = FlowPipeline(engine).estimate(world_pair())
    assert np.isnan(estimate.sensor_height) and estimate.level.reason
    np.testing.assert_allclose(engine.calls[0][0][:, 2], 0.5, atol=1e-5)
    assert (estimate.flow_valid > 0).all()
