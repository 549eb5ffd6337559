# SPDX-License-Identifier: Apache-2.0
"""Poses of the clouds' frame in a fixed frame, from /tf and /tf_static of a bag; without ROS."""

from dataclasses import dataclass, field

import numpy as np

from zeroflow_ros.bags.bag import STATIC_TRANSFORMS_TOPIC, Bag
from zeroflow_ros.bags.cdr import TRANSFORMS, decode_message
from zeroflow_ros.ego_motion.static_transforms import SAME, SAME_ANGLE, TF_TOPIC, poses_of
from zeroflow_ros.ego_motion.trajectory import Trajectory
from zeroflow_ros.errors import EgoMotionError
from zeroflow_ros.transforms import invert

# Names of frames that are fixed in the world, without their prefix, the best first: odom jumps less than map.
FIXED_FRAMES = ('odom', 'odom_combined', 'odometry', 'map', 'world', 'earth', 'local_map', 'global')
# Tops of trees that move with the vehicle.
_BODIES = ('base', 'body', 'imu', 'chassis', 'vehicle', 'robot', 'car', 'ego', 'hero', 'gps', 'ins', 'rear_axle')
_MOVES = 1.0  # m: more than a tilting sensor moves on its vehicle
_SAMPLES = 20  # of a path, to see how far it moves
_MIN_MESSAGES = 3  # of a transform that never changes
_JUMP = 0.05  # m between two publishers of one transform


@dataclass
class _Edge:
    """One transform over time, parent_T_child.

    stamps_ns, recorded_ns, numbers: in recording order while the bag is read, sorted by stamp after that; numbers are
    x y z qx qy qz qw. poses: (N, 4, 4).
    """

    parent: str
    child: str
    stamps_ns: list | np.ndarray = field(default_factory=list)
    recorded_ns: list | np.ndarray = field(default_factory=list)
    numbers: list = field(default_factory=list)
    poses: np.ndarray | None = None
    is_constant: bool = False

    def complete(self) -> bool:
        """Sort by stamp, find out whether the transform ever changes; return whether one is a pose."""
        numbers = np.array(self.numbers)
        with np.errstate(over='ignore', invalid='ignore'):
            length = np.linalg.norm(numbers[:, 3:], axis=1)
            is_pose = np.isfinite(numbers).all(axis=1) & np.isfinite(length) & (length > 1e-6)
        kept = np.flatnonzero(is_pose)
        kept = kept[np.argsort(np.array(self.stamps_ns, np.int64)[kept], kind='stable')]
        self.stamps_ns, self.recorded_ns = (np.array(of, np.int64)[kept] for of in (self.stamps_ns, self.recorded_ns))
        moved, turned = numbers[kept, :3], numbers[kept, 3:] / length[kept, None]
        self.numbers = []
        self.poses = _from_quaternions(moved, turned)
        self._trajectory = Trajectory(len(kept) + 2)
        for stamp_ns, pose in zip(self.stamps_ns.tolist(), self.poses, strict=True):
            self._trajectory.add(stamp_ns, pose)
        if len(kept):
            distance = np.linalg.norm(moved - moved[0], axis=1).max()
            angle = 2 * np.arccos(np.clip(np.abs(turned @ turned[0]), 0, 1)).max()
            self.is_constant = bool(len(kept) >= _MIN_MESSAGES and distance <= SAME and angle <= SAME_ANGLE)
        return bool(len(kept))

    def at(self, stamp_ns: int) -> np.ndarray:
        """Return parent_T_child at a stamp, interpolated as by a `Trajectory`.

        Raises: EgoMotionError where the transform is not known there.
        """
        if self.is_constant and not _is_fixed(self.parent) and not _is_fixed(self.child):
            return self.poses[0]
        pose = self._trajectory.pose(stamp_ns)
        if pose is not None:
            return pose
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if 0 < after < len(self.stamps_ns):
            gap_ns = int(self.stamps_ns[after] - self.stamps_ns[after - 1])
            known = f'there is a gap of {gap_ns * 1e-9:.2f} s around it'
        else:
            first, last = self.stamps_ns[[0, -1]] * 1e-9
            known = f'it is known from {first:.3f} s to {last:.3f} s ({len(self.stamps_ns)} messages)'
        raise EgoMotionError(
            f'{TF_TOPIC} has no transform from {self.child!r} to {self.parent!r} around '
            f'{stamp_ns * 1e-9:.3f} s: {known}. The motion of a sweep needs it at 2 Hz or more, on the clock of the '
            'clouds.'
        )

    def alternates(self) -> bool:
        """Return whether most poses jump back and forth, as those of two publishers do."""
        steps = np.diff(self.poses[:, :3, 3], axis=0)
        steps = steps[np.linalg.norm(steps, axis=1) > 1e-6]
        if len(steps) < 6:
            return False
        is_jump = np.linalg.norm(steps, axis=1) > _JUMP
        turns_back = (np.einsum('ij,ij->i', steps[1:], steps[:-1]) < 0) & is_jump[1:] & is_jump[:-1]
        return turns_back.mean() > 0.5


class TfPoses:
    """The pose of a frame in a fixed frame over time, along the chain of transforms that links them.

    frame_id: frame of the clouds. fixed_frame: '' for odom, else map or world, else the top of the tree if the frame
    moves in it.
    fixed_frame: the frame that was chosen. stamps: (recorded, stamp) [ns] of the first transforms that change.
    Raises: EgoMotionError when the transforms do not say how the frame moves in the fixed frame.
    """

    def __init__(self, bag: Bag, frame_id: str, fixed_frame: str = ''):
        if not frame_id:
            raise EgoMotionError(
                f'The clouds of {bag.path} have no frame_id, so {TF_TOPIC} cannot say how they move. Make the driver '
                'set header.frame_id.'
            )
        if _is_fixed(frame_id) and not fixed_frame:
            raise EgoMotionError(
                f'The clouds of {bag.path} are in {frame_id!r}, a frame that is fixed in the world: {TF_TOPIC} does '
                'not say which frame the sensor has. Use clouds in the frame of the sensor, as the driver sends them.'
            )
        self._edges = _read(bag)
        self._frame_id = frame_id
        paths = self._paths(frame_id)
        fixed_frame = fixed_frame.lstrip('/')
        if fixed_frame and fixed_frame not in paths:
            raise EgoMotionError(
                f'{TF_TOPIC} and {STATIC_TRANSFORMS_TOPIC} of {bag.path} do not connect the fixed frame '
                f'{fixed_frame!r} with {frame_id!r}, the frame of the clouds. That one is connected with '
                f'{", ".join(sorted(set(paths) - {frame_id})) or "no frame"}.'
            )
        self.fixed_frame = fixed_frame or self._choose(bag, paths)
        self._path = paths[self.fixed_frame]
        for edge, _ in self._path:
            if len(edge.poses) and not edge.is_constant and edge.alternates():
                raise EgoMotionError(
                    f'The transform from {edge.child!r} to {edge.parent!r} on {TF_TOPIC} of {bag.path} jumps '
                    'back and forth: it has two publishers. Stop one of them (two localisations publish it, or a '
                    'simulator and an odometry), or choose another --fixed-frame or registration.'
                )
        changing = [edge for edge, _ in self._path if not edge.is_constant] or [edge for edge, _ in self._path]
        self.stamps = [list(zip(edge.recorded_ns.tolist(), edge.stamps_ns.tolist(), strict=True)) for edge in changing]

    def pose(self, stamp_ns: int) -> np.ndarray:
        """Return fixed_T_frame, (4, 4) float64, at a stamp.

        Raises: EgoMotionError when a transform of the chain is unknown there.
        """
        fixed_T_frame = np.eye(4)
        for edge, is_inverse in self._path:
            pose = edge.at(stamp_ns)
            fixed_T_frame = fixed_T_frame @ (invert(pose) if is_inverse else pose)
        return fixed_T_frame

    def _paths(self, frame_id: str) -> dict[str, list[tuple[_Edge, bool]]]:
        """Return the chain from each frame that is connected with a frame down to it; True: against its direction."""
        paths, frontier = {frame_id: []}, [frame_id]
        while frontier:
            frame = frontier.pop(0)
            for edge in self._edges.values():
                for upper, lower, is_inverse in ((edge.parent, edge.child, False), (edge.child, edge.parent, True)):
                    if lower == frame and upper not in paths:
                        paths[upper] = [(edge, is_inverse), *paths[frame]]
                        frontier.append(upper)
        return paths

    def _choose(self, bag: Bag, paths: dict) -> str:
        changing = {frame: path for frame, path in paths.items() if any(len(edge.poses) > 1 for edge, _ in path)}
        named = sorted(
            (frame for frame in changing if _is_fixed(frame)),
            key=lambda frame: (FIXED_FRAMES.index(_tail(frame)), len(paths[frame])),
        )
        far = {frame: self._moves(paths[frame]) for frame in named}
        # A vehicle that stands in odom and moves in map: odom -> base is published, but nobody measures it.
        moving = [frame for frame in named if far[frame] > 0.25 * max(far.values())]
        if named:
            return moving[0] if max(far.values()) > _MOVES else named[0]
        children = {edge.child for edge in self._edges.values()}
        tops = [frame for frame in changing if frame not in children]
        for top in tops:
            is_body = any(_tail(top).lower().startswith(body) for body in _BODIES)
            if not is_body and self._moves(paths[top]) > _MOVES:
                return top
        connected = ', '.join(sorted(set(paths) - {self._frame_id})) or 'no frame'
        raise EgoMotionError(
            f'{TF_TOPIC} of {bag.path} does not say how {self._frame_id!r}, the frame of the clouds, moves: '
            f'it is connected with {connected}, but not through a transform that changes with a frame that is fixed '
            f'in the world ({", ".join(FIXED_FRAMES[:5])}). Name such a frame with --fixed-frame.'
        )

    @staticmethod
    def _moves(path) -> float:
        """Return how far a frame gets from where it was first [m], along a path, in a sample of its stamps."""
        stamps = [edge.stamps_ns for edge, _ in path if len(edge.poses) and not edge.is_constant]
        if not stamps:
            return 0.0
        stamps = max(stamps, key=len)
        positions = []
        for stamp_ns in stamps[:: 1 + len(stamps) // _SAMPLES].tolist():
            pose = np.eye(4)
            try:
                for edge, is_inverse in path:
                    pose = pose @ (invert(edge.at(stamp_ns)) if is_inverse else edge.at(stamp_ns))
            except EgoMotionError:
                continue
            positions.append(pose[:3, 3])
        return float(np.linalg.norm(np.array(positions) - positions[0], axis=1).max()) if positions else 0.0


def _read(bag: Bag) -> dict[tuple[str, str], _Edge]:
    """Return the transforms of a bag by parent and child; one that is on both topics and changes is taken from /tf."""
    edges: dict[tuple[str, str], _Edge] = {}
    for recorded in bag.messages([TF_TOPIC]):
        for transform in decode_message(recorded.cdr, TRANSFORMS).transforms:
            parent, child = transform.header.frame_id.lstrip('/'), transform.child_frame_id.lstrip('/')
            stamp, t, q = transform.header.stamp, transform.transform.translation, transform.transform.rotation
            edge = edges.setdefault((parent, child), _Edge(parent, child))
            edge.stamps_ns.append(stamp.sec * 1_000_000_000 + stamp.nanosec)
            edge.recorded_ns.append(recorded.time_ns)
            edge.numbers.append((t.x, t.y, t.z, q.x, q.y, q.z, q.w))
    edges = {frames: edge for frames, edge in edges.items() if edge.complete()}
    for recorded in bag.messages([STATIC_TRANSFORMS_TOPIC]):
        for parent, child, stamp_ns, pose in poses_of(decode_message(recorded.cdr, TRANSFORMS)):
            if (parent, child) not in edges or edges[parent, child].is_constant:
                edges[parent, child] = _Static(
                    parent, child, np.array([stamp_ns]), np.array([recorded.time_ns]), [], pose[None], True
                )
    return edges


class _Static(_Edge):
    """A transform of /tf_static."""

    def at(self, stamp_ns: int) -> np.ndarray:
        return self.poses[-1]


def _tail(frame: str) -> str:
    return frame.split('/')[-1]


def _is_fixed(frame: str) -> bool:
    return _tail(frame) in FIXED_FRAMES


def _from_quaternions(moved: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Return poses (N, 4, 4) of translations (N, 3) and unit quaternions x y z w (N, 4)."""
    x, y, z, w = turned.T
    poses = np.tile(np.eye(4), (len(moved), 1, 1))
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)
    poses[:, 1, 0], poses[:, 1, 1], poses[:, 1, 2] = 2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)
    poses[:, 2, 0], poses[:, 2, 1], poses[:, 2, 2] = 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)
    poses[:, :3, 3] = moved
    return poses
