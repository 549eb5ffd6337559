# SPDX-License-Identifier: Apache-2.0
"""The mount of the sensor over real DDS."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import NodeProcess, Vehicle, cloud, column, scene  # noqa: E402

from zeroflow_ros import transforms  # noqa: E402
from zeroflow_ros.ros.sensor_mount import Bursts, MountTransforms, SensorMount  # noqa: E402

S = 1_000_000_000
ROLL = np.radians(150)  # nearly upside down
SENSOR_R_LEVEL = transforms.rotation_matrix([-ROLL, 0, 0]).astype(np.float32)
BASE_T_LIDAR = [0.0, 0.0, 1.8, float(np.sin(ROLL / 2)), 0.0, 0.0, float(np.cos(ROLL / 2))]


def drive_past(vehicle, turn):
    """Send two sweeps of a car that moves 1 m in 0.1 s; return the flow of the second, its first row a point of it."""
    stamp_ns = time.time_ns() - S // 10
    for k in range(2):
        points = scene(num_points=6000)
        car = points[:, 1] > 1.9
        car &= points[:, 1] < 4.1
        car[:4000] = False
        points[car, 0] += k
        vehicle.send(cloud(points @ turn.T, stamp_ns + k * S // 10))
        vehicle.spin(0.1)
    flow = vehicle.flow_of(stamp_ns + S // 10)
    assert flow is not None
    velocity = np.stack([column(flow, name) for name in ('vx', 'vy', 'vz')], axis=1) @ turn
    return velocity, velocity[car].mean(axis=0)


def facts_when(vehicle, predicate):
    status = vehicle.status('input', lambda status, values: predicate(values))
    assert status, vehicle.statuses.get('input')
    return {v.key: v.value for v in status.values}, status


def test_a_sensor_that_hangs_upside_down_sees_what_a_level_one_sees():
    pose = f'[{",".join(map(str, BASE_T_LIDAR))}]'
    with NodeProcess('-p', 'ego_motion:=none', '-p', f'base_T_lidar:={pose}') as node, Vehicle() as vehicle:
        vehicle.connect(node)
        tilted, of_car = drive_past(vehicle, SENSOR_R_LEVEL)
        facts, _ = facts_when(vehicle, lambda values: 'tilt_from' in values)
    assert (facts['tilt_from'], facts['roll_deg'], float(facts['pitch_deg'])) == ('mount', '150.0', 0)
    assert float(facts['sensor_height_m']) == pytest.approx(1.8, abs=0.05)
    with NodeProcess('-p', 'ego_motion:=none') as node, Vehicle() as vehicle:
        vehicle.connect(node)
        level, of_level_car = drive_past(vehicle, np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(of_car, of_level_car, atol=0.3)  # m/s, 3 cm a pair
    assert np.linalg.norm(tilted - level, axis=1).mean() < 0.2


def test_a_sensor_upside_down_without_a_mount_is_a_warning_with_the_remedy():
    with NodeProcess('-p', 'ego_motion:=none') as node, Vehicle() as vehicle:
        vehicle.connect(node)
        drive_past(vehicle, SENSOR_R_LEVEL)
        facts, status = facts_when(vehicle, lambda values: 'tilt_from' in values)
    assert (facts['tilt_from'], facts['sensor_height_m']) == ('nothing', 'nan')
    assert status.level == b'\x01' and 'tilted by 150 degrees' in status.message
    assert 'set base_T_lidar to [' in status.message


def mounted(node, base_frame='base_link', base_T_lidar=None):
    return SensorMount(node, base_frame, base_T_lidar)


@pytest.fixture
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def ros_node(context):
    node = rclpy.create_node('mount', context=context)
    yield node
    node.destroy_node()


def test_what_is_known_without_tf(ros_node):
    told = mounted(ros_node, base_T_lidar=np.diag([1.0, -1.0, -1.0, 1.0]))
    assert told.lookup('lidar')[2, 2] == -1
    none = mounted(ros_node, '')
    assert none.lookup('lidar') is None and none.lookup('') is None
    looks = mounted(ros_node, '/base_link')
    assert looks.lookup('lidar') is None and looks.lookup('') is None
    np.testing.assert_array_equal(looks.lookup('base_link'), np.eye(4))  # clouds in the base frame
    for mount in (told, none, looks):
        mount.close()


def test_the_mount_is_found_on_tf_static(context, ros_node):
    pytest.importorskip('tf2_msgs', reason='needs tf2_msgs, which comes with a ROS installation')
    from geometry_msgs.msg import TransformStamped
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from tf2_msgs.msg import TFMessage

    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    out = ros_node.create_publisher(TFMessage, '/tf_static', qos)
    transform = TransformStamped(child_frame_id='lidar')
    transform.header.frame_id = 'base_link'
    q = transform.transform.rotation
    *_, q.x, q.y, q.z, q.w = BASE_T_LIDAR
    out.publish(TFMessage(transforms=[transform]))  # before the node listens
    mount, executor = mounted(ros_node), SingleThreadedExecutor(context=context)
    executor.add_node(ros_node)
    deadline = time.monotonic() + 10
    while mount.lookup('lidar') is None and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    np.testing.assert_allclose(mount.lookup('lidar')[:3, :3], SENSOR_R_LEVEL.T, atol=1e-6)
    mount.close()


class Subscriptions:
    """A node that only keeps what is subscribed to: tf2_msgs cannot be installed here."""

    def __init__(self):
        self.callbacks = {}

    def create_subscription(self, msgtype, topic, callback, qos, raw=False):
        self.callbacks[topic] = callback
        return topic

    def destroy_subscription(self, topic):
        del self.callbacks[topic]


@pytest.fixture
def tf(monkeypatch):
    """Return (node, now, publish): messages arrive at once, and now[0] is the clock."""
    monkeypatch.setitem(sys.modules, 'tf2_msgs', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'tf2_msgs.msg', SimpleNamespace(TFMessage=object))
    monkeypatch.setattr('rclpy.serialization.deserialize_message', lambda raw, msgtype: raw)
    now, node = [1000.0], Subscriptions()
    monkeypatch.setattr('zeroflow_ros.ros.sensor_mount.time', SimpleNamespace(monotonic=lambda: now[0]))

    def publish(topic, roll=ROLL, child='lidar'):
        turned = SimpleNamespace(x=np.sin(roll / 2), y=0.0, z=0.0, w=np.cos(roll / 2))
        moved = SimpleNamespace(translation=SimpleNamespace(x=0.0, y=0.0, z=1.8), rotation=turned)
        stamp = SimpleNamespace(sec=int(now[0]), nanosec=round(now[0] % 1 * 1e9))
        header = SimpleNamespace(frame_id='base_link', stamp=stamp)
        one = SimpleNamespace(header=header, child_frame_id=child, transform=moved)
        if topic in node.callbacks:
            node.callbacks[topic](SimpleNamespace(transforms=[one]))

    return node, now, publish


def test_a_mount_on_tf_that_never_changes_counts_as_static(tf):
    node, now, publish = tf
    mount = MountTransforms(node)
    for k in range(25):
        assert (mount.lookup('base_link', 'lidar') is None) == (k <= 20)  # messages: 2 s at 10 Hz
        publish('/tf')
        now[0] += 0.1
    np.testing.assert_allclose(mount.lookup('base_link', 'lidar')[:3, :3], SENSOR_R_LEVEL.T, atol=1e-6)
    now[0] += 100
    for _ in range(60):  # it turns later: seen in the next burst
        now[0] += 0.1
        publish('/tf', ROLL + 0.1)
    assert mount.lookup('base_link', 'lidar') is None
    assert 'changes' in mount.obstacle('base_link', 'lidar')
    mount.close()
    assert not node.callbacks


def test_a_sensor_that_turns_on_its_vehicle_has_no_static_mount(tf):
    node, now, publish = tf
    mount = MountTransforms(node)
    for k in range(60):
        publish('/tf', 0.02 * k)
        now[0] += 0.1
        assert mount.lookup('base_link', 'lidar') is None


def test_a_busy_tf_is_not_read_once_tf_static_or_a_minute_has_answered(tf):
    node, now, publish = tf
    mount = MountTransforms(node)
    publish('/tf_static')
    assert mount.lookup('base_link', 'lidar') is not None
    publish('/tf', 0.5)
    assert set(node.callbacks) == {'/tf_static'}
    other = MountTransforms(node)
    for _ in range(400):
        publish('/tf', child='wheel')
        now[0] += 0.1
        assert other.lookup('base_link', 'lidar') is None
    assert set(node.callbacks) == {'/tf_static'}


def test_bursts_see_all_at_first_and_little_later():
    bursts = Bursts()
    seen = [bursts.is_due(100 + 0.05 * k) for k in range(2000)]  # 100 s at 20 Hz
    assert all(seen[:80])
    assert 0.2 < np.mean(seen[80:600]) < 0.3
    assert 0.03 < np.mean(seen[600:]) < 0.08
