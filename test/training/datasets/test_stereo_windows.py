# SPDX-License-Identifier: Apache-2.0
"""Windows of consecutive stereo frames: which frames follow each other, what is held out, what is excluded."""

import dataclasses

import pytest

pytest.importorskip('torch', reason='training needs torch')

from mono_world import MonoWorld

from training.datasets.stereo_windows import StereoWindows, check_consecutive
from zeroflow_ros.errors import DataError


class Keys:
    """A dataset of keys."""

    def __init__(self, name, *keys):
        self.name, self.keys = name, keys

    def __len__(self):
        return len(self.keys)

    def key(self, index):
        return self.keys[index]


@pytest.mark.parametrize(
    ('datasets', 'num_frames', 'first'),
    [
        ([MonoWorld(6)], 4, [0, 1, 2]),
        ([MonoWorld(8, missing=(3,))], 4, [0, 4]),
        ([Keys('kitti', '000002_09', '000002_10', '000003_10', '000003_11')], 3, [9, 10]),
        ([Keys('s', 'drive_000001_00', 'drive_000002_00'), Keys('s', 'drive_000002_01')], 3, [0]),
        ([Keys('a', 'x/07'), Keys('b', 'x/08')], 2, [7, 8]),
    ],
    ids=['drive', 'gap', 'scenes', 'simulation', 'two data sets'],
)
def test_windows_have_consecutive_frames_of_one_drive(datasets, num_frames, first):
    windows = StereoWindows(datasets, num_frames)
    assert [place.first for place in windows.places] == first
    for place in windows.places:
        keys = [windows.datasets[pair.dataset].key(pair.index) for pair in place.pairs]
        assert len(keys) == num_frames - 1 and not any(place.latest)
        if isinstance(datasets[0], MonoWorld):
            check_consecutive([windows.pair(pair) for pair in place.pairs])


@pytest.mark.parametrize('datasets', [[], [MonoWorld(3)], [MonoWorld(6, missing=(1, 3))], [MonoWorld(9, latest=True)]])
def test_no_window_is_an_error(datasets):
    with pytest.raises(DataError, match='hold no 4 consecutive frames'):
        StereoWindows(datasets, 4)


def test_a_key_without_a_number_is_an_error():
    with pytest.raises(DataError, match="'front' of d should end in the number"):
        StereoWindows([Keys('d', 'front')], 3)


def test_labels_of_both_directions_of_time_come_together():
    windows = StereoWindows([MonoWorld(5), MonoWorld(5, latest=True, missing=(1,))], 4)
    first = windows.places[0]
    assert [None if pair is None else pair.dataset for pair in first.latest] == [1, None, 1]
    forward, backward = windows.pair(first.pairs[2]), windows.pair(first.latest[2])
    assert forward.reference.stamp_ns == backward.other.stamp_ns


def test_held_out_windows_share_no_frame_with_the_others():
    windows = StereoWindows([MonoWorld(20)], 4)
    first, last = windows.split(0.25)
    assert [place.first for place in last] == [12, 13, 14, 15, 16] and [place.first for place in first] == list(
        range(9)
    )
    assert windows.split(0.0)[1] == []
    with pytest.raises(DataError, match='none is left to train on'):
        StereoWindows([MonoWorld(6)], 4).split(0.5)


def test_excluded_frames_are_in_no_window():
    windows = StereoWindows([MonoWorld(20)], 4, (10.0, 11.0))
    frames = {place.first + k for place in windows.places for k in range(4)}
    assert frames == set(range(20)) - {10, 11}


def test_frames_that_do_not_follow_each_other_are_an_error():
    pairs = [MonoWorld(8)[k] for k in (0, 1, 3)]
    check_consecutive(pairs[:2])
    with pytest.raises(DataError, match='do not follow each other'):
        check_consecutive(pairs)
    with pytest.raises(DataError, match='evenly spaced'):
        check_consecutive([dataclasses.replace(pairs[0], dt=0.2), pairs[1]])
