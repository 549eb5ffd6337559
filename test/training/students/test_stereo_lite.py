# SPDX-License-Identifier: Apache-2.0
"""The small student of stereo images: its geometry holds for any weights."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='students need torch')

from training.students import CAMERA_STUDENTS, build_student  # noqa: E402
from training.students.stereo_lite import StereoLite, convex_upsample, static_motion  # noqa: E402
from zeroflow_ros import transforms  # noqa: E402
from zeroflow_ros.camera.static_scene import pixel_motion  # noqa: E402
from zeroflow_ros.camera.stereo import StereoCamera  # noqa: E402

CAMERA = StereoCamera(64, 32, 50.0, 50.0, 31.0, 15.0, 0.5)


@pytest.fixture(scope='module')
def student():
    torch.manual_seed(0)
    return StereoLite((16, 16, 16, 16), num_disparities=8).eval()


def test_camera_students_are_built_by_name():
    for name in CAMERA_STUDENTS:
        with torch.device('meta'):
            student = build_student(name)
        assert student.name == name
    assert sum(parameter.numel() for parameter in student.parameters()) < 1_000_000


def test_prediction_has_the_size_of_the_images(student):
    with torch.no_grad():
        found = student(*torch.rand(4, 2, 3, 32, 64), torch.eye(3, 4).expand(2, 3, 4))
    assert [tuple(part.shape) for part in found] == [
        (2, 1, 32, 64),
        (2, 1, 32, 64),
        (2, 2, 32, 64),
        (2, 3, 32, 64),
        (2, 4, 8, 16),
    ]
    assert (found.disparity >= 0).all() and (found.other_disparity >= 0).all()
    with pytest.raises(ValueError, match='multiples of 16 px, not 60 x 32'):
        student(*torch.rand(4, 1, 3, 32, 60))


def test_unknown_ego_motion_is_that_of_a_camera_at_rest(student):
    images = torch.rand(4, 1, 3, 32, 64)
    with torch.no_grad():
        one, other = student(*images), student(*images, torch.eye(3, 4)[None])
    for values, expected in zip(one, other, strict=True):
        assert torch.equal(values, expected)


@pytest.mark.parametrize('step', [1, 2])
def test_static_motion_is_that_of_projected_points(step):
    other_T_reference = transforms.yaw_translation(0.01, 0.05, -0.02, -0.6)
    size = 4 * step
    rng = np.random.default_rng(0)
    disparity = rng.uniform(1, 20, (32, 64)).astype(np.float32)
    pixels, there = CAMERA.project(transforms.apply(other_T_reference, CAMERA.points(disparity).reshape(-1, 3)))
    v, u = np.mgrid[:32, :64]
    flow = (pixels.reshape(32, 64, 2) - np.stack([u, v], -1))[::size, ::size] / size
    cells = torch.from_numpy(disparity[::size, ::size].copy())[None, None] / size
    motion = torch.from_numpy(pixel_motion(CAMERA, other_T_reference))[None]
    found, found_disparity = static_motion(cells, motion, step)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), flow, atol=1e-3)  # cells, float32
    np.testing.assert_allclose(found_disparity[0, 0], there.reshape(32, 64)[::size, ::size] / size, rtol=1e-4)


def test_points_behind_the_camera_have_bounded_motion():
    motion = torch.from_numpy(pixel_motion(CAMERA, transforms.yaw_translation(0, 0, 0, -50.0)))[None]
    flow, disparity = static_motion(torch.full((1, 1, 8, 16), 4.0), motion, 1)
    assert torch.isfinite(flow).all() and (disparity > 0).all()


def test_an_untrained_student_sees_a_static_scene(student):
    """Its motion is what ego motion does to its disparity: here, a turn, which does the same at any depth."""
    turn = transforms.yaw_translation(0, 0, 0, 0)
    turn[:3, :3] = transforms.rotation_matrix([0, 0.02, 0])  # about y, which is down
    motion = torch.from_numpy(pixel_motion(CAMERA, turn))[None]
    with torch.no_grad():
        flow = student(*torch.rand(4, 1, 3, 32, 64), motion).flow
    assert 0.7 < flow[0, 0, 8:24, 8:56].mean() < 1.3  # px: 50 px * 0.02


def test_upsampled_cells_are_means_of_their_neighbours():
    cells = torch.rand(2, 3, 4, 5)
    weights = torch.full((2, 9 * 4, 4, 5), -10.0)
    weights[:, 4 * 4 : 5 * 4] = 10  # the cell itself, of nine
    torch.testing.assert_close(
        convex_upsample(cells, weights, 2), cells.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6, rtol=0
    )
    # The last of the four pixels takes the cell to the right.
    weights = torch.full((2, 9, 4, 4, 5), -10.0)
    weights[:, 4, :3] = weights[:, 5, 3] = 10
    found = convex_upsample(cells, weights.flatten(1, 2), 2)
    torch.testing.assert_close(found[:, :, 1::2, 1:-1:2], cells[..., 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, :, ::2, ::2], cells, atol=1e-6, rtol=0)
