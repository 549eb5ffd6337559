# SPDX-License-Identifier: Apache-2.0
"""Hostile clouds over DDS for a node process: messages, and damaged serialised bytes."""

import random
import re
import resource
import time

import numpy as np
from flow_node import Drive, NodeProcess, Vehicle, cloud, column
from hostile_clouds import clouds
from hostile_examples import Examples, damage
from rclpy.serialization import serialize_message
from sensor_msgs.msg import PointCloud2, PointField

from zeroflow_ros.lidar.sweep import DropReason

_PACE_S = 0.01  # so that the node processes each cloud before the next one replaces it
_BATCH = 50
_NODE_MARGIN_MB = 1500  # address space that the node may add after its first flow
_NODE_GROWTH_MB = 400  # 12 MB clouds in flight, decoded, and kept by malloc
_LATE_GROWTH_MB = 60  # growth from the first to the second half of a run: a leak continues
_MOST_SWEEPS = 12
_LINES_PER_S = 4  # each of the fourteen issues logs at most one line in 5 s
_MIDDLEWARE = 'sequence size exceeds remaining buffer'  # Fast DDS on invalid bytes; not ours to throttle
_HEAD = 300  # bytes of a serialised cloud before its points


class Dds:
    """Every fourth cloud is damaged bytes; after each batch, two intact sweeps must get flow."""

    limit_s, margin_mb = 30.0, 4096

    def __init__(self, seed, _folder):
        self._seed, self._messages = seed, Examples(clouds(any_type=False), seed)
        self._node = NodeProcess('-p', 'ego_motion:=none', '-p', 'max_points:=5000', '-p', 'input_timeout_s:=30.0')
        self._vehicle = Vehicle(markers=True)
        self._vehicle.connect(self._node)
        self._num_flows = 0
        self._drive = Drive(self._node, self._vehicle)
        self._serve()
        pid = self._node.process.pid
        limit = int((status_mb(pid, 'VmSize') + _NODE_MARGIN_MB) * 2**20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        self._start_mb, self._started, self._resident_mb = self._node.resident_mb(), time.monotonic(), []
        self._sent = 0

    def prepare(self, case):
        self._random = random.Random(f'{self._seed} {case}')
        self._msg = _ros_message(self._messages[case])
        if case % 4 == 3:
            good = bytes(serialize_message(cloud(Drive.points, self._drive.now_ns)))
            self._msg = damage(good[:_HEAD], self._random) + good[_HEAD:]
        elif self._random.random() < 0.5:  # else bad stamps mostly hide the errors behind them
            now_ns = self._drive.tick()
            self._msg.header.stamp.sec, self._msg.header.stamp.nanosec = divmod(now_ns, 10**9)

    def run(self, case):
        self._vehicle.clouds_out.publish(self._msg)
        self._sent += 1
        self._vehicle.spin(_PACE_S)
        assert self._node.process.poll() is None, f'the node ended with {self._node.process.poll()}'
        if case % _BATCH == _BATCH - 1:
            self._serve()
            self._resident_mb.append(self._node.resident_mb())
            return 'sent, and good sweeps served'
        return 'sent'

    def _serve(self):
        """Send good sweeps until two in a row have flow for all points.

        The first one has no previous sweep. If hostile clouds distorted the estimated sensor height, it takes as many
        good sweeps as bad ones to correct it.
        """
        self._num_flows += len(self._vehicle.flows)
        del self._vehicle.flows[:], self._vehicle.markers[:]
        self._drive.tick(2.0)
        in_a_row = 0
        for _ in range(_MOST_SWEEPS):
            flow = self._vehicle.flow_of(self._drive.good(), timeout=1.0)
            is_whole = flow is not None and np.count_nonzero(column(flow, 'flow_valid')) == len(Drive.points)
            in_a_row = in_a_row + 1 if is_whole else 0
            if in_a_row == 2:
                return
        raise AssertionError(f'good sweeps have no flow any more: {self._node.log[-2000:]}')

    def finish(self):
        findings = []
        self._serve()
        self._drive.fresh()
        counts = {r.value: count for r in DropReason if (count := self._drive.dropped(r.value))}
        half = len(self._resident_mb) // 2
        early, late = ([self._start_mb, *part] for part in (self._resident_mb[:half], self._resident_mb[half:]))
        growth_mb, late_mb = max(late) - self._start_mb, max(late) - max(early)
        seconds = time.monotonic() - self._started
        ours = [line for line in self._node.lines if _MIDDLEWARE not in line]
        counts['flow'] = self._num_flows + len(self._vehicle.flows)
        if counts.get('engine_failed'):
            said = re.findall('This sweep failed: .*', self._node.log)
            findings.append(f'{counts["engine_failed"]} clouds failed inside the pipeline: {said[:5]}')
        if counts.get('malformed_cloud', 0) < self._sent // 10:
            findings.append(f'only {counts.get("malformed_cloud", 0)} of {self._sent} clouds were seen to be malformed')
        if growth_mb > _NODE_GROWTH_MB or (half > 5 and late_mb > _LATE_GROWTH_MB):
            findings.append(f'the node grew by {growth_mb:.0f} MB, late by {late_mb:.0f} MB')
        if len(ours) > 50 + _LINES_PER_S * seconds or max(map(len, ours)) > 5000:
            findings.append(f'the log has {len(ours)} lines in {seconds:.0f} s, the longest {max(map(len, ours))}')
        code, stop_s = self._node.stop()
        if code != 0 or 'Traceback' in self._node.log:
            findings.append(f'the node ended with {code} after {stop_s:.1f} s: {self._node.log[-1500:]}')
        self._vehicle.close()
        self._node.__exit__()
        return {'findings': findings, 'growth_mb': growth_mb, 'outcomes': {'sent': self._sent, **counts}}


def _ros_message(drawn) -> PointCloud2:
    """Convert a drawn message to a ROS message; values outside a field's type are converted."""
    msg = PointCloud2(height=drawn.height, width=drawn.width, is_bigendian=drawn.is_bigendian,
                      point_step=drawn.point_step, row_step=drawn.row_step, is_dense=drawn.is_dense)  # fmt: skip
    msg.header.stamp.sec, msg.header.stamp.nanosec = drawn.header.stamp.sec, drawn.header.stamp.nanosec
    msg.header.frame_id = _text(drawn.header.frame_id)
    made = {id(f): PointField(name=_text(f.name), offset=f.offset, datatype=f.datatype, count=f.count)
            for f in drawn.fields}  # fmt: skip
    msg.fields = [made[id(f)] for f in drawn.fields]
    msg.data = drawn.data
    return msg


def _text(text: str) -> str:
    return text.encode(errors='replace').decode().replace('\0', ' ')


def status_mb(pid: int, name: str) -> float:
    with open(f'/proc/{pid}/status') as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name + ':'))
