# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')

from rosbags.highlevel import AnyReader

from training import simulate
from training.simulation.clips import LIDAR_MODELS, Category, draw_lidar, read_ground_truth, simulate_clip, write_bag
from training.simulation.sensors.lidar import Scene, SensorCondition, Surfaces
from training.simulation.sensors.lidar_models import LidarModel
from training.simulation.shapes.mesh import Material, box, join
from training.simulation.streets.actor_motion import Occupancy, rounded_path, travelled_distance
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

PERFECT = SensorCondition(
    range_noise=0.0,
    beam_bias=np.zeros(3, np.float32),
    threshold=0.0,
    dropout=0.0,
    spurious=0.0,
    mixed=0.0,
    min_range=0.1,
    leaf_pass=0.0,
    glass_pass=0.0,
    glass_back=0.0,
)
TINY = LidarModel('tiny', 10.0, (-10.0, -2.0, 3.0), 72, (1.7, 1.7))


@pytest.fixture(scope='module')
def clips():
    """Three clips, together with ego vehicles that move and actors of every kind."""
    return [simulate_clip(seed, lidar='hdl32_20hz', num_sweeps=3) for seed in (1, 2, 4)]


@pytest.mark.parametrize(
    ('name', 'expected'),
    [  # plausible points of a sweep, some of the sky and some lost
        ('hdl64', (60_000, 133_000)),
        ('hdl64_high', (50_000, 116_000)),
        ('dual32', (55_000, 116_000)),
        ('os128', (55_000, 132_000)),
        ('hdl32', (25_000, 64_000)),
        ('hdl32_20hz', (14_000, 35_000)),
    ],
)
def test_each_lidar_returns_a_plausible_sweep(name, expected):
    clip = simulate_clip(8, lidar=name, num_sweeps=1)
    points = clip.sweeps[0].points
    assert expected[0] < len(points) < expected[1]
    assert clip.lidar is LIDAR_MODELS[name]
    assert clip.lidar.mount_height[0] <= clip.lidar_height <= clip.lidar.mount_height[1]
    distance = np.linalg.norm(points, axis=1)
    # 0.3 m: a beam of the stacked pair starts off the frame's origin, and leaves move in the wind.
    assert np.isfinite(points).all() and distance.max() < clip.lidar.max_range + 0.3


def test_table_covers_every_lidar_model():
    marks = test_each_lidar_returns_a_plausible_sweep.pytestmark
    assert {row[0] for row in marks[0].args[1]} == set(LIDAR_MODELS)


def test_clip_is_a_function_of_its_seed():
    once, again, other = (simulate_clip(seed, lidar='hdl32_20hz', num_sweeps=2) for seed in (8, 8, 11))
    for a, b in zip(once.sweeps, again.sweeps, strict=True):
        for name in ('points', 'intensity', 'stamp_ns', 'odom_T_lidar', 'category', 'instance'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(once.odom_T_actors, again.odom_T_actors)
    assert len(once.sweeps[0].points) != len(other.sweeps[0].points)


def test_seed_draws_the_sensor():
    assert {draw_lidar(seed) for seed in range(60)} == set(LIDAR_MODELS)
    seed = next(seed for seed in range(60) if draw_lidar(seed) == 'hdl32_20hz')
    assert simulate_clip(seed, num_sweeps=1).lidar.name == 'hdl32_20hz'


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [({'lidar': 'hdl-64', 'num_sweeps': 1}, 'hdl64'), ({'num_sweeps': 0}, 'at least one')],
)
def test_bad_requests_are_refused(arguments, match):
    with pytest.raises(DataError, match=match):
        simulate_clip(0, **arguments)


def test_static_world_has_zero_flow_under_a_moving_ego(clips):
    ego_steps = []
    for clip in clips:
        sweep = clip.sweeps[0]
        ego_steps.append(np.linalg.norm(clip.sweeps[2].odom_T_lidar[:3, 3] - sweep.odom_T_lidar[:3, 3]))
        flow = clip.flow(0, 2)
        assert flow.shape == sweep.points.shape and flow.dtype == np.float32
        assert not flow[sweep.instance < 0].any()
    assert max(ego_steps) > 0.1


def test_points_stay_on_their_actor(clips):
    for clip in clips:
        source, target = clip.sweeps[0], clip.sweeps[2]
        moved = transforms.apply(source.odom_T_lidar, source.points.astype(np.float64) + clip.flow(0, 2))
        before = transforms.apply(source.odom_T_lidar, source.points.astype(np.float64))
        moving = 0
        for actor in np.unique(source.instance[source.instance >= 0]):
            rows = source.instance == actor
            then = transforms.apply(transforms.invert(clip.odom_T_actors[2, actor]), moved[rows])
            now = transforms.apply(transforms.invert(clip.odom_T_actors[0, actor]), before[rows])
            # 0.1 mm: flow is float32.
            np.testing.assert_allclose(then, now, atol=1e-4)
            moving += bool(clip.flow(0, 2)[rows].any())
            later = transforms.apply(target.odom_T_lidar, target.points[target.instance == actor].astype(np.float64))
            if rows.sum() > 50 and len(later) > 50 and actor < clip.odom_T_actors.shape[1] - 1:
                seen = transforms.apply(transforms.invert(clip.odom_T_actors[2, actor]), later)
                # 1 m: two looks at one body overlap, though not every side of it is seen in both.
                assert np.linalg.norm(np.median(seen, axis=0) - np.median(then, axis=0)) < 1.0
        assert moving > 0


def test_flow_there_and_back_cancels(clips):
    for clip in clips:
        forth = clip.flow(0, 1)
        sweep0, sweep1 = clip.sweeps[0], clip.sweeps[1]
        for actor in np.unique(sweep0.instance[sweep0.instance >= 0]):
            rows = sweep0.instance == actor
            points = sweep0.points[rows].astype(np.float64) + forth[rows]
            # The same material points, seen from sweep 1, must go back to where they were.
            in_lidar1 = transforms.apply(transforms.invert(sweep1.odom_T_lidar) @ sweep0.odom_T_lidar, points)
            pose1, pose0 = clip.odom_T_actors[1, actor], clip.odom_T_actors[0, actor]
            back = transforms.invert(sweep1.odom_T_lidar) @ pose0 @ transforms.invert(pose1) @ sweep1.odom_T_lidar
            in_odom = transforms.apply(sweep1.odom_T_lidar @ back, in_lidar1)
            started = transforms.apply(sweep0.odom_T_lidar, sweep0.points[rows].astype(np.float64))
            np.testing.assert_allclose(in_odom, started, atol=1e-4)
        assert not clip.flow(1, 1).any()


def test_categories_and_instances_agree(clips):
    seen = set()
    for clip in clips:
        num_actors = clip.odom_T_actors.shape[1]
        for sweep in clip.sweeps:
            assert len(sweep.points) == len(sweep.intensity) == len(sweep.category) == len(sweep.instance)
            assert sweep.instance.min() == -1 and sweep.instance.max() < num_actors
            np.testing.assert_array_equal(sweep.instance < 0, sweep.category <= Category.GROUND)
            np.testing.assert_array_equal(sweep.instance == num_actors - 1, sweep.category == Category.EGO)
            assert (sweep.intensity >= 0).all() and (sweep.intensity <= 1).all()
            for actor in np.unique(sweep.instance):
                assert actor < 0 or len(np.unique(sweep.category[sweep.instance == actor])) == 1
            seen |= set(sweep.category.tolist())
        np.testing.assert_allclose(np.diff([sweep.stamp_ns for sweep in clip.sweeps]), 50_000_000)
    assert {Category.BACKGROUND, Category.GROUND, Category.CAR, Category.PEDESTRIAN} <= seen


def test_speeds_are_plausible_and_standing_actors_stand_still(clips):
    for clip in clips:
        step = np.linalg.norm(np.diff(clip.odom_T_actors[:, :, :3, 3], axis=0), axis=-1)
        speed = step[0] * clip.lidar.rate_hz
        assert speed.max() < 31
        standing = speed == 0
        assert (clip.odom_T_actors[:, standing] == clip.odom_T_actors[:1, standing]).all()


def test_actors_do_not_stand_in_each_other(clips):
    for clip in clips:
        for poses in clip.odom_T_actors:
            distance = np.linalg.norm(poses[:, None, :2, 3] - poses[None, :, :2, 3], axis=-1)
            # 0.25 m: two people shoulder to shoulder.
            assert (distance + np.eye(len(poses)) > 0.25).all()


def test_ground_lies_at_the_lidars_height(clips):
    for clip in clips:
        sweep = clip.sweeps[0]
        near = (sweep.category == Category.GROUND) & (np.linalg.norm(sweep.points[:, :2], axis=1) < 5)
        # 0.15 m: slope, camber and curb within 5 m.
        assert abs(np.median(sweep.points[near, 2]) + clip.lidar_height) < 0.15


def test_bag_round_trip(clips, tmp_path):
    clip = clips[0]
    write_bag(clip, tmp_path / 'bags' / 'street')
    assert [entry.name for entry in (tmp_path / 'bags').iterdir()] == ['street']
    clouds, odometry, num_tf = [], [], 0
    with AnyReader([tmp_path / 'bags' / 'street']) as reader:
        for connection, stamp_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            if connection.topic == '/lidar/points':
                assert message.header.frame_id == 'lidar' and message.point_step == 16
                assert [field.name for field in message.fields] == ['x', 'y', 'z', 'intensity']
                clouds.append((stamp_ns, np.frombuffer(message.data, np.float32).reshape(-1, 4)))
            elif connection.topic == '/odometry':
                assert (message.header.frame_id, message.child_frame_id) == ('odom', 'lidar')
                pose = message.pose.pose
                p, q = pose.position, pose.orientation
                odometry.append(transforms.from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w)))
            else:
                num_tf += len(message.transforms)
    assert len(clouds) == len(odometry) == num_tf == len(clip.sweeps)
    for sweep, (stamp_ns, rows), odom_T_lidar in zip(clip.sweeps, clouds, odometry, strict=True):
        assert stamp_ns == sweep.stamp_ns
        np.testing.assert_array_equal(rows, np.column_stack([sweep.points, sweep.intensity]))
        np.testing.assert_allclose(odom_T_lidar, sweep.odom_T_lidar, atol=1e-12)
    truth = read_ground_truth(tmp_path / 'bags' / 'street')
    assert [t.stamp_ns for t in truth] == [sweep.stamp_ns for sweep in clip.sweeps]
    assert truth[0].flow_to_previous is None and truth[-1].flow_to_next is None
    np.testing.assert_array_equal(truth[1].flow_to_previous, clip.flow(1, 0))
    np.testing.assert_array_equal(truth[1].flow_to_next, clip.flow(1, 2))
    np.testing.assert_array_equal(truth[2].category, clip.sweeps[2].category)
    np.testing.assert_array_equal(truth[2].instance, clip.sweeps[2].instance)


def test_bag_does_not_overwrite(clips, tmp_path):
    (tmp_path / 'street').mkdir()
    with pytest.raises(DataError, match='exists already'):
        write_bag(clips[0], tmp_path / 'street')
    with pytest.raises(DataError, match=r'training\.simulate'):
        read_ground_truth(tmp_path / 'street')


def test_program_writes_bag_and_picture(tmp_path, capsys):
    out, picture = tmp_path / 'street', tmp_path / 'street.png'
    arguments = ['--seed', '3', '--sweeps', '2', '--sensor', 'hdl32_20hz', '--out', str(out)]
    assert simulate.main([*arguments, '--picture', str(picture)]) == 0
    assert capsys.readouterr().out.startswith(str(out)) and picture.stat().st_size > 1000
    assert simulate.main(arguments) == 1


def _wall_and_box(box_at: float):
    """Return a wall at x = 20 and a box, 1 m wide, that has been moved to x = box_at."""
    wall = Surfaces.of(box([0.2, 60, 20], [20.1, 0, 0], Material.CONCRETE), Category.BACKGROUND, -1)
    body = Surfaces.of(box([1, 1, 4], [0, 0, 0], Material.METAL), Category.CAR, 0)
    return Scene(wall, [body]), transforms.yaw_translation(0.3, box_at, 0)[None]


@pytest.mark.parametrize(
    ('box_at', 'nearest', 'instance'),
    [(5.0, 4.4, 0), (30.0, 20.0, -1)],  # in front of the wall; hidden behind it
)
def test_nearest_surface_wins(box_at, nearest, instance):
    scene, poses = _wall_and_box(box_at)
    points, _, _, seen = scene.simulate_sweep(TINY, PERFECT, np.eye(4), poses, np.random.default_rng(0))
    ahead = (np.abs(points[:, 1]) < 0.3) & (points[:, 0] > 0) & (np.abs(points[:, 2]) < 1)
    assert ahead.any() and (seen[ahead] == instance).all()
    # 0.1 m: the box is turned by 0.3 rad, so its face is not square to the ray.
    assert points[ahead, 0].min() == pytest.approx(nearest, abs=0.1)


def test_glass_lets_rays_through_or_loses_them():
    pane = box([0.01, 40, 20], [5, 0, 0], Material.GLASS)
    wall = box([0.2, 60, 20], [10.1, 0, 0], Material.CONCRETE)
    scene = Scene(Surfaces.of(join([pane, wall]), Category.BACKGROUND, -1), [])
    clear = SensorCondition(**{**PERFECT.__dict__, 'glass_pass': 1.0})
    none = np.zeros((0, 4, 4))
    x = scene.simulate_sweep(TINY, clear, np.eye(4), none, np.random.default_rng(0))[0][:, 0]
    assert len(x) and (x > 9.9).all()
    mirrored = scene.simulate_sweep(TINY, PERFECT, np.eye(4), none, np.random.default_rng(0))[0]
    off_axis = np.abs(mirrored[:, 1]) > 1.5  # nearly straight on, a mirror returns
    assert not off_axis[mirrored[:, 0] < 9].any()


@pytest.mark.parametrize(
    ('speed', 'acceleration', 'expected'),
    [
        (0.0, 0.0, [0, 0, 0]),
        (2.0, 0.0, [0, 2, 4]),
        (2.0, -2.0, [0, 1, 1]),  # stops after 1 s and does not roll back
        (0.0, 1.0, [0, 0.5, 2]),
    ],
)
def test_distance_travelled(speed, acceleration, expected):
    # 1 cm: integrated in steps of 1/60 of the clip.
    np.testing.assert_allclose(travelled_distance(np.array([0.0, 1.0, 2.0]), speed, acceleration), expected, atol=0.01)


def test_path_cuts_corners_smoothly():
    path = rounded_path([[0, 0], [20, 0], [20, 20]], radius=7.0)
    heading = np.unwrap(np.arctan2(*np.diff(path, axis=0).T[::-1]))
    assert heading[0] == pytest.approx(0) and heading[-1] == pytest.approx(np.pi / 2)
    assert np.abs(np.diff(heading)).max() < 0.2  # [rad] between points 25 cm apart
    assert (path[0] == [0, 0]).all() and (path[-1] == [20, 20]).all()


@pytest.mark.parametrize(('center', 'expected'), [((0.0, 0.0), False), ((1.0, 0.0), False), ((1.2, 0.0), True)])
def test_occupancy_keeps_a_gap(center, expected):
    occupancy = Occupancy(num_sweeps=4)
    assert occupancy.reserve_if_free(np.zeros((1, 1, 2)), 0.5)
    assert occupancy.reserve_if_free(np.array([[center]]), 0.5, gap=0.15) is expected


def test_a_large_vehicle_drives_close_beside_the_ego_vehicle():
    """Alongside means: one tenth of the sweep or more, nearer than 4 m, and it moves in most clips."""
    moves = []
    for seed in (1, 3, 6):
        clip = simulate_clip(seed, lidar='hdl32_20hz', num_sweeps=2, alongside=True)
        sweep = clip.sweeps[1]
        large = (sweep.category == Category.OTHER_VEHICLE) & (np.abs(sweep.points[:, 1]) < 6)
        assert large.mean() > 0.1 and np.linalg.norm(sweep.points[large, :2], axis=1).min() < 4
        moves.append(np.linalg.norm(clip.flow(1, 0)[large], axis=1).max() > 0.05)
    assert sum(moves) >= 2
    assert (
        simulate_clip(1, lidar='hdl32_20hz', num_sweeps=1).street
        == simulate_clip(1, lidar='hdl32_20hz', num_sweeps=1, alongside=True).street
    )
