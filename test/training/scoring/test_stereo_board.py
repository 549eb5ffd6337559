# SPDX-License-Identifier: Apache-2.0
"""Submissions to the KITTI scene flow board: names, encoding, sizes; nothing that the board would refuse."""

import zipfile

import numpy as np
import pytest
from kitti_files import HEIGHT, WIDTH, png, write_scene

from training.datasets import STEREO, open_dataset
from training.datasets.kitti_png import decode, encode_disparity, encode_flow
from training.scoring.stereo_board import check_stereo_archive
from training.submit import main, submit_stereo
from zeroflow_ros.camera.stereo import StereoFlow
from zeroflow_ros.errors import DataError


class Known:
    """Says that everything is at 2 px, comes to 3.5 px and moves by (1, -0.5) px, but for the first pixel."""

    name = 'known'

    def __init__(self, size=(HEIGHT, WIDTH), fill=1.0):
        self.size, self.fill = size, fill

    def estimate(self, reference, other, other_T_reference=None):
        disparity = np.full(self.size, 2 * self.fill, np.float32)
        disparity[0, 0] = np.nan
        flow = np.empty((*self.size, 2), np.float32)
        flow[:] = self.fill, -0.5
        sigma = np.ones(self.size, np.float32)
        return StereoFlow(disparity, disparity + 1.5, flow, sigma, sigma, sigma, np.isfinite(disparity))


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """Return a split of two scenes without truth."""
    root = tmp_path_factory.mktemp('testing')
    for scene in range(2):
        write_scene(root, scene, truth=False)
    return open_dataset(f'kitti_scene_flow:{root}', (STEREO,))


def test_the_archive_has_three_files_for_each_scene(split, tmp_path):
    found = submit_stereo(Known(), split, tmp_path / 'new' / 'kitti.zip', num_scenes=2)
    assert found == {'files': 6, 'without_value': pytest.approx(1 / 240)}
    with zipfile.ZipFile(tmp_path / 'new' / 'kitti.zip') as archive:
        assert sorted(archive.namelist()) == [
            f'{folder}/{scene:06d}_10.png' for folder in ('disp_0', 'disp_1', 'flow') for scene in range(2)
        ]
        images = {name[:6]: decode(archive.read(name), name) for name in archive.namelist() if '000001' in name}
    assert images['disp_0'][0, 0] == 0 and (images['disp_0'].ravel()[1:] == 512).all()
    assert images['disp_1'][1, 1] == 3.5 * 256 and images['disp_0'].shape == (HEIGHT, WIDTH)
    assert images['flow/0'][1, 1, ::-1].tolist() == [32768 + 64, 32768 - 32, 1]


@pytest.mark.parametrize(
    'label, estimator, said',
    [
        ('another size', Known((HEIGHT, WIDTH - 1)), r'000000_10: the images are \(10, 24\), disp_0 .* \(10, 23\)'),
        ('nothing', Known(fill=np.nan), '000000_10: the estimate has no value for disp_0'),
    ],
)
def test_what_the_board_refuses_leaves_the_old_archive(split, tmp_path, label, estimator, said):
    out = tmp_path / 'kitti.zip'
    out.write_text('old')
    with pytest.raises(DataError, match=said):
        submit_stereo(estimator, split, out, num_scenes=2)
    assert out.read_text() == 'old' and [path.name for path in tmp_path.iterdir()] == ['kitti.zip']


def test_a_part_of_the_split_is_refused(split, tmp_path, capsys):
    arguments = ['classical', f'kitti_scene_flow:{split.root}', '--board', 'kitti_scene_flow']
    assert main([*arguments, '--out', str(tmp_path / 'kitti.zip')]) == 1
    assert 'has 2 pairs, the board scores 200, 000000_10 to 000199_10; one that differs is 000002_10' in (
        capsys.readouterr().err
    )
    assert main([arguments[0], 'simulation:0', *arguments[2:], '--out', str(tmp_path / 'kitti.zip')]) == 1
    assert 'pairs of stereo images are needed here' in capsys.readouterr().err


DISPARITY = encode_disparity(np.ones((2, 3)))
FLOW = encode_flow(np.ones((2, 3, 2)))


@pytest.mark.parametrize(
    'label, change, said',
    [
        ('nothing', {}, ''),
        ('a missing file', {'flow/000000_10.png': None}, 'holds 2 files, expected 3, .* differs is flow/000000_10.png'),
        ('another folder', {'disp_2/000000_10.png': DISPARITY}, 'one that differs is disp_2/000000_10.png'),
        (
            '8 bits',
            {'disp_1/000000_10.png': png(np.ones((2, 3), np.uint8))},
            'disp_1/000000_10.png .* got 8 bits and 1',
        ),
        ('no flow', {'flow/000000_10.png': DISPARITY}, 'should be a 16-bit PNG of 3 channels, got 16 bits and 1'),
        (
            'another size',
            {'disp_0/000000_10.png': encode_disparity(np.ones((2, 4)))},
            'is 4 x 2 pixels, its image 3 x 2',
        ),
        ('no value', {'disp_0/000000_10.png': encode_disparity(np.full((2, 3), np.nan))}, 'has no pixel with a value'),
        ('another mask', {'flow/000000_10.png': png(np.full((2, 3, 3), 9, np.uint16))}, '0 or 1 in its blue channel'),
        ('no PNG', {'flow/000000_10.png': b'text'}, 'flow/000000_10.png is not a PNG'),
    ],
)
def test_an_archive_is_checked_file_by_file(tmp_path, label, change, said):
    files = {'disp_0/000000_10.png': DISPARITY, 'disp_1/000000_10.png': DISPARITY, 'flow/000000_10.png': FLOW} | change
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    if not said:
        check_stereo_archive(tmp_path / 'a.zip', {'000000_10': (2, 3)}, num_scenes=1)
        return
    with pytest.raises(DataError, match=said):
        check_stereo_archive(tmp_path / 'a.zip', {'000000_10': (2, 3)}, num_scenes=1)


def test_what_is_no_archive_is_said(tmp_path):
    (tmp_path / 'a.zip').write_text('text')
    with pytest.raises(DataError, match='is not a zip archive'):
        check_stereo_archive(tmp_path / 'a.zip', {})
