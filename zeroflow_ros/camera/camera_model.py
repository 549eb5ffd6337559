# SPDX-License-Identifier: Apache-2.0
"""Camera models from sensor_msgs/CameraInfo, and rectification of raw images.

The principal point is that of the images as they are published: cropped by the region of interest, then binned.
Pixel centres are at whole numbers, so binning by 2 moves the principal point to (c + 0.5) / 2 - 0.5.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zeroflow_ros.camera.image import read_frame_id
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, ImageError

# model of CameraInfo: (name here, allowed numbers of coefficients)
_MODELS = {
    'plumb_bob': ('plumb_bob', (4, 5)), 'rational_polynomial': ('rational_polynomial', (8, 12, 14)),
    'equidistant': ('equidistant', (4,)), 'fisheye': ('equidistant', (4,)),
}  # fmt: skip
_KNOWN = ('none', 'plumb_bob', 'rational_polynomial', 'equidistant')
_MAX_SIDE = 2**16
_MAX_COEFFICIENTS = 100
_SAME_PX = 0.01  # a map that moves no pixel by more changes nothing
_SAME_FOCAL_LENGTH = 1e-4  # relative: P is written with six digits or more
_SAME_ROW_PX = 0.05  # difference of the principal points' rows
_BASELINES = 0.005, 10.0  # m; outside the unit of P is not metres
_FORWARD = 0.05  # m; P[2, 3] of KITTI is 3 mm
_MOST_TURN = np.radians(1.0)  # of a right camera given by tf
_MOST_OFFSET = 0.05  # upward and forward offset of the right camera / baseline; 0.005 in KITTI's P
_CALIBRATE = 'Calibrate the cameras, e.g. with camera_calibration, and publish the result in camera_info'
_CALIBRATE_PAIR = (
    'Calibrate both cameras as one stereo pair, e.g. with camera_calibration, and publish the result in their '
    'camera_info'
)


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Pinhole camera with lens distortion.

    width, height: size of the published images [px]. K: (3, 3), of the raw image. R: (3, 3), rectified_T_raw axes.
    P: (3, 4), of the rectified image; P[0, 3] = -fx * baseline for the right camera of a stereo pair [px m].
    distortion: coefficients of `distortion_model`, in the order of OpenCV: 'plumb_bob', 'rational_polynomial',
    'equidistant', 'none', or another name, which only rectified images may have.
    area: binning and region of interest in words, where there are any.
    """

    width: int
    height: int
    K: np.ndarray
    distortion: np.ndarray
    distortion_model: str
    R: np.ndarray
    P: np.ndarray
    frame_id: str = ''
    area: str = ''

    @classmethod
    def from_camera_info(cls, msg) -> 'CameraModel':
        """Read a CameraInfo of ROS 1 or 2.

        A P of zeros is taken as K where the images need no rectification, an R of zeros as the identity.
        Raises: ConfigError for a camera without calibration, numbers that make no camera, a region of interest
        outside the image; ImageError for a frame_id that is too long.
        """
        k, d, r, p = (np.asarray(_field(msg, name), np.float64).ravel() for name in 'kdrp')
        width, height = int(msg.width), int(msg.height)
        if not (0 < width < _MAX_SIDE and 0 < height < _MAX_SIDE) or len(d) > _MAX_COEFFICIENTS:
            raise ConfigError(
                f'CameraInfo must have a size of 1 to {_MAX_SIDE - 1} pixels a side and at most {_MAX_COEFFICIENTS} '
                f'distortion coefficients, got {width} x {height} and {len(d)}. {_CALIBRATE}.'
            )
        if [len(k), len(r), len(p)] != [9, 9, 12] or not all(np.isfinite(values).all() for values in (k, d, r, p)):
            raise ConfigError(
                'CameraInfo must have finite K (9 numbers), D, R (9) and P (12), got '
                f'K {_said(k)}, D {_said(d)}, R {_said(r)}, P {_said(p)}. {_CALIBRATE}.'
            )
        K, R, P = k.reshape(3, 3), r.reshape(3, 3), p.reshape(3, 4)
        if not (K[0, 0] > 0 and K[1, 1] > 0):
            raise ConfigError(
                f'CameraInfo must have positive focal lengths, but K is {_said(k)}: the camera is not calibrated. '
                f'{_CALIBRATE}.'
            )
        R = np.eye(3) if not R.any() else R
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
            raise ConfigError(f'R of CameraInfo must be a rotation, got {_said(r)}. {_CALIBRATE}.')
        if not P.any() and not d.any() and np.allclose(R, np.eye(3)):
            P = np.hstack([K, np.zeros((3, 1))])
        if not (P[0, 0] > 0 and P[1, 1] > 0 and np.allclose(P[2], [0, 0, 1, 0], atol=_FORWARD)):
            raise ConfigError(
                'P of CameraInfo must have positive focal lengths and the last row 0 0 1 0, but is '
                f'{_said(p)}. {_CALIBRATE}.'
            )
        model, distortion = _distortion(str(msg.distortion_model)[:40], d)
        area = _Area.of(msg)
        return cls(area.width, area.height, area.moved(K), distortion, model, R, area.moved(P), read_frame_id(msg),
                   area.words)  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the images [px]."""
        return self.width, self.height

    @cached_property
    def is_distorted(self) -> bool:
        """Whether rectification would move the pixels of an image of this camera."""
        return bool(self.distortion.any() or not np.allclose(self.R, np.eye(3), atol=1e-6)) or not np.allclose(
            self.K, self.P[:, :3], atol=_SAME_PX
        )

    def check_size(self, width: int, height: int, side: str = '') -> None:
        """Raises: ImageError where an image [px] has another size than the camera. side: 'left' or 'right'."""
        if (width, height) == self.size:
            return
        area = f' with {self.area}' if self.area else ''
        raise ImageError(
            f'The {side + " " if side else ""}images are {width} x {height} pixels, but CameraInfo says '
            f'{self.width} x {self.height}{area}. Publish the camera_info of these images: a node that resizes or '
            'crops images must also publish their camera_info.'
        )


class Rectifier:
    """Turns raw images of a camera into rectified ones, with the maps of K, D, R and P of its CameraInfo.

    Whether images are raw cannot be told from their topic or CameraInfo, which raw and rectified images share: the
    caller decides, by the parameter images_are_rectified. Images of a camera without distortion pass as they are.
    Raises: ConfigError for a distortion model that is not known.
    """

    def __init__(self, model: CameraModel):
        self.model = model
        self._maps = None
        if model.is_distorted and model.distortion_model not in _KNOWN:
            raise ConfigError(
                'Rectification knows the distortion models plumb_bob, rational_polynomial and equidistant, but '
                f'CameraInfo has {model.distortion_model!r}. Publish rectified images and set images_are_rectified.'
            )

    def rectify(self, pixels: np.ndarray) -> np.ndarray:
        """Return the rectified image of (H, W) or (H, W, 3) uint8; 0 where the camera did not see. Bilinear.

        Raises: ImageError where the size is not that of the camera.
        """
        self.model.check_size(pixels.shape[1], pixels.shape[0])
        if not self.model.is_distorted:
            return pixels
        cv2 = load_opencv()
        if self._maps is None:  # now that the size is known to be that of an image, not only of a header
            self._maps = self._make_maps(cv2)
        return cv2.remap(pixels, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def _make_maps(self, cv2) -> tuple[np.ndarray, np.ndarray]:
        model = self.model
        arguments = (model.K, model.distortion, model.R, model.P[:, :3], model.size, cv2.CV_16SC2)
        if model.distortion_model == 'equidistant':
            return cv2.fisheye.initUndistortRectifyMap(*arguments)
        return cv2.initUndistortRectifyMap(*arguments)

    @cached_property
    def is_seen(self) -> np.ndarray:
        """(H, W) bool, the pixels of the rectified image that the camera saw."""
        return self.rectify(np.full((self.model.height, self.model.width), 255, np.uint8)) == 255


def stereo_camera(left_info, right_info, left_T_right: np.ndarray | None = None) -> StereoCamera:
    """Return the rectified stereo camera of two CameraInfo messages or `CameraModel`s, from their P matrices.

    The baseline is (P_left[0, 3] - P_right[0, 3]) / fx.
    left_T_right: (4, 4) pose of the right optical frame in the left one, for drivers that leave the baseline out of P
    and publish it by tf; used only where both P[0, 3] are equal.

    Raises: ConfigError where sizes, focal lengths or rows differ, the baseline is 0 or implausible, left and right are
    swapped, one camera is above the other, or left_T_right is not that of a rectified pair.
    """
    left, right = (
        info if isinstance(info, CameraModel) else CameraModel.from_camera_info(info)
        for info in (left_info, right_info)
    )
    if left.size != right.size:
        raise ConfigError(
            f'Left and right images must have the same size, but CameraInfo says {left.width} x {left.height} and '
            f'{right.width} x {right.height}. Set the same resolution, binning and region of interest for both cameras.'
        )
    fx, fy = left.P[0, 0], left.P[1, 1]
    focal_lengths = right.P[0, 0] / fx, right.P[1, 1] / fy
    if max(abs(ratio - 1) for ratio in focal_lengths) > _SAME_FOCAL_LENGTH or abs(left.P[0, 1]) + abs(right.P[0, 1]):
        raise ConfigError(
            f'Rectified cameras must have the same focal lengths and no skew, but P is {_said(left.P.ravel())} on the '
            f'left and {_said(right.P.ravel())} on the right. {_CALIBRATE_PAIR}.'
        )
    if abs(left.P[1, 2] - right.P[1, 2]) > _SAME_ROW_PX:
        raise ConfigError(
            'Rectified cameras must see a point in the same row, but cy of P is '
            f'{left.P[1, 2]:g} on the left and {right.P[1, 2]:g} on the right. {_CALIBRATE_PAIR}, and set the same '
            'region of interest for both.'
        )
    baseline, below = (left.P[0, 3] - right.P[0, 3]) / fx, (left.P[1, 3] - right.P[1, 3]) / fy
    if abs(below) > _MOST_OFFSET * abs(baseline):
        raise ConfigError(
            f'Stereo cameras must be side by side, but by P the right camera is {baseline:g} m right of the left '
            f'one and {below:g} m below it. {_CALIBRATE_PAIR}. Cameras above each other are not supported.'
        )
    if abs(baseline) < 1e-9:
        if left_T_right is None:
            raise ConfigError(
                'The baseline of the stereo cameras is 0: P[0, 3] of the right CameraInfo must be -fx * baseline '
                f'[px m], but both are {left.P[0, 3]:g}. {_CALIBRATE_PAIR}, or publish tf from the left optical frame '
                'to the right one.'
            )
        baseline = _baseline_of(np.asarray(left_T_right, np.float64))
    if baseline < 0:
        raise ConfigError(
            f'Left and right seem to be swapped: by P the right camera is {-baseline:g} m to the left of the left one '
            f'(P[0, 3] is {left.P[0, 3]:g} on the left and {right.P[0, 3]:g} on the right; the right one must be '
            '-fx * baseline). Swap the left and right topics, or correct P.'
        )
    if not _BASELINES[0] <= baseline <= _BASELINES[1]:
        raise ConfigError(
            f'The baseline of stereo cameras must be {_BASELINES[0]} to {_BASELINES[1]} m, but P gives {baseline:g} m '
            f'(fx {fx:g}, P[0, 3] of the right {right.P[0, 3]:g}). P[0, 3] must be -fx * baseline with the baseline in '
            'metres.'
        )
    right_cx = None if left.P[0, 2] == right.P[0, 2] else float(right.P[0, 2])
    return StereoCamera(left.width, left.height, float(fx), float(fy), float(left.P[0, 2]), float(left.P[1, 2]),
                        float(baseline), right_cx)  # fmt: skip


def _baseline_of(left_T_right: np.ndarray) -> float:
    """Return the baseline [m] of a pose of the right camera. Raises: ConfigError where it is not beside the left."""
    if left_T_right.shape != (4, 4) or not np.isfinite(left_T_right).all():
        raise ConfigError(f'left_T_right must be a finite (4, 4) matrix, got {left_T_right}.')
    x, y, z = left_T_right[:3, 3]
    turn = np.arccos(np.clip((np.trace(left_T_right[:3, :3]) - 1) / 2, -1, 1))
    if turn > _MOST_TURN or np.hypot(y, z) > _MOST_OFFSET * abs(x):
        raise ConfigError(
            'P of both cameras has no baseline, and the tf between their optical frames is not that of rectified '
            f'images: the right camera is at ({x:g}, {y:g}, {z:g}) m of the left one (x right, y down, z forward), '
            f'turned by {np.degrees(turn):.2f} degrees. {_CALIBRATE_PAIR}.'
        )
    return float(x)


def _field(msg, name: str):
    return getattr(msg, name) if hasattr(msg, name) else getattr(msg, name.upper())  # ROS 1 has K, D, R, P


def _said(values: np.ndarray) -> str:
    more = ' ...' if len(values) > 16 else ''
    return f'[{" ".join(f"{value:g}" for value in values[:16])}{more}]'


def _distortion(name: str, coefficients: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the model and its coefficients. Raises: ConfigError for a wrong number of them."""
    if not coefficients.any():
        return 'none', np.zeros(4 if name in ('equidistant', 'fisheye') else 5)
    if name not in _MODELS:
        return name or 'unnamed', coefficients
    model, lengths = _MODELS[name]
    if len(coefficients) not in lengths:
        raise ConfigError(
            f'The distortion model {name} must have {" or ".join(map(str, lengths))} coefficients, but CameraInfo has '
            f'{len(coefficients)}: {_said(coefficients)}. {_CALIBRATE}.'
        )
    return model, coefficients


@dataclass(frozen=True)
class _Area:
    """The part of the sensor that is published: offset of its corner and binning [px of the full sensor], its size."""

    x: int
    y: int
    binning_x: int
    binning_y: int
    width: int
    height: int
    words: str

    @classmethod
    def of(cls, msg) -> '_Area':
        roi, width, height = msg.roi, int(msg.width), int(msg.height)
        binning_x, binning_y = max(int(msg.binning_x), 1), max(int(msg.binning_y), 1)
        x, y, roi_width, roi_height = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
        if roi_width == roi_height == 0:  # by definition: the whole image
            roi_width, roi_height = width - x, height - y
        outside = x < 0 or y < 0 or roi_width <= 0 or roi_height <= 0 or x + roi_width > width
        if outside or y + roi_height > height or binning_x > roi_width or binning_y > roi_height:
            raise ConfigError(
                f'The region of interest of CameraInfo must lie in the {width} x {height} pixels of the camera, got '
                f'{roi_width} x {roi_height} at ({x}, {y}), binned by {binning_x} x {binning_y}. Fix the driver.'
            )
        words = []
        if (roi_width, roi_height) != (width, height):
            words.append(f'a region of interest of {roi_width} x {roi_height} at ({x}, {y}) of {width} x {height}')
        if (binning_x, binning_y) != (1, 1):
            words.append(f'binning {binning_x} x {binning_y}')
        return cls(x, y, binning_x, binning_y, roi_width // binning_x, roi_height // binning_y, ' and '.join(words))

    def moved(self, matrix: np.ndarray) -> np.ndarray:
        """Return K or P of the full sensor for the published image."""
        # The pixel u of the sensor is (u + 0.5 - x_offset) / binning - 0.5 of the image.
        x, y = 1 / self.binning_x, 1 / self.binning_y
        image_of_sensor = [[x, 0, (0.5 - self.x) * x - 0.5], [0, y, (0.5 - self.y) * y - 0.5], [0, 0, 1]]
        return np.array(image_of_sensor) @ matrix
