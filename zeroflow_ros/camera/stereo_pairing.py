# SPDX-License-Identifier: Apache-2.0
"""Pair left and right images by their stamps, and decide which two stereo frames form a pair in time.

Messages stay undecoded, so that a busy worker decodes only the newest frame.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from zeroflow_ros.camera.image import read_stamp_ns
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.sweep import PairBuffer

SIDES = ('left', 'right')
_OTHER = {'left': 'right', 'right': 'left'}
_MAX_WAITING = 8  # images of a camera; more of a fast camera, up to this number, time and size:
_MAX_FAST, _MAX_LAG_NS, _MAX_BYTES = 64, 500_000_000, 2**28
_NUM_INFOS = 8
_NUM_OFFSETS = 5  # pairs that tell how the stamps of left and right usually differ
_NUM_STAMPS = 32
_USUAL, _USUAL_NS = 0.25, 3_000_000  # share of the tolerance, and limit: this near the usual offset is a pair
_TOLD_OFFSET_NS = 500_000
_SILENT_NS = 200_000_000  # without an image of the other camera: it stopped


class FrameDrop(str, Enum):
    """Why a stereo frame or an image got no flow; the value is the name of its counter."""

    FIRST = 'first_frame'
    MALFORMED = 'malformed_image'
    NO_PARTNER = 'no_partner_image'
    NO_CAMERA_INFO = 'no_camera_info'
    CALIBRATION = 'unusable_calibration'
    UNUSABLE = 'black_saturated_or_frozen_image'
    SWAPPED = 'left_and_right_swapped'
    ZERO_STAMP = 'zero_stamp'
    DUPLICATE = 'duplicate_stamp'
    OUT_OF_ORDER = 'out_of_order_stamp'
    TIME_RESET = 'time_went_back'
    FRAME_CHANGED = 'frame_changed'
    GAP = 'gap_too_long'
    TOO_CLOSE = 'gap_too_short'
    EGO_MOTION = 'no_ego_motion'
    NO_SCALE = 'no_scale'
    OVERTAKEN = 'overtaken_by_newer_frame'
    ENGINE = 'estimator_failed'


@dataclass(frozen=True, eq=False)
class StereoMessages:
    """The messages of one stereo frame, undecoded.

    left, right: Image or CompressedImage. left_info, right_info: the CameraInfo nearest in time.
    stamp_ns: ROS time of the left image [ns]. frame_id: its optical frame. offset_ns: right stamp minus left stamp.
    """

    left: object
    right: object
    left_info: object
    right_info: object
    stamp_ns: int
    frame_id: str = ''
    offset_ns: int = 0


@dataclass(frozen=True, eq=False)
class PairingOutcome:
    """What becomes of an image.

    messages: the frame that it completes. drop, text: why it is not used; a text without drop is to be logged once.
    """

    messages: StereoMessages | None = None
    drop: FrameDrop | None = None
    text: str = ''


class StereoPairing:
    """Takes the messages of both cameras in the order of arrival, and gives stereo frames in the order of their stamps.

    Memory is bounded: eight images of a camera wait for a partner, and more within half a second and 256 MiB. Not
    thread-safe.
    Images with the same stamp are a frame at once. Without such a partner it is the nearest within the tolerance: at
    once where the stamps of the last frames differed by about as much; else as soon as no nearer one can follow.
    tolerance_s: largest difference of the stamps [s]; 0: only equal stamps. It should be less than half of the time
    between two frames; a camera that turns by 30 degrees/s sees the world 2.6 mrad further after 5 ms.
    reset_after: as in `PairBuffer` [s].
    Raises: ConfigError for a tolerance that is negative or not finite.
    """

    def __init__(self, tolerance_s: float = 0.005, reset_after: float = 1.0):
        if not 0 <= tolerance_s < 10:
            raise ConfigError(f'The pairing tolerance must be 0 to 10 s, got {tolerance_s}.')
        self._tolerance_ns, self._reset_ns = round(tolerance_s * 1e9), round(reset_after * 1e9)
        self._infos = {side: deque(maxlen=_NUM_INFOS) for side in SIDES}  # (stamp, CameraInfo)
        self.reset()

    def reset(self) -> None:
        """Forget all images; the calibration stays."""
        self._waiting = {side: {} for side in SIDES}  # message by stamp, ascending
        self._seen = {side: deque(maxlen=_NUM_STAMPS) for side in SIDES}  # stamps
        self._last: dict[str, int] = {}  # stamps of the last frame
        self._offsets: deque[int] = deque(maxlen=_NUM_OFFSETS)
        self._complete: tuple | None = None  # stamps and messages of a frame that waits for a CameraInfo

    def push_info(self, side: str, msg) -> list[PairingOutcome]:
        """Add a CameraInfo of 'left' or 'right'; return the frame that waited for it."""
        self._infos[side].append((read_stamp_ns(msg), msg))
        return self._with_infos()

    def push(self, side: str, msg) -> list[PairingOutcome]:
        """Add an image of 'left' or 'right'; return frames and drops, in order."""
        stamp = read_stamp_ns(msg)
        if stamp <= 0:
            text = f'The {side} image has stamp 0. Set the stamp in the camera driver.'
            return [PairingOutcome(drop=FrameDrop.ZERO_STAMP, text=text)]
        outcomes = self._start_over(side, stamp)
        if stamp in self._waiting[side] or stamp == self._last.get(side):
            text = f'The {side} image repeats the stamp of an earlier one. Check for two publishers of its topic.'
            return [*outcomes, PairingOutcome(drop=FrameDrop.DUPLICATE, text=text)]
        if stamp < self._last.get(side, stamp):
            late_ms = (self._last[side] - stamp) * 1e-6
            text = f'The {side} image is {late_ms:.1f} ms older than one that is in use already: it came too late.'
            return [*outcomes, PairingOutcome(drop=FrameDrop.OUT_OF_ORDER, text=text)]
        waiting = self._waiting[side]
        is_newest = not waiting or stamp > next(reversed(waiting))
        waiting[stamp] = msg
        if not is_newest:
            self._waiting[side] = dict(sorted(waiting.items()))
        self._seen[side].append(stamp)
        while (pair := self._next_pair()) is not None:
            outcomes += self._take(*pair)
        while self._is_full(side):
            outcomes += self._without_partner(side, next(iter(self._waiting[side])))
        return outcomes

    def _is_full(self, side: str) -> bool:
        waiting = self._waiting[side]
        if len(waiting) <= _MAX_WAITING:
            return False
        (oldest, _), (newest, msg) = next(iter(waiting.items())), next(reversed(waiting.items()))
        num = len(waiting)
        return num > _MAX_FAST or newest - oldest > _MAX_LAG_NS or num * len(msg.data) > _MAX_BYTES

    def flush(self) -> list[PairingOutcome]:
        """Return why the images that still wait are not used, at the end of a recording; forget them."""
        outcomes = [] if self._complete is None else [self._no_info()]
        for side in SIDES:
            for stamp in list(self._waiting[side]):
                outcomes += self._without_partner(side, stamp)
        return outcomes

    def _start_over(self, side: str, stamp: int) -> list[PairingOutcome]:
        """Drop what is of a time before the clock or the bag went back."""
        seen = self._seen[side]
        if not seen or stamp > max(seen) - self._reset_ns:
            return []
        self._offsets.clear()
        outcomes = [] if self._complete is None else [self._no_info()]
        future = stamp + self._reset_ns
        self._last = {one: last for one, last in self._last.items() if last < future}
        self._seen[side] = deque((one for one in seen if one < future), maxlen=_NUM_STAMPS)
        num_old = 0
        for one in SIDES:
            kept = {waiting: msg for waiting, msg in self._waiting[one].items() if waiting < future}
            num_old += len(self._waiting[one]) - len(kept)
            self._waiting[one] = kept
        text = f'The stamps of the {side} images went back: images before that still waited for a partner.'
        return outcomes + [PairingOutcome(drop=FrameDrop.NO_PARTNER, text=text)] * num_old

    def _next_pair(self) -> tuple[int, int] | None:
        """Return the stamps of the oldest left and right image that are a frame now."""
        lefts, rights = self._waiting['left'], self._waiting['right']
        if not (lefts and rights):
            return None
        for left in lefts:
            right = _nearest(rights, left)
            if abs(right - left) > self._tolerance_ns or _nearest(lefts, right) != left:
                continue
            usual = float(np.median(self._offsets)) if self._offsets else 0
            earlier, later = ('left', right) if left < right else ('right', left)
            # Images of a camera come in order: none between the two can follow once one at or after the later was seen.
            if (
                left == right
                or abs(right - left - usual) <= min(_USUAL * self._tolerance_ns, _USUAL_NS)
                or max(self._seen[earlier]) >= later
            ):
                return left, right
        return None

    def _take(self, left: int, right: int) -> list[PairingOutcome]:
        """Make a frame of two waiting images; images before them stay without a partner."""
        outcomes = []
        for side, stamp in zip(SIDES, (left, right), strict=True):
            for older in [one for one in self._waiting[side] if one < stamp]:
                outcomes += self._without_partner(side, older)
        if self._complete is not None:
            outcomes.append(self._no_info())
        messages = (self._waiting[side].pop(stamp) for side, stamp in zip(SIDES, (left, right), strict=True))
        self._complete = (left, right, *messages)
        self._last = {'left': left, 'right': right}
        self._offsets.append(right - left)
        return outcomes + self._with_infos()

    def _with_infos(self) -> list[PairingOutcome]:
        """Return the complete frame once both cameras have a CameraInfo."""
        if self._complete is None or not all(self._infos.values()):
            return []
        left_stamp, right_stamp, left, right = self._complete
        self._complete = None
        offset = right_stamp - left_stamp
        infos = [
            min(reversed(self._infos[side]), key=lambda one, stamp=stamp: abs(one[0] - stamp))[1]
            for side, stamp in zip(SIDES, (left_stamp, right_stamp), strict=True)
        ]
        text = ''
        if abs(offset) > _TOLD_OFFSET_NS:
            text = (
                f'Left and right images are {abs(offset) * 1e-6:.1f} ms apart: depth and velocity are wrong while the '
                'camera moves. Trigger both cameras by hardware.'
            )
        frame_id = left.header.frame_id.lstrip('/')
        return [PairingOutcome(StereoMessages(left, right, *infos, left_stamp, frame_id, offset), text=text)]

    def _no_info(self) -> PairingOutcome:
        missing = ' and '.join(side for side in SIDES if not self._infos[side])
        self._complete = None
        return PairingOutcome(
            drop=FrameDrop.NO_CAMERA_INFO,
            text=f'No CameraInfo of the {missing} camera has come, without which there is no depth. Publish it, or '
            f'remap the topic of the {missing} camera_info.',
        )

    def _without_partner(self, side: str, stamp: int) -> list[PairingOutcome]:
        del self._waiting[side][stamp]
        other = _OTHER[side]
        seen = self._seen[other]
        start = f'The {side} image has no {other} one within {self._tolerance_ns * 1e-6:g} ms: '
        if not seen:
            text = f'{start}none has come from the {other} camera. Check that it runs, and its topic.'
        elif stamp - max(seen) > _SILENT_NS:
            silent = (max(self._seen[side]) - max(seen)) * 1e-9
            text = f'{start}the {other} camera has sent nothing for {silent:.1f} s. Check that it runs.'
        else:
            apart = min(abs(one - stamp) for one in seen) * 1e-6
            text = (
                f'{start}the nearest is {apart:.1f} ms away. Trigger both cameras at the same time, or check the '
                'network for lost images.'
            )
        return [PairingOutcome(drop=FrameDrop.NO_PARTNER, text=text)]


class FrameBuffer(PairBuffer):
    """Decide which two stereo frames form a pair in time, by the rules for sweeps.

    Takes `StereoFrame`s or, before decoding, `StereoMessages`, and those of one camera. Frames of another size,
    calibration or brightness scale than the one before make no pair with it. noun: what a frame is called.
    """

    def __init__(self, dt_range: tuple[float, float], *, noun: str = 'stereo frame'):
        super().__init__(dt_range)
        self._noun = noun

    def push(self, frame) -> tuple:
        """Add the next frame; return (previous, None) when it completes a pair, else (None, FrameDrop)."""
        previous, reason = super().push(frame)
        if previous is not None and _look(previous) != _look(frame):
            return None, FrameDrop.FRAME_CHANGED
        return previous, None if reason is None else FrameDrop[reason.name]

    def drop_text(self, reason: FrameDrop, frame, last) -> str:
        """Return a sentence on a frame that made no pair. last: the one before it, or None."""
        dt = 0.0 if last is None else (frame.stamp_ns - last.stamp_ns) * 1e-9
        (shortest, longest), noun = self.dt_range, self._noun
        return {
            FrameDrop.FIRST: f'The first {noun} waits for the second.',
            FrameDrop.ZERO_STAMP: f'The {noun} has stamp 0. Set the stamp in the camera driver.',
            FrameDrop.DUPLICATE: f'The {noun} repeats the stamp of the one before.',
            FrameDrop.OUT_OF_ORDER: f'The {noun} is {-dt:.3f} s older than the one before.',
            FrameDrop.TIME_RESET: f'The stamps went back by {-dt:.1f} s: a bag that loops, or a clock that was set.',
            FrameDrop.FRAME_CHANGED: f'The camera changed from {_described(last)} to {_described(frame)}.',
            FrameDrop.GAP: f'{dt:.3f} s between two {noun}s are more than {longest:g} s.',
            FrameDrop.TOO_CLOSE: f'{dt:.3f} s between two {noun}s are less than {shortest:g} s: it is left out.',
        }[reason]


def _look(frame) -> tuple:
    """Return what two frames of a pair must have in common; of messages nothing."""
    return getattr(frame, 'camera', None), getattr(frame, 'bits', None)


def _described(frame) -> str:
    camera, bits = _look(frame)
    text = f'frame_id {getattr(frame, "frame_id", "")!r}'
    if camera is None:
        return text
    return f'{text}, {camera.width} x {camera.height}, fx {camera.fx:g}, baseline {camera.baseline:g} m, {bits} bits'


def _nearest(stamps: dict, stamp: int) -> int:
    return min(stamps, key=lambda one: abs(one - stamp))
