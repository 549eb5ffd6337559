# SPDX-License-Identifier: Apache-2.0
"""Published lists of KITTI: the forms of their lines, the lists that are shipped, and files that are not there."""

from pathlib import Path

import pytest
from kitti_files import write, write_drive, write_scene

from training import datasets
from training.datasets import STEREO, open_dataset
from training.datasets.kitti_raw_list import read_list
from zeroflow_ros.errors import DataError

SPLITS = Path(datasets.__file__).parent / 'splits'
DRIVE = '2011_09_26_drive_0005_sync'


@pytest.mark.parametrize(
    'line, expected',
    [
        (f'2011_09_26/{DRIVE} 0000000069 l', [(DRIVE, 69)]),
        (f'2011_09_26/{DRIVE} 69 r', []),
        (
            f'2011_09_26/{DRIVE}/image_02/data/0000000069.png 2011_09_26/{DRIVE}/image_03/data/0000000069.png',
            [(DRIVE, 69)],
        ),
        (f'2011_09_26/{DRIVE}/image_02/data/0000000069.jpg', [(DRIVE, 69)]),
        (f'2011_09_26/{DRIVE}/image_03/data/0000000069.jpg', []),
        (f'{DRIVE} 0000000000', [(DRIVE, 0)]),
        (DRIVE, [(DRIVE, None)]),
        ('', []),
    ],
)
def test_lines_as_they_are_published(tmp_path, line, expected):
    path = write(tmp_path / 'list.txt', f'{line}\n2011_10_03_drive_0027_sync 12\n')
    assert read_list(path) == [*expected, ('2011_10_03_drive_0027_sync', 12)]


@pytest.mark.parametrize(
    'line', ['000002', f'{DRIVE} frame', f'{DRIVE}_0', f'{DRIVE} 1 2.png3 \n x', 'drive_0005_sync 3']
)
def test_other_lines_are_refused(tmp_path, line):
    with pytest.raises(DataError, match=r'line [12] should name a frame'):
        read_list(write(tmp_path / 'list.txt', line))


def test_a_list_opens_the_frames_of_its_drives(tmp_path):
    write_drive(tmp_path / '2011_09_26', [(k, 0) for k in range(4)])
    path = write(tmp_path / 'list.txt', f'{DRIVE} 2\n{DRIVE} 0\n{DRIVE} 3\n')
    dataset = open_dataset(f'kitti_raw_list:{tmp_path}+{path}', (STEREO,))
    assert [dataset.key(k).split('/')[1][:10] for k in range(2)] == ['0000000002', '0000000000'] and len(dataset) == 2
    item = dataset[0]
    assert item.key == dataset.key(0) and item.key.startswith(f'{DRIVE}/') and len(item.earlier(5)) == 2
    assert dataset.skipped == {'no_next_frame': 1} and '1 frames of the list make no pair' in dataset.warnings[0]
    whole = open_dataset(f'kitti_raw_list:{tmp_path}+{write(tmp_path / "drives.txt", DRIVE)}', (STEREO,))
    assert len(whole) == 3


@pytest.mark.parametrize(
    'text, says',
    [
        (
            f'{DRIVE}\n2011_09_26_drive_0009_sync 1\n',
            r'names 2 drives, of which .* lacks 1, .*2011_09_26_drive_0009_sync',
        ),
        (f'{DRIVE} 1\n{DRIVE} 7\n', r'names 2 images, of which 1 are not there, .*0000000007\.png.*\.jpg'),
        (f'{DRIVE} 3\n', 'none of 1 frames makes a pair'),
        ('\n', 'names no frame'),
    ],
)
def test_a_list_that_names_files_that_are_not_there(tmp_path, text, says):
    write_drive(tmp_path / '2011_09_26', [(k, 0) for k in range(4)])
    with pytest.raises(DataError, match=says):
        open_dataset(f'kitti_raw_list:{tmp_path}+{write(tmp_path / "list.txt", text)}', (STEREO,))


def test_the_lists_that_are_shipped(tmp_path):
    assert len(read_list(SPLITS / 'multi_mono_sf_validation.txt')) == 7
    named = {
        name: (SPLITS / f'multi_mono_sf_finetuning_{name}.txt').read_text().split()
        for name in ('training', 'validation')
    }
    assert len(named['training']) == 160 and len(named['validation']) == 40
    assert sorted(named['training'] + named['validation']) == [f'{scene:06d}' for scene in range(200)]
    assert named['validation'][:3] == ['000002', '000034', '000035'] and named['validation'][-1] == '000199'


def test_scenes_of_a_list(tmp_path):
    for scene in range(3):
        root = write_scene(tmp_path / 'training', scene)
    path = write(tmp_path / 'scenes.txt', '2\n000000\n')
    dataset = open_dataset(f'kitti_scene_flow:{root}?scenes={path}', (STEREO,))
    assert [dataset.key(k) for k in range(len(dataset))] == ['000000_10', '000002_10']
    with pytest.raises(DataError, match=r'names 40 scenes, of which .* lacks 39, for example 000034'):
        open_dataset(f'kitti_scene_flow:{root}?scenes={SPLITS}/multi_mono_sf_finetuning_validation.txt', (STEREO,))
    with pytest.raises(DataError, match="the number of a scene in each line, as 000002, got 'two'"):
        open_dataset(f'kitti_scene_flow:{root}?scenes={write(path, "2 two")}', (STEREO,))
