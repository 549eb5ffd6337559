# SPDX-License-Identifier: Apache-2.0
"""Every file in config/ loads, and fits what it configures."""

import dataclasses
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from processes import ROOT, environment

from training.config import load_config
from training.learning.stereo_train_config import load_train_config
from training.learning.train_config import TrainConfig
from training.students import CAMERA_STUDENTS, MONO_STUDENTS
from zeroflow_ros.camera.pixel_cloud import FIELDS
from zeroflow_ros.lidar.point_cloud import flow_cloud
from zeroflow_ros.runtime.camera_offline import CAMERA_FLOW_TOPIC
from zeroflow_ros.runtime.offline import FLOW_TOPIC

CONFIGS = sorted(path for path in (ROOT / 'config').iterdir() if path.is_file())
LARGEST_CLOUD = 10_000_000  # bytes: 128 beams at 2,600 columns and 28 bytes


def _by_suffix(*suffixes):
    return [path for path in CONFIGS if path.suffix in suffixes]


@pytest.mark.parametrize('path', _by_suffix('.yaml', '.yml', '.rviz'), ids=lambda path: path.name)
def test_yaml_loads_and_is_not_empty(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_every_file_is_known_and_says_its_licence(path):
    assert path.suffix in ('.yaml', '.rviz', '.xml', '.json', '.service')
    assert 'SPDX-License-Identifier: Apache-2.0' in path.read_text()[:200].replace('"', '')  # a key where it is JSON


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('train_*.yaml')), ids=lambda path: path.name)
def test_training_configuration_says_what_it_trains(path):
    config = load_train_config(path).for_pairs(100_800)
    assert config.student in path.read_text() and config.steps > 1000
    if config.student in CAMERA_STUDENTS | MONO_STUDENTS:
        assert config.batch % config.accumulate == 0
        return
    assert config.full.cells >= 256 and all(phase.batch % config.accumulate == 0 for phase in config.phases)


def test_the_recipe_of_zeroflow():
    """One pass is 1,575 steps of 64 pairs; 50 passes at a learning rate that never changes."""
    config = load_config(TrainConfig, ROOT / 'config' / 'train_zeroflow.yaml').for_pairs(100_800)
    assert config.steps == config.full.steps == 78_750 and config.full.batch == 64
    assert config.learning_rate(0) == config.learning_rate(78_749) == 2e-6
    assert not any(dataclasses.astuple(config.augmentation))
    assert config.loss == 'zeroflow' and config.weight_decay == config.clip_norm == config.scored_points == 0


def test_the_recipe_of_dwarf():
    """50,000 steps of 4 crops of 320 x 896 px at 3e-5, halved three times; no decay but that in the loss; no noise."""
    config = load_train_config(ROOT / 'config' / 'train_dwarf.yaml')
    assert (config.steps, config.batch, config.crop_width, config.crop_height) == (50_000, 4, 896, 320)
    assert [config.learning_rate(step) for step in (0, 25_000, 35_000, 45_000)] == [3e-5, 1.5e-5, 7.5e-6, 3.75e-6]
    assert config.l2 == 4e-4 and config.weight_decay == config.clip_norm == config.augmentation.noise == 0
    assert config.augmentation.max_zoom == 1.8 and not config.augmentation.colour_shared


def test_node_parameters_are_accepted_by_the_node():
    parameters = pytest.importorskip('zeroflow_ros.ros.parameters', reason='needs rclpy')
    content = yaml.safe_load((ROOT / 'config' / 'node.yaml').read_text())
    assert list(content) == ['/**'] and list(content['/**']) == ['ros__parameters']
    parameters.Parameters(**content['/**']['ros__parameters'])


@pytest.fixture(scope='module')
def rviz():
    return yaml.safe_load((ROOT / 'config' / 'flow.rviz').read_text())


def test_camera_node_parameters_are_accepted_by_the_node():
    parameters = pytest.importorskip('zeroflow_ros.ros.camera_parameters', reason='needs rclpy')
    content = yaml.safe_load((ROOT / 'config' / 'camera_node.yaml').read_text())
    assert list(content) == ['/**'] and list(content['/**']) == ['ros__parameters']
    shipped = content['/**']['ros__parameters']
    defaults = parameters.CameraParameters()
    assert parameters.CameraParameters(**shipped) == defaults and len(shipped) > 8


def test_rviz_shows_the_topics_of_the_camera_node():
    publishers = pytest.importorskip('zeroflow_ros.ros.camera_publishers', reason='needs rclpy')
    rviz = yaml.safe_load((ROOT / 'config' / 'camera.rviz').read_text())
    topics = {topic.replace('~', '/camera_flow_node') for topic in publishers.TOPICS}
    clouds = _displays(rviz, 'PointCloud2')
    assert {CAMERA_FLOW_TOPIC, '/camera_flow_node/output/dynamic_points'} == set(clouds) <= topics
    assert set(_displays(rviz, 'Marker')) <= topics
    images = set(_displays(rviz, 'Image'))
    assert images - topics == {'/camera_flow_node/input/left/image'} and images & topics
    assert {cloud['Channel Name'] for cloud in clouds.values()} <= set(FIELDS)


def _displays(rviz, kind: str) -> dict[str, dict]:
    displays = rviz['Visualization Manager']['Displays']
    return {d['Topic']['Value']: d for d in displays if d['Class'] == f'rviz_default_plugins/{kind}'}


def test_rviz_shows_the_topics_of_the_node(rviz):
    assert rviz['Visualization Manager']['Global Options']['Fixed Frame'] == 'odom'
    assert set(_displays(rviz, 'PointCloud2')) == {
        '/flow_node/input/pointcloud', FLOW_TOPIC, '/flow_node/output/dynamic_points'
    }  # fmt: skip
    assert set(_displays(rviz, 'Marker')) == {'/flow_node/output/markers'}
    assert set(_displays(rviz, 'MarkerArray')) == {'/object_tracker/output/objects'}
    names = [display['Name'] for display in rviz['Visualization Manager']['Displays']]
    clock = next(panel for panel in rviz['Panels'] if panel['Class'] == 'rviz_common/Time')
    assert clock['SyncSource'] in names


def test_rviz_colours_the_flow_by_a_field_that_it_has(rviz):
    fields = [SimpleNamespace(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate('xyz')]
    message = SimpleNamespace(
        height=1, width=1, fields=fields, is_bigendian=False, point_step=12, row_step=12, data=bytes(12)
    )
    cloud = flow_cloud(message, np.zeros((1, 3), np.float32), np.zeros(1, np.uint8))
    for topic in (FLOW_TOPIC, '/flow_node/output/dynamic_points'):
        flow = _displays(rviz, 'PointCloud2')[topic]
        assert flow['Channel Name'] in [name for name, *_ in cloud.fields]
        assert flow['Color Transformer'] == 'Intensity' and not flow['Use rainbow']  # a rainbow of NaN is undefined


def test_fast_dds_profile_takes_a_cloud_in_one_piece():
    root = ElementTree.parse(ROOT / 'config' / 'fastdds_shm.xml').getroot()
    tags = {'': root.tag[1 : root.tag.index('}')]}
    transports = {t.find('transport_id', tags).text: t for t in root.iter(f'{{{tags[""]}}}transport_descriptor')}
    kinds = {t.find('type', tags).text for t in transports.values()}
    assert kinds == {'SHM', 'UDPv4'}
    shared = next(t for t in transports.values() if t.find('type', tags).text == 'SHM')
    segment, message = (int(shared.find(name, tags).text) for name in ('segment_size', 'maxMessageSize'))
    assert LARGEST_CLOUD < message <= segment // 2
    participant = root.find('profiles/participant', tags)
    assert participant.get('is_default_profile') == 'true'
    used = participant.find('rtps/userTransports', tags)
    assert {transport.text for transport in used} == set(transports)


LISTEN = """
import time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
rclpy.init()
node = rclpy.create_node('listener')
qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
received = []
node.create_subscription(PointCloud2, '/points', lambda msg: received.append(len(msg.data)), qos)
deadline = time.monotonic() + 20
while len(received) < 10 and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.1)
print(*received)
"""
SEND = """
import array, time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
rclpy.init()
node = rclpy.create_node('driver')
qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = node.create_publisher(PointCloud2, '/points', qos)
deadline = time.monotonic() + 30
while not publisher.get_subscription_count() and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.5)  # the subscriber knows of us, too
msg = PointCloud2(data=array.array('B', bytes(1_600_000)))
for _ in range(10):
    publisher.publish(msg)
    time.sleep(0.05)
time.sleep(1.0)
"""


def test_no_best_effort_cloud_is_lost_where_the_publisher_has_the_profile():
    """Without the profile, Fast DDS loses half of them or more."""
    pytest.importorskip('rclpy')
    profile = {'FASTRTPS_DEFAULT_PROFILES_FILE': str(ROOT / 'config' / 'fastdds_shm.xml')}
    listener = subprocess.Popen([sys.executable, '-c', LISTEN], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        subprocess.run([sys.executable, '-c', SEND], env=environment() | profile, timeout=60, check=True)
        received, _ = listener.communicate(timeout=60)
    finally:
        listener.kill()
    assert received.split() == ['1600000'] * 10
