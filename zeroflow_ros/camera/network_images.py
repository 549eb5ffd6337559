# SPDX-License-Identifier: Apache-2.0
"""Stereo frames as the images that a network takes, and its predictions as pixels of the camera."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.errors import ModelError

RESIZES = ('scale', 'pad')


@dataclass(frozen=True)
class NetworkImages:
    """The images of a network.

    width, height: their size [px]. resize: how images of a camera get this size, 'scale' or 'pad' (reflected borders,
    the image in the centre).
    """

    width: int
    height: int
    resize: str = 'scale'

    def camera(self, camera: StereoCamera) -> StereoCamera:
        """Return the camera that takes the network's images; its disparity of infinitely far points is 0.

        Raises: ModelError when images are larger than those of a network that pads them.
        """
        camera = dataclasses.replace(camera, right_cx=None)
        if self.resize == 'scale':
            return camera.scaled(self.width, self.height)
        left, top = self._border(camera)
        return dataclasses.replace(
            camera, width=self.width, height=self.height, cx=camera.cx + left, cy=camera.cy + top
        )

    def images(self, frame: StereoFrame) -> np.ndarray:
        """Return the left and the right image, (2, height, width, 3) uint8 RGB; both are grey where one of them is.

        The right image is shifted where infinitely far points have a disparity, so that it becomes 0.
        Raises: ModelError as `camera` does.
        """
        cv2 = load_opencv()
        images, is_grey = [], frame.left.ndim == 2 or frame.right.ndim == 2
        for image, shift in ((frame.left, 0), (frame.right, frame.camera.disparity_at_infinity)):
            if is_grey and image.ndim == 3:
                image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            if shift:
                matrix = np.float32([[1, 0, shift], [0, 1, 0]])
                image = cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
            image = self._resized(cv2, image, frame.camera)
            images.append(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if is_grey else image)
        return np.stack(images)

    def of_camera(self, values: np.ndarray, camera: StereoCamera) -> np.ndarray:
        """Return values (..., height, width) without the borders that pad the images, (..., h, w)."""
        if self.resize == 'scale':
            return values
        left, top = self._border(camera)
        return values[..., top : top + camera.height, left : left + camera.width]

    def to_camera(self, values: np.ndarray, camera: StereoCamera, step: int = 1) -> np.ndarray:
        """Return values (h, w) of `of_camera`, float32 or bool, at every step-th pixel of the camera, (H', W')."""
        if values.shape == (camera.height, camera.width):
            return values if step == 1 else values[::step, ::step]
        cv2, (height, width) = load_opencv(), values.shape
        if values.dtype == bool:
            rows, columns = (
                np.arange(0, whole, step) * part // whole
                for whole, part in ((camera.height, height), (camera.width, width))
            )
            return values[rows[:, None], columns]
        if step == 1:
            return cv2.resize(values, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
        x, y = width / camera.width, height / camera.height
        places = np.float32([[x * step, 0, 0.5 * x - 0.5], [0, y * step, 0.5 * y - 0.5]])
        size = -(-camera.width // step), -(-camera.height // step)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(values, places, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def pixel_size(self, camera: StereoCamera) -> tuple[float, float]:
        """Return the width and height of a pixel of the network in pixels of the camera."""
        return (1.0, 1.0) if self.resize == 'pad' else (camera.width / self.width, camera.height / self.height)

    def _resized(self, cv2, image: np.ndarray, camera: StereoCamera) -> np.ndarray:
        if self.resize == 'scale':
            shrinks = self.width * self.height < image.shape[0] * image.shape[1]
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            return cv2.resize(image, (self.width, self.height), interpolation=interpolation)
        left, top = self._border(camera)
        rows, columns = (top, self.height - camera.height - top), (left, self.width - camera.width - left)
        return np.pad(image, (rows, columns, (0, 0))[: image.ndim], mode='reflect')

    def _border(self, camera: StereoCamera) -> tuple[int, int]:
        """Return the width of the borders that are added at the left and at the top [px]."""
        if camera.width > self.width or camera.height > self.height:
            raise ModelError(
                f'The images of the camera are {camera.width} x {camera.height} px, and the model takes at most '
                f'{self.width} x {self.height}. Export the model with a larger --size.'
            )
        return (self.width - camera.width) // 2, (self.height - camera.height) // 2
