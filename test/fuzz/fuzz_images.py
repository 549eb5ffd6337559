# SPDX-License-Identifier: Apache-2.0
"""Hostile images and CameraInfo for the stereo camera; an intact stereo frame follows each one."""

import random
from types import SimpleNamespace

import cv2
import numpy as np
from hostile_examples import Examples, damage
from hypothesis import strategies as st
from image_messages import camera_info, compressed, header, image

from zeroflow_ros.camera.image import ENCODINGS, decode_image
from zeroflow_ros.camera.stereo_checks import StereoChecks
from zeroflow_ros.camera.stereo_pairing import SIDES, FrameBuffer, FrameDrop, StereoMessages, StereoPairing
from zeroflow_ros.camera.stereo_reader import StereoReader

_ODD = st.sampled_from((0, 1, 2, 3, 5, 16, 63, 64, 65, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63))
_SIZES = st.sampled_from((1, 2, 3, 4, 5, 16, 33, 64))
_NAMES = st.sampled_from((*ENCODINGS, '', 'rgb', '32FC1', '16SC1', 'bayer_', 'bayer_rggb', '8UC99', 'é' * 10**5, ';'))
_NUMBERS = st.sampled_from(
    (0.0, -0.0, 1.0, -1.0, 50.0, -6.0, 6.0, 1e-30, 1e30, 1e308, -1e308, float('nan'), float('inf'))
)
_FORMATS = ('jpeg', 'png', '', 'rgb8; jpeg compressed bgr8', 'mono16; png compressed ', 'bayer_rggb8; png compressed ',
            '16UC1; compressedDepth', ';;;', 'h264', 'bayer_x8; png', 'é' * 10**5)  # fmt: skip
_RNG = np.random.default_rng(0)
_GOOD = [cv2.resize(_RNG.integers(0, 255, (12, 16), np.uint8), (64, 48)) for _ in SIDES]
_INFOS = [camera_info(), camera_info(tx=-6.0)]


def _files() -> list[bytes]:
    grey, colour = _GOOD[0], np.dstack([_GOOD[0], _GOOD[1], _GOOD[0]])
    options = [('.jpg', colour, []), ('.jpg', grey, []), ('.jpg', colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
               ('.jpg', colour, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]), ('.png', colour, []), ('.png', grey, []),
               ('.png', grey * np.uint16(257), []), ('.png', np.dstack([colour, grey]), [])]  # fmt: skip
    return [cv2.imencode(extension, pixels, option)[1].tobytes() for extension, pixels, option in options]


@st.composite
def raw_images(draw):
    """Draw an Image: valid or unusual, and every other one damaged in up to three places."""
    width, height, step = draw(_SIZES), draw(_SIZES), draw(st.sampled_from((0, 0, 1, 16, 17)))
    step += width * draw(st.sampled_from((1, 1, 2, 3, 4, 6, 8)))
    encoding = draw(_NAMES)
    rows = draw(st.sampled_from((height, height, height * 3 // 2, height * 3, max(height - 1, 0))))
    if draw(st.booleans()):  # every other one fits together
        encoding, step = draw(st.sampled_from(ENCODINGS)), step + width * 8
        rows = height * 3 if encoding == 'nv24' else height + height // 2 if encoding in ('nv12', 'nv21') else height
    data = (draw(st.binary(min_size=1, max_size=9)) * (step * rows + 1))[: step * rows]
    msg = SimpleNamespace(header=header(draw(st.sampled_from((0, 5, 10**18)))), height=height, width=width, step=step,
                          encoding=encoding, is_bigendian=draw(st.integers(0, 1)), data=data)  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        match draw(st.integers(0, 4)):
            case 0:
                setattr(msg, draw(st.sampled_from(('height', 'width', 'step', 'is_bigendian'))), draw(_ODD))
            case 1:
                msg.data = msg.data[: draw(st.integers(0, len(msg.data)))] if isinstance(msg.data, bytes) else b''
            case 2:
                msg.data = draw(st.sampled_from((b'', None, 'text', [1, 2, 3], 7, np.zeros((3, 4)))))
            case 3:
                msg.header.frame_id = draw(st.sampled_from(('', '/', 'f' * 10**5)))
            case 4:
                msg.width, msg.height = draw(st.permutations((draw(_ODD), 1)))
                msg.step, msg.data = msg.width, bytes(min(msg.width, 10**6))
    return msg


@st.composite
def infos(draw):
    """Draw a CameraInfo with up to four odd values."""
    msg = camera_info(
        tx=draw(st.sampled_from((0.0, -6.0))), d=draw(st.sampled_from(((), (0.0,) * 5, (-0.2, 0.1, 0, 0, 0))))
    )
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.integers(0, 4)):
            case 0:
                for name in draw(st.lists(st.sampled_from(('width', 'height', 'binning_x', 'binning_y')), min_size=1)):
                    setattr(msg, name, draw(_ODD))
            case 1:
                setattr(msg.roi, draw(st.sampled_from(('x_offset', 'y_offset', 'width', 'height'))), draw(_ODD))
            case 2:
                values = getattr(msg, draw(st.sampled_from(('k', 'd', 'r', 'p'))))
                if values:
                    values[draw(st.integers(0, len(values) - 1))] = draw(_NUMBERS)
            case 3:
                setattr(msg, draw(st.sampled_from(('k', 'd', 'r', 'p'))), draw(st.lists(_NUMBERS, max_size=14)))
            case 4:
                msg.distortion_model = draw(st.sampled_from(('', 'equidistant', 'rational_polynomial', 'x' * 10**5)))
    return msg


_STAMPS = st.sampled_from((0, 1, 10**9, 10**9 + 1, 1_002_000_000, 1_100_000_000, 1_103_000_000, 10**10, 2**31 * 10**9))
_ARRIVALS = st.lists(st.tuples(st.sampled_from(SIDES), st.sampled_from(('image', 'image', 'image', 'info')), _STAMPS),
                     max_size=40)  # fmt: skip


class Images:
    """In turn: an Image, a damaged JPEG or PNG file, a CameraInfo, and messages with odd stamps."""

    limit_s, margin_mb = 5.0, 512

    def __init__(self, seed, _folder):
        cv2.setNumThreads(1)
        self._seed, self._files = seed, _files()
        self._examples = [Examples(strategy, seed) for strategy in (raw_images(), infos(), _ARRIVALS)]
        self._serve(*_INFOS)

    def prepare(self, case):
        kind, number = case % 4, case // 4
        rng = random.Random(f'{self._seed} {case}')
        if kind == 1:
            data = damage(rng.choice(self._files), rng, donor=rng.choice(self._files))
            self._run = lambda: self._decode(compressed(data, rng.choice(_FORMATS)))
        elif kind == 0:
            msg = self._examples[0][number]
            self._run = lambda: self._decode(msg)
        elif kind == 2:
            info = self._examples[1][number]
            pair = [info, _INFOS[1]] if number % 2 else [_INFOS[0], info]
            self._run = lambda: self._serve(*pair, images_are_rectified=bool(number % 3))
        else:
            arrivals = self._examples[2][number]
            self._run = lambda: self._pair(arrivals)

    def run(self, case):
        try:
            return self._run()
        finally:
            assert self._serve(*_INFOS) == 'served'

    def _decode(self, msg):
        pixels = decode_image(msg).pixels
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and pixels.size
        return 'served'

    def _serve(self, left_info, right_info, images_are_rectified=True):
        images = (image(pixels, 'mono8') for pixels in _GOOD)
        reader = StereoReader(images_are_rectified)
        frame = reader.read(StereoMessages(*images, left_info, right_info, 5, 'left'))
        assert frame.camera.baseline > 0 and np.isfinite(frame.camera.rays).all()
        if left_info is _INFOS[0] and right_info is _INFOS[1]:
            assert (frame.left == _GOOD[0]).all() and (frame.right == _GOOD[1]).all()
        return 'served'

    def _pair(self, arrivals):
        """Pass messages through pairing, reading and checks; what comes out must be a frame of two near images."""
        pairing, buffer, checks, last = StereoPairing(0.005), FrameBuffer((0.03, 0.25)), StereoChecks(), None
        num_images = num_out = 0
        for side, kind, stamp_ns in arrivals:
            place = SIDES.index(side)
            if kind == 'info':
                outcomes = pairing.push_info(side, _INFOS[place])
            else:
                num_images += 1
                outcomes = pairing.push(side, image(_GOOD[place], 'mono8', stamp_ns=stamp_ns, frame=side))
            for outcome in outcomes:
                num_out += 2 if outcome.messages or outcome.drop is FrameDrop.NO_CAMERA_INFO else 1
                if outcome.messages is None:
                    assert outcome.drop and outcome.text
                    continue
                frame = StereoReader().read(outcome.messages)
                assert frame.frame_id == 'left' and abs(outcome.messages.offset_ns) <= 5_000_000
                checks.check(frame)
                previous, drop = buffer.push(frame)
                assert (previous is None) == (drop is not None)
                assert drop is None or buffer.drop_text(drop, frame, last)
                assert previous is None or 0.03 <= (frame.stamp_ns - previous.stamp_ns) * 1e-9 <= 0.25
                last = buffer.last
        num_out += sum(2 if outcome.drop is FrameDrop.NO_CAMERA_INFO else 1 for outcome in pairing.flush())
        assert num_out == num_images, 'every image is used or dropped'
        return 'paired'

    def finish(self):
        return {}
