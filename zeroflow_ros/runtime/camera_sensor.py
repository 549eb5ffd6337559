# SPDX-License-Identifier: Apache-2.0
"""What differs between a stereo camera and one camera on the way from messages to frames."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.mono import ImageFeed
from zeroflow_ros.camera.mono_checks import MonoChecks
from zeroflow_ros.camera.mono_reader import MonoReader
from zeroflow_ros.camera.stereo import StereoEstimator
from zeroflow_ros.camera.stereo_checks import StereoChecks
from zeroflow_ros.camera.stereo_pairing import SIDES, StereoPairing
from zeroflow_ros.camera.stereo_reader import StereoReader
from zeroflow_ros.engines.mono_network import MonoNetworkFlow
from zeroflow_ros.runtime.camera_health import CAMERAS, ONE_CAMERA
from zeroflow_ros.runtime.health import InputKind

SENSORS = ('stereo', 'mono')


@dataclass(frozen=True)
class CameraSensor:
    """A stereo camera or one camera.

    name: one of SENSORS. sides: names of its images. noun: what a frame is called. kind: its words for the health.
    keeps_state: whether the estimator goes from frame to frame, so that those in between are no help.
    """

    name: str
    sides: tuple[str, ...]
    noun: str
    kind: InputKind
    keeps_state: bool

    def pairing(self, tolerance_s: float) -> StereoPairing | ImageFeed:
        """Return what makes frames of messages. tolerance_s: see `StereoPairing`."""
        return StereoPairing(tolerance_s) if self.name == 'stereo' else ImageFeed()

    def reader(self, images_are_rectified: bool, left_T_right: Callable[[str, str], np.ndarray | None],
               estimator: StereoEstimator) -> StereoReader | MonoReader:  # fmt: skip
        """Return what decodes frames; see `StereoReader`."""
        if self.name == 'mono':
            return MonoReader(images_are_rectified)
        # The classical estimator works on grey images; the colours of the cloud are those of the left one.
        return StereoReader(images_are_rectified, left_T_right, right_as_grey=estimator.name == 'classical')

    def checks(self) -> StereoChecks | MonoChecks:
        """Return what checks the images."""
        return StereoChecks() if self.name == 'stereo' else MonoChecks()


STEREO = CameraSensor('stereo', SIDES, 'stereo frame', CAMERAS, False)
MONO = CameraSensor('mono', ('camera',), 'image', ONE_CAMERA, True)


def sensor_of(estimator: StereoEstimator) -> CameraSensor:
    """Return the sensor that an estimator is for."""
    return MONO if isinstance(estimator, MonoNetworkFlow) else STEREO
