# SPDX-License-Identifier: Apache-2.0
"""TFRecord files: checksums, cut and damaged files, and files that are none."""

import gzip
import zlib

import numpy as np
import pytest
from waymo_files import masked, record

from training.datasets.tfrecord import CutFileError, crc32c, masked_crc32c, read_record, records
from zeroflow_ros.errors import DataError


@pytest.mark.parametrize(
    'data, expected',
    [
        (b'', 0x00000000),
        (b'123456789', 0xE3069283),  # the check value of CRC-32C
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b'\xff' * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksums_of_the_standard(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize('size', [1, 2, 255, 4095, 4096, 4097, 70_001])
def test_checksums_of_any_length_equal_those_computed_byte_by_byte(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert masked_crc32c(data) == masked(data)


def write(tmp_path, content: bytes):
    (tmp_path / 'a.tfrecord').write_bytes(content)
    return tmp_path / 'a.tfrecord'


def test_records_are_listed_and_read(tmp_path):
    contents = [b'one', b'', bytes(5000)]
    path = write(tmp_path, b''.join(map(record, contents)))
    found = [(item, bytes(data)) for item, data in records(path)]
    assert [data for _, data in found] == contents == [read_record(item) for item, _ in found]
    assert [item.number for item, _ in found] == [0, 1, 2]


@pytest.mark.parametrize(
    'content, said',
    [
        (b'', 'is empty or missing'),
        (gzip.compress(record(b'abc')), r'compressed with gzip. Unpack it: zcat a\.tfrecord'),
        (zlib.compress(record(b'abc' * 99)), 'compressed with zlib'),
        (b'PAR1 and more than that', 'not a TFRecord file'),
        (b'short', 'is cut within record 0'),
        (record(b'abc')[:-1], 'is cut within record 0'),
    ],
)
def test_files_that_are_none_are_told_apart(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        list(records(write(tmp_path, content)))


@pytest.mark.parametrize(
    'second, said',
    [
        (record(b'abcd')[:-1], 'is cut within record 1'),
        (record(b'abcd')[:7], 'is cut within record 1'),
        (b'\1' + record(b'abcd')[1:], 'is damaged after record 0'),
        ((1 << 60).to_bytes(8, 'little') + masked((1 << 60).to_bytes(8, 'little')).to_bytes(4, 'little'), 'is cut'),
    ],
)
def test_what_is_before_the_damage_is_given(tmp_path, second, said):
    found = []
    with pytest.raises(CutFileError, match=said):
        found.extend(bytes(data) for _, data in records(write(tmp_path, record(b'first') + second)))
    assert found == [] or found == [b'first']


def test_damaged_data_are_refused_when_they_are_read(tmp_path):
    content = bytearray(record(b'first') + record(b'second'))
    content[-6] ^= 1
    found = [item for item, _ in records(write(tmp_path, bytes(content)))]
    assert read_record(found[0]) == b'first'
    with pytest.raises(DataError, match='record 1 is damaged, its checksum is wrong'):
        read_record(found[1])
    write(tmp_path, bytes(content)[:-3])
    with pytest.raises(DataError, match='is cut within record 1'):
        read_record(found[1])
