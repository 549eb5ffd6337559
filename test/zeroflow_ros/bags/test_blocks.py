# SPDX-License-Identifier: Apache-2.0
import bz2

import lz4.frame
import numpy as np
import pytest

from zeroflow_ros.bags.blocks import (
    Block,
    BlockIndex,
    BlockStorage,
    count_messages,
    decompress,
    ros_type,
    zstd,
)
from zeroflow_ros.errors import DataError

PACK = {'none': bytes, 'zstd': zstd().compress, 'lz4': lz4.frame.compress, 'bz2': bz2.compress}
DATA = np.random.default_rng(0).integers(0, 16, 400_000, np.uint8).tobytes()


@pytest.mark.parametrize('compression', PACK)
def test_data_is_unpacked_as_far_as_it_is_there_and_not_further_than_its_limit(compression):
    packed = PACK[compression](DATA)
    assert decompress(packed, compression) == DATA
    assert decompress(packed, compression, len(DATA)) == DATA
    assert decompress(packed, compression, 1000) == DATA[:1000]
    assert decompress(b'', compression) == b''
    part = decompress(packed[: len(packed) * 9 // 10], compression)
    assert DATA.startswith(part)
    assert compression == 'bz2' or len(part) > len(DATA) // 3  # bz2 unpacks 900 kB at a time


def test_an_unknown_compression_is_refused():
    with pytest.raises(DataError, match="'brotli' is not supported"):
        decompress(b'x', 'brotli')


@pytest.mark.parametrize(
    'name', ['sensor_msgs/PointCloud2', 'sensor_msgs/msg/PointCloud2', 'sensor_msgs::msg::PointCloud2']
)
def test_types_are_named_as_in_ros2(name):
    assert ros_type(name) == 'sensor_msgs/msg/PointCloud2'
    assert ros_type('foxglove.PointCloud') == 'foxglove.PointCloud'
    assert ros_type('') == ''


def test_blocks_that_overlap_in_time_are_read_in_order_of_time(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'x' * 100)
    content = {0: [(5, 1, b'd'), (0, 2, b'a')], 10: [(3, 1, b'c'), (2, 1, b'b'), (5, 1, b'e')], 20: [(9, 1, b'f')]}
    blocks = tuple(
        Block(offset, 10, '', 10, 0, min(m[0] for m in found), max(m[0] for m in found), dict.fromkeys((1, 2), 1))
        for offset, found in content.items()
    )
    channels = count_messages({1: ('/a', 'A', 'cdr'), 2: ('/b', 'B', 'cdr')}, blocks)
    assert [channel.num_messages for channel in channels] == [3, 3]
    read = []

    def read_block(_, block):
        read.append(block.offset)
        return content[block.offset], block.offset == 20

    storage = BlockStorage(path, BlockIndex(channels, blocks, 0, True), read_block)
    try:
        assert (storage.start_ns, storage.end_ns, storage.notes) == (0, 10, [])
        assert b''.join(data for _, _, data in storage.messages({1, 2})) == b'abcdef'
        assert 'damaged at byte 20' in storage.notes[0]
        assert b''.join(data for _, _, data in storage.messages({1}, 3, 6)) == b'cde'
        assert read == [0, 10, 20, 0, 10]  # a block outside the time is not read
        assert len(storage.notes) == 1
    finally:
        storage.close()
