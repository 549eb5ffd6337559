# SPDX-License-Identifier: Apache-2.0
"""Scene flow of stereo pairs by a network; model files run with ONNX Runtime on the CPU."""

import dataclasses
import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from zeroflow_ros.camera.camera_motion import estimate_camera_motion, rigid_flow
from zeroflow_ros.camera.opencv import load_opencv
from zeroflow_ros.camera.optical_flow import OpticalFlow
from zeroflow_ros.camera.static_scene import UNKNOWN_MOTION, pixel_motion
from zeroflow_ros.camera.stereo import StereoCamera, StereoEstimator, StereoFlow, StereoFrame
from zeroflow_ros.engines.camera_card import REMEDY
from zeroflow_ros.engines.model_card import verify_checksum
from zeroflow_ros.engines.onnxruntime_engine import open_session
from zeroflow_ros.engines.stereo_card import METADATA_KEY, StereoCard
from zeroflow_ros.errors import EgoMotionError, ModelError
from zeroflow_ros.transforms import invert, rotation_vector

_TYPES = {'images': 'tensor(uint8)', 'ego_motion': 'tensor(float)', 'scene_flow': 'tensor(float)'}
_LAPLACE = math.sqrt(2)  # standard deviation of a Laplace distribution, the one that is learned, of scale 1
_NEW_MOTION = 0.05, 0.005  # m, rad: the network runs again when the ego motion differs by more from what it was given
_STATIC = 2.0  # standard deviations: pixels that are nearer to the motion of the static scene have it
_SMALLEST_SEARCH = 32  # px, width and height of images for dense inverse search
_MIN_DISPARITY = 0.5  # px of the camera; farther points are at an unknown depth


def open_stereo_estimator(model_path: str = '', *, num_threads: int = 2, max_disparity: int = 0) -> StereoEstimator:
    """Return the estimator of a model file, or the classical one for an empty path.

    max_disparity: largest one that the classical estimator looks for [px of the camera]; 0: its default.
    Raises: ModelError when there is no such file, or it cannot be used.
    """
    if not model_path:
        from zeroflow_ros.camera.classical_flow import ClassicalConfig, ClassicalStereoFlow
        from zeroflow_ros.camera.stereo_matching import MatchingConfig

        matching = MatchingConfig(max_disparity=max_disparity) if max_disparity else MatchingConfig()
        return ClassicalStereoFlow(ClassicalConfig(matching=matching))
    path = Path(model_path).expanduser()
    if not path.is_file():
        raise ModelError(f'No model file at {path}. {REMEDY}')
    return NetworkStereoFlow(path, num_threads=num_threads)


class StereoNetworkFlow(ABC):
    """A StereoEstimator around a network, a student for stereo cameras.

    It gives each pixel a value; with ego motion, that of the static scene where the network agrees with it. Those that
    leave the other image, and those as good as infinitely far away, are not marked as measured. Unknown ego motion is
    fitted to the network's disparity and, for networks that use ego motion, OpenCV's optical flow. Where the other
    frame was the reference of the pair before, its disparity is known and the motion is fitted before the network runs.
    Else the network is given the motion of the pair before, and runs again where the pair's own differs.
    card: of the network. name: of the estimator. runs_on: library and processor.
    """

    def __init__(self, card: StereoCard, runs_on: str):
        self.card, self.name, self.runs_on = card, card.name, runs_on
        self._last_motion: np.ndarray | None = None
        self._kept: list[tuple[StereoFrame, np.ndarray]] = []
        self._seen: tuple[StereoFrame, np.ndarray] | None = None  # the last reference frame and its disparity

    @abstractmethod
    def infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return the scene flow of the network's inputs, (1, 4 or 7, height, width) float32; see StereoCard."""

    def estimate(self, reference: StereoFrame, other: StereoFrame,
                 other_T_reference: np.ndarray | None = None) -> StereoFlow:  # fmt: skip
        """Return the scene flow of the pixels of `reference` to the time of `other`; see StereoEstimator.

        Raises: ModelError for images that the model cannot take, and values that are not finite.
        """
        return self.estimate_every_nth(reference, other, other_T_reference, step=1)

    def estimate_every_nth(self, reference: StereoFrame, other: StereoFrame,
                           other_T_reference: np.ndarray | None = None, *, step: int) -> StereoFlow:  # fmt: skip
        """Return the scene flow of every step-th pixel of every step-th row; see StereoEstimator."""
        camera, images = reference.camera, np.concatenate(self._images(reference, other))
        if other_T_reference is not None:
            return self._flow(self._run(images, camera, other_T_reference), camera, other_T_reference, step)
        start, uses_motion = self._last_motion, self.card.uses_ego_motion
        motion = self._motion_of_other(images, other, camera, start) if uses_motion else None
        values = self._run(images, camera, start if motion is None else motion)
        if motion is None:
            motion = self._motion(images, values, camera, start)
            if uses_motion and motion is None and start is not None:
                values = self._run(images, camera, None)
            elif uses_motion and motion is not None and (start is None or _differ(start, motion)):
                values = self._run(images, camera, motion)
        self._last_motion, self._seen = motion, (reference, values[0])
        return self._flow(values, camera, motion, step)

    def _motion_of_other(
        self, images: np.ndarray, other: StereoFrame, camera: StereoCamera, start: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the ego motion (4, 4) that fits the disparity which the pair before gave the other frame.

        None where there is none, or the other frame was not its reference.
        """
        if self._seen is None or self._seen[0] is not other or start is None:
            return None
        disparity = self._seen[1]
        is_known = disparity * np.float32(self.card.images.pixel_size(camera)[0]) > _MIN_DISPARITY
        reference_T_other = self._fitted_to_search(images[2], images[0], disparity, is_known, camera, invert(start))
        return None if reference_T_other is None else invert(reference_T_other)

    def _motion(
        self, images: np.ndarray, values: np.ndarray, camera: StereoCamera, start: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the ego motion (4, 4) that most pixels agree with, None where there is none. start: tried first.

        The flow of a network that was given an ego motion confirms that one, right or wrong. It is therefore fitted to
        the flow of dense inverse search, with the network's disparity.
        """
        if self.card.uses_ego_motion:
            return self._fitted_to_search(
                images[0], images[2], values[0], self._is_measured(values, camera), camera, start
            )
        found = self._flow(values, camera, None, 1)
        return _fitted(camera, found.disparity, found.flow, found.is_measured, found.other_disparity, start)

    def _fitted_to_search(
        self, image: np.ndarray, other: np.ndarray, disparity: np.ndarray, is_known: np.ndarray, camera: StereoCamera,
        start: np.ndarray | None,
    ) -> np.ndarray | None:  # fmt: skip
        """Return the motion (4, 4) of the camera between two left images of the network, by dense inverse search.

        disparity, is_known: (h, w), of the first image's pixels. None where no motion fits.
        """
        cv2, network = load_opencv(), self.card.images
        grey, other_grey = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (image, other))
        if min(grey.shape) < _SMALLEST_SEARCH:
            return None
        search = OpticalFlow()
        forward, backward = search.forward(grey, other_grey), search.backward(grey, other_grey)
        flow = np.moveaxis(network.of_camera(np.moveaxis(forward, 2, 0), camera), 0, 2)
        measured = is_known & network.of_camera(search.is_consistent(forward, backward), camera)
        return _fitted(self._camera(camera), disparity, flow, measured, None, start)

    def _images(self, *frames: StereoFrame) -> list[np.ndarray]:
        """Return the network's images of frames; those of the call before are kept: the node sends each frame twice."""
        kept, self._kept = self._kept, []
        for frame in frames:
            known = [images for one, images in kept if one is frame]
            self._kept.append((frame, known[0] if known else self.card.images.images(frame)))
        return [images for _, images in self._kept]

    def _run(self, images: np.ndarray, camera: StereoCamera, other_T_reference: np.ndarray | None) -> np.ndarray:
        """Return the values (4 or 7, h, w) of the network's images (4, height, width, 3), without borders."""
        network, given = self.card.images, {'images': images}
        if self.card.uses_ego_motion:
            known = other_T_reference is not None
            motion = pixel_motion(network.camera(camera), other_T_reference) if known else UNKNOWN_MOTION
            given['ego_motion'] = motion[None]
        values = network.of_camera(self.infer(given)[0], camera)  # (4 or 7, h, w)
        if not np.isfinite(values).all():
            raise ModelError(f'The model {self.name} gave values that are not finite. Train or export it again.')
        return values

    def _camera(self, camera: StereoCamera) -> StereoCamera:
        """Return the camera whose pixels are those of the network's values; infinity has the disparity 0."""
        if self.card.resize == 'scale':
            return self.card.images.camera(camera)
        return dataclasses.replace(camera, right_cx=None)

    def _is_measured(self, values: np.ndarray, camera: StereoCamera) -> np.ndarray:
        """Return which pixels (h, w) stay in the other image and are at a known depth at both times."""
        x, y = (np.float32(size) for size in self.card.images.pixel_size(camera))
        columns, rows = (np.arange(values.shape[2]) + 0.5) * x - 0.5, (np.arange(values.shape[1]) + 0.5) * y - 0.5
        column, row = columns.astype(np.float32) + values[2] * x, rows.astype(np.float32)[:, None] + values[3] * y
        inside = (column >= 0) & (column <= camera.width - 1) & (row >= 0) & (row <= camera.height - 1)
        return inside & (values[0] * x > _MIN_DISPARITY) & (values[1] * x > _MIN_DISPARITY)

    def _flow(
        self, values: np.ndarray, camera: StereoCamera, other_T_reference: np.ndarray | None, step: int
    ) -> StereoFlow:
        """Return the network's values as the scene flow of every step-th pixel of the camera."""
        network, sigmas = self.card.images, self._sigmas(values)
        # All is computed at the network's pixels, which are fewer than the camera's.
        if self.card.uses_ego_motion and other_T_reference is not None:
            values = _with_static_scene(values[:4], sigmas, self._camera(camera), other_T_reference)
        measured = self._is_measured(values, camera)
        x, y = (np.float32(size) for size in network.pixel_size(camera))
        disparity, other_disparity, u, v = values[:4] * np.array([x, x, x, y], np.float32)[:, None, None]
        far = np.float32(camera.disparity_at_infinity)
        sigmas = sigmas * np.array([x, x, max(x, y)], np.float32)[:, None, None]
        planes = [disparity + far, other_disparity + far, u, v, *sigmas]
        lengths = [network.to_camera(part if step == 1 else part / np.float32(step), camera, step) for part in planes]

        def full_disparity():
            known = network.to_camera(measured, camera)
            return np.where(known, network.to_camera(planes[0], camera), np.float32(np.nan))

        return StereoFlow(
            *lengths[:2], np.stack(lengths[2:4], axis=2), *lengths[4:], network.to_camera(measured, camera, step),
            other_T_reference, full_disparity=full_disparity,
        )  # fmt: skip

    def _sigmas(self, values: np.ndarray) -> np.ndarray:
        """Return the three standard deviations of each pixel, (3, h, w) [px of the network's images]."""
        if self.card.estimates_sigma:
            return np.exp(values[4:]) * np.float32(_LAPLACE)
        return np.broadcast_to(np.array(self.card.sigma_px, np.float32)[:, None, None], (3, *values.shape[1:]))


class NetworkStereoFlow(StereoNetworkFlow):
    """Runs a model file."""

    def __init__(self, path: Path, *, num_threads: int = 2):
        """Open the model file.

        Raises: ModelError when it is not an ONNX file, has no valid stereo card, or does not match its card.
        """
        self._session, metadata, runs_on = open_session(path, num_threads)
        if METADATA_KEY not in metadata:
            raise ModelError(f'{path} is an ONNX file without the card of a model for stereo cameras. {REMEDY}')
        super().__init__(StereoCard.from_json(metadata[METADATA_KEY]), runs_on)
        verify_checksum(path, self.card)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = {t.name: list(t.shape) for t in inputs}, {t.name: list(t.shape) for t in outputs}
        if found != self.card.tensors():
            raise ModelError(f'{path} has the tensors {found}, its card says {self.card.tensors()}. {REMEDY}')
        if wrong := [f'{t.name} of {t.type}' for t in (*inputs, *outputs) if t.type != _TYPES[t.name]]:
            raise ModelError(f'{path} has {", ".join(wrong)}, expected {_TYPES}. {REMEDY}')

    def infer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See `StereoNetworkFlow.infer`."""
        [values] = self._session.run(['scene_flow'], inputs)
        return values


def _fitted(camera, disparity, flow, measured, other_disparity, start) -> np.ndarray | None:
    """Return the ego motion (4, 4) that most measured pixels agree with, None where there is none."""
    try:
        return estimate_camera_motion(
            camera, disparity, flow, measured, other_disparity=other_disparity, start=start
        ).other_T_reference
    except EgoMotionError:
        return None


def _with_static_scene(
    values: np.ndarray, sigmas: np.ndarray, camera: StereoCamera, other_T_reference: np.ndarray
) -> np.ndarray:
    """Return disparity, other disparity and flow u, v (4, h, w) [px] with those of the static scene where they agree.

    A pixel agrees whose flow and other disparity are within _STATIC standard deviations of what its disparity and the
    ego motion say: the motion of a resting pixel is then exactly 0. sigmas: (3, h, w) [px], as StereoFlow has them.
    """
    disparity, other_disparity = values[:2]
    flow, static_disparity = rigid_flow(camera, disparity, other_T_reference)
    u, v = values[2] - flow[..., 0], values[3] - flow[..., 1]
    error = (u * u + v * v) / (2 * sigmas[2] ** 2)
    error += (other_disparity - static_disparity) ** 2 / (sigmas[0] ** 2 + sigmas[1] ** 2)
    is_static = error < _STATIC**2  # False where there is no static scene: behind the other camera
    return np.where(is_static, np.stack([disparity, static_disparity, *np.moveaxis(flow, 2, 0)]), values)


def _differ(start: np.ndarray, motion: np.ndarray) -> bool:
    """Return whether two ego motions (4, 4) differ by more than the network bridges without loss."""
    difference = invert(start) @ motion
    translation, rotation = np.linalg.norm(difference[:3, 3]), np.linalg.norm(rotation_vector(difference))
    return translation > _NEW_MOTION[0] or rotation > _NEW_MOTION[1]
