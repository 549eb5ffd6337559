# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings of every format, messages and box files, for all offline readers."""

import copy
import json
import random
import shutil
from dataclasses import replace

import numpy as np
from example_card import CARD
from hostile_examples import damage
from point_engine import PointEngine
from tiny_bag import FORMATS, START_NS, write_bag

from training.datasets.rosbag import BagOptions, BagPairs
from training.datasets.tracked_boxes import TrackedBoxes
from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.blocks import zstd
from zeroflow_ros.bags.cdr import POINT_CLOUD, decode_message
from zeroflow_ros.errors import ZeroFlowError
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.lidar.point_cloud import decode_cloud
from zeroflow_ros.runtime.offline import FLOW_TOPIC, OfflineFlow, write_flow
from zeroflow_ros.views.recorded_flow import count_moving

_NUM_SWEEPS, _NUM_POINTS = 3, 300
_CARD = replace(CARD, grid=PillarGrid(128, 0.8, -2.0, 4.0))  # the street lies within its 51 m
_WAYS = ('read', 'offline', 'pairs', 'tf', 'picture')
_BOX = {'track_id': 1, 'category': 'Car', 'center': [8.0, 3.0, -1.0], 'size_lwh': [4.0, 2.0, 1.6], 'yaw': 0.1}
_BOXES = {'sweeps': [[_BOX]] * _NUM_SWEEPS, 'lidar_to_image_3x4': np.eye(3, 4).tolist(), 'image_size_wh': [640, 480]}
_JSON = b'[[[[[]]]]],{{{"track_id":[1],"center":"123",1e999,-0,null,NaN,"category":7,"yaw":99999999999999999999999999'


_ODD = (None, True, 0, -1, 10**400, 1e308, float('nan'), '', '123', 'Car', 'x' * 10**5, [], {}, [1], ['a'], [[]],
        [1e308] * 3, ['1', '2', '3'], [[[]]], {'yaw': 1})  # fmt: skip


def _with_odd_value(value, rng):
    """Return nested JSON with an odd value in one or two places."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(_ODD)
    changed = copy.copy(value)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        changed[place] = _with_odd_value(value[place], rng)
    return changed


class _Still(PointEngine):
    def flow(self, source, target):
        return np.zeros_like(source)


class Bags:
    """Every bag format, with and without metadata.yaml, read by the readers of all programs in turn."""

    limit_s, margin_mb = 20.0, 1024

    def __init__(self, seed, folder):
        self._seed, self._folder = seed, folder / 'bags'
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._good = [write_bag(self._folder / name, name, _NUM_SWEEPS, num_points=_NUM_POINTS) for name in FORMATS]
        flow = self._folder / 'flow'
        with Bag(self._good[2]) as bag, BagWriter(flow) as writer:
            list(write_flow(OfflineFlow(bag, _Still(_CARD)), self._good[2], writer))
            messages = list(bag.messages([topic.name for topic in bag.topics]))
        self._messages = [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in messages]
        with Bag(flow) as bag:
            self._flow_messages = [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages([FLOW_TOPIC])]
        compressed = self._folder / 'compressed'
        with BagWriter(compressed, compress=True) as writer:
            for message in self._messages:
                writer.write(*message)
        self._good += [flow, compressed]
        self._hostile = self._folder / 'hostile'
        for way in _WAYS:
            self._use(way, flow if way == 'picture' else self._good[2], None)

    def prepare(self, case):
        shutil.rmtree(self._hostile, ignore_errors=True)
        self._hostile.mkdir()
        self._random = random.Random(f'{self._seed} {case}')

    def run(self, case):
        rng, what = self._random, ('storage', 'storage', 'messages', 'boxes')[case % 4]
        way, boxes = rng.choice(_WAYS), None
        if what == 'storage':
            good = rng.choice(self._good)
            way = 'picture' if good.name == 'flow' and rng.random() < 0.5 else way
            path = self._damaged_bag(good, rng)
        elif what == 'messages':
            path = self._damaged_messages(self._flow_messages if way == 'picture' else self._messages, rng)
        else:
            path, way, boxes = self._good[2], 'pairs', self._hostile / 'boxes.json'
            text = json.dumps(_with_odd_value(_BOXES, rng)).encode()
            boxes.write_bytes(damage(text, rng, _JSON) if rng.random() < 0.4 else text)
        try:
            self._use(way, path, boxes)
        finally:
            if case % 50 == 0:
                self._use('offline', self._good[2], None)
        return f'served ({what})'

    def _damaged_bag(self, good, rng):
        """Copy a bag with damage to its file or its metadata.yaml; return its path."""
        path = self._hostile / good.name
        if good.is_file():
            path.write_bytes(damage(good.read_bytes(), rng))
            return path
        shutil.copytree(good, path)
        [storage] = [file for file in path.iterdir() if file.suffix in ('.mcap', '.db3')]
        metadata = path / 'metadata.yaml'
        if rng.random() < 0.25:
            metadata.write_bytes(damage(metadata.read_bytes(), rng, b': [{&a *a !!int "x" ~ 1e999 -1 2024-99-99\n- '))
            return path
        storage.write_bytes(damage(storage.read_bytes(), rng))
        if rng.random() < 0.1:  # a packed file
            packed = storage.with_name(f'{storage.name}.zstd')
            packed.write_bytes(zstd().compress(storage.read_bytes()))
            return packed
        if storage.suffix == '.db3' and rng.random() < 0.2:  # what a killed recorder leaves
            storage.with_name(f'{storage.name}-wal').write_bytes(rng.randbytes(rng.choice((10, 4200))))
        if rng.random() < 0.5:
            return storage
        return path

    def _damaged_messages(self, messages, rng):
        """Write an intact bag with some damaged messages; return its path."""
        path = self._hostile / 'bag'
        with BagWriter(path) as writer:
            for topic, msgtype, time_ns, cdr in messages:
                is_damaged = rng.random() < 0.4
                head, rest = (cdr[:250], cdr[250:]) if rng.random() < 0.8 else (cdr, b'')
                cdr = damage(head, rng) + rest if is_damaged else cdr
                writer.write(topic, msgtype, max(0, time_ns + rng.choice((0, 0, 0, -(10**9), 10**12))), cdr)
        return path

    def _use(self, way, path, boxes):
        if way == 'read':
            _read_all(path)
        elif way == 'offline':
            with Bag(path) as bag:
                flow = OfflineFlow(bag, _Still(_CARD), ego_motion=self._ego_motion())
                for result in flow:
                    assert (result.estimate is None) == (result.drop is not None)
        elif way == 'picture':
            count_moving(path)
        else:
            options = BagOptions(ego_motion='tf' if way == 'tf' else self._ego_motion(), sensor_height=1.8)
            pairs = BagPairs(path, boxes and TrackedBoxes.read(boxes), options)
            for index in range(len(pairs)):
                pairs[index]

    def _ego_motion(self):
        return random.choice(('none', 'odometry')) if not hasattr(self, '_random') else self._random.choice(
            ('none', 'odometry', 'auto'))  # fmt: skip

    def finish(self):
        return {}


def _read_all(path):
    with Bag(path) as bag:
        assert bag.list_topics() and bag.duration < 1e12
        for message in bag.messages([topic.name for topic in bag.topics], start_ns=START_NS - 10**9):
            try:
                decoded = decode_message(message.cdr, message.msgtype)
                if message.msgtype == POINT_CLOUD:
                    decode_cloud(decoded)
            except ZeroFlowError:  # one message is bad; the next may be good
                continue
