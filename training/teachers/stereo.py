# SPDX-License-Identifier: Apache-2.0
"""The teacher of stereo cameras: full resolution, no labels, no network; one thread.

1. Semi-global matching of the reference pair; the road; a plane of disparity for every superpixel.
2. Optical flow forward and backward, and the disparity of the other pair.
3. Ego motion: most pixels agree with it. What does not move with it falls into pieces with one rigid motion each.
4. Every pixel gets the motion of its piece, or the ego motion. Measured is what the left-right check, the plane, the
   optical flow there and back, and the disparity of the other pair confirm.
"""

from dataclasses import dataclass, field

import numpy as np

from training.teachers.piece_completion import close_piece, grow_piece
from training.teachers.semi_global_matching import SemiGlobalConfig, census, match
from training.teachers.slanted_planes import SlantedPlaneConfig, fill_by_planes
from zeroflow_ros.camera.camera_motion import (
    CameraMotionConfig,
    check_camera_motion,
    estimate_camera_motion,
    moved_pixels,
    rigid_flow,
)
from zeroflow_ros.camera.moving_pieces import MovingPieces, MovingPiecesConfig, find_moving_pieces, motion_residual
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.optical_flow import FlowConfig, OpticalFlow, targets
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame
from zeroflow_ros.camera.stereo_matching import MatchingConfig, StereoMatcher, fit_road, is_road, road_disparity
from zeroflow_ros.errors import ConfigError, DataError

_LEAST_DISPARITY = 0.5  # px, of filled pixels: sky
_ROAD_MARGIN = (2.0, 0.05)  # px, and share of the disparity: what is farther below the road is matched wrongly
_ON_ROAD = (0.5, 0.03)  # px, and share of the disparity: pixels nearer to the road's disparity are road
_OTHER = (2.0, 0.03)  # px, and share: how far the other pair's disparity may be from what the motion predicts
_STATIC = 1.5  # px: measured flow nearer to that of the ego motion shows a static pixel
_CHANCE, _SEEN = 31, 24  # differing census bits of 62: of unrelated pixels; most of a motion that is seen
_ROAD_TOLERANCE = 0.5  # px: filled pixels may be so much farther than the road


def _full_size_pieces() -> MovingPiecesConfig:
    return MovingPiecesConfig(window=9, min_pixels=200, min_residual=1.5)


@dataclass(frozen=True)
class StereoTeacherConfig:
    """Settings of the stereo teacher.

    agreement: largest distance between optical flow and the motion of a pixel's piece, for measured pixels, in
    standard deviations. plane_distance: largest distance from matched disparity to its plane, and to the final one, for
    measured pixels [px]. disparity_sigma, flow_sigma: standard deviations of measured pixels [px]. complete_pieces:
    whether moving pieces grow where flow fits their motion, and windows in them get the disparity and motion of the
    piece. seen_share: a piece is static unless its motion makes the images differ by less than this share of what the
    ego motion does.
    """

    agreement: float = 3.0
    plane_distance: float = 3.0
    disparity_sigma: float = 0.5
    flow_sigma: float = 0.5
    complete_pieces: bool = True
    seen_share: float = 0.9
    matching: SemiGlobalConfig = field(default_factory=SemiGlobalConfig)
    planes: SlantedPlaneConfig = field(default_factory=SlantedPlaneConfig)
    flow: FlowConfig = field(default_factory=lambda: FlowConfig('medium', 1, 'medium', 1))
    motion: CameraMotionConfig = field(default_factory=CameraMotionConfig)
    pieces: MovingPiecesConfig = field(default_factory=_full_size_pieces)

    def __post_init__(self):
        for name in ('agreement', 'plane_distance', 'disparity_sigma', 'flow_sigma'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} of the stereo teacher must be above 0, got {getattr(self, name)}.')


@dataclass(frozen=True)
class _Surface:
    """Disparity (H, W) [px] of the reference frame, and the plane of the road or None.

    matched: NaN where not. confirmed: NaN where it is far from the plane of its superpixel, too. filled: everywhere.
    """

    matched: np.ndarray
    confirmed: np.ndarray
    filled: np.ndarray
    road: np.ndarray | None


class StereoTeacher:
    """Labels stereo pairs. It is a StereoEstimator too; see zeroflow_ros/camera/stereo.py."""

    name = 'stereo'

    def __init__(self, config: StereoTeacherConfig | None = None):
        self.config = config = config or StereoTeacherConfig()
        self._cv2 = load_opencv()
        self._flow = OpticalFlow(config.flow)
        self._matcher = StereoMatcher(MatchingConfig(max_disparity=config.matching.max_disparity))

    def label(
        self, reference: StereoFrame, other: StereoFrame, dt: float, other_T_reference: np.ndarray | None = None
    ) -> StereoFlow:
        """Return the scene flow of the pixels of `reference` to the time of `other`.

        Every pixel has a value; is_measured says which of them are labels. dt: seconds from the reference to the other
        frame, negative where that is earlier. other_T_reference: (4, 4), ego motion between the optical frames where it
        is known; it is refined by the images.

        Raises: DataError when dt is 0 or not finite, the cameras differ, or hardly any pixel can be matched.
        EgoMotionError when no ego motion fits the images, or the one that is given contradicts them.
        """
        if not (np.isfinite(dt) and dt != 0):
            raise DataError(f'The frames of a stereo pair need different, finite times; dt is {dt}.')
        return self.estimate(reference, other, other_T_reference)

    def estimate(
        self, reference: StereoFrame, other: StereoFrame, other_T_reference: np.ndarray | None = None
    ) -> StereoFlow:
        """Return the scene flow of the pixels of `reference` to the time of `other`, as `label` does."""
        camera, config = reference.camera, self.config
        if camera != other.camera:
            raise DataError(f'Both stereo frames must be of one camera, got {camera} and {other.camera}.')
        left, right, other_left, other_right = map(
            self._grey, (reference.left, reference.right, other.left, other.right)
        )
        surface = self._surface(reference, left, right)
        flow = self._flow.forward(left, other_left)
        consistent = self._flow.is_consistent(flow, self._flow.backward(left, other_left))
        measured = consistent & np.isfinite(surface.matched)
        other_disparity = self._at_targets(self._matcher.disparity(other_left, other_right), flow)
        if other_T_reference is None:
            motion = estimate_camera_motion(
                camera, surface.matched, flow, measured, other_disparity=other_disparity, config=config.motion
            ).other_T_reference
        else:
            motion = check_camera_motion(
                camera, surface.matched, flow, measured, other_T_reference,
                other_disparity=other_disparity, config=config.motion,
            ).other_T_reference  # fmt: skip
        pieces = self._pieces(camera, surface, flow, measured, other_disparity, motion)
        drop_unseen_motions(camera, pieces, surface.filled, motion, left, other_left, config.seen_share)
        return self._fuse(camera, surface, flow, consistent, other_disparity, motion, pieces)

    def _grey(self, image: np.ndarray) -> np.ndarray:
        grey = image if image.ndim == 2 else self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
        return np.ascontiguousarray(grey)

    def _surface(self, frame: StereoFrame, left: np.ndarray, right: np.ndarray) -> _Surface:
        matched, right_disparity = match(left, right, self.config.matching)
        road = fit_road(matched[::2, ::2] / 2)
        ground = None
        if road is not None:
            road *= (1, 1, 2)  # from half the size to the full one
            ground = road_disparity(road, matched.shape)
            matched[matched < ground - np.maximum(_ROAD_MARGIN[0], _ROAD_MARGIN[1] * ground)] = np.nan
        colours = frame.left if frame.left.ndim == 3 else np.repeat(frame.left[..., None], 3, axis=2)
        lab = self._cv2.cvtColor(colours, self._cv2.COLOR_RGB2LAB)
        filled, of_plane = fill_by_planes(
            matched, right_disparity, lab, road, self.config.matching.max_disparity, self.config.planes
        )
        if not np.isfinite(filled).all():
            raise DataError(
                f'Stereo matching found {np.isfinite(matched).mean():.1%} of the pixels, too few for a label. Check '
                'that the images are not dark, without texture, unrectified, or swapped.'
            )
        if ground is not None:
            filled = np.where(ground > 1, np.maximum(filled, ground - _ROAD_TOLERANCE), filled)
        with np.errstate(invalid='ignore'):
            confirmed = np.where(np.abs(matched - of_plane) <= self.config.plane_distance, matched, np.float32(np.nan))
        return _Surface(matched, confirmed, np.maximum(filled, _LEAST_DISPARITY).astype(np.float32), road)

    def _at_targets(self, disparity: np.ndarray, flow: np.ndarray) -> np.ndarray:
        return self._cv2.remap(
            disparity, *targets(flow), self._cv2.INTER_NEAREST,
            borderMode=self._cv2.BORDER_CONSTANT, borderValue=np.nan,
        )  # fmt: skip

    def _pieces(self, camera, surface, flow, measured, other_disparity, motion) -> MovingPieces:
        disparity = surface.filled
        if surface.road is not None:
            # The road does not move; the shadows on it do.
            disparity = np.where(is_road(disparity, surface.road), np.float32(np.nan), disparity)
        return find_moving_pieces(
            camera, disparity, flow, measured, motion, other_disparity=other_disparity, config=self.config.pieces
        )

    def _complete(self, camera, surface, flow, consistent, motion, piece, motions) -> None:
        """Grow and fill the pieces; changes piece and the filled disparity in place."""
        if not motions:
            return
        disparity = surface.filled
        ego_flow, _ = rigid_flow(camera, disparity, motion)
        ego_error = np.where(consistent, np.linalg.norm(flow - ego_flow, axis=2), np.float32(np.nan))
        with np.errstate(invalid='ignore'):
            is_static = np.isfinite(surface.matched) & (ego_error < _STATIC)
        if surface.road is not None:  # shadows move with the car, the road does not
            ground = road_disparity(surface.road, disparity.shape)
            ego_error[np.abs(disparity - ground) < np.maximum(_ON_ROAD[0], _ON_ROAD[1] * ground)] = np.nan
        for number, piece_motion in enumerate(motions):

            def piece_error(rows, columns, piece_motion=piece_motion):
                moved, _ = moved_pixels(camera, columns, rows, disparity[rows, columns], piece_motion)
                return np.linalg.norm(flow[rows, columns] - moved, axis=1)

            grow_piece(piece, number, disparity, ego_error, piece_error)
            close_piece(piece, number, disparity, is_static)

    def _fuse(self, camera, surface, flow, consistent, matched_other, motion, pieces: MovingPieces) -> StereoFlow:
        config = self.config
        disparity, piece = surface.filled, pieces.piece.copy()
        if config.complete_pieces:
            self._complete(camera, surface, flow, consistent, motion, piece, pieces.motions)
        full_flow, other_disparity = rigid_flow(camera, disparity, motion)
        motion_sigma = np.full(disparity.shape, np.nan, np.float32)
        for number, (piece_motion, sigma) in enumerate(zip(pieces.motions, pieces.sigmas, strict=True)):
            rows, columns = np.nonzero(piece == number)
            full_flow[rows, columns], other_disparity[rows, columns] = moved_pixels(
                camera, columns, rows, disparity[rows, columns], piece_motion
            )
            motion_sigma[rows, columns] = sigma
        error = np.linalg.norm(flow - full_flow, axis=2)
        with np.errstate(invalid='ignore'):
            is_disparity_measured = np.abs(surface.confirmed - disparity) <= config.plane_distance
            # A disparity that is off by one sigma moves the predicted flow; motion_residual knows by how much.
            _, in_sigmas = motion_residual(
                camera, disparity, flow, motion, flow_sigma=config.flow_sigma, disparity_sigma=config.disparity_sigma
            )
            agrees = np.where(
                piece == -1, in_sigmas < config.agreement, error < 2 * config.agreement * config.flow_sigma
            )
            is_measured = is_disparity_measured & consistent & agrees & (piece != -2)
            is_measured &= np.abs(matched_other - other_disparity) <= _OTHER[0] + _OTHER[1] * other_disparity
        is_measured &= np.isfinite(full_flow[..., 0])
        disparity_sigma = np.full(disparity.shape, config.disparity_sigma, np.float32)
        flow_sigma = np.full(disparity.shape, config.flow_sigma, np.float32)
        return StereoFlow(
            disparity, other_disparity, full_flow, disparity_sigma, disparity_sigma, flow_sigma, is_measured, motion,
            is_disparity_measured, motion_sigma,
        )  # fmt: skip


def drop_unseen_motions(camera, pieces: MovingPieces, disparity, motion, image, other_image, share: float) -> None:
    """Make pieces static, in pieces.piece, whose motion does not bring the images together better than the ego motion.

    Optical flow drags thin static things, as poles, along with what is behind them; the images themselves show it.
    disparity: (H, W) [px]. motion: (4, 4), of the ego. image, other_image: (H, W) uint8. share: `seen_share` of
    StereoTeacherConfig.
    """
    if not pieces.motions:
        return
    bits, other_bits = census(image), census(other_image)
    height, width = image.shape
    for number, piece_motion in enumerate(pieces.motions):
        rows, columns = np.nonzero(pieces.piece == number)
        means = []
        for candidate in (piece_motion, motion):
            moved, _ = moved_pixels(camera, columns, rows, disparity[rows, columns], candidate)
            target = np.nan_to_num(moved, nan=1e6).round().astype(np.int64) + np.stack([columns, rows], axis=1)
            x, y = target.T
            seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            different = np.full(len(rows), _CHANCE, np.uint8)
            different[seen] = np.bitwise_count(bits[rows[seen], columns[seen]] ^ other_bits[y[seen], x[seen]])
            means.append(different.mean() if len(rows) else 0)
        if means[0] > min(share * means[1], _SEEN):
            pieces.piece[rows, columns] = -1
