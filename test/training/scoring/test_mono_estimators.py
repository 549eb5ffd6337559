# SPDX-License-Identifier: Apache-2.0
"""Estimators of one camera: what they make of a student's result, which images they take, what they refuse."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

import multi_mono_sf_golden as golden  # noqa: E402
from kitti_files import write_scene  # noqa: E402

from training import evaluate, submit  # noqa: E402
from training.datasets import STEREO, open_dataset  # noqa: E402
from training.scoring.mono_estimators import MonoOptions, MonoStudentFlow  # noqa: E402
from training.scoring.stereo_estimators import NoEarlierImageError, build_stereo_estimator, estimate_pair  # noqa: E402
from training.students.flip_averaging import flip_averaged  # noqa: E402
from training.students.mono_geometry import optical_flow  # noqa: E402
from training.students.multi_mono_sf import MonoFlow  # noqa: E402
from training.students.multi_mono_sf_weights import weight_shapes  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError, ModelError  # noqa: E402

WIDTH, HEIGHT = 128, 64
CAMERA = StereoCamera(WIDTH, HEIGHT, 240.0, 245.0, 60.0, 30.0, 0.54)
INTRINSICS = torch.tensor([[[240.0, 0, 60], [0, 245, 30], [0, 0, 1]]])


@pytest.fixture(scope='module')
def images():
    """Four images of the golden sequence, uint8."""
    values = golden.images()[0, :4, :, :HEIGHT, :WIDTH].permute(0, 2, 3, 1).numpy()
    return list((values * 255).round().astype(np.uint8))


def test_the_scene_flow_is_that_of_the_students_last_step_averaged_with_that_of_flipped_images(images):
    student = golden.student()
    estimator = MonoStudentFlow('golden', student, MonoOptions(size=f'{WIDTH}x{HEIGHT}', flip=True))
    found = estimator.estimate_images(images, CAMERA)  # with disparities of its own baseline
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)[None] / 255
    with torch.no_grad():
        steps = flip_averaged(student, tensor, INTRINSICS)
        flow = optical_flow(steps[-1].forward[0], steps[-1].disparity[0], INTRINSICS)[0].permute(1, 2, 0).numpy()
    disparity = steps[-1].disparity[0][0, 0].numpy() * WIDTH
    np.testing.assert_allclose(found.disparity, disparity, rtol=1e-5)
    np.testing.assert_allclose(found.flow, flow, atol=1e-3)  # px
    depth = np.clip(240 * 0.54 / (disparity + 1e-4), 1e-3, 80)
    moved = depth + steps[-1].forward[0][0, 2].numpy()
    np.testing.assert_allclose(found.other_disparity, 240 * 0.54 / moved, rtol=1e-4)
    assert found.is_measured.mean() > 0.5 and not found.is_measured[depth >= 80].any()


class Plane:
    """A student that always sees a plane that comes closer, and keeps the images that it was given."""

    name, multiple, default_size = 'plane', 32, (32, 32)

    def eval(self):
        self.seen = []
        return self

    def features(self, image):
        self.seen.append(image)
        return (image,)

    def step(self, features0, features1, features2, intrinsics, state=None):
        ones = torch.ones(1, 1, 8, 8)
        motion = torch.cat([0 * ones, 0 * ones, -ones], dim=1)
        self.intrinsics = intrinsics
        return MonoFlow((motion,), (motion,), (ones * 0.1,)), (state or 0) + 1


def test_metres_follow_from_the_baseline_that_the_student_learned():
    # 0.1 of 64 px with fx = 100 px: 8.4375 m with a baseline of 0.54 m; 1 m closer after the step.
    camera = StereoCamera(64, 48, 100.0, 100.0, 31.5, 23.5, 0.6)
    images = [np.full((48, 64), 100, np.uint8)] * 3
    for options, share in ((MonoOptions(baseline=0), 1), (MonoOptions(), 0.6 / 0.54)):
        found = MonoStudentFlow('plane', Plane(), options).estimate_images(images, camera)
        np.testing.assert_allclose(found.disparity, 6.4 * share, rtol=1e-5)
        np.testing.assert_allclose(found.other_disparity, 100 * 0.54 / (8.4375 - 1) * share, rtol=1e-4)
        # The flow does not depend on the scale: away from the centre, by the share of the depth.
        assert found.flow[23, 63, 0] == pytest.approx(31.5 * (8.4375 / 7.4375 - 1), rel=1e-3)
    np.testing.assert_allclose(camera.depth(found.disparity), 8.4375, rtol=1e-4)  # the metres of the student


def test_images_are_shrunk_by_area_with_the_intrinsics_of_that_size_and_grey_ones_are_taken():
    student, camera = Plane(), StereoCamera(64, 64, 100.0, 100.0, 31.5, 31.5, 0.6)
    checkered = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
    estimator = MonoStudentFlow('plane', student)
    estimator.estimate_images([checkered.astype(np.uint8)] * 3, camera)
    np.testing.assert_allclose(student.seen[0], 100 / 255, atol=1e-6)
    np.testing.assert_allclose(student.intrinsics[0], [[50, 0, 15.5], [0, 50, 15.5], [0, 0, 1]])
    assert tuple(student.seen[0].shape) == (1, 3, 32, 32)


@pytest.mark.parametrize(
    'options, says',
    [
        (MonoOptions(images=2), 'images of plane should be 3 or more, got 2'),
        (MonoOptions(size='64'), "expected WIDTHxHEIGHT, got '64'"),
        (MonoOptions(size='64x40'), "multiples of 32 px, expected WIDTHxHEIGHT, got '64x40'"),
        (MonoOptions(baseline=float('nan')), 'should be a number of metres, got nan'),
    ],
)
def test_options_that_are_not_possible(options, says):
    with pytest.raises(ConfigError, match=says):
        MonoStudentFlow('plane', Plane(), options)


def test_too_few_images_and_images_of_another_size():
    estimator, camera = MonoStudentFlow('plane', Plane()), StereoCamera(64, 48, 100.0, 100.0, 31.5, 23.5, 0.6)
    with pytest.raises(DataError, match='needs 3 images or more, got 2'):
        estimator.estimate_images([np.zeros((48, 64), np.uint8)] * 2, camera)
    with pytest.raises(DataError, match='An image is 62 x 48 px, its camera 64 x 48'):
        estimator.estimate_images([np.zeros((48, 62), np.uint8)] * 3, camera)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A small file in the authors' format: each weight has one value."""
    path = tmp_path_factory.mktemp('checkpoint') / 'selfsup.ckpt'
    shapes = weight_shapes().items()
    torch.save({'state_dict': {f'_model.{name}': torch.tensor(1e-3).expand(shape) for name, shape in shapes}}, path)
    return path


def test_a_checkpoint_of_the_authors_is_scored_and_submitted(checkpoint, tmp_path, capsys):
    root = write_scene(tmp_path / 'training', frames=(9, 10, 11))
    spec, dataset = f'{checkpoint}?size=64x32&images=4', f'kitti_scene_flow:{root}'
    assert evaluate.main(['--estimator', spec, '--dataset', dataset, '--json', str(tmp_path / 'scores.json')]) == 0
    report = json.loads((tmp_path / 'scores.json').read_text())[dataset][spec]
    assert report['one_camera']['images'] == report['depth']['images'] == report['pixels']['pairs'] == 1
    assert report['one_camera']['pooled_percent']['SF'] == pytest.approx(
        report['pixels']['outliers_percent']['occ']['SF']['all']
    )
    text = capsys.readouterr().out
    assert 'SF publ.' in text and 'garg to 80 m, median scaled' in text
    found = submit.submit_stereo(
        build_stereo_estimator(spec), open_dataset(dataset, (STEREO,)), tmp_path / 'out.zip', 1
    )
    assert found == {'files': 3, 'without_value': 0}


def test_pairs_without_an_earlier_image_are_said_with_the_remedy(checkpoint, tmp_path, capsys):
    root = write_scene(tmp_path / 'training')
    estimator = MonoStudentFlow('plane', Plane())
    with pytest.raises(NoEarlierImageError, match=r'none before 000000_10\. .* data_scene_flow_multiview\.zip'):
        estimate_pair(estimator, open_dataset(f'kitti_scene_flow:{root}', (STEREO,))[0])
    assert evaluate.main(['--estimator', str(checkpoint), '--dataset', f'kitti_scene_flow:{root}']) == 1
    assert 'can be scored on none of the pairs' in capsys.readouterr().err


def test_pairs_seen_from_their_newer_frame_are_refused(tmp_path):
    root = write_scene(tmp_path / 'training', frames=(9, 10, 11))
    item = dataclasses.replace(open_dataset(f'kitti_scene_flow:{root}', (STEREO,))[0], dt=-0.1)
    with pytest.raises(DataError, match='estimates the motion until the next image'):
        estimate_pair(MonoStudentFlow('plane', Plane()), item)


def test_a_checkpoint_of_sweeps_is_refused(tmp_path):
    from training.learning.checkpoint import Checkpoint
    from training.students import build_student

    student = build_student('fastflow3d_lite')
    Checkpoint('fastflow3d_lite', student.state_dict(), {}).save(tmp_path / 'last.pt')
    with pytest.raises(ModelError, match='is a checkpoint of fastflow3d_lite'):
        build_stereo_estimator(str(tmp_path / 'last.pt'))
