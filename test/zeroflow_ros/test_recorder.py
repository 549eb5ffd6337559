# SPDX-License-Identifier: Apache-2.0
import json
import signal
import time

import pytest
from processes import DOMAIN_ID, started

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import decode_message
from zeroflow_ros.recorder import _MAX_QUEUED_BYTES
from zeroflow_ros.views.recorded_flow import RECORDING_STARTED

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

STAMP_NS = 1_700_000_000_000_000_000
TOTAL_TOPIC = '/flow_node/debug/processing_time/total_ms'


class FlowPublisher:
    """Publishes as the node does, so that its flow is known."""

    def __init__(self):
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import PointCloud2
        from std_msgs.msg import Float64

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN_ID)
        self.node = rclpy.create_node('flow_node', context=self.context, start_parameter_services=False)
        self.flow = self.node.create_publisher(PointCloud2, '~/output/flow', 10)
        self.total = self.node.create_publisher(Float64, '~/debug/processing_time/total_ms', 10)
        self.diagnostics = self.node.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def publish(self, index):
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
        from sensor_msgs.msg import PointCloud2
        from std_msgs.msg import Float64

        cloud = PointCloud2(width=index, height=1)
        cloud.header.stamp.sec, cloud.header.stamp.nanosec = STAMP_NS // 10**9, index
        self.flow.publish(cloud)
        self.total.publish(Float64(data=10.0 * index))
        status = DiagnosticStatus(
            name='flow_node: input', level=DiagnosticStatus.OK if index else DiagnosticStatus.ERROR,
            message='fine', values=[KeyValue(key='dropped.gap_too_long', value=str(index))],
        )  # fmt: skip
        self.diagnostics.publish(DiagnosticArray(status=[status]))

    def settle(self, *others):
        """Wait until the recorder has what was published, and some time to look at it."""
        from rclpy.duration import Duration

        for each in (self.flow, self.total, self.diagnostics, *others):
            assert each.wait_for_all_acked(Duration(seconds=20))
        time.sleep(1.0)

    def close(self):
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def publisher():
    made = FlowPublisher()
    yield made
    made.close()


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f'The recorder never said {text!r}')


def publish_five(publisher, recorder):
    """Publish as soon as every subscription of the recorder is known."""
    wait_for(recorder, RECORDING_STARTED)
    deadline = time.monotonic() + 20
    publishers = (publisher.flow, publisher.total, publisher.diagnostics)
    while not all(p.get_subscription_count() for p in publishers) and time.monotonic() < deadline:
        time.sleep(0.02)
    for index in range(5):
        publisher.publish(index)


@pytest.mark.parametrize('how', ['idle', signal.SIGINT, signal.SIGTERM])
def test_flow_timings_and_diagnostics_are_recorded(publisher, tmp_path, how):
    options = ['--idle', 4.0] if how == 'idle' else []
    out, report_path = tmp_path / 'flow.mcap', tmp_path / 'report.json'
    with started('recorder', '--out', out, '--report', report_path, *options) as recorder:
        publish_five(publisher, recorder)
        if how != 'idle':
            publisher.settle()
            recorder.send_signal(how)
        text, _ = recorder.communicate(timeout=20)
        assert (recorder.returncode, 'Traceback' in text) == (0, False), text
    report = json.loads(report_path.read_text())
    assert report['flow_received'] == 5 and report['lost_by_the_recorder'] == 0
    assert [flow['stamp_ns'] for flow in report['flow']] == [STAMP_NS + k for k in range(5)]
    assert report['timings']['total'] == [0.0, 10.0, 20.0, 30.0, 40.0]
    status = report['diagnostics']['flow_node: input']
    assert (status['level'], status['worst_level'], status['values']) == (0, 2, {'dropped.gap_too_long': '4'})
    with Bag(out) as bag:
        assert [m.stamp_ns for m in bag.messages(['/flow_node/output/flow'])] == [STAMP_NS + k for k in range(5)]
        totals = [(m.time_ns, decode_message(m.cdr, m.msgtype).data) for m in bag.messages([TOTAL_TOPIC])]
        diagnostics = [decode_message(m.cdr, m.msgtype).status[0] for m in bag.messages(['/diagnostics'])]
    assert [value for _, value in totals] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert all(STAMP_NS <= time_ns < STAMP_NS + 5 for time_ns, _ in totals), 'on the time line of the sweeps'
    assert [int(status.values[0].value) for status in diagnostics] == list(range(5))


def test_arrows_are_recorded_on_request(publisher, tmp_path):
    from visualization_msgs.msg import Marker

    arrows = publisher.node.create_publisher(Marker, '~/output/markers', 10)
    with started('recorder', '--out', tmp_path / 'flow.mcap', '--markers') as recorder:
        publish_five(publisher, recorder)
        deadline = time.monotonic() + 20
        while not arrows.get_subscription_count() and time.monotonic() < deadline:
            time.sleep(0.02)
        marker = Marker(ns='flow')
        marker.header.stamp.sec, marker.header.stamp.nanosec = STAMP_NS // 10**9, 3
        arrows.publish(marker)
        publisher.settle(arrows)
        recorder.send_signal(signal.SIGINT)
        text, _ = recorder.communicate(timeout=20)
        assert recorder.returncode == 0, text
    with Bag(tmp_path / 'flow.mcap') as bag:
        [found] = bag.messages(['/flow_node/output/markers'])
    assert found.time_ns == STAMP_NS + 3 and decode_message(found.cdr, found.msgtype).ns == 'flow'


def test_without_flow_it_fails_and_says_so(tmp_path):
    with started('recorder', '--out', tmp_path / 'flow', '--report', tmp_path / 'report.json') as recorder:
        wait_for(recorder, 'Waiting for /flow_node/output/flow')
        recorder.send_signal(signal.SIGINT)
        text, _ = recorder.communicate(timeout=20)
    assert recorder.returncode == 1
    assert 'No flow to record: /flow_node/output/flow had no publisher' in text and 'Traceback' not in text
    assert json.loads((tmp_path / 'report.json').read_text())['flow_received'] == 0
    assert [p.name for p in tmp_path.iterdir()] == ['report.json']


def test_a_disk_that_is_too_slow_is_counted_and_a_full_one_is_an_error(tmp_path, publisher):
    from zeroflow_ros.errors import DataError
    from zeroflow_ros.recorder import Recorder

    class FullDisk(BagWriter):
        def write(self, *_):
            raise OSError('No space left on device')

    writer = FullDisk(tmp_path / 'flow')
    recorder = Recorder(publisher.node, writer)
    recorder._on_flow(bytes(12))
    with pytest.raises(DataError, match='incomplete: No space left on device'):
        recorder.finish()
    for _ in range(10 + 8):  # nobody empties the queue any more
        recorder._on_flow(bytes(_MAX_QUEUED_BYTES // 10))
    assert recorder.num_lost == 8
    writer.abort()
    assert list(tmp_path.iterdir()) == []
