# SPDX-License-Identifier: Apache-2.0
"""Rigid motion between two stereo frames from disparity and optical flow: of the camera, or of one object."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, EgoMotionError

_SAMPLE = 3  # pixels of a hypothesis: the fewest that fix a rigid motion
_BLOCK = 30_000  # pixels computed at a time: 120 kB stay in the cache, and are reused by malloc
_HYPOTHESIS_STEPS = 4  # Gauss-Newton steps of a hypothesis


@dataclass(frozen=True)
class CameraMotionConfig:
    """Settings of the estimate of ego motion.

    num_pixels: pixels used, chosen at random. min_pixels: fewer than this give no motion. num_hypotheses: motions
    of three random pixels that are tried. sigmas: residuals below this many standard deviations agree with a motion.
    flow_sigma, disparity_sigma: standard deviations of what is measured [px]. min_share: smallest share of the pixels
    that must agree with the ego motion; below 0.5 the static scene may be the minority. sure_share: with this share, a
    motion near the start that is given is taken without a search. max_translation, max_rotation: largest motion that is
    plausible [m, rad]. given_share: smallest share of the pixels that must agree
    with an ego motion that is given, relative to those that agree with the motion that fits best.
    max_correction, max_turn: a given motion is refined by at most this [m, rad]. seed: of the random choice.
    """

    num_pixels: int = 1000
    min_pixels: int = 100
    num_hypotheses: int = 48
    sigmas: float = 3.0
    flow_sigma: float = 0.7
    disparity_sigma: float = 0.7
    min_share: float = 0.5
    sure_share: float = 0.7
    max_second: float = 0.85
    max_translation: float = 6.0
    max_rotation: float = 0.6
    given_share: float = 0.5
    max_correction: float = 0.3
    max_turn: float = 0.02
    seed: int = 0

    def __post_init__(self):
        for name in ('num_pixels', 'min_pixels', 'num_hypotheses', 'sigmas', 'flow_sigma', 'disparity_sigma',
                     'max_translation', 'max_rotation'):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} of the camera motion must be above 0, got {getattr(self, name)}.')
        for name in ('min_share', 'sure_share', 'max_second', 'given_share'):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f'{name} of the camera motion must be in (0, 1], got {getattr(self, name)}.')


@dataclass(frozen=True)
class CameraMotion:
    """A rigid motion that was fitted to pixels.

    other_T_reference: (4, 4), maps points of the reference frame to the other frame, both left optical frames.
    share: share of the pixels that agree with it. covariance: (6, 6) of rotation [rad] and translation [m].
    """

    other_T_reference: np.ndarray
    share: float
    covariance: np.ndarray


@dataclass(frozen=True)
class MatchedPixels:
    """Pixels of the reference frame that were found in the other frame.

    u, v, disparity, flow_u, flow_v: (N,) float [px]. other_disparity: (N,) [px], NaN where not known, or None.
    flow_sigma, disparity_sigma: standard deviations, one for all or (N,) [px].
    """

    u: np.ndarray
    v: np.ndarray
    disparity: np.ndarray
    flow_u: np.ndarray
    flow_v: np.ndarray
    other_disparity: np.ndarray | None = None
    flow_sigma: float | np.ndarray = 0.7
    disparity_sigma: float | np.ndarray = 0.7

    @staticmethod
    def at(rows, columns, disparity, flow, other_disparity=None, *, flow_sigma=0.7, disparity_sigma=0.7):
        """Return the pixels (rows, columns) of maps (H, W) and (H, W, 2)."""
        return MatchedPixels(
            columns.astype(np.float64), rows.astype(np.float64), disparity[rows, columns].astype(np.float64),
            flow[rows, columns, 0].astype(np.float64), flow[rows, columns, 1].astype(np.float64),
            None if other_disparity is None else other_disparity[rows, columns].astype(np.float64),
            flow_sigma, disparity_sigma,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.u)

    def rows(self, chosen: np.ndarray) -> 'MatchedPixels':
        """Return some of the pixels: an index or a mask (N,)."""

        def of(values):
            return values[chosen] if isinstance(values, np.ndarray) else values

        return MatchedPixels(
            of(self.u), of(self.v), of(self.disparity), of(self.flow_u), of(self.flow_v), of(self.other_disparity),
            of(self.flow_sigma), of(self.disparity_sigma),
        )  # fmt: skip


def rigid_flow(
    camera: StereoCamera, disparity: np.ndarray, other_T_reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow (H, W, 2) and the other disparity (H, W) of a scene that moves as one body, float32 [px].

    disparity: (H, W) [px]. NaN where the disparity is, and behind the other camera.
    """
    if numba_support.numba_kernels is None:
        flow, other_disparity, _ = rigid_flow_rate(camera, disparity, other_T_reference, with_rate=False)
        return flow, other_disparity
    flow, other_disparity = np.empty((*disparity.shape, 2), np.float32), np.empty(disparity.shape, np.float32)
    numba_support.numba_kernels.rigid_flow(
        np.ascontiguousarray(disparity, np.float32), *pixel_motion(camera, other_T_reference),
        np.float32(camera.disparity_at_infinity), flow, other_disparity,
    )  # fmt: skip
    return flow, other_disparity


def pixel_motion(camera: StereoCamera, other_T_reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return A (3, 3) and b (3,) float32: A (u, v, 1) + b parallax is a multiple of the pixel (u, v, 1) moved.

    With z the depth and K the camera matrix, the other camera sees K (R z ray + t). Divided by z, this is
    K R K^-1 (u, v, 1) + K t parallax / (fx * baseline): linear in the pixel and in the parallax. Parallax is disparity
    minus that of infinity; the other parallax is it divided by the third component.
    """
    K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    turned = K @ other_T_reference[:3, :3] @ np.linalg.inv(K)
    shift = K @ other_T_reference[:3, 3] / (camera.fx * camera.baseline)
    return turned.astype(np.float32), shift.astype(np.float32)


def rigid_flow_rate(
    camera: StereoCamera, disparity: np.ndarray, other_T_reference: np.ndarray, *, with_rate: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return flow and other disparity as `rigid_flow`, and the squared change of the flow per px of disparity."""
    turned, shift = pixel_motion(camera, other_T_reference)
    height, width = disparity.shape
    u = np.arange(width, dtype=np.float32)
    at_infinity = np.float32(camera.disparity_at_infinity)
    flow, other_disparity = np.empty((height, width, 2), np.float32), np.empty((height, width), np.float32)
    rate = np.zeros((height, width), np.float32) if with_rate else None
    step = max(1, _BLOCK // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        v = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        parallax = np.subtract(disparity[rows], at_infinity, dtype=np.float32)

        def seen(axis, parallax=parallax, v=v):
            plane = parallax * shift[axis]
            plane += u * turned[axis, 0]
            plane += v * turned[axis, 1] + turned[axis, 2]
            return plane

        scale = seen(2)
        scale[scale < 1e-3] = np.nan
        np.divide(np.float32(1), scale, out=scale)
        for axis, place in ((0, u), (1, v)):
            target = seen(axis)
            target *= scale
            np.subtract(target, place, out=flow[rows, :, axis])
            if with_rate:
                target *= -shift[2]
                target += shift[axis]
                target *= scale
                target *= target
                rate[rows] += target
        np.multiply(scale, parallax, out=other_disparity[rows])
        if at_infinity:
            other_disparity[rows] += at_infinity
    return flow, other_disparity, rate


def moved_pixels(
    camera: StereoCamera, columns: np.ndarray, rows: np.ndarray, disparity: np.ndarray, other_T_reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow (N, 2) and the other disparity (N,) of single pixels that move as one body, float32 [px]."""
    motion = other_T_reference.astype(np.float32)
    inverse_depth = (disparity - camera.disparity_at_infinity) / (camera.fx * camera.baseline)
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(rows))])
    moved = motion[:3, :3] @ rays.astype(np.float32) + motion[:3, 3:] * inverse_depth
    with np.errstate(divide='ignore', invalid='ignore'):
        scale = np.where(moved[2] > 1e-3, 1 / moved[2], np.nan)
    u, v = camera.fx * moved[0] * scale + camera.cx, camera.fy * moved[1] * scale + camera.cy
    other_disparity = (disparity - camera.disparity_at_infinity) * scale + camera.disparity_at_infinity
    return np.stack([u - columns, v - rows], axis=-1).astype(np.float32), other_disparity.astype(np.float32)


def estimate_camera_motion(
    camera: StereoCamera, disparity: np.ndarray, flow: np.ndarray, valid: np.ndarray, *,
    other_disparity: np.ndarray | None = None, start: np.ndarray | None = None,
    config: CameraMotionConfig = CameraMotionConfig(),
) -> CameraMotion:  # fmt: skip
    """Return the ego motion that most pixels agree with.

    disparity: (H, W), flow: (H, W, 2), other_disparity: (H, W) [px], of the size of `camera`. valid: (H, W) bool, where
    disparity and flow are trusted. start: (4, 4), other_T_reference of a neighbouring pair; it is only tried first.

    Raises: EgoMotionError when too few pixels are valid, fewer than `min_share` of them agree with one motion, about as
    many agree with a second one, or the motion is implausible.
    """
    pixels = spread_pixels(disparity, flow, valid, other_disparity, config)
    motion, share, covariance = np.eye(4), 0.0, np.zeros((6, 6))
    if start is not None:
        motion, covariance = refine_motion(camera, pixels, start, loose=10.0)
        share = float(agreement(camera, pixels, motion, config.sigmas).mean())
    if share < config.sure_share:
        starts = [np.eye(4)] if start is None else [motion, np.eye(4)]
        motion, share, covariance = fit_motion(camera, pixels, starts, config)
    if share < config.min_share:
        raise EgoMotionError(
            f'Ego motion from images needs one motion that at least {config.min_share:.0%} of the pixels agree with; '
            f'the best has {share:.0%}. Objects that move may fill the image, or the images are not rectified: use '
            'odometry or tf as the source of ego motion.'
        )
    second = _second_share(camera, pixels, motion, config) if share < config.sure_share else 0.0
    if second > config.max_second * share:
        raise EgoMotionError(
            f'Ego motion from images is not clear: {share:.0%} of the pixels agree with one motion, {second:.0%} with '
            'another. Objects that move may fill the image: use odometry or tf as the source of ego motion.'
        )
    translation, angle = np.linalg.norm(motion[:3, 3]), np.linalg.norm(transforms.rotation_vector(motion))
    if translation > config.max_translation or angle > config.max_rotation:
        raise EgoMotionError(
            f'Ego motion from images is at most {config.max_translation:g} m and {config.max_rotation:g} rad a pair; '
            f'found {translation:.2f} m and {angle:.2f} rad. Check baseline, frame rate and the order of the images.'
        )
    return CameraMotion(motion, share, covariance)


def _second_share(camera, pixels, motion, config: CameraMotionConfig) -> float:
    """Return the share of all pixels that agree with the best motion of those that do not agree with `motion`."""
    rest = np.flatnonzero(~agreement(camera, pixels, motion, config.sigmas))
    if len(rest) < _SAMPLE * 10:
        return 0.0
    second, _, _ = fit_motion(camera, pixels.rows(rest), [np.eye(4)], config)
    return float(agreement(camera, pixels, second, config.sigmas).mean())


def check_camera_motion(
    camera: StereoCamera, disparity: np.ndarray, flow: np.ndarray, valid: np.ndarray, other_T_reference: np.ndarray, *,
    other_disparity: np.ndarray | None = None, config: CameraMotionConfig = CameraMotionConfig(),
) -> CameraMotion:  # fmt: skip
    """Return a given ego motion, refined to the pixels that agree with it; arguments as `estimate_camera_motion`.

    Where the image shows too little (darkness, no texture), the given motion is returned as it is, with share 0.

    Raises: EgoMotionError when the images contradict the given motion: clearly more pixels agree with another one.
    """
    if not np.isfinite(other_T_reference).all():
        raise EgoMotionError('The ego motion that is given is not finite. Check the source of odometry.')
    unchecked = CameraMotion(np.array(other_T_reference, np.float64), 0.0, np.zeros((6, 6)))
    try:
        pixels = spread_pixels(disparity, flow, valid, other_disparity, config)
    except EgoMotionError:
        return unchecked
    # Odometry is some centimetres off, which near pixels show: the nearby motion that fits best is what is checked.
    refined, covariance = refine_motion(camera, pixels, other_T_reference, loose=10.0)
    difference = transforms.invert(unchecked.other_T_reference) @ refined
    near = np.linalg.norm(difference[:3, 3]) < config.max_correction
    near = near and np.linalg.norm(transforms.rotation_vector(difference)) < config.max_turn
    candidate = refined if near else unchecked.other_T_reference
    share = agreement(camera, pixels, candidate, config.sigmas).mean()
    best, best_share, _ = fit_motion(camera, pixels, [candidate, np.eye(4)], config)
    if best_share >= config.min_share and share < config.given_share * best_share:
        moved, given = np.linalg.norm(best[:3, 3]), np.linalg.norm(other_T_reference[:3, 3])
        raise EgoMotionError(
            f'The ego motion that is given ({given:.2f} m) agrees with {share:.0%} of the pixels, another '
            f'({moved:.2f} m) with {best_share:.0%}. Check the odometry, its stamps, and how the camera is mounted.'
        )
    return CameraMotion(candidate, float(share), covariance) if near else unchecked


def spread_pixels(disparity, flow, valid, other_disparity, config: CameraMotionConfig) -> MatchedPixels:
    """Return `num_pixels` valid pixels, chosen at random.

    Raises: EgoMotionError when fewer than `min_pixels` are valid.
    """
    rows, columns = np.nonzero(valid)
    if len(rows) < config.min_pixels:
        raise EgoMotionError(
            f'Ego motion from images needs at least {config.min_pixels} pixels with disparity and flow, found '
            f'{len(rows)}. The images are dark, without texture, or do not belong together: check both cameras, or '
            'use odometry or tf as the source of ego motion.'
        )
    if len(rows) > config.num_pixels:
        chosen = np.random.default_rng(config.seed).integers(len(rows), size=config.num_pixels)
        rows, columns = rows[chosen], columns[chosen]
    return MatchedPixels.at(
        rows, columns, disparity, flow, other_disparity,
        flow_sigma=config.flow_sigma, disparity_sigma=config.disparity_sigma,
    )  # fmt: skip


def fit_motion(
    camera: StereoCamera, pixels: MatchedPixels, starts, config: CameraMotionConfig
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return (other_T_reference, share of the pixels that agree, covariance (6, 6)) of the best rigid motion.

    starts: motions (4, 4) that are tried as they are; the first is where random hypotheses start.
    """
    rng = np.random.default_rng(config.seed)
    picks = rng.integers(len(pixels), size=(config.num_hypotheses, _SAMPLE))
    motions = np.concatenate([np.stack(starts), _fit_samples(camera, pixels, picks, starts[0])])
    cut = config.sigmas**2
    some = pixels.rows(np.arange(0, len(pixels), 1 + len(pixels) // 300))
    cost = np.minimum(_squared_residuals(camera, some, motions), cut).mean(axis=1)
    best = motions[cost.argmin()]
    refined, covariance = refine_motion(camera, pixels, best, loose=2.0)
    return refined, float(agreement(camera, pixels, refined, config.sigmas).mean()), covariance


def agreement(camera: StereoCamera, pixels: MatchedPixels, motions: np.ndarray, sigmas: float) -> np.ndarray:
    """Return which pixels agree with a motion (4, 4), (N,), or with K motions (K, 4, 4), (K, N).

    A pixel agrees when its residual is below so many standard deviations.
    """
    is_one = motions.ndim == 2
    agrees = _squared_residuals(camera, pixels, motions[None] if is_one else motions) < sigmas**2
    return agrees[0] if is_one else agrees


def refine_motion(
    camera: StereoCamera, pixels: MatchedPixels, start: np.ndarray, *, loose: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion (4, 4) near `start` that fits pixels (N,) best, robustly, and its covariance (6, 6).

    loose: the robust kernel starts at so many times its last width, which is one standard deviation.
    """
    motions, covariances = refine_motions(camera, pixels, np.asarray(start)[None], loose=loose)
    return motions[0], covariances[0]


def refine_motions(
    camera: StereoCamera, pixels: MatchedPixels, starts: np.ndarray, *, loose: float = 1.0, steps: int = 12,
    rotation_sigma: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the motions (K, 4, 4) near `starts` that fit K sets of pixels (K, N), and their covariances (K, 6, 6).

    loose: as in `refine_motion`. steps: most iterations. rotation_sigma: standard deviation of the rotation about that
    of the start [rad], for objects so small that images hardly show it; None: any rotation is as likely.
    """
    motions = np.array(starts, np.float64)
    prior = np.zeros(6)
    prior[:3] = 0 if rotation_sigma is None else 1 / rotation_sigma**2
    turned = np.zeros((len(motions), 6))
    for step in range(steps):
        width = max(1.0, loose * 0.45**step)
        residual, jacobian = _residuals(camera, pixels, motions)
        squared = np.einsum('bnk,bnk->bn', residual, residual)
        weight = 1 / (1 + squared / (2 * width**2)) ** 2  # Geman-McClure
        normal, gradient = _normal_equations(np.where(np.isfinite(weight), weight, 0), residual, jacobian)
        normal += np.diag(prior + 1e-6)
        change = -np.linalg.solve(normal, (gradient + prior * turned)[..., None])[..., 0]
        turned += change
        motions = _moved(motions, change)
        if step >= 2 and width == 1.0 and np.abs(change).max() < 1e-4:
            break
    return motions, np.linalg.inv(normal)


def _fit_samples(camera, pixels, picks, start):
    """Return motions (K, 4, 4), each fitted to few pixels: picks (K, S)."""
    motions = np.repeat(np.asarray(start, np.float64)[None], len(picks), axis=0)
    sample = pixels.rows(picks)
    for _ in range(_HYPOTHESIS_STEPS):
        residual, jacobian = _residuals(camera, sample, motions)
        normal, gradient = _normal_equations(np.ones(picks.shape), residual, jacobian)
        # Pixels that are far or on one line leave directions free: damping keeps the start there.
        normal += np.eye(6) * (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-9)
        change = -np.linalg.solve(normal, gradient[..., None])[..., 0]
        motions = _moved(motions, np.clip(change, -1.0, 1.0))
    return motions


def _normal_equations(weight, residual, jacobian):
    """Return J^T W J (K, 6, 6) and J^T W r (K, 6); pixels whose residual is NaN count nothing."""
    count = jacobian.shape[1] * jacobian.shape[2]
    J = np.nan_to_num(jacobian).reshape(len(jacobian), count, 6)
    weighted = (J * np.repeat(weight, jacobian.shape[2], axis=1)[..., None]).transpose(0, 2, 1)
    return weighted @ J, (weighted @ np.nan_to_num(residual).reshape(len(J), count, 1))[..., 0]


def _moved(motions, change):
    """Return motions (K, 4, 4) after small rotations and translations: change (K, 6)."""
    out = motions.copy()
    out[:, :3, :3] = _rotations(change[:, :3]) @ motions[:, :3, :3]
    out[:, :3, 3] += change[:, 3:]
    return out


def _rotations(vectors):
    """Return the rotations (K, 3, 3) about vectors (K, 3) by their lengths [rad] (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    cross = np.zeros((len(vectors), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = vectors
    cross[:, [1, 2, 0], [2, 0, 1]] = -vectors
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * cross @ cross


def _squared_residuals(camera, pixels, motions) -> np.ndarray:
    """Return (K, N) squared residuals in standard deviations; infinite where a point is behind the camera."""
    residual, _ = _residuals(camera, pixels, motions, with_jacobian=False)
    squared = np.einsum('bnk,bnk->bn', residual, residual)
    return np.where(np.isfinite(squared), squared, np.inf)


def _residuals(camera, pixels, motions, with_jacobian=True):
    """Return residuals (K, N, 2 or 3) of flow u, v (and other disparity), in standard deviations, and their Jacobian.

    motions: (K, 4, 4). Pixels are (N,) for all motions, or (K, N). Jacobian: (K, N, 2 or 3, 6) by rotation (applied
    after the motion's own) and translation. The standard deviations are those of the measured flow and of the
    predicted one, whose error is that of the disparity.
    """
    u, v = np.atleast_2d(pixels.u), np.atleast_2d(pixels.v)
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    per_pixel = camera.fx * camera.baseline
    inverse_depth = (np.atleast_2d(pixels.disparity) - camera.disparity_at_infinity) / per_pixel
    R, t = motions[:, :3, :3, None], motions[:, :3, 3, None]
    # Rays (K, 3, N) of the rotated points, and the points times their inverse depth in the reference frame.
    ray = R[:, :, 0] * x[:, None] + R[:, :, 1] * y[:, None] + R[:, :, 2]
    point = ray + t * inverse_depth[:, None]
    with np.errstate(divide='ignore', invalid='ignore'):
        scale = np.where(point[:, 2] > 1e-3, 1 / point[:, 2], np.nan)
    px, py = point[:, 0] * scale, point[:, 1] * scale
    q = inverse_depth * scale  # inverse depth in the other frame
    # How the predicted pixel changes with the disparity of the reference.
    du = camera.fx * scale * (t[:, 0] - px * t[:, 2]) / per_pixel
    dv = camera.fy * scale * (t[:, 1] - py * t[:, 2]) / per_pixel
    disparity_variance = np.square(pixels.disparity_sigma)
    flow_variance = np.square(pixels.flow_sigma)
    sigma_u = np.sqrt(flow_variance + du**2 * disparity_variance)
    sigma_v = np.sqrt(flow_variance + dv**2 * disparity_variance)
    parts = [
        (camera.fx * (px - x) - pixels.flow_u) / sigma_u,
        (camera.fy * (py - y) - pixels.flow_v) / sigma_v,
    ]
    sigma_d = None
    if pixels.other_disparity is not None:
        # scale - q t_z: derivative of q by the inverse depth, over the same factor as the disparity.
        by_disparity = scale * (1 - q * t[:, 2])
        sigma_d = np.sqrt(disparity_variance * (1 + by_disparity**2))
        off = (per_pixel * q + camera.disparity_at_infinity - pixels.other_disparity) / sigma_d
        parts.append(np.where(np.isnan(off) & np.isfinite(q), 0.0, off))  # not known: no evidence
    residual = np.stack(parts, axis=-1)
    if not with_jacobian:
        return residual, None
    # Derivatives of px, py and ln(q) by the rotation of the moved ray and by the translation. Rotation acts on the ray
    # only: a rotation about the other camera would also turn t, which the translation takes up.
    rx, ry, rz = (ray[:, axis] * scale for axis in range(3))
    by_u, by_v = camera.fx / sigma_u, camera.fy / sigma_v
    jacobian = np.zeros((*residual.shape, 6))
    jacobian[..., 0, 0] = -by_u * px * ry
    jacobian[..., 0, 1] = by_u * (rz + px * rx)
    jacobian[..., 0, 2] = -by_u * ry
    jacobian[..., 0, 3] = by_u * q
    jacobian[..., 0, 5] = -by_u * q * px
    jacobian[..., 1, 0] = -by_v * (rz + py * ry)
    jacobian[..., 1, 1] = by_v * py * rx
    jacobian[..., 1, 2] = by_v * rx
    jacobian[..., 1, 4] = by_v * q
    jacobian[..., 1, 5] = -by_v * q * py
    if sigma_d is not None:
        by_d = np.where(np.isfinite(pixels.other_disparity), per_pixel * q / sigma_d, 0.0)
        jacobian[..., 2, 0] = -by_d * ry
        jacobian[..., 2, 1] = by_d * rx
        jacobian[..., 2, 5] = -by_d * q
    return residual, jacobian
