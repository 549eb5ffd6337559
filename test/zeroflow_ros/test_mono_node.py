# SPDX-License-Identifier: Apache-2.0
"""One camera through the camera node and the object tracker over real DDS, and what the demo makes of its bag."""

from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs rclpy')
pytest.importorskip('cv2', reason='needs OpenCV')
pytest.importorskip('onnx', reason='writing model files needs onnx')

from camera_node import NODE, as_ros  # noqa: E402
from flow_node import Vehicle, column, stamp_of  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from processes import DOMAIN_ID, ROOT  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402
from stereo_corridor import BASE_T_LEFT, PERIOD_NS, START_NS  # noqa: E402
from truth_images import (  # noqa: E402
    HEIGHT,
    IMAGES,
    INFOS,
    MOVER_SPEED,
    WIDTH,
    image_message,
    info_message,
    is_mover,
    odometry_message,
    write_mono_bag,
    write_mono_model,
)
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from zeroflow_ros.camera.pixel_cloud import FIELDS  # noqa: E402
from zeroflow_ros.camera_node import CameraNode  # noqa: E402
from zeroflow_ros.errors import ConfigError, ModelError  # noqa: E402
from zeroflow_ros.object_tracker import ObjectTracker  # noqa: E402
from zeroflow_ros.ros.camera_input import IMAGE, INFO  # noqa: E402
from zeroflow_ros.ros.camera_parameters import CameraParameters  # noqa: E402
from zeroflow_ros.runtime.camera_health import ONE_CAMERA  # noqa: E402
from zeroflow_ros.runtime.demo_source import examine  # noqa: E402
from zeroflow_ros.transforms import to_quaternion  # noqa: E402

OUTPUTS = {'flow': PointCloud2, 'dynamic_points': PointCloud2, 'static_points': PointCloud2, 'markers': Marker,
           'depth': Image}  # fmt: skip
POSE = f'[{",".join(map(str, [*BASE_T_LEFT[:3, 3].tolist(), *to_quaternion(BASE_T_LEFT).tolist()]))}]'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_mono_model(tmp_path_factory.mktemp('mono') / 'm.onnx')


class MonoVehicle(Vehicle):
    """Runs the camera node and an object tracker beside what sends them images and odometry and keeps their output."""

    def __init__(self, model):
        super().__init__(markers=False, flow=False)
        self._name = NODE
        self.image_out = self.node.create_publisher(Image, f'/{NODE}/input/image', 10)
        self.info_out = self.node.create_publisher(CameraInfo, f'/{NODE}/input/camera_info', 10)
        self.poses_out = self.node.create_publisher(Odometry, f'/{NODE}/input/odometry', 10)
        self.tracker_poses_out = self.node.create_publisher(Odometry, '/object_tracker/input/odometry', 10)
        self.received = {name: [] for name in OUTPUTS}
        for name, kind in OUTPUTS.items():
            self.node.create_subscription(kind, f'/{NODE}/output/{name}', self.received[name].append, 10)
        self.objects = []
        self.node.create_subscription(MarkerArray, '/object_tracker/output/objects', self.objects.append, 10)
        options = [
            'sensor:=mono', f'model_path:={model}', 'ego_motion:=odometry', f'odometry_T_camera:={POSE}',
            'output_frame:=base_link', f'output_T_camera:={POSE}', 'cloud_step:=1', 'max_processing_time_ms:=60000.0',
        ]  # fmt: skip
        words = [word for option in options for word in ('-p', option)]
        self.camera = CameraNode(context=self.context, cli_args=['--ros-args', *words])
        assert self.camera.autostart()
        remap = f'/object_tracker/input/dynamic_points:=/{NODE}/output/dynamic_points'
        base = '[0.0,0.0,0.0,0.0,0.0,0.0,1.0]'
        self.tracker = ObjectTracker(
            context=self.context, cli_args=['--ros-args', '-r', remap, '-p', f'odometry_T_lidar:={base}']
        )
        for node in (self.camera, self.tracker):
            self._executor.add_node(node)

    def connect(self):
        publishers = [self.image_out, self.info_out, self.poses_out, self.tracker_poses_out]

        def ready():
            outputs = [self.node.count_publishers(f'/{NODE}/output/{name}') for name in OUTPUTS]
            subscribers = [self.node.count_subscribers(f'/{NODE}/output/dynamic_points') > 1]
            return all([*outputs, *subscribers, *(p.get_subscription_count() for p in publishers)]) and self.statuses

        assert self.wait_for(ready, 60)
        self.spin(0.2)

    def send(self, number, *, info=True, odometry=True, spoil=lambda message: message):
        if odometry:
            for publisher in (self.poses_out, self.tracker_poses_out):
                publisher.publish(as_ros(odometry_message(number)))
        if info:
            self.info_out.publish(as_ros(info_message(number)))
        self.image_out.publish(spoil(as_ros(image_message(number))))

    def flow_of(self, number, timeout=60.0):
        """Wait for the flow of the frame with this number."""
        stamp_ns = START_NS + number * PERIOD_NS
        return self.wait_for(lambda: next((m for m in self.received['flow'] if stamp_of(m) == stamp_ns), None), timeout)

    def dropped(self, reason, count):
        return self.status('input', lambda _, v: v.get(f'dropped.{reason}') == str(count), 60)

    def close(self):
        for node in (self.camera, self.tracker):
            self._executor.remove_node(node)
            node.close()
        super().close()


@pytest.fixture(scope='module')
def vehicle(model):
    with MonoVehicle(model) as vehicle:
        vehicle.connect()
        yield vehicle


@pytest.fixture(scope='module')
def flow(vehicle):
    """The flow of frame 2, after images without CameraInfo."""
    vehicle.send(0, info=False, odometry=False)
    vehicle.send(1, info=False, odometry=False)
    assert vehicle.dropped('no_camera_info', 1), vehicle.statuses
    vehicle.send(1)
    vehicle.send(2)
    assert vehicle.dropped('first_frame', 2), vehicle.statuses
    vehicle.send(3)
    flow = vehicle.flow_of(2)
    assert flow is not None, vehicle.statuses
    return flow


def test_every_pixel_of_the_image_before_has_a_point_and_a_velocity(flow):
    assert (flow.height, flow.width, flow.header.frame_id) == (HEIGHT, WIDTH, 'base_link')
    assert tuple(field.name for field in flow.fields) == FIELDS
    velocity = np.stack([column(flow, name) for name in ('vx', 'vy', 'vz')], axis=1)
    board = is_mover(2).ravel()
    np.testing.assert_allclose(np.nanmedian(velocity[board], axis=0), [0, -MOVER_SPEED, 0], atol=0.05)
    np.testing.assert_allclose(np.nanmedian(velocity[~board], axis=0), 0, atol=0.05)
    assert np.nanmedian(column(flow, 'x')[board]) == pytest.approx(4.8 + BASE_T_LEFT[0, 3], abs=0.02)
    assert np.isfinite(column(flow, 'speed_sigma')[column(flow, 'flow_valid') == 3]).all()


def test_depth_movers_and_the_rest_come_with_it_and_there_is_no_disparity(flow, vehicle):
    stamp_ns = stamp_of(flow)

    def arrived():
        return all(any(stamp_of(m) == stamp_ns for m in found) for found in vehicle.received.values())

    assert vehicle.wait_for(arrived, 20), {name: len(found) for name, found in vehicle.received.items()}
    found = {name: next(m for m in all_of if stamp_of(m) == stamp_ns) for name, all_of in vehicle.received.items()}
    depth = np.frombuffer(bytes(found['depth'].data), np.float32).reshape(HEIGHT, WIDTH)
    assert (found['depth'].encoding, found['depth'].header.frame_id) == ('32FC1', 'left_optical')
    assert np.median(depth[is_mover(2)]) == pytest.approx(4.8, abs=0.01)
    assert found['dynamic_points'].width == pytest.approx(is_mover(2).sum(), abs=25)
    assert found['static_points'].width > 1000 and len(found['markers'].points) >= 2
    assert not vehicle.node.count_publishers(f'/{NODE}/output/disparity')


def test_diagnostics_say_scale_state_and_sensor(flow, vehicle):
    assert vehicle.status('inference', lambda _, v: int(v['published']) >= 1, 60), vehicle.statuses
    values = {part: {v.key: v.value for v in status.values} for part, status in vehicle.statuses.items()}
    assert (values['inference']['scale'], values['inference']['scale_source']) == ('1.000', 'model')
    assert values['inference']['state_starts'] == '1'
    assert (values['model']['estimator'], values['model']['output_on']) == ('m', 'previous')
    assert values['input']['size'] == f'{WIDTH} x {HEIGHT}' and values['input']['camera'].endswith('/input/image')


def test_the_object_tracker_tracks_it_unchanged(flow, vehicle):
    for number in range(4, 9):
        vehicle.send(number)
        assert vehicle.flow_of(number - 1) is not None, vehicle.statuses
    assert vehicle.wait_for(lambda: [array for array in vehicle.objects if len(array.markers) > 1], 30)


def test_bad_images_are_counted_and_the_next_ones_have_flow(flow, vehicle):
    def half(message):
        message.height //= 2
        message.data = message.data[: len(message.data) // 2]
        return message

    vehicle.send(40)
    assert vehicle.dropped('gap_too_long', 1), vehicle.statuses
    vehicle.send(41)
    assert vehicle.dropped('first_frame', 3), vehicle.statuses
    vehicle.send(42)
    assert vehicle.flow_of(41) is not None, vehicle.statuses
    vehicle.send(43, spoil=half)
    said = vehicle.status(
        'input', lambda s, v: v['dropped.malformed_image'] == '1' and 'CameraInfo says' in s.message, 60
    )
    assert said, vehicle.statuses
    vehicle.send(44)
    assert vehicle.flow_of(42) is not None, vehicle.statuses


def test_the_demo_knows_the_sensor_by_the_model(model, tmp_path):
    found = examine(write_mono_bag(tmp_path / 'drive', 3), model=str(model))
    assert (found.topic, found.played, found.num_sweeps, found.kind) == (IMAGES, (IMAGES,), 3, ONE_CAMERA)
    words = found.node_arguments(SimpleNamespace(threads=1, model=str(model)))
    assert {f'~/input/image:={IMAGES}', f'~/input/camera_info:={INFOS}', 'sensor:=mono', 'ego_motion:=odometry',
            'image_transport:=raw', f'model_path:={model}'} <= set(words)  # fmt: skip


@pytest.mark.parametrize(
    'values, said',
    [
        ({}, 'model_path must name a model for one camera'),
        ({'scale': 'gps'}, 'one of model, odometry, camera_height'),
        ({'model_path': 'm', 'scale': 'odometry'}, "but ego_motion is 'visual'. Set ego_motion"),
        ({'model_path': 'm', 'scale': 'camera_height'}, 'set camera_height, in metres'),
        ({'sensor': 'stereo', 'scale': 'odometry'}, 'a stereo camera measures metres'),
    ],
)
def test_parameters_must_make_sense(values, said):
    with pytest.raises(ConfigError, match=said):
        CameraParameters(**{'sensor': 'mono'} | values)


def test_a_model_of_the_other_sensor_is_refused_with_the_reason(model):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN_ID)
    node = CameraNode(context=context, cli_args=['--ros-args', '-p', f'model_path:={model}'])
    with pytest.raises(ModelError, match='Set sensor to mono'):
        node._set_up()
    node.close()
    rclpy.shutdown(context=context)


def test_the_page_has_its_topics():
    page = (ROOT / 'docs' / 'mono.md').read_text()
    assert all(f'`{topic}`' in page for topic in (IMAGE, INFO)) and all(f'~/output/{name}' in page for name in OUTPUTS)
