# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from odometry_drive import poses, street, sweep, traffic

from zeroflow_ros.ego_motion.upright_structure import UprightStructure
from zeroflow_ros.transforms import invert, yaw_translation

WORLD = street()
POSES = poses(6, speed=8.0, turn=0.3)
SEEN = [UprightStructure(sweep(k, pose, WORLD).points) for k, pose in enumerate(POSES)]
TRUE = invert(POSES[0]) @ POSES[5]  # 4 m and 8.6 degrees


@pytest.mark.parametrize(
    'points',
    [np.zeros((0, 3)), np.zeros((1, 3)), np.full((5000, 3), np.nan), np.full((5000, 3), 1e30), np.full((9, 3), np.inf)],
    ids=['empty', 'one', 'nan', 'huge', 'infinite'],
)
def test_without_structure_nothing_is_decided(points):
    nothing = UprightStructure(points.astype(np.float32))
    assert not nothing.is_enough
    assert nothing.judge(SEEN[0], np.eye(4)).decision == SEEN[0].judge(nothing, np.eye(4)).decision == 'undecided'
    assert nothing.compare(SEEN[0], np.eye(4), TRUE) == 0


def test_a_bare_plane_and_a_tunnel_decide_nothing():
    rng = np.random.default_rng(0)
    plane = np.c_[rng.uniform(-40, 40, (20_000, 2)), np.full(20_000, -1.8)].astype(np.float32)
    assert not UprightStructure(plane).is_enough
    tunnel = np.c_[rng.uniform(-60, 60, 40_000), rng.choice([-4.0, 4.0], 40_000), rng.uniform(-1.8, 3, 40_000)]
    older, newer = UprightStructure(tunnel.astype(np.float32)), UprightStructure(tunnel[::-1].astype(np.float32))
    for claimed in (np.eye(4), yaw_translation(0, 2.0, 0)):
        assert older.judge(newer, claimed).decision != 'contradicts'
    assert older.compare(newer, np.eye(4), yaw_translation(0, 2.0, 0)) == 0


# label, claimed ego0_T_ego5, decision
CLAIMS = [
    ('true', TRUE, 'agrees'),
    ('true, 5 cm of noise', TRUE @ yaw_translation(0.002, 0.04, -0.03), 'agrees'),
    ('standing', np.eye(4), 'contradicts'),
    ('half', yaw_translation(0.15, *TRUE[:2, 3] / 2), 'contradicts'),
    ('twice', yaw_translation(0.15, *TRUE[:2, 3] * 2), 'contradicts'),
    ('backwards', invert(TRUE), 'contradicts'),
    ('turns the other way', yaw_translation(-0.15, *TRUE[:2, 3]), 'contradicts'),
    ('sideways', yaw_translation(0.15, 0, 4), 'contradicts'),
]


@pytest.mark.parametrize(('claimed', 'decision'), [row[1:] for row in CLAIMS], ids=[row[0] for row in CLAIMS])
def test_clouds_judge_a_claimed_motion(claimed, decision):
    verdict = SEEN[0].judge(SEEN[5], claimed)
    assert verdict.decision == decision
    if decision == 'contradicts':  # and they show the true one, to about two cells
        np.testing.assert_allclose(verdict.seen[:2, 3], TRUE[:2, 3], atol=0.5)


def test_clouds_choose_between_two_motions():
    true = invert(POSES[0]) @ POSES[1]
    for other in (np.eye(4), true @ yaw_translation(0, 0.5, 0), true @ yaw_translation(np.radians(5), 0, 0)):
        assert SEEN[0].compare(SEEN[1], true, other) == 1 and SEEN[0].compare(SEEN[1], other, true) == 2
    assert SEEN[0].compare(SEEN[1], true, true @ yaw_translation(0, 0.05, 0)) == 0


@pytest.mark.parametrize('ego_speed, traffic_speed', [(0.0, 14.0), (14.0, 14.0), (14.0, -14.0)])
def test_traffic_all_around_does_not_outvote_the_street(ego_speed, traffic_speed):
    seen = []
    for k in (0, 3):
        pose = yaw_translation(0, ego_speed * 0.1 * k, 0)
        world = np.concatenate([WORLD, traffic(k, traffic_speed, lanes=(-3.5, 3.5), count=5)])
        seen.append(UprightStructure(sweep(k, pose, world).points))
    claimed = yaw_translation(0, ego_speed * 0.3, 0)
    assert seen[0].judge(seen[1], claimed).decision == 'agrees'


def test_a_platoon_on_an_empty_plain_is_no_proof_of_a_sensor_that_stands():
    rails = np.c_[
        np.linspace(-60, 80, 6000), np.tile([-10.0, 10.0], 3000), np.random.default_rng(0).uniform(-1.8, 0, 6000)
    ]
    seen = []
    for k in (0, 3):
        pose = yaw_translation(0, 14.0 * 0.1 * k, 0)
        seen.append(UprightStructure(sweep(k, pose, np.concatenate([rails, traffic(k, 14.0, (-3.5,), 4)])).points))
    assert seen[0].judge(seen[1], yaw_translation(0, 4.2, 0)).decision != 'contradicts'
