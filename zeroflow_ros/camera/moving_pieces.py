# SPDX-License-Identifier: Apache-2.0
"""Connected pixels that do not move with the static scene, and one rigid motion for each such piece."""

from dataclasses import dataclass

import numpy as np

from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.camera_motion import pixel_motion, rigid_flow_rate
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.rigid_fit import MatchedPixels, agreement, refine_motions
from zeroflow_ros.camera.stereo import StereoCamera
from zeroflow_ros.errors import ConfigError

_FIT_PIXELS = 96  # pixels of a piece that its motion is fitted to
_FIT_STEPS = 7
_AGREES = 3.0  # standard deviations: pixels nearer to the motion of their piece agree with it


@dataclass(frozen=True)
class MovingPiecesConfig:
    """Settings of the search for pieces that move.

    sigmas: a pixel may move where its residual exceeds this many standard deviations. min_residual: and this [px].
    piece_sigmas: a piece moves where the length of its motion exceeds this many. solid_share, solid_sigmas: it also
    moves where rest is so many standard deviations from what is seen, whatever the error of the length, if at least
    this share of its pixels agree with its motion and are seen in the other frame. flow_sigma, disparity_sigma:
    standard deviations of what is measured [px]. window: side of the square in which most of the measured pixels must
    move for a pixel to be part of a piece [px]. min_pixels: smallest piece. max_pieces: only so many, the largest, get
    a motion.
    depth_step: neighbours in a piece differ by less than this share of their disparity. min_share: smallest share of a
    piece's pixels that must agree with one rigid motion. min_motion, max_motion: slowest and fastest motion relative to
    the static scene [m per pair]. turn_sigma: standard deviation of its rotation [rad per pair]. correlated:
    neighbouring pixels whose errors are as one: so much fewer measurements a piece has than pixels.
    """

    sigmas: float = 2.0
    min_residual: float = 1.0
    piece_sigmas: float = 3.0
    solid_share: float = 0.9
    solid_sigmas: float = 6.0
    flow_sigma: float = 0.4
    disparity_sigma: float = 0.5
    window: int = 5
    min_pixels: int = 80
    max_pieces: int = 24
    depth_step: float = 0.08
    min_share: float = 0.5
    min_motion: float = 0.03
    max_motion: float = 6.0
    turn_sigma: float = 0.03
    correlated: int = 30

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f'{name} of the moving pieces must be above 0, got {value}.')


@dataclass(frozen=True)
class MovingPieces:
    """Pieces of the reference frame that move on their own.

    piece: (H, W) int32, number of the piece of each pixel, -1 where it moves with the static scene, -2 where it does
    not, but belongs to no piece with a motion. motions: other_T_reference (4, 4) of each piece, ego motion included.
    sigmas: standard deviation of the length of each piece's motion relative to the static scene [m].
    """

    piece: np.ndarray
    motions: tuple[np.ndarray, ...]
    sigmas: tuple[float, ...] = ()


def motion_residual(
    camera: StereoCamera, disparity: np.ndarray, flow: np.ndarray, other_T_reference: np.ndarray, *,
    other_disparity: np.ndarray | None = None, flow_sigma: float = 0.7, disparity_sigma: float = 0.7,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return how far flow (and other disparity) are from a rigid motion: (H, W) [px], and (H, W) in sigmas; float32.

    NaN where disparity or flow is. The standard deviation holds the error of the flow, and of the disparity times the
    change of the predicted flow with it.
    """
    if numba_support.numba_kernels is not None:
        residual, in_sigmas = np.empty(disparity.shape, np.float32), np.empty(disparity.shape, np.float32)
        disparity = np.ascontiguousarray(disparity, np.float32)
        numba_support.numba_kernels.motion_residual(
            disparity, np.ascontiguousarray(flow, np.float32),
            disparity if other_disparity is None else np.ascontiguousarray(other_disparity, np.float32),
            other_disparity is not None, *pixel_motion(camera, other_T_reference),
            np.float32(camera.disparity_at_infinity), np.float32(flow_sigma**2), np.float32(disparity_sigma**2),
            residual, in_sigmas,
        )  # fmt: skip
        return residual, in_sigmas
    predicted, predicted_disparity, rate = rigid_flow_rate(camera, disparity, other_T_reference)
    np.subtract(flow, predicted, out=predicted)
    squared = predicted[..., 0] ** 2 + predicted[..., 1] ** 2
    rate *= np.float32(disparity_sigma**2)
    rate += np.float32(flow_sigma**2)
    in_sigmas = squared / rate
    if other_disparity is not None:
        np.subtract(other_disparity, predicted_disparity, out=predicted_disparity)
        predicted_disparity *= predicted_disparity
        predicted_disparity[np.isnan(predicted_disparity)] = 0  # not known: no evidence
        squared += predicted_disparity
        predicted_disparity *= np.float32(1 / (2 * disparity_sigma**2))
        in_sigmas += predicted_disparity
    return np.sqrt(squared, out=squared), np.sqrt(in_sigmas, out=in_sigmas)


def find_moving_pieces(
    camera: StereoCamera, disparity: np.ndarray, flow: np.ndarray, valid: np.ndarray, other_T_reference: np.ndarray, *,
    other_disparity: np.ndarray | None = None, residual: tuple[np.ndarray, np.ndarray] | None = None,
    config: MovingPiecesConfig = MovingPiecesConfig(),
) -> MovingPieces:  # fmt: skip
    """Return the pieces that move relative to the static scene, whose motion is other_T_reference (4, 4).

    disparity: (H, W), flow: (H, W, 2), other_disparity: (H, W) [px], of the size of `camera`. valid: (H, W) bool, where
    disparity and flow are trusted; pixels without that belong to the piece around them, if their disparity is known
    and alike. residual: what `motion_residual` returned for them, where it is known already.
    """
    residual, in_sigmas = residual or motion_residual(
        camera, disparity, flow, other_T_reference, other_disparity=other_disparity,
        flow_sigma=config.flow_sigma, disparity_sigma=config.disparity_sigma,
    )  # fmt: skip
    measured = valid & np.isfinite(disparity) & np.isfinite(residual)
    moves = measured & (in_sigmas > config.sigmas) & (residual > config.min_residual)
    piece = np.full(disparity.shape, -1, np.int32)
    if np.count_nonzero(moves) < config.min_pixels:
        return MovingPieces(piece, ())
    region = _mostly_moving(moves, measured, config.window) & np.isfinite(disparity)
    labels, sizes = _connected(region, disparity, config.depth_step)
    piece[moves] = -2
    largest = np.argsort(-sizes[1:], kind='stable')[: config.max_pieces] + 1  # label 0: seams
    largest = largest[sizes[largest] >= config.min_pixels]
    fitted = _fit_pieces(camera, labels, largest, disparity, flow, measured, other_disparity, other_T_reference, config)
    numbers = np.full(len(sizes), -2, np.int32)
    for number, (label, _, _) in enumerate(fitted):
        numbers[label] = number
    in_piece = labels > 0
    piece[in_piece] = numbers[labels[in_piece]]
    return MovingPieces(piece, tuple(motion for _, motion, _ in fitted), tuple(sigma for _, _, sigma in fitted))


def _mostly_moving(moves: np.ndarray, measured: np.ndarray, window: int) -> np.ndarray:
    """Return the pixels around which most measured pixels move."""
    cv2 = load_opencv()
    size = (window, window)
    moving = cv2.blur(moves.view(np.uint8) * np.uint8(255), size)
    known = cv2.blur(measured.view(np.uint8) * np.uint8(255), size)
    return (moving > known // 2) & (moving > 64)


def _connected(region: np.ndarray, disparity: np.ndarray, depth_step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (H, W), 0 outside the region and on seams in depth, and the pixels of each within the region."""
    cv2 = load_opencv()
    if numba_support.numba_kernels is not None:
        inside = np.empty(region.shape, np.uint8)
        numba_support.numba_kernels.mark_seams(region, disparity, np.float32(depth_step), inside)
        _, labels = cv2.connectedComponents(inside, connectivity=4)
        return labels, np.bincount(labels[region])
    known = np.where(region, disparity, 0).astype(np.float32)
    step = np.maximum(np.float32(1), np.float32(depth_step) * known)
    is_seam = np.zeros(region.shape, bool)
    for axis in (0, 1):
        jump = np.abs(np.diff(known, axis=axis))
        a, b = ((slice(None, -1), slice(None)), (slice(1, None), slice(None))) if axis == 0 else (
            (slice(None), slice(None, -1)), (slice(None), slice(1, None)))  # fmt: skip
        far = (jump > np.maximum(step[a], step[b])) & region[a] & region[b]
        # The far side of a jump is the seam, so that the near object keeps its outline.
        is_seam[a] |= far & (known[a] < known[b])
        is_seam[b] |= far & (known[b] <= known[a])
    _, labels = cv2.connectedComponents((region & ~is_seam).view(np.uint8), connectivity=4)
    return labels, np.bincount(labels[region])


def _fit_pieces(camera, labels, chosen, disparity, flow, measured, other_disparity, ego, config):
    """Return (label, other_T_reference (4, 4), sigma [m]) of the chosen pieces that move as one body."""
    width = labels.shape[1]
    places = np.flatnonzero(measured & (labels > 0))
    label_of = labels.reshape(-1)[places]
    counts = np.bincount(label_of, minlength=labels.max() + 1)
    if len(counts) < 1 << 15:
        label_of = label_of.astype(np.int16)  # sorted in linear time
    places = places[np.argsort(label_of, kind='stable')]
    ends = np.cumsum(counts)
    chosen = [label for label in chosen if counts[label] >= config.min_pixels // 2]
    if not chosen:
        return []
    picks = places[np.linspace(ends[chosen] - counts[chosen], ends[chosen] - 1, _FIT_PIXELS, axis=1).astype(np.int64)]
    pixels = MatchedPixels.at(
        picks // width, picks % width, disparity, flow, other_disparity,
        flow_sigma=config.flow_sigma, disparity_sigma=config.disparity_sigma,
    )  # fmt: skip
    starts = _median_motions(camera, pixels, ego)
    motions, covariances = refine_motions(
        camera, pixels, starts, loose=3.0, steps=_FIT_STEPS, rotation_sigma=config.turn_sigma
    )
    share = agreement(camera, pixels, motions, _AGREES).mean(axis=1)
    independent = np.maximum(counts[chosen] / config.correlated, 1)
    covariances *= np.maximum(_FIT_PIXELS / independent, 1)[:, None, None]
    centres = np.median(_points(camera, pixels.u, pixels.v, pixels.disparity), axis=1)  # (K, 3)
    turned = np.einsum('kij,kj->ki', motions[:, :3, :3], centres)
    moved = turned + motions[:, :3, 3] - (centres @ ego[:3, :3].T + ego[:3, 3])
    length = np.linalg.norm(moved, axis=1)
    direction = moved / np.maximum(length, 1e-9)[:, None]
    # A small rotation w moves the centre by w x turned: the covariance of the motion of the centre.
    by_motion = np.zeros((len(centres), 3, 6))
    by_motion[:, [0, 1, 2], [1, 2, 0]] = turned[:, [2, 0, 1]]
    by_motion[:, [0, 1, 2], [2, 0, 1]] = -turned[:, [1, 2, 0]]
    by_motion[:, [0, 1, 2], [3, 4, 5]] = 1
    covariance = by_motion @ covariances @ by_motion.transpose(0, 2, 1)
    sigma = np.sqrt(np.einsum('ki,kij,kj->k', direction, covariance, direction))
    # Not the length over its own error: motion aside is seen well even where its depth is not.
    certainty = np.sqrt(np.einsum('ki,kij,kj->k', moved, np.linalg.inv(covariance), moved))
    moves = (share >= config.min_share) & (length >= config.min_motion) & (length <= config.max_motion)
    is_solid = share >= config.solid_share
    if pixels.other_disparity is not None:
        is_solid &= np.isfinite(pixels.other_disparity).mean(axis=1) >= config.solid_share
    moves &= (length > config.piece_sigmas * sigma) | (is_solid & (certainty > config.solid_sigmas))
    return [(chosen[k], motions[k], float(sigma[k])) for k in np.flatnonzero(moves)]


def _median_motions(camera, pixels, ego):
    """Return the motions (K, 4, 4) with the rotation of the ego motion and the median translation of K x N pixels."""
    point = _points(camera, pixels.u, pixels.v, pixels.disparity) @ ego[:3, :3].T + ego[:3, 3]
    other_disparity = camera.disparity(point[..., 2])
    if pixels.other_disparity is not None:
        other_disparity = np.where(np.isfinite(pixels.other_disparity), pixels.other_disparity, other_disparity)
    seen = _points(camera, pixels.u + pixels.flow_u, pixels.v + pixels.flow_v, other_disparity)
    shift = seen - point
    motions = np.repeat(ego[None], len(shift), axis=0)
    motions[:, :3, 3] += _median_of_finite(shift)
    return motions


def _median_of_finite(values):
    """Return the median along axis 1 of what is finite in values (K, N, 3), (K, 3); 0 where nothing is."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=1)  # NaN comes last
    num = np.isfinite(ordered).sum(axis=1, keepdims=True)
    middle = [np.take_along_axis(ordered, np.maximum(at, 0), axis=1)[:, 0] for at in ((num - 1) // 2, num // 2)]
    return np.where(num[:, 0] > 0, 0.5 * (middle[0] + middle[1]), 0.0)


def _points(camera, u, v, disparity):
    depth = camera.depth(disparity).astype(np.float64)
    return np.stack([(u - camera.cx) / camera.fx * depth, (v - camera.cy) / camera.fy * depth, depth], axis=-1)
