# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from odometry_drive import T0, S, odometry

from zeroflow_ros.ego_motion.odometry_track import OdometryTrack, odometry_pose
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import invert, rotation_vector, yaw_translation

JUMP_AT = 3.03  # s: between two poses, and between two sweeps


def driven(rate, speed, *, turn=lambda t: 0.0, jump=None, noise=0.0, repeat=1, seconds=5.0):
    """Return a track of odometry at a rate [Hz], and the true pose at a time.

    speed, turn: m/s and rad/s at a time. jump: (4, 4), moves all poses from JUMP_AT on. repeat: messages with one pose.
    """
    rng, fine = np.random.default_rng(0), np.arange(0, seconds, 0.001)
    yaw = np.cumsum([turn(t) for t in fine]) * 0.001
    steps = np.array([speed(t) for t in fine]) * 0.001
    x, y = np.cumsum(steps * np.cos(yaw)), np.cumsum(steps * np.sin(yaw))

    def pose(t):
        return yaw_translation(*(np.interp(t, fine, column) for column in (yaw, x, y)))

    track = OdometryTrack(5000)
    for k in range(int(seconds * rate)):
        t = k / rate
        if k % repeat == 0:
            last = pose(t) @ yaw_translation(0, *rng.normal(0, noise, 2))
            last = last if jump is None or t < JUMP_AT else jump @ last
        track.add(odometry(T0 + round(t * S), last))
    return track, pose


def pairs(track, pose, first=0.113, last=4.25):
    """Yield (time, PairMotion, error of the claim [m], [deg]) of pairs of 0.1 s, at stamps between those of poses."""
    for t in np.arange(first, last, 0.1):
        motion = track.between(T0 + round(t * S), T0 + round((t + 0.1) * S))
        apart = invert(invert(pose(t)) @ pose(t + 0.1)) @ motion.claimed
        yield t, motion, np.linalg.norm(apart[:3, 3]), np.degrees(np.linalg.norm(rotation_vector(apart)))


JUMPS = {
    '0.5 m': yaw_translation(0, 0.5, 0),
    '0.5 m aside': yaw_translation(0, 0, 0.5),
    '1 m': yaw_translation(0, 1, 0),
    '3 m back': yaw_translation(0, -3, 0),
    '10 m': yaw_translation(0, 0, 10),
    '5 degrees': yaw_translation(np.radians(5), 0, 0),
}


@pytest.mark.parametrize('rate', [10, 20, 100])
@pytest.mark.parametrize('name', JUMPS)
def test_a_jump_of_a_relocalisation_is_found_and_left_out(rate, name):
    track, pose = driven(rate, lambda t: 10.0, jump=JUMPS[name])
    jumps = 0
    for _, motion, metres, degrees in pairs(track, pose):
        if motion.jump is None:
            assert metres < 0.03 and degrees < 0.3  # what a pair may keep of it
            continue
        jumps += 1
        assert motion.jump.is_certain
        np.testing.assert_allclose(motion.expected[:3, 3], [1, 0, 0], atol=0.02)  # as before the jump
    assert 1 <= jumps <= (2 if rate <= 20 else 1)  # two where the step between the poses reaches into two pairs
    # Deskewing uses the track without the jump.
    then = track.poses_at_offsets(T0 + 3 * S, np.array([0, S // 10]))[1]
    np.testing.assert_allclose(then[:3, 3], [1, 0, 0], atol=0.02)


@pytest.mark.parametrize('name', ['1 m', '3 m back', '10 m'])
def test_a_jump_between_poses_at_2_5_hz_moves_no_pair_by_a_quarter_of_it(name):
    track, pose = driven(2.5, lambda t: 10.0, jump=JUMPS[name])
    found = list(pairs(track, pose, first=0.9))
    assert all(metres < 0.03 for _, motion, metres, _ in found if motion.jump is None)
    jumps = [motion.jump for _, motion, _, _ in found if motion.jump]
    assert 4 <= len(jumps) <= 5 and all(jump.is_sparse and jump.seconds == pytest.approx(0.4) for jump in jumps)


def start(t):
    return 0.0 if t < 2 else min(10.0, 8.0 * (t - 2))


def brake(t):
    return 10.0 if t < 2 else max(0.0, 10.0 - 10.0 * (t - 2))


DRIVES = {
    'rest': (lambda t: 0.0, lambda t: 0.0),
    'start with 8 m/s^2': (start, lambda t: 0.0),
    'brake with 10 m/s^2': (brake, lambda t: 0.0),
    'zigzag': (lambda t: 10.0, lambda t: 0.5 * np.sin(3 * t)),
    'on the spot': (lambda t: 0.0, lambda t: min(1.5, max(0.0, 3 * (t - 2)))),
}


@pytest.mark.parametrize('rate, noise', [(2.5, 0), (5, 0.01), (10, 0.0125), (20, 0.0125), (100, 0.003)])
@pytest.mark.parametrize('name', DRIVES)
def test_real_motion_is_no_certain_jump(rate, noise, name):
    speed, turn = DRIVES[name]
    track, pose = driven(rate, speed, turn=turn, noise=noise)
    found = [motion.jump for _, motion, _, _ in pairs(track, pose, first=0.5) if motion.jump]
    assert not any(jump.is_certain for jump in found)
    assert rate < 10 or not found  # at a low rate clouds decide on a few suspects


def test_a_publisher_that_repeats_its_poses_does_not_jump():
    track, pose = driven(50, lambda t: 10.0, repeat=5)
    assert not any(motion.jump for _, motion, _, _ in pairs(track, pose, first=0.5))
    track, pose = driven(50, lambda t: 10.0, repeat=5, jump=JUMPS['1 m'])
    assert sum(motion.jump is not None for _, motion, _, _ in pairs(track, pose, first=0.5)) == 1


def test_a_gap_and_a_loop_of_the_bag_are_no_jumps():
    track = OdometryTrack()
    for t, x in [(0, 0), (0.1, 1), (0.2, 2), (1.2, 50), (1.3, 51), (1.4, 52), (0.1, 7), (0.2, 8), (0.3, 9)]:
        track.add(odometry(T0 + round(t * S), yaw_translation(0, x, 0)))
        assert track.latest_stamp_ns == T0 + round(t * S)
    motion = track.between(T0 + S // 10, T0 + 2 * S // 10)
    assert motion.jump is None and motion.claimed[0, 3] == pytest.approx(1)


def test_poses_of_other_frames_do_not_continue_the_track():
    track = OdometryTrack()
    track.add(odometry(T0, np.eye(4)))
    for frames in ({'frame_id': 'map'}, {'child_frame_id': 'base'}):
        track.add(odometry(T0 + S // 10, np.eye(4), **frames))
        with pytest.raises(EgoMotionError):
            track.between(T0, T0 + S // 10)
    assert (track.frame_id, track.child_frame_id) == ('odom', 'base')


# label, twists at 0 s and 0.1 s, expected metres along x and y
TWISTS = [
    ('never filled in', [(0, 0, 0)] * 2, None),
    ('constant', [(5, 0, 0)] * 2, (0.5, 0)),
    ('changes', [(4, 0, 0), (6, 0, 0)], (0.5, 0)),
    ('NaN is left out', [(np.nan, 0, 0), (6, 0, 0)], (0.6, 0)),
    ('sideways', [(0, 3, 0)] * 2, (0, 0.3)),
]


@pytest.mark.parametrize(('twists', 'expected'), [row[1:] for row in TWISTS], ids=[row[0] for row in TWISTS])
def test_twist_over_a_pair(twists, expected):
    track, turned = OdometryTrack(), yaw_translation(np.pi / 2, 0, 0)
    for k, twist in enumerate(twists):
        track.add(odometry(T0 + k * S // 10, turned, (*twist, 0, 0, 0)))
    motion = track.between(T0, T0 + S // 10)
    if expected is None:
        assert motion.twist is None and motion.turned_twist is None
        return
    np.testing.assert_allclose(motion.twist[:2, 3], expected, atol=1e-9)
    x, y = expected  # a twist in the axes of odom, which are turned by 90 degrees
    np.testing.assert_allclose(motion.turned_twist[:2, 3], [y, -x], atol=1e-9)
    # A sensor that looks to the left of its vehicle.
    seen = motion.seen_from(yaw_translation(np.pi / 2, 0, 0))
    np.testing.assert_allclose(seen.twist[:2, 3], [y, -x], atol=1e-9)


def message_of(x=0.0, y=0.0, z=0.0, w=1.0):
    message = odometry(0, np.eye(4))
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, orientation.z, orientation.w = x, y, z, w
    return message


def test_a_quaternion_need_not_have_the_length_1():
    message = message_of(1.0, 2.0, 2 * np.sin(0.25), 2 * np.cos(0.25))
    message.header.stamp.sec, message.header.stamp.nanosec = 3, 500
    stamp_ns, odom_T_child = odometry_pose(message)
    assert stamp_ns == 3_000_000_500
    np.testing.assert_allclose(odom_T_child, yaw_translation(0.5, 1, 2), atol=1e-12)


@pytest.mark.parametrize(('x', 'w'), [(np.nan, 1.0), (0.0, 0.0), (0.0, np.nan), (np.inf, 1.0)])
def test_what_is_no_pose_is_an_error(x, w):
    with pytest.raises(EgoMotionError, match='finite translation and a quaternion of length 1'):
        odometry_pose(message_of(x=x, w=w))
