# SPDX-License-Identifier: Apache-2.0
"""Frames of one camera, and the messages that they are made of.

Depth of one camera is expressed as the disparity of a stereo camera with a baseline of 1 m, so that all that works on
stereo cameras works on it: depth is fx / disparity. Axes and pixels are as in `zeroflow_ros.camera.stereo`.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.camera_model import CameraModel
from zeroflow_ros.camera.image import read_stamp_ns
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.camera.stereo_pairing import FrameDrop, PairingOutcome
from zeroflow_ros.errors import ConfigError, ZeroFlowError

BASELINE = 1.0  # m
_NUM_INFOS = 8


class NoFlowError(ZeroFlowError):
    """An image that cannot have flow yet. drop: the reason to count."""

    def __init__(self, drop: FrameDrop, text: str):
        super().__init__(text)
        self.drop = drop


@dataclass(frozen=True)
class MonoFrame:
    """What one camera saw at one time.

    image: rectified, (H, W, 3) uint8 RGB or (H, W) uint8 grey, of the camera's size. camera: see `mono_camera`.
    stamp_ns: ROS time [ns]. frame_id: optical frame of the camera. bits: of the camera's values that the 8 bits are the
    highest of.
    """

    image: np.ndarray
    camera: StereoCamera
    stamp_ns: int = 0
    frame_id: str = ''
    bits: int = 8

    def __post_init__(self):
        size = (self.camera.height, self.camera.width)
        if self.image.dtype != np.uint8 or self.image.shape not in (size, (*size, 3)):
            raise ValueError(
                f'image must be {size} or {(*size, 3)} uint8 as its camera, got {self.image.shape} {self.image.dtype}'
            )

    @property
    def left(self) -> np.ndarray:
        """The image, as a stereo frame has it."""
        return self.image


@dataclass(frozen=True, eq=False)
class MonoMessages:
    """The messages of one frame, undecoded.

    image: Image or CompressedImage. info: the CameraInfo nearest in time. stamp_ns: ROS time of the image [ns].
    frame_id: its optical frame. offset_ns: 0, as there is no second image.
    """

    image: object
    info: object
    stamp_ns: int
    frame_id: str = ''
    offset_ns: int = 0


def mono_camera(model: CameraModel) -> StereoCamera:
    """Return the rectified camera of a CameraInfo, with a baseline of `BASELINE`.

    Raises: ConfigError for skew, and for focal lengths that make no pinhole camera.
    """
    P = model.P
    if P[0, 1]:
        raise ConfigError(
            f'A rectified camera has no skew, but P of CameraInfo has {P[0, 1]:g}. Calibrate the camera, e.g. with '
            'camera_calibration, and publish the result in camera_info.'
        )
    return StereoCamera(model.width, model.height, float(P[0, 0]), float(P[1, 1]), float(P[0, 2]), float(P[1, 2]),
                        BASELINE)  # fmt: skip


class ImageFeed:
    """Takes images and CameraInfo of one camera in the order of arrival, and gives frames; as `StereoPairing`.

    The newest image waits for the first CameraInfo. Stamps are judged later, see `FrameBuffer`. Not thread-safe.
    """

    def __init__(self):
        self._infos: deque = deque(maxlen=_NUM_INFOS)  # (stamp, CameraInfo)
        self._waiting = None

    def reset(self) -> None:
        """Forget the image that waits; the calibration stays."""
        self._waiting = None

    def push_info(self, _side: str, msg) -> list[PairingOutcome]:
        """Add a CameraInfo; return the frame that waited for it."""
        self._infos.append((read_stamp_ns(msg), msg))
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [self._with_info(waiting)]

    def push(self, _side: str, msg) -> list[PairingOutcome]:
        """Add an image; return its frame, or why an image is not used."""
        if read_stamp_ns(msg) <= 0:
            return [PairingOutcome(drop=FrameDrop.ZERO_STAMP,
                                   text='The image has stamp 0. Set the stamp in the camera driver.')]  # fmt: skip
        if self._infos:
            return [self._with_info(msg)]
        outcomes = self.flush()
        self._waiting = msg
        return outcomes

    def flush(self) -> list[PairingOutcome]:
        """Return why the image that waits is not used; forget it."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return []
        text = (
            'No CameraInfo of the camera has come, without which there is no depth. Publish it, or remap camera_info.'
        )
        return [PairingOutcome(drop=FrameDrop.NO_CAMERA_INFO, text=text)]

    def _with_info(self, msg) -> PairingOutcome:
        stamp_ns = read_stamp_ns(msg)
        _, info = min(reversed(self._infos), key=lambda one: abs(one[0] - stamp_ns))
        return PairingOutcome(MonoMessages(msg, info, stamp_ns, msg.header.frame_id.lstrip('/')))
