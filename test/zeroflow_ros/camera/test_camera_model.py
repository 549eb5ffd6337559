# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from image_messages import camera_info

from zeroflow_ros.camera.camera_model import CameraModel, Rectifier, stereo_camera
from zeroflow_ros.errors import ConfigError, ImageError

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')
TURN = cv2.Rodrigues(np.array([0.01, -0.03, 0.02]))[0]
FISHEYE = (-0.02, 0.005, -0.001, 0.0002)
PLUMB_BOB = (-0.3, 0.1, 0.001, -0.002, -0.02)
RATIONAL = (0.2, -0.1, 0.001, -0.001, 0.02, 0.3, -0.1, 0.01)


def test_a_camera_info_is_read():
    model = CameraModel.from_camera_info(camera_info(64, 48, fx=50.0, fy=51.0, tx=-6.0, d=PLUMB_BOB, r=TURN.ravel()))
    assert model.size == (64, 48) and model.frame_id == 'left_optical' and model.area == ''
    assert model.K.tolist() == [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]]
    assert model.P.tolist() == [[50, 0, 31.5, -6], [0, 51, 23.5, 0], [0, 0, 1, 0]]
    assert model.distortion_model == 'plumb_bob' and model.distortion.tolist() == list(PLUMB_BOB)
    assert model.is_distorted and np.allclose(model.R, TURN)


def test_ros_1_writes_k_d_r_and_p_in_capitals():
    values = vars(camera_info(tx=-6.0))
    msg = SimpleNamespace(**{name.upper() if name in 'kdrp' else name: value for name, value in values.items()})
    assert CameraModel.from_camera_info(msg).P[0, 3] == -6


@pytest.mark.parametrize(
    ('info', 'model', 'is_distorted'),
    [
        (camera_info(), 'none', False),
        (camera_info(d=()), 'none', False),
        (camera_info(model='', d=()), 'none', False),
        (camera_info(model='equidistant', d=(0,) * 4), 'none', False),
        (camera_info(d=PLUMB_BOB[:4]), 'plumb_bob', True),
        (camera_info(model='rational_polynomial', d=RATIONAL), 'rational_polynomial', True),
        (camera_info(model='equidistant', d=FISHEYE), 'equidistant', True),
        (camera_info(model='fisheye', d=FISHEYE), 'equidistant', True),
        (camera_info(model='double_sphere', d=(0.1, 0.2)), 'double_sphere', True),
        (camera_info(k=(60, 0, 30, 0, 60, 20, 0, 0, 1)), 'none', True),  # the new camera matrix differs
        (camera_info(r=(0,) * 9), 'none', False),
        (camera_info(p=(0,) * 12), 'none', False),
    ],
)
def test_distortion_models(info, model, is_distorted):
    read = CameraModel.from_camera_info(info)
    assert (read.distortion_model, read.is_distorted) == (model, is_distorted)


@pytest.mark.parametrize(
    ('info', 'says'),
    [
        (camera_info(0, 0), 'got 0 x 0'),
        (camera_info(2**32 - 1, 48), 'got 4294967295 x 48'),
        (camera_info(d=(0.1,) * 200), '200'),
        (camera_info(k=(0,) * 9), 'not calibrated'),
        (camera_info(k=(np.nan,) * 9), 'finite'),
        (camera_info(k=(1,) * 8), 'K .9 numbers'),
        (camera_info(r=(1, 0, 0)), 'R .9.'),
        (camera_info(p=(np.inf,) * 12), 'finite'),
        (camera_info(d=(np.nan,) * 5), 'finite'),
        (camera_info(r=(2, 0, 0, 0, 1, 0, 0, 0, 1)), 'must be a rotation'),
        (camera_info(r=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), 'must be a rotation'),
        (camera_info(p=(0,) * 12, d=PLUMB_BOB), 'P of CameraInfo must have positive focal lengths'),
        (camera_info(p=(0,) * 12, r=TURN.ravel()), 'P of CameraInfo must have positive focal lengths'),
        (camera_info(p=(-50, 0, 31, 0, 0, 50, 23, 0, 0, 0, 1, 0)), 'positive focal lengths'),
        (camera_info(p=(50, 0, 31, 0, 0, 50, 23, 0, 0, 0, 0, 1)), 'last row 0 0 1 0'),
        (camera_info(d=(0.1, 0.2)), 'must have 4 or 5 coefficients, but CameraInfo has 2'),
        (camera_info(model='equidistant', d=PLUMB_BOB), 'must have 4 coefficients'),
        (camera_info(roi=(10, 0, 64, 48)), r'64 x 48 at \(10, 0\)'),
        (camera_info(roi=(64, 0, 0, 0)), 'region of interest'),
        (camera_info(roi=(0, 0, 4, 4), binning=(8, 8)), 'binned by 8 x 8'),
    ],
)
def test_what_makes_no_camera_is_refused(info, says):
    with pytest.raises(ConfigError, match=says) as raised:
        CameraModel.from_camera_info(info)
    assert 'camera' in str(raised.value) and len(str(raised.value)) < 800


def test_binning_and_the_region_of_interest_move_the_principal_point():
    model = CameraModel.from_camera_info(camera_info(tx=-6.0, binning=(2, 2)))
    assert model.size == (32, 24)
    assert model.P.tolist() == [[25, 0, 15.5, -3], [0, 25, 11.5, 0], [0, 0, 1, 0]]
    model = CameraModel.from_camera_info(camera_info(tx=-6.0, roi=(8, 4, 40, 20)))
    assert model.size == (40, 20)
    assert model.P.tolist() == [[50, 0, 23.5, -6], [0, 50, 19.5, 0], [0, 0, 1, 0]]
    model = CameraModel.from_camera_info(camera_info(tx=-6.0, roi=(8, 4, 40, 20), binning=(4, 2)))
    assert model.size == (10, 10) and model.P[0].tolist() == [12.5, 0, 5.5, -1.5]


def test_images_of_another_size_are_refused_with_both_sizes():
    model = CameraModel.from_camera_info(camera_info(64, 48))
    model.check_size(64, 48)
    with pytest.raises(ImageError, match=r'left images are 32 x 24 pixels, but CameraInfo says 64 x 48\. Publish'):
        model.check_size(32, 24, 'left')
    binned = CameraModel.from_camera_info(camera_info(64, 48, binning=(2, 2)))
    with pytest.raises(ImageError, match='are 64 x 48 pixels, but CameraInfo says 32 x 24 with binning 2 x 2'):
        binned.check_size(64, 48)


def checked(model):
    """A raw image of a plane with dots, and where they must be in the rectified image."""
    directions = np.array([[x, y, 1.0] for x in (-0.3, 0.0, 0.25) for y in (-0.2, 0.15)])  # in the rectified frame
    raw_directions = directions @ model.R  # R maps raw axes to rectified ones
    if model.distortion_model == 'equidistant':
        plane = (raw_directions[:, :2] / raw_directions[:, 2:]).reshape(-1, 1, 2)
        raw = cv2.fisheye.distortPoints(plane, model.K, model.distortion)
    else:
        raw = cv2.projectPoints(raw_directions, np.zeros(3), np.zeros(3), model.K, model.distortion)[0]
    v, u = np.mgrid[: model.height, : model.width]
    image = sum(200 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 18) for x, y in raw.reshape(-1, 2))
    pixels = directions @ model.P[:, :3].T
    return image.astype(np.uint8), pixels[:, :2] / pixels[:, 2:]


@pytest.mark.parametrize(
    ('name', 'coefficients'), [('plumb_bob', PLUMB_BOB), ('rational_polynomial', RATIONAL), ('equidistant', FISHEYE)]
)
def test_rectification_moves_dots_to_where_p_has_them(name, coefficients):
    info = camera_info(320, 240, fx=240.0, cx=165.0, cy=115.0, d=coefficients, model=name, r=TURN.ravel(),
                       p=(230, 0, 160, 0, 0, 230, 120, 0, 0, 0, 1, 0))  # fmt: skip
    rectifier = Rectifier(CameraModel.from_camera_info(info))
    image, expected = checked(rectifier.model)
    rectified = rectifier.rectify(image)
    assert rectified.shape == image.shape and rectifier.rectify(np.dstack([image] * 3)).shape == (240, 320, 3)
    v, u = np.mgrid[:240, :320]
    for x, y in expected:
        near = (np.hypot(u - x, v - y) < 9) * rectified.astype(float)
        found = (near * u).sum() / near.sum(), (near * v).sum() / near.sum()
        assert np.hypot(found[0] - x, found[1] - y) < 0.3  # px: a dot becomes an ellipse, a little off its centre


def test_images_that_need_no_rectification_pass_untouched():
    pixels = np.zeros((48, 64), np.uint8)
    assert Rectifier(CameraModel.from_camera_info(camera_info(64, 48))).rectify(pixels) is pixels
    with pytest.raises(ImageError, match='64 x 47'):
        Rectifier(CameraModel.from_camera_info(camera_info(64, 48))).rectify(pixels[:47])


def test_pixels_that_the_camera_did_not_see_are_known():
    turned = camera_info(64, 48, r=cv2.Rodrigues(np.array([0, 0.3, 0]))[0].ravel())
    is_seen = Rectifier(CameraModel.from_camera_info(turned)).is_seen
    assert not is_seen[24, 5] and is_seen[24, 60]
    assert Rectifier(CameraModel.from_camera_info(camera_info())).is_seen.all()


def test_an_unknown_distortion_is_no_error_until_it_must_be_removed():
    model = CameraModel.from_camera_info(camera_info(model='double_sphere', d=(0.1, 0.2)))
    with pytest.raises(ConfigError, match=r"CameraInfo has 'double_sphere'\. Publish rectified images"):
        Rectifier(model)


def pose(x=0.12, y=0.0, z=0.0, turn=0.0):
    left_T_right = np.eye(4)
    left_T_right[:3, :3], left_T_right[:3, 3] = cv2.Rodrigues(np.array([0, turn, 0]))[0], (x, y, z)
    return left_T_right


def test_the_baseline_comes_from_p():
    camera = stereo_camera(camera_info(), camera_info(tx=-6.0))
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.baseline) == (64, 48, 50, 31.5, 0.12)
    assert camera.right_cx is None
    # KITTI: the left colour camera is itself 6 cm beside the reference
    left, right = (
        (721.5377, 0, 609.5593, tx, 0, 721.5377, 172.854, ty, 0, 0, 1, tz)
        for tx, ty, tz in ((44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905))
    )
    camera = stereo_camera(camera_info(p=left), camera_info(p=right))
    assert camera.baseline == pytest.approx(0.53273, abs=1e-5)
    assert stereo_camera(camera_info(), camera_info(tx=-6.0, cx=30.0)).right_cx == 30
    binned = stereo_camera(*(camera_info(tx=tx, binning=(2, 2)) for tx in (0, -6.0)))
    assert (binned.width, binned.fx, binned.baseline) == (32, 25, 0.12)


def test_a_baseline_of_tf_stands_in_for_one_that_p_lacks():
    assert stereo_camera(camera_info(), camera_info(), pose()).baseline == pytest.approx(0.12)
    assert stereo_camera(camera_info(), camera_info(tx=-6.0), pose(0.3)).baseline == 0.12  # P is first
    for wrong, says in [
        (pose(turn=0.1), 'turned by 5.73 degrees'), (pose(y=0.02), 'not that of rectified'),
        (pose(z=0.12), 'not that of rectified'), (pose(np.nan), 'finite'), (np.eye(4), 'must be 0.005 to 10.0 m'),
        (pose(-0.12), 'swapped'),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            stereo_camera(camera_info(), camera_info(), wrong)


@pytest.mark.parametrize(
    ('left', 'right', 'says'),
    [
        (camera_info(), camera_info(), 'baseline of the stereo cameras is 0.* -fx \\* baseline'),
        (camera_info(), camera_info(p=(0,) * 12), 'baseline of the stereo cameras is 0'),
        (camera_info(p=(0,) * 12), camera_info(p=(0,) * 12), 'baseline of the stereo cameras is 0'),
        (camera_info(), camera_info(tx=6.0), 'swapped: by P the right camera is 0.12 m to the left'),
        (camera_info(tx=-6.0), camera_info(), 'Swap the left and right topics'),
        (camera_info(), camera_info(tx=-6000.0), 'gives 120 m .* in metres'),
        (camera_info(), camera_info(tx=-0.1), 'gives 0.002 m'),
        (camera_info(), camera_info(32, 24, tx=-6.0), '64 x 48 and 32 x 24'),
        (camera_info(), camera_info(tx=-6.0, binning=(2, 2)), '64 x 48 and 32 x 24'),
        (camera_info(), camera_info(fx=50.1, tx=-6.0), 'same focal lengths'),
        (camera_info(), camera_info(fy=50.1, tx=-6.0), 'same focal lengths'),
        (camera_info(), camera_info(p=(50, 1, 31.5, -6, 0, 50, 23.5, 0, 0, 0, 1, 0)), 'no skew'),
        (camera_info(), camera_info(tx=-6.0, cy=25.0), 'same row.* 23.5 on the left and 25 on the right'),
        (camera_info(), camera_info(p=(50, 0, 31.5, 0, 0, 50, 23.5, -6, 0, 0, 1, 0)), '0.12 m below it'),
        (camera_info(k=(0,) * 9), camera_info(tx=-6.0), 'not calibrated'),
    ],
)
def test_what_makes_no_stereo_camera_is_refused(left, right, says):
    with pytest.raises(ConfigError, match=says):
        stereo_camera(left, right)
