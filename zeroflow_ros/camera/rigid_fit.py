# SPDX-License-Identifier: Apache-2.0
"""Fit rigid motions to pixels with disparity and optical flow: random hypotheses, and robust Gauss-Newton steps."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.stereo import StereoCamera

_SAMPLE = 3  # pixels of a hypothesis: the fewest that fix a rigid motion
_HYPOTHESIS_STEPS = 4  # Gauss-Newton steps of a hypothesis


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

    def places(self) -> np.ndarray:
        """Return u, v, disparity, flow_u and flow_v as one array (5, N)."""
        return np.stack([self.u, self.v, self.disparity, self.flow_u, self.flow_v])

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


def fit_motion(
    camera: StereoCamera, pixels: MatchedPixels, starts, *, num_hypotheses: int, sigmas: float, seed: int = 0
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return (other_T_reference, share of the pixels that agree, covariance (6, 6)) of the best rigid motion.

    starts: motions (4, 4) that are tried as they are; the first is where random hypotheses start.
    num_hypotheses: motions of three random pixels that are tried. sigmas: pixels whose residual is below so many
    standard deviations agree. seed: of the random choice.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(pixels), size=(num_hypotheses, _SAMPLE))
    motions = np.concatenate([np.stack(starts), _fit_samples(camera, pixels, picks, starts[0])])
    cut = sigmas**2
    some = pixels.rows(np.arange(0, len(pixels), 1 + len(pixels) // 300))
    cost = np.minimum(_squared_residuals(camera, some, motions), cut).mean(axis=1)
    best = motions[cost.argmin()]
    refined, covariance = refine_motion(camera, pixels, best, loose=2.0)
    return refined, float(agreement(camera, pixels, refined, sigmas).mean()), covariance


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
    values = _kernel_values(pixels)
    if values is not None:
        normal = np.empty((len(motions), 6, 6))
        numba_support.numba_kernels.refine_motions(
            values,
            pixels.other_disparity is not None,
            _kernel_camera(camera),
            motions,
            float(loose),
            steps,
            prior,
            normal,
        )
        return motions, np.linalg.inv(normal)
    turned = np.zeros((len(motions), 6))
    for step in range(steps):
        width = max(1.0, loose * 0.45**step)
        normal, gradient = _normal_equations(camera, pixels, motions, width, None)
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
    values = _kernel_values(sample)
    for _ in range(_HYPOTHESIS_STEPS):
        normal, gradient = _normal_equations(camera, sample, motions, np.inf, values)
        # Pixels that are far or on one line leave directions free: damping keeps the start there.
        normal += np.eye(6) * (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-9)
        change = -np.linalg.solve(normal, gradient[..., None])[..., 0]
        motions = _moved(motions, np.clip(change, -1.0, 1.0))
    return motions


def _kernel_values(pixels) -> np.ndarray | None:
    """Return pixels (N,) or (K, N) as the kernel takes them, (8, 1 or K, N); None without numba."""
    if numba_support.numba_kernels is None:
        return None
    shape = np.atleast_2d(pixels.u).shape
    values = np.empty((8, *shape))
    values[:5] = pixels.places().reshape(5, *shape)
    values[5] = np.nan if pixels.other_disparity is None else pixels.other_disparity
    values[6], values[7] = np.square(pixels.flow_sigma), np.square(pixels.disparity_sigma)
    return values


def _normal_equations(camera, pixels, motions, width, values):
    """Return J^T W J (K, 6, 6) and J^T W r (K, 6) of K motions; pixels whose residual is NaN count nothing.

    W are the weights of Geman and McClure, with a kernel of `width` standard deviations; infinity: all 1. values: of
    `_kernel_values`.
    """
    if values is None:
        residual, jacobian = _residuals(camera, pixels, motions)
        weight = 1 / (1 + np.einsum('bnk,bnk->bn', residual, residual) / (2 * width**2)) ** 2
        weight = np.where(np.isfinite(weight), weight, 0)
        count = jacobian.shape[1] * jacobian.shape[2]
        J = np.nan_to_num(jacobian).reshape(len(jacobian), count, 6)
        weighted = (J * np.repeat(weight, jacobian.shape[2], axis=1)[..., None]).transpose(0, 2, 1)
        return weighted @ J, (weighted @ np.nan_to_num(residual).reshape(len(J), count, 1))[..., 0]
    has_other = pixels.other_disparity is not None
    normal, gradient = np.zeros((len(motions), 6, 6)), np.zeros((len(motions), 6))
    numba_support.numba_kernels.normal_equations(
        values, has_other, _kernel_camera(camera), np.ascontiguousarray(motions), float(width), normal, gradient
    )
    return normal, gradient


def _kernel_camera(camera: StereoCamera) -> np.ndarray:
    """Return fx, fy, cx, cy, the disparity at infinity and fx * baseline, (6,) float64."""
    return np.array(
        [camera.fx, camera.fy, camera.cx, camera.cy, camera.disparity_at_infinity, camera.fx * camera.baseline]
    )


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
