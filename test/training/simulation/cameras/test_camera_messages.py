# SPDX-License-Identifier: Apache-2.0
"""A simulated bag with LiDAR and stereo camera, read by mcap's own reader and as a dataset."""

import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')
pytest.importorskip('cv2', reason='simulated images need OpenCV')

import cv2

from training import simulate
from training.datasets import STEREO, open_dataset
from training.simulation.clips import clip_stereo, read_ground_truth, simulate_clip
from zeroflow_ros import transforms

SIDES = ('left', 'right')


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp('bags') / 'street'
    arguments = ['--seed', '12', '--sweeps', '2', '--sensor', 'hdl32', '--camera', 'kitti_quarter']
    picture = path.with_name('street.png')
    assert simulate.main([*arguments, '--out', str(path), '--picture', str(picture)]) == 0
    assert cv2.imread(str(path.with_name('street_stereo.png'))).std() > 20
    return path


@pytest.fixture(scope='module')
def clip():
    return simulate_clip(12, lidar='hdl32', num_sweeps=2)


@pytest.fixture(scope='module')
def drive(clip):
    return clip_stereo(clip, 'kitti_quarter')


def test_an_unknown_camera_is_refused_at_once(tmp_path, capsys):
    arguments = ['--seed', '1', '--sweeps', '100000', '--camera', 'kiti', '--out', str(tmp_path / 'street')]
    assert simulate.main(arguments) == 1
    assert 'kitti_half' in capsys.readouterr().err and not list(tmp_path.iterdir())


def read(bag):
    """Return the messages of each topic, as mcap's reader decodes them."""
    make_reader = pytest.importorskip('mcap.reader').make_reader
    decoder = pytest.importorskip('mcap_ros2.decoder').DecoderFactory()
    found = {}
    with next(bag.glob('*.mcap')).open('rb') as file:
        for _, channel, _, message in make_reader(file, decoder_factories=[decoder]).iter_decoded_messages():
            found.setdefault(channel.topic, []).append(message)
    return found


def test_an_independent_reader_finds_what_was_rendered(bag, drive):
    messages = read(bag)
    camera = drive.rig.camera
    assert {topic: len(found) for topic, found in messages.items()} == {
        '/lidar/points': 2, '/odometry': 2, '/tf': 2, '/tf_static': 1,
        **{f'/stereo/{side}/{name}': 2 for side in SIDES for name in ('camera_info', 'image_rect_color/compressed')},
    }  # fmt: skip
    for side in SIDES:
        info, image = (messages[f'/stereo/{side}/{name}'][1] for name in ('camera_info', 'image_rect_color/compressed'))
        assert info.header.frame_id == image.header.frame_id == f'camera_{side}_optical'
        stamps = [one.header.stamp.nanosec for one in (info, image, messages['/lidar/points'][1])]
        assert stamps == [100_000_000] * 3
        projection = np.reshape(info.p, (3, 4))
        assert (info.width, info.height) == (camera.width, camera.height)
        assert projection[0, 0] == info.k[0] == camera.fx and projection[1, 2] == camera.cy
        assert projection[0, 3] == pytest.approx(-camera.fx * camera.baseline * (side == 'right'))
        pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
        rendered = getattr(drive.frame(1), side)
        # Of 255: JPEG of quality 95
        assert pixels.shape == rendered.shape and np.abs(pixels[..., ::-1].astype(float) - rendered).mean() < 4


def test_transforms_lead_from_the_lidar_to_the_cameras(bag, clip, drive):
    found = read(bag)['/tf_static'][0].transforms
    poses = {}
    for transform in found:
        assert transform.header.frame_id == 'lidar'
        p, q = transform.transform.translation, transform.transform.rotation
        pose = transforms.from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        poses[transform.child_frame_id] = pose
    left, right = (poses[f'camera_{side}_optical'] for side in SIDES)
    np.testing.assert_allclose((transforms.invert(left) @ right)[:3, 3], [drive.rig.camera.baseline, 0, 0], atol=1e-9)
    assert left[2, 3] == pytest.approx(drive.rig.base_T_left[2, 3] - clip.lidar_height)


def test_lidar_and_camera_see_the_same_surfaces(bag, clip, drive):
    """Points of the LiDAR, seen by the left camera, have the depth of its pixels."""
    truth, frame = read_ground_truth(bag)[0], drive.frame(0)
    sweep = clip.sweeps[0]
    np.testing.assert_array_equal(truth.instance, sweep.instance)
    in_odom = transforms.apply(sweep.odom_T_lidar, sweep.points.astype(np.float64))
    points = transforms.apply(transforms.invert(frame.odom_T_left), in_odom)
    pixels, disparity = drive.rig.camera.project(points)
    on_image = (
        (points[:, 2] > 1) & (pixels > 0).all(axis=1) & (pixels < np.array(frame.body.shape[::-1]) - 1).all(axis=1)
    )
    u, v = np.round(pixels[on_image]).astype(int).T
    close = np.abs(frame.disparity[v, u] - disparity[on_image]) < 0.3
    same_actor = frame.body[v, u] == np.maximum(sweep.instance[on_image] + 1, 0)
    # The rest are edges, leaves, and what the LiDAR sees over and beside the camera.
    assert on_image.sum() > 1000 and close.mean() > 0.8 and same_actor.mean() > 0.9


def test_the_bag_is_a_dataset_of_stereo_pairs(bag, drive):
    pair = open_dataset(f'stereo:{bag}', (STEREO,))[0]
    assert pair.reference.camera.baseline == pytest.approx(drive.rig.camera.baseline)
    other_T_reference = transforms.invert(drive.odom_T_left(1)) @ drive.odom_T_left(0)
    # 0.1 mm: quaternions of the messages
    np.testing.assert_allclose(pair.other_T_reference, other_T_reference, atol=1e-4)
