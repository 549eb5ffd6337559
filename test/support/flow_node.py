# SPDX-License-Identifier: Apache-2.0
"""A flow node process, and a vehicle that communicates with it over DDS."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from processes import DOMAIN_ID, ROOT, environment
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Float64
from visualization_msgs.msg import Marker

DATATYPES = {'f4': 7, 'f8': 8, 'i4': 5, 'u1': 2, 'u2': 4}


def spin_until(executor, predicate, timeout: float):
    """Spin until the predicate holds; return its value, or None after the timeout."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := predicate():
            return found
        executor.spin_once(timeout_sec=0.02)
    return None


class NodeProcess:
    """The node, started with ROS arguments and killed at the end. `lines` holds its log."""

    def __init__(self, *ros_args: str, program=('-m', 'zeroflow_ros.node')):
        command = [sys.executable, *program, '--ros-args', *ros_args]
        self.process = subprocess.Popen(
            command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip('\n'))

    @property
    def log(self) -> str:
        return '\n'.join(self.lines)

    def resident_mb(self) -> float:
        with open(f'/proc/{self.process.pid}/status') as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith('VmRSS'))

    def stop(self, number=signal.SIGINT, timeout=10.0) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(timeout=2)
        return code, time.monotonic() - start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(5)
        self._reader.join(timeout=2)
        self.process.stdout.close()


class Vehicle:
    """Publishes clouds and odometry to a node, and stores its output."""

    def __init__(self, namespace='', *, reliability=ReliabilityPolicy.RELIABLE, debug=(), markers=True, flow=True):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN_ID)
        self.node = rclpy.create_node(f'vehicle_{id(self)}', context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.flows, self.markers, self.values = [], [], {name: [] for name in debug}
        self.statuses, self.report_times = {}, []  # times of diagnostic messages [s]
        node = f'{namespace}/flow_node'
        qos = QoSProfile(depth=10, reliability=reliability)
        self.clouds_out = self.node.create_publisher(PointCloud2, f'{node}/input/pointcloud', qos)
        self.odometry_out = self.node.create_publisher(Odometry, f'{node}/input/odometry', 10)
        if flow:
            self.flow_in = self.node.create_subscription(PointCloud2, f'{node}/output/flow', self.flows.append, 10)
        if markers:
            self.node.create_subscription(Marker, f'{node}/output/markers', self.markers.append, 10)
        for name in debug:
            self.node.create_subscription(
                Float64, f'{node}/debug/{name}', lambda msg, name=name: self.values[name].append(msg.data), 10
            )
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._client = self.node.create_client(SetParameters, f'{node}/set_parameters')
        self._name = node.lstrip('/')

    def _on_diagnostics(self, msg):
        ours = {s.name.split(': ')[1]: s for s in msg.status if s.name.startswith(f'{self._name}: ')}
        if ours:
            self.statuses = ours
            self.report_times.append(time.monotonic())

    def wait_for(self, predicate, timeout=20.0):
        """Spin until the predicate holds; return its value, or None after the timeout."""
        return spin_until(self._executor, predicate, timeout)

    def spin(self, seconds: float):
        self.wait_for(lambda: False, seconds)

    def connect(self, node: NodeProcess, timeout=30.0):
        """Wait until node and vehicle have discovered each other."""

        def ready():
            assert node.process.poll() is None, node.log
            listens = self.clouds_out.get_subscription_count()
            if 'motion from odometry' in node.log:
                listens = listens and self.odometry_out.get_subscription_count()
            return listens and self.node.count_publishers(f'/{self._name}/output/flow') and self.statuses

        assert self.wait_for(ready, timeout), node.log
        self.spin(0.1)

    def drive(self, stamp_ns: int, x: float = 0.0, *, child_frame='', quaternion=(0.0, 0.0, 0.0, 1.0)):
        """Publish the pose x [m] at a stamp."""
        msg = Odometry(child_frame_id=child_frame)
        msg.header.frame_id = 'odom'
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        msg.pose.pose.position.x = x
        o = msg.pose.pose.orientation
        o.x, o.y, o.z, o.w = quaternion
        self.odometry_out.publish(msg)

    def send(self, msg: PointCloud2):
        self.clouds_out.publish(msg)

    def flow_of(self, stamp_ns: int, timeout=20.0):
        """Wait for the flow of the sweep with this stamp."""

        def found():
            return next((m for m in self.flows if stamp_of(m) == stamp_ns), None)

        return self.wait_for(found, timeout)

    def status(self, part: str, predicate, timeout=8.0):
        """Wait until the diagnostic status of a part satisfies the predicate(status, values); return the status."""

        def found():
            status = self.statuses.get(part)
            return status if status and predicate(status, {v.key: v.value for v in status.values}) else None

        return self.wait_for(found, timeout)

    def call(self, client, request, tries=6):
        """Return the answer of a service.

        A server that has not discovered this client yet drops its answer, so the request is repeated every 5 s.
        """
        assert client.wait_for_service(timeout_sec=20)
        futures = []
        for _ in range(tries):
            futures.append(client.call_async(request))
            answered = self.wait_for(lambda: next((future for future in futures if future.done()), None), 5)
            if answered:
                return answered.result()
        raise AssertionError(f'{client.srv_name} gave no answer to {tries} requests')

    def set_parameter(self, name: str, value):
        """Set a parameter of the node; return rcl_interfaces/SetParametersResult."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(self._client, request).results[0]

    def close(self):
        self._executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def stamp_of(msg) -> int:
    return msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec


def scene(*, num_points=3000, box_x=10.0, seed=0) -> np.ndarray:
    """Return a street, (N, 3) float32 [m] around a sensor 1.8 m above it; the last third is a car at box_x."""
    rng = np.random.default_rng(seed)
    third = num_points // 3
    ground = np.c_[rng.uniform(-30, 30, (third, 2)), np.full(third, -1.8)]
    wall = np.c_[rng.uniform(-30, 30, third), np.full(third, 12.0), rng.uniform(-1.8, 2, third)]
    car = rng.uniform([box_x, 2, -1.6], [box_x + 4, 4, 0], (num_points - 2 * third, 3))
    return np.concatenate([ground, wall, car]).astype(np.float32)


def cloud(points, stamp_ns: int, *, frame_id='lidar', types=('f4', 'f4', 'f4', 'f4'), height=1, point_padding=0,
          row_padding=0, is_bigendian=False, names=('x', 'y', 'z', 'intensity')) -> PointCloud2:  # fmt: skip
    """Return points (N, 3) as a PointCloud2; a fourth field counts the rows, or is their `time` in a sweep of 0.1 s."""
    points = np.asarray(points, np.float64)
    order = '>' if is_bigendian else '<'
    offsets = np.cumsum([0, *(int(t[1]) for t in types)]).tolist()
    point_step = offsets[-1] + point_padding
    dtype = np.dtype({'names': list(names), 'formats': [order + t for t in types], 'offsets': offsets[:-1],
                      'itemsize': point_step})  # fmt: skip
    rows = np.zeros(len(points), dtype)
    columns = dict(zip('xyz', points.T, strict=True)) | {'intensity': np.arange(len(points)) % 200}
    columns['time'] = 0.1 * np.arange(len(points)) / max(1, len(points))
    for name in names:
        rows[name] = columns[name].astype(np.float64)
    width = len(points) // height
    data = np.zeros((height, width * point_step + row_padding), np.uint8)
    data[:, : width * point_step] = rows.view(np.uint8).reshape(height, -1)
    msg = PointCloud2(height=height, width=width, is_bigendian=is_bigendian, point_step=point_step,
                      row_step=data.shape[1], data=data.tobytes())  # fmt: skip
    msg.fields = [
        PointField(name=n, offset=o, datatype=DATATYPES[t], count=1)
        for n, o, t in zip(names, offsets, types, strict=False)
    ]
    msg.header.frame_id = frame_id
    msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return msg


def column(msg: PointCloud2, name: str) -> np.ndarray:
    """Return one field of a cloud, (N,)."""
    types = {number: t for t, number in DATATYPES.items()}
    field = next(f for f in msg.fields if f.name == name)
    order = '>' if msg.is_bigendian else '<'
    if msg.height * msg.width == 0:
        return np.zeros(0)
    view = np.ndarray((msg.height, msg.width), order + types[field.datatype], buffer=bytes(msg.data),
                      offset=field.offset, strides=(msg.row_step, msg.point_step))  # fmt: skip
    return view.ravel()


class Drive:
    """A stationary vehicle in a street; its time differs from the node's clock."""

    points = scene(num_points=1500)

    def __init__(self, node, vehicle):
        self.node, self.vehicle = node, vehicle
        self.now_ns = 1_000 * 10**9

    def tick(self, seconds=0.1, x=0.0) -> int:
        """Advance the time and publish a pose; return the stamp of the next sweep."""
        self.now_ns += round(seconds * 1e9)
        self.vehicle.drive(self.now_ns, x)
        return self.now_ns

    def send(self, msg):
        self.vehicle.send(msg)

    def good(self, **layout) -> int:
        """Send an intact sweep; return its stamp."""
        stamp_ns = self.tick()
        # Time goes back in one of the tests: a flow from before may have the same stamp.
        self.vehicle.flows[:] = [flow for flow in self.vehicle.flows if stamp_of(flow) != stamp_ns]
        self.send(cloud(self.points, stamp_ns, **layout))
        return stamp_ns

    def serve(self):
        """Send up to five intact sweeps until one has flow; the first may have no previous sweep."""
        for _ in range(5):
            flow = self.vehicle.flow_of(self.good(), timeout=1.0)
            if flow is not None:
                assert np.count_nonzero(column(flow, 'flow_valid')) > 1000
                return flow
        raise AssertionError(f'no flow any more: {self.node.log}')

    def dropped(self, reason: str) -> int:
        for status in self.vehicle.statuses.values():
            for value in status.values:
                if value.key == f'dropped.{reason}':
                    return int(value.value)
        return 0

    def fresh(self):
        """Wait for a diagnostic message created after this call."""
        seen = len(self.vehicle.report_times)
        assert self.vehicle.wait_for(lambda: len(self.vehicle.report_times) > seen, 10), self.node.log
