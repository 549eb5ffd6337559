# SPDX-License-Identifier: Apache-2.0
"""What the health of a camera node counts, in the words of cameras; and checks that warn without dropping a frame."""

import re
from collections.abc import Callable

import numpy as np

from zeroflow_ros.camera.mono import MonoFrame
from zeroflow_ros.camera.mono_checks import MonoChecks
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_checks import ImageFinding, StereoChecks
from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.camera_pipeline import CameraFlowEstimate
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.runtime.health import Health, InputKind, Level, Severity
from zeroflow_ros.runtime.input_checks import NODE_CLOCK, report_other_clock

CAMERA_DROPS = {
    FrameDrop.FIRST: Severity('input', Level.OK, 'debug'),
    FrameDrop.MALFORMED: Severity('input', Level.ERROR, 'error'),
    FrameDrop.NO_PARTNER: Severity('input', Level.WARN, 'warning'),
    FrameDrop.NO_CAMERA_INFO: Severity('input', Level.ERROR, 'error'),
    FrameDrop.CALIBRATION: Severity('input', Level.ERROR, 'error'),
    FrameDrop.UNUSABLE: Severity('input', Level.WARN, 'warning'),
    FrameDrop.SWAPPED: Severity('input', Level.ERROR, 'error'),
    FrameDrop.ZERO_STAMP: Severity('input', Level.ERROR, 'warning'),
    FrameDrop.DUPLICATE: Severity('input', Level.OK, 'debug'),  # a warning when frequent
    FrameDrop.OUT_OF_ORDER: Severity('input', Level.WARN, 'debug'),
    FrameDrop.TIME_RESET: Severity('input', Level.OK, 'info'),
    FrameDrop.FRAME_CHANGED: Severity('input', Level.WARN, 'warning'),
    FrameDrop.GAP: Severity('input', Level.WARN, 'warning'),
    FrameDrop.TOO_CLOSE: Severity('input', Level.OK, 'debug'),
    FrameDrop.EGO_MOTION: Severity('ego_motion', Level.WARN, 'warning'),  # an error when it does not end
    FrameDrop.NO_SCALE: Severity('inference', Level.WARN, 'warning'),
    FrameDrop.OVERTAKEN: Severity('inference', Level.OK, 'debug'),  # a warning when frequent
    FrameDrop.ENGINE: Severity('inference', Level.ERROR, 'error'),
}
_FREQUENT = {
    FrameDrop.DUPLICATE: 'repeat the stamp of the one before: two publishers, or a driver that stamps coarsely',
    FrameDrop.OVERTAKEN: 'were overtaken: the estimator is slower than the camera, give it more threads or smaller '
    'images',
}
_WORD = r"(?<![\w/'~.-]){}(?![\w/'-])"  # no part of a name


def _words(noun: str) -> tuple:
    return tuple(
        (re.compile(_WORD.format(pattern)), replacement)
        for pattern, replacement in (
            ('cloud frame', 'optical frame'), ('clouds', 'images'), ('Clouds', 'Images'), ('cloud', 'image'),
            ('sweeps', f'{noun}s'), ('sweep', noun), ('odometry_T_lidar', 'odometry_T_camera'),
            ('LiDAR', 'camera'), ('registration', 'visual'),
        )
    )  # fmt: skip


CAMERAS = InputKind(CAMERA_DROPS, _FREQUENT, _words('stereo frame'))
ONE_CAMERA = InputKind(CAMERA_DROPS, _FREQUENT, _words('image'))

_MIN_MEASURED = 0.1  # of the pixels; a textured street has 0.5 to 0.8
_MAX_MOVING = 0.6  # of the pixels with a velocity; a crossing bus in front of the camera fills a third
_MOVING, _SIGMAS = 1.0, 3.0  # m/s; standard deviations
_STEP = 4  # every 4th pixel of every 4th row is looked at


class CameraChecks:
    """Checks frames and their flow, and reports issues to the health.

    now_ns: the clock that the images are stamped by; of a bag the time when they were recorded. clock: what that is.
    images: what checks the images. facts: values of the last frame, for the diagnostics.
    """

    def __init__(self, health: Health, *, now_ns: Callable[[], int], clock: str = NODE_CLOCK,
                 images: StereoChecks | MonoChecks | None = None):  # fmt: skip
        self._health, self._now_ns, self._clock = health, now_ns, clock
        self._images = StereoChecks() if images is None else images
        self._is_stereo = isinstance(self._images, StereoChecks)
        self.facts: dict = {}

    def reset(self) -> None:
        """Forget the last images, when the next frame does not follow them."""
        self._images.reset()

    def check_frame(self, frame: StereoFrame | MonoFrame, offset_ns: int, note: str = '') -> ImageFinding | None:
        """Check a frame before it is used; return why it must be dropped, None where it can be used.

        offset_ns: stamp of the right image minus that of the left one. note: of the `StereoReader` or `MonoReader`.
        """
        if note:
            self.warn_once('calibration note', note)
        if not frame.frame_id:
            side = 'left image' if self._is_stereo else 'image'
            text = f'The {side} has no frame_id; it is needed for tf and for odometry. Set it in the driver.'
            self._health.report_issue('no frame_id', 'input', Level.WARN, text)
        behind = report_other_clock(self._health, self._now_ns(), frame.stamp_ns, self._clock)
        camera = frame.camera
        self.facts = {
            'frame_id': frame.frame_id, 'size': f'{camera.width} x {camera.height}', 'fx': f'{camera.fx:.1f}',
            'behind_clock_s': f'{behind:.3f}',
        }  # fmt: skip
        if self._is_stereo:
            self.facts |= {'baseline_m': f'{camera.baseline:.4f}', 'right_later_s': f'{offset_ns * 1e-9:.4f}'}
        findings = self._images.check(frame)
        if (row_error := self._images.row_error_px) is not None:
            self.facts['row_error_px'] = f'{row_error:.2f}'
        for finding in findings:
            if finding.drop is None:
                self._health.report_issue(finding.kind, 'input', Level.WARN, finding.text)
        return next((finding for finding in findings if finding.drop is not None), None)

    def warn_once(self, kind: str, text: str) -> None:
        """Log a warning once, and show it in the diagnostics as long as it lasts."""
        self._health.log_once(kind, text)
        self._health.report_issue(kind, 'input', Level.WARN, text, log='debug')

    def check_flow(self, estimate: CameraFlowEstimate) -> None:
        """Check what share of the pixels is measured, and whether the scene as a whole seems to move."""
        valid = estimate.flow_valid > 0
        share = float(valid.mean())
        self.facts = {**self.facts, 'valid_share': f'{share:.3f}', 'dt_s': f'{estimate.dt:.4f}'}
        if share < _MIN_MEASURED:
            text = (
                f'Only {100 * share:.0f} % of the pixels have a velocity: the images show little texture, or left and '
                'right do not belong together. Check exposure, focus, calibration and that both cameras are triggered '
                'at the same time.'
            )
            if not self._is_stereo:
                text = (
                    f'Only {100 * share:.0f} % of the pixels have a velocity: the others are far away, or leave the '
                    'image. Check what the camera sees, camera_info, and that the model fits the camera.'
                )
            self._health.report_issue('few pixels', 'inference', Level.WARN, text)
            return
        some = valid[::_STEP, ::_STEP]
        if not some.any():
            return
        velocity = estimate.velocity[::_STEP, ::_STEP][some]
        speed = np.sqrt(np.einsum('ij,ij->i', velocity, velocity))
        moving = float(np.mean(speed > np.maximum(_MOVING, _SIGMAS * estimate.speed_sigma[::_STEP, ::_STEP][some])))
        self.facts['moving_share'] = f'{moving:.3f}'
        if moving > _MAX_MOVING and estimate.other_T_reference is not None:
            text = (
                f'{100 * moving:.0f} % of the pixels seem to move: the ego motion or the calibration is wrong. Check '
                'the source of ego motion, the mount of the camera, and camera_info.'
            )
            self._health.report_issue('all moves', 'ego_motion', Level.WARN, text)


def stamp_only(frame: StereoFrame | MonoFrame) -> Sweep:
    """Return stamp and frame of a camera's frame as sources of ego motion take them: a sweep without points."""
    return Sweep(np.empty((0, 3), np.float32), frame.stamp_ns, frame.frame_id)
