# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip('embreex', reason='ray casting needs embreex: pip install embreex')
pytest.importorskip('cv2', reason='simulated images need OpenCV')

from training import simulate
from training.datasets import STEREO, open_dataset, sensor_of
from training.simulation.cameras.stereo_drive import simulate_stereo
from zeroflow_ros import transforms
from zeroflow_ros.errors import DataError

OPTIONS = '?camera=kitti_quarter'
ARRAYS = ('disparity', 'other_disparity', 'flow', 'is_disparity_noc', 'is_other_disparity_noc', 'is_flow_noc')


def read(text):
    return open_dataset(f'stereo_simulation:{text}', (STEREO,))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('drives')


@pytest.fixture(scope='module')
def pair():
    return read(f'12{OPTIONS}')[0]


def test_a_pair_holds_what_was_simulated(pair):
    drive = simulate_stereo(12, camera='kitti_quarter')
    frame = drive.frame(0)
    motion, seen = drive.motion(frame, 1), drive.visibility(frame, 1)
    truth = pair.truth
    assert pair.key == 'drive_000012_00' and pair.dt == pytest.approx(0.1)
    # 1/512 px: stored in steps of 1/256 px
    np.testing.assert_allclose(truth.disparity, frame.disparity, atol=1 / 512 + 1e-4)
    known = np.isfinite(motion.other_disparity) & (frame.disparity > 1)
    np.testing.assert_allclose(truth.flow[known], motion.flow[known], atol=0.03)
    np.testing.assert_allclose(truth.other_disparity[known], motion.other_disparity[known], atol=0.01)
    np.testing.assert_array_equal(truth.is_disparity_noc, frame.is_visible_right)
    np.testing.assert_array_equal(truth.is_flow_noc, seen[0] & np.isfinite(motion.other_disparity))
    np.testing.assert_array_equal(truth.is_moving, motion.is_moving)
    assert truth.is_foreground.any() and (truth.is_foreground | ~truth.is_moving).all()
    # Of 255: JPEG of quality 95
    assert np.abs(pair.reference.left.astype(float) - frame.left).mean() < 4
    np.testing.assert_allclose(
        pair.other_T_reference, transforms.invert(drive.odom_T_left(1)) @ drive.odom_T_left(0), atol=1e-12
    )


def test_a_damaged_file_is_simulated_again_and_read_from_then_on(pair, folder, capsys):
    dataset = read(f'12@{folder}{OPTIONS}')
    path = dataset.path(0)
    path.write_bytes(b'PK\x03\x04 cut off')
    stored = dataset[0]
    for frame in ('reference', 'other'):
        for side in ('left', 'right'):
            np.testing.assert_array_equal(getattr(getattr(stored, frame), side), getattr(getattr(pair, frame), side))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(stored.truth, name), getattr(pair.truth, name))
    stamp = path.stat().st_mtime_ns
    np.testing.assert_array_equal(dataset[0].reference.left, pair.reference.left)
    assert simulate.main(['--fill', f'stereo_simulation:12@{folder}{OPTIONS}']) == 0
    assert capsys.readouterr().out == f'{folder}: 1 drives, 0 of them new\n'
    assert path.stat().st_mtime_ns == stamp and sorted(folder.iterdir()) == [path]


def test_filling_needs_a_folder(capsys):
    assert simulate.main(['--fill', 'stereo_simulation:1']) == 1
    assert 'has no folder to fill' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        simulate.main(['--seed', '1'])


def test_latest_is_the_way_back(pair, folder):
    back = read(f'12@{folder}{OPTIONS}&latest=1')[0]
    assert back.key == 'drive_000012_00_latest' and back.dt == -pair.dt
    np.testing.assert_array_equal(back.reference.left, pair.other.left)
    np.testing.assert_allclose(back.other_T_reference @ pair.other_T_reference, np.eye(4), atol=1e-9)
    # Flow there, and from there back, cancels for what both frames see.
    v, u = np.nonzero(pair.truth.is_flow_noc & (pair.truth.disparity > 2))
    to = np.round(np.stack([u, v], 1) + pair.truth.flow[v, u]).astype(int)
    sum_ = pair.truth.flow[v, u] + back.truth.flow[to[:, 1], to[:, 0]]
    # Half a pixel of rounding, and edges
    assert np.nanmedian(np.linalg.norm(sum_, axis=1)) < 0.15


def test_the_images_before_a_pair_are_the_left_ones_of_its_drive():
    second, first = (read(f'12{OPTIONS}&num_frames=3&at={at}') for at in (1, 0))
    arrays = second._simulate(0)
    [earlier] = second._pair(0, arrays).earlier(4)
    np.testing.assert_array_equal(earlier, first._pair(0, arrays).reference.left)
    assert first._pair(0, arrays).earlier(4) == []


def test_keys_lengths_and_sensor():
    dataset = read('3-7')
    assert len(dataset) == 5 and dataset.key(4) == 'drive_000007_00' and sensor_of(dataset) == STEREO
    assert dataset.path(0) is None


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('', 'FIRST-LAST'),
        ('a-b', 'FIRST-LAST'),
        ('5-3', 'FIRST <= LAST'),
        ('1?camera=kiti', 'kitti_half'),
        ('1?latest=2', 'latest is 0 or 1'),
        ('1?at=1', 'at goes from 0'),
        ('1?num_frames=1', 'two frames'),
        ('1?size=3', 'not a valid option'),
    ],
)
def test_wrong_names_are_refused(text, match):
    with pytest.raises(DataError, match=match):
        read(text)[0]
