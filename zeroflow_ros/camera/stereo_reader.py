# SPDX-License-Identifier: Apache-2.0
"""From the messages of a stereo camera to rectified frames; node and offline programs use the same reader."""

from collections.abc import Callable

import numpy as np

from zeroflow_ros.camera.camera_model import CameraModel, Rectifier, stereo_camera
from zeroflow_ros.camera.compressed_image import ends_grey
from zeroflow_ros.camera.image import BitDepth, Image, decode_image
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.camera.stereo_pairing import StereoMessages
from zeroflow_ros.errors import ConfigError, ImageError


class CalibrationError(ConfigError):
    """Two CameraInfo that make no stereo camera, or images that cannot be rectified by them."""


class StereoReader:
    """Decodes and rectifies both images of a frame; the camera models are kept until a CameraInfo changes.

    images_are_rectified: whether the images are rectified already. A topic name is no evidence of it, nor is
    CameraInfo, which raw and rectified images of a camera share. False: the images are raw, and are rectified by their
    CameraInfo.
    left_T_right: returns the (4, 4) pose of the right optical frame in the left one, or None, for the frame ids of the
    left and the right image; asked only where P has no baseline.
    right_as_grey: read only the brightness of the right image, for an estimator that works on grey images.
    camera: of the last frame, None before the first. is_seen: (H, W) bool, the pixels that both raw cameras saw; None
    where all are. note: what is doubtful about the calibration, to be logged once; '' where nothing is.
    """

    def __init__(self, images_are_rectified: bool = True,
                 left_T_right: Callable[[str, str], np.ndarray | None] = lambda left, right: None, *,
                 right_as_grey: bool = False):  # fmt: skip
        self._is_rectified, self._left_T_right, self._right_as_grey = images_are_rectified, left_T_right, right_as_grey
        self._bit_depth = BitDepth()  # of both cameras, so that they keep the same brightness
        self._infos: tuple[bytes, bytes] | None = None
        self._models: tuple[CameraModel, CameraModel] | None = None
        self._rectifiers: tuple[Rectifier, Rectifier] | None = None
        self.camera: StereoCamera | None = None
        self.is_seen: np.ndarray | None = None
        self.note = ''

    def read(self, messages: StereoMessages) -> StereoFrame:
        """Return the rectified frame of two image messages.

        Raises: ImageError for an image that cannot be used or has another size than its CameraInfo says,
        CalibrationError for the CameraInfo of both.
        """
        frames = (message.header.frame_id.lstrip('/') for message in (messages.left, messages.right))
        self._use(messages.left_info, messages.right_info, *frames)
        images = self._decode(messages)
        for side, image, model in zip(('left', 'right'), images, self._models, strict=True):
            model.check_size(*image.size, side)
        pixels = [image.pixels for image in images]
        if self._rectifiers is not None:
            pixels = [one.rectify(image) for one, image in zip(self._rectifiers, pixels, strict=True)]
            if self.is_seen is None and any(model.is_distorted for model in self._models):
                self.is_seen = self._rectifiers[0].is_seen & self._rectifiers[1].is_seen
        return StereoFrame(*pixels, self.camera, messages.stamp_ns, messages.frame_id, self._bit_depth.bits)

    def _decode(self, messages: StereoMessages) -> tuple[Image, Image]:
        left = decode_image(messages.left, bit_depth=self._bit_depth)
        bits = self._bit_depth.bits
        right = decode_image(messages.right, bit_depth=self._bit_depth, as_grey=self._right_as_grey)
        if self._bit_depth.bits != bits:  # the right image needs more bits than the left one
            left = decode_image(messages.left, bit_depth=self._bit_depth)
        is_torn = [hasattr(message, 'format') and ends_grey(image.pixels)
                   for message, image in ((messages.left, left), (messages.right, right))]  # fmt: skip
        if is_torn[0] != is_torn[1]:  # both may show a grey world, in a simulation
            raise ImageError(
                f'The {"left" if is_torn[0] else "right"} JPEG image lacks data: it ends in grey blocks. Check the '
                'connection of the camera and its driver for lost data, or lower its resolution or rate.'
            )
        return left, right

    def _use(self, left_info, right_info, left_frame: str, right_frame: str) -> None:
        """Make the camera models, unless both CameraInfo say what the last ones said."""
        infos = camera_info_content(left_info), camera_info_content(right_info)
        if infos == self._infos:
            return
        self._infos = None
        try:
            models = CameraModel.from_camera_info(left_info), CameraModel.from_camera_info(right_info)
            has_baseline = models[0].P[0, 3] != models[1].P[0, 3]
            pose = None if has_baseline else self._left_T_right(left_frame, right_frame)
            camera = stereo_camera(*models, pose)
            rectifiers = None if self._is_rectified else tuple(Rectifier(model) for model in models)
        except ConfigError as error:
            raise CalibrationError(str(error)) from error
        self._infos, self._models, self._rectifiers, self.camera = infos, models, rectifiers, camera
        self.is_seen, notes = None, []
        if not has_baseline:
            notes.append(f'P of CameraInfo has no baseline; that of tf is used, {camera.baseline:.4f} m.')
        if rectifiers is None and any(model.is_distorted for model in models):
            notes.append(
                'CameraInfo has distortion or rotation, and the images are taken as rectified already. If they are raw '
                'images, set images_are_rectified to false.'
            )
        self.note = ' '.join(notes)


def stereo_frame(left_msg, right_msg, left_info, right_info, *, images_are_rectified: bool = True,
                 left_T_right: np.ndarray | None = None) -> StereoFrame:  # fmt: skip
    """Return one frame, with the stamp of the left image; for many, a `StereoReader` is faster.

    Raises: as `StereoReader.read`.
    """
    stamp = left_msg.header.stamp
    stamp_ns, frame_id = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec), left_msg.header.frame_id.lstrip('/')
    reader = StereoReader(images_are_rectified, lambda left, right: left_T_right)
    return reader.read(StereoMessages(left_msg, right_msg, left_info, right_info, stamp_ns, frame_id))


def camera_info_content(info) -> bytes:
    """Return what a CameraInfo says of the camera, without its stamp."""
    numbers = [
        np.asarray(getattr(info, name) if hasattr(info, name) else getattr(info, name.upper()), np.float64)
        for name in 'kdrp'
    ]
    roi = info.roi
    size = (info.width, info.height, info.binning_x, info.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height)
    said = f'{size} {info.distortion_model} {info.header.frame_id} {[len(values) for values in numbers]}'
    return b' '.join([said.encode(), *(values.tobytes() for values in numbers)])
