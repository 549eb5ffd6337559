# SPDX-License-Identifier: Apache-2.0
"""Waymo Open perception data: a small drive in the official layout, and damaged ones."""

import numpy as np
import pytest
from drive_world import moved
from waymo_files import (
    CONTEXT,
    LASERS,
    NUM_FRAMES,
    PERIOD,
    START_US,
    WaymoWorld,
    field,
    matrix_float,
    pose,
    record,
    transform,
    velocity,
    write_frame,
    write_waymo,
)

from training.datasets import open_dataset
from training.datasets.pairs import MetaClass
from training.datasets.range_image import range_image_points
from training.datasets.waymo_frame import frame_boxes, frame_points
from zeroflow_ros.errors import DataError

WORLD = WaymoWorld()


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    """Return the folder of a drive, and what its frames show."""
    root = tmp_path_factory.mktemp('waymo')
    return root, write_waymo(root)


@pytest.fixture(scope='module')
def frame():
    """Return the serialised first frame."""
    return write_frame(WORLD, 0)[0]


def forward_flow(k, true, other):
    """Return the true residual flow of the points of frame k to frame `other`, in the vehicle frame of frame k."""
    in_world = moved(WORLD.frame_pose(k), true.points)
    then = moved(WORLD.car(other) @ np.linalg.inv(WORLD.car(k)), in_world)
    return np.where(true.is_car[:, None], (then - in_world) @ WORLD.frame_pose(k)[:3, :3], 0)


def test_points_of_all_lidars_and_returns_are_where_the_rays_ended(drive):
    root, true = drive
    dataset = open_dataset(f'waymo:{root}')
    assert len(dataset) == NUM_FRAMES - 1 and dataset.key(0) == f'{CONTEXT}/{START_US * 1000}'
    item = dataset[1]
    np.testing.assert_allclose(item.pair.points0, true[1].points, atol=2e-5)  # m, of float32
    np.testing.assert_allclose(item.pair.points1, true[2].points, atol=2e-5)
    assert set(true[1].laser) == set(LASERS) and true[1].is_second.any()
    expected = np.linalg.inv(WORLD.frame_pose(1)) @ WORLD.frame_pose(2)
    np.testing.assert_allclose(item.pair.ego0_T_ego1, expected, atol=1e-9)
    assert item.pair.dt == pytest.approx(PERIOD) and (len(item.pair.history), len(item.pair.future)) == (1, 2)


@pytest.mark.parametrize(
    'options, chosen',
    [
        ('lidars=top', lambda true: true.laser == 1),
        ('returns=first', lambda true: ~true.is_second),
        ('lidars=top&returns=first', lambda true: (true.laser == 1) & ~true.is_second),
    ],
)
def test_one_lidar_or_one_return_on_request(drive, options, chosen):
    root, true = drive
    points = open_dataset(f'waymo:{root}?{options}')[0].pair.points0
    np.testing.assert_allclose(points, true[0].points[chosen(true[0])], atol=2e-5)


def test_labels_are_velocities_since_the_frame_before(drive):
    root, true = drive
    dataset = open_dataset(f'waymo:{root}')
    newer = dataset.latest(0).truth  # of frame 1, back to frame 0: exact
    np.testing.assert_array_equal(newer.is_valid, ~true[1].is_unlabelled)
    valid = newer.is_valid
    np.testing.assert_allclose(newer.flow[valid], forward_flow(1, true[1], 0)[valid], atol=1e-5)
    assert true[1].is_car[valid].sum() > 30 and np.linalg.norm(newer.flow[true[1].is_car & valid], axis=1).min() > 0.5
    np.testing.assert_array_equal(newer.meta_class[valid] == MetaClass.CAR, true[1].is_car[valid])
    older = dataset[1].truth  # of frame 1: the same velocity carried on to frame 2
    np.testing.assert_allclose(older.flow[valid], -newer.flow[valid], atol=1e-5)
    car = true[1].is_car & valid
    in_world = moved(WORLD.frame_pose(1), true[1].points[car])
    np.testing.assert_allclose(older.flow[car], velocity(WORLD, 1, in_world) * PERIOD, atol=1e-5)


def test_boxes_give_the_flow_between_both_frames(drive):
    root, true = drive
    dataset = open_dataset(f'waymo:{root}?flow=boxes')
    for item, k, other in ((dataset[1], 1, 2), (dataset.latest(1), 2, 1)):
        truth, valid = item.truth, ~true[k].is_unlabelled
        np.testing.assert_array_equal(truth.is_valid, valid)
        np.testing.assert_allclose(truth.flow[valid], forward_flow(k, true[k], other)[valid], atol=1e-4)
        np.testing.assert_array_equal(truth.meta_class == MetaClass.CAR, true[k].is_car)


@pytest.mark.parametrize('ground', ['points', 'map'])
def test_ground_by_points_and_by_the_map(drive, ground):
    root, true = drive
    item = open_dataset(f'waymo:{root}?ground={ground}')[1]
    # A little above the road is ground, too; the walls and the car are not.
    on_road, above = np.abs(true[1].points[:, 2]) < 0.15, true[1].points[:, 2] > 0.6
    assert item.is_ground0[on_road].mean() > 0.5 and item.is_ground0[above].mean() < 0.1
    if ground == 'map':
        np.testing.assert_array_equal(item.is_ground0, true[1].points[:, 2] <= 0.35)  # 0.4 above the road at -0.05


def test_frames_without_labels_are_said_and_not_scored(tmp_path):
    write_waymo(tmp_path / 'a', flow=False)
    dataset = open_dataset(f'waymo:{tmp_path / "a"}')
    assert dataset[0].truth is None and dataset.latest(0).truth is None
    assert '5 of 5 frames have no scene flow labels' in '\n'.join(dataset.summary.dataset_lines())
    boxes = open_dataset(f'waymo:{tmp_path / "a"}?flow=boxes')
    assert boxes[0].truth is not None and not boxes.summary.warnings()
    write_waymo(tmp_path / 'b', boxes=False)
    assert open_dataset(f'waymo:{tmp_path / "b"}?flow=boxes')[0].truth is None


def test_a_frame_whose_second_return_has_no_labels(frame):
    data = frame_points(frame, 'frame')
    assert data.kind is not None
    calibration = field(3, field(1, 2) + field(3, -0.5) + field(4, 0.1) + field(5, transform(pose(1, 0, 1, 0))))
    cells = np.full((2, 6, 4), 5.0)
    label = field(5, matrix_float(np.zeros((2, 6, 4)) + [1, 2, 3, 4]))
    images = field(2, field(2, matrix_float(cells)) + label) + field(3, field(2, matrix_float(cells)))
    found = frame_points(
        field(1, calibration) + field(3, transform(np.eye(4))) + field(5, field(1, 2) + images), 'frame'
    )
    assert found.kind.tolist() == [4] * 12 + [-1] * 12
    np.testing.assert_array_equal(found.velocity[[0, 12]], [[1, 2, 3], [0, 0, 0]])


def test_a_cell_in_the_middle_of_a_level_image_lies_ahead():
    """Computed by hand: 4 columns have azimuths 135, 45, -45, -135 degrees; a turned sensor does not turn them."""
    points = range_image_points(np.full((1, 4), 2.0), np.zeros(1), pose(1.0, 0.0, 0.5, np.pi / 2))
    half = np.sqrt(2)
    expected = [[1 - half, half, 0.5], [1 + half, half, 0.5], [1 + half, -half, 0.5], [1 - half, -half, 0.5]]
    np.testing.assert_allclose(points[0], expected, atol=1e-12)


def _frames(tmp_path, frames):
    path = tmp_path / 'segment-x.tfrecord'
    path.write_bytes(b''.join(map(record, frames)))
    return f'waymo:{path}'


def test_cut_and_damaged_files_are_counted(tmp_path, drive):
    root, _ = drive
    [source] = root.iterdir()
    content = source.read_bytes()
    (tmp_path / 'cut.tfrecord').write_bytes(content[: -len(content) // 8])
    dataset = open_dataset(f'waymo:{tmp_path}')
    assert len(dataset) == NUM_FRAMES - 2 and dataset.skipped == {'malformed_cloud': 1}
    assert 'is cut within record 4' in '\n'.join(dataset.summary.dataset_lines())
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    (tmp_path / 'cut.tfrecord').write_bytes(damaged)
    dataset = open_dataset(f'waymo:{tmp_path}')
    with pytest.raises(DataError, match=r'cut\.tfrecord: record \d is damaged, its checksum is wrong'):
        [dataset[k] for k in range(len(dataset))]


def test_two_files_are_two_drives_and_a_bare_path_is_recognised(tmp_path, drive):
    root, _ = drive
    [source] = root.iterdir()
    content = source.read_bytes()
    frames = [write_frame(WORLD, k)[0].replace(CONTEXT.encode(), b'b' * len(CONTEXT)) for k in (0, 1)]
    (tmp_path / 'a.tfrecord').write_bytes(content)
    (tmp_path / 'b.tfrecord').write_bytes(b''.join(map(record, frames)))
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == NUM_FRAMES and dataset.key(NUM_FRAMES - 1).startswith('bbb')
    assert len(dataset[NUM_FRAMES - 1].pair.history) == 0
    (tmp_path / 'c.tfrecord').write_bytes(content)  # the same drive again
    assert open_dataset(str(tmp_path)).skipped == {'out_of_order_stamp': 1}


def _pose_of(matrix, stamp_us=START_US):
    return field(1, field(1, 'a')) + field(2, stamp_us) + field(3, transform(matrix))


@pytest.mark.parametrize(
    'data, said',
    [
        (b'', 'is no frame of the Waymo Open perception data'),
        (field(7, 1), 'is no frame'),
        (b'\xff\xff', 'an integer does not end'),
        (_pose_of(np.diag([1.0, -1, 1, 1])), 'is mirrored'),
        (_pose_of(np.eye(4) * 2), 'should be a rotation and a translation'),
        (_pose_of(np.eye(3)), 'should be 16 finite numbers'),
        (_pose_of(np.eye(4), 1553735), 'microseconds since 1970, got 1553735'),
    ],
)
def test_records_that_are_no_frames_are_refused(tmp_path, data, said):
    with pytest.raises(DataError, match=said):
        open_dataset(_frames(tmp_path, [data]))


def test_a_record_that_is_no_frame_among_frames_is_counted(tmp_path, frame):
    dataset = open_dataset(_frames(tmp_path, [frame, b'\xff', write_frame(WORLD, 1)[0]]))
    assert len(dataset) == 1 and dataset.skipped == {'malformed_cloud': 1}


def _image(cells=None, inclinations=2, poses=None, flow=None, mount=None, name=2):
    """Return a frame of one laser with a 2 x 6 range image, or with what is given instead."""
    cells = field(2, matrix_float(np.full((2, 6, 4), 5.0))) if cells is None else cells
    mount = pose(1, 0, 1, 0) if mount is None else mount
    listed = b''.join(field(2, 0.1 * k) for k in range(inclinations))
    image = cells + (b'' if poses is None else field(4, poses)) + (b'' if flow is None else field(5, flow))
    calibration = field(3, field(1, 2) + listed + field(5, transform(mount)))
    return field(1, calibration) + field(3, transform(np.eye(4))) + field(5, field(1, name) + field(2, image))


@pytest.mark.parametrize(
    'data, said',
    [
        (_image(name=3), 'SIDE_LEFT: there is no calibration'),
        (_image(inclinations=3), '2 rows of the range image have 3 beam inclinations'),
        (_image(cells=field(2, b'not zlib')), 'FRONT, range image should be compressed by zlib'),
        (_image(cells=field(2, matrix_float(np.ones((2, 6, 4)))[:-9])), 'is cut'),
        (_image(cells=field(2, matrix_float(np.ones((2, 6, 3))))), r'should be \(H, W, 4\), has the shape \[2, 6, 3\]'),
        (_image(cells=b''), 'holds no range image of the wanted LiDARs'),
        (_image(poses=matrix_float(np.ones((3, 6, 6)))), r'\(2, 6\) cells have \(3, 6\) poses'),
        (_image(flow=matrix_float(np.ones((2, 5, 4)))), r'have \(2, 5\) scene flow labels'),
        (_image(mount=np.diag([1.0, -1, 1, 1])), 'The extrinsic of frame, FRONT is mirrored'),
    ],
)
def test_damaged_range_images_are_named(data, said):
    with pytest.raises(DataError, match=said):
        frame_points(data, 'frame')


def test_the_top_lidar_needs_the_poses_of_its_cells():
    calibration = field(3, field(1, 1) + field(3, -0.5) + field(4, 0.1) + field(5, transform(pose(1, 0, 1, 0))))
    image = field(2, field(2, matrix_float(np.ones((2, 6, 4)))))
    with pytest.raises(DataError, match='TOP: the range image lacks the poses of its cells'):
        frame_points(field(1, calibration) + field(3, transform(np.eye(4))) + field(5, field(1, 1) + image), 'frame')


def test_a_box_without_a_size_is_refused():
    with pytest.raises(DataError, match="the box 'a' lacks a position or a size"):
        frame_boxes(field(6, field(1, field(1, 2.0)) + field(4, 'a')), 'frame')


@pytest.mark.parametrize(
    'options, said',
    [
        ('?lidars=front', "lidars is one of all, top, got 'front'"),
        ('?flow=none', 'flow is one of labels, boxes'),
        ('/none', 'is no TFRecord file and holds none'),
    ],
)
def test_wrong_options_say_what_there_is(drive, options, said):
    with pytest.raises(DataError, match=said):
        open_dataset(f'waymo:{drive[0]}{options}')


@pytest.mark.parametrize('flow', ['labels', 'boxes'])
def test_the_own_vehicle_is_left_out_on_request(drive, flow):
    root, true = drive
    item = open_dataset(f'waymo:{root}?flow={flow}&ego_box=-6,6,-6,6,-1,3')[1]
    inside = (np.abs(true[1].points[:, :2]) < 6).all(1) & (true[1].points[:, 2] < 3)
    assert inside.sum() > 100
    np.testing.assert_array_equal(np.isnan(item.pair.points0[:, 0]), inside)
    assert not item.truth.is_valid[inside].any() and item.truth.is_valid[~inside & ~true[1].is_unlabelled].all()


def test_a_drive_without_a_map_cannot_tell_the_ground_by_it(tmp_path):
    write_waymo(tmp_path / 'a', with_map=False)
    dataset = open_dataset(f'waymo:{tmp_path / "a"}?ground=map')
    with pytest.raises(DataError, match=r'holds no map\. Leave out ground=map'):
        dataset[0]
