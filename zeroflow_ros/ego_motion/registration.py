# SPDX-License-Identifier: Apache-2.0
"""Ego motion from the sweeps themselves, where a vehicle or a bag has no odometry."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.lidar.ground import ground_height
from zeroflow_ros.transforms import apply, invert, rotation_matrix, rotation_vector

_NEAR, _FAR = 2.5, 80.0  # m: past the vehicle's own returns, which never move, and before points get sparse
_VOXEL = 0.35  # m: 18,000 of 120,000 points stay; 0.25 m is no better against odometry
_NEIGHBORS = 10  # for normals
_MIN_POINTS = 500  # after the voxel grid
_MIN_PARTNERS = 100

_COARSE = (5.0, 2.0)  # m: reach of the searches that start from nothing; 5 m is 50 m/s over 0.1 s
_COARSE_VOXEL = 1.0  # m: 3,000 points
_MAX_ITERATIONS = 10
_REACH = 0.5  # m: of the fine search, whose start is off by what the vehicle accelerates, 0.1 m at most
_PARALLEL = 0.9  # cosine between the normals of two points that may be one surface
# m: the kernel narrows, so that what moves by more than a few centimetres against the rest loses its say.
_KERNELS = (0.1, 0.05, 0.03)
_FIRST_KERNEL = 0.3  # m: ahead of the others after a coarse start, which may be off by 0.2 m
_SETTLED, _SETTLED_TURN = 0.01, 0.002  # m and rad of the last kernel; 0.004 m where it converges, 0.03 where not
_STEPS = 3  # Gauss-Newton, per search for partners; a step costs a quarter of a search
_MAX_UPRIGHT, _MAX_FLAT = 4000, 1500  # points that look for partners; twice as many are no more precise

_OFF_GROUND = 0.6  # m
_FIT = 0.1  # m from the plane
_MIN_FIT = 0.25  # of the walls; consecutive sweeps have 0.45 to 0.75, different places up to 0.08
_MIN_HOLD = 0.015  # of the anchors; streets give 0.055 to 0.15, a tunnel or a bare plane 0


@dataclass(frozen=True)
class _Cloud:
    """A sweep made ready for registration.

    points, normals: (n, 3) float64, one per voxel. tree: small_gicp's over the points.
    anchors: indices of the points that look for a partner; few are flat, for those say nothing of the motion over
    ground and are half of a sweep.
    is_wall: (n,) bool, upright surfaces above the ground. Only they show motion over ground: the rings that a
    spinning LiDAR draws on a plane travel with it, and make standing still fit as well as the true motion does.
    """

    gicp: object
    tree: object
    points: np.ndarray
    normals: np.ndarray
    anchors: np.ndarray
    is_wall: np.ndarray


class Registration:
    """Align each sweep to the one before, by robust point-to-plane ICP on small_gicp's voxel grid, normals and tree.

    Every sweep is prepared once: the newer cloud of one call is the older one of the next. The motion of the last
    pair is the first guess for the next. Plain GICP gives every point the same say; where the cars around drive along
    it then follows them: on kitti_braking it sees 5 of 11 cm per pair. Here the kernel leaves out what does not move
    with the rest.
    num_threads: CPU threads of small_gicp. One takes 45 ms a sweep of 120,000 points, beside anything; two take less on
    idle cores and 90 ms on busy ones, where they wait for each other.
    """

    def __init__(self, num_threads: int = 1):
        try:
            import small_gicp
        except ImportError as error:
            raise ConfigError(
                'Ego motion by registration needs small_gicp, which is not installed. '
                "Run 'pip install small_gicp', or choose ego_motion: odometry, tf or none."
            ) from error
        self._gicp = small_gicp
        self._num_threads = num_threads
        self.reset()

    def reset(self) -> None:
        """Forget the last sweep and the last motion."""
        self._last_points: np.ndarray | None = None
        self._last_cloud: _Cloud | None = None
        self._last_motion: np.ndarray | None = None

    def align(self, points0: np.ndarray, points1: np.ndarray, guess: np.ndarray | None = None) -> np.ndarray:
        """Return ego0_T_ego1, (4, 4) float64: it maps points1 onto points0 where the world did not move.

        points0: (N, 3) float32 [m], older sweep; the array that was points1 in the last call is recognised.
        points1: (M, 3) float32 [m], newer sweep. NaN rows are ignored.
        guess: ego0_T_ego1 to start from; else the motion of the last pair, else none.

        Raises: EgoMotionError when there are too few points, when they do not fit each other, or when what they
        show (a bare plane, a tunnel) does not fix the motion.
        """
        if points0 is self._last_points and self._last_cloud is not None:
            cloud0, last_motion = self._last_cloud, self._last_motion
        else:
            cloud0, last_motion = self._prepare(points0, 'older'), None
        self.reset()
        cloud1 = self._prepare(points1, 'newer')
        self._last_points, self._last_cloud = points1, cloud1

        guess = last_motion if guess is None else guess
        ego0_T_ego1, trouble = (guess, 'no guess') if guess is None else self._fit(cloud0, cloud1, guess, _KERNELS)
        if trouble:
            start = self._coarse(cloud0, cloud1)
            ego0_T_ego1, trouble = self._fit(cloud0, cloud1, start, (_FIRST_KERNEL, *_KERNELS))
        if trouble:
            raise EgoMotionError(
                f'Registration of two sweeps is not to be trusted: {trouble}. Use odometry (ego_motion: odometry or '
                'tf), or check that the sweeps follow each other and come from one sensor.'
            )
        self._last_motion = ego0_T_ego1
        return ego0_T_ego1

    def _prepare(self, points: np.ndarray, name: str) -> _Cloud:
        """Raises: EgoMotionError when too little is left of the sweep."""
        with np.errstate(over='ignore'):
            radius_squared = points[:, 0] ** 2 + points[:, 1] ** 2
        kept = (radius_squared > _NEAR**2) & (radius_squared < _FAR**2) & (np.abs(points[:, 2]) < _FAR)
        near = np.take(points, np.flatnonzero(kept), axis=0).astype(np.float64)
        size = 0
        if len(near) >= _MIN_POINTS:
            gicp, tree = self._gicp.preprocess_points(near, _VOXEL, _NEIGHBORS, self._num_threads)
            size = gicp.size()
        if size < _MIN_POINTS:
            raise EgoMotionError(
                f'Registration needs {_MIN_POINTS} points between {_NEAR} m and {_FAR} m after a voxel grid of '
                f'{_VOXEL} m, but the {name} sweep has {size}. Use odometry for this sensor.'
            )
        points, normals = np.array(gicp.points()[:, :3]), np.array(gicp.normals()[:, :3])
        steepness = np.abs(normals[:, 2])
        ground = ground_height(points)
        is_wall = (steepness < 0.7) & ~(points[:, 2] < ground + _OFF_GROUND)
        upright, flat = np.flatnonzero(steepness < 0.7), np.flatnonzero(steepness > 0.9)
        anchors = [upright[:: 1 + len(upright) // _MAX_UPRIGHT], flat[:: 1 + len(flat) // _MAX_FLAT]]
        anchors = np.sort(np.concatenate(anchors))
        return _Cloud(gicp, tree, points, normals, anchors, is_wall)

    def _coarse(self, cloud0: _Cloud, cloud1: _Cloud) -> np.ndarray:
        """Return ego0_T_ego1 to a decimetre, from nothing: GICP on a coarse grid."""
        target, tree = self._gicp.preprocess_points(cloud0.gicp, _COARSE_VOXEL, _NEIGHBORS, self._num_threads)
        source, _ = self._gicp.preprocess_points(cloud1.gicp, _COARSE_VOXEL, _NEIGHBORS, self._num_threads)
        ego0_T_ego1 = np.eye(4)
        for reach in _COARSE:
            result = self._gicp.align(
                target, source, tree, ego0_T_ego1, 'GICP', reach, self._num_threads, _MAX_ITERATIONS
            )
            ego0_T_ego1 = np.array(result.T_target_source)
        return ego0_T_ego1 if np.isfinite(ego0_T_ego1).all() else np.eye(4)

    def _fit(self, cloud0: _Cloud, cloud1: _Cloud, guess: np.ndarray, kernels) -> tuple[np.ndarray, str]:
        """Return ego0_T_ego1 and why it is not to be trusted ('' when it is).

        Gauss-Newton on the distances to planes under the Geman-McClure kernel.
        """
        source, source_normals = cloud1.points[cloud1.anchors], cloud1.normals[cloud1.anchors]
        motion = np.array(guess)
        for kernel in kernels:
            before = motion
            mine, plane, normal = self._partners(cloud0, source, source_normals, motion)
            if len(mine) < _MIN_PARTNERS:
                return motion, f'only {len(mine)} of {len(source)} points have a partner within {_REACH} m'
            points = source[mine]
            for _ in range(_STEPS):
                moved = apply(motion, points)
                distance = np.einsum('ij,ij->i', moved - plane, normal)
                weight = (kernel**2 / (kernel**2 + distance**2)) ** 2
                jacobian = np.concatenate([np.cross(moved, normal), normal], axis=1)  # (n, 6): turn, shift
                weighted = jacobian * weight[:, None]
                hessian = np.einsum('ij,ik->jk', weighted, jacobian)  # einsum: a BLAS would wait for its threads
                step = np.linalg.lstsq(hessian, -np.einsum('ij,i->j', weighted, distance), rcond=1e-9)[0]
                update = np.eye(4)
                update[:3, :3] = rotation_matrix(step[:3])
                update[:3, 3] = step[3:]
                motion = update @ motion
        trouble = self._distrust(cloud1, mine, np.abs(distance) < _FIT)
        last = invert(before) @ motion
        shift, turn = np.linalg.norm(last[:3, 3]), np.linalg.norm(rotation_vector(last))
        if not trouble and not (shift < _SETTLED and turn < _SETTLED_TURN):
            trouble = f'it still moves by {shift:.3f} m and {np.degrees(turn):.2f} deg'
        return motion, trouble

    def _partners(self, cloud0: _Cloud, source: np.ndarray, source_normals: np.ndarray, motion: np.ndarray):
        """Return which source points have a partner, and the points and normals of the partners."""
        index, distance_squared = cloud0.tree.batch_nearest_neighbor_search(apply(motion, source), self._num_threads)
        index = np.asarray(index)
        normals = np.take(cloud0.normals, index, axis=0)
        parallel = np.abs(np.einsum('ik,jk,ij->i', source_normals, motion[:3, :3], normals)) > _PARALLEL
        mine = np.flatnonzero(parallel & (np.asarray(distance_squared) < _REACH**2))
        return mine, np.take(cloud0.points, index[mine], axis=0), normals[mine]

    @staticmethod
    def _distrust(cloud1: _Cloud, mine: np.ndarray, fits: np.ndarray) -> str:
        """Return why a motion is not to be trusted: walls that do not fit, or none across some direction."""
        num_walls = int(cloud1.is_wall[cloud1.anchors].sum())
        fitting = cloud1.anchors[mine[fits]]
        fitting = fitting[cloud1.is_wall[fitting]]
        if len(fitting) < _MIN_FIT * num_walls:
            return f'only {len(fitting)} of {num_walls} points of upright surfaces fit, {_MIN_FIT:.0%} are expected'
        horizontal = cloud1.normals[fitting, :2]
        hold = float(np.linalg.eigvalsh(horizontal.T @ horizontal)[0]) / len(cloud1.anchors)
        if hold < _MIN_HOLD:
            return (
                f'only {hold:.1%} of the points hold the weaker direction over ground, {_MIN_HOLD:.1%} are needed; a '
                'bare plane or a tunnel looks the same from everywhere'
            )
        return ''
