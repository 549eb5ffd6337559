# SPDX-License-Identifier: Apache-2.0
import re
from itertools import pairwise

import numpy as np
import pytest

from zeroflow_ros.camera.image import decode_image
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.camera.stereo_checks import StereoChecks, match_corners
from zeroflow_ros.camera.stereo_pairing import FrameDrop

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')
WIDTH, HEIGHT = 240, 120
CAMERA = StereoCamera(WIDTH, HEIGHT, 200.0, 200.0, 119.5, 59.5, 0.1)
NOISE = np.random.default_rng(1).normal(0, 1, (200, 400))
TEXTURE = sum(sigma * cv2.GaussianBlur(NOISE, (0, 0), sigma) for sigma in (2, 5, 12))  # details of several sizes
TEXTURE = (128 + 40 * TEXTURE / TEXTURE.std()).clip(5, 250).astype(np.uint8)


def view(x=0.0, y=0.0, turn=0.0):
    """The texture seen by a camera that is moved by (x, y) px and turned by degrees."""
    motion = cv2.getRotationMatrix2D((200 - x, 100 - y), turn, 1.0)
    motion[:, 2] += (-80 + x, -40 + y)
    return cv2.warpAffine(TEXTURE, motion, (WIDTH, HEIGHT))


def frame(left=None, right=None, camera=CAMERA):
    left, right = view() if left is None else left, view(-8) if right is None else right
    return StereoFrame(left, right, camera)


def noisy(image, seed):
    return (image + np.random.default_rng(seed).integers(-2, 3, image.shape)).clip(0, 255).astype(np.uint8)


def kinds(findings):
    return [(finding.kind, finding.drop) for finding in findings]


def test_a_good_frame_has_no_findings():
    checks = StereoChecks()
    assert checks.check(frame()) == []
    assert checks.num_matches > 50 and checks.row_error_px < 0.05
    disparity, row_error = match_corners(frame())
    assert np.median(disparity) == pytest.approx(8, abs=0.05) and abs(np.median(row_error)) < 0.05
    colour = frame(np.dstack([view()] * 3), np.dstack([view(-8)] * 3))
    assert StereoChecks().check(colour) == []


@pytest.mark.parametrize(
    ('image', 'says'),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), 'right image is black'),
        (np.random.default_rng(0).integers(0, 12, (HEIGHT, WIDTH), np.uint8), 'right image is black .* 0 to 11 of 255'),
        (np.full((HEIGHT, WIDTH), 255, np.uint8), 'right image is saturated'),
        (np.random.default_rng(0).integers(244, 256, (HEIGHT, WIDTH), np.uint8), 'right image is saturated'),
        (np.full((HEIGHT, WIDTH, 3), 128, np.uint8), 'right image is one grey without contrast'),
    ],
)  # fmt: skip
def test_black_and_saturated_images_are_dropped(image, says):
    finding, *others = StereoChecks().check(frame(right=image))
    assert finding.drop is FrameDrop.UNUSABLE and not [one for one in others if one.drop is None]
    assert re.search(says, finding.text)


def test_partly_saturated_images_and_different_exposures_are_warnings():
    bright = view()
    bright[:50] = 255
    findings = StereoChecks().check(frame(left=bright))
    assert ('left saturated', None) in kinds(findings) and not any(one.drop for one in findings)
    findings = StereoChecks().check(frame(right=(view(-8) * 0.6).astype(np.uint8)))
    assert kinds(findings) == [('exposure', None)] and ' of 255 on the left and ' in findings[0].text


@pytest.mark.parametrize('sides', [('left',), ('right',), ('left', 'right')])
def test_frozen_images_are_dropped(sides):
    checks = StereoChecks()
    assert checks.check(frame()) == []
    changed = {side: noisy(image, 1) for side, image in (('left', view()), ('right', view(-8))) if side not in sides}
    findings = checks.check(frame(**changed))
    assert kinds(findings) == [('frozen', FrameDrop.UNUSABLE)]
    assert f'The {" and ".join(sides)} image is the same as the one before' in findings[0].text
    assert checks.check(frame(noisy(view(), 2), noisy(view(-8), 3))) == []


def test_one_other_pixel_is_not_frozen():
    checks = StereoChecks()
    checks.check(frame())
    left, right = view(), view(-8)
    left[3, 3], right[3, 3] = left[3, 3] ^ 1, right[3, 3] ^ 1
    assert checks.check(frame(left, right)) == []


def test_swapped_images_are_dropped_until_they_are_right():
    checks = StereoChecks(every=50)
    for n in range(3):
        findings = checks.check(frame(noisy(view(-8), n), noisy(view(), n)))
        assert kinds(findings) == [('swapped', FrameDrop.SWAPPED)]
        assert 'median disparity -8.0 px' in findings[0].text and 'Swap their topics' in findings[0].text
    assert checks.check(frame()) == []


def test_far_scenes_and_other_principal_points_are_not_swapped():
    assert StereoChecks().check(frame(right=noisy(view(), 5))) == []
    shifted = StereoCamera(WIDTH, HEIGHT, 200.0, 200.0, 119.5, 59.5, 0.1, right_cx=135.5)
    assert StereoChecks().check(frame(right=view(12), camera=shifted)) == []  # disparity -12, 4 px beyond infinity
    assert kinds(StereoChecks().check(frame(right=view(20), camera=shifted))) == [('swapped', FrameDrop.SWAPPED)]


@pytest.mark.parametrize(
    ('y', 'turn', 'row_error', 'drop'),
    [(0.4, 0, 0.4, 'nothing'), (1.5, 0, 1.5, None), (-1.5, 0, 1.5, None), (0, 2, 2.1, None),
     (5, 0, 5.0, FrameDrop.CALIBRATION)],
)  # fmt: skip
def test_row_errors_are_measured(y, turn, row_error, drop):
    checks = StereoChecks()
    findings = checks.check(frame(right=view(-8, y, turn)))
    # px: a roll moves corners by their distance from the middle, and they are not spread evenly
    assert checks.row_error_px == pytest.approx(row_error, abs=0.4 if turn else 0.15)
    assert kinds(findings) == ([] if drop == 'nothing' else [('row error', drop)])
    if findings:
        assert f'corners are {checks.row_error_px:.1f} px higher or lower' in findings[0].text
        assert 'images_are_rectified' in findings[0].text


def test_rows_are_measured_now_and_then_and_the_warning_stays():
    checks, bad = StereoChecks(every=3), view(-8, 1.5)
    found = [kinds(checks.check(frame(noisy(view(), n), noisy(bad if n < 4 else view(-8), n)))) for n in range(8)]
    assert found == [[('row error', None)]] * 6 + [[], []]


def test_a_scene_without_corners_gives_no_measurement():
    ramp = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    checks = StereoChecks()
    assert checks.check(frame(ramp, noisy(ramp, 1)[:, ::-1].copy())) == [] or checks.num_matches < 25
    assert checks.row_error_px is None


def test_a_change_of_one_camera_only_is_a_warning():
    checks = StereoChecks()
    assert checks.check(frame()) == []
    brighter = [(noisy(image, 1) * 0.8).astype(np.uint8) for image in (view(), view(-8))]
    assert checks.check(frame(*brighter)) == []  # both: exposure
    covered = view(-8)
    covered[60:, 100:] = 10
    for n in range(5):
        findings = checks.check(frame(noisy(view(), n), noisy(covered, n)))
        assert ('one camera changed', None) in kinds(findings) and not any(one.drop for one in findings)
        assert '% of the rows of one camera changed' in findings[-1].text
    last = checks.check(frame(noisy(view(), 6), noisy(covered, 6)))
    assert ('one camera changed', None) not in kinds(last)  # by now the usual look
    assert kinds(StereoChecks().check(frame(right=covered))) == kinds(last)


def test_reset_forgets_the_last_images():
    checks = StereoChecks()
    checks.check(frame())
    checks.reset()
    assert checks.check(frame()) == []


def test_large_images_are_reduced_for_matching():
    large = [cv2.resize(image, None, fx=6, fy=6) for image in (view(), view(-8, 0.5))]
    camera = CAMERA.scaled(6 * WIDTH, 6 * HEIGHT)
    disparity, row_error = match_corners(frame(*large, camera=camera))
    assert np.median(disparity) == pytest.approx(48, abs=0.5) and np.median(row_error) == pytest.approx(3, abs=0.3)


@pytest.fixture(scope='module')
def recorded(shared_data):
    """The first two frames of a recording."""
    rosbags = pytest.importorskip('rosbags.highlevel', reason='needs rosbags')
    images = {'left': [], 'right': []}
    with rosbags.AnyReader([shared_data / 'bags' / 'kitti_0005_a_stereo']) as bag:
        for connection, _, data in bag.messages([c for c in bag.connections if c.topic.endswith('compressed')]):
            side = 'left' if 'left' in connection.topic else 'right'
            images[side].append(decode_image(bag.deserialize(data, connection.msgtype)).pixels)
            if min(len(images['left']), len(images['right'])) == 2:
                break
    camera = StereoCamera(1242, 375, 721.5377, 721.5377, 609.5593, 172.854, 0.5327)
    return [
        StereoFrame(left, right, camera) for left, right in zip(images['left'][:2], images['right'][:2], strict=True)
    ]


def test_a_recorded_drive_has_no_findings(recorded):
    checks = StereoChecks(every=1)
    assert [checks.check(one) for one in recorded] == [[], []]
    assert checks.num_matches > 60 and checks.row_error_px < 0.5  # KITTI's own calibration
    garbled = recorded[1].left.copy()
    garbled[200:] = np.roll(garbled[200:], 400, axis=1) // 2 + 100  # as blocks are after lost data
    findings = checks.check(StereoFrame(garbled, recorded[1].right + np.uint8(1), recorded[1].camera))
    assert ('one camera changed', None) in kinds(findings)


def test_a_recorded_drive_with_faults(recorded):
    first = recorded[0]
    swapped = StereoChecks().check(StereoFrame(first.right, first.left, first.camera))
    assert kinds(swapped) == [('swapped', FrameDrop.SWAPPED)]
    for rows, drop in ((2, None), (8, FrameDrop.CALIBRATION)):
        moved = StereoFrame(first.left, np.roll(first.right, rows, axis=0), first.camera)
        checks = StereoChecks()
        assert kinds(checks.check(moved)) == [('row error', drop)]
        assert checks.row_error_px == pytest.approx(rows, abs=0.5)
    later = StereoChecks()
    for one, other in pairwise(recorded):
        later.check(one)
        assert kinds(later.check(StereoFrame(other.left, one.right, one.camera))) == [('frozen', FrameDrop.UNUSABLE)]
