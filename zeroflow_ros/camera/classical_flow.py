# SPDX-License-Identifier: Apache-2.0
"""Scene flow of stereo pairs without a model: stereo matching, optical flow, ego motion and rigid pieces."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter

import numpy as np

from zeroflow_ros import transforms
from zeroflow_ros.camera import numba_support
from zeroflow_ros.camera.camera_motion import (
    CameraMotionConfig,
    check_camera_motion,
    estimate_camera_motion,
    moved_pixels,
    pixel_motion,
    rigid_flow,
)
from zeroflow_ros.camera.moving_pieces import MovingPieces, MovingPiecesConfig, find_moving_pieces, motion_residual
from zeroflow_ros.camera.numba_support import compile_kernels
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.optical_flow import FlowConfig, OpticalFlow
from zeroflow_ros.camera.stereo import StereoFlow, StereoFrame
from zeroflow_ros.camera.stereo_matching import (
    MatchingConfig,
    StereoMatcher,
    fill_from_background,
    fit_road,
    without_road,
)
from zeroflow_ros.errors import ConfigError, EgoMotionError

_SMALLEST = 16  # px: height and width of the images worked on
_AGREES = 3.0  # standard deviations: flow nearer to that of the static scene confirms it
_MIN_BOTH = 0.3  # least share of the pixels with flow and disparity that have a disparity in the other frame, too
_SURFACE = np.float32(2.0)  # px of disparity: neighbours that differ by more are different surfaces


@dataclass(frozen=True)
class ClassicalConfig:
    """Settings of the classical estimator. Lengths of the parts are pixels of the images that are worked on.

    scale: size of these images, as a share of the camera's. matching.max_disparity is one of the camera's size.
    fill: give pixels without a measurement the values of their surroundings, as boards want it; else they are NaN.
    disparity_sigma, flow_sigma: standard deviations of what is measured, at the size of the images worked on [px].
    """

    scale: float = 0.5
    fill: bool = False
    disparity_sigma: float = 0.35
    flow_sigma: float = 0.4
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    motion: CameraMotionConfig = field(default_factory=CameraMotionConfig)
    pieces: MovingPiecesConfig = field(default_factory=MovingPiecesConfig)

    def __post_init__(self):
        if not 0.1 <= self.scale <= 1:
            raise ConfigError(f'scale of the classical estimator must be in [0.1, 1], got {self.scale}.')


@dataclass
class _View:
    """A frame at the size of the images worked on. disparity: (H, W), without what is below the road.

    above_road: (H, W), also without the road itself; None where no road is seen.
    """

    frame: StereoFrame
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray | None = None
    road: np.ndarray | None = None
    above_road: np.ndarray | None = None


@lru_cache(maxsize=4)
def _constant(shape: tuple[int, int], value: float) -> np.ndarray:
    """Return a map of one value that cannot be written to."""
    constant = np.full(shape, value, np.float32)
    constant.flags.writeable = False
    return constant


@lru_cache(maxsize=8)
def _places(size: int, smaller: int, step: int) -> np.ndarray:
    """Return where every step-th pixel of a row of `size` is in a row of `smaller`, float32 [px]."""
    return ((np.arange(0, size, step) + 0.5) * (smaller / size) - 0.5).astype(np.float32)


@lru_cache(maxsize=8)
def _nearest(size: int, smaller: int, step: int) -> np.ndarray:
    """Return the pixel of a row of `smaller` that is nearest to every step-th pixel of a row of `size`."""
    places = (np.arange(0, size, step) + 0.5) * (smaller / size)
    return np.minimum(places.astype(np.intp), smaller - 1)


class ClassicalStereoFlow:
    """A StereoEstimator; see zeroflow_ros/camera/stereo.py.

    Pixels of the static scene take their disparity and the ego motion; pieces that move take their disparity and one
    rigid motion each. Where optical flow was not measured, or agrees with neither, is_measured is False. Works on grey
    images of half the size, in two threads.
    `stages_ms` says what the parts of the last call took [ms]; those of the two threads overlap.
    """

    name = 'classical'

    def __init__(self, config: ClassicalConfig | None = None):
        self.config = config = config or ClassicalConfig()
        self._cv2 = load_opencv()
        self._matching = replace(
            config.matching, max_disparity=max(16, int(config.matching.max_disparity * config.scale))
        )
        self._matchers = [StereoMatcher(self._matching) for _ in range(2)]
        self._flow = OpticalFlow(config.flow)
        self._views: tuple[_View, ...] = ()
        self._last_motion: np.ndarray | None = None
        self._last_dt = 0.0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix='stereo')
        self.stages_ms: dict[str, float] = {}
        compile_kernels()

    def estimate(self, reference: StereoFrame, other: StereoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of the pixels of `reference` to the time of `other`, which may be earlier.

        Raises: EgoMotionError when the ego motion is not given and cannot be told from the images, or when the images
        contradict the one that is given. ConfigError when the frames are of different cameras, or too small.
        """
        return self.estimate_every_nth(reference, other, other_T_reference, step=1)

    def estimate_every_nth(self, reference: StereoFrame, other: StereoFrame,
                           other_T_reference: np.ndarray | None = None, *, step: int) -> StereoFlow:  # fmt: skip
        """Return the scene flow of every step-th pixel of every step-th row, as `estimate` does.

        Lengths are in the pixels of `reference.camera.every_nth(step)`, which are `step` times as long.
        """
        if reference.camera != other.camera:
            raise ConfigError(
                f'Both stereo frames must be of one camera, got {reference.camera} and {other.camera}. '
                'Restart the estimator after a new calibration.'
            )
        self.stages_ms = {}
        # Both are kept: the node sends each frame twice, and it is matched once.
        self._views = view, other_view = self._view(reference), self._view(other)
        camera = reference.camera.scaled(view.left.shape[1], view.left.shape[0])
        flow_task = self._threads.submit(self._timed, 'flow', self._flow.forward, view.left, other_view.left)
        self._match(view, 0)
        self._match(other_view, 1)
        backward = self._timed('flow check', self._flow.backward, view.left, other_view.left)
        flow = flow_task.result()
        measured, other_disparity = self._timed('consistency', self._consistent, view, other_view, flow, backward)
        motion = self._timed(
            'ego motion', self._motion, camera, (view, other_view), flow, measured, other_disparity, other_T_reference
        )
        residual = self._timed(
            'residual', motion_residual, camera, view.disparity, flow, motion, other_disparity=other_disparity,
            flow_sigma=self.config.pieces.flow_sigma, disparity_sigma=self.config.pieces.disparity_sigma,
        )  # fmt: skip
        disparity_task = self._threads.submit(
            self._timed, 'disparity', self._known_disparity, reference.camera, view, step
        )
        pieces = self._timed('pieces', self._pieces, camera, view, flow, measured, other_disparity, motion, residual)
        agrees = measured & (residual[1] < _AGREES)
        disparity = disparity_task.result()
        return self._timed('fusion', self._fuse, reference.camera, step, view, agrees, motion, pieces, disparity)

    def prepare(self, frame: StereoFrame) -> None:
        """Match a frame whose partner has not come yet, so that the first pair takes no longer than the others.

        Raises: ConfigError as `estimate`.
        """
        view = self._view(frame)
        self._views = (view,)
        self._match(view, 0)

    def _timed(self, stage: str, function, *arguments, **options):
        start = perf_counter()
        result = function(*arguments, **options)
        self.stages_ms[stage] = self.stages_ms.get(stage, 0) + 1e3 * (perf_counter() - start)
        return result

    def _view(self, frame: StereoFrame) -> _View:
        known = next((view for view in self._views if view.frame is frame), None)
        return known or self._timed('resize', self._resized, frame)

    def _resized(self, frame: StereoFrame) -> _View:
        cv2, scale = self._cv2, self.config.scale
        size = (round(frame.camera.width * scale), round(frame.camera.height * scale))
        if min(size) < _SMALLEST:
            raise ConfigError(
                f'Stereo images of {frame.camera.width} x {frame.camera.height} pixels are too small: '
                f'{size[0]} x {size[1]} at the scale {scale:g}, at least {_SMALLEST} are needed. '
                'Use larger images or a larger scale.'
            )

        def resized(image):
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
            return grey if scale == 1 else cv2.resize(grey, size, interpolation=cv2.INTER_AREA)

        return _View(frame, resized(frame.left), resized(frame.right))

    def _match(self, view: _View, number: int) -> None:
        if view.disparity is not None:
            return
        disparity = self._timed('matching', self._matchers[number].disparity, view.left, view.right)
        if self._matching.road:
            start = next((other.road for other in self._views if other.road is not None), None)
            view.road = self._timed('road', fit_road, disparity, start=start)
            if view.road is not None:
                view.above_road, below = without_road(disparity, view.road)
                np.copyto(disparity, np.float32(np.nan), where=below)
                np.copyto(view.above_road, np.float32(np.nan), where=below)
        view.disparity = disparity

    def _consistent(self, view, other_view, flow, backward) -> tuple[np.ndarray, np.ndarray]:
        """Return which pixels (H, W) are measured, and their disparity (H, W) in the other frame."""
        measured, other_disparity = self._flow.check(flow, backward, other_view.disparity)
        measured &= np.isfinite(view.disparity)
        # From and to a black image, the flow is 0 both ways. Such an image has no disparity.
        if np.count_nonzero(measured & np.isfinite(other_disparity)) < _MIN_BOTH * np.count_nonzero(measured):
            measured[:] = False
        return measured, other_disparity

    def _motion(self, camera, views, flow, measured, other_disparity, other_T_reference) -> np.ndarray:
        view = views[0]
        dt = (views[1].frame.stamp_ns - view.frame.stamp_ns) * 1e-9
        if other_T_reference is not None:
            return check_camera_motion(
                camera, view.disparity, flow, measured, other_T_reference,
                other_disparity=other_disparity, config=self.config.motion,
            ).other_T_reference  # fmt: skip
        try:
            motion = estimate_camera_motion(
                camera, view.disparity, flow, measured,
                other_disparity=other_disparity, start=self._expected_motion(dt), dt=abs(dt), config=self.config.motion,
            ).other_T_reference  # fmt: skip
        except EgoMotionError:
            self._last_motion = None
            raise
        self._last_motion, self._last_dt = motion, dt
        return motion

    def _expected_motion(self, dt: float) -> np.ndarray | None:
        """Return the motion of the pair before, over the time of this one [s]; None where it is not known."""
        if self._last_motion is None or dt == self._last_dt or self._last_dt == 0:
            return self._last_motion
        share = dt / self._last_dt
        expected = np.eye(4)
        expected[:3, :3] = transforms.rotation_matrix(share * transforms.rotation_vector(self._last_motion))
        expected[:3, 3] = share * self._last_motion[:3, 3]
        return expected

    def _pieces(self, camera, view, flow, measured, other_disparity, motion, residual) -> MovingPieces:
        # The road does not move; the shadows on it do.
        disparity = view.disparity if view.above_road is None else view.above_road
        return find_moving_pieces(
            camera, disparity, flow, measured, motion,
            other_disparity=other_disparity, residual=residual, config=self.config.pieces,
        )  # fmt: skip

    def _known_disparity(self, full, view, step) -> np.ndarray:
        """Return the disparity of every step-th pixel of the camera."""
        known = fill_from_background(view.disparity, view.road) if self.config.fill else view.disparity
        return self._enlarged_disparity(known, full, step)

    def _fuse(self, full, step, view, agrees, motion, pieces: MovingPieces, disparity) -> StereoFlow:
        """Return the flow of every step-th pixel: that of the static scene, or of the piece of the pixel."""
        fused = self._fused_by_numba if numba_support.numba_kernels is not None else self._fused_by_numpy
        flow, other_disparity, motion_sigma, is_measured = fused(full, step, agrees, motion, pieces, disparity)
        scale = 1 / (self.config.scale * step)
        disparity_sigma, flow_sigma = (
            _constant(disparity.shape, sigma * scale) for sigma in (self.config.disparity_sigma, self.config.flow_sigma)
        )
        return StereoFlow(
            disparity, other_disparity, flow, disparity_sigma, disparity_sigma, flow_sigma, is_measured, motion,
            self._enlarged(np.isfinite(view.disparity), full, step), motion_sigma,
            lambda: self._enlarged_disparity(view.disparity, full),
        )  # fmt: skip

    def _fused_by_numba(self, full, step, agrees, motion, pieces, disparity):
        """Return flow, other disparity, motion sigma and is_measured of every step-th pixel."""
        shape, camera = disparity.shape, full.every_nth(step)
        flow, is_measured = np.empty((*shape, 2), np.float32), np.empty(shape, bool)
        other_disparity, motion_sigma = (np.empty(shape, np.float32) for _ in range(2))
        matrices = [np.column_stack(pixel_motion(camera, one)) for one in (*pieces.motions, motion)]
        rows, columns = _nearest(full.height, agrees.shape[0], step), _nearest(full.width, agrees.shape[1], step)
        numba_support.numba_kernels.scene_flow(
            disparity, pieces.piece, agrees, rows, columns, np.array(matrices, np.float32),
            np.array(pieces.sigmas, np.float32), np.float32(camera.disparity_at_infinity), self.config.fill,
            flow, other_disparity, motion_sigma, is_measured,
        )  # fmt: skip
        return flow, other_disparity, motion_sigma, is_measured

    def _fused_by_numpy(self, full, step, agrees, motion, pieces, disparity):
        camera = full.every_nth(step)
        flow, other_disparity = rigid_flow(camera, disparity, motion)
        is_measured = self._enlarged(np.where(pieces.piece == -1, agrees, pieces.piece >= 0), full, step)
        motion_sigma = np.full(disparity.shape, np.nan, np.float32)
        if pieces.motions:
            piece = self._enlarged(pieces.piece.astype(np.int16), full, step)
            all_rows, all_columns = np.nonzero(piece >= 0)
            number_of = piece[all_rows, all_columns]
            for number, (piece_motion, sigma) in enumerate(zip(pieces.motions, pieces.sigmas, strict=True)):
                mine = number_of == number
                rows, columns = all_rows[mine], all_columns[mine]
                moved, moved_disparity = moved_pixels(camera, columns, rows, disparity[rows, columns], piece_motion)
                flow[rows, columns] = moved
                other_disparity[rows, columns] = moved_disparity
                motion_sigma[rows, columns] = sigma
        if not self.config.fill:
            with np.errstate(invalid='ignore'):
                # 0 / 0 is NaN: ten times as fast as writing NaN through a mask.
                unknown = np.divide(np.float32(0), is_measured, dtype=np.float32)
            other_disparity += unknown
            flow[..., 0] += unknown
            flow[..., 1] += unknown
        return flow, other_disparity, motion_sigma, is_measured

    def _enlarged(self, values: np.ndarray, camera, step: int = 1) -> np.ndarray:
        """Return values (H, W) at every step-th pixel of the camera: those of the nearest pixel."""
        is_mask = values.dtype == np.bool_
        if step > 1:
            rows, columns = (
                _nearest(camera.height, values.shape[0], step),
                _nearest(camera.width, values.shape[1], step),
            )
            if all(np.array_equal(one, np.arange(n)) for one, n in zip((rows, columns), values.shape, strict=True)):
                return values
            return values[rows[:, None], columns]
        values = values.view(np.uint8) if is_mask else values
        size = (camera.width, camera.height)
        enlarged = self._cv2.resize(values, size, interpolation=self._cv2.INTER_NEAREST_EXACT)
        return enlarged.view(bool) if is_mask else enlarged

    def _enlarged_disparity(self, disparity: np.ndarray, camera, step: int = 1) -> np.ndarray:
        """Return the disparity (H, W) at every step-th pixel of the camera, interpolated within surfaces only.

        It is in the pixels of `camera.every_nth(step)`.
        """
        cv2, size = self._cv2, (camera.width, camera.height)
        known = np.nan_to_num(disparity, nan=-10)  # far from all that is known
        window = np.ones((3, 3), np.uint8)
        is_edge = cv2.dilate(known, window) - cv2.erode(known, window) > _SURFACE
        factor = np.float32(camera.width / disparity.shape[1] / step)
        if numba_support.numba_kernels is not None and step > 1:
            (height, width), whole = disparity.shape, (camera.height, camera.width)
            rows, columns = (_nearest(*sizes, step) for sizes in zip(whole, disparity.shape, strict=True))
            row_places, column_places = _places(whole[0], height, step), _places(whole[1], width, step)
            sampled = np.empty((len(rows), len(columns)), np.float32)
            numba_support.numba_kernels.sampled_disparity(
                disparity, is_edge.view(np.uint8), rows, columns, row_places, column_places, factor, sampled
            )  # fmt: skip
            return sampled
        enlarged = np.ascontiguousarray(cv2.resize(disparity, size, interpolation=cv2.INTER_LINEAR)[::step, ::step])
        np.copyto(enlarged, self._enlarged(disparity, camera, step), where=self._enlarged(is_edge, camera, step))
        enlarged *= factor
        return enlarged
