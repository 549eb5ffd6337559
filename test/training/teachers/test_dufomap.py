# SPDX-License-Identifier: Apache-2.0
"""What moves, from whole drives: a box that crosses a yard full of free space."""

import sys

import numpy as np
import pytest

pytest.importorskip('dufomap', reason="these labels need the package dufomap: pip install 'zeroflow_ros[dynamic]'")
pytest.importorskip('torch', reason='training needs torch')

from training.datasets.pairs import DatasetPair
from training.label import main
from training.labels.label_job import LabelJob, run
from training.labels.label_store import LabelStore
from training.teachers import build_teacher
from training.teachers.dynamic_labels import FIRST_CLUSTER, GROUND, NOT_LABELLED, STATIC
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros import transforms
from zeroflow_ros.errors import ConfigError, DataError, ModelError
from zeroflow_ros.lidar.sweep import SweepPair

HEIGHT, SPEED, EGO_SPEED, DT = 1.6, 6.0, 2.0, 0.1  # m, m/s, m/s, s


def box_x(k):
    return 6 + SPEED * DT * k


def sweep(k):
    """Return the points of sweep k in the sensor's frame, by casting rays: walls, ground, and a box; one NaN row."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(-60, 60, 0.4)), np.radians(np.arange(-20, 8, 0.7)))
    ray = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    ray = ray.reshape(-1, 3)
    origin = np.array([EGO_SPEED * DT * k, 0, HEIGHT])
    with np.errstate(divide='ignore', invalid='ignore'):
        reach = (30 - origin[0]) / ray[:, 0]  # a wall ahead
        for axis, offset in ((1, 9.0), (1, -9.0), (2, 0.0)):
            way = (offset - origin[axis]) / ray[:, axis]
            reach = np.where((way > 0) & (way < reach), way, reach)
        way = (np.array([[box_x(k), 2, 0], [box_x(k) + 2, 4, 1.5]])[:, None] - origin) / ray
        enter, leave = way.min(0).max(1), way.max(0).min(1)
    reach = np.where((enter > 0) & (enter < leave) & (enter < reach), enter, reach)
    return np.concatenate([ray * reach[:, None], [[np.nan] * 3]]).astype(np.float32)


def in_yard(points, k):
    return points + np.array([EGO_SPEED * DT * k, 0, HEIGHT])


class Yard:
    """Pairs of a drive through the yard; those in `broken` cannot be read, after `gap` a sweep is missing."""

    name = 'yard'

    def __init__(self, num_pairs=8, broken=(), gap=99):
        self.num_pairs, self.broken, self.gap, self.read = num_pairs, broken, gap, []

    def __len__(self):
        return self.num_pairs

    def key(self, index):
        return f'yard/{index:03d}'

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError('cut short')
        self.read.append(index)
        k = index + (index > self.gap)
        clouds = sweep(k), sweep(k + 1)
        grounds = [in_yard(points, 0)[:, 2] < 0.1 for points in clouds]
        ego = transforms.yaw_translation(0, EGO_SPEED * DT, 0)
        return DatasetPair(self.key(index), SweepPair(*clouds, ego, DT), *grounds)


def labelled(teacher, drive, index):
    item = drive[index]
    return teacher.label_in_drive(drive, index, item, teacher_input(item, Crop()))


def test_a_box_that_drives_is_one_body_and_the_walls_stand():
    drive = Yard()
    label = labelled(build_teacher('dufomap'), drive, 4)
    for k, dynamic, flow, points in (
        (4, label.dynamic0, label.flow0, sweep(4)), (5, label.dynamic1, label.flow1, sweep(5))
    ):  # fmt: skip
        place = in_yard(points, k)
        on_box = (np.abs(place - [box_x(k) + 1, 3, 0.9]) < [1.1, 1.1, 0.7]).all(axis=1)
        is_ground = place[:, 2] < 0.1
        on_wall = (np.abs(np.abs(place[:, 1]) - 9) < 0.05) & ~is_ground & (place[:, 2] < 2.9)  # in the crop
        assert on_box.sum() > 100 and (dynamic[on_box] == FIRST_CLUSTER).mean() > 0.9
        assert on_wall.sum() > 1000 and (dynamic[on_wall] == STATIC).mean() > 0.99
        assert set(dynamic[is_ground]) == {GROUND} and dynamic[-1] == NOT_LABELLED
        moves = dynamic > STATIC
        assert np.isnan(flow[moves]).all() and not flow[(dynamic == STATIC) | is_ground].any()
        assert np.isnan(flow[dynamic == NOT_LABELLED]).all()


def test_labels_do_not_depend_on_the_order_in_which_they_are_asked_for():
    drive, config = Yard(), {'pairs_of_a_map': 4}
    there, back = (build_teacher('dufomap', config) for _ in range(2))
    forward = [labelled(there, drive, index) for index in range(8)]
    backward = [labelled(back, drive, index) for index in reversed(range(8))][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.dynamic0, other.dynamic0)
        np.testing.assert_array_equal(one.dynamic1, other.dynamic1)
    drive.read.clear()
    labelled(there, drive, 7)
    assert drive.read == [7]  # its map is still there


@pytest.mark.parametrize(
    'label, drive, num_maps',
    [
        ('one drive', Yard(6), 1),
        ('a pair that cannot be read', Yard(6, broken=(2,)), 2),
        ('a sweep is missing', Yard(6, gap=2), 2),
        ('a gap at the end', Yard(6, broken=(5,)), 1),
    ],
)
def test_a_gap_begins_a_new_map(label, drive, num_maps):
    teacher = build_teacher('dufomap')
    labelled(teacher, drive, 0)
    assert len({id(seen_by) for seen_by, _ in teacher._maps.values()}) == num_maps
    last = [index for index in range(6) if index not in drive.broken][-1]
    _, map_T_ego = teacher._maps[last]
    since = last if num_maps == 1 else last - 3
    assert map_T_ego[0, 3] == pytest.approx(EGO_SPEED * DT * since)


def test_the_place_of_the_sensor_counts():
    """In the frame of a vehicle rays begin above its origin; from the ground they would pass through the ground."""

    class OnTheVehicle(Yard):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            clouds = [points + np.float32([0, 0, HEIGHT]) for points in (item.pair.points0, item.pair.points1)]
            pair = SweepPair(*clouds, item.pair.ego0_T_ego1, DT)
            return DatasetPair(item.key, pair, item.is_ground0, item.is_ground1)

    seen = labelled(build_teacher('dufomap'), Yard(), 4)
    moved = labelled(build_teacher('dufomap', {'sensor': [0, 0, HEIGHT]}), OnTheVehicle(), 4)
    assert (seen.dynamic0 == moved.dynamic0).mean() > 0.995  # float32 rounds some points into other voxels


def test_an_empty_drive_has_labels():
    class Nothing(Yard):
        def __getitem__(self, index):
            none = np.full((3 * (index % 2), 3), np.nan, np.float32), np.zeros((0, 3), np.float32)
            flags = [np.zeros(len(points), bool) for points in none]
            return DatasetPair(self.key(index), SweepPair(*none, np.eye(4), DT), *flags)

    label = labelled(build_teacher('dufomap'), Nothing(), 1)
    assert label.dynamic0.tolist() == [NOT_LABELLED] * 3 and len(label.dynamic1) == 0


@pytest.mark.parametrize(
    'config', [{'resolution': 0}, {'nearest': 60.0}, {'pairs_of_a_map': 0}, {'inflate_hits': -1.0}, {'sensor': [1.0]}]
)
def test_settings_that_make_no_sense_are_refused(config):
    with pytest.raises(ConfigError, match='dufomap needs'):
        build_teacher('dufomap', config)


def test_it_says_that_it_knows_no_flow_and_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match='strategy: seflow'):
        build_teacher('dufomap').label(np.zeros((1, 3)), np.zeros((1, 3)), DT)
    monkeypatch.setitem(sys.modules, 'dufomap', None)
    with pytest.raises(ModelError, match='pip install dufomap'):
        build_teacher('dufomap')


def test_a_job_keeps_what_is_there_and_redoes_what_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelJob, 'open_datasets', lambda job: [Yard(5)])
    job = LabelJob(('yard',), 'dufomap', tmp_path)
    assert {outcome.state for outcome in run(job)} == {'done'}
    store = LabelStore(tmp_path)
    whole = store.path('yard/003').read_bytes()
    store.path('yard/003').write_bytes(whole[:99])
    store.path('yard/001').unlink()
    again = {outcome.key: outcome.state for outcome in run(LabelJob(('yard',), 'dufomap', tmp_path, shard=(1, 1)))}
    assert [key for key, state in again.items() if state == 'done'] == ['yard/001', 'yard/003']
    assert store.path('yard/003').read_bytes() == whole
    assert store.about['teacher'] == 'dufomap' and store.about['config']['resolution'] == 0.15


def test_the_program_labels_a_bag(tmp_path, capsys):
    from tiny_bag import write_bag

    assert (
        main([str(write_bag(tmp_path / 'drive', num_sweeps=4)), '--teacher', 'dufomap', '--out', str(tmp_path / 'o')])
        == 0
    )
    assert '3 pairs labelled' in capsys.readouterr().out
