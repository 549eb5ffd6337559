# SPDX-License-Identifier: Apache-2.0
"""KITTI scene flow in the official layout: small files of a writer of their own, and the real samples."""

import shutil

import kitti_files
import numpy as np
import pytest
from kitti_files import CAR, OCCLUDED, UNKNOWN, photo, png, truth_images, write, write_scene

from training.datasets import STEREO, SWEEPS, open_dataset, sensor_of
from zeroflow_ros.errors import DataError


def read(root, options=''):
    return open_dataset(f'kitti_scene_flow:{root}{options}', (STEREO,))


def test_a_scene_is_read_as_it_was_written(tmp_path):
    dataset = read(write_scene(tmp_path))
    item = dataset[0]
    assert len(dataset) == 1 and item.key == dataset.key(0) == '000000_10' and sensor_of(dataset) == STEREO
    assert (item.dt, item.other_T_reference, item.boxes) == (0.1, None, None)
    for frame, number in ((item.reference, 10), (item.other, 11)):
        np.testing.assert_array_equal(frame.left, photo(100 * number + 2))  # RGB, red first
        np.testing.assert_array_equal(frame.right, photo(100 * number + 3))
        assert frame.stamp_ns == number * 10**8
    camera = item.reference.camera
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.cy) == (24, 10, 20, 12, 5)
    assert camera.baseline == pytest.approx(0.5)


def test_the_truth_has_its_units_and_what_is_not_known_is_nan(tmp_path):
    truth = read(write_scene(tmp_path))[0].truth
    known = np.ones((10, 24), bool)
    known[UNKNOWN] = False
    for name in ('disparity', 'other_disparity', 'flow'):
        value = getattr(kitti_files, name.upper())
        found = getattr(truth, name)
        assert (found[known] == np.float32(value)).all() and np.isnan(found[UNKNOWN]).all()
        visible = known.copy()
        visible[OCCLUDED] = False
        np.testing.assert_array_equal(getattr(truth, f'is_{name}_noc'), visible)
    assert truth.is_foreground.sum() == 40 and truth.is_foreground[CAR].all() and truth.is_moving is None


def test_a_test_split_has_no_truth(tmp_path):
    dataset = read(write_scene(tmp_path, truth=False))
    assert not dataset.has_truth and dataset[0].truth is None


def test_the_multi_view_extension_gives_every_pair_of_frames(tmp_path):
    for scene in (0, 3):
        write_scene(tmp_path, scene, frames=range(8, 13))
    dataset = read(tmp_path, '?frames=all')
    keys = [dataset.key(index) for index in range(len(dataset))]
    assert keys == [f'{scene:06d}_{frame:02d}' for scene in (0, 3) for frame in range(8, 12)]
    assert [dataset[index].truth is not None for index in range(4)] == [False, False, True, False]
    np.testing.assert_array_equal(dataset[3].other.left, photo(1202))
    assert len(read(tmp_path)) == 2


def damaged(root, change):
    write_scene(root)
    change(root)
    return root


def _eight_bits(folder):
    return lambda root: write(root / folder / '000000_10.png', png((truth_images()[folder] >> 8).astype(np.uint8)))


@pytest.mark.parametrize(
    'label, change, said',
    [
        ('no calibration folder', lambda root: shutil.rmtree(root / 'calib_cam_to_cam'),
         'lacks the folder calib_cam_to_cam. It is in data_scene_flow_calib.zip'),
        ('no right images', lambda root: shutil.rmtree(root / 'image_3'), 'lacks the folder image_3'),
        ('a missing image', lambda root: (root / 'image_3' / '000000_11.png').unlink(),
         'lacks 1 of 12 files, for example image_3/000000_11.png'),
        ('a missing calibration', lambda root: (root / 'calib_cam_to_cam' / '000000.txt').unlink(),
         'calib_cam_to_cam/000000.txt'),
        ('a missing folder of truth', lambda root: shutil.rmtree(root / 'flow_noc'), 'but lacks flow_noc'),
        ('a missing file of truth', lambda root: (root / 'obj_map' / '000000_10.png').unlink(),
         'obj_map/000000_10.png'),
        ('no image at all', lambda root: [path.unlink() for path in (root / 'image_2').iterdir()],
         'no image named NNNNNN_10.png'),
        ('flow of 8 bits', _eight_bits('flow_occ'),
         r'flow_occ/000000_10.png should be a 16-bit RGB .* got 8 bits and 3'),
        ('disparity of 8 bits', _eight_bits('disp_noc_1'), 'disp_noc_1/000000_10.png should be a 16-bit grey'),
        ('an image of another size', lambda root: write(root / 'image_2' / '000000_11.png', png(photo(1, 20, 10))),
         r'image_2/000000_11.png is 20 x 10 pixels, expected 24 x 10 as in .*calib_cam_to_cam/000000.txt'),
        ('truth of another size',
         lambda root: write(root / 'obj_map' / '000000_10.png', png(np.zeros((10, 20), np.uint8))),
         'obj_map/000000_10.png is 20 x 10 pixels, expected 24 x 10'),
        ('a damaged image', lambda root: write(root / 'image_2' / '000000_10.png', png(photo(1))[:60]),
         'image_2/000000_10.png is not a PNG, or is damaged'),
        ('a 16-bit image', lambda root: write(root / 'image_2' / '000000_10.png', png(photo(1).astype(np.uint16))),
         'should be an 8-bit grey or RGB image, got 16 bits'),
        ('flow where occ has none', lambda root: shutil.copy(root / 'disp_noc_1' / '000000_10.png',
                                                             root / 'disp_occ_1' / '000000_10.png')
         and write(root / 'disp_noc_1' / '000000_10.png', png(np.ones((10, 24), np.uint16))),
         'disp_noc_1/000000_10.png has values where disp_occ_1 has none'),
        ('calibration without the right camera',
         lambda root: write(root / 'calib_cam_to_cam' / '000000.txt', 'S_rect_02: 24 10\nP_rect_02: ' + '1 ' * 12),
         'lacks P_rect_03'),
        ('calibration that is cut',
         lambda root: write(root / 'calib_cam_to_cam' / '000000.txt', 'P_rect_02: 1 2 3'),
         'P_rect_02 should be 12 finite numbers'),
        ('swapped cameras',
         lambda root: write(root / 'calib_cam_to_cam' / '000000.txt',
                            kitti_files.camera_calibration().replace('_02', '_0x').replace('_03', '_02')
                            .replace('_0x', '_03') + '\nS_rect_02: 24 10'),
         'baseline of a stereo camera must be positive'),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(tmp_path, label, change, said):
    with pytest.raises(DataError, match=said):
        read(damaged(tmp_path, change))[0]


def test_a_folder_of_splits_asks_for_one(tmp_path):
    write_scene(tmp_path / 'training')
    with pytest.raises(DataError, match=rf'name one of them: kitti_scene_flow:{tmp_path}/training'):
        read(tmp_path)
    with pytest.raises(DataError, match='is no folder'):
        read(tmp_path / 'absent')
    with pytest.raises(DataError, match="10 or all, got '9'"):
        read(tmp_path / 'training', '?frames=9')


def test_a_program_for_the_other_sensor_refuses_it(tmp_path):
    write_scene(tmp_path)
    for spec in (f'kitti_scene_flow:{tmp_path}', str(tmp_path)):  # a bare path is recognised
        with pytest.raises(DataError, match='holds pairs of stereo images, and pairs of LiDAR sweeps are needed here'):
            open_dataset(spec)
        assert len(open_dataset(spec, (SWEEPS, STEREO))) == 1
    with pytest.raises(DataError, match=r'holds pairs of LiDAR sweeps, and pairs of stereo .* kitti_scene_flow:'):
        open_dataset('simulation:0', (STEREO,))


def test_the_real_samples_are_read(shared_data):
    dataset = read(shared_data / 'kitti_sceneflow' / 'training')
    assert [dataset.key(index) for index in range(2)] == ['000002_10', '000003_10']
    item = dataset[1]
    assert item.reference.left.shape == (375, 1242, 3)
    assert item.reference.camera.baseline == pytest.approx(0.5327, abs=1e-4)
    truth = item.truth
    # Ground truth by LiDAR covers the lower part of the image; everything is closer than the baseline allows.
    assert 0.1 < truth.has_disparity.mean() < 0.5 and np.nanmax(truth.disparity) < 256
    assert truth.is_flow_noc.sum() < truth.has_flow.sum() and truth.is_foreground.any()
    assert not (truth.has_flow & ~truth.has_disparity).any()
