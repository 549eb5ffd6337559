# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from image_messages import camera_info, compressed, image

from zeroflow_ros.camera.camera_model import CameraModel
from zeroflow_ros.camera.stereo_checks import match_corners
from zeroflow_ros.camera.stereo_pairing import StereoMessages
from zeroflow_ros.camera.stereo_reader import CalibrationError, StereoReader, stereo_frame
from zeroflow_ros.errors import ImageError

cv2 = pytest.importorskip('cv2', reason='needs OpenCV')
GREY = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
LEFT, RIGHT = camera_info(), camera_info(tx=-6.0)


def messages(left_info=LEFT, right_info=RIGHT, left=GREY, right=GREY, encoding='mono8'):
    images = image(left, encoding), image(right, encoding, frame='right_optical')
    return StereoMessages(*images, left_info, right_info, 12_000_000_345, 'left_optical')


def test_a_frame_has_the_pixels_the_camera_and_the_left_stamp():
    frame = stereo_frame(
        image(GREY, 'mono8', stamp_ns=7), image(GREY[::-1], 'mono8', stamp_ns=9, frame='right_optical'), LEFT, RIGHT
    )
    assert frame.left.tolist() == GREY.tolist() and frame.right.tolist() == GREY[::-1].tolist()
    assert (frame.camera.baseline, frame.stamp_ns, frame.frame_id) == (0.12, 7, 'left_optical')


def test_grey_and_colour_jpeg_and_raw_may_differ_between_the_sides():
    jpeg = cv2.imencode('.jpg', np.dstack([GREY] * 3))[1].tobytes()
    frame = stereo_frame(image(GREY, 'mono8'), compressed(jpeg), LEFT, RIGHT)
    assert frame.left.shape == (48, 64) and frame.right.shape == (48, 64, 3)


def test_the_right_image_may_be_read_as_grey():
    colour = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
    read = StereoReader(right_as_grey=True).read(messages(left=colour, right=colour, encoding='rgb8'))
    assert (
        read.left.tolist() == colour.tolist()
        and read.right.tolist() == cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).tolist()
    )


def test_images_of_another_size_than_camera_info_says():
    with pytest.raises(ImageError, match='right images are 64 x 47 pixels, but CameraInfo says 64 x 48'):
        stereo_frame(image(GREY, 'mono8'), image(GREY[:47], 'mono8'), LEFT, RIGHT)
    with pytest.raises(ImageError, match='left images are 32 x 48'):
        stereo_frame(image(GREY[:, :32], 'mono8'), image(GREY, 'mono8'), LEFT, RIGHT)


def test_raw_images_are_rectified_where_the_parameter_says_so():
    distorted = messages(*(camera_info(tx=tx, d=(-0.2, 0.05, 0, 0, 0)) for tx in (0, -6.0)))
    reader = StereoReader(images_are_rectified=True)
    assert (reader.read(distorted).left == GREY).all() and reader.is_seen is None
    assert 'If they are raw images, set images_are_rectified to false' in reader.note
    reader = StereoReader(images_are_rectified=False)
    left = reader.read(distorted).left
    assert (left != GREY).mean() > 0.3 and abs(int(left[23, 31]) - GREY[23, 31]) < 40
    assert reader.note == '' and reader.is_seen.shape == (48, 64)
    assert (reader.read(messages()).left == GREY).all()
    assert reader.note == '' and reader.is_seen is None


def raw_view(rectified, info):
    """Return the image that the camera of a CameraInfo takes of what it would see as `rectified`."""
    model = CameraModel.from_camera_info(info)
    pixels = np.stack(np.meshgrid(np.arange(model.width), np.arange(model.height)), axis=-1).reshape(-1, 1, 2)
    undistort = cv2.fisheye.undistortPoints if model.distortion_model == 'equidistant' else cv2.undistortPoints
    places = undistort(pixels.astype(np.float64), model.K, model.distortion, R=model.R, P=model.P[:, :3])
    return cv2.remap(rectified, places.reshape(model.height, model.width, 2).astype(np.float32), None, cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    ('name', 'left_d', 'right_d'),
    [('plumb_bob', (-0.25, 0.08, 0.001, 0, 0), (-0.2, 0.05, 0, 0.001, 0)),
     ('equidistant', (-0.05, 0.01, 0, 0), (-0.04, 0.005, 0, 0))],
)  # fmt: skip
def test_raw_images_of_misaligned_cameras_have_equal_rows_once_rectified(name, left_d, right_d):
    noise = np.random.default_rng(1).normal(0, 1, (160, 300))
    scene = sum(sigma * cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (2, 5, 12))
    scene = (128 + 40 * scene / scene.std()).clip(5, 250).astype(np.uint8)
    views = scene[20:140, 30:270], scene[20:140, 38:278]  # 8 px of disparity
    infos = [
        camera_info(240, 120, fx=200.0, cx=cx, cy=58.0, d=d, model=name, r=cv2.Rodrigues(np.array(turn))[0].ravel(),
                    p=(200, 0, 119.5, tx, 0, 200, 59.5, 0, 0, 0, 1, 0))
        for cx, d, turn, tx in ((117.0, left_d, (0.01, 0.02, -0.01), 0), (122.0, right_d, (-0.01, -0.01, 0.015), -20))
    ]  # fmt: skip
    raw = messages(*infos, *(raw_view(view, info) for view, info in zip(views, infos, strict=True)))
    _, row_error = match_corners(StereoReader(images_are_rectified=True).read(raw))
    assert np.median(np.abs(row_error)) > 2
    reader = StereoReader(images_are_rectified=False)
    frame = reader.read(raw)
    disparity, row_error = match_corners(frame)
    assert len(disparity) > 50 and np.median(np.abs(row_error)) < 0.1 and abs(np.median(disparity) - 8) < 0.1
    assert reader.is_seen.mean() > 0.8
    assert np.abs(frame.left.astype(int) - views[0])[reader.is_seen].mean() < 3  # grey levels: interpolated twice


def test_a_baseline_of_tf_is_asked_for_by_the_frames_of_the_images():
    asked = []

    def left_T_right(left, right):
        asked.append((left, right))
        pose = np.eye(4)
        pose[0, 3] = 0.2
        return pose

    reader = StereoReader(left_T_right=left_T_right)
    for _ in range(2):
        assert reader.read(messages(LEFT, LEFT)).camera.baseline == 0.2
    assert asked == [('left_optical', 'right_optical')]
    assert reader.note == 'P of CameraInfo has no baseline; that of tf is used, 0.2000 m.'
    assert reader.read(messages()).camera.baseline == 0.12
    assert len(asked) == 1 and reader.note == ''


def test_a_new_calibration_is_taken_over_and_a_bad_one_stays_bad():
    reader = StereoReader()
    assert reader.camera is None
    camera = reader.read(messages()).camera
    assert reader.read(messages(camera_info(stamp_ns=5), camera_info(tx=-6.0))).camera is camera is reader.camera
    assert reader.read(messages(LEFT, camera_info(tx=-12.0))).camera.baseline == 0.24
    for _ in range(2):
        with pytest.raises(CalibrationError, match='swapped'):
            reader.read(messages(LEFT, camera_info(tx=6.0)))
    assert reader.read(messages()).camera.baseline == 0.12


def test_both_cameras_of_16_bits_keep_the_same_brightness():
    dark, bright = np.full((48, 64), 900, np.uint16), np.full((48, 64), 4000, np.uint16)
    frame = StereoReader().read(messages(left=dark, right=bright, encoding='mono16'))
    assert (frame.left[0, 0], frame.right[0, 0], frame.bits) == (900 >> 4, 4000 >> 4, 12)


@pytest.mark.parametrize('size', [(96, 128), (97, 131), (81, 130)])
@pytest.mark.parametrize('colours', [1, 3])
@pytest.mark.parametrize('damage', ['cut', 'hole', 'noise'])
def test_a_jpeg_that_lacks_data_before_its_end_marker(size, colours, damage):
    """Such a file decodes without an error."""
    pixels = cv2.resize(np.random.default_rng(4).integers(0, 255, (24, 32), np.uint8), size[::-1])
    pixels = np.dstack([pixels] * colours).squeeze()
    good = cv2.imencode('.jpg', pixels)[1].tobytes()
    third, end = len(good) // 3, b'\xff\xd9'
    bad = {
        'cut': good[: 2 * third] + end, 'hole': good[:third] + good[2 * third :],
        'noise': good[:third] + np.random.default_rng(1).bytes(100) + good[2 * third :],
    }[damage]  # fmt: skip
    infos = [camera_info(size[1], size[0], tx=tx) for tx in (0, -6.0)]
    for sides, which in (((bad, good), 'left'), ((good, bad), 'right')):
        with pytest.raises(ImageError, match=f'{which} JPEG image lacks data|truncated or damaged'):
            stereo_frame(*(compressed(data) for data in sides), *infos)
    assert stereo_frame(compressed(good), compressed(good), *infos).left.shape == pixels.shape


def test_a_grey_world_is_no_lost_data():
    grey = np.full((48, 64), 128, np.uint8)
    grey[:20] = GREY[:20]
    file = compressed(cv2.imencode('.jpg', grey)[1].tobytes())
    assert stereo_frame(file, file, LEFT, RIGHT).left[-1, -1] == 128
    assert stereo_frame(image(grey, 'mono8'), image(GREY, 'mono8'), LEFT, RIGHT).left[-1, -1] == 128


def test_frames_of_a_recording(shared_data):
    """JPEG of 1242 x 375 pixels; what KITTI says of its cameras."""
    rosbags = pytest.importorskip('rosbags.highlevel', reason='needs rosbags')
    topics = [f'/stereo/{side}/{name}' for name in ('image_rect_color/compressed', 'camera_info')
              for side in ('left', 'right')]  # fmt: skip
    with rosbags.AnyReader([shared_data / 'bags' / 'kitti_0005_a_stereo']) as bag:
        found = {}
        for connection, _, data in bag.messages([c for c in bag.connections if c.topic in topics]):
            found.setdefault(connection.topic, bag.deserialize(data, connection.msgtype))
            if len(found) == 4:
                break
    frame = stereo_frame(*(found[topic] for topic in topics))
    assert frame.left.shape == frame.right.shape == (375, 1242, 3)
    assert frame.camera.baseline == pytest.approx(0.5327, abs=1e-4) and frame.camera.fx == 721.5377
    sign, wall = frame.left[230:280, 127:150].mean((0, 1)), frame.left[60:130, 690:850].mean((0, 1))
    assert sign.argmax() == 2 and wall.argmax() == 0  # a blue sign before a red house


def test_a_camera_info_of_a_huge_size_takes_no_memory():
    """The maps of rectification would take 26 GB."""
    huge = [camera_info(65535, 65535, tx=tx, d=(-0.2, 0.05, 0, 0, 0)) for tx in (0, -6.0)]
    with pytest.raises(ImageError, match='left images are 64 x 48 pixels, but CameraInfo says 65535 x 65535'):
        StereoReader(images_are_rectified=False).read(messages(*huge))
