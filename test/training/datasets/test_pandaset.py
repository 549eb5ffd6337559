# SPDX-License-Identifier: Apache-2.0
"""PandaSet: a small one in the official layout, and damaged ones."""

import json

import numpy as np
import pytest
from drive_world import CAR, GROUND, PEDESTRIAN, DriveWorld
from pandas_pickles import write_frame
from pandaset_files import (
    LIDAR_HEIGHT,
    NUM_SWEEPS,
    PERIOD,
    cuboids,
    is_bus,
    sensor_of,
    stamp,
    true_flow,
    world_points,
    write_pandaset,
)

from training.datasets import open_dataset
from training.datasets.pairs import MetaClass
from zeroflow_ros.errors import DataError

WORLD = DriveWorld()
TRUST = '?trust_pickles=true'


@pytest.fixture
def root(tmp_path):
    write_pandaset(tmp_path)
    return tmp_path


def in_sensor(k):
    """Return sweep k in the frame of the sensor, x forward, (N, 3)."""
    pose = WORLD.world_T_ego(k * PERIOD)
    return (world_points(WORLD, k) - pose[:3, 3] - [0, 0, LIDAR_HEIGHT]) @ pose[:3, :3]


def test_nothing_is_unpickled_without_the_word_of_the_user(root):
    for text in ('', '?sensor=both', '?trust_pickles=false'):
        with pytest.raises(DataError, match=r'are pickles.*pandaset:.*\?trust_pickles=true'):
            open_dataset(f'pandaset:{root}{text}')
    with pytest.raises(DataError, match='are pickles'):
        open_dataset(str(root))  # recognised


@pytest.mark.parametrize('layout', ['old', 'new'])
def test_sweeps_times_and_poses(tmp_path, layout):
    write_pandaset(tmp_path, layout=layout)
    dataset = open_dataset(f'pandaset:{tmp_path}{TRUST}')
    assert len(dataset) == NUM_SWEEPS - 1 and not dataset.skipped and dataset.key(0).startswith('001/1557539924')
    item = dataset[1]
    np.testing.assert_allclose(item.pair.points0, in_sensor(1), atol=1e-4)
    np.testing.assert_allclose(item.pair.points1, in_sensor(2), atol=1e-4)
    expected = np.linalg.inv(WORLD.world_T_ego(PERIOD)) @ WORLD.world_T_ego(2 * PERIOD)
    np.testing.assert_allclose(item.pair.ego0_T_ego1, expected, atol=1e-8)
    assert item.pair.dt == pytest.approx(0.1, abs=1e-6)
    np.testing.assert_allclose(item.times[0], np.linspace(-0.05, 0.04, len(WORLD.kind)), atol=1e-6)
    kind = WORLD.kind
    assert item.is_ground0[kind == GROUND].mean() > 0.6 and item.is_ground0[kind == CAR].mean() < 0.2


def test_cuboids_of_each_sensor_give_the_flow_of_its_points(root):
    dataset, kind = open_dataset(f'pandaset:{root}{TRUST}'), WORLD.kind
    for item, (k, other) in ((dataset[1], (1, 2)), (dataset.latest(1), (2, 1))):
        truth = item.truth
        assert truth.is_valid.mean() > 0.99
        np.testing.assert_allclose(truth.flow[truth.is_valid], true_flow(WORLD, k, other)[truth.is_valid], atol=1e-4)
        assert (truth.meta_class[kind == CAR] == MetaClass.CAR).all() and truth.is_valid[kind == CAR].all()
        is_person = (kind == PEDESTRIAN) & (sensor_of(WORLD) == 0)  # the other sensor sees it after its box was drawn
        assert (truth.meta_class[is_person] == MetaClass.PEDESTRIAN).all()
        bus = is_bus(WORLD, k)
        assert bus.sum() > 20 and (truth.meta_class[bus] == MetaClass.OTHER_VEHICLES).all()
        assert not truth.flow[bus].any()  # parked: the jitter of its box is no motion


@pytest.mark.parametrize('sensor, number', [('pandar64', 0), ('pandargt', 1)])
def test_one_sensor_on_request(root, sensor, number):
    item = open_dataset(f'pandaset:{root / "001"}{TRUST}&sensor={sensor}')[0]
    rows = sensor_of(WORLD) == number
    np.testing.assert_allclose(item.pair.points0, in_sensor(0)[rows], atol=1e-4)
    np.testing.assert_allclose(item.truth.flow, true_flow(WORLD, 0, 1)[rows], atol=1e-4)


def test_the_own_vehicle_is_left_out_on_request(root):
    points = open_dataset(f'pandaset:{root}{TRUST}&ego_box=-2,2,-1,1,-3,1')[0].pair.points0
    expected = in_sensor(0)
    inside = (np.abs(expected[:, :2]) <= [2, 1]).all(1)
    np.testing.assert_array_equal(np.isnan(points[:, 0]), inside)


def test_missing_sweeps_and_annotations(root):
    lidar, boxes = root / '001' / 'lidar', root / '001' / 'annotations' / 'cuboids'
    (lidar / '00.pkl.gz').unlink()
    (lidar / '09.pkl.gz').write_bytes((lidar / '01.pkl.gz').read_bytes())
    (boxes / '03.pkl.gz').unlink()
    dataset = open_dataset(f'pandaset:{root}{TRUST}')
    assert dataset.skipped == {'missing_file': 1, 'no_ego_motion': 1} and len(dataset) == 3
    assert [dataset[k].truth is None for k in range(3)] == [False, True, True]


def test_an_object_that_the_next_sweep_lacks_has_no_flow(root):
    kept = {name: column[:2] for name, column in cuboids(WORLD, 1).items()}
    write_frame(root / '001' / 'annotations' / 'cuboids' / '01.pkl.gz', kept)
    truth, kind = open_dataset(f'pandaset:{root}{TRUST}')[0].truth, WORLD.kind
    assert not truth.is_valid[(kind == PEDESTRIAN) & (sensor_of(WORLD) == 0)].any()
    assert truth.is_valid[kind == CAR].all() and truth.is_valid[is_bus(WORLD, 0)].all()


def _edit(name, change):
    def edit(root):
        path = root / '001' / 'lidar' / name
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return edit


def _turn_over(poses):
    for pose in poses:
        w, x, y, z = (pose['heading'][axis] for axis in 'wxyz')
        pose['heading'] = {'w': -x, 'x': w, 'y': -z, 'z': y}  # z down, as in some navigation frames


def _swap_axes(poses):
    for pose in poses:
        x, y = (pose['position'][axis] for axis in 'xy')
        pose['position'].update(x=y, y=x)  # left-handed


@pytest.mark.parametrize(
    'spoil, said',
    [
        (_edit('timestamps.json', lambda t: [1e3 * one for one in t]), 'should hold seconds since 1970'),
        (_edit('timestamps.json', lambda t: t[:-1]), '5 poses and 4 timestamps'),
        (_edit('timestamps.json', lambda t: {'a': 1}), 'should be a JSON list, got dict'),
        (_edit('timestamps.json', lambda t: [10 * k + t[0] for k in range(5)]), r'4 gap_too_long.*are 10\.000 s apart'),
        (_edit('poses.json', lambda poses: poses[2].clear()), 'pose 2 should have position x y z and heading'),
        (_edit('poses.json', lambda poses: poses[2]['heading'].update(w=0, z=0)), 'pose 2: .* quaternion of length 1'),
        (_edit('poses.json', lambda poses: poses[2]['heading'].update(w=2)), 'pose 2: .*length 1, got one of length 2'),
        (_edit('poses.json', _turn_over), r'4 no_ego_motion.*180 degrees away from up in 5 of 5 poses'),
        (_edit('poses.json', _swap_axes), r'4 no_ego_motion.* to the side .* right-handed frames'),
        (lambda root: (root / '001' / 'lidar' / 'timestamps.json').unlink(), 'timestamps.json should be a JSON list'),
    ],
)  # fmt: skip
def test_damaged_lists_are_refused(root, spoil, said):
    spoil(root)
    with pytest.raises(DataError, match=said):
        open_dataset(f'pandaset:{root}{TRUST}')


def test_damaged_sweeps_and_cuboids_are_named(root):
    lidar, spec = root / '001' / 'lidar', f'pandaset:{root}{TRUST}'
    boxes = cuboids(WORLD, 2)
    boxes['dimensions.x'] = boxes['dimensions.x'] * 0
    write_frame(root / '001' / 'annotations' / 'cuboids' / '02.pkl.gz', boxes)
    with pytest.raises(DataError, match=r'02\.pkl\.gz: cuboid car0 needs finite numbers and a size above 0'):
        open_dataset(spec)[1]
    (lidar / '00.pkl.gz').write_bytes((lidar / '00.pkl.gz').read_bytes()[:-30])
    with pytest.raises(DataError, match=r'00\.pkl\.gz cannot be read, it may be cut'):
        open_dataset(spec)[0]
    write_frame(lidar / '04.pkl.gz', {'x': np.zeros(3), 'y': np.zeros(3)})
    with pytest.raises(DataError, match='lacks the columns z, t, d; it has x, y'):
        open_dataset(spec)[3]


def test_times_of_another_clock_are_not_used(root):
    points = world_points(WORLD, 0)
    columns = {axis: points[:, j] for j, axis in enumerate('xyz')}
    columns |= {'i': points[:, 0], 't': np.linspace(0, 0.1, len(points)), 'd': sensor_of(WORLD)}
    write_frame(root / '001' / 'lidar' / '00.pkl.gz', columns)
    dataset = open_dataset(f'pandaset:{root}{TRUST}')
    assert dataset[0].times is None and dataset[1].times is not None
    assert stamp(0) > 1e9


@pytest.mark.parametrize(
    'text, said',
    [
        ('?sensor=left&trust_pickles=true', 'sensor is one of both, pandar64, pandargt'),
        ('/001/lidar', 'is no sequence'),
    ],
)
def test_wrong_options_say_what_there_is(root, text, said):
    with pytest.raises(DataError, match=said):
        open_dataset(f'pandaset:{root}{text}')
