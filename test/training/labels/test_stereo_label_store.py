# SPDX-License-Identifier: Apache-2.0
"""Labels of stereo pairs on disk, and the jobs that make them."""

import dataclasses

import numpy as np
import pytest
from kitti_files import HEIGHT, WIDTH, write_scene

from training import label
from training.datasets import STEREO, open_dataset
from training.labels.label_job import LabelJob, run
from training.labels.label_store import LabelStore
from training.labels.stereo_label_store import StereoLabelStore, stereo_checksum
from training.teachers import build_teacher
from training.teachers.teacher import StereoPairTeacher
from zeroflow_ros.camera.stereo import StereoFlow
from zeroflow_ros.errors import DataError, EgoMotionError

SIZE = HEIGHT, WIDTH
MOTION = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5], [0, 0, 0, 1]], float)


def flow() -> StereoFlow:
    """Return an estimate with a value at every pixel: measured in the right half, its disparity in all but a row."""
    measured, has_disparity = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    measured[1:, WIDTH // 2 :], has_disparity[0] = True, False
    disparity = np.linspace(1, 60, WIDTH * HEIGHT, dtype=np.float32).reshape(SIZE)
    sigma = np.ones(SIZE, np.float32)
    return StereoFlow(
        disparity, disparity + 1.3, np.stack([disparity, -disparity], -1) / 3, sigma, sigma, sigma, measured, MOTION,
        has_disparity,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class KnownConfig:
    lost: str = ''  # name of the scene whose ego motion it does not find


class KnownTeacher:
    """Says the same of every pair."""

    name = 'known'

    def __init__(self, config):
        self.config, self.asked = config, []

    def label(self, reference, other, dt, other_T_reference=None):
        self.asked.append(dt)
        if self.config.lost and len(self.asked) == 1:
            raise EgoMotionError('It is dark.')
        return flow()

    def estimate(self, reference, other, other_T_reference=None):
        return flow()


@dataclasses.dataclass(frozen=True)
class KnownJob(LabelJob):
    lost: str = ''

    def build_teacher(self):
        return KnownTeacher(KnownConfig(self.lost))


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp('split')
    for scene in range(3):
        write_scene(root, scene, truth=False)
    return f'kitti_scene_flow:{root}'


def job_of(split, out, **more) -> KnownJob:
    return KnownJob((split,), 'known', out, **more)


def test_a_job_labels_every_stereo_pair_once(split, tmp_path):
    job = job_of(split, tmp_path / 'labels')
    outcomes = run(job)
    assert [outcome.state for outcome in outcomes] == ['done'] * 3
    assert (outcomes[0].num_points, outcomes[0].num_labelled) == (WIDTH * HEIGHT, (HEIGHT - 1) * WIDTH // 2)
    store = StereoLabelStore(job.out)
    assert store.about['sensor'] == 'stereo' and store.about['config'] == {'lost': ''} and 'crop' not in store.about
    assert [outcome.state for outcome in run(job)] == ['kept'] * 3
    verified = dataclasses.replace(job, verify=True)
    assert [outcome.state for outcome in run(verified)] == ['kept'] * 3


def test_a_label_is_read_as_a_pair_whose_truth_is_the_label(split, tmp_path):
    run(job_of(split, tmp_path / 'labels'))
    store, original = StereoLabelStore(tmp_path / 'labels'), open_dataset(split, (STEREO,))[1]
    assert (len(store), store.key(1), store.sensor) == (3, '000001_10', STEREO)
    item, made = store[1], flow()
    for frame, read in ((original.reference, item.reference), (original.other, item.other)):
        np.testing.assert_array_equal(read.left, frame.left)
        np.testing.assert_array_equal(read.right, frame.right)
        assert (read.stamp_ns, read.camera) == (frame.stamp_ns, frame.camera)
    assert item.dt == 0.1 and stereo_checksum(original) == store.checksum('000001_10')
    np.testing.assert_array_equal(item.other_T_reference, MOTION)  # as the teacher found it
    truth = item.truth
    np.testing.assert_array_equal(truth.has_disparity, made.is_disparity_measured)
    np.testing.assert_array_equal(truth.has_flow, made.is_measured)
    np.testing.assert_array_equal(truth.has_other_disparity, made.is_measured)
    rows = made.is_measured
    np.testing.assert_allclose(truth.disparity[1:], made.disparity[1:], atol=0.5001 / 256)  # px, of the PNG
    np.testing.assert_allclose(truth.other_disparity[rows], made.other_disparity[rows], atol=0.5001 / 256)
    np.testing.assert_allclose(truth.flow[rows], made.flow[rows], atol=0.5001 / 64)


def test_reading_and_writing_again_gives_the_same_file(split, tmp_path):
    run(job_of(split, tmp_path / 'labels'))
    store = StereoLabelStore(tmp_path / 'labels')
    item = store[0]
    known, sigma = item.truth.has_flow, np.ones(SIZE, np.float32)
    content = store.path(item.key).read_bytes()
    again = StereoFlow(
        item.truth.disparity, item.truth.other_disparity, item.truth.flow, sigma, sigma, sigma, known, MOTION,
        item.truth.has_disparity,
    )  # fmt: skip
    original = open_dataset(split, (STEREO,))[0]
    assert store.write(original, again).read_bytes() == content


def test_a_pair_without_ego_motion_fails_alone_and_is_done_later(split, tmp_path):
    job = job_of(split, tmp_path / 'labels', lost='000000')
    outcomes = run(job)
    assert [outcome.state for outcome in outcomes] == ['failed', 'done', 'done']
    assert outcomes[0].reason == 'EgoMotionError: It is dark.'
    assert StereoLabelStore(job.out).keys() == ['000001_10', '000002_10']


def test_damaged_labels_are_named_and_redone(split, tmp_path):
    job = job_of(split, tmp_path / 'labels')
    run(job)
    store = StereoLabelStore(job.out)
    path = store.path('000001_10')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r'000001_10\.label is damaged or cut short'):
        store.read('000001_10')
    run(job)
    assert store.read('000001_10').truth.has_flow.any()


def test_labels_of_one_sensor_are_not_read_as_those_of_the_other(split, tmp_path):
    run(job_of(split, tmp_path / 'labels'))
    with pytest.raises(DataError, match='holds labels of stereo pairs, and those of sweep pairs are needed here'):
        LabelStore(tmp_path / 'labels')
    with pytest.raises(DataError, match='holds labels of sweep pairs, and those of stereo pairs are needed here'):
        StereoLabelStore.create(LabelStore.create(tmp_path / 'sweeps', {'teacher': 'rigid'}, {}).folder, {}, {})


def test_a_label_of_another_size_is_refused(split, tmp_path):
    run(job_of(split, tmp_path / 'labels'))
    made = flow()
    with pytest.raises(DataError, match=r'images of \(10, 24\) have a label of \(9, 24\)'):
        StereoLabelStore(tmp_path / 'labels').write(
            open_dataset(split, (STEREO,))[0], dataclasses.replace(made, disparity=made.disparity[1:])
        )


def test_the_teacher_says_which_datasets_it_labels(split, tmp_path, capsys):
    assert isinstance(build_teacher('stereo'), StereoPairTeacher)
    assert not isinstance(build_teacher('rigid'), StereoPairTeacher)
    assert label.main([split, '--teacher', 'rigid', '--out', str(tmp_path / 'a')]) == 1
    assert 'holds pairs of stereo images, and pairs of LiDAR sweeps are needed here' in capsys.readouterr().err
    assert label.main(['simulation:0', '--teacher', 'stereo', '--out', str(tmp_path / 'b')]) == 1
    assert 'holds pairs of LiDAR sweeps, and pairs of stereo images are needed here' in capsys.readouterr().err
    # Random images of 24 x 10 pixels: the teacher refuses each, with its reason.
    assert label.main([split, '--teacher', 'stereo', '--out', str(tmp_path / 'c')]) == 1
    said = capsys.readouterr()
    assert '3 failed, for example 000000_10' in said.err and '0 pairs labelled' in said.out
