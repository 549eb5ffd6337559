# SPDX-License-Identifier: Apache-2.0
"""Scene flow to learn: ground truth, or labels of a teacher that are kept."""

from dataclasses import dataclass

import numpy as np
import pytest
from stereo_world import StereoWorld, WorldTeacher

from training.learning.stereo_sources import ProxySource, TruthSource, split_source
from zeroflow_ros.errors import DataError


@dataclass(frozen=True)
class Settings:
    """Settings of the teacher."""

    strength: float = 1.0


def test_ground_truth_is_what_is_learned():
    example = TruthSource(StereoWorld(), range(4))[1]
    assert example.target.dtype == np.float32 and example.pair.key == 'world/01'
    assert (example.target == [5, 7, 2, -1]).all()


def test_without_ground_truth_labels_are_asked_for():
    with pytest.raises(DataError, match=r'world/00 of stereo_world has no ground truth.*--labels'):
        TruthSource(StereoWorld(with_truth=False), range(4))[0]


def test_labels_are_made_once_and_unmeasured_pixels_are_unknown(tmp_path):
    teacher = WorldTeacher(Settings())
    source = ProxySource(StereoWorld(with_truth=False), range(4), teacher, tmp_path)
    first = source[2].target
    assert np.isnan(first[:, :10]).all() and (first[:, 10:] == [3.125, 5.5, 2.25, -1.5]).all()
    again = ProxySource(StereoWorld(with_truth=False), range(4), teacher, tmp_path)
    np.testing.assert_array_equal(again[2].target, first)
    assert teacher.calls == 1 and sorted(path.name for path in tmp_path.rglob('*.npz')) == ['02.npz']
    assert 'pseudo-labels of the teacher world_teacher' in source.about['supervision']


def test_a_damaged_label_is_made_again(tmp_path):
    teacher = WorldTeacher(Settings())
    source = ProxySource(StereoWorld(), range(4), teacher, tmp_path)
    source[0]
    (tmp_path / 'world' / '00.npz').write_bytes(b'broken')
    assert np.isfinite(source[0].target).any() and teacher.calls == 2


def test_labels_of_other_settings_are_not_mixed(tmp_path):
    ProxySource(StereoWorld(), range(4), WorldTeacher(Settings()), tmp_path)
    with pytest.raises(DataError, match='other settings'):
        ProxySource(StereoWorld(), range(4), WorldTeacher(Settings(2.0)), tmp_path)


@pytest.mark.parametrize('held_out, counts', [(0.0, (4, 0)), (0.25, (3, 1)), (0.3, (2, 2))])
def test_the_last_pairs_are_held_out(held_out, counts):
    parts = split_source(TruthSource(StereoWorld(), range(4)), held_out)
    assert tuple(map(len, parts)) == counts
    assert '4 of stereo_world' in parts[0].about['data']


def test_nothing_left_to_train_on_is_said():
    with pytest.raises(DataError, match='none is left'):
        split_source(TruthSource(StereoWorld(1), range(1)), 0.1)
