# SPDX-License-Identifier: Apache-2.0
"""docs/downstream.md tells the truth: its consumer runs, its tables are those of the code."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')

from flow_node import cloud  # noqa: E402
from processes import DOMAIN_ID, ROOT, environment  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402

from zeroflow_ros.lidar.point_cloud import flow_cloud  # noqa: E402
from zeroflow_ros.object_tracker import INPUT, OUTPUT, ObjectParameters  # noqa: E402
from zeroflow_ros.ros.messages import flow_message  # noqa: E402
from zeroflow_ros.ros.parameters import parameter_table  # noqa: E402

PAGE = (ROOT / 'docs' / 'downstream.md').read_text()
TRACKER_PAGE = (ROOT / 'docs' / 'object_tracker.md').read_text()


def flow() -> PointCloud2:
    """Return what the node publishes of two bodies, 200 points at 6 and 100 at 2 m/s, 50 static and 10 unknown ones."""
    rng = np.random.default_rng(0)
    points = np.concatenate([
        rng.uniform([9, -1, 0], [11, 1, 1], (200, 3)), rng.uniform([9, -1, 0], [11, 1, 1], (100, 3)),
        rng.uniform([-8, 4, 0], [-4, 8, 2], (60, 3)),
    ])  # fmt: skip
    velocity = np.zeros((360, 3), np.float32)
    velocity[:200, 0], velocity[200:300, 1], velocity[350:] = 6, -2, np.nan
    flow_valid = np.where(np.isnan(velocity[:, 0]), 0, 3).astype(np.uint8)
    msg = cloud(points, 10**9)
    return flow_message(msg, flow_cloud(msg, velocity, flow_valid))


def with_sensor_msgs_py(variables: dict) -> dict:
    """Return an environment in which sensor_msgs_py can be imported: ROS's own where there is one."""
    found = importlib.util.find_spec('sensor_msgs_py')
    folder = Path(found.origin).parents[1] if found else ROOT / 'test' / 'support' / 'without_ros'
    return {**variables, 'PYTHONPATH': os.pathsep.join((variables['PYTHONPATH'], str(folder)))}


def test_the_consumer_runs_as_it_stands_there(tmp_path):
    (code,) = re.findall(r'^```python\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / 'detector.py').write_text(code)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = rclpy.create_node('flow', context=context)
    publisher = node.create_publisher(PointCloud2, '/flow_node/output/flow', 5)
    process = subprocess.Popen(
        [sys.executable, tmp_path / 'detector.py'], env=with_sensor_msgs_py(environment()), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        node.create_timer(0.2, lambda: publisher.publish(flow()))
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        threading.Thread(target=executor.spin, daemon=True).start()
        line = process.stdout.readline()
    finally:
        process.kill()
        process.communicate()
        executor.shutdown(timeout_sec=1)
        node.destroy_node()
        rclpy.shutdown(context=context)
    said = re.search(r'300 of 350 points move, up to 6\.0 m/s, around \((\S+), (\S+)\) m', line)
    assert said, line
    assert abs(float(said[1]) - 10) < 0.3 and abs(float(said[2])) < 0.3


def test_parameters_and_topics_are_those_of_the_tracker():
    assert parameter_table(ObjectParameters) in TRACKER_PAGE
    for topic in (INPUT, OUTPUT, '~/input/odometry', '/diagnostics'):
        assert f'`{topic}`' in TRACKER_PAGE


def test_files_and_modules_exist():
    for name in re.findall(r'\| `([\w/]+\.py)` \|', PAGE + TRACKER_PAGE):
        assert (ROOT / 'zeroflow_ros' / name).is_file(), name
    for module in re.findall(r'-m ([\w.]+)', PAGE + TRACKER_PAGE):
        assert (ROOT / (module.replace('.', '/') + '.py')).is_file(), module


def test_launch_lines_have_arguments_that_exist():
    declared = (ROOT / 'launch' / 'flow.launch.py').read_text() + (ROOT / 'launch' / 'replay.launch.py').read_text()
    for argument in re.findall(r'(\w+):=', PAGE + TRACKER_PAGE):
        assert f"'{argument}'" in declared or argument in ('cluster_dynamic_points',), argument
