# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, SENSOR_HEIGHT, write_bag

from training import label
from training.datasets import open_dataset
from training.teachers.teacher_input import Crop, teacher_input
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.cdr import POINT_CLOUD, TRANSFORMS, decode_message, encode_message
from zeroflow_ros.errors import DataError
from zeroflow_ros.transforms import apply, invert, rotation_matrix, to_quaternion, yaw_translation

NUM_SWEEPS = 4
UPSIDE_DOWN = rotation_matrix([np.pi, 0, 0])
PITCHED = rotation_matrix([0, np.radians(30), 0])
OPTICAL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def turned_bag(folder, sensor_R_level, *, told, **options):
    """Write the drive of a turned sensor, whose mount is on /tf_static where told; return its path."""
    sensor_T_level = np.eye(4)
    sensor_T_level[:3, :3] = sensor_R_level
    x, y, z, w = to_quaternion(invert(sensor_T_level)).tolist()
    with Bag(write_bag(folder / 'plain', num_sweeps=NUM_SWEEPS, **options)) as bag, BagWriter(folder / 'drive') as out:
        for k, m in enumerate(bag.messages([topic.name for topic in bag.topics])):
            message, topic = decode_message(m.cdr, m.msgtype), m.topic
            if topic == ODOMETRY_TOPIC:
                pose, q = message.pose.pose.position, message.pose.pose.orientation
                pose = yaw_translation(0, pose.x, 0) @ invert(sensor_T_level)
                q.x, q.y, q.z, q.w = to_quaternion(pose).tolist()
            elif topic == CLOUD_TOPIC:
                rows = message.data.view(np.float32).reshape(-1, 4).copy()
                rows[:, :3] = apply(sensor_T_level, rows[:, :3])
                message.data = rows.view(np.uint8).reshape(-1)
            elif told and k < 3:
                topic, transform = '/tf_static', message.transforms[0]
                transform.header.frame_id, q = 'base_link', transform.transform.rotation
                q.x, q.y, q.z, q.w = x, y, z, w
            else:
                continue
            out.write(topic, m.msgtype, m.time_ns, encode_message(message, m.msgtype))
    return folder / 'drive', f'0,0,{SENSOR_HEIGHT},{x},{y},{z},{w}'


@pytest.mark.parametrize('sensor_R_level', [UPSIDE_DOWN, PITCHED], ids=['upside down', 'pitched'])
@pytest.mark.parametrize('told', [True, False], ids=['tf_static', 'option'])
def test_pairs_of_a_turned_sensor_are_those_of_a_level_one(tmp_path, sensor_R_level, told):
    path, pose = turned_bag(tmp_path, sensor_R_level, told=told)
    plain = open_dataset(f'bag:{tmp_path / "plain"}')
    found = open_dataset(f'bag:{path}' if told else f'bag:{path}?base_T_lidar={pose}')
    assert (len(found), found.summary.warnings()) == (NUM_SWEEPS - 1, [])
    assert found.sensor_height == pytest.approx(SENSOR_HEIGHT, abs=0.02)
    # Upside down by a roll, and pitched: the heading of the sensor's x axis stays, so that level points are the same.
    for name in ('points0', 'points1'):
        np.testing.assert_allclose(getattr(found[1].pair, name), getattr(plain[1].pair, name), atol=1e-4)
    np.testing.assert_allclose(found[1].pair.ego0_T_ego1, plain[1].pair.ego0_T_ego1, atol=1e-6)
    seen, expected = (teacher_input(dataset[1], Crop()) for dataset in (found, plain))
    np.testing.assert_allclose(seen.points0, expected.points0, atol=0.05)  # the height is estimated
    assert len(seen.rows0) == pytest.approx(len(expected.rows0), rel=0.02)


def test_an_optical_frame_is_turned_level(tmp_path):
    path, _ = turned_bag(tmp_path, OPTICAL, told=True)
    found = open_dataset(f'bag:{path}')
    assert found.sensor_height == pytest.approx(SENSOR_HEIGHT, abs=0.02) and not found.summary.warnings()


def test_registration_of_a_turned_sensor_is_turned_too(tmp_path):
    pytest.importorskip('small_gicp', reason='needs small_gicp')
    path, _ = turned_bag(tmp_path, PITCHED, told=True, num_points=20_000)
    plain, found = (
        open_dataset(f'bag:{drive}?ego_motion=registration')[1].pair.ego0_T_ego1 for drive in (tmp_path / 'plain', path)
    )
    np.testing.assert_allclose(found[:3, 3], plain[:3, 3], atol=0.05)  # m; different points of walls are used


@pytest.mark.parametrize(('sensor_R_level', 'said'), [
    (UPSIDE_DOWN, 'hangs upside down'), (OPTICAL, 'optical frame'),
], ids=['upside down', 'optical'])  # fmt: skip
def test_a_turned_sensor_without_a_mount_is_refused_with_the_option_that_helps(tmp_path, sensor_R_level, said, capsys):
    path, _ = turned_bag(tmp_path, sensor_R_level, told=False)
    with pytest.raises(DataError, match=said) as error:
        open_dataset(f'bag:{path}')
    assert 'bag:PATH?base_T_lidar=... to [' in str(error.value) and 'sensor_height=1.7' not in str(error.value)
    assert label.main([f'bag:{path}', '--out', str(tmp_path / 'labels')]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('pose', ['1,2,3', 'a,b', '0,0,0,0,0,0,0', '0,0,1,0,0,0,1,5'])
def test_a_pose_that_is_none(tmp_path, pose):
    with pytest.raises(DataError, match='base_T_lidar should be x,y,z,qx,qy,qz,qw'):
        open_dataset(f'bag:{write_bag(tmp_path / "drive", num_sweeps=2)}?base_T_lidar={pose}')


def test_label_ends_with_what_was_dropped(tmp_path, capsys):
    with Bag(write_bag(tmp_path / 'plain', num_sweeps=6)) as bag, BagWriter(tmp_path / 'drive') as out:
        for k, m in enumerate(bag.messages([topic.name for topic in bag.topics])):
            cdr = m.cdr
            if m.msgtype == POINT_CLOUD and k > 10:
                message = decode_message(cdr, POINT_CLOUD)
                message.fields[0].name = 'a'
                cdr = encode_message(message, POINT_CLOUD)
            if m.msgtype != TRANSFORMS:
                out.write(m.topic, m.msgtype, m.time_ns, cdr)
    assert label.main([f'bag:{tmp_path / "drive"}', '--out', str(tmp_path / 'labels'), '--pairs', '1']) == 0
    said = capsys.readouterr().out
    assert 'drive: 6 sweeps, ' in said and 'malformed_cloud: A cloud must have x, y and z' in said
    assert 'labels for ' in said and 'pairs labelled in' in said.splitlines()[-1]
