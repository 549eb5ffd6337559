# SPDX-License-Identifier: Apache-2.0
"""A static world stands still once the points of both sweeps are where they would have been seen at the stamps."""

from dataclasses import replace

import numpy as np
import pytest
from timed_clouds import SPEED, T0, TURN_RATE, S, odom_T_ego, seen, world

from zeroflow_ros.ego_motion.trajectory import Trajectory
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar import deskew as module
from zeroflow_ros.lidar.deskew import Deskew, SweepMotion, deskew
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import apply, invert, yaw_translation

DT = 0.1
DT_NS = S // 10
WORLD = world()
STRAIGHT = SweepMotion(0.0, 0.1, np.stack([yaw_translation(0, x, 0) for x in (0.0, 0.7, 1.4)]))
# label, points, times [s], expected points at 14 m/s along x
TABLE = [
    ('no points', np.zeros((0, 3)), [], np.zeros((0, 3))),
    ('at the stamp', [[5, 1, 0]], [0.0], [[5, 1, 0]]),
    ('at the end', [[5, 1, 0]], [0.1], [[6.4, 1, 0]]),
    ('half way', [[5, 1, 0], [0, 0, 2]], [0.05, 0.05], [[5.7, 1, 0], [0.7, 0, 2]]),
    ('NaN stays NaN', [[np.nan] * 3, [5, 1, 0]], [0.1, 0.1], [[np.nan] * 3, [6.4, 1, 0]]),
    ('beyond either end', [[5, 1, 0], [5, 1, 0]], [-1.0, 1.0], [[5, 1, 0], [6.4, 1, 0]]),
]


@pytest.mark.parametrize(('points', 'times', 'expected'), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_deskew(points, times, expected, compiled_or_not):
    found = deskew(np.array(points, np.float32).reshape(-1, 3), np.array(times, np.float32), STRAIGHT)
    assert found.dtype == np.float32 and found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # m: half a bin of 0.2 ms at 14 m/s


def test_compiled_equals_plain(monkeypatch):
    pytest.importorskip('numba', reason='without numba there is only one')
    rng = np.random.default_rng(1)
    points = rng.normal(0, 30, (20_000, 3)).astype(np.float32)
    points[::50] = np.nan
    times = rng.uniform(-0.04, 0.06, len(points)).astype(np.float32)
    at = np.linspace(-0.04, 0.06, 9)
    motion = SweepMotion(-0.04, 0.06, np.stack([invert(odom_T_ego(0)) @ odom_T_ego(t) for t in at]))
    compiled = deskew(points, times, motion)
    monkeypatch.setattr(module, 'numba_kernels', None)
    np.testing.assert_array_equal(compiled, deskew(points, times, motion))


def test_one_time_for_all_is_one_pose(compiled_or_not):
    motion = SweepMotion(0.03, 0.03, np.stack([yaw_translation(0, 0.5, 0)] * 9))
    found = deskew(np.ones((3, 3), np.float32), np.full(3, 0.03, np.float32), motion)
    np.testing.assert_allclose(found, [[1.5, 1, 1]] * 3, atol=1e-6)


def sweep(k, stamped, points=WORLD):
    """Return sweep k of the world from a moving and turning vehicle; stamped: share of the sweep before the stamp."""
    rng = np.random.default_rng(k)
    times = ((rng.integers(0, 1000, len(points)) + 0.5) / 1000 - stamped) * DT
    return Sweep(seen(points, k * DT, times), T0 + k * DT_NS, 'lidar', times.astype(np.float32))


def driven(hz, until=0.4):
    """Return the poses of the drive at a rate, and what asks them within a sweep."""
    trajectory = Trajectory()
    for t in np.arange(-0.2, until, 1 / hz):
        trajectory.add(T0 + round(t * S), odom_T_ego(t))

    def within(sweep, _other, offsets_ns):
        return trajectory.poses_at_offsets(sweep.stamp_ns, offsets_ns)

    return within


def residual(sweep0, sweep1):
    """Return how far each point of the static world seems to have moved, (N,) [m]."""
    seconds0, seconds1 = ((sweep.stamp_ns - T0) / S for sweep in (sweep0, sweep1))
    ego0_T_ego1 = invert(odom_T_ego(seconds0)) @ odom_T_ego(seconds1)
    return np.linalg.norm(apply(ego0_T_ego1, sweep1.points) - sweep0.points, axis=1)


def error(sweep, k, points=WORLD):
    """Return how far each point is from where it is at the stamp of sweep k, (N,) [m]."""
    return np.linalg.norm(sweep.points - seen(points, k * DT, np.zeros(len(points))), axis=1)


@pytest.mark.parametrize('hz', [200, 50, 10])
@pytest.mark.parametrize('stamped', [0.0, 0.5, 1.0], ids=['stamped first', 'in the middle', 'last'])
def test_a_static_world_stands_still_while_the_vehicle_drives_a_curve(stamped, hz, compiled_or_not):
    sweep0, sweep1 = sweep(0, stamped), sweep(1, stamped)
    skewed = residual(sweep0, sweep1)
    deskewed0, deskewed1 = Deskew().pair(sweep0, sweep1, driven(hz))
    stands = residual(deskewed0, deskewed1)
    # 14 m/s and 40 deg/s for up to 0.1 s, each point at another time in the two sweeps.
    assert skewed.mean() > 0.6 and skewed.max() > 2
    # Half a bin is 1.4 mm and 0.004 deg; odometry at 10 Hz takes the chord of each 0.1 s, 1.2 cm inside of the curve.
    assert stands.mean() < (0.02 if hz == 10 else 0.003) and stands.max() < (0.05 if hz == 10 else 0.015)
    for k, one in enumerate((deskewed0, deskewed1)):
        assert error(one, k).mean() < (0.02 if hz == 10 else 0.003) < 0.3 < error(sweep(k, stamped), k).mean()
        assert one.times is not None and one.stamp_ns == T0 + k * DT_NS


def test_each_sweep_is_deskewed_once_and_the_source_is_asked_once():
    sweeps, asked, poses = [sweep(k, 0.0) for k in range(3)], [], driven(100, until=0.6)

    def within(sweep, other, offsets_ns):
        asked.append((sweep.stamp_ns, other.stamp_ns))
        return poses(sweep, other, offsets_ns)

    both = Deskew()
    first = both.pair(sweeps[0], sweeps[1], within)
    motion = both.motions[1]
    second = both.pair(sweeps[1], sweeps[2], within)
    assert second[0] is first[1] and both.motions[0] is motion  # so that registration knows it again, too
    assert asked == [(T0, T0 + DT_NS), (T0 + DT_NS, T0), (T0 + 2 * DT_NS, T0 + DT_NS)]


def test_a_sweep_without_times_stays_as_it_is():
    sweep0, sweep1 = replace(sweep(0, 0.0), times=None), sweep(1, 0.0)
    both = Deskew()
    found0, found1 = both.pair(sweep0, sweep1, driven(100))
    assert found0 is sweep0 and found1.points is not sweep1.points and both.motions[0] is None


def test_unknown_motion_is_an_error_and_the_next_pair_is_a_new_chance():
    both, sweeps = Deskew(), [sweep(k, 0.0) for k in range(3)]
    both.pair(sweeps[0], sweeps[1], driven(100))
    with pytest.raises(EgoMotionError, match='needs a pose at'):
        both.pair(sweeps[1], sweeps[2], driven(100, until=0.2))
    found = both.pair(sweeps[1], sweeps[2], driven(100, until=0.6))
    assert residual(*found).mean() < 0.003


def test_registration_goes_on_at_constant_velocity():
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    from zeroflow_ros.ego_motion.lidar_odometry import LidarOdometry

    points, motion, both, sweeps = world(60_000), LidarOdometry(), Deskew(), []
    for k in range(3):  # a revolution from the back to the left and round: neighbours are seen at one time
        x, y, _ = seen(points, k * DT, np.zeros(len(points))).T
        times = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * 1000).round() / 1000 * DT
        sweeps.append(Sweep(seen(points, k * DT, times), T0 + k * DT_NS, 'lidar', times.astype(np.float32)))
    for k in (0, 1):  # the first pair has no motion to go on from
        pair = both.pair(sweeps[k], sweeps[k + 1], motion.poses_at_offsets)
        ego0_T_ego1 = motion.between(*pair)
        np.testing.assert_allclose(ego0_T_ego1, invert(odom_T_ego(0)) @ odom_T_ego(DT), atol=0.02)  # m
        for number, before, after in ((k, sweeps[k], pair[0]), (k + 1, sweeps[k + 1], pair[1])):
            assert error(after, number, points).mean() < 0.02 < 0.5 < error(before, number, points).mean()  # m


def test_speed_of_the_drive():
    step = invert(odom_T_ego(0.0)) @ odom_T_ego(1e-3)
    assert np.linalg.norm(step[:2, 3]) == pytest.approx(SPEED * 1e-3, rel=1e-6)
    assert np.arctan2(step[1, 0], step[0, 0]) == pytest.approx(TURN_RATE * 1e-3)


def skewed(sweep, within):
    """Return a sweep as the LiDAR saw it, of one whose points are where they were at its stamp; each time by itself."""
    moments, rows = np.unique(sweep.times.round(5), return_inverse=True)  # 10 us: 0.1 mm
    ego_T_then = within(sweep, sweep, (moments.astype(np.float64) * S).round().astype(np.int64))
    then_T_ego = np.stack([invert(pose) for pose in ego_T_then])[rows]
    points = np.einsum('nij,nj->ni', then_T_ego[:, :3, :3], sweep.points) + then_T_ego[:, :3, 3]
    return replace(sweep, points=points.astype(np.float32))


def off_surface(sweep0, sweep1, ego0_T_ego1):
    """Return the median distance [m] of points of sweep 1 from the planes that sweep 0 shows around them."""
    from scipy.spatial import cKDTree

    clouds = []
    for points in (sweep0.points, apply(ego0_T_ego1, sweep1.points)):
        radius = np.hypot(points[:, 0], points[:, 1])
        clouds.append(points[(radius > 3) & (radius < 40) & (points[:, 2] > -1.2)].astype(np.float64))  # NaN is not
    tree = cKDTree(clouds[0])
    distance, nearest = tree.query(clouds[1][::4], 8)
    around = clouds[0][nearest]
    centre = around.mean(1)
    _, _, axes = np.linalg.svd(around - centre[:, None])
    across = np.abs(np.einsum('ni,ni->n', clouds[1][::4] - centre, axes[:, 2]))
    return np.median(across[distance[:, 0] < 1])


def test_a_real_street_stands_stiller(shared_data):
    """At 14 m/s. The points of this recording are where they were at the stamps, whatever their times: moved by their
    times they fit worse. So they are moved back first, to where the LiDAR saw them.
    """
    from zeroflow_ros.bags.bag import Bag
    from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, decode_message
    from zeroflow_ros.ego_motion.bag_motion import BagMotion
    from zeroflow_ros.lidar.point_cloud import decode_cloud
    from zeroflow_ros.lidar.point_times import with_times

    with Bag(shared_data / 'bags' / 'apollo_columbia_park') as bag:
        motion = BagMotion(bag, 'odometry', frame_id='lidar_top')
        for recorded in bag.messages(bag.topics_of(ODOMETRY)):
            motion.add_odometry(recorded.cdr)
        messages = [decode_message(recorded.cdr, POINT_CLOUD) for recorded in bag.messages(bag.topics_of(POINT_CLOUD))]
    found = {}
    for k in range(0, 28, 7):
        recorded = [with_times(message, decode_cloud(message)) for message in messages[k : k + 2]]
        raw = [skewed(sweep, motion.poses_at_offsets) for sweep in recorded]
        variants = {
            'recorded': recorded, 'recorded, moved': Deskew().pair(*recorded, motion.poses_at_offsets),
            'raw': raw, 'deskewed': Deskew().pair(*raw, motion.poses_at_offsets),
        }  # fmt: skip
        for sweep, back in zip(recorded, variants['deskewed'], strict=True):
            assert np.nanmax(np.linalg.norm(sweep.points - back.points, axis=1)) < 0.02  # m: at up to 100 m
        for name, (sweep0, sweep1) in variants.items():
            found.setdefault(name, []).append(off_surface(sweep0, sweep1, motion.between(sweep0, sweep1)))
    surface = {name: np.mean(distances) for name, distances in found.items()}  # m, of the medians
    print(f'\nmedian distance off the surface [m]: {surface}')
    assert surface['deskewed'] < 0.9 * surface['raw']
    assert surface['deskewed'] == pytest.approx(surface['recorded'], rel=0.02)
    assert surface['recorded, moved'] > 1.05 * surface['recorded']
