# SPDX-License-Identifier: Apache-2.0
import json
import re
import signal
import threading
import time

import numpy as np
import pytest
from processes import DOMAIN_ID, run, started
from tiny_bag import CLOUD_TOPIC, FORMATS, ODOMETRY_TOPIC, PERIOD_NS, START_NS, write_bag

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, TRANSFORMS, header_stamp_ns
from zeroflow_ros.replay import Player

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

NUM_SWEEPS = 6
PLAYED = (CLOUD_TOPIC, ODOMETRY_TOPIC)  # /tf only where tf2_msgs is installed


def padded(cdr):
    """Return serialised bytes as they travel: DDS fills them up to whole words."""
    return bytes(cdr) + bytes(-len(cdr) % 4)


class Listener:
    """Collects the raw messages of a replay, with the wall times at which they came."""

    def __init__(self, cloud_topic=CLOUD_TOPIC):
        from nav_msgs.msg import Odometry
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import PointCloud2

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN_ID)
        self.node = rclpy.create_node('listener', context=self.context, start_parameter_services=False)
        self.messages, self.clock, self.times = [], [], []
        for message_type, topic in ((PointCloud2, cloud_topic), (Odometry, ODOMETRY_TOPIC)):
            self.node.create_subscription(message_type, topic, lambda raw, t=topic: self._take(t, raw), 50, raw=True)
        self.node.create_subscription(
            Clock, '/clock', lambda m: self.clock.append(m.clock.sec * 10**9 + m.clock.nanosec), 100
        )
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def _take(self, topic, raw):
        self.messages.append((topic, padded(raw)))
        if topic != ODOMETRY_TOPIC:
            self.times.append(time.monotonic())

    @property
    def stamps(self):
        return [header_stamp_ns(raw) for topic, raw in self.messages if topic != ODOMETRY_TOPIC]

    def wait_for(self, num_clouds, timeout=30.0):
        deadline = time.monotonic() + timeout
        while len(self.times) < num_clouds and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.times) >= num_clouds, f'{len(self.times)} of {num_clouds} clouds in {timeout} s'

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    return {storage: write_bag(folder / storage, storage, NUM_SWEEPS) for storage in FORMATS}


@pytest.mark.parametrize('storage', FORMATS)
def test_every_message_of_every_format_arrives_byte_for_byte(bags, storage, tmp_path):
    with Bag(bags['mcap']) as bag:
        expected = sorted((m.topic, padded(m.cdr)) for m in bag.messages(PLAYED))
    report_path = tmp_path / 'report.json'
    with Listener() as listener:
        code, text = run('replay', bags[storage], '--rate', 2, '--wait-for-subscribers', 1, '--report', report_path)
        listener.wait_for(NUM_SWEEPS)
        assert (code, sorted(listener.messages)) == (0, expected), text
        assert listener.clock == sorted(listener.clock)
        assert START_NS <= listener.clock[0] and listener.clock[-1] <= START_NS + NUM_SWEEPS * PERIOD_NS
        # 40 Hz and with each message: 10 + 12, fewer on a busy machine, but not only with the messages.
        assert len(listener.clock) > 2 * NUM_SWEEPS
    report = json.loads(report_path.read_text())
    assert report['sweeps_played'] == NUM_SWEEPS
    assert [sweep['stamp_ns'] for sweep in report['sweeps']] == [START_NS + k * PERIOD_NS for k in range(NUM_SWEEPS)]
    wall_ns = [sweep['published_wall_ns'] for sweep in report['sweeps']]
    assert np.all(np.diff(wall_ns) > 0)
    assert wall_ns[-1] - wall_ns[0] > 0.1e9  # 0.25 s, unless the first was late


def test_a_part_of_the_bag_on_another_topic(bags):
    arguments = ['--start', 0.15, '--duration', 0.2, '--rate', 4, '--wait-for-subscribers', 1]
    arguments += ['--ros-args', '-r', f'{CLOUD_TOPIC}:=/elsewhere']
    with Listener('/elsewhere') as listener:
        code, text = run('replay', bags['mcap'], *arguments)
        listener.wait_for(2)
        assert (code, listener.stamps) == (0, [START_NS + 2 * PERIOD_NS, START_NS + 3 * PERIOD_NS]), text


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_loop_plays_until_it_is_told_to_stop(bags, number):
    arguments = ['--loop', '--rate', 5, '--wait-for-subscribers', 1]
    with Listener() as listener, started('replay', bags['mcap'], *arguments) as replay:
        listener.wait_for(2 * NUM_SWEEPS + 1)
        replay.send_signal(number)
        text, _ = replay.communicate(timeout=10)
        assert replay.returncode == 0, text
        assert 'Traceback' not in text
        assert listener.stamps[:NUM_SWEEPS] == listener.stamps[NUM_SWEEPS : 2 * NUM_SWEEPS]
        assert np.any(np.diff(listener.clock) < 0), '/clock goes back with the bag'


def test_it_stops_while_it_waits_for_a_subscriber(bags):
    with started('replay', bags['mcap'], '--wait-for-subscribers', 3) as replay:
        for line in replay.stdout:
            if '/tf is not played' in line or 'Playing' in line:
                break
        replay.send_signal(signal.SIGINT)
        text, _ = replay.communicate(timeout=10)
    assert (replay.returncode, 'Traceback' in text) == (0, False), text


def test_it_gives_up_soon_when_the_node_that_it_waits_for_has_ended(bags):
    """It waited for a minute, and then told the user to start the node first."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = rclpy.create_node('flow_node', context=context)
    with started('replay', bags['mcap'], '--wait-for-subscribers', 1) as replay:
        deadline = time.monotonic() + 30
        while ('replay', '/') not in node.get_node_names_and_namespaces() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)  # until the player has discovered the node, too
        node.destroy_node()
        rclpy.shutdown(context=context)
        text, _ = replay.communicate(timeout=40)
    assert replay.returncode == 1 and re.search(r'/flow_node ended before \S+ had 1 subscribers\. Its log', text), text


def test_late_listeners_get_static_transforms_from_before_the_start(tmp_path):
    pytest.importorskip('tf2_msgs', reason='needs tf2_msgs, which comes with a ROS installation')
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from tf2_msgs.msg import TFMessage

    with Bag(write_bag(tmp_path / 'bag', num_sweeps=3)) as bag, BagWriter(tmp_path / 'static') as writer:
        for m in bag.messages([CLOUD_TOPIC, '/tf']):
            writer.write('/tf_static' if m.topic == '/tf' else m.topic, m.msgtype, m.time_ns, m.cdr)
    received = []
    with Listener() as listener:
        qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        listener.node.create_subscription(TFMessage, '/tf_static', received.append, qos)
        assert run('replay', tmp_path / 'static', '--start', 0.1)[0] == 0
    assert len(received) == 3


def _without_clouds(tmp_path):
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=1)) as bag, BagWriter(tmp_path / 'poses') as writer:
        message = next(bag.messages(['/tf']))
        writer.write('/tf', TRANSFORMS, message.time_ns, message.cdr)
    return tmp_path / 'poses'


def _broken(tmp_path):
    (tmp_path / 'broken.mcap').write_bytes(b'\x89MCAP0\r\n' + b'x' * 100)
    return tmp_path / 'broken.mcap'


ERRORS = {
    'missing': (lambda tmp: [tmp / 'none'], r'There is no bag at .*none'),
    'broken': (lambda tmp: [_broken(tmp)], r'broken\.mcap cannot be read'),
    'no clouds': (lambda tmp: [_without_clouds(tmp)], r'no topic of sensor_msgs/msg/PointCloud2.*\n  /tf \(tf2'),
    'other topic': (lambda tmp: [write_bag(tmp / 'b'), '--topic', '/rear'], r'named /rear.*\n  /lidar/points'),
    'past the end': (lambda tmp: [write_bag(tmp / 'b'), '--start', '9'], r'Cannot start at 9\.0 s: .* is 0\.4 s long'),
    'between two': (
        lambda tmp: [write_bag(tmp / 'b'), '--start', '0.31', '--duration', '0.01'],
        r'no cloud in this part',
    ),
    'never': (lambda tmp: [write_bag(tmp / 'b'), '--times', '0'], r'--times must be at least 1'),
    'backwards': (lambda tmp: [write_bag(tmp / 'b'), '--rate', '-1'], r'Expected a rate above 0'),
    'bad remap': (lambda tmp: [write_bag(tmp / 'b'), '--ros-args', '-r', 'nonsense'], r'ROS refuses the arguments'),
    'nobody': (
        lambda tmp: [write_bag(tmp / 'b'), '--wait-for-subscribers', '1', '--wait-timeout', '0.1'],
        r'Fewer than 1 subscribers on /lidar/points within 0\.1 s',
    ),
}


@pytest.mark.parametrize('label', ERRORS)
def test_an_error_says_what_to_do_and_is_an_exit_status(tmp_path, label):
    make, expected = ERRORS[label]
    code, text = run('replay', *make(tmp_path))
    assert code == 1, text
    assert re.search(expected, text), text
    assert 'Traceback' not in text


def test_without_a_bag_the_usage_is_shown():
    assert run('replay')[0] == 2


def test_clouds_of_two_sensors_are_both_played(tmp_path):
    with Bag(write_bag(tmp_path / 'bag', num_sweeps=2)) as bag, BagWriter(tmp_path / 'two') as writer:
        for m in bag.messages([CLOUD_TOPIC]):
            writer.write(CLOUD_TOPIC, POINT_CLOUD, m.time_ns, m.cdr)
            writer.write('/rear', POINT_CLOUD, m.time_ns, m.cdr)
    for options, expected in (([], 4), (['--topic', '/rear'], 2)):
        assert (
            run('replay', tmp_path / 'two', *options, '--wait-for-subscribers', 0, '--report', tmp_path / 'r')[0] == 0
        )
        assert json.loads((tmp_path / 'r').read_text())['sweeps_played'] == expected


def with_times(path, source, time_of):
    """Write a bag with the clouds and odometry of another, recorded at time_of(number of the message, its time)."""
    with Bag(source) as bag, BagWriter(path) as writer:
        for k, m in enumerate(bag.messages(PLAYED)):
            writer.write(m.topic, m.msgtype, time_of(k, m.time_ns), m.cdr)
    return path


def test_messages_recorded_at_time_0_or_a_day_later_are_played_at_once_and_said(bags, tmp_path):
    last = 2 * NUM_SWEEPS - 1
    times = {0: 0, last: START_NS + 86_400 * 10**9}
    path = with_times(tmp_path / 'bag', bags['mcap'], lambda k, time_ns: times.get(k, time_ns))
    with Listener() as listener:
        code, text = run('replay', path, '--rate', 4, '--wait-for-subscribers', 1)
        listener.wait_for(NUM_SWEEPS)
    assert code == 0, text
    assert len(listener.messages) == 2 * NUM_SWEEPS
    assert '1 of 12 messages are recorded 53.9 years before the others' in text
    assert '1 of 12 messages are recorded 24.0 h after the others' in text
    assert 'Skipped 24.0 h without a message' in text
    assert START_NS <= min(listener.clock)
    assert 'Played 6 sweeps' in text


@pytest.fixture
def ros_node():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = rclpy.create_node('player', context=context, start_parameter_services=False)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_a_pause_in_the_bag_is_said_with_the_start_behind_it(bags, tmp_path, ros_node, monkeypatch, capfd):
    monkeypatch.setattr('zeroflow_ros.replay._TOLD_PAUSE', 0.3)
    path = with_times(tmp_path / 'bag', bags['mcap'], lambda k, time_ns: time_ns + (k >= 6) * 10**9)
    with Bag(path) as bag:
        Player(ros_node, bag, rate=2).play()
    text = capfd.readouterr().err
    assert len(re.findall(r'Next message in [01] s\. To play from there: --start 1\.3', text)) == 1
    assert 'Skipped' not in text


def test_clouds_that_were_recorded_at_another_speed_than_their_stamps_are_a_warning(tmp_path, ros_node, capfd):
    source = write_bag(tmp_path / 'source', num_sweeps=12, num_points=100)
    for name, expected, period_ns in (
        ('fast', 'are 0.1 s apart by their stamps, but were recorded 0.01 s apart. --rate 0.1 plays', 10**7),
        ('at once', 'recorded 0 s apart. --offline does not use recording times.', 0),
        ('right', None, PERIOD_NS),
    ):
        path = with_times(tmp_path / name, source, lambda k, _, period_ns=period_ns: START_NS + k // 2 * period_ns)
        with Bag(path) as bag:
            Player(ros_node, bag, rate=20).play()
        text = capfd.readouterr().err
        assert (expected in text) if expected else ('apart' not in text), text
