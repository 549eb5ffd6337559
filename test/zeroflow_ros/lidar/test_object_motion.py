# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from zeroflow_ros import transforms
from zeroflow_ros.lidar import nearest_points, object_motion
from zeroflow_ros.lidar.object_motion import EarlierSweep, fit_object_motion

DT = 0.1
MOTION = np.float32([-0.5, 0.2, 0])  # m, to the sweep before
IDENTITY = np.eye(4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=['compiled', 'numpy'])
def arithmetic(request, monkeypatch):
    if request.param == 'numpy':
        for module in (nearest_points, object_motion):
            monkeypatch.setattr(module, 'numba_kernels', None)


def ground(rng, slope=0.0):
    xy = rng.uniform(-20, 20, (4000, 2))
    return np.column_stack([xy, slope * xy[:, 0] + rng.normal(0, 0.01, 4000)]).astype(np.float32)


def person(rng, count=150, x=8.0, y=3.0, z=0.0):
    """Points on an upright cylinder, 1.7 m tall."""
    angle = rng.uniform(0, 2 * np.pi, count)
    column = [x + 0.3 * np.cos(angle), y + 0.3 * np.sin(angle), z + rng.uniform(0.02, 1.7, count)]
    return np.column_stack(column).astype(np.float32)


def scene(rng, *, said=0.6, slope=0.0, steps=(1,)):
    """Return (points, flow, earlier, rows of the person): a person whom the network gives `said` of the motion."""
    road, walker = ground(rng, slope), person(rng, z=8 * slope)
    points = np.concatenate([road, walker])
    flow = np.zeros_like(points)
    flow[len(road) :] = said * MOTION + rng.normal(0, 0.02, walker.shape)
    clouds = [np.concatenate([road, walker + MOTION * np.float32(k)]) for k in steps]
    earlier = [EarlierSweep(cloud, IDENTITY, k) for cloud, k in zip(clouds, steps, strict=True)]
    return points, flow, earlier, np.arange(len(road), len(points))


@pytest.mark.parametrize('steps', [(1,), (1, 2), (1, 2.5)])
def test_a_person_gets_the_motion_that_the_points_show(rng, arithmetic, steps):
    points, flow, earlier, rows = scene(rng, steps=steps)
    assert fit_object_motion(points, flow, IDENTITY, earlier, DT) == 1
    np.testing.assert_allclose(flow[rows], np.tile(MOTION, (len(rows), 1)), atol=0.03)
    assert not flow[: rows[0]].any()


def test_compiled_and_numpy_arithmetic_agree(rng, monkeypatch):
    points, flow, earlier, _ = scene(rng)
    compiled = flow.copy()
    fit_object_motion(points, compiled, IDENTITY, earlier, DT)
    for module in (nearest_points, object_motion):
        monkeypatch.setattr(module, 'numba_kernels', None)
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_allclose(flow, compiled, atol=1e-5)


def test_the_axes_of_the_points_may_be_any(rng):
    points, flow, earlier, rows = scene(rng)
    sensor_T_level = transforms.from_quaternion([1, -2, 0.5], [0.3, 0.9, 0.1, 0.4])
    level_T_sensor = transforms.invert(sensor_T_level)
    rotation = sensor_T_level[:3, :3].astype(np.float32)
    turned = flow @ rotation.T
    there = [
        EarlierSweep(transforms.apply(sensor_T_level, sweep.points), level_T_sensor, sweep.intervals)
        for sweep in earlier
    ]
    fit_object_motion(transforms.apply(sensor_T_level, points), turned, level_T_sensor, there, DT)
    np.testing.assert_allclose(turned[rows], np.tile(MOTION @ rotation.T, (len(rows), 1)), atol=0.03)


def test_something_that_stands_but_seems_to_move_stands(rng):
    points, flow, earlier, rows = scene(rng)
    earlier = [EarlierSweep(points + np.float32(0.005), IDENTITY, 1)]
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    assert not flow[rows].any()


def test_the_road_beside_a_person_does_not_move_along(rng):
    points, flow, earlier, rows = scene(rng)
    beside = np.flatnonzero(np.linalg.norm(points[: rows[0], :2] - [8, 3], axis=1) < 1)
    beside = beside[np.linalg.norm(points[beside, :2] - [8, 3], axis=1) > 0.8]
    flow[beside] = 0.5 * MOTION
    assert len(beside) > 3
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    assert not flow[beside].any()


def test_low_points_that_move_far_from_any_cluster_keep_their_flow(rng):
    points, flow, earlier, _ = scene(rng)
    robot = np.flatnonzero(np.linalg.norm(points[:, :2] - [-10, -10], axis=1) < 0.5)
    flow[robot] = [0.3, 0, 0]
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_array_equal(flow[robot], np.tile(np.float32([0.3, 0, 0]), (len(robot), 1)))


@pytest.mark.parametrize('slope', [-0.05, 0.05])
def test_a_person_on_a_slope_moves(rng, slope):
    points, flow, earlier, rows = scene(rng, slope=slope)
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_allclose(flow[rows], np.tile(MOTION, (len(rows), 1)), atol=0.04)


def test_mirror_images_below_the_road_do_not_join_two_objects(rng):
    points, flow, earlier, rows = scene(rng)
    mirrored = np.float32([[8, 3, -1.5], [8.5, 2.5, -2.0]])
    points, flow = np.concatenate([points, mirrored]), np.concatenate([flow, np.zeros((2, 3), np.float32)])
    between = np.flatnonzero(np.linalg.norm(points[: rows[0], :2] - [8, 3], axis=1) < 0.8)
    flow[between] = [-0.1, 0, 0]
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_allclose(flow[rows], np.tile(MOTION, (len(rows), 1)), atol=0.03)


@pytest.mark.parametrize('seen', ['the road', 'nothing'])
def test_an_object_without_counterpart_is_not_confirmed_and_stands(rng, seen):
    points, flow, _, rows = scene(rng)
    before = points[: rows[0]] if seen == 'the road' else np.empty((0, 3), np.float32)
    fit_object_motion(points, flow, IDENTITY, [EarlierSweep(before, IDENTITY, 1)], DT)
    assert not flow[rows].any()


def test_without_ego_motion_a_wall_that_slides_along_itself_keeps_the_flow_of_the_network(rng):
    wall = np.column_stack([rng.uniform(3, 15, 3000), np.full(3000, 6.0), rng.uniform(0.5, 3, 3000)]).astype(np.float32)
    other = np.column_stack([rng.uniform(3, 15, 3000), np.full(3000, 6.0), rng.uniform(0.5, 3, 3000)]).astype(
        np.float32
    )
    points = np.concatenate([ground(rng), wall])
    for removed, expected in ((True, 0.0), (False, -0.4)):
        flow = np.zeros_like(points)
        flow[-len(wall) :, 0] = -0.4
        earlier = [EarlierSweep(np.concatenate([points[: -len(wall)], other]), IDENTITY, 1)]
        fit_object_motion(points, flow, IDENTITY, earlier, DT, ego_motion_removed=removed)
        np.testing.assert_allclose(np.median(flow[-len(wall) :, 0]), expected, atol=0.06)


@pytest.mark.parametrize(('depth', 'expected'), [(0.0, 0.0), (0.8, -0.3)])
def test_the_end_of_a_wall_that_comes_into_view_stands_and_a_solid_thing_of_its_size_moves(
    rng, arithmetic, depth, expected
):
    seen = np.column_stack([rng.uniform(8, 9.5, 300), 6 + depth * rng.random(300), rng.uniform(0.5, 2, 300)])
    before = (seen + [0.3, 0, 0]).astype(np.float32)
    points, road = seen.astype(np.float32), ground(rng)
    flow = np.tile(np.float32([0.25, 0, 0]), (300, 1))
    fit_object_motion(
        points, flow, IDENTITY, [EarlierSweep(np.concatenate([before, road]), IDENTITY, 1)], DT, knows_ground=False
    )
    np.testing.assert_allclose(np.median(flow[:, 0]), -expected, atol=0.03)


def test_slow_points_of_no_cluster_stand_and_fast_ones_keep_their_flow(rng):
    points, flow, earlier, _ = scene(rng)
    lone = np.float32([[-8, 8, 1.0], [-8, -8, 1.0]])
    points, flow = np.concatenate([points, lone]), np.concatenate([flow, np.float32([[0.3, 0, 0], [0.6, 0, 0]])])
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_array_equal(flow[-2:], np.float32([[0, 0, 0], [0.6, 0, 0]]))


@pytest.mark.parametrize('dt', [0.05, 0.1, 0.2])
def test_which_points_form_clusters_depends_on_their_speed_not_on_the_rate(rng, dt):
    """A person at 1 m/s, of whose speed the network says 0.4 m/s, or 0.1 m/s."""
    motion = np.float32([1.0 * dt, 0, 0])
    road, walker = ground(rng), person(rng, count=400)
    points = np.concatenate([road, walker])
    earlier = [EarlierSweep(np.concatenate([road, walker + k * motion]), IDENTITY, k) for k in (1, 2)]
    for said, found in ((0.4, True), (0.1, False)):
        flow = np.zeros_like(points)
        flow[len(road) :] = said * motion
        assert (fit_object_motion(points, flow, IDENTITY, earlier, dt) == 1) is found
        if found:
            np.testing.assert_allclose(np.median(flow[len(road) :], axis=0), motion, atol=0.01)


def test_the_front_of_a_long_side_decides_how_far_it_moves(rng, arithmetic):
    """The closest points of a side, 6 m long, say wrongly that it hardly moves along itself."""
    x, z = (values.ravel() for values in np.meshgrid(np.arange(0, 6, 0.05), np.arange(0.4, 2.4, 0.2)))
    y = np.arange(0, 2, 0.05)
    side = np.column_stack([x + 4, np.full(len(x), 5.0), z])
    front = np.column_stack([np.full(len(y), 4.0), y + 5, np.full(len(y), 1.0)])
    lorry = np.concatenate([side, front]).astype(np.float32)
    road = ground(rng)
    points = np.concatenate([road, lorry])
    flow = np.zeros_like(points)
    flow[len(road) :, 0] = -0.35
    earlier = [EarlierSweep(np.concatenate([road, lorry + np.float32([-0.52, 0, 0])]), IDENTITY, 1)]
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    np.testing.assert_allclose(flow[-1], [-0.52, 0, 0], atol=0.06)


@pytest.mark.parametrize(
    ('case', 'moves'),
    [('one earlier sweep', True), ('two', False), ('stands', False), ('was not there', False), ('at a wall', False)],
)
def test_a_person_whom_the_network_misses_in_two_sweeps_moves(rng, case, moves):
    motion = np.float32([-0.14, 0.05, 0])
    road, walker = ground(rng), person(rng)
    wall = np.column_stack([rng.uniform(6, 10, 2000), np.full(2000, 3.5), rng.uniform(0.3, 2, 2000)])
    rest = np.concatenate([road, wall.astype(np.float32)]) if case == 'at a wall' else road
    points = np.concatenate([rest, walker])
    before = {'stands': walker + rng.normal(0, 0.01, walker.shape).astype(np.float32), 'was not there': walker[:0]}
    earlier = [
        EarlierSweep(np.concatenate([rest, before.get(case, walker + k * motion)]), IDENTITY, k)
        for k in range(1, 3 if case == 'two' else 2)
    ]
    flow = np.zeros_like(points)
    assert fit_object_motion(points, flow, IDENTITY, earlier, DT) == moves
    high = walker[:, 2] > 0.3
    np.testing.assert_allclose(flow[len(rest) :][high], np.tile(moves * motion, (high.sum(), 1)), atol=0.02)
    assert not flow[: len(rest)].any()


def test_rows_without_flow_stay_without(rng):
    points, flow, earlier, rows = scene(rng)
    points[rows[0]], flow[rows[0]] = np.nan, np.nan
    flow[rows[1]] = np.inf
    fit_object_motion(points, flow, IDENTITY, earlier, DT)
    assert np.isnan(flow[rows[0]]).all() and np.isinf(flow[rows[1]]).all()
    assert np.isfinite(flow[rows[2:]]).all()


def test_a_world_that_turns_is_no_object(rng):
    """Without ego motion, everything around a turning vehicle moves, each place in another way."""
    wall = np.column_stack([rng.uniform(-20, 20, 4000), np.full(4000, 6.0), rng.uniform(0, 3, 4000)]).astype(np.float32)
    points, person_flow, earlier, rows = scene(rng)
    turned = (np.float32(0.05) * wall[:, [1, 0, 2]] * [-1, 1, 0]).astype(np.float32)
    both, flow = np.concatenate([points, wall]), np.concatenate([person_flow, turned])
    fit_object_motion(both, flow, IDENTITY, earlier, DT)
    high = wall[:, 2] > 0.5
    np.testing.assert_array_equal(flow[len(points) :][high], turned[high])
    np.testing.assert_allclose(flow[rows], np.tile(MOTION, (len(rows), 1)), atol=0.03)


@pytest.mark.parametrize('place', [(np.nan, 0, 0), (1e30, 0, 0), (0, -3e4, 1)])
def test_flow_at_a_place_that_is_none_or_far_away_is_left_alone(rng, place):
    points, flow, earlier, rows = scene(rng)
    points[0], flow[0] = place, 0.3
    with np.errstate(all='ignore'):
        fit_object_motion(points, flow, IDENTITY, earlier, DT)
    assert (flow[0] == np.float32(0.3)).all()
    np.testing.assert_allclose(flow[rows], np.tile(MOTION, (len(rows), 1)), atol=0.03)


def test_a_sweep_in_which_nothing_moves_is_left_alone(rng):
    points, flow, earlier, _ = scene(rng, said=0.0)
    flow[:] = 0.001
    assert fit_object_motion(points, flow, IDENTITY, earlier, DT) == 0
    assert (flow == np.float32(0.001)).all()
