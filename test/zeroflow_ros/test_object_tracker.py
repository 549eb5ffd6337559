# SPDX-License-Identifier: Apache-2.0
"""The object tracker as users meet it: a process, real DDS, and a drive whose objects are known."""

import signal

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from driving_car import CAR_SPEED, car  # noqa: E402
from flow_node import cloud, spin_until, stamp_of  # noqa: E402
from processes import DOMAIN_ID, ROOT, run, started  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402
from visualization_msgs.msg import MarkerArray  # noqa: E402

from training.datasets.ground_truth_objects import box_objects, count_points  # noqa: E402
from training.datasets.tracked_boxes import TrackedBoxes  # noqa: E402
from training.scoring.tracking_metrics import TrackingMetrics  # noqa: E402
from zeroflow_ros.bags.bag import Bag  # noqa: E402
from zeroflow_ros.bags.cdr import ODOMETRY, POINT_CLOUD, decode_message  # noqa: E402
from zeroflow_ros.ego_motion.odometry_track import odometry_pose  # noqa: E402
from zeroflow_ros.lidar.point_cloud import decode_cloud  # noqa: E402
from zeroflow_ros.objects.tracker import MovingObject  # noqa: E402
from zeroflow_ros.ros.object_markers import BOXES, VELOCITY  # noqa: E402

OBJECTS, DYNAMIC_POINTS = '/object_tracker/output/objects', '/flow_node/output/dynamic_points'


class Consumer:
    """Listens to a tracker, as a planner would, and may talk to it as the flow node does."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN_ID)
        self.node = rclpy.create_node(f'consumer_{id(self)}', context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.objects: dict[int, list[MovingObject]] = {}  # by stamp [ns]; of sweeps that have some
        self.arrays, self.statuses = 0, {}
        self.clouds_out = self.node.create_publisher(PointCloud2, '/object_tracker/input/dynamic_points', 10)
        self.node.create_subscription(MarkerArray, OBJECTS, self._on_objects, 10)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def _on_objects(self, msg):
        self.arrays += 1
        arrows = {marker.id: marker for marker in msg.markers if marker.ns == VELOCITY}
        for box in (marker for marker in msg.markers if marker.ns == BOXES):
            p, q, s = box.pose.position, box.pose.orientation, box.scale
            tail, head = arrows[box.id].points
            velocity = np.array([head.x - tail.x, head.y - tail.y, head.z - tail.z])
            yaw = 2 * float(np.arctan2(q.z, q.w))
            found = MovingObject(box.id, np.array([p.x, p.y, p.z]), np.array([s.x, s.y, s.z]), yaw, velocity, 0.0, 0)
            self.objects.setdefault(stamp_of(box), []).append(found)

    def _on_diagnostics(self, msg):
        self.statuses |= {s.name: (s, {v.key: v.value for v in s.values}) for s in msg.status}

    def wait_for(self, predicate, timeout=20.0):
        return spin_until(self._executor, predicate, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def test_what_moves_comes_out_as_markers_and_bad_clouds_do_no_harm():
    with started('object_tracker', '--ros-args', '-p', 'ego_motion:=none') as tracker, Consumer() as consumer:
        assert consumer.wait_for(lambda: consumer.clouds_out.get_subscription_count() and consumer.statuses)
        bad = [cloud(np.ones((5, 3)), 10**9)] * 3  # no velocity
        count = lambda: consumer.statuses['object_tracker: input'][1]['dropped.malformed_cloud']  # noqa: E731
        broken = PointCloud2(height=9, width=10**9, point_step=16)  # contradicts itself
        for number, msg in enumerate((*bad, broken), 1):
            consumer.clouds_out.publish(msg)
            assert consumer.wait_for(lambda number=number: count() == str(number), 8), consumer.statuses
        status, _ = consumer.statuses['object_tracker: input']
        assert status.level == b'\x02' and 'rows shorter than their points' in status.message
        for k in range(8):
            consumer.clouds_out.publish(car(k, stamp_ns=(100 + k) * 10**8, ego_speed=0.0))
            assert consumer.wait_for(lambda k=k: consumer.arrays == k + 1, 10)
        (found,) = consumer.objects[107 * 10**8]
        assert found.velocity[0] == pytest.approx(CAR_SPEED, abs=0.2)
        assert len({each.track_id for objects in consumer.objects.values() for each in objects}) == 1
        tracker.send_signal(signal.SIGINT)
        text, _ = tracker.communicate(timeout=10)
    assert tracker.returncode == 0 and 'Traceback' not in text, text
    assert 1 <= text.count('must have vx, vy and vz') <= 2, 'at most every five seconds'
    assert f'Publishing the objects in /object_tracker/input/dynamic_points on {OBJECTS}' in text


@pytest.mark.parametrize(
    'args, said',
    [
        (['-p', 'confirm_hit:=3'], ["'confirm_hit'", "'confirm_hits'"]),
        (['-p', 'min_travel:=1'], ['a double', 'like 1.0']),
        (['-p', 'coast_s:=-1.0'], ['from 0.0 to 5.0']),
        (['-p', 'ego_motion:=tf', '-p', "fixed_frame:=''"], ['fixed_frame']),
        (['--params-file', 'nowhere.yaml'], ['nowhere.yaml']),
    ],
)
def test_bad_start_is_one_fatal_line_and_exit_code_1(args, said):
    code, text = run('object_tracker', '--ros-args', *args)
    lines = [line for line in text.splitlines() if 'FATAL' in line]
    assert code == 1 and len(lines) == 1 and 'Traceback' not in text, text
    assert all(part in lines[0] for part in said), lines


def test_help_and_unknown_arguments():
    code, text = run('object_tracker', '--help')
    assert code == 0 and 'ros2 run zeroflow_ros object_tracker' in text
    code, text = run('object_tracker', 'points.bag')
    assert code == 1 and '--ros-args' in text and 'Traceback' not in text


def known_objects(bag_path, boxes: TrackedBoxes):
    """Return the true objects of each sweep by its stamp [ns]."""
    stamps, poses, num_points = [], {}, {}
    with Bag(bag_path) as bag:
        moved = dict(odometry_pose(decode_message(m.cdr, ODOMETRY)) for m in bag.messages([bag.odometry_topic()]))
        for number, recorded in enumerate(bag.messages([bag.point_cloud_topic()])):
            sweep = decode_cloud(decode_message(recorded.cdr, POINT_CLOUD))
            nearest = min(moved, key=lambda stamp_ns: abs(stamp_ns - sweep.stamp_ns))
            stamps.append(sweep.stamp_ns)
            poses[number] = sweep.stamp_ns * 1e-9, moved[nearest]
            num_points[number] = count_points(sweep.points, boxes.sweeps[number])
    truths = box_objects(boxes, poses, num_points)
    return {stamp_ns: truths[number] for number, stamp_ns in enumerate(stamps)}


def test_a_recorded_drive_through_player_node_and_tracker(shared_data, monkeypatch):
    """The floors are half of what a quiet machine gets; a busy one loses sweeps. docs/benchmarks.md has the figures."""
    for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        monkeypatch.setenv(variable, str(ROOT / 'config/fastdds_shm.xml'))  # as the launch files do
    bag = shared_data / 'bags' / 'kitti_0005_a'
    boxes = TrackedBoxes.read(shared_data / 'bags' / 'kitti_0005_a_boxes.json')
    truths = known_objects(bag, boxes)
    odometry = ['-r', '~/input/odometry:=/odometry']
    with (
        started('node', '--ros-args', '-r', '~/input/pointcloud:=/velodyne_points', *odometry) as node,
        started('object_tracker', '--ros-args', '-r', f'~/input/dynamic_points:={DYNAMIC_POINTS}', *odometry),
        Consumer() as consumer,
    ):
        graph = consumer.node

        def ready():
            published = all(graph.count_publishers(topic) for topic in (DYNAMIC_POINTS, OBJECTS))
            return published and all(graph.count_subscribers(t) for t in (DYNAMIC_POINTS, '/velodyne_points'))

        assert consumer.wait_for(ready, 60), node.poll()
        with started('replay', bag, '--rate', 0.3, '--wait-for-subscribers', 1) as replay:
            assert consumer.wait_for(lambda: replay.poll() is not None, 90)
            consumer.wait_for(lambda: False, 1.0)
    scores = TrackingMetrics()
    for stamp_ns, truth in list(truths.items())[1:]:
        objects = consumer.objects.get(stamp_ns, [])
        known = boxes.is_in_image(np.array([each.center for each in objects]).reshape(-1, 3))
        scores.add('drive', stamp_ns * 1e-9, [o for o, k in zip(objects, known, strict=True) if k], truth)
    report = scores.report()
    print(f'{consumer.arrays} sweeps with objects or none: {report}')
    assert consumer.arrays > 20, report
    assert report['recall'] > 0.3 and report['settled_recall'] > 0.4, report
    assert report['false_per_sweep'] < 2.0 and report['velocity_error_median'] < 1.3, report
