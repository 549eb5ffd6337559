# SPDX-License-Identifier: Apache-2.0
"""docs/downstream.md tells the truth: its consumer runs, its tables are those of the code."""

import re
import subprocess
import sys
import threading

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import cloud  # noqa: E402
from processes import DOMAIN_ID, ROOT, environment  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402

from zeroflow_ros.lidar.dynamic_points import dynamic_cloud  # noqa: E402
from zeroflow_ros.lidar.point_cloud import flow_cloud  # noqa: E402
from zeroflow_ros.object_tracker import INPUT, OUTPUT, ObjectParameters  # noqa: E402
from zeroflow_ros.objects.clusters import cluster_moving  # noqa: E402
from zeroflow_ros.ros.messages import flow_message  # noqa: E402
from zeroflow_ros.ros.parameters import parameter_table  # noqa: E402

PAGE = (ROOT / 'docs' / 'downstream.md').read_text()


def dynamic_points() -> PointCloud2:
    """Return what the node publishes of two bodies, 200 and 100 points, at 6 and 2 m/s."""
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [rng.uniform([9, -1, 0], [11, 1, 1], (200, 3)), rng.uniform([4, 7, 0], [5, 8, 1], (100, 3))]
    )
    velocity = np.zeros((300, 3), np.float32)
    velocity[:200, 0], velocity[200:, 1] = 6, -2
    msg = cloud(points, 10**9)
    rows = np.arange(300)
    whole = flow_cloud(msg, velocity, np.full(300, 3, np.uint8))
    return flow_message(msg, dynamic_cloud(whole, rows, cluster_moving(points, velocity)))


def test_the_consumer_runs_as_it_stands_there(tmp_path):
    (code,) = re.findall(r'^```python\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / 'detector.py').write_text(code)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = rclpy.create_node('flow', context=context)
    publisher = node.create_publisher(PointCloud2, '/flow_node/output/dynamic_points', 5)
    process = subprocess.Popen(
        [sys.executable, tmp_path / 'detector.py'], env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        node.create_timer(0.2, lambda: publisher.publish(dynamic_points()))
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        threading.Thread(target=executor.spin, daemon=True).start()
        lines = [process.stdout.readline() for _ in range(2)]
    finally:
        process.kill()
        process.communicate()
        executor.shutdown(timeout_sec=1)
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert re.search(r'200 points at \(\S+, \S+\) m move with 6\.0 m/s', lines[0]), lines
    assert re.search(r'100 points at \(\S+, \S+\) m move with 2\.0 m/s', lines[1]), lines


def test_parameters_and_topics_are_those_of_the_tracker():
    assert parameter_table(ObjectParameters) in PAGE
    for topic in (INPUT, OUTPUT, '~/input/odometry', '/diagnostics'):
        assert f'`{topic}`' in PAGE


def test_files_and_modules_exist():
    for name in re.findall(r'\| `(\w+\.py)` \|', PAGE):
        assert (ROOT / 'zeroflow_ros' / name).is_file(), name
    for module in re.findall(r'-m ([\w.]+)', PAGE):
        assert (ROOT / (module.replace('.', '/') + '.py')).is_file(), module


def test_launch_lines_have_arguments_that_exist():
    declared = (ROOT / 'launch' / 'flow.launch.py').read_text() + (ROOT / 'launch' / 'replay.launch.py').read_text()
    for argument in re.findall(r'(\w+):=', PAGE):
        assert f"'{argument}'" in declared or argument in ('cluster_dynamic_points',), argument
