# SPDX-License-Identifier: Apache-2.0
"""The thread of tf ends without a word, at whatever moment the context is shut down. tf2_ros is a stand-in."""

import sys
import threading
import time

import pytest
from processes import ROOT

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from geometry_msgs.msg import TransformStamped  # noqa: E402

from zeroflow_ros.ros.tf_buffer import TfBuffer  # noqa: E402


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'test' / 'support' / 'stand_ins'))
    monkeypatch.delitem(sys.modules, 'tf2_ros', raising=False)
    yield
    sys.modules.pop('tf2_ros', None)


class Tf:
    """A node with a TfBuffer, and a publisher of /tf."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('flow_node', context=self.context)
        self.tf = TfBuffer(self.node)
        self.out = self.node.create_publisher(TransformStamped, '/tf', 100)

    def send(self, x: float, child='lidar'):
        msg = TransformStamped(child_frame_id=child)
        msg.transform.translation.x = x
        self.out.publish(msg)

    def until(self, predicate, timeout=10.0):
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self):
        self.tf.close()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.mark.parametrize('close_first', [False, True])
def test_ctrl_c_at_any_moment_leaves_no_traceback_of_the_thread(stand_in, monkeypatch, capfd, close_first):
    raised = []
    monkeypatch.setattr(threading, 'excepthook', raised.append)
    for k in range(5):
        tf = Tf()
        stop = threading.Event()

        def publish(tf=tf, stop=stop):
            while not stop.is_set() and tf.context.ok():
                try:
                    tf.send(1.0)
                except Exception:  # the context is shut down
                    return

        sender = threading.Thread(target=publish)
        sender.start()
        time.sleep(0.005 * k)
        if close_first:
            stop.set()
            sender.join()
            tf.tf.close()
            tf.context.shutdown()
        else:
            tf.context.shutdown()  # what a signal does
            stop.set()
            sender.join()
            tf.tf.close()
        assert not tf.tf._thread.is_alive()
        tf.node.destroy_node()
    assert not raised
    assert 'Traceback' not in capfd.readouterr().err


def test_a_failing_message_does_not_end_tf(stand_in, capfd):
    tf = Tf()
    try:
        tf.until(tf.out.get_subscription_count)
        tf.send(1.0, child='bad')
        tf.send(2.0)
        tf.until(lambda: tf.tf.buffer.last is not None)
        assert tf.tf.lookup('lidar', 1, 'lidar', 2, 'odom', timeout=1.0)[0, 3] == 2.0
    finally:
        tf.close()
    assert 'a bad transform' in capfd.readouterr().err
