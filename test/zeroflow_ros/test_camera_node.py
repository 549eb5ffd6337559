# SPDX-License-Identifier: Apache-2.0
"""The camera node as users meet it: a process, real DDS, images of a corridor in which a board moves."""

import subprocess
import sys

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')
pytest.importorskip('cv2', reason='needs OpenCV')

from camera_node import NODE, StereoVehicle  # noqa: E402
from flow_node import NodeProcess, column, stamp_of  # noqa: E402
from lifecycle_manager import (  # noqa: E402
    ACTIVATE,
    ACTIVE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    INACTIVE,
    UNCONFIGURED,
    Manager,
)
from processes import ROOT, environment, run  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402
from stereo_corridor import BASE_T_LEFT, CAMERA, EGO_SPEED, MOVER, MOVER_SPEED, START_NS, on_mover  # noqa: E402
from stereo_msgs.msg import DisparityImage  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from zeroflow_ros.camera.pixel_cloud import FIELDS, unpacked_rgb  # noqa: E402
from zeroflow_ros.errors import ConfigError  # noqa: E402
from zeroflow_ros.ros.camera_parameters import CameraParameters  # noqa: E402
from zeroflow_ros.ros.parameters import parameter_table  # noqa: E402
from zeroflow_ros.transforms import apply, to_quaternion  # noqa: E402

PROGRAM = '-m', 'zeroflow_ros.camera_node'
OUTPUTS = [('dynamic_points', PointCloud2), ('static_points', PointCloud2), ('markers', Marker), ('depth', Image),
           ('disparity', DisparityImage)]  # fmt: skip
POSE = ','.join(map(str, [*BASE_T_LEFT[:3, 3].tolist(), *to_quaternion(BASE_T_LEFT).tolist()]))


@pytest.fixture(scope='module')
def node():
    with NodeProcess('-p', 'max_processing_time_ms:=60000.0', '-p', 'cloud_step:=1', program=PROGRAM) as node:
        yield node


@pytest.fixture(scope='module')
def vehicle(node):
    with StereoVehicle(others=OUTPUTS) as vehicle:
        vehicle.connect(node)
        yield vehicle


@pytest.fixture(scope='module')
def flow(node, vehicle):
    """The flow of the second frame."""
    vehicle.send(0)
    assert vehicle.status('input', lambda _, v: v['dropped.first_frame'] == '1', 30), node.log
    stamp_ns = vehicle.send(1)
    flow = vehicle.flow_of(stamp_ns, 30)
    assert flow is not None, node.log
    return flow


def vectors(cloud, *names):
    return np.stack([column(cloud, name) for name in names], axis=1)


def test_every_pixel_has_a_point_and_a_velocity(flow):
    assert (flow.height, flow.width, flow.header.frame_id) == (CAMERA.height, CAMERA.width, 'left_optical')
    assert tuple(field.name for field in flow.fields) == FIELDS and not flow.is_dense
    velocity, valid = vectors(flow, 'vx', 'vy', 'vz'), column(flow, 'flow_valid')
    np.testing.assert_array_equal(np.isfinite(velocity).all(axis=1), valid == 3)
    assert np.mean(valid == 3) > 0.5 and set(valid) == {0, 3}
    board = on_mover(0.1).ravel()
    np.testing.assert_allclose(np.nanmedian(velocity[board], axis=0), [MOVER_SPEED, 0, 0], atol=0.5)
    np.testing.assert_allclose(np.nanmedian(velocity[~board], axis=0), 0, atol=0.2)
    assert np.nanmedian(column(flow, 'z')[board]) == pytest.approx(MOVER - 0.1 * EGO_SPEED, abs=0.1)
    assert np.isfinite(column(flow, 'speed_sigma')[valid == 3]).all()


def test_depth_disparity_movers_and_the_rest_come_with_it(flow, vehicle):
    stamp_ns = stamp_of(flow)

    def arrived():
        return all(any(stamp_of(m) == stamp_ns for m in vehicle.received[name]) for name, _ in OUTPUTS)

    assert vehicle.wait_for(arrived, 10), {name: len(found) for name, found in vehicle.received.items()}
    found = {name: next(m for m in vehicle.received[name] if stamp_of(m) == stamp_ns) for name, _ in OUTPUTS}
    depth = np.frombuffer(bytes(found['depth'].data), np.float32).reshape(CAMERA.height, CAMERA.width)
    assert (found['depth'].encoding, found['depth'].header.frame_id) == ('32FC1', 'left_optical')
    np.testing.assert_allclose(depth.ravel(), column(flow, 'z'), rtol=1e-5)
    image = found['disparity']
    disparity = np.frombuffer(bytes(image.image.data), np.float32).reshape(depth.shape)
    known = disparity >= image.min_disparity
    np.testing.assert_array_equal(known, np.isfinite(depth))
    np.testing.assert_allclose(image.f * image.t / disparity[known], depth[known], rtol=1e-4)
    movers, rest = found['dynamic_points'], found['static_points']
    board = on_mover(0.1).ravel()
    assert 0.25 * board.sum() < movers.width < 1.5 * board.sum()  # its edges are left out
    assert movers.width + rest.width == np.isfinite(column(flow, 'z')).sum() and rest.is_dense
    assert np.median(column(movers, 'vx')) == pytest.approx(MOVER_SPEED, abs=0.4)
    assert column(rest, 'rgb').dtype == np.float32 and unpacked_rgb(column(rest, 'rgb')).std() > 20
    marker = found['markers']
    assert marker.type == marker.LINE_LIST and marker.header.frame_id == 'left_optical'
    tail, head = ([p.x, p.y, p.z] for p in marker.points[:2])
    assert head[0] - tail[0] == pytest.approx(0.5 * MOVER_SPEED, abs=0.4)  # half a second of motion


def test_diagnostics_say_what_came_and_what_was_dropped(flow, node, vehicle):
    status = vehicle.status('inference', lambda _, v: v['published'] == '1')
    assert status is not None, vehicle.statuses
    values = {part: {v.key: v.value for v in status.values} for part, status in vehicle.statuses.items()}
    assert (
        values['input']['size'] == f'{CAMERA.width} x {CAMERA.height}' and values['input']['frame_id'] == 'left_optical'
    )
    assert values['model']['estimator'] == 'classical' and values['ego_motion']['source'] == 'visual'
    assert 'ego motion from the images' in node.log and 'computes velocities for the latest frame of' in node.log
    assert 'cloud' not in ' '.join(status.message for status in vehicle.statuses.values())


def test_bad_images_are_counted_and_the_next_frames_have_flow(flow, node, vehicle):
    def without_encoding(side, message):
        message.encoding = 'mono9'
        return message

    vehicle.send(2, spoil=without_encoding)
    assert vehicle.status('input', lambda s, v: v['dropped.malformed_image'] == '1' and "'mono9'" in s.message), (
        node.log
    )
    vehicle.send(3, sides=(0,))
    vehicle.send(4)
    assert vehicle.status('input', lambda _, v: v['dropped.no_partner_image'] == '1'), node.log
    stamp_ns = vehicle.send(5)
    assert vehicle.flow_of(stamp_ns, 20) is not None, node.log
    code, _ = node.stop()
    assert code == 0 and 'Traceback' not in node.log, node.log


def test_odometry_and_a_frame_with_z_up():
    options = [f'odometry_T_camera:=[{POSE}]', 'ego_motion:=odometry', 'output_frame:=base_link',
               f'output_T_camera:=[{POSE}]', 'max_processing_time_ms:=60000.0']  # fmt: skip
    with NodeProcess(*(word for option in options for word in ('-p', option)), program=PROGRAM) as node:
        with StereoVehicle() as vehicle:
            vehicle.connect(node)
            vehicle.send(0, odometry=True)
            assert vehicle.status('input', lambda _, v: v['dropped.first_frame'] == '1', 30), node.log
            flow = vehicle.flow_of(vehicle.send(1, odometry=True), 30)
            assert flow is not None, node.log
            stamp_ns = vehicle.send(2)  # its odometry is missing
            assert vehicle.status('ego_motion', lambda _, v: v['dropped.no_ego_motion'] == '1'), node.log
            assert all(stamp_of(one) != stamp_ns for one in vehicle.flows)
    assert (flow.header.frame_id, flow.height, flow.width) == ('base_link', CAMERA.height // 2, CAMERA.width // 2)
    board = on_mover(0.1)[::2, ::2].ravel()
    velocity, points = vectors(flow, 'vx', 'vy', 'vz'), vectors(flow, 'x', 'y', 'z')
    np.testing.assert_allclose(np.nanmedian(velocity[board], axis=0), [0, -MOVER_SPEED, 0], atol=0.5)
    middle = apply(BASE_T_LEFT, np.array([[0, 0, MOVER - 0.1 * EGO_SPEED]]))[0]
    assert np.nanmedian(points[board, 0]) == pytest.approx(middle[0], abs=0.1)
    assert START_NS < stamp_of(flow)


def test_a_mount_that_nobody_publishes_is_said():
    with NodeProcess('-p', 'output_frame:=base_link', program=PROGRAM) as node, StereoVehicle() as vehicle:
        vehicle.connect(node)
        for number in range(2):
            vehicle.send(number)
            vehicle.spin(0.3)
        said = lambda s, v: v['dropped.unusable_calibration'] == '1' and 'is mounted on output_frame' in s.message  # noqa: E731
        assert vehicle.status('input', said), node.log
        assert not vehicle.flows


def test_a_manager_takes_it_through_its_states():
    with NodeProcess('-p', 'autostart:=false', program=PROGRAM) as node, StereoVehicle() as vehicle:
        manager = Manager(vehicle, f'/{NODE}')
        assert manager.state() == UNCONFIGURED and manager.change(CONFIGURE) and manager.state() == INACTIVE
        vehicle.connect(node)
        vehicle.send(0)
        assert vehicle.status('inference', lambda _, v: v['active'] == 'False', 10), node.log
        assert manager.change(ACTIVATE) and manager.state() == ACTIVE
        # The first frame of an active node makes a pair with the last one that came before.
        assert vehicle.flow_of(vehicle.send(1), 30) is not None, node.log
        assert manager.change(DEACTIVATE) and manager.change(CLEANUP) and manager.state() == UNCONFIGURED
        assert not vehicle.node.count_publishers(f'/{NODE}/output/depth'), node.log


@pytest.mark.parametrize(
    'values, said',
    [
        ({'ego_motion': 'registration'}, 'one of odometry, tf, visual, none'),
        ({'image_transport': 'theora'}, 'one of raw, compressed'),
        ({'output_T_camera': (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)}, 'Set output_frame, too'),
        ({'odometry_T_camera': (0.0,) * 7}, 'odometry_T_camera must be'),
        ({'ego_motion': 'tf', 'fixed_frame': ''}, 'fixed_frame must name a frame'),
        ({'min_dt_s': 0.5, 'max_dt_s': 0.4}, 'min_dt_s must be below max_dt_s'),
        ({'cloud_step': 0}, 'from 1 to 64'),
    ],
)
def test_parameters_must_make_sense(values, said):
    with pytest.raises(ConfigError, match=said):
        CameraParameters(**values)


def test_a_wrong_parameter_ends_the_node_at_start():
    code, text = run('camera_node', '--ros-args', '-p', 'cloudstep:=2', timeout=60)
    assert code == 1 and "nearest known one is 'cloud_step'" in text and 'Traceback' not in text, text


TRY_OUT = """
import gc
import resource
import sys
from numba.core.registry import CPUDispatcher

sys.path.insert(0, 'test/support')
from stereo_corridor import frame
from zeroflow_ros import camera_node
from zeroflow_ros.camera.classical_flow import ClassicalStereoFlow
from zeroflow_ros.camera_pipeline import CameraPipeline
from zeroflow_ros.runtime.malloc_tuning import keep_freed_memory

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def compilations():
    found = [each for each in gc.get_objects() if type(each) is CPUDispatcher]
    ours = [each.py_func for each in found if each.signatures and each.py_func.__module__.startswith('zeroflow_ros')]
    return sorted(f'{function.__module__}.{function.__name__}' for function in ours)

keep_freed_memory()
pipeline = CameraPipeline(ClassicalStereoFlow(), ego_motion='visual', step=2)
camera_node._warm_up(pipeline)
large = [camera_node._walls_and_a_mover(shift, scale=4) for shift in (4, 12)]
faults = page_faults()
pipeline.estimate(*large, 0.1)
faults = page_faults() - faults
assert faults < 3000, f'{faults} pages of memory were taken from the system for the first frames'
before = compilations()
estimate = pipeline.estimate(frame(0), frame(1), 0.1)
assert (estimate.velocity[..., 0] > 1).any(), 'nothing moves'
assert before and compilations() == before, (before, compilations())
"""


def test_nothing_is_compiled_and_no_memory_is_taken_after_the_node_said_it_is_ready():
    pytest.importorskip('numba', reason='without numba nothing is compiled at all')
    done = subprocess.run([sys.executable, '-c', TRY_OUT], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_page_has_its_parameters_and_topics():
    page = (ROOT / 'docs' / 'stereo.md').read_text()
    assert parameter_table(CameraParameters) in page
    from zeroflow_ros.ros.camera_input import LEFT_IMAGE, LEFT_INFO, RIGHT_IMAGE, RIGHT_INFO
    from zeroflow_ros.ros.camera_publishers import TOPICS

    assert all(f'`{topic}`' in page for topic in (*TOPICS, LEFT_IMAGE, LEFT_INFO, RIGHT_IMAGE, RIGHT_INFO))
    done = subprocess.run([sys.executable, *PROGRAM, '--parameters'], env=environment(), cwd=ROOT, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.stdout.strip() == parameter_table(CameraParameters) and NODE in page
