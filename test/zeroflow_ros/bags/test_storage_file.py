# SPDX-License-Identifier: Apache-2.0
"""Files that are packed, named in another way, or are no recording at all."""

import gc
import multiprocessing
import tempfile

import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, write_bag

from zeroflow_ros.bags import storage_file
from zeroflow_ros.bags.bag import Bag
from zeroflow_ros.bags.blocks import zstd
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')
STORAGE = {'mcap': 'mcap', 'sqlite3': 'db3'}


def read(path):
    with Bag(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)], bag.notes


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    """Return {format: (path of the file, its messages)}."""
    folder = tmp_path_factory.mktemp('bags')
    paths = {storage: next(write_bag(folder / storage, storage, 4, num_points=1000).glob(f'*.{suffix}'))
             for storage, suffix in STORAGE.items()}  # fmt: skip
    paths['rosbag1'] = write_bag(folder / 'rosbag1', 'rosbag1', 4, num_points=1000)
    return {storage: (path, read(path)[0]) for storage, path in paths.items()}


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'rosbag1'])
@pytest.mark.parametrize('name', ['drive{}.zstd', 'drive{}.zst', 'DRIVE{}.ZSTD'])
def test_a_file_that_is_packed_by_zstd_is_read(bags, tmp_path, storage, name):
    path, expected = bags[storage]
    packed = tmp_path / name.format(path.suffix)
    packed.write_bytes(zstd().compress(path.read_bytes()))
    assert read(packed) == (expected, [])
    assert read(tmp_path) == (expected, [])  # its folder, without metadata.yaml


def test_a_packed_file_that_is_cut_is_read_up_to_the_cut_and_named(tmp_path):
    folder = write_bag(tmp_path / 'bag', num_sweeps=30, num_points=1000)
    expected, _ = read(folder)
    packed = tmp_path / 'bag.mcap.zstd'
    content = zstd().compress((folder / 'bag.mcap').read_bytes())
    packed.write_bytes(content[: len(content) * 3 // 4])
    found, notes = read(packed)
    assert found == expected[: len(found)]
    assert len(found) > len(expected) // 3
    assert f'{packed} is cut or damaged' in notes[0]
    packed.write_bytes(content[:100])  # not one complete block
    with pytest.raises(DataError, match=r'bag\.mcap\.zstd, unpacked, cannot be read: it is empty'):
        Bag(packed)


@pytest.mark.parametrize('storage', STORAGE)
@pytest.mark.parametrize('mode', CompressionMode)
def test_compression_by_rosbag2_is_read_with_and_without_metadata(bags, tmp_path, storage, mode):
    if mode == CompressionMode.STORAGE and storage == 'sqlite3':
        pytest.skip('sqlite3 has no compression of its own')
    _, expected = bags[storage]
    folder, store = tmp_path / 'bag', get_typestore(Stores.LATEST)
    writer = Writer(folder, version=8, storage_plugin=StoragePlugin[storage.upper()])
    if mode != CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, msgtype, time_ns, cdr in expected:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=store)
            writer.write(connections[topic], time_ns, cdr)
    assert read(folder) == (expected, [])
    (folder / 'metadata.yaml').unlink()
    assert read(folder) == (expected, [])
    [file] = folder.iterdir()
    assert read(file) == (expected, [])


@pytest.mark.parametrize('name', ['DRIVE{}', 'drive{}.part', 'drive', 'drive{}.1'])
@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'rosbag1'])
def test_a_file_is_known_by_its_content_not_by_its_name(bags, tmp_path, storage, name):
    path, expected = bags[storage]
    other = tmp_path / name.format(path.suffix.upper())
    other.write_bytes(path.read_bytes())
    found, notes = read(other)
    assert found == expected
    assert ['download that is not finished' in note for note in notes] == [True] * name.endswith('part')


FOREIGN = {
    'Git LFS': (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n', 'git lfs pull'),
    'git-annex': (b'/annex/objects/MD5E-s57--1.mcap\n', 'git annex get'),
    'web page': (b'<!DOCTYPE html><html><head>', 'is a web page.*Download the file again'),
    'gzip': (b'\x1f\x8b\x08\x00' + bytes(90), 'is a gzip archive.*`gunzip'),
    'zip': (b'PK\x03\x04' + bytes(90), 'is a zip archive.*`unzip'),
    'rosbag 1.2': (b'#ROSBAG V1.2\n' + bytes(90), '`rosbag reindex'),
    'packet capture': (b'\xd4\xc3\xb2\xa1' + bytes(90), 'packet capture.*record its clouds'),
    'zeros': (bytes(5000), 'begins with zeros: The download|begins with zeros. The download'),
    'nothing': (b'', 'it is empty'),
    'noise': (b'qwertzuiop' * 9, r"begins with b'qwertzuiopqw'"),
}


@pytest.mark.parametrize('label', FOREIGN)
@pytest.mark.parametrize('suffix', ['.mcap', '.db3', '.bag'])
def test_a_file_that_is_no_recording_is_named_with_its_cause(tmp_path, label, suffix):
    content, expected = FOREIGN[label]
    path = tmp_path / f'drive{suffix}'
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as error:
        Bag(path)
    assert str(error.value).startswith(f'{path} cannot be read: ')


def _read_all(path):
    read(path)


def test_an_unpacked_copy_is_deleted_at_the_end_of_a_worker_process(bags, tmp_path, monkeypatch):
    temporary = tmp_path / 'tmp'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    packed = tmp_path / 'a.mcap.zstd'
    packed.write_bytes(zstd().compress(bags['mcap'][0].read_bytes()))
    worker = multiprocessing.get_context('fork').Process(target=_read_all, args=(packed,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert not list(temporary.iterdir())


def test_an_unpacked_copy_is_deleted_when_it_is_not_used_any_more(bags, tmp_path, monkeypatch):
    temporary = tmp_path / 'tmp'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    path, expected = bags['mcap']
    packed = tmp_path / 'a.mcap.zstd'
    packed.write_bytes(zstd().compress(path.read_bytes()))
    for _ in range(3):
        assert read(packed)[0] == expected
    assert len(list(temporary.iterdir())) == 1  # once for all that read it
    storage_file._unpacked.cache_clear()
    gc.collect()
    assert not list(temporary.iterdir())
