# SPDX-License-Identifier: Apache-2.0
"""Scene flow to learn: ground truth of data sets, or stored labels of a teacher."""

import numpy as np
import pytest
from stereo_world import StereoWorld

pytest.importorskip('cv2', reason='images need OpenCV')

from training.labels.stereo_label_store import StereoLabelStore
from training.learning.stereo_sources import DatasetSource, split_datasets
from zeroflow_ros.camera.stereo import StereoFlow
from zeroflow_ros.errors import DataError


def test_ground_truth_is_what_is_learned():
    source = DatasetSource(StereoWorld(), range(4))
    example = source[1]
    assert example.target.dtype == np.float32 and example.pair.key == 'world/01'
    assert (example.target == [5, 7, 2, -1]).all()
    assert source.about['supervision'] == 'ground truth of a data set'


def test_a_pair_without_ground_truth_is_to_be_labelled():
    with pytest.raises(DataError, match=r'world/00 of stereo_world has no ground truth to learn.*training\.label'):
        DatasetSource(StereoWorld(with_truth=False), range(4))[0]


def test_stored_labels_are_learned_where_they_are_measured(tmp_path):
    one, measured = np.ones((48, 96), np.float32), np.ones((48, 96), bool)
    measured[:, :10] = False
    store = StereoLabelStore.create(tmp_path, {'teacher': 'by_hand', 'sensor': 'stereo'}, {})
    label = StereoFlow(3.125 * one, 5.5 * one, np.stack([2.25 * one, -1.5 * one], 2), one, one, one, measured)
    store.write(StereoWorld(with_truth=False)[0], label)
    source = DatasetSource(StereoLabelStore(tmp_path), range(1))
    target = source[0].target
    assert np.isnan(target[:, :10]).all() and (target[:, 10:] == [3.125, 5.5, 2.25, -1.5]).all()
    assert source.about['supervision'] == 'pseudo-labels of the teacher by_hand, no human labels'


@pytest.mark.parametrize('held_out, counts', [(0.0, (4, 0)), (0.25, (3, 1)), (0.3, (2, 2))])
def test_the_last_pairs_are_held_out(held_out, counts):
    parts = split_datasets([StereoWorld()], held_out)
    assert tuple(map(len, parts)) == counts
    assert '4 of stereo_world' in parts[0].about['data']


def test_each_of_several_data_sets_is_split_by_itself():
    first, last = split_datasets([StereoWorld(4), StereoWorld(8)], 0.25)
    assert [first[k].pair.key[-2:] for k in range(9)] == [f'{k:02d}' for k in (0, 1, 2, 0, 1, 2, 3, 4, 5)]
    assert [last[k].pair.key[-2:] for k in range(3)] == ['03', '06', '07']
    assert first.about['data'].count('stereo_world') == 2 and ';' not in first.about['supervision']


def test_nothing_left_to_train_on_is_said():
    with pytest.raises(DataError, match='none is left'):
        split_datasets([StereoWorld(1)], 0.1)
