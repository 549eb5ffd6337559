# SPDX-License-Identifier: Apache-2.0
"""Register consecutive sweeps, for vehicles and bags without odometry."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.errors import ConfigError, EgoMotionError
from zeroflow_ros.lidar.ground import ground_height
from zeroflow_ros.transforms import apply, invert, rotation_matrix, rotation_vector

_NEAR, _FAR = 2.5, 80.0  # m: beyond the vehicle's own returns, which never move, and before points get sparse
# m: extent of a room. Where 95 % of the returns are nearer, _NEAR and the voxels shrink in proportion, to a tenth.
_ROOM = 8.0
_UPRIGHT = (0, 1, 5)  # roll, pitch and height in a step of rotation and translation
_NO_RETURN = 0.1  # m: nearer points are no returns
_VOXEL = 0.35  # m: keeps 18,000 of 120,000 points; 0.25 m is not closer to odometry
_NEIGHBORS = 10  # for normals
_MIN_POINTS = 500  # after the voxel grid
_MIN_CORRESPONDENCES = 100

_COARSE = (5.0, 2.0)  # m: search radii without an initial guess; 5 m is 50 m/s over 0.1 s
_COARSE_VOXEL = 1.0  # m: 3,000 points
_MAX_ITERATIONS = 10
_REACH = 0.5  # m: radius of the fine search; the constant-velocity guess is off by at most 0.1 m
_PARALLEL = 0.9  # least cosine between the normals of two corresponding points
# m: the kernel narrows, so that points moving more than a few centimetres against the background lose their weight.
_KERNELS = (0.1, 0.05, 0.03)
_FIRST_KERNEL = 0.3  # m: used first after the coarse alignment, which may be off by 0.2 m
_CONVERGED, _CONVERGED_ROTATION = 0.01, 0.002  # m, rad: largest last update; 0.004 m if it converges, else 0.03
_STEPS = 3  # Gauss-Newton steps per correspondence search; a step costs a quarter of a search
_MAX_UPRIGHT, _MAX_FLAT = 4000, 1500  # points used for correspondences; twice as many are not more precise

_OFF_GROUND = 0.6  # m
_INLIER = 0.1  # m from the plane
_MIN_INLIERS = 0.25  # of the wall points; consecutive sweeps have 0.45 to 0.75, different places up to 0.08
_MIN_CONSTRAINT = 0.015  # of the anchors; streets give 0.055 to 0.15, a tunnel or a bare plane 0
# A weak constraint must come from surfaces that are seen as such: where rings are sparse, the neighbours of a point lie
# on two walls of a corridor or along one ring, and its normal then points along the corridor. Neighbours of a surface
# spread by up to _COMPACT; fewer than _FEW_POINTS must lie on a plane, too.
_WEAK_CONSTRAINT, _FEW_POINTS = 0.08, 50
_COMPACT = 0.65  # m, standard deviation along the longest axis; 0.4 m on a wall
_FLAT = 0.1  # most smallest variance of the neighbours of a flat surface, of their middle one
_FINEST = 2  # the voxels are halved as often where a sweep has few points
# Where fewer points than this share are horizontal surfaces, as of few beams in a room, height, roll and pitch are
# held by an assumption of this weight per point: they do not change.
_HORIZONTAL, _PRIOR = 0.05, 0.1


@dataclass(frozen=True)
class _Cloud:
    """A sweep prepared for registration.

    points, normals: (n, 3) float64, one per voxel. tree: small_gicp's search tree of the points.
    anchors: indices of the points used for correspondences; few are horizontal surfaces, which are half of a sweep and
    do not constrain horizontal motion.
    is_wall: (n,) bool, upright surfaces above the ground. Only they constrain horizontal motion: the rings of a
    spinning LiDAR on a plane travel with it, so zero motion fits them as well as the true motion.
    scale: size of the scene, 1 from a room of 8 m upwards; see `_scale`.
    """

    gicp: object
    tree: object
    points: np.ndarray
    normals: np.ndarray
    anchors: np.ndarray
    is_wall: np.ndarray
    scale: float


class Registration:
    """Align each sweep to the previous one by robust point-to-plane ICP on small_gicp's voxel grid, normals and tree.

    Every sweep is prepared once: the newer cloud of one call is the older one of the next. The motion of the last pair
    is the initial guess for the next. Plain GICP weights all points equally and follows surrounding cars that drive
    along: on kitti_braking it finds 5 of 11 cm per pair. Here the robust kernel suppresses points that do not move with
    the background.
    num_threads: CPU threads of small_gicp. One takes 45 ms for a sweep of 120,000 points, also on a busy machine; two
    take less on idle cores but 90 ms on busy ones, where they wait for each other.
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
        """Return ego0_T_ego1, (4, 4) float64: it maps the static points of points1 onto points0.

        points0: (N, 3) float32 [m], older sweep; the array that was points1 in the last call is recognised.
        points1: (M, 3) float32 [m], newer sweep. NaN rows are ignored.
        guess: initial ego0_T_ego1; default: the motion of the last pair, if any.

        Raises: EgoMotionError when there are too few points, when the sweeps do not match, or when the scene (a bare
        plane, a tunnel) does not constrain the motion.
        """
        if points0 is self._last_points and self._last_cloud is not None:
            cloud0, last_motion = self._last_cloud, self._last_motion
        else:
            cloud0, last_motion = self._prepare(points0, 'older'), None
        self.reset()
        cloud1 = self._prepare(points1, 'newer')
        self._last_points, self._last_cloud = points1, cloud1

        guess = last_motion if guess is None else guess
        ego0_T_ego1, problem = (
            (guess, 'no guess') if guess is None else self._align_fine(cloud0, cloud1, guess, _KERNELS)
        )
        if problem:
            start = self._align_coarse(cloud0, cloud1)
            ego0_T_ego1, problem = self._align_fine(cloud0, cloud1, start, (_FIRST_KERNEL, *_KERNELS))
        if problem:
            raise EgoMotionError(
                f'Registration of two sweeps is rejected: {problem}. Use odometry (ego_motion: odometry or '
                'tf), or check that the sweeps follow each other and come from one sensor.'
            )
        self._last_motion = ego0_T_ego1
        return ego0_T_ego1

    def _prepare(self, points: np.ndarray, name: str) -> _Cloud:
        """Downsample a sweep and compute normals.

        Raises: EgoMotionError when too few points are left.
        """
        with np.errstate(over='ignore'):
            radius_squared = points[:, 0] ** 2 + points[:, 1] ** 2
        scale = _scale(radius_squared)
        near_limit, voxel = _NEAR * scale, _VOXEL * scale
        kept = (radius_squared > near_limit**2) & (radius_squared < _FAR**2) & (np.abs(points[:, 2]) < _FAR)
        near = np.take(points, np.flatnonzero(kept), axis=0).astype(np.float64)
        size = 0
        for halved in range(1 + _FINEST if len(near) >= _MIN_POINTS else 0):
            voxel = _VOXEL * scale / 2**halved
            gicp, tree = self._gicp.preprocess_points(near, voxel, _NEIGHBORS, self._num_threads)
            size = gicp.size()
            if size >= _MIN_POINTS:
                break
        if size < _MIN_POINTS:
            raise EgoMotionError(
                f'Registration needs {_MIN_POINTS} points between {near_limit:.1f} m and {_FAR} m after a voxel grid '
                f'of {voxel:.2f} m, but the {name} sweep has {size}. Use odometry for this sensor.'
            )
        points, normals = np.array(gicp.points()[:, :3]), np.array(gicp.normals()[:, :3])
        steepness = np.abs(normals[:, 2])
        ground = ground_height(points)
        is_wall = (steepness < 0.7) & ~(points[:, 2] < ground + _OFF_GROUND)
        upright, flat = np.flatnonzero(steepness < 0.7), np.flatnonzero(steepness > 0.9)
        anchors = [upright[:: 1 + len(upright) // _MAX_UPRIGHT], flat[:: 1 + len(flat) // _MAX_FLAT]]
        anchors = np.sort(np.concatenate(anchors))
        return _Cloud(gicp, tree, points, normals, anchors, is_wall, scale)

    def _align_coarse(self, cloud0: _Cloud, cloud1: _Cloud) -> np.ndarray:
        """Return ego0_T_ego1 to within 0.1 m without an initial guess, by GICP on a coarse grid."""
        target, tree = self._gicp.preprocess_points(
            cloud0.gicp, _COARSE_VOXEL * cloud0.scale, _NEIGHBORS, self._num_threads
        )
        source, _ = self._gicp.preprocess_points(
            cloud1.gicp, _COARSE_VOXEL * cloud1.scale, _NEIGHBORS, self._num_threads
        )
        ego0_T_ego1 = np.eye(4)
        for reach in _COARSE:
            result = self._gicp.align(
                target, source, tree, ego0_T_ego1, 'GICP', reach, self._num_threads, _MAX_ITERATIONS
            )
            ego0_T_ego1 = np.array(result.T_target_source)
        return ego0_T_ego1 if np.isfinite(ego0_T_ego1).all() else np.eye(4)

    def _align_fine(self, cloud0: _Cloud, cloud1: _Cloud, guess: np.ndarray, kernels) -> tuple[np.ndarray, str]:
        """Return ego0_T_ego1 and the reason to reject it ('' when accepted).

        Gauss-Newton on point-to-plane distances with the Geman-McClure kernel.
        """
        source, source_normals = cloud1.points[cloud1.anchors], cloud1.normals[cloud1.anchors]
        motion = np.array(guess)
        for kernel in kernels:
            before = motion
            matched, plane, normal = self._correspondences(cloud0, source, source_normals, motion)
            if len(matched) < _MIN_CORRESPONDENCES:
                return motion, f'only {len(matched)} of {len(source)} points have a correspondence within {_REACH} m'
            points = source[matched]
            is_upright_only = np.count_nonzero(np.abs(normal[:, 2]) > 0.7) < _HORIZONTAL * len(normal)
            for _ in range(_STEPS):
                moved = apply(motion, points)
                distance = np.einsum('ij,ij->i', moved - plane, normal)
                weight = (kernel**2 / (kernel**2 + distance**2)) ** 2
                jacobian = np.concatenate([np.cross(moved, normal), normal], axis=1)  # (n, 6): rotation, translation
                weighted = jacobian * weight[:, None]
                hessian = np.einsum('ij,ik->jk', weighted, jacobian)  # einsum: BLAS threads would wait for each other
                if is_upright_only:
                    hessian[_UPRIGHT, _UPRIGHT] += _PRIOR * weight.sum()
                step = np.linalg.lstsq(hessian, -np.einsum('ij,i->j', weighted, distance), rcond=1e-9)[0]
                update = np.eye(4)
                update[:3, :3] = rotation_matrix(step[:3])
                update[:3, 3] = step[3:]
                motion = update @ motion
        problem = self._rejection_reason(cloud1, matched, np.abs(distance) < _INLIER)
        max_rotation = _CONVERGED_ROTATION / cloud1.scale  # the same displacement of the walls
        last = invert(before) @ motion
        translation, rotation = np.linalg.norm(last[:3, 3]), np.linalg.norm(rotation_vector(last))
        if not problem and not (translation < _CONVERGED and rotation < max_rotation):
            problem = f'it does not converge, its last update is {translation:.3f} m and {np.degrees(rotation):.2f} deg'
        return motion, problem

    def _correspondences(self, cloud0: _Cloud, source: np.ndarray, source_normals: np.ndarray, motion: np.ndarray):
        """Return the indices of matched source points, and the points and normals they are matched to."""
        index, distance_squared = cloud0.tree.batch_nearest_neighbor_search(apply(motion, source), self._num_threads)
        index = np.asarray(index)
        normals = np.take(cloud0.normals, index, axis=0)
        parallel = np.abs(np.einsum('ik,jk,ij->i', source_normals, motion[:3, :3], normals)) > _PARALLEL
        matched = np.flatnonzero(parallel & (np.asarray(distance_squared) < _REACH**2))
        return matched, np.take(cloud0.points, index[matched], axis=0), normals[matched]

    @staticmethod
    def _rejection_reason(cloud1: _Cloud, matched: np.ndarray, fits: np.ndarray) -> str:
        """Return the reason to reject a motion (too few wall inliers, or an unconstrained direction), else ''."""
        num_walls = int(cloud1.is_wall[cloud1.anchors].sum())
        fitting = cloud1.anchors[matched[fits]]
        fitting = fitting[cloud1.is_wall[fitting]]
        if len(fitting) < _MIN_INLIERS * num_walls:
            return f'only {len(fitting)} of {num_walls} points of upright surfaces fit, {_MIN_INLIERS:.0%} are expected'
        horizontal = cloud1.normals[fitting, :2]
        values, directions = np.linalg.eigh(horizontal.T @ horizontal)
        constraint = float(values[0]) / len(cloud1.anchors)
        if _MIN_CONSTRAINT <= constraint < _WEAK_CONSTRAINT:
            along = horizontal @ directions[:, 0]
            facing = np.flatnonzero(np.abs(along) > 0.5)
            facing = facing[_is_surface(cloud1, fitting[facing], must_be_flat=len(facing) < _FEW_POINTS)]
            constraint = float((along[facing] ** 2).sum()) / len(cloud1.anchors)
        if constraint < _MIN_CONSTRAINT:
            return (
                f'only {constraint:.1%} of the points constrain one horizontal direction, {_MIN_CONSTRAINT:.1%} are '
                'needed; a bare plane or a tunnel looks the same from everywhere'
            )
        return ''


def _scale(radius_squared: np.ndarray) -> float:
    """Return the size of the scene relative to a room of 8 m, at most 1, from the squared distances of a sweep."""
    sample = radius_squared[:: 1 + len(radius_squared) // 4096]
    sample = np.sort(sample[sample > _NO_RETURN**2])  # NaN is not greater
    if not len(sample):
        return 1.0
    return float(np.clip(np.sqrt(sample[int(0.95 * (len(sample) - 1))]) / _ROOM, 0.1, 1.0))


def _is_surface(cloud: _Cloud, indices: np.ndarray, *, must_be_flat: bool) -> np.ndarray:
    """Return (n,) bool: whether the neighbours of the points of a cloud with these indices lie on one surface."""
    if not len(indices):
        return np.zeros(0, bool)
    neighbours, _ = cloud.tree.batch_knn_search(cloud.points[indices], _NEIGHBORS)
    near = cloud.points[np.asarray(neighbours).astype(np.int64)]  # (n, _NEIGHBORS, 3)
    near = near - near.mean(axis=1, keepdims=True)
    variances = np.linalg.eigvalsh(np.einsum('nki,nkj->nij', near, near) / _NEIGHBORS)
    is_compact = variances[:, 2] < (_COMPACT * cloud.scale) ** 2
    return is_compact & (variances[:, 0] < _FLAT * variances[:, 1]) if must_be_flat else is_compact
