# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from training.simulation.cameras.stereo_rig import CAMERAS, CameraFaults, StereoRig
from zeroflow_ros import transforms


@pytest.mark.parametrize('name', CAMERAS)
def test_cameras_have_the_same_view_at_every_size(name):
    rig = StereoRig.draw(np.random.default_rng(0), name)
    camera = rig.camera
    assert (camera.width, camera.height) == CAMERAS[name]
    # 1 %: the height is rounded to whole pixels
    assert camera.fx / camera.width == pytest.approx(721.5377 / 1242) and camera.baseline == 0.5327
    assert rig.base_T_left[2, 3] == 1.65 and (rig.base_T_left[:3, 2] == [1, 0, 0]).all()


def test_varied_cameras_differ():
    rigs = [StereoRig.draw(np.random.default_rng(seed), 'kitti', varied=True) for seed in range(4)]
    assert len({rig.camera.baseline for rig in rigs}) == len({rig.base_T_left[2, 3] for rig in rigs}) == 4


def test_rays_and_projection_agree_with_the_camera():
    rig = StereoRig.draw(np.random.default_rng(1), 'kitti_quarter', varied=True)
    pose = transforms.yaw_translation(0.3, 5, -2, 1.6) @ rig.base_T_left
    pixels = np.array([[0.0, 0.0], [155.25, 40.5], [309.0, 93.0]])
    for side in (0, 1):
        view = rig.view(pose, side, real=False)
        origins, directions = view.rays(*pixels.T)
        found, depth = view.project(origins + 20 * directions.astype(np.float64))
        # 1/1000 px: float32 directions
        np.testing.assert_allclose(found, pixels, atol=1e-3)
        assert (depth > 0).all() and np.linalg.norm(directions, axis=1) == pytest.approx(1)
        np.testing.assert_allclose(
            transforms.invert(pose)[:3, :3] @ (origins[0] - pose[:3, 3]), [side * rig.camera.baseline, 0, 0], atol=1e-5
        )
    assert view.project(pose[:3, 3][None] - 3 * pose[:3, 2])[1][0] < 0


def test_only_the_right_camera_is_not_where_its_calibration_says():
    rig = StereoRig.draw(np.random.default_rng(2))
    pose = rig.base_T_left
    same, off = (
        [np.abs(rig.view(pose, side).odom_T_camera - rig.view(pose, side, real=False).odom_T_camera).max()]
        for side in (0, 1)
    )
    # 0.1 degrees: four standard deviations and more of each axis
    assert same == [0] and 0 < off[0] < np.radians(0.1)
    assert CameraFaults.none().right_focal == 1
