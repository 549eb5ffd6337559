# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace

import numpy as np
import pytest
from image_messages import camera_info, image

from zeroflow_ros.camera.stereo import StereoCamera, StereoFrame
from zeroflow_ros.camera.stereo_pairing import FrameBuffer, FrameDrop, StereoMessages, StereoPairing
from zeroflow_ros.errors import ConfigError
from zeroflow_ros.lidar.sweep import DropReason

MS = 1_000_000
PIXELS = np.zeros((1, 1), np.uint8)


def message(stamp_ms, frame='left_optical'):
    return image(PIXELS, 'mono8', stamp_ns=round(stamp_ms * MS), frame=frame)


def feed(pairing, arrivals, infos=True):
    """Push (side, stamp [ms]) in the order of arrival; return what comes out: pairs of stamps, and drop reasons."""
    if infos:
        for side in ('left', 'right'):
            pairing.push_info(side, camera_info())
    found = []
    for side, stamp_ms in arrivals:
        found += pairing.push(side, message(stamp_ms))
    return [outcome.drop or stamps(outcome.messages) for outcome in found]


def stamps(messages):
    left, right = ((m.header.stamp.sec * 1000 + m.header.stamp.nanosec / MS) for m in (messages.left, messages.right))
    assert messages.stamp_ns == round(left * MS) and messages.offset_ns == round((right - left) * MS)
    return left, right


L, R = 'left', 'right'
LOST = FrameDrop.NO_PARTNER
# label, arrivals, what comes out
TABLE = [
    ('nothing', [], []),
    ('one image waits', [(L, 1000)], []),
    ('a frame', [(L, 1000), (R, 1000)], [(1000, 1000)]),
    ('right first', [(R, 1000), (L, 1000)], [(1000, 1000)]),
    ('two frames', [(L, 1000), (R, 1000), (R, 1100), (L, 1100)], [(1000, 1000), (1100, 1100)]),
    ('right camera a frame behind', [(L, 1000), (L, 1100), (R, 1000), (L, 1200), (R, 1100)],
     [(1000, 1000), (1100, 1100)]),
    ('left image lost', [(R, 1000), (L, 1100), (R, 1100)], [LOST, (1100, 1100)]),
    ('both lost', [(L, 1000), (R, 1050), (L, 1100), (R, 1100)], [LOST, LOST, (1100, 1100)]),
    ('small offset', [(L, 1000), (R, 1001)], [(1000, 1001)]),
    ('a larger offset waits for a nearer image', [(L, 1000), (R, 1003)], []),
    ('and is used when none came', [(L, 1000), (R, 1003), (L, 1100)], [(1000, 1003)]),
    ('the usual offset is used at once', [(L, 1000), (R, 1003), (L, 1100), (R, 1103)], [(1000, 1003), (1100, 1103)]),
    ('right one earlier', [(R, 997), (L, 1000), (R, 1097), (L, 1100)], [(1000, 997), (1100, 1097)]),
    ('the nearer of two', [(R, 996), (L, 1000), (R, 1001)], [LOST, (1000, 1001)]),
    ('outside the tolerance', [(L, 1000), (R, 1006), (L, 1100), (R, 1106)], []),
    ('an equal stamp after that', [(L, 1000), (R, 1006), (L, 1100), (R, 1100)], [LOST, LOST, (1100, 1100)]),
    ('late image', [(L, 1000), (L, 1100), (R, 1100), (R, 1000)], [LOST, (1100, 1100), FrameDrop.OUT_OF_ORDER]),
    ('left images in wrong order', [(L, 1100), (L, 1000), (R, 1000), (R, 1100)], [(1000, 1000), (1100, 1100)]),
    ('repeated while waiting', [(L, 1000), (L, 1000), (R, 1000)], [FrameDrop.DUPLICATE, (1000, 1000)]),
    ('repeated afterwards', [(L, 1000), (R, 1000), (R, 1000)], [(1000, 1000), FrameDrop.DUPLICATE]),
    ('stamp 0', [(L, 0), (R, 0)], [FrameDrop.ZERO_STAMP, FrameDrop.ZERO_STAMP]),
    ('loop', [(L, 9000), (R, 9000), (L, 1000), (R, 1000)], [(9000, 9000), (1000, 1000)]),
    ('loop, right images of before follow', [(L, 9000), (R, 9000), (L, 9100), (L, 1000), (R, 9100), (R, 1000)],
     [(9000, 9000), LOST, LOST, (1000, 1000)]),
    ('loop within a frame', [(L, 9000), (L, 1000), (R, 1000)], [LOST, (1000, 1000)]),
    ('one stamp far in the future', [(L, 1000), (R, 1000), (L, 99000), (L, 1100), (R, 1100)],
     [(1000, 1000), LOST, (1100, 1100)]),
    ('back to images that still wait', [(L, 1000), (L, 9000), (L, 1000), (R, 1003), (L, 1100)],
     [LOST, FrameDrop.DUPLICATE, (1000, 1003)]),
    ('gap', [(L, 1000), (R, 1000), (L, 60000), (R, 60000)], [(1000, 1000), (60000, 60000)]),
]  # fmt: skip


@pytest.mark.parametrize(('arrivals', 'expected'), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_which_images_make_a_frame(arrivals, expected):
    assert feed(StereoPairing(0.005), arrivals) == expected


def test_only_equal_stamps_with_tolerance_0():
    assert feed(StereoPairing(0), [(L, 1000), (R, 1000.000001), (L, 1100), (R, 1100)]) == [LOST, LOST, (1100, 1100)]
    for tolerance in (-0.001, np.nan, np.inf):
        with pytest.raises(ConfigError, match='pairing tolerance'):
            StereoPairing(tolerance)


@pytest.mark.parametrize('tolerance', [0.02, 0.06, 0.5])
def test_a_tolerance_beyond_half_a_frame_takes_no_neighbour_for_the_partner(tolerance):
    """At 60 Hz and 20 ms or more every left image has several right ones within reach."""
    times = np.arange(60) / 0.06
    arrivals = [(side, round(1000 + t, 3)) for n, t in enumerate(times) for side in (L, R) if (n, side) != (30, L)]
    found = feed(StereoPairing(tolerance), arrivals)
    assert found.count(LOST) == 1 and len(found) == 60
    assert all(pair[0] == pair[1] for pair in found if pair is not LOST)


def test_free_running_cameras_are_paired_at_once_when_their_offset_is_known():
    pairing = StereoPairing(0.008)
    rng = np.random.default_rng(0)
    for frame in range(30):
        drift = 3 + 0.05 * frame + rng.normal(0, 0.3)
        left, right = message(1000 + 100 * frame), message(1000 + 100 * frame + drift)
        for side in (L, R):
            pairing.push_info(side, camera_info())
        assert pairing.push(L, left) == [] or frame == 1
        found = pairing.push(R, right)
        assert len(found) == (frame > 0)
    assert abs(found[0].messages.offset_ns * 1e-6 - drift) < 1e-3
    assert 'ms apart: depth and velocity are wrong while the camera moves' in found[0].text


def test_a_camera_that_stops_is_told_and_memory_stays_bounded():
    pairing = StereoPairing()
    assert len(feed(pairing, [(side, 1000) for side in (L, R)])) == 1
    found = [outcome for n in range(1, 200) for outcome in pairing.push(L, message(1000 + 100 * n))]
    assert len(found) == 199 - 8 and {outcome.drop for outcome in found} == {LOST}
    assert 'the right camera has sent nothing for 19.9 s. Check that it runs' in found[-1].text
    # and it comes back
    assert stamps(pairing.push(R, message(20900))[-1].messages) == (20900, 20900)


def test_a_fast_camera_may_be_ahead_by_more_images_within_bounds():
    """At 60 Hz and 0.3 s of lag, 18 left images wait for their right ones."""
    arrivals = [(n * 16 + lag, side, 1000 + n * 16) for n in range(60) for side, lag in ((L, 0), (R, 300))]
    found = feed(StereoPairing(), [(side, stamp) for _, side, stamp in sorted(arrivals)])
    assert LOST not in found and len(found) == 60
    pairing, large = StereoPairing(), bytes(2**25)
    found = []
    for n in range(12):
        msg = message(1000 + n * 16)
        msg.data = large  # 32 MiB, of which eight may wait
        found += pairing.push(L, msg)
    assert [outcome.drop for outcome in found] == [LOST] * 4
    pairing = StereoPairing()
    assert len([outcome for n in range(100) for outcome in pairing.push(L, message(1000 + n))]) == 100 - 64


def test_texts_say_why_there_is_no_partner():
    pairing = StereoPairing()
    found = [outcome for n in range(10, 20) for outcome in pairing.push(L, message(100 * n))]
    assert 'none has come from the right camera. Check that it runs, and its topic' in found[0].text
    pairing = StereoPairing()
    found = [outcome for n in range(10, 20) for side in (L, R) for outcome in pairing.push(side, message(
        100 * n + 40 * (side == R)))]  # fmt: skip
    assert 'The left image has no right one within 5 ms: the nearest is 40.0 ms away. Trigger' in found[0].text


def test_images_wait_for_their_camera_info():
    pairing = StereoPairing()
    assert feed(pairing, [(L, 1000), (R, 1000)], infos=False) == []
    assert pairing.push_info(L, camera_info()) == []
    (outcome,) = pairing.push_info(R, camera_info(tx=-6.0))
    assert stamps(outcome.messages) == (1000, 1000) and outcome.messages.right_info.p[3] == -6
    assert outcome.messages.frame_id == 'left_optical'


def test_images_without_camera_info_are_counted():
    pairing = StereoPairing()
    pairing.push_info(L, camera_info())
    found = [outcome for n in range(10, 13) for side in (L, R) for outcome in pairing.push(side, message(100 * n))]
    assert [outcome.drop for outcome in found] == [FrameDrop.NO_CAMERA_INFO] * 2
    assert 'No CameraInfo of the right camera has come' in found[0].text


def test_the_camera_info_nearest_in_time_is_used():
    pairing = StereoPairing()
    for stamp_ms, fx in ((1000, 50), (1100, 60), (1200, 70)):
        for side in (L, R):
            pairing.push_info(side, camera_info(fx=fx, stamp_ns=stamp_ms * MS))
    pairing.push(L, message(1100))
    (outcome,) = pairing.push(R, message(1100))
    assert outcome.messages.left_info.k[0] == outcome.messages.right_info.k[0] == 60


def test_flush_tells_what_still_waits():
    pairing = StereoPairing()
    assert pairing.flush() == []
    feed(pairing, [(L, 1000), (R, 1000), (L, 1100), (L, 1200), (R, 1250)])
    assert [outcome.drop for outcome in pairing.flush()] == [LOST] * 3 and pairing.flush() == []
    assert feed(StereoPairing(), [(L, 1000), (R, 1000)], infos=False) == []
    pairing = StereoPairing()
    feed(pairing, [(L, 1000), (R, 1000)], infos=False)
    (outcome,) = pairing.flush()
    assert outcome.drop is FrameDrop.NO_CAMERA_INFO and 'left and right camera' in outcome.text


def test_reset_forgets_images_but_not_the_calibration():
    pairing = StereoPairing()
    assert feed(pairing, [(L, 1000)]) == []
    pairing.reset()
    assert pairing.push(R, message(1000)) == []
    assert len(pairing.push(L, message(1000))) == 1


def frame(stamp_ms, frame_id='left_optical'):
    return StereoMessages(None, None, None, None, round(stamp_ms * MS), frame_id)


@pytest.mark.parametrize(
    ('frames', 'reason', 'partner', 'says'),
    [
        ([(1000,)], FrameDrop.FIRST, None, 'waits for the second'),
        ([(1000,), (1100,)], None, 1000, ''),
        ([(1000,), (1100,), (1100,)], FrameDrop.DUPLICATE, None, 'repeats'),
        ([(1000,), (1100,), (1050,)], FrameDrop.OUT_OF_ORDER, None, '0.050 s older'),
        ([(5000,), (1000,)], FrameDrop.TIME_RESET, None, 'went back by 4.0 s'),
        ([(5000,), (1000,), (1100,)], None, 1000, ''),
        ([(1000,), (1300,)], FrameDrop.GAP, None, '0.300 s .* more than 0.25 s'),
        ([(1000,), (1010,)], FrameDrop.TOO_CLOSE, None, '0.010 s .* less than 0.03 s'),
        ([(1000,), (1010,), (1100,)], None, 1000, ''),
        ([(1000,), (1100, 'other')], FrameDrop.FRAME_CHANGED, None, "from frame_id 'left_optical' to frame_id 'other'"),
        ([(0,)], FrameDrop.ZERO_STAMP, None, 'stamp 0'),
    ],
)
def test_which_frames_make_a_pair(frames, reason, partner, says):
    buffer = FrameBuffer((0.03, 0.25))
    for row in frames:
        last, latest = buffer.last, frame(*row)
        previous, why = buffer.push(latest)
    assert why is reason and (previous and previous.stamp_ns) == (partner and partner * MS)
    assert why is None or re.search(says, buffer.drop_text(why, latest, last))


def test_frames_of_another_calibration_or_brightness_make_no_pair():
    camera = StereoCamera(4, 3, 50.0, 50.0, 1.5, 1.0, 0.1)
    wider, pixels = replace(camera, baseline=0.2), np.zeros((3, 4), np.uint8)
    buffer, texts = FrameBuffer((0.03, 0.25)), []
    for n, (one, bits) in enumerate([(camera, 8), (replace(camera), 8), (wider, 8), (wider, 10), (wider, 10)]):
        last, latest = buffer.last, StereoFrame(pixels, pixels, one, 10**9 + 100 * n * MS, 'left', bits)
        _, why = buffer.push(latest)
        texts.append(why and f'{why.value}: {buffer.drop_text(why, latest, last)}')
    assert texts[:3] == [
        'first_frame: The first stereo frame waits for the second.', None,
        "frame_changed: The camera changed from frame_id 'left', 4 x 3, fx 50, baseline 0.1 m, 8 bits to frame_id "
        "'left', 4 x 3, fx 50, baseline 0.2 m, 8 bits.",
    ]  # fmt: skip
    assert '8 bits to' in texts[3] and texts[3].endswith('10 bits.') and texts[4] is None


def test_drops_have_names_of_their_own_and_every_reason_of_the_buffer():
    assert len({drop.value for drop in FrameDrop}) == len(FrameDrop)
    of_sweeps_only = {'EMPTY', 'TOO_LARGE', 'PART', 'INCOMPLETE'}
    assert {drop.name for drop in DropReason} - of_sweeps_only <= {drop.name for drop in FrameDrop}
