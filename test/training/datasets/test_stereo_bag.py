# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs of recorded drives: frames, ego motion, boxes, and what is left out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import stereo_bag
import stereo_corridor
from stereo_bag import BASE_T_LEFT, LEFT, RIGHT, START_NS, STEP, picture, write_stereo_bag

from training.datasets import STEREO, open_dataset
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError, EgoMotionError


def read(path, rest=''):
    return open_dataset(f'stereo:{path}{rest}', (STEREO,))


@pytest.mark.parametrize('storage', ['mcap', 'rosbag1'])
def test_consecutive_frames_make_pairs_with_the_motion_of_the_camera(tmp_path, storage):
    dataset = read(write_stereo_bag(tmp_path / 'drive', storage=storage))
    assert len(dataset) == 3 and dataset.ego_motion == 'odometry' and not dataset.skipped and not dataset.warnings
    item = dataset[1]
    assert (
        item.key == f'000001_{START_NS + 10**8}' and item.dt == pytest.approx(0.1) and item.truth is item.boxes is None
    )
    for frame, number in ((item.reference, 1), (item.other, 2)):
        np.testing.assert_array_equal(frame.left, picture(number, 0))
        np.testing.assert_array_equal(frame.right, picture(number, 1))
        assert (frame.stamp_ns, frame.frame_id) == (START_NS + number * 10**8, 'left_optical')
    assert item.reference.camera.baseline == pytest.approx(stereo_bag.BASELINE)
    # The vehicle drives forward, so what stands comes closer along z of the camera.
    expected = np.eye(4)
    expected[2, 3] = -STEP
    np.testing.assert_allclose(item.other_T_reference, expected, atol=1e-9)


def test_seen_from_the_newer_frame_time_runs_back(tmp_path):
    dataset = read(write_stereo_bag(tmp_path / 'drive', 2))
    item, latest = dataset[0], dataset.latest(0)
    assert latest.dt == -item.dt and latest.key == item.key + '_latest'
    np.testing.assert_array_equal(latest.reference.left, picture(1, 0))
    np.testing.assert_allclose(latest.other_T_reference @ item.other_T_reference, np.eye(4), atol=1e-9)
    option = read(tmp_path / 'drive', '?latest=true')
    assert option.key(0) == option[0].key == option.latest(0).key == latest.key and option[0].dt == latest.dt


def test_boxes_are_in_the_frame_of_the_camera_and_have_a_velocity(tmp_path):
    bag = write_stereo_bag(tmp_path / 'drive', 3)
    # 9.5 m before the camera; drives 1 m a frame in the world, so 0.5 m further away from the vehicle.
    box = {'track_id': 1, 'category': 'Car', 'size_lwh': [4.0, 2.0, 1.5], 'yaw': 0.0}
    sweeps = [[box | {'center': [9.8 + 0.5 * k, 0.1, 1.2]}] for k in range(2)] + [
        [box | {'track_id': 2, 'center': [9, 0, 0]}]
    ]
    boxes = tmp_path / 'boxes.json'
    boxes.write_text(json.dumps({'frame': 'base_link', 'sweeps': sweeps}))
    dataset = read(bag, f'+{boxes}')
    [found] = dataset[0].boxes
    base_T_box = transforms.yaw_translation(0, *sweeps[0][0]['center'])
    np.testing.assert_allclose(BASE_T_LEFT @ found.reference_T_box, base_T_box, atol=1e-9)
    np.testing.assert_allclose(found.reference_T_box[:3, 3], [0, 0, 9.5], atol=1e-9)
    item = dataset[0]
    velocity = found.velocity(np.array([[0, 0, 9.5]]), item.other_T_reference, item.dt)
    np.testing.assert_allclose(velocity, [[0, 0, 10]], atol=1e-6)
    back = dataset.latest(0)
    velocity = back.boxes[0].velocity(np.array([[0, 0, 10.0]]), back.other_T_reference, back.dt)
    np.testing.assert_allclose(velocity, [[0, 0, 10]], atol=1e-6)
    assert dataset[1].boxes == ()  # another object


@pytest.mark.parametrize(
    'label, content, rest, said',
    [
        ('too few lists', {'frame': 'base_link', 'sweeps': [[]]}, '', 'has boxes for 1 frames, .* has 2 images on'),
        ('no frame', {'sweeps': [[], []]}, '', 'does not say in which frame its boxes are'),
        ('a frame that is not known', {'frame': 'velodyne', 'sweeps': [[], []]}, '',
         "does not connect 'velodyne', .* with 'left_optical'"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_placed_are_refused(tmp_path, label, content, rest, said):
    bag, boxes = write_stereo_bag(tmp_path / 'drive', 2), tmp_path / 'boxes.json'
    boxes.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        read(bag, f'+{boxes}{rest}')
    if 'frame' not in content:
        assert read(bag, f'+{boxes}?boxes_frame=base_link')[0].boxes == ()


def without(topic, *numbers):
    return lambda name, number, message: None if name == topic and number in numbers else message


def _stamped(topic, number, step_ns):
    def spoil(name, k, message):
        if name != topic or k != number:
            return message
        stamp = replace(message.header.stamp, nanosec=message.header.stamp.nanosec + step_ns)
        return replace(message, header=replace(message.header, stamp=stamp))

    return spoil


@pytest.mark.parametrize(
    'label, spoil, numbers, skipped',
    [
        ('nothing', lambda name, number, message: message, [0, 1, 2, 3], {}),
        ('a right image is lost', without(RIGHT, 2), [0, 1, 3], {'no_partner_image': 1}),
        ('right images are 3 ms late', _stamped(RIGHT, 2, 3_000_000), [0, 1, 2, 3], {}),
        ('a right image is of another time', _stamped(RIGHT, 2, 30_000_000), [0, 1, 3], {'no_partner_image': 2}),
        ('odometry ends early', without('/odometry', 4), [0, 1, 2], {'no_ego_motion': 1}),
    ],
)  # fmt: skip
def test_what_makes_no_pair_is_counted(tmp_path, label, spoil, numbers, skipped):
    dataset = read(write_stereo_bag(tmp_path / 'drive', 5, spoil=spoil))
    assert [int(dataset.key(index)[:6]) for index in range(len(dataset))] == numbers
    assert dataset.skipped == skipped and len(dataset.warnings) == len(skipped)


def test_ego_motion_is_that_which_the_bag_has(tmp_path):
    bag = write_stereo_bag(tmp_path / 'drive', 2, odometry=False)
    dataset = read(bag)
    assert dataset.ego_motion == 'none' and dataset[0].other_T_reference is None
    assert 'has no topic of nav_msgs/msg/Odometry' in dataset.warnings[0]
    with pytest.raises(DataError, match='has no topic of nav_msgs'):
        read(bag, '?ego_motion=odometry')
    unmounted = write_stereo_bag(tmp_path / 'unmounted', 2, mount=False)
    with pytest.raises(EgoMotionError, match="'left_optical'"):
        read(unmounted, '?ego_motion=odometry')
    assert read(unmounted).ego_motion == 'none'


@pytest.mark.parametrize(
    'label, options, rest, said',
    [
        ('no CameraInfo', {'infos': False}, '', 'lacks CameraInfo of the stereo images'),
        ('one camera', {'spoil': without(RIGHT, *range(9))}, '', 'lacks left and right images with CameraInfo'),
        ('one frame', {'num_frames': 1}, '', 'make no pair'),
        ('another topic', {}, '?topic=/front/left', 'no stereo camera with left images on /front/left. It has'),
        ('too slow', {}, '?max_dt=0.08', r'make no pair. 3 dropped \(gap_too_long\)'),
        ('no option', {}, '?topics=x', 'Known options: topic'),
    ],
)
def test_what_is_no_stereo_bag_is_said(tmp_path, label, options, rest, said):
    with pytest.raises(DataError, match=said):
        read(write_stereo_bag(tmp_path / 'drive', **options), rest)


def test_an_image_that_cannot_be_decoded_is_named_with_its_frame(tmp_path):
    def spoil(name, number, message):
        return replace(message, encoding='sepia') if name == LEFT and number == 1 else message

    with pytest.raises(DataError, match=r'frame 1: .*sepia'):
        read(write_stereo_bag(tmp_path / 'drive', 2, spoil=spoil))[0]


def test_the_real_bag_has_a_moving_van_and_cyclist(shared_data):
    bags = shared_data / 'bags'
    dataset = read(bags / 'kitti_0005_a_stereo', f'+{bags / "kitti_0005_a_boxes.json"}')
    assert len(dataset) == 59 and dataset.ego_motion == 'odometry' and not dataset.warnings
    item = dataset.latest(20)
    assert item.reference.left.shape == (375, 1242, 3)
    assert 0 < item.other_T_reference[2, 3] < 3  # of the newer frame: what stands was further away
    speeds = [
        (box.category, np.linalg.norm(box.velocity(box.reference_T_box[None, :3, 3], item.other_T_reference, item.dt)))
        for box in item.boxes
    ]
    assert 3 < dict(speeds)['Cyclist'] < 6
    assert 3 < max(speed for category, speed in speeds if category == 'Van') < 15


def swapped(number, side, original=stereo_corridor.image_message):
    message = original(number, 1 - side)
    message.header.frame_id = ('left_optical', 'right_optical')[side]
    return message


def shifted(number, side, original=stereo_corridor.image_message, rows=5):
    message = original(number, side)
    if side:
        message.data = np.roll(message.data.reshape(message.height, -1), rows, axis=0).ravel()
    return message


@pytest.mark.parametrize('spoil, said', [(swapped, 'left and right images are swapped'), (shifted, 'not rectified')])
def test_cameras_that_are_swapped_or_not_rectified_are_refused(tmp_path, monkeypatch, spoil, said):
    pytest.importorskip('cv2', reason='needs OpenCV')
    monkeypatch.setattr(stereo_corridor, 'image_message', spoil)
    with pytest.raises(DataError, match=said):
        read(stereo_corridor.write_world(tmp_path / 'drive', 3))


def test_a_small_row_error_is_a_warning(tmp_path, monkeypatch):
    pytest.importorskip('cv2', reason='needs OpenCV')
    monkeypatch.setattr(stereo_corridor, 'image_message', lambda *place: shifted(*place, rows=1))
    dataset = read(stereo_corridor.write_world(tmp_path / 'drive', 3))
    assert len(dataset) == 2 and len(dataset.warnings) == 1 and '1.0 px higher or lower' in dataset.warnings[0]


def test_cameras_in_order_have_no_warning(tmp_path):
    assert not read(stereo_corridor.write_world(tmp_path / 'drive', 3)).warnings
