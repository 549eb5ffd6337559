# SPDX-License-Identifier: Apache-2.0
"""Checks of what stereo images show: black, saturated or frozen images, swapped or unrectified cameras.

Row error and swapped sides are measured on sparse matches of corners, at the start and every few seconds.
"""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoFrame
from zeroflow_ros.camera.stereo_pairing import FrameDrop

_STEP = 8  # every 8th pixel of every 8th row is looked at: 7000 of 1242 x 375
_NO_CONTRAST = 8  # grey levels between the darkest and the brightest 2 %, below which nothing can be matched
_BLACK, _WHITE = 16, 240
_MOST_SATURATED = 0.3  # share of pixels at the upper end above which depth has holes
_EXPOSURE, _EXPOSURE_RATIO = 15, 1.3  # difference of the mean brightness of left and right [grey levels], and ratio
_ROW_JUMP, _MOST_ROWS = 15, 0.1  # grey levels of the mean of a row, and share of the rows; a drive stays below 0.03
_JUMPS = 5  # frames after which the new look of a camera is taken as the usual one

_MATCH_WIDTH = 640  # px; larger images are reduced by a whole factor before matching
_NUM_CORNERS, _MIN_MATCHES = 120, 25
_WINDOW, _LEVELS = (11, 11), 4  # 15 px and 200 corners find the same in twice the time
_BACKWARD_PX = 0.5  # of the reduced image: largest distance of a match, matched back, from its corner
_ROW_WARN, _ROW_DROP = 0.75, 3.0  # px: semi-global matching degrades from half a pixel, and finds wrong rows beyond 3
_BEHIND_PX = 1.0  # a disparity below minus this has no depth
_MOST_BEHIND = 0.5


@dataclass(frozen=True)
class ImageFinding:
    """What a check found.

    kind: name of the check. text: what was found and what to do. drop: reason to drop the frame; None: a warning.
    """

    kind: str
    text: str
    drop: FrameDrop | None = None


class StereoChecks:
    """Checks each frame before it is used.

    every: frames between two measurements of row error and sides; a frame that is dropped for them is measured again.
    row_error_px, num_matches: of the last measurement; None before the first, or where too few corners were matched.
    """

    def __init__(self, every: int = 50):
        self._every, self._due = every, 0
        self._last: dict[str, np.ndarray] = {}
        self._rows: np.ndarray | None = None  # (N,), brightness of rows, left minus right
        self._num_jumps = 0
        self._geometry: list[ImageFinding] = []
        self.row_error_px: float | None = None
        self.num_matches = 0

    def reset(self) -> None:
        """Forget the last images."""
        self._last, self._due, self._rows = {}, 0, None

    def check(self, frame: StereoFrame) -> list[ImageFinding]:
        """Return what was found in a frame, drops first."""
        images = {'left': frame.left, 'right': frame.right}
        samples = {side: sample_of(image) for side, image in images.items()}
        findings = [finding for side in images for finding in brightness_findings(side, samples[side])]
        findings += self._frozen(images)
        if not any(finding.drop for finding in findings):
            findings += _exposure(samples) + self._one_sided(samples)
            findings += self._sides_and_rows(frame)
        return sorted(findings, key=lambda finding: finding.drop is None)

    def _frozen(self, images: dict[str, np.ndarray]) -> list[ImageFinding]:
        """Find images that equal the ones before, value for value; the noise of a camera makes every image differ."""
        frozen = [side for side, image in images.items() if are_equal(image, self._last.get(side))]
        self._last = images
        if not frozen:
            return []
        which = ' and '.join(frozen)
        return [
            ImageFinding(
                'frozen',
                f'The {which} image is the same as the one before, with another stamp: the camera hangs, its driver '
                'repeats images, or a simulation without noise stands still. Check the rate of the camera.',
                FrameDrop.UNUSABLE,
            )
        ]

    def _one_sided(self, samples: dict[str, np.ndarray]) -> list[ImageFinding]:
        """Find an image whose rows became brighter or darker while those of the other camera did not."""
        if samples['left'].shape != samples['right'].shape:
            return []
        rows = samples['left'].mean(axis=1) - samples['right'].mean(axis=1)
        if self._rows is None or self._rows.shape != rows.shape or self._num_jumps >= _JUMPS:
            self._rows, self._num_jumps = rows, 0
            return []
        change = rows - self._rows
        share = float(np.mean(np.abs(change - np.median(change)) > _ROW_JUMP))
        if share <= _MOST_ROWS:
            self._rows, self._num_jumps = rows, 0
            return []
        self._num_jumps += 1
        text = (
            f'{100 * share:.0f} % of the rows of one camera changed their brightness and those of the other did not: '
            'a JPEG that lost data, or something close to one lens. There are fewer velocities. Check the connection '
            'of the cameras and their lenses.'
        )
        return [ImageFinding('one camera changed', text)]

    def _sides_and_rows(self, frame: StereoFrame) -> list[ImageFinding]:
        if self._due > 0:
            self._due -= 1
            return self._geometry
        disparity, row_error = match_corners(frame)
        self.num_matches = len(disparity)
        self._due, self._geometry, self.row_error_px = self._every - 1, [], None
        if self.num_matches < _MIN_MATCHES:
            return []
        parallax = disparity - frame.camera.disparity_at_infinity
        self.row_error_px = float(np.median(np.abs(row_error)))
        behind = float(np.mean(parallax < -_BEHIND_PX))
        if behind > _MOST_BEHIND:
            self._geometry = [
                ImageFinding(
                    'swapped',
                    f'{100 * behind:.0f} % of {self.num_matches} corners lie further right in the right image than in '
                    f'the left one (median disparity {np.median(parallax):.1f} px): the left and right images are '
                    'swapped. Swap their topics.',
                    FrameDrop.SWAPPED,
                )
            ]
        if self.row_error_px > _ROW_WARN:
            is_useless = self.row_error_px > _ROW_DROP
            self._geometry.append(
                ImageFinding(
                    'row error',
                    f'The images are not rectified: corners are {self.row_error_px:.1f} px higher or lower in the '
                    f'right image than in the left one (median of {self.num_matches}; above {_ROW_WARN} px depth is '
                    f'worse, above {_ROW_DROP:g} px frames are dropped). Set images_are_rectified to false if they '
                    'are raw images; else calibrate the cameras again.',
                    FrameDrop.CALIBRATION if is_useless else None,
                )
            )
        if any(finding.drop for finding in self._geometry):
            self._due = 0
        return self._geometry


def match_corners(frame: StereoFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (disparity, row error) [px] of corners of the left image that were found in the right one.

    (N,) float64 each; the row error is the row in the right image minus that in the left one. Corners are tracked by
    pyramidal Lucas-Kanade, which assumes nothing about rows, and kept where tracking back leads to their start.
    """
    cv2 = load_opencv()
    factor = max(1, round(frame.camera.width / _MATCH_WIDTH))
    left, right = (_reduced(cv2, image, factor) for image in (frame.left, frame.right))
    corners = cv2.goodFeaturesToTrack(left, _NUM_CORNERS, 0.01, 10)
    if corners is None:
        return np.empty(0), np.empty(0)
    options = {'winSize': _WINDOW, 'maxLevel': _LEVELS}
    found, status, _ = cv2.calcOpticalFlowPyrLK(left, right, corners, None, **options)
    back, status_back, _ = cv2.calcOpticalFlowPyrLK(right, left, found, None, **options)
    good = (status & status_back).ravel().astype(bool)
    good &= np.linalg.norm((back - corners)[:, 0], axis=1) < _BACKWARD_PX
    moved = ((found - corners)[good, 0]).astype(np.float64) * factor
    return -moved[:, 0], moved[:, 1]


def _reduced(cv2, image: np.ndarray, factor: int) -> np.ndarray:
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if factor == 1:
        return grey
    return cv2.resize(grey, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def sample_of(image: np.ndarray) -> np.ndarray:
    """Return the brightness (h, w) uint8 of every 8th pixel of every 8th row."""
    sample = image[_STEP // 2 :: _STEP, _STEP // 2 :: _STEP]
    sample = sample if sample.size else image
    return sample if sample.ndim == 2 else sample[..., 1]  # green is the brightness of most of the light


def brightness_findings(side: str, sample: np.ndarray) -> list[ImageFinding]:
    """Return whether a sample of the 'left' or 'right' image is black, saturated or without contrast."""
    shares = np.cumsum(np.bincount(sample.ravel(), minlength=256)) / sample.size
    dark, bright = (int(np.argmax(shares >= share)) for share in (0.02, 0.98))
    if bright - dark < _NO_CONTRAST or bright < _BLACK or dark > _WHITE:
        what = 'black' if bright < _BLACK else 'saturated' if dark > _WHITE else 'one grey without contrast'
        text = (
            f'The {side} image is {what} (96 % of its pixels are {dark} to {bright} of 255): nothing can be '
            'matched. Check lens, exposure and driver of the camera.'
        )
        return [ImageFinding(f'{side} brightness', text, FrameDrop.UNUSABLE)]
    saturated = 1 - float(shares[253])
    if saturated > _MOST_SATURATED:
        text = (
            f'{100 * saturated:.0f} % of the {side} image are saturated: there is no depth and no velocity. Lower the '
            'exposure of the camera.'
        )
        return [ImageFinding(f'{side} saturated', text)]
    return []


def _exposure(samples: dict[str, np.ndarray]) -> list[ImageFinding]:
    left, right = (float(samples[side].mean()) for side in ('left', 'right'))
    if abs(left - right) < _EXPOSURE or max(left, right) < _EXPOSURE_RATIO * min(left, right):
        return []
    text = (
        f'The exposure of the cameras differs: the mean brightness is {left:.0f} of 255 on the left and {right:.0f} on '
        'the right, which makes depth worse. Let one camera set the exposure of both.'
    )
    return [ImageFinding('exposure', text)]


def are_equal(image: np.ndarray, last: np.ndarray | None) -> bool:
    """Return whether two images are the same, value for value."""
    if last is None or image.shape != last.shape or not np.array_equal(image[::_STEP, ::_STEP], last[::_STEP, ::_STEP]):
        return False
    return np.array_equal(image, last)
