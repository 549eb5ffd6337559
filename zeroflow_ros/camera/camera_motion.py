# SPDX-License-Identifier: Apache-2.0
"""Ego motion between two stereo frames from disparity and optical flow, and the flow of a rigid scene."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.rigid_fit import MatchedPixels, agreement, fit_motion, refine_motion
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError, EgoMotionError

_FEWEST = 30  # pixels that a second motion is looked for in
_BLOCK = 30_000  # pixels computed at a time: 120 kB stay in the cache, and are reused by malloc


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
    rival_share: two motions are told apart only where the second has less than this share of the pixels of the first.
    distinct: translations that differ by more are two motions [m]. max_jump: largest change of the translation from one
    pair to the next that is plausible [m]; of pairs of 0.1 s.
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
    rival_share: float = 0.7
    distinct: float = 0.15
    max_jump: float = 0.15
    max_correction: float = 0.3
    max_turn: float = 0.02
    seed: int = 0

    def __post_init__(self):
        for name in ('num_pixels', 'min_pixels', 'num_hypotheses', 'sigmas', 'flow_sigma', 'disparity_sigma',
                     'max_translation', 'max_rotation', 'distinct', 'max_jump'):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} of the camera motion must be above 0, got {getattr(self, name)}.')
        for name in ('min_share', 'sure_share', 'max_second', 'given_share', 'rival_share'):
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
    other_disparity: np.ndarray | None = None, start: np.ndarray | None = None, dt: float = 0.1,
    config: CameraMotionConfig = CameraMotionConfig(),
) -> CameraMotion:  # fmt: skip
    """Return the ego motion that most pixels agree with.

    A flat wall and a mover before it may agree with one motion, too. Where two motions agree with many pixels, the one
    that follows from the pair before is taken.

    disparity: (H, W), flow: (H, W, 2), other_disparity: (H, W) [px], of the size of `camera`. valid: (H, W) bool, where
    disparity and flow are trusted. start: (4, 4), other_T_reference that the pair before lets expect. dt: time between
    the frames [s].

    Raises: EgoMotionError when too few pixels are valid, fewer than `min_share` of them agree with one motion, many
    agree with a second one and the pair before does not tell which is right, or the motion is implausible.
    """
    pixels = spread_pixels(disparity, flow, valid, other_disparity, config)
    longest = config.max_jump * max(dt / 0.1, 1) ** 2
    motion, share, covariance = near = np.eye(4), 0.0, np.zeros((6, 6))
    if start is not None:
        motion, share, covariance = near = _near(camera, pixels, start, 10.0, config)
        if _distance(motion, start) > longest:  # the expected motion may be one of two
            near = _near(camera, pixels, start, 1.0, config)
            if _distance(near[0], motion) > config.distinct and near[1] >= max(
                config.min_share, config.rival_share * share
            ):
                motion, share, covariance = _follows((motion, share, covariance), near, start, longest)
    if share < config.sure_share:
        starts = [np.eye(4)] if start is None else [motion, np.eye(4)]
        motion, share, covariance = _search(camera, pixels, starts, config)
        if near[1] >= max(config.min_share, config.rival_share * share) and (
            _distance(near[0], motion) > config.distinct
        ):
            motion, share, covariance = _follows((motion, share, covariance), near, start, longest)
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


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return by how much the translations of two motions differ [m]."""
    return float(np.linalg.norm(one[:3, 3] - other[:3, 3]))


def _near(camera, pixels, start, loose: float, config: CameraMotionConfig) -> tuple:
    """Return (motion, share, covariance) of the motion near another one that fits best."""
    motion, covariance = refine_motion(camera, pixels, start, loose=loose)
    return motion, float(agreement(camera, pixels, motion, config.sigmas).mean()), covariance


def _follows(best: tuple, rival: tuple, start: np.ndarray, longest: float) -> tuple:
    """Return which of two motions (motion, share, covariance) is at most `longest` [m] from that of the pair before.

    Raises: EgoMotionError when none or both are.
    """
    following = [one for one in (best, rival) if _distance(one[0], start) <= longest]
    if len(following) == 1:
        return following[0]
    moved = [f'with {np.linalg.norm(motion[:3, 3]):.2f} m {share:.0%}' for motion, share, _ in (best, rival)]
    raise EgoMotionError(
        f'Ego motion from images is not clear: {moved[0]} of the pixels agree, {moved[1]}; the pair before does not '
        'tell which is right. Something that moves may be in front of a flat scene: use odometry or tf as the source '
        'of ego motion.'
    )


def _search(camera, pixels, starts, config: CameraMotionConfig):
    return fit_motion(
        camera, pixels, starts, num_hypotheses=config.num_hypotheses, sigmas=config.sigmas, seed=config.seed
    )  # fmt: skip


def _second_share(camera, pixels, motion, config: CameraMotionConfig) -> float:
    """Return the share of all pixels that agree with the best motion of those that do not agree with `motion`."""
    rest = np.flatnonzero(~agreement(camera, pixels, motion, config.sigmas))
    if len(rest) < _FEWEST:
        return 0.0
    second, _, _ = _search(camera, pixels.rows(rest), [np.eye(4)], config)
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
    best, best_share = candidate, share
    if share < config.given_share:  # else no other motion can have so many more
        best, best_share, _ = _search(camera, pixels, [candidate, np.eye(4)], config)
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
    places = np.flatnonzero(valid)
    if len(places) < config.min_pixels:
        raise EgoMotionError(
            f'Ego motion from images needs at least {config.min_pixels} pixels with disparity and flow, found '
            f'{len(places)}. The images are dark, without texture, or do not belong together: check both cameras, or '
            'use odometry or tf as the source of ego motion.'
        )
    if len(places) > config.num_pixels:
        places = places[np.random.default_rng(config.seed).integers(len(places), size=config.num_pixels)]
    rows, columns = np.divmod(places, valid.shape[1])
    return MatchedPixels.at(
        rows, columns, disparity, flow, other_disparity,
        flow_sigma=config.flow_sigma, disparity_sigma=config.disparity_sigma,
    )  # fmt: skip
