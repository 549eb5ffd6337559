# SPDX-License-Identifier: Apache-2.0
"""A bag of a stereo camera through the programs: played, computed by the demo, and its objects tracked."""

import json
import threading

import numpy as np
import pytest
from processes import DOMAIN_ID, run
from stereo_corridor import EGO_SPEED, LEFT, MOVER, MOVER_SPEED, RIGHT, write_world
from tiny_bag import write_bag

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')
pytest.importorskip('cv2', reason='needs OpenCV')
pytest.importorskip('matplotlib', reason='needs matplotlib')

from sensor_msgs.msg import CameraInfo, Image  # noqa: E402

from zeroflow_ros.bags.bag import Bag  # noqa: E402
from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow  # noqa: E402
from zeroflow_ros.camera.pixel_cloud import moving_pixels  # noqa: E402
from zeroflow_ros.errors import DataError  # noqa: E402
from zeroflow_ros.objects.tracker import Tracker  # noqa: E402
from zeroflow_ros.replay import Player  # noqa: E402
from zeroflow_ros.runtime.camera_offline import CAMERA_FLOW_TOPIC, OfflineCameraFlow  # noqa: E402
from zeroflow_ros.runtime.demo_source import CameraSource, Source, examine  # noqa: E402

IMAGES = [f'{LEFT}/image_rect', f'{RIGHT}/image_rect']


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp('world') / 'drive', 12)


@pytest.fixture
def context():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    yield context
    rclpy.shutdown(context=context)


def test_images_are_played_with_their_camera_info(path, context):
    node = rclpy.create_node('listener', context=context, start_parameter_services=False)
    received = {'image': [], 'info': []}
    node.create_subscription(Image, IMAGES[0], lambda raw: received['image'].append(bytes(raw)), 50, raw=True)
    node.create_subscription(CameraInfo, f'{LEFT}/camera_info', lambda raw: received['info'].append(raw), 50, raw=True)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    player_node = rclpy.create_node('player', context=context, start_parameter_services=False)
    with Bag(path) as bag:
        player = Player(player_node, bag, rate=4.0, duration=0.45)
        assert sorted(player.sensors) == sorted(IMAGES) and player.noun == 'images'
        done = threading.Event()

        def play():
            while node.count_publishers(IMAGES[0]) == 0 or player._publishers[IMAGES[0]].get_subscription_count() == 0:
                if done.wait(0.02):
                    return
            player.play()

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        for _ in range(2000):
            executor.spin_once(timeout_sec=0.02)
            if not thread.is_alive() and len(received['image']) >= 5 and len(received['info']) >= 5:
                break
        done.set()
        thread.join(5)
        first = bytes(bag.first(IMAGES[0]).cdr)
        report = player.report()
    assert len(received['image']) == len(received['info']) == 5
    assert received['image'][0][: len(first)] == first
    assert report['sweeps_played'] == player.num_sweeps == 5 and len(report['sweeps']) == 10


def test_clouds_come_first_and_what_is_missing_is_said(path, tmp_path, context):
    node = rclpy.create_node('player', context=context, start_parameter_services=False)
    with Bag(path) as bag:
        assert Player(node, bag, topics=IMAGES[:1]).sensors == IMAGES[:1]
        with pytest.raises(DataError, match='named /other'):
            Player(node, bag, topics=['/other'])
    with Bag(write_bag(tmp_path / 'clouds', num_sweeps=2)) as bag:
        assert Player(node, bag).noun == 'sweeps'


def test_the_demo_knows_what_a_bag_holds(path, tmp_path):
    found = examine(path)
    assert isinstance(found, CameraSource) and (found.topic, found.num_sweeps) == (IMAGES[0], 12)
    assert found.ego_motion == 'odometry' and len(found.odometry_T_camera) == 7
    assert examine(path, ego_motion='visual').odometry_topic == ''
    without = examine(write_world(tmp_path / 'without', 2, odometry=False))
    assert without.ego_motion == 'visual' and 'no topic of nav_msgs' in without.note
    assert isinstance(examine(write_bag(tmp_path / 'clouds', num_sweeps=2)), Source)


def test_the_demo_goes_from_a_stereo_bag_to_a_report_a_recording_and_a_picture(path, tmp_path):
    out = tmp_path / 'out'
    code, text = run('demo', '--bag', path, '--out', out, '--rate', 0.25, timeout=120)
    assert code == 0, text
    report = json.loads((out / 'report.json').read_text())
    assert (report['sweeps_played'], report['ego_motion']) == (12, 'odometry') and report['flow_published'] > 0
    assert report['flow_published'] + sum(report['dropped'].values()) == 12, report['dropped']
    assert {'decode', 'estimate', 'velocity', 'publish', 'node', 'end_to_end'} <= set(report['latency_ms'])
    assert report['latency_ms']['estimate']['count'] == report['flow_published']
    assert '12 stereo frames played' in text and report['moving_points'] > 0
    with Bag(out / 'flow.mcap') as bag:
        counts = {topic.name: topic.num_messages for topic in bag.topics}
    assert counts[CAMERA_FLOW_TOPIC] == report['flow_published']
    assert (out / 'flow.png').read_bytes().startswith(b'\x89PNG')


def test_the_object_tracker_works_on_clouds_with_z_up(path):
    """The board moves to the right at 2 m/s while the camera drives forward; base_link has z up."""
    tracker, seen, base0_T_base1 = Tracker(), [], np.eye(4)
    base0_T_base1[0, 3] = EGO_SPEED * 0.1  # base_link drives along its x
    with Bag(path) as bag:
        flow = OfflineCameraFlow(bag, ClassicalStereoFlow(), ego_motion='odometry', output_frame='base_link')
        for result in flow:
            if result.estimate is not None:
                points, velocity = flow.output.moved(result.estimate.points, result.estimate.velocity)
                points, velocity = points.reshape(-1, 3), velocity.reshape(-1, 3)
                rows = moving_pixels(velocity, result.estimate.speed_sigma.ravel(), 0.4, 3.0)
                seen.append(tracker.update(points[rows], velocity[rows], base0_T_base1, 0.1))
    (board,) = [objects for objects in seen if objects][-1]  # it leaves the image at the end
    assert {one.track_id for objects in seen for one in objects} == {board.track_id}
    np.testing.assert_allclose(board.velocity[:2], [0, -MOVER_SPEED], atol=0.4)
    assert board.size[1:].max() < 1.5 and board.center[2] == pytest.approx(1.2, abs=0.3)
    assert MOVER - 1 < board.center[0] < MOVER + 0.5
