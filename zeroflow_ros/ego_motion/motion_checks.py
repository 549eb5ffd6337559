# SPDX-License-Identifier: Apache-2.0
"""Check a claimed ego motion against the twist of the odometry, its own past, and the clouds; without ROS.

The clouds decide: a claim is refused where another motion explains the walls, poles and parked cars of two sweeps and
the claim does not. Looking at clouds costs some 10 ms, so it happens for the first sweeps, then every 30th, and
whenever pose and twist contradict each other or the pose jumps.
"""

import numpy as np

from zeroflow_ros.ego_motion.motion_bias import MotionBias
from zeroflow_ros.ego_motion.odometry_track import PairMotion
from zeroflow_ros.ego_motion.upright_structure import UprightStructure, Verdict
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.lidar.sweep import Sweep
from zeroflow_ros.transforms import rotation_vector

_FIRST = 20  # pairs that are checked often
_EVERY = 30  # pairs between two checks after that
_SPAN = 5  # pairs that a check spans, so that a speed that is wrong by 1 m/s shows
_EARLY = (1, 2, 3)  # the first checks do not wait for that
_MAX_UNDECIDED = 10  # checks without a decision, after which a distrusted source gets another chance
_TWIST_OFF, _TWIST_SHARE = 0.5, 0.6  # m/s and share of the speed that pose and twist may differ by
_MIN_OFF = 3  # pairs in a row without a decision, after which the source is wrong
_DIRECTION_EVERY = 10  # pairs between two looks at twists of the same speed in another direction
_CHAIN_M = 0.5  # m that pose and twist are apart before the clouds are compared over several pairs
_AGREED = 2  # decisions for the pose, after which such a twist is ignored
_REMEDY = (
    'Correct the source of the odometry (units, axes, frame ids), choose another topic, or set the ego motion to '
    'registration or tf.'
)


class ImplausibleMotionError(EgoMotionError):
    """The source of ego motion is wrong for more than one pair."""


class MotionChecks:
    """Judges the ego motion of consecutive pairs of sweeps. Used by one thread.

    name: of what claims the motion, in messages.
    """

    def __init__(self, name: str = 'odometry'):
        self._name = name
        self._bias = MotionBias(name)
        self.reset()

    @property
    def warning(self) -> str:
        """What is wrong with the motion throughout, though it is used; '' for nothing."""
        return self._bias.problem

    def reset(self) -> None:
        """Forget all sweeps and all decisions."""
        self._often = _FIRST  # pairs for which checks are frequent
        self._num_pairs = 0  # since the last check that was due
        self._expected: np.ndarray | None = None  # motion before a jump that the clouds did not show
        self._distrust = ''  # why no pair is used at present
        self._num_undecided = 0
        self._twist_wrong = 0
        self._num_off = 0
        self._chain: tuple[int, UprightStructure, np.ndarray, np.ndarray] | None = None
        self._last: tuple[int, UprightStructure | None] | None = None  # stamp and structure of the last newer sweep
        self._bias.reset()
        self._forget_key()

    def check(self, sweep0: Sweep, sweep1: Sweep, motion: PairMotion) -> None:
        """Check the motion of a pair, (4, 4) each in the frame of the sweeps.

        Raises: EgoMotionError when this pair must not be used, ImplausibleMotionError when the source is wrong.
        """
        seconds = (sweep1.stamp_ns - sweep0.stamp_ns) * 1e-9
        structures = _Structures(sweep0, sweep1, self._last)
        continues = self._last is not None and self._last[0] == sweep0.stamp_ns
        if not continues:
            self._forget_key()
            self._bias.start_over()
        self._bias.add_claim(sweep0.stamp_ns, sweep1.stamp_ns, motion.claimed)
        try:
            self._check_jump(structures, motion)
            if motion.twist is not None and self._twist_wrong < _AGREED:
                self._check_twist(structures, motion, seconds)
        except EgoMotionError:
            self._forget_key()
            self._often = _FIRST
            self._last = sweep1.stamp_ns, structures.newer_if_known
            raise
        self._check_clouds(structures, motion.claimed)
        self._last = sweep1.stamp_ns, structures.newer_if_known
        self._often, self._num_pairs = max(self._often - 1, 0), self._num_pairs + 1
        if self._distrust:
            raise ImplausibleMotionError(self._distrust)

    def _check_jump(self, structures: '_Structures', motion: PairMotion) -> None:
        if motion.jump is None:
            self._check_after_jump(structures, motion)
            return
        decision = structures.older.compare(structures.newer, motion.claimed, motion.expected)
        self._expected = motion.expected if decision == 2 else None
        jump = motion.jump
        if decision == 1 or (decision == 0 and not jump.is_certain and not jump.is_sparse):
            return
        if not jump.is_certain and jump.is_sparse:
            raise EgoMotionError(
                f'The {self._name} has poses {jump.seconds:.2f} s apart, and from one to the next it moves by '
                f'{jump.metres:.2f} m and {jump.degrees:.1f} degrees more or less than before: a relocalisation, or an '
                'acceleration that such poses do not show. This pair of sweeps is not used. Publish it at 10 Hz or '
                'more, in a frame that does not jump (odom, not map).'
            )
        raise EgoMotionError(
            f'The {self._name} jumps by {motion.jump.metres:.2f} m and {motion.jump.degrees:.1f} degrees between two '
            'poses, as after a relocalisation. This pair of sweeps is not used. Use a frame that does not jump (odom, '
            'not map).'
        )

    def _check_after_jump(self, structures: '_Structures', motion: PairMotion) -> None:
        """Refuse a pose that stays with the speed of a jump, such as a frozen one, while the clouds go on as before."""
        if self._expected is None:
            return
        if structures.older.compare(structures.newer, motion.claimed, self._expected) != 2:
            self._expected = None
            return
        before, now = (np.linalg.norm(step[:3, 3]) for step in (self._expected, motion.claimed))
        raise ImplausibleMotionError(
            f'The {self._name} went at once from {before:.2f} m to {now:.2f} m between sweeps, but the clouds show the '
            f'sensor moving as before. It is not used. {_REMEDY}'
        )

    def _check_twist(self, structures: '_Structures', motion: PairMotion, seconds: float) -> None:
        """Let the clouds decide where pose and twist contradict each other; speeds that differ need a decision."""
        pose, twist = motion.claimed[:3, 3], motion.twist[:3, 3]
        speed, twist_speed = (float(np.linalg.norm(step)) / seconds for step in (pose, twist))
        limit = max(_TWIST_OFF, _TWIST_SHARE * max(speed, twist_speed))
        differ = abs(speed - twist_speed) > limit and twist_speed > _TWIST_OFF
        apart = [np.linalg.norm(pose - step[:3, 3]) / seconds for step in (motion.twist, motion.turned_twist)]
        if not differ and (min(apart) <= limit or twist_speed < _TWIST_OFF):
            self._num_off = 0
            return
        self._num_off += 1
        if not differ and self._num_off % _DIRECTION_EVERY != 1:
            return
        decision = self._decide(structures, motion)
        if decision == 1:
            self._twist_wrong += 1
            return
        if decision == 0 and not differ:
            return
        seen = 'The clouds agree with the twist.' if decision == 2 else 'The clouds do not show which one is right.'
        self._twist_wrong = 0
        if decision == 2:
            self._distrust = (
                f'Pose and twist of the {self._name} contradict each other. The clouds agree with the twist.'
            )
        is_wrong = decision == 2 or self._num_off >= _MIN_OFF
        raise (ImplausibleMotionError if is_wrong else EgoMotionError)(
            f'Pose and twist of the {self._name} contradict each other: in {seconds:.2f} s the pose moves by '
            f'{speed * seconds:.2f} m, the twist says {twist_speed * seconds:.2f} m. {seen} The pose is not used. '
            f'{_REMEDY}'
        )

    def _decide(self, structures: '_Structures', motion: PairMotion) -> int:
        """Return 1 where the clouds show the motion of the pose, 2 for the twist, 0 where they do not decide (yet).

        Slow motions show over some pairs only, so both are chained until they are far enough apart.
        """
        decision = structures.older.compare(structures.newer, motion.claimed, motion.twist)
        if decision:
            self._chain = None
            return decision
        chain = self._chain
        if chain is None or chain[0] != structures.stamps_ns[0]:
            chain = structures.stamps_ns[0], structures.older, np.eye(4), np.eye(4)
        _, first, by_pose, by_twist = chain
        by_pose, by_twist = by_pose @ motion.claimed, by_twist @ motion.twist
        apart = np.linalg.norm(by_pose[:3, 3] - by_twist[:3, 3])
        if apart > _CHAIN_M:
            self._chain = None
            return first.compare(structures.newer, by_pose, by_twist)
        self._chain = structures.stamps_ns[1], first, by_pose, by_twist
        return 0

    def _check_clouds(self, structures: '_Structures', claimed: np.ndarray) -> None:
        """Compare this sweep with one some pairs earlier, where a check is due."""
        if self._key is None:
            is_due = self._often or self._distrust or self._num_pairs >= _EVERY or self._bias.wants_measurement()
            if not is_due:
                return
            self._key, self._key_sweep, self._num_pairs = structures.older, structures.sweep0, 0
        self._key_T_ego = self._key_T_ego @ claimed
        self._span += 1
        early = self._often > _FIRST - _SPAN and self._span in _EARLY
        if self._span < _SPAN and not early:
            return
        verdict = self._key.judge(structures.newer, self._key_T_ego)
        if self._span >= _SPAN:
            self._measure(structures, verdict)
        if verdict.decision == 'contradicts':
            self._num_undecided = 0
            self._distrust = self._contradiction(verdict)
        elif verdict.decision == 'agrees' and self._span >= _SPAN:
            self._distrust = ''
        elif self._distrust and self._span >= _SPAN:
            self._num_undecided += 1
            if self._num_undecided >= _MAX_UNDECIDED:
                self._distrust, self._num_undecided = '', 0
        if self._span >= _SPAN or verdict.decision == 'contradicts':
            self._forget_key()

    def _measure(self, structures: '_Structures', verdict: Verdict) -> None:
        starts = [self._key_T_ego]
        if verdict.decision != 'agrees' and self._key.is_better(structures.newer, verdict.seen, self._key_T_ego):
            starts.append(verdict.seen)
        stamps_ns = self._key_sweep.stamp_ns, structures.stamps_ns[1]
        self._bias.measure(self._key_sweep.points, structures.sweep1.points, stamps_ns, starts)

    def _contradiction(self, verdict: Verdict) -> str:
        seen, claimed = (_describe(motion, self._span) for motion in (verdict.seen, self._key_T_ego))
        return (
            f'The clouds show the sensor moving by about {seen} between sweeps, the {self._name} says {claimed}. It is '
            f'not used. {_REMEDY}'
        )

    def _forget_key(self) -> None:
        self._key: UprightStructure | None = None
        self._key_sweep: Sweep | None = None
        self._key_T_ego, self._span = np.eye(4), 0


def _describe(motion: np.ndarray, num_pairs: int) -> str:
    """Return length, direction in the sensor's axes, and turn of a motion (4, 4) over some pairs, for one pair."""
    x, y = motion[:2, 3] / num_pairs
    turn = np.degrees(rotation_vector(motion)[2]) / num_pairs
    return f'{np.hypot(x, y):.2f} m (x {x:.2f}, y {y:.2f}, turned by {turn:.1f} degrees)'


class _Structures:
    """The upright structure of both sweeps of a pair, computed when asked for."""

    def __init__(self, sweep0: Sweep, sweep1: Sweep, last: tuple[int, UprightStructure | None] | None):
        self.sweep0, self.sweep1 = sweep0, sweep1
        self.stamps_ns = sweep0.stamp_ns, sweep1.stamp_ns
        self._older = last[1] if last is not None and last[0] == sweep0.stamp_ns else None
        self.newer_if_known: UprightStructure | None = None

    @property
    def older(self) -> UprightStructure:
        if self._older is None:
            self._older = UprightStructure(self.sweep0.points)
        return self._older

    @property
    def newer(self) -> UprightStructure:
        if self.newer_if_known is None:
            self.newer_if_known = UprightStructure(self.sweep1.points)
        return self.newer_if_known
