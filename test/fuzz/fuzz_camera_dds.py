# SPDX-License-Identifier: Apache-2.0
"""Hostile images and CameraInfo over DDS for a camera node process: messages, and damaged serialised bytes."""

import random
import resource
import time

import numpy as np
from camera_node import StereoVehicle, as_ros
from flow_node import NodeProcess, column
from fuzz_dds import status_mb
from fuzz_images import infos, raw_images
from hostile_examples import Examples, damage
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from stereo_corridor import PERIOD_NS, START_NS, image_message, info_message

_PACE_S = 0.01  # so that the node processes each image before the next one
_BATCH = 50
_NODE_MARGIN_MB = 1500  # address space that the node may add after its first flow
_NODE_GROWTH_MB = 400
_MOST_FRAMES = 12
_SCENE = 6  # frames before the camera comes too near to the wall
_LINES_PER_S = 4
_HEAD = 200  # bytes of a serialised image before its pixels


class CameraDds:
    """In turn an Image, a CameraInfo, and damaged bytes of either; after each batch, good frames must get flow."""

    limit_s, margin_mb = 60.0, 4096

    def __init__(self, seed, _folder):
        self._seed, self._examples = seed, [Examples(strategy, seed) for strategy in (raw_images(), infos())]
        self._node = NodeProcess('-p', 'ego_motion:=none', '-p', 'input_timeout_s:=30.0',
                                 program=('-m', 'zeroflow_ros.camera_node'))  # fmt: skip
        self._vehicle = StereoVehicle()
        self._vehicle.connect(self._node)
        self._good = [[as_ros(make(number, side)) for make in (info_message, image_message)]
                      for number in range(_SCENE) for side in range(2)]  # fmt: skip
        self._number, self._sent = 0, 0
        self._serve()
        pid = self._node.process.pid
        limit = int((status_mb(pid, 'VmSize') + _NODE_MARGIN_MB) * 2**20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        self._start_mb, self._started, self._most_mb = self._node.resident_mb(), time.monotonic(), 0.0

    def prepare(self, case):
        rng = random.Random(f'{self._seed} {case}')
        kind, self._side = case % 3, rng.randrange(2)
        if kind == 0:
            self._message = _ros_image(self._examples[0][case // 3])
        elif kind == 1:
            self._message = _ros_info(self._examples[1][case // 3])
        else:
            self._is_info = rng.random() < 0.5
            message = self._good[self._side][0 if self._is_info else 1]
            _set_stamp(message, self._stamp_ns)
            data = bytes(serialize_message(message))
            self._message = damage(data[:_HEAD], rng) + data[_HEAD:]
        if kind < 2:
            self._is_info = kind == 1
            if rng.random() < 0.7:  # else bad stamps mostly hide the errors behind them
                _set_stamp(self._message, self._stamp_ns)
            if rng.random() < 0.7:
                self._message.header.frame_id = 'left_optical'

    def run(self, case):
        (self._vehicle.infos if self._is_info else self._vehicle.images)[self._side].publish(self._message)
        self._sent += 1
        if case % 2:  # so that hostile images find a partner
            self._send(sides=(1 - self._side,))
            self._number += 1
        self._vehicle.spin(_PACE_S)
        assert self._node.process.poll() is None, f'the node ended with {self._node.process.poll()}'
        if case % _BATCH == _BATCH - 1:
            self._serve()
            self._most_mb = max(self._most_mb, self._node.resident_mb())
            return 'sent, and good frames served'
        return 'sent'

    def _serve(self):
        """Send good frames until two in a row have flow."""
        del self._vehicle.flows[:]
        self._number += 20  # a gap: what is before belongs to no pair with it
        in_a_row = 0
        for _ in range(_MOST_FRAMES):
            self._number += 1
            self._send()
            flow = self._vehicle.flow_of(self._stamp_ns, timeout=2.0)
            is_whole = flow is not None and np.mean(column(flow, 'flow_valid') > 0) > 0.3
            in_a_row = in_a_row + 1 if is_whole else 0
            if in_a_row == 2:
                return
        raise AssertionError(f'good frames have no flow any more: {self._node.log[-2000:]}')

    @property
    def _stamp_ns(self) -> int:
        return START_NS + self._number * PERIOD_NS

    def _send(self, sides=(0, 1)):
        """Publish a good frame, stamped now; the camera goes back and forth, so that what it sees stays near."""
        place = abs((self._number + _SCENE) % (2 * _SCENE - 2) - (_SCENE - 1))
        for side in sides:
            for publishers, message in zip((self._vehicle.infos, self._vehicle.images), self._good[2 * place + side],
                                           strict=True):  # fmt: skip
                _set_stamp(message, self._stamp_ns)
                publishers[side].publish(message)

    def finish(self):
        findings = []
        self._serve()
        values = {v.key: int(v.value) for part in ('input', 'inference') for v in self._vehicle.statuses[part].values
                  if v.key.startswith('dropped.') and int(v.value)}  # fmt: skip
        growth_mb, seconds = self._most_mb - self._start_mb, time.monotonic() - self._started
        ours = [line for line in self._node.lines if '[camera_flow_node]' in line]  # the middleware writes, too
        if values.get('dropped.estimator_failed'):
            findings.append(f'{values["dropped.estimator_failed"]} frames failed inside the estimator')
        if growth_mb > _NODE_GROWTH_MB:
            findings.append(f'the node grew by {growth_mb:.0f} MB')
        if len(ours) > 50 + _LINES_PER_S * seconds or max(map(len, ours), default=0) > 5000:
            findings.append(
                f'the log has {len(ours)} lines in {seconds:.0f} s, the longest {max(map(len, ours), default=0)}'
            )
        code, stop_s = self._node.stop()
        if code != 0 or 'Traceback' in self._node.log:
            findings.append(f'the node ended with {code} after {stop_s:.1f} s: {self._node.log[-1500:]}')
        self._vehicle.close()
        self._node.__exit__()
        return {'findings': findings, 'growth_mb': growth_mb, 'outcomes': {'sent': self._sent, **values}}


def _set_stamp(message, stamp_ns: int) -> None:
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)


def _ros_image(drawn) -> Image:
    """Convert a drawn message to a ROS message; values outside a field's type are converted."""
    message = Image(encoding=drawn.encoding[:1000], is_bigendian=drawn.is_bigendian % 256)
    message.height, message.width, message.step = (value % 2**32 for value in (drawn.height, drawn.width, drawn.step))
    message.header.frame_id = drawn.header.frame_id
    message.data = drawn.data if isinstance(drawn.data, bytes) else b''
    return message


def _ros_info(drawn) -> CameraInfo:
    message = CameraInfo(distortion_model=drawn.distortion_model[:1000], d=[float(value) for value in drawn.d])
    for name in ('width', 'height', 'binning_x', 'binning_y'):
        setattr(message, name, getattr(drawn, name) % 2**32)
    for name in ('x_offset', 'y_offset', 'width', 'height'):
        setattr(message.roi, name, getattr(drawn.roi, name) % 2**32)
    for name, length in (('k', 9), ('r', 9), ('p', 12)):
        setattr(message, name, ([float(value) for value in getattr(drawn, name)] + [0.0] * length)[:length])
    return message
