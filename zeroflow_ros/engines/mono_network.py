# SPDX-License-Identifier: Apache-2.0
"""Scene flow of one camera by a model file whose state goes from image to image, with ONNX Runtime on the CPU."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from zeroflow_ros.camera.camera_motion import CameraMotionConfig, estimate_camera_motion
from zeroflow_ros.camera.metric_scale import MetricScale
from zeroflow_ros.camera.mono import MonoFrame, NoFlowError
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.stereo import StereoCamera, StereoFlow
from zeroflow_ros.camera.stereo_pairing import FrameDrop
from zeroflow_ros.engines.camera_card import REMEDY
from zeroflow_ros.engines.model_card import verify_checksum
from zeroflow_ros.engines.mono_card import METADATA_KEY, MonoCard
from zeroflow_ros.engines.onnxruntime_engine import open_session
from zeroflow_ros.errors import EgoMotionError, ModelError

_TYPES = {'image': 'tensor(uint8)'}  # all others are float
_MOST_INTERVALS = 5  # of the training, between two images with one state
_NEAREST = 0.1  # m; what moves behind this has no pixel
_PIXEL_SIGMA = 0.2  # px of the output; the least error of flow and disparity when ego motion is fitted


def open_mono_estimator(model_path: str, *, num_threads: int = 2, scale: str = 'model',
                        camera_height: float = 0.0) -> 'MonoNetworkFlow':  # fmt: skip
    """Return the estimator of a model file for one camera. scale, camera_height: see `MetricScale`.

    Raises: ModelError when there is no such file, or it cannot be used; ConfigError for the scale.
    """
    metric = MetricScale(scale, camera_height)
    if not model_path:
        raise ModelError(f'One camera needs a model file, as there is no classical estimator for it. {REMEDY}')
    path = Path(model_path).expanduser()
    if not path.is_file():
        raise ModelError(f'No model file at {path}. {REMEDY}')
    return MonoNetworkFlow(path, num_threads=num_threads, scale=metric)


class MonoNetworkFlow:
    """An estimator for `CameraPipeline` that runs a model file for one camera.

    It is given pairs of frames in the order of time. The state continues from pair to pair, also over frames that it
    was not given, if less than 5 intervals of the training lie between two images; else, and for another camera, it
    begins anew, and the first frames have no flow. Pixels that leave the image, and those far away, are not marked as
    measured. Unknown ego motion is fitted to the scene flow.
    card: of the model. name: of the estimator. output_on: the frame that the pixels belong to. scale: see MetricScale.
    num_starts: how often the state began anew. start_reason: why, the last time.
    """

    def __init__(self, path: Path, *, num_threads: int = 2, scale: MetricScale | None = None):
        """Open the model file.

        Raises: ModelError when it is not an ONNX file, has no valid mono card, or does not match its card.
        """
        self._session, metadata, self.runs_on = open_session(path, num_threads)
        if METADATA_KEY not in metadata:
            raise ModelError(f'{path} is an ONNX file without the card of a model for one camera. {REMEDY}')
        self.card = card = MonoCard.from_json(metadata[METADATA_KEY])
        verify_checksum(path, card)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = {t.name: list(t.shape) for t in inputs}, {t.name: list(t.shape) for t in outputs}
        if found != card.tensors():
            raise ModelError(f'{path} has the tensors {found}, its card says {card.tensors()}. {REMEDY}')
        types = {t.name: t.type for t in (*inputs, *outputs)}
        if wrong := [f'{name} of {kind}' for name, kind in types.items() if kind != _TYPES.get(name, 'tensor(float)')]:
            raise ModelError(f'{path} has {", ".join(wrong)}, expected float, and uint8 for the image. {REMEDY}')
        self.name, self.output_on = card.name, card.refers_to
        self.scale = MetricScale() if scale is None else scale
        self.forget()

    def forget(self) -> None:
        """Forget all that was seen, as if the model had just been opened."""
        self.scale.reset()
        self.reset('')
        self.num_starts = 0

    def reset(self, reason: str = 'asked to') -> None:
        """Let the state begin anew with the next image; the scale stays."""
        self._state = {name: np.zeros(shape, np.float32) for name, shape in self.card.state.items()}
        self._last: MonoFrame | None = None
        self._num_seen, self._motion = 0, None
        self.start_reason = reason

    def facts(self) -> dict[str, str]:
        """Return scale and state for diagnostics."""
        return {**self.scale.facts(), 'state_starts': str(self.num_starts), 'state_start_reason': self.start_reason}

    def estimate(self, reference: MonoFrame, other: MonoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of all pixels of `reference` to the time of `other`; see `estimate_every_nth`."""
        return self.estimate_every_nth(reference, other, other_T_reference, step=1)

    def estimate_every_nth(self, reference: MonoFrame, other: MonoFrame, other_T_reference: np.ndarray | None = None,
                           *, step: int) -> StereoFlow:  # fmt: skip
        """Return the scene flow of every step-th pixel of `reference` to the time of `other`; see StereoEstimator.

        Raises: NoFlowError at the start of a sequence, and while the scale is not known; ModelError for values that are
        not finite.
        """
        previous, latest = (reference, other) if self.output_on == 'previous' else (other, reference)
        self._follow(previous)
        values = self._feed(latest)
        if self._num_seen < self.card.num_images:
            raise NoFlowError(
                FrameDrop.FIRST,
                f'The model {self.name} has flow from image {self.card.num_images} of a sequence on; this is image '
                f'{self._num_seen}.',
            )
        scene = _Scene(values, reference.camera, self.card)
        own, motion = None, other_T_reference
        if other_T_reference is None or self.scale.source == 'odometry':
            own = self._motion = scene.fitted_motion(self._motion)
        if self.scale.source == 'odometry' and other_T_reference is not None:
            self.scale.measure_motion(own, other_T_reference)
        elif self.scale.source == 'camera_height':
            self.scale.measure_ground(scene.camera, scene.disparity, scene.measured)
        factor = self.scale.factor
        if factor is None:
            raise NoFlowError(FrameDrop.NO_SCALE, self.scale.missing())
        moved = 0.0
        if motion is None and own is not None:
            motion = own.copy()
            motion[:3, 3] *= factor
        elif motion is not None and self.scale.source == 'model':
            moved = float(np.linalg.norm(motion[:3, 3]))  # its metres and those of the model differ
        return scene.flow(factor, step, moved, motion)

    def _follow(self, previous: MonoFrame) -> None:
        """Let the state be that after a frame."""
        last = self._last
        if last is not None and last.camera != previous.camera:
            self.scale.reset()
            self._start(f'the camera changed from {last.camera} to {previous.camera}', previous)
            return
        if last is None:
            self._start(self.start_reason or 'the first image', previous)
            return
        gap = (previous.stamp_ns - last.stamp_ns) * 1e-9
        if gap == 0:
            return
        longest = _MOST_INTERVALS * self.card.nominal_dt
        if not 0 < gap < longest or last.frame_id != previous.frame_id:
            self._start(f'{gap:.2f} s between two images, expected 0 to {longest:g} s', previous)
            return
        self._feed(previous)

    def _start(self, reason: str, first: MonoFrame) -> None:
        self.reset(reason)
        self.num_starts += 1
        self._feed(first)

    def _feed(self, frame: MonoFrame) -> np.ndarray:
        """Run the network on the next image; return scene flow (4 or 6, h, w)."""
        inputs = {'image': self._image(frame.image)[None], 'intrinsics': self._intrinsics(frame.camera)}
        outputs = ['scene_flow', *(f'next_{name}' for name in self._state)]
        values, *state = self._session.run(outputs, inputs | self._state)
        if not np.isfinite(values).all():
            self.reset('values that are not finite')
            raise ModelError(
                f'The model {self.name} gave values that are not finite; its state begins anew. Train or export it '
                'again.'
            )
        self._state = dict(zip(self._state, state, strict=True))
        self._last, self._num_seen = frame, min(self._num_seen + 1, self.card.num_images)
        return values[0]

    def _image(self, image: np.ndarray) -> np.ndarray:
        """Return an image in the size of the network, (height, width, 3) uint8 RGB."""
        cv2, card = load_opencv(), self.card
        if card.resize == 'corners':
            image = _resized_by_corners(image, card.width, card.height)
        elif (card.height, card.width) != image.shape[:2]:
            shrinks = card.width * card.height < image.shape[0] * image.shape[1]
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (card.width, card.height), interpolation=interpolation)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image

    def _intrinsics(self, camera: StereoCamera) -> np.ndarray:
        """Return the intrinsics (1, 3, 3) of the network's images."""
        card = self.card
        x, y = card.width / camera.width, card.height / camera.height
        cx, cy = camera.cx * x, camera.cy * y  # plain ratios, as multi-mono-sf has them
        if card.resize == 'scale':
            scaled = camera.scaled(card.width, card.height)
            cx, cy = scaled.cx, scaled.cy
        return np.array([[[camera.fx * x, 0, cx], [0, camera.fy * y, cy], [0, 0, 1]]], np.float32)


class _Scene:
    """What the pixels of the network's output mean, in the pixels of a camera.

    camera: whose pixels those of the output are. disparity: (h, w) [px of it], before the scale. measured: (h, w) bool.
    """

    def __init__(self, values: np.ndarray, camera: StereoCamera, card: MonoCard):
        self._full, self._card = camera, card
        depth, motion = values[0], values[1:4]
        height, width = depth.shape
        self._pixel, self._first, self.camera = _output_camera(camera, width, height, card.resize)
        rays = self.camera.rays
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            x1, y1, z1 = (rays[..., k] * depth + motion[k] for k in range(3))
            self.disparity = np.float32(self.camera.fx * self.camera.baseline) / depth
            self._other_disparity = np.float32(self.camera.fx * self.camera.baseline) / z1
            column = np.float32(self.camera.fx) * x1 / z1 + np.float32(self.camera.cx)
            row = np.float32(self.camera.fy) * y1 / z1 + np.float32(self.camera.cy)
            measured = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
        ahead = z1 > _NEAREST
        self.measured = measured & (depth > _NEAREST) & ahead & (depth < card.far)
        flow = np.stack([column - np.arange(width, dtype=np.float32), row - np.arange(height)[:, None]], axis=2)
        # Boards score the pixels that leave the image, too.
        self._flow = np.where(ahead[..., None], flow, 0).astype(np.float32)
        self._other_disparity = np.where(ahead, self._other_disparity, self.disparity)
        self._depth, self._sigmas = depth, values[4:]

    def fitted_motion(self, start: np.ndarray | None) -> np.ndarray | None:
        """Return the ego motion (4, 4), before the scale, that most pixels agree with; None where there is none."""
        sigma = _PIXEL_SIGMA
        if not self._card.estimates_sigma:
            sigma = max(sigma, self._card.sigma[1] * self.camera.fx)
        try:
            return estimate_camera_motion(
                self.camera, self.disparity, self._flow, self.measured, other_disparity=self._other_disparity,
                start=start, config=CameraMotionConfig(flow_sigma=sigma, disparity_sigma=sigma),
            ).other_T_reference  # fmt: skip
        except EgoMotionError:
            return None

    def flow(self, factor: float, step: int, moved: float, motion: np.ndarray | None) -> StereoFlow:
        """Return the flow of every step-th pixel of the camera.

        factor: metres per length of the network. moved: distance that the camera moved [m], where its scale is not
        that of the network. motion: (4, 4), other_T_reference.
        """
        x, y = self._pixel
        depth = self._depth * np.float32(factor)
        to_pixels = np.float32(x / factor / step)
        scaled_flow = self._flow * np.float32([x / step, y / step])
        if self._card.estimates_sigma:
            depth_sigma, motion_sigma = np.exp(self._sigmas[0]), np.exp(self._sigmas[1]) * np.float32(factor)
            motion_sigma = np.hypot(motion_sigma, depth_sigma * np.float32(moved))
            depth_sigma = self._at_pixels(depth_sigma, step)
        else:
            depth_sigma = np.float32(self._card.sigma[0])  # of all pixels
            motion_sigma = np.hypot(depth * np.float32(self._card.sigma[1]), depth_sigma * np.float32(moved))
        disparity, other, flow, motion_sigma = (
            self._at_pixels(plane, step)
            for plane in (self.disparity * to_pixels, self._other_disparity * to_pixels, scaled_flow, motion_sigma)
        )
        camera = self._full.every_nth(step)
        flow_sigma = motion_sigma * disparity
        flow_sigma *= np.float32(1 / camera.baseline)
        full = self.disparity * np.float32(x / factor)

        def full_disparity() -> np.ndarray:
            measured = self._at_pixels(self.measured, 1)
            return np.where(measured, self._at_pixels(full, 1), np.float32(np.nan))

        return StereoFlow(
            disparity, other, flow, depth_sigma * disparity, depth_sigma * other, flow_sigma,
            self._at_pixels(self.measured, step), motion, motion_sigma=motion_sigma, full_disparity=full_disparity,
        )  # fmt: skip

    def _at_pixels(self, plane: np.ndarray, step: int) -> np.ndarray:
        """Return a plane (h, w) or (h, w, 2), float32 or bool, at every step-th pixel of the camera."""
        camera = self._full.every_nth(step)
        cv2, size = load_opencv(), (camera.width, camera.height)
        (x, y), (left, top) = self._pixel, self._first
        back = np.array([[step / x, 0, -left / x], [0, step / y, -top / y]])
        is_mask = plane.dtype == bool
        interpolation = cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR
        found = cv2.warpAffine(plane.astype(np.uint8) if is_mask else plane, back, size,
                               flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        return found.astype(bool) if is_mask else found


@lru_cache(maxsize=4)
def _output_camera(camera: StereoCamera, width: int, height: int, resize: str):
    """Return the camera of an output of width x height, whose rays are computed once.

    Before it come the size of its pixels, and the centre of the first one, both x, y [px of `camera`].
    """
    if resize == 'corners':
        x, y = (camera.width - 1) / max(width - 1, 1), (camera.height - 1) / max(height - 1, 1)
        left, top = 0.0, 0.0
    else:
        x, y = camera.width / width, camera.height / height
        left, top = 0.5 * x - 0.5, 0.5 * y - 0.5
    own = StereoCamera(width, height, camera.fx / x, camera.fy / y, (camera.cx - left) / x, (camera.cy - top) / y,
                       camera.baseline)  # fmt: skip
    return (x, y), (left, top), own


def _resized_by_corners(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return an image (H, W, ...) uint8 as (height, width, ...), bilinear, corners on corners, no antialiasing."""
    values = image.astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        place = np.linspace(0, values.shape[axis] - 1, size)
        low = np.minimum(place.astype(int), max(values.shape[axis] - 2, 0))
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = (place - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return np.rint(values).astype(np.uint8)
