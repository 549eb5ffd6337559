# SPDX-License-Identifier: Apache-2.0
"""From the messages of one camera to rectified frames; node and offline programs use the same reader."""

import numpy as np

from zeroflow_ros.camera.camera_model import CameraModel, Rectifier
from zeroflow_ros.camera.compressed_image import ends_grey
from zeroflow_ros.camera.image import BitDepth, decode_image
from zeroflow_ros.camera.mono import MonoFrame, MonoMessages, mono_camera
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.camera.stereo_reader import CalibrationError, camera_info_content
from zeroflow_ros.errors import ConfigError, ImageError


class MonoReader:
    """Decodes and rectifies images of one camera; the camera model is kept until the CameraInfo changes.

    images_are_rectified: see `StereoReader`. camera: of the last frame, None before the first. is_seen: (H, W) bool,
    the pixels that the raw camera saw; None where all are. note: what is doubtful about the calibration, to be logged
    once; '' where nothing is.
    """

    def __init__(self, images_are_rectified: bool = True):
        self._is_rectified = images_are_rectified
        self._bit_depth = BitDepth()
        self._info: bytes | None = None
        self._model: CameraModel | None = None
        self._rectifier: Rectifier | None = None
        self.camera: StereoCamera | None = None
        self.is_seen: np.ndarray | None = None
        self.note = ''

    def read(self, messages: MonoMessages) -> MonoFrame:
        """Return the rectified frame of an image message.

        Raises: ImageError for an image that cannot be used or has another size than its CameraInfo says,
        CalibrationError for a CameraInfo that cannot be used.
        """
        self._use(messages.info)
        image = decode_image(messages.image, bit_depth=self._bit_depth)
        self._model.check_size(*image.size)
        pixels = image.pixels
        if hasattr(messages.image, 'format') and ends_grey(pixels):
            raise ImageError(
                'The JPEG image lacks data: it ends in grey blocks. Check the connection of the camera and its driver '
                'for lost data, or lower its resolution or rate.'
            )
        if self._rectifier is not None:
            pixels = self._rectifier.rectify(pixels)
            if self.is_seen is None and self._model.is_distorted:
                self.is_seen = self._rectifier.is_seen
        return MonoFrame(pixels, self.camera, messages.stamp_ns, messages.frame_id, self._bit_depth.bits)

    def _use(self, info) -> None:
        """Make the camera model, unless the CameraInfo says what the last one said."""
        content = camera_info_content(info)
        if content == self._info:
            return
        self._info = None
        try:
            model = CameraModel.from_camera_info(info)
            camera = mono_camera(model)
            rectifier = None if self._is_rectified else Rectifier(model)
        except ConfigError as error:
            raise CalibrationError(str(error)) from error
        self._info, self._model, self._rectifier, self.camera = content, model, rectifier, camera
        self.is_seen, self.note = None, ''
        if rectifier is None and model.is_distorted:
            self.note = (
                'CameraInfo has distortion or rotation, and the images are taken as rectified already. If they are raw '
                'images, set images_are_rectified to false.'
            )
