# SPDX-License-Identifier: Apache-2.0
"""Folders as users have them: split bags, no metadata.yaml or a wrong one, several bags, links."""

import os
import shutil

import pytest
import yaml
from tiny_bag import CLOUD_TOPIC, ODOMETRY_TOPIC, write_bag

from zeroflow_ros.bags.bag import Bag, BagWriter
from zeroflow_ros.bags.blocks import zstd
from zeroflow_ros.bags.recording import find_recording, looks_like_recording
from zeroflow_ros.errors import DataError

ALL = (CLOUD_TOPIC, ODOMETRY_TOPIC, '/tf')
PARTS = 3


def read(path):
    with Bag(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, bytes(m.cdr)) for m in bag.messages(ALL)], bag.notes


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    path = write_bag(tmp_path_factory.mktemp('whole') / 'bag', num_sweeps=2 * PARTS, num_points=500)
    return read(path)[0]


@pytest.fixture
def split(expected, tmp_path):
    """Return a folder as `ros2 bag record --max-bag-duration` writes it: three files, and metadata.yaml."""
    folder = tmp_path / 'drive'
    folder.mkdir()
    for part in range(PARTS):
        with BagWriter(folder / f'drive_{part}.mcap') as writer:
            for message in expected[6 * part : 6 * part + 6]:
                writer.write(*message)
    write_metadata(folder, [f'drive_{part}.mcap' for part in range(PARTS)], len(expected))
    return folder


def write_metadata(folder, names, count):
    text = {'rosbag2_bagfile_information': {
        'version': 5, 'storage_identifier': 'mcap', 'relative_file_paths': names, 'message_count': count}}  # fmt: skip
    (folder / 'metadata.yaml').write_text(yaml.safe_dump(text))


def cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_split_bag_is_read_in_order_of_time_whatever_the_order_of_its_files(split, expected):
    assert read(split) == (expected, [])
    write_metadata(split, ['drive_2.mcap', 'drive_0.mcap', 'drive_1.mcap'], len(expected))
    assert read(split) == (expected, [])


METADATA = {
    'none': None,
    'empty': b'',
    'zeros': bytes(600),
    'cut': b'rosbag2_bagfile_information:\n  version: 5\n  relative_file_p',
    'no YAML': b'a: [',
    'a list': b'- 1\n- 2\n',
    'no text': b'\xff\xfe\x00',
}


@pytest.mark.parametrize('label', METADATA)
def test_a_split_bag_of_a_killed_recorder_is_read_without_metadata(split, expected, label):
    if METADATA[label] is None:
        (split / 'metadata.yaml').unlink()
    else:
        (split / 'metadata.yaml').write_bytes(METADATA[label])
    found, notes = read(split)
    assert found == expected
    assert [f'{split}/metadata.yaml is not used' in note for note in notes] == [True] * (METADATA[label] is not None)


def test_the_cut_file_of_a_split_bag_is_named_and_the_others_are_read(split, expected):
    cut(split / 'drive_2.mcap')
    found, notes = read(split)
    assert found == expected[: len(found)]
    assert len(found) >= 12
    assert f'{split}/drive_2.mcap was not closed by its recorder' in notes[0]
    assert f'{len(expected) - len(found)} of {len(expected)} messages less' in notes[1]


def test_a_file_of_a_split_bag_that_cannot_be_read_is_left_out_and_named(split, expected):
    (split / 'drive_1.mcap').write_bytes(b'')
    found, notes = read(split)
    assert found == expected[:6] + expected[12:]
    assert (
        f'{split}/drive_1.mcap cannot be read: it is empty. Record it again, or copy it again. It is left out.' in notes
    )


def test_files_that_metadata_names_and_that_are_missing_are_named(split, expected):
    (split / 'drive_0.mcap').unlink()
    found, notes = read(split)
    assert found == expected[6:]
    assert 'names files that are not there: drive_0.mcap. Copy them, too.' in notes[0]


def test_files_that_were_renamed_are_read(tmp_path, expected):
    folder = write_bag(tmp_path / 'bag', num_sweeps=2 * PARTS, num_points=500)
    (folder / 'bag.mcap').rename(folder / 'MyDrive.MCAP')
    found, notes = read(folder)
    assert found == expected
    assert 'bag.mcap (but MyDrive.MCAP is there and is read)' in notes[0]


def test_the_last_file_of_a_killed_recorder_is_read_though_metadata_does_not_name_it(split, expected):
    write_metadata(split, ['drive_0.mcap', 'drive_1.mcap'], 12)
    shutil.copy(split / 'drive_0.mcap', split / 'flow.mcap')  # of something else
    found, notes = read(split)
    assert found == expected
    assert [f'drive_2.mcap in {split} is missing in metadata.yaml, and is read' in note for note in notes] == [True]


def test_a_packed_file_beside_the_same_file_unpacked_is_not_read_twice(split, expected):
    for file in split.glob('*.mcap'):
        (split / f'{file.name}.zstd').write_bytes(zstd().compress(file.read_bytes()))
    assert read(split) == (expected, [])
    (split / 'drive_1.mcap').unlink()
    assert read(split) == (expected, [])
    (split / 'metadata.yaml').unlink()
    assert read(split) == (expected, [])


def test_one_file_of_a_split_bag_is_only_that_file(split, expected):
    assert read(split / 'drive_1.mcap') == (expected[6:12], [])
    assert find_recording(split / 'metadata.yaml').path == split


def test_a_folder_of_several_bags_lists_them(split, tmp_path):
    shutil.copy(split / 'drive_0.mcap', tmp_path / 'drive_a.mcap')
    shutil.copy(split / 'drive_1.mcap', tmp_path / 'drive_b.mcap')
    with pytest.raises(DataError, match=r'holds 2 bag files.*Give one of them: .*/drive_a\.mcap, .*/drive_b\.mcap'):
        Bag(tmp_path)
    for name in 'ab':
        (tmp_path / f'drive_{name}.mcap').unlink()
    with pytest.raises(DataError, match=r'holds 1 bags\. Give one of them: .*/drive'):
        Bag(tmp_path)


def test_the_parts_of_a_split_rosbag1_are_one_recording(tmp_path, expected):
    whole = write_bag(tmp_path / 'whole', 'rosbag1', 4, num_points=500)
    names = ('drive_2024-05-01-10-00-00_0.bag', 'drive_2024-05-01-10-01-00_1.bag.active')
    for name in names:
        shutil.copy(whole, tmp_path / name)
    whole.unlink()
    recording = find_recording(tmp_path)
    assert [file.name for file in recording.files] == list(names)
    with Bag(tmp_path) as bag:  # both at the same time: merged
        times = [message.time_ns for message in bag.messages(ALL)]
    assert len(times) == 24
    assert times == sorted(times)


def test_links_are_followed_and_one_to_nowhere_says_so(split, expected, tmp_path):
    (tmp_path / 'link').symlink_to(split)
    assert read(tmp_path / 'link') == (expected, [])
    os.symlink('/data/nowhere/a.mcap', tmp_path / 'a.mcap')
    with pytest.raises(DataError, match=r'it is a link to /data/nowhere/a\.mcap, which does not exist'):
        Bag(tmp_path / 'a.mcap')


def test_what_looks_like_a_recording(split, tmp_path):
    for name, expected in {'a.BAG': True, 'b.db3.zstd': True, 'c.bag.active': True, 'd.pcap': False}.items():
        path = tmp_path / name
        path.write_bytes(b'x')
        assert looks_like_recording(path) == expected
    assert looks_like_recording(split)
    assert not looks_like_recording(tmp_path / 'none')
