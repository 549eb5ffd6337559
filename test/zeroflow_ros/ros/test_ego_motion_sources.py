# SPDX-License-Identifier: Apache-2.0
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import scene  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402

from zeroflow_ros import transforms  # noqa: E402
from zeroflow_ros.errors import ConfigError, EgoMotionError  # noqa: E402
from zeroflow_ros.lidar.sweep import Sweep  # noqa: E402
from zeroflow_ros.ros.ego_motion_sources import ODOMETRY_TOPIC, NoMotion, OdometryMotion, TfMotion, open_ego_motion  # noqa: E402
from zeroflow_ros.ros.parameters import Parameters  # noqa: E402
from zeroflow_ros.runtime.health import Health  # noqa: E402

S = 1_000_000_000
T0 = 1_700_000_000 * S
DT_NS = S // 10
NO_POINTS = np.zeros((0, 3), np.float32)
try:
    import tf2_ros
except ImportError:
    tf2_ros = None
needs_tf2 = pytest.mark.skipif(tf2_ros is None, reason='tf2_ros is not installed')


def sweep(k, frame_id='lidar', points=NO_POINTS):
    return Sweep(points, T0 + k * DT_NS, frame_id)


class Ros:
    """One node whose callbacks run in a thread, as in the flow node."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('flow_node', context=self.context)
        self.lines = []
        self.health = Health(lambda severity, text: self.lines.append((severity, text)))
        self.out = self.node.create_publisher(Odometry, ODOMETRY_TOPIC, 10)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def close(self):
        rclpy.shutdown(context=self.context)
        self._thread.join(5)
        self.node.destroy_node()

    def odometry(self, odometry_T_lidar=None):
        """Return a connected source."""
        motion = OdometryMotion(self.node, odometry_T_lidar, self.health)
        self.until(self.out.get_subscription_count)
        return motion

    def drive(self, k, pose=None, child_frame='', quaternion=None):
        """Publish a pose at k tenths of a second."""
        pose = np.eye(4) if pose is None else pose
        msg = Odometry(child_frame_id=child_frame)
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(T0 + round(k * DT_NS), S)
        p, o = msg.pose.pose.position, msg.pose.pose.orientation
        p.x, p.y, p.z = pose[:3, 3].tolist()
        o.x, o.y, o.z, o.w = transforms.to_quaternion(pose).tolist() if quaternion is None else quaternion
        self.out.publish(msg)

    def until(self, predicate, timeout=10):
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def ros():
    ros = Ros()
    yield ros
    ros.close()


def between(motion, sweep0, sweep1, timeout=5.0, offset_ns=0):
    return motion.between(sweep0, sweep1, timeout=timeout, offset_ns=offset_ns)


POSE0 = transforms.yaw_translation(0.3, 10, -4)
EGO0_T_EGO1 = transforms.yaw_translation(0.05, 1.2, 0.1)
POSE1 = POSE0 @ EGO0_T_EGO1


def test_odometry_gives_the_motion_of_the_sensor(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0)
    ros.drive(1, POSE1)
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)  # [m]: doubles


def test_odometry_that_comes_later_than_its_cloud_is_waited_for(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0)
    late = threading.Timer(0.15, ros.drive, (1, POSE1))
    late.start()
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)
    late.join()


def test_odometry_between_stamps_is_interpolated_and_the_offset_counts(ros):
    motion = ros.odometry()
    for k in range(4):
        ros.drive(k - 0.25, transforms.yaw_translation(0, k - 0.25, 0))
    ego0_T_ego1 = between(motion, sweep(0), sweep(1), offset_ns=DT_NS)
    np.testing.assert_allclose(ego0_T_ego1, transforms.yaw_translation(0, 1, 0), atol=1e-9)


def test_odometry_within_a_sweep_is_waited_for_and_turns_with_the_sensor(ros):
    odometry_T_lidar = transforms.yaw_translation(np.pi / 2, 2, 0, 1.7)
    motion = ros.odometry(odometry_T_lidar)
    ros.drive(0, POSE0)
    ros.drive(1, POSE1)
    late = threading.Timer(0.15, ros.drive, (2, POSE1 @ EGO0_T_EGO1))
    late.start()
    offsets_ns = np.array([-DT_NS, -DT_NS // 2, 0, DT_NS])
    ego_T_then = motion.poses_at_offsets(sweep(1), sweep(0), offsets_ns, timeout=5.0, offset_ns=0)
    late.join()
    half = transforms.interpolate(np.eye(4), transforms.invert(EGO0_T_EGO1), 0.5)
    lidar_T_odometry = transforms.invert(odometry_T_lidar)
    for found, child in zip(ego_T_then, (transforms.invert(EGO0_T_EGO1), half, np.eye(4), EGO0_T_EGO1), strict=True):
        np.testing.assert_allclose(found, lidar_T_odometry @ child @ odometry_T_lidar, atol=1e-9)


def test_odometry_that_does_not_reach_the_end_of_a_sweep_is_an_error(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0)
    ros.drive(1, POSE1)
    with pytest.raises(EgoMotionError, match=r'needs a pose at 1700000000\.200000000 s.*odometry topic'):
        motion.poses_at_offsets(sweep(1), sweep(0), np.array([0, DT_NS]), timeout=0.05, offset_ns=0)


def test_a_sensor_that_stands_still_is_not_deskewed():
    poses = NoMotion().poses_at_offsets(sweep(1), sweep(0), np.array([0, DT_NS]), timeout=0.0, offset_ns=0)
    np.testing.assert_array_equal(poses, [np.eye(4)] * 2)


@pytest.mark.parametrize('frames', [('', 'lidar'), ('lidar', 'lidar'), ('/lidar', 'lidar'), ('base', '')])
def test_frames_that_say_the_same_need_no_extrinsic(ros, frames):
    motion = ros.odometry()
    for k, pose in enumerate((POSE0, POSE1)):
        ros.drive(k, pose, child_frame=frames[0])
    np.testing.assert_allclose(between(motion, sweep(0, frames[1]), sweep(1, frames[1])), EGO0_T_EGO1, atol=1e-9)


def test_extrinsic_of_the_user_is_applied(ros):
    odometry_T_lidar = transforms.yaw_translation(np.pi / 2, 2, 0, 1.7)  # looks to the left, 2 m ahead of the axle
    motion = ros.odometry(odometry_T_lidar)
    turn = transforms.yaw_translation(0.1, 0, 0)
    ros.drive(0, np.eye(4), 'base')
    ros.drive(1, turn, 'base')
    ego0_T_ego1 = between(motion, sweep(0), sweep(1))
    # Turning on the spot by 0.1 moves the sensor by about 0.2 m to the left: forward, as the sensor sees it.
    assert ego0_T_ego1[:3, 3] == pytest.approx([2 * np.sin(0.1), 2 * (1 - np.cos(0.1)), 0], abs=1e-9)


@pytest.mark.skipif(tf2_ros is not None, reason='tf2_ros is installed, so the extrinsic can be looked up')
def test_unknown_extrinsic_is_an_error_that_names_the_parameter(ros):
    motion = ros.odometry()
    for k, pose in enumerate((POSE0, POSE1)):
        ros.drive(k, pose, 'base_link')
    with pytest.raises(EgoMotionError, match=r"'base_link'.*'lidar'.*odometry_T_lidar"):
        between(motion, sweep(0), sweep(1))


def test_no_odometry_is_an_error_that_names_topic_and_both_times(ros):
    motion = ros.odometry()
    start = time.monotonic()
    with pytest.raises(EgoMotionError) as error:
        between(motion, sweep(0), sweep(1), timeout=0.05)
    assert 0.05 <= time.monotonic() - start < 2
    for text in ('1700000000.000000000', '1700000000.100000000', '/flow_node/input/odometry'):
        assert text in str(error.value)


def test_pose_that_is_none_is_left_out_and_reported(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0)
    ros.drive(0.5, quaternion=(0.0, 0.0, 0.0, 0.0))
    ros.drive(0.6, quaternion=(float('nan'), 0.0, 0.0, 1.0))
    ros.drive(1, POSE1)
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)
    assert [severity for severity, _ in ros.lines] == ['warning'] and 'quaternion' in ros.lines[0][1]
    assert next(s for s in ros.health.statuses() if s.part == 'ego_motion').level == 2


def test_quaternion_of_another_length_is_normalised(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0, quaternion=(2 * transforms.to_quaternion(POSE0)).tolist())
    ros.drive(1, POSE1)
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)


@pytest.mark.parametrize('odometry_first', [True, False])
def test_bag_loop_forgets_the_old_lap_and_keeps_the_new_one(ros, odometry_first):
    motion = ros.odometry()
    for k in range(50, 60):
        ros.drive(k, transforms.yaw_translation(0, 3 * k, 0))
    between(motion, sweep(58), sweep(59))
    if odometry_first:
        ros.drive(0, POSE0)
        ros.until(lambda: motion._odometry.track.latest_stamp_ns == T0)
    motion.reset(T0)
    if not odometry_first:
        ros.drive(0, POSE0)
    ros.drive(1, POSE1)
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)


def test_other_child_frame_does_not_continue_the_trajectory(ros):
    motion = ros.odometry()
    ros.drive(0, POSE0, 'lidar')
    ros.drive(1, POSE1, '')
    with pytest.raises(EgoMotionError):
        between(motion, sweep(0), sweep(1), timeout=0.2)


def test_none_is_identity(ros):
    motion = open_ego_motion(ros.node, Parameters(ego_motion='none'), ros.health)
    assert isinstance(motion, NoMotion)
    np.testing.assert_array_equal(between(motion, sweep(0), sweep(1)), np.eye(4))


def test_registration_sees_the_motion(ros):
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    motion = open_ego_motion(ros.node, Parameters(ego_motion='registration'), ros.health)
    rng = np.random.default_rng(0)
    corner = np.c_[np.full(6000, 25.0), rng.uniform(-25, 25, 6000), rng.uniform(-2, 4, 6000)]
    world = np.concatenate([scene(num_points=24000), corner.astype(np.float32)])
    moved = transforms.apply(transforms.invert(EGO0_T_EGO1), world)
    ego0_T_ego1 = between(motion, sweep(0, points=world), sweep(1, points=moved))
    np.testing.assert_allclose(ego0_T_ego1, EGO0_T_EGO1, atol=0.03)  # [m]: the voxel grid samples differently
    motion.reset(T0)
    with pytest.raises(EgoMotionError):
        between(motion, sweep(0), sweep(1))


@pytest.mark.skipif(tf2_ros is not None, reason='tf2_ros is installed')
def test_tf_without_tf2_is_an_error_that_says_what_to_install(ros):
    with pytest.raises(ConfigError, match=r'tf2_ros.*odometry or registration'):
        TfMotion(ros.node, 'odom', ros.health)


@needs_tf2
def test_tf_is_looked_up_between_the_stamps_through_the_fixed_frame(ros):
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage

    out = ros.node.create_publisher(TFMessage, '/tf', 10)
    motion = open_ego_motion(ros.node, Parameters(ego_motion='tf'), ros.health)
    ros.until(out.get_subscription_count)
    for k, pose in enumerate((POSE0, POSE1)):
        msg = TransformStamped(child_frame_id='lidar')
        msg.header.frame_id = 'odom'
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(T0 + k * DT_NS, S)
        t, q = msg.transform.translation, msg.transform.rotation
        t.x, t.y, t.z = pose[:3, 3].tolist()
        q.x, q.y, q.z, q.w = transforms.to_quaternion(pose).tolist()
        out.publish(TFMessage(transforms=[msg]))
    np.testing.assert_allclose(between(motion, sweep(0), sweep(1)), EGO0_T_EGO1, atol=1e-9)
    with pytest.raises(EgoMotionError, match='frame_id'):
        between(motion, sweep(0, ''), sweep(1, ''))
    with pytest.raises(EgoMotionError, match=r"from 'lidar' at 1700000000.2.*to 'lidar' at 1700000000.1.*'odom'"):
        between(motion, sweep(1), sweep(2), timeout=0.05)
    motion.reset(T0)
    with pytest.raises(EgoMotionError):
        between(motion, sweep(0), sweep(1), timeout=0.05)
    motion.close()


@pytest.mark.parametrize(('clock', 'says'), [(37.0, 'difference of 37.0'), (-2.0, 'difference of 2.0')])
def test_odometry_on_another_clock_is_a_warning_that_names_the_difference(ros, clock, says):
    motion, offset = ros.odometry(), round(clock * 10)
    for k in range(8):
        ros.drive(k, transforms.yaw_translation(0, 0.5 * k, 0))
        ros.until(lambda k=k: (motion._odometry.track.latest_stamp_ns or 0) >= T0 + k * DT_NS)
        error = None
        try:
            between(motion, sweep(k - 1 + offset), sweep(k + offset), timeout=0.0)
        except EgoMotionError as raised:
            error = str(raised)
    assert error is not None and 'different clocks' in error and re.search(says, error)
    assert 'stamp_offset_s' in error and 'PTP' in error
    assert any('different clocks' in text for _, text in ros.lines)


def test_registration_that_fails_names_the_odometry_on_the_graph(ros):
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    motion = open_ego_motion(ros.node, Parameters(ego_motion='registration'), ros.health)
    with pytest.raises(EgoMotionError, match=r'Odometry is published on /flow_node/input/odometry: set ego_motion'):
        between(motion, sweep(0), sweep(1))


class Mounted:
    """What tf knows of a mount; tf2_msgs cannot be installed here."""

    def __init__(self, pose=None, obstacle=''):
        self.pose, self.reason = pose, obstacle

    def lookup(self, target, source):
        return self.pose

    def obstacle(self, target, source):
        return self.reason

    def close(self):
        pass


def test_a_mount_of_tf_turns_the_motion_of_the_odometry_and_one_that_changes_does_not(ros):
    motion = ros.odometry()
    mount = transforms.yaw_translation(np.pi / 2, 2, 0, 1.7)
    motion._mount = Mounted(mount)
    ros.drive(0, np.eye(4), 'base')
    ros.drive(1, transforms.yaw_translation(0.1, 0, 0), 'base')
    assert between(motion, sweep(0), sweep(1))[:3, 3] == pytest.approx([2 * np.sin(0.1), 2 * (1 - np.cos(0.1)), 0])
    motion._mount = Mounted(obstacle="the transform from 'lidar' to 'base' on /tf changes")
    with pytest.raises(EgoMotionError, match=r'tf connects them, but the transform .* changes.*set ego_motion to tf'):
        between(motion, sweep(0), sweep(1), timeout=0.05)


class Tf2:
    """A buffer of tf2, which cannot be installed here, whose newest transform is `ahead` seconds after the clouds."""

    def __init__(self, ahead, finds):
        self.buffer, self.ahead, self.finds, self.now_ns = self, ahead, finds, T0

    def lookup(self, target, target_ns, source, source_ns, fixed, timeout):
        self.now_ns = source_ns
        if not self.finds:
            raise EgoMotionError('tf has no transform.')
        return EGO0_T_EGO1

    def get_latest_common_time(self, target, source):
        return SimpleNamespace(nanoseconds=self.now_ns + round(self.ahead * S))


@pytest.mark.parametrize(('ahead', 'finds', 'warns'), [(0.02, True, False), (2.0, True, True), (-37.0, False, True)])
def test_tf_on_another_clock_is_a_warning(monkeypatch, ahead, finds, warns):
    monkeypatch.setattr('zeroflow_ros.ros.ego_motion_sources.TfBuffer', lambda node: Tf2(ahead, finds))
    lines, errors = [], []
    motion = TfMotion(None, 'odom', Health(lambda severity, text: lines.append(text)))
    for k in range(8):
        try:
            between(motion, sweep(k), sweep(k + 1))
        except EgoMotionError as error:
            errors.append(str(error))
    assert any('Clouds and tf have different clocks' in line for line in lines) == warns
    assert bool(errors) != finds and all('different clocks' in error for error in errors[4:])
