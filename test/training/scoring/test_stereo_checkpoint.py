# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of students of stereo images give the scene flow of their network, in the camera's pixels."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('cv2', reason='camera images need OpenCV')

from training.learning.checkpoint import Checkpoint  # noqa: E402
from training.scoring.stereo_estimators import build_stereo_estimator  # noqa: E402
from training.students import build_student  # noqa: E402
from zeroflow_ros.camera.static_scene import pixel_motion  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame  # noqa: E402
from zeroflow_ros.errors import ConfigError, DataError, ModelError  # noqa: E402
from zeroflow_ros.transforms import yaw_translation  # noqa: E402

CAMERA = StereoCamera(128, 64, 100.0, 50.0, 63.5, 31.5, 0.5)


@pytest.fixture(scope='module')
def student():
    torch.manual_seed(0)
    student = build_student('stereo_lite').eval()
    for parameter in student.residual2.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return student


@pytest.fixture(scope='module')
def path(student, tmp_path_factory):
    path = tmp_path_factory.mktemp('trained') / 'last.pt'
    about = {'licence': 'Apache-2.0', 'config': {'width': 64, 'height': 32}}
    Checkpoint('stereo_lite', student.state_dict(), about).save(path)
    return path


@pytest.mark.parametrize('options, size', [('', (64, 32)), ('?size=96x48', (96, 48))])
def test_scene_flow_is_that_of_the_network_in_pixels_of_the_camera(student, path, options, size):
    estimator = build_stereo_estimator(f'{path}{options}')
    assert estimator.name == f'{path}{options}' and (estimator.card.width, estimator.card.height) == size
    rng = np.random.default_rng(0)
    frames = [StereoFrame(*rng.integers(0, 256, (2, 64, 128, 3), np.uint8), CAMERA) for _ in range(2)]
    other_T_reference = yaw_translation(0.02, 0.1, 0.0, -0.4)
    network = estimator.card.images
    images = torch.from_numpy(np.concatenate([network.images(frame) for frame in frames]))
    images = (images.permute(0, 3, 1, 2) / 255)[:, None].unbind()
    with torch.no_grad():
        expected = student(*images, torch.from_numpy(pixel_motion(network.camera(CAMERA), other_T_reference))[None])
    found = estimator.estimate(*frames, other_T_reference)
    scale = 128 / size[0]
    flow = np.stack([network.to_camera(part.numpy(), CAMERA) for part in expected.flow[0]], axis=2)
    assert expected.flow.std() > 0.1  # px
    np.testing.assert_allclose(found.flow, scale * flow, atol=1e-3)
    disparity = network.to_camera(expected.disparity[0, 0].numpy(), CAMERA)
    np.testing.assert_allclose(found.disparity, scale * disparity, atol=1e-3)


@pytest.mark.parametrize('text, error, says', [
    ('{path}?size=100x32', ConfigError, 'multiples of 16 px, expected WIDTHxHEIGHT, got \'100x32\''),
    ('{path}?size=wide', ConfigError, "got 'wide'"),
    ('{path}?flip=true', DataError, "'flip=true'"),
    ('none.pt', ModelError, 'No checkpoint at none.pt'),
])  # fmt: skip
def test_what_cannot_be_run_is_said(path, text, error, says):
    with pytest.raises(error, match=says):
        build_stereo_estimator(text.format(path=path))
